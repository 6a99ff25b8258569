"""Messages that a device sends unasked, and what an honest host does now and then, by type of device."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Final

from chamber.wire.console import ConsoleEvent
from chamber.wire.input import Abs, EventType
from chamber.wire.scsi import EventType as ScsiEvent
from chamber.wire.scsi import ResetReason
from chamber.wire.snd import SndCode
from chamber.wire.virtio import DeviceType
from chamber.wire.vsock import HOST_CID, Header, VsockEvent, VsockOp, VsockType

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ("ACTIONS", "TEMPLATES")

_CONTROL: Final = struct.Struct("<IHH")
_GUEST_CID: Final = 3
_CALL_PORT: Final = 5000
_SCSI_LUN: Final = bytes((1, 0, 0x40, 0, 0, 0, 0, 0))
_INPUT: Final = struct.Struct("<HHI")


def _vsock(op: VsockOp, kind: VsockType, data: bytes = b"") -> bytes:
    return Header(HOST_CID, _GUEST_CID, 1024, _CALL_PORT, len(data), kind, op, 0, 1 << 18).build() + data


def _scsi(event: int, reason: int) -> bytes:
    return struct.pack("<I8sI", event, _SCSI_LUN, reason)


_NET: Final = bytes(12) + b"\xff" * 6 + bytes.fromhex("525400636801 0800") + bytes.fromhex(
    "4500002e000040004011262f0a6300010a630002 00070007001a0000") + bytes(18)
"""A header without offloads and a small datagram."""

TEMPLATES: Final[Mapping[DeviceType, Mapping[str, tuple[bytes, ...]]]] = {
    DeviceType.CONSOLE: {
        "control": tuple(_CONTROL.pack(1, event, 1) + (b"another" if event is ConsoleEvent.PORT_NAME else b"")
                         + (struct.pack("<HH", 80, 25) if event is ConsoleEvent.RESIZE else b"")
                         for event in ConsoleEvent),
        "rx": (b"input", b""),
    },
    DeviceType.NET: {"rx": (_NET, _NET[:12], _NET + bytes(1400))},
    DeviceType.VSOCK: {
        "rx": tuple(_vsock(op, kind, b"data" if op is VsockOp.RW else b"") for op in VsockOp for kind in VsockType),
        "event": (struct.pack("<I", VsockEvent.TRANSPORT_RESET), b"", b"\xff" * 4),
    },
    DeviceType.SCSI: {
        "events": (*(_scsi(ScsiEvent.TRANSPORT_RESET, reason) for reason in ResetReason),
                   _scsi(ScsiEvent.ASYNC_NOTIFY, 2), _scsi(ScsiEvent.PARAM_CHANGE, 0x2A09),
                   _scsi(0x80000000, 0), b""),
    },
    DeviceType.INPUT: {
        "events": tuple(_INPUT.pack(kind, code, value) for kind, code, value in (
            (EventType.KEY, 30, 1), (EventType.REL, 0, 1), (EventType.ABS, Abs.MT_SLOT, 1),
            (EventType.ABS, Abs.MT_TRACKING_ID, 5), (EventType.SW, 0, 1), (EventType.REP, 0, 1),
            (EventType.LED, 0, 1), (EventType.SYN, 0, 0))),
    },
    DeviceType.SND: {
        "events": tuple(struct.pack("<II", code, 0) for code in SndCode if code >= SndCode.EVT_JACK_CONNECTED),
    },
}
"""For queues whose buffers wait for the device: what it can send through them at any time."""

ACTIONS: Final[Mapping[DeviceType, tuple[str, ...]]] = {
    DeviceType.CONSOLE: ("plug", "unplug", "hangup", "resize"),
    DeviceType.NET: ("link-down", "link-up", "announce"),
    DeviceType.BLOCK: ("shrink", "grow"),
    DeviceType.VSOCK: ("call", "call-seqpacket", "reset"),
    DeviceType.SCSI: ("plug", "unplug", "shrink", "grow", "reset"),
    DeviceType.INPUT: ("type", "move", "touch"),
    DeviceType.SND: ("plug", "unplug", "volume"),
    DeviceType.BALLOON: ("inflate", "deflate", "statistics", "hint"),
    DeviceType.FS: ("edit",),
}
"""`Device.host_action` by what each type knows."""
