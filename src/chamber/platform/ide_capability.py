"""A port's end of an encrypted stream as its host sees it: the IDE extended capability (PCIe 6.1, 7.9.26).

The host gives the stream its number and switches it on and off. It has no keys, so that all it can do is to have none.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from chamber.platform.ide import StreamState
from chamber.platform.pci import Window
from chamber.wire.ide_capability import (
    ASSOCIATION,
    CAPABILITY,
    SELECTIVE,
    IdeSupport,
    StreamControl,
    StreamStatus,
    stream_of,
)
from chamber.wire.pci import ExtendedId

if TYPE_CHECKING:
    from chamber.platform.ide import IdeStream
    from chamber.platform.pci import PciFunction

__all__ = ("IdeCapability",)

_VERSION: Final = 1
_HEADER: Final = 4
_WRITABLE: Final = {"control": StreamControl.ENABLE | StreamControl.DEFAULT | 0xFF << 24,
                    "rid_1": 0xFFFF << 8, "rid_2": 0xFF << 24 | 0xFFFF << 8 | 1}


class IdeCapability:
    """One selective stream's registers.

    Args:
        function: whose they become.
        stream: the port's end of the stream.
        ranges: how many ranges of addresses can be bound to it.

    Attributes:
        at: where the capability is.

    """

    def __init__(self, function: PciFunction, stream: IdeStream, *, ranges: int = 0) -> None:
        self._stream = stream
        self._config = function.config
        body = bytearray(CAPABILITY.size + SELECTIVE.size + ranges * ASSOCIATION.size)
        mask = bytearray(len(body))
        CAPABILITY.put(body, "capabilities", IdeSupport.SELECTIVE | IdeSupport.KEY_MANAGEMENT)
        SELECTIVE.put(body, "capabilities", ranges, CAPABILITY.size)
        for name, bits in _WRITABLE.items():
            SELECTIVE.put(mask, name, bits, CAPABILITY.size)
        mask[CAPABILITY.size + SELECTIVE.size:] = b"\xff" * (ranges * ASSOCIATION.size)
        self.at = function.add_extended(ExtendedId.IDE, _VERSION, bytes(body[_HEADER:]), bytes(mask[_HEADER:]))
        self._block = self.at + CAPABILITY.size
        status, control = (self._block + SELECTIVE[name].offset for name in ("status", "control"))
        function.add_window(Window(status, status + 4, read=self._status))
        function.add_window(Window(control, control + 4, written=self._controlled))

    @property
    def _control(self) -> int:
        return SELECTIVE.get(self._config, "control", self._block)

    @property
    def default(self) -> int | None:
        """The stream that the function has by default, None for none."""
        return stream_of(self._control) if self._control & StreamControl.DEFAULT else None

    @property
    def registers(self) -> tuple[int, ...]:
        """All registers behind the header, as QUERY_RESP tells them (6.33.3)."""
        end = self._block + SELECTIVE.size + SELECTIVE.get(self._config, "capabilities", self._block) * ASSOCIATION.size
        data = bytearray(self._config[self.at + _HEADER:end])
        at = self._block + SELECTIVE["status"].offset - self.at - _HEADER
        data[at:at + 4] = self._status(0, 4)
        return tuple(int.from_bytes(data[word:word + 4], "little") for word in range(0, len(data), 4))

    def _status(self, offset: int, size: int) -> bytes:
        secure = self._control & StreamControl.ENABLE and self._stream.state is StreamState.SECURE
        status = StreamStatus.SECURE if secure else StreamStatus.INSECURE
        return status.to_bytes(4, "little")[offset:offset + size].ljust(size, b"\xff")

    def _controlled(self, _offset: int, _data: bytes) -> None:
        number = stream_of(self._control)
        # Keys are of a stream, and are set before it is switched on; with another number, or off again, it has none.
        if number != self._stream.stream_id or not self._control & StreamControl.ENABLE:
            if not self._stream.is_new:
                self._stream.fail("its port's host has switched it off")
            self._stream.close()
            self._stream.stream_id = number
