"""A TSM's ways in a Linux kernel: the channel of Chamber's module, and root ports by their configuration space."""

from __future__ import annotations

import ctypes
import fcntl
import os
from pathlib import Path
from typing import TYPE_CHECKING, Final

from chamber.guest.doe import find_extended
from chamber.guest.tsm import PortRefused
from chamber.lab.linux_tdisp import SysfsFunction
from chamber.lab.observation import TargetError
from chamber.wire.ide_km import KEY_SIZE
from chamber.wire.pci import ExtendedId
from chamber.wire.port_keys import KEY_SET, KEYS, SUB_STREAM_SHIFT, TRANSMIT, KeyCommand
from chamber.wire.tsm import LONGEST, TRANSFER, TRANSFER_IOCTL, TsmAnswer, TsmRequest

if TYPE_CHECKING:
    from collections.abc import Mapping
    from types import TracebackType
    from typing import Self

    from chamber.wire.ide_km import SubStream

__all__ = ("CHANNEL", "SysfsPort", "TsmChannel", "function_name")

CHANNEL: Final = Path("/dev/chamber-tsm")
_WORD: Final = 4
_ROOM: Final = 1 << 14
"""Bytes of the longest answer of a device; SPDM's own are told how much there is room for."""


def function_name(whole_id: int) -> str:
    """Return a function's name, as sysfs has it."""
    return f"{whole_id >> 16:04x}:{whole_id >> 8 & 0xFF:02x}:{whole_id >> 3 & 0x1F:02x}.{whole_id & 7}"


class TsmChannel:
    """The channel; there is a TSM for as long as it is open.

    Args:
        path: of the device node.

    Raises:
        TargetError: there is none, or another has it.

    """

    def __init__(self, path: Path = CHANNEL) -> None:
        try:
            self._file = os.open(path, os.O_RDWR)
        except OSError as error:
            raise TargetError(f"{path}: {error.strerror}") from None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        os.close(self._file)

    def read(self) -> TsmRequest:
        """Wait for a request."""
        return TsmRequest.decode(os.read(self._file, 2 * LONGEST))

    def answer(self, answer: TsmAnswer) -> None:
        """Answer one; whoever asked may be gone."""
        try:
            os.write(self._file, answer.encode())
        except ProcessLookupError:
            return

    def transfer(self, number: int, kind: int, payload: bytes) -> bytes:
        """Send a data object to the device that a request is about; return what came back, empty for nothing."""
        there, back = ctypes.create_string_buffer(payload, len(payload)), ctypes.create_string_buffer(_ROOM)
        transfer = bytearray(TRANSFER.pack(number, kind, len(payload), _ROOM, ctypes.addressof(there),
                                           ctypes.addressof(back)))
        try:
            got = fcntl.ioctl(self._file, TRANSFER_IOCTL, transfer)
        except OSError:
            return b""
        return back.raw[:min(got, _ROOM)]


class SysfsPort:
    """A root port with one encrypted stream (implements `chamber.guest.tsm.Port`).

    Args:
        name: of its function.
        stream_id: of the stream.

    Raises:
        PortRefused: it has no registers for keys.

    """

    def __init__(self, name: str, stream_id: int, sysfs: Path = Path("/sys")) -> None:
        self.stream_id = stream_id
        self._name = name
        self._sysfs = sysfs
        try:
            with SysfsFunction(name, sysfs) as port:
                at = find_extended(port.read, ExtendedId.DESIGNATED)
        except TargetError as error:
            raise PortRefused(str(error)) from None
        if at is None:
            raise PortRefused(f"{name} has no registers that take keys")
        self._at = at

    def _command(self, command: int, **values: int) -> None:
        try:
            self._write(command, values)
        except TargetError as error:
            raise PortRefused(str(error)) from None

    def _write(self, command: int, values: Mapping[str, int]) -> None:
        with SysfsFunction(self._name, self._sysfs) as port:
            for name, value in values.items():
                for word in range(KEYS[name].size // _WORD):
                    port.write(self._at + KEYS[name].offset + word * _WORD, value >> 32 * word & 0xFFFF_FFFF)
            port.write(self._at + KEYS["command"].offset, command)
            if port.read(self._at + KEYS["status"].offset):
                raise PortRefused(f"{self._name} refuses command {command:#x}")

    def program(self, sub_stream: SubStream, *, transmit: bool, key_set: int, key: bytes, ifv: int) -> None:
        """Take a key."""
        words = {f"key{word}": int.from_bytes(key[word * _WORD:(word + 1) * _WORD], "little")
                 for word in range(KEY_SIZE // _WORD)}
        self._command(KeyCommand.PROGRAM | _lane(sub_stream, transmit=transmit, key_set=key_set), counter=ifv, **words)

    def go(self, sub_stream: SubStream, *, transmit: bool, key_set: int) -> None:
        """Use it."""
        self._command(KeyCommand.GO | _lane(sub_stream, transmit=transmit, key_set=key_set))

    def accept(self, address: int, length: int) -> None:
        """Have memory requests to a range carry the T bit."""
        self._command(KeyCommand.ACCEPT, address=address, length=length)

    def release(self) -> None:
        """Have none carry it."""
        self._command(KeyCommand.RELEASE)


def _lane(sub_stream: SubStream, *, transmit: bool, key_set: int) -> int:
    return sub_stream << SUB_STREAM_SHIFT | TRANSMIT * transmit | KEY_SET * key_set
