"""What a buffer is for, in words: so that a finding says ``used length 7 for a PORT_NAME message``."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Final

from chamber.wire.blk import RequestType
from chamber.wire.console import ConsoleEvent
from chamber.wire.crypto import ControlOp, DataOp
from chamber.wire.fuse import IN_HEADER, Opcode
from chamber.wire.p9_messages import MessageType
from chamber.wire.scsi_commands import Opcode as ScsiOpcode
from chamber.wire.snd import SndCode
from chamber.wire.virtio import DeviceType
from chamber.wire.vsock import HDR_SIZE, VsockOp

if TYPE_CHECKING:
    import enum
    from collections.abc import Callable, Mapping

__all__ = ("message_name",)

_OP_AT: Final = 30
"""Where ``op`` stands in a header of virtio-vsock (5.10.6)."""
_CDB_AT: Final = 19
"""Where a command begins in a request of virtio-scsi (5.6.6.1)."""


def _member(kind: type[enum.IntEnum], number: int) -> str:
    try:
        return kind(number).name
    except ValueError:
        return str(number)


def _number(data: bytes, at: int, width: int) -> int:
    return int.from_bytes(data[at:at + width], "little")


def _blk(request: bytes, _answer: bytes) -> str:
    if len(request) < 16:
        return ""
    kind, _, sector = struct.unpack_from("<IIQ", request)
    return f"request {_member(RequestType, kind)} of sector {sector}"


def _console(request: bytes, answer: bytes) -> str:
    data = answer or request
    return f"a {_member(ConsoleEvent, _number(data, 4, 2))} message of port {_number(data, 0, 4)}" if len(
        data) >= 8 else ""


def _vsock(request: bytes, answer: bytes) -> str:
    data = answer or request
    return f"a {_member(VsockOp, _number(data, _OP_AT, 2))} packet" if len(data) >= HDR_SIZE else ""


def _p9(request: bytes, answer: bytes) -> str:
    data = answer or request
    return f"{_member(MessageType, data[4])}" if len(data) >= 7 else ""


def _fuse(request: bytes, _answer: bytes) -> str:
    return f"the reply to {_member(Opcode, _number(request, 4, 4))}" if len(request) >= IN_HEADER.size else ""


def _snd(request: bytes, answer: bytes) -> str:
    if request:
        return f"the reply to {_member(SndCode, _number(request, 0, 4))}" if len(request) >= 4 else ""
    return f"event {_member(SndCode, _number(answer, 0, 4))}" if _number(answer, 0, 4) in set(SndCode) else ""


def _scsi(request: bytes, _answer: bytes) -> str:
    return f"the answer to {_member(ScsiOpcode, request[_CDB_AT])}" if len(request) > _CDB_AT else ""


def _crypto(request: bytes, _answer: bytes) -> str:
    number = _number(request, 0, 4)
    known = number in set(ControlOp) or number in set(DataOp)
    return f"the answer to {_member(ControlOp if number in set(ControlOp) else DataOp, number)}" if known else ""


def _net(_request: bytes, answer: bytes) -> str:
    return f"a frame of {len(answer)} bytes with its header" if answer else ""


_NAMES: Final[Mapping[tuple[DeviceType, str], Callable[[bytes, bytes], str]]] = {
    (DeviceType.BLOCK, "requests"): _blk,
    (DeviceType.CONSOLE, "control"): _console,
    (DeviceType.CONSOLE, "control-tx"): _console,
    (DeviceType.VSOCK, "rx"): _vsock,
    (DeviceType.VSOCK, "tx"): _vsock,
    (DeviceType.TRANSPORT_9P, "requests"): _p9,
    (DeviceType.FS, "requests"): _fuse,
    (DeviceType.FS, "hiprio"): _fuse,
    (DeviceType.SND, "control"): _snd,
    (DeviceType.SND, "events"): _snd,
    (DeviceType.SCSI, "requests"): _scsi,
    (DeviceType.CRYPTO, "requests"): _crypto,
    (DeviceType.CRYPTO, "control"): _crypto,
    (DeviceType.NET, "rx"): _net,
}


def message_name(device: DeviceType, role: str, request: bytes, answer: bytes) -> str:
    """Name what a buffer is for, from the request that it holds or the answer that goes into it; '' if unknown.

    Args:
        device: the type of device.
        role: what the queue is for, as `Device.queue_role` names it.
        request: the first bytes that the driver wrote, where it did.
        answer: what the device is about to write.

    """
    name = _NAMES.get((device, role))
    return name(request, answer) if name is not None else ""
