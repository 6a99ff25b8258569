"""The device's end of an encrypted link: memory requests that come over a stream reach their function."""

from __future__ import annotations

from contextlib import nullcontext
from typing import TYPE_CHECKING

from chamber.platform.ide import IdeFailure
from chamber.wire.tlp import Completion, CompletionStatus, MemoryRead, MemoryWrite

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from contextlib import AbstractContextManager

    from chamber.device.tdi import Tdi
    from chamber.platform.ide import IdeStream

__all__ = ("IdeLink",)


class IdeLink:
    """A stream with interfaces behind it.

    Args:
        stream: the device's end of it.
        tdis: interfaces whose configuration names the stream.
        completer: bus, device and function that completions name.

    Attributes:
        working: what is around a write, in which the device does its work.

    """

    def __init__(self, stream: IdeStream, tdis: Iterable[Tdi], *, completer: int) -> None:
        self._stream = stream
        self._tdis = tuple(tdis)
        self._completer = completer
        self.working: Callable[[], AbstractContextManager[None]] = nullcontext

    def deliver(self, data: bytes) -> bytes | None:
        """Take what came over the link; return what goes back, None where nothing does.

        A packet that the stream refuses is gone: the stream has told whoever must know that it is Insecure.
        """
        try:
            received = self._stream.receive(data)
        except IdeFailure:
            return None
        packet = received.packet
        if isinstance(packet, MemoryWrite):
            self._write(packet, trusted=received.trusted)
        elif isinstance(packet, MemoryRead):
            return self._stream.send(self._read(packet, trusted=received.trusted), trusted=received.trusted)
        return None

    def _write(self, packet: MemoryWrite, *, trusted: bool) -> None:
        found = self._find(packet.address, len(packet.data))
        if found is not None:
            tdi, bar, offset = found
            with self.working():
                tdi.access_write(bar, offset, packet.data, trusted=trusted)

    def _read(self, packet: MemoryRead, *, trusted: bool) -> Completion:
        found = self._find(packet.address, packet.length)
        low = packet.address & 0x7F
        if found is None or not found[0].admits(found[1], found[2], trusted=trusted):
            return Completion(self._completer, packet.requester, packet.tag, b"",
                              CompletionStatus.UNSUPPORTED_REQUEST, low)
        tdi, bar, offset = found
        return Completion(self._completer, packet.requester, packet.tag,
                          tdi.access_read(bar, offset, packet.length, trusted=trusted), lower_address=low)

    def _find(self, address: int, size: int) -> tuple[Tdi, int, int] | None:
        for tdi in self._tdis:
            found = tdi.function.find_bar(address, size)
            if found is not None:
                return tdi, *found
        return None
