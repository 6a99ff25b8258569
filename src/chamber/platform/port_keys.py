"""The registers by which a root port takes keys and ranges (`chamber.wire.port_keys`)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from chamber.platform.pci import Window
from chamber.wire.ide_km import SubStream
from chamber.wire.pci import DESIGNATED, ExtendedId
from chamber.wire.port_keys import DESIGNATED_ID, KEY_SET, KEYS, SUB_STREAM_SHIFT, TRANSMIT, KeyCommand
from chamber.wire.virtio_pci import VENDOR_ID

if TYPE_CHECKING:
    from chamber.platform.pci import PciFunction
    from chamber.platform.root_port import RootPort

__all__ = ("PortKeys",)

_HEADER: Final = 4
_REFUSED: Final = 1
_WORDS: Final = tuple(name for name in (field.name for field in KEYS) if name.startswith("key"))


class PortKeys:
    """The registers.

    Args:
        function: whose they become.
        port: what they set.

    """

    def __init__(self, function: PciFunction, port: RootPort) -> None:
        self._port = port
        self._config = function.config
        body = bytearray(KEYS.size)
        DESIGNATED.put(body, "vendor", VENDOR_ID)
        DESIGNATED.put(body, "revision_length", KEYS.size << 4)
        DESIGNATED.put(body, "id", DESIGNATED_ID)
        mask = bytes(KEYS["key0"].offset) + b"\xff" * (KEYS["status"].offset - KEYS["key0"].offset) + bytes(4)
        self._at = function.add_extended(ExtendedId.DESIGNATED, 1, bytes(body[_HEADER:]), mask[_HEADER:])
        begin, end = self._at + KEYS["key0"].offset, self._at + KEYS["counter"].offset
        function.add_window(Window(begin, end, read=lambda _offset, size: bytes(size)))
        command = self._at + KEYS["command"].offset
        function.add_window(Window(command, command + 4, written=self._commanded))

    def _get(self, name: str) -> int:
        return KEYS.get(self._config, name, self._at)

    def _commanded(self, _offset: int, _data: bytes) -> None:
        key = bytearray(b"".join(self._get(name).to_bytes(4, "little") for name in _WORDS))
        try:
            self._do(self._get("command"), bytes(key))
            status = 0
        except ValueError:
            status = _REFUSED
        key[:] = bytes(len(key))
        for name in _WORDS:
            KEYS.put(self._config, name, 0, self._at)
        KEYS.put(self._config, "status", status, self._at)

    def _do(self, command: int, key: bytes) -> None:
        port, kind = self._port, KeyCommand(command & 0xF)
        if kind is KeyCommand.ACCEPT:
            port.accept(self._get("address"), self._get("length"))
            return
        if kind is KeyCommand.RELEASE:
            port.release()
            return
        sub_stream = SubStream(command >> SUB_STREAM_SHIFT & 0xF)
        transmit, key_set = bool(command & TRANSMIT), int(bool(command & KEY_SET))
        if kind is KeyCommand.PROGRAM:
            port.stream.program(sub_stream, transmit=transmit, key_set=key_set, key=key, ifv=self._get("counter"))
        elif kind is KeyCommand.GO:
            port.stream.go(sub_stream, transmit=transmit, key_set=key_set)
        else:
            port.stream.stop(sub_stream, transmit=transmit, key_set=key_set)
