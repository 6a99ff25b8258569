"""Memory as a device reaches it through its encrypted stream: what it reads and writes travels in packets."""

from __future__ import annotations

from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Final

from chamber.platform.ide import IdeFailure
from chamber.wire.errors import DmaFault
from chamber.wire.tlp import MAX_PAYLOAD, Completion, CompletionStatus, MemoryRead, MemoryWrite

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from chamber.platform.ide import IdeStream

__all__ = ("LinkDma",)

_TAGS: Final = 256
_WORD: Final = 2
"""Bytes of the smallest field of a ring that a device writes."""


class LinkDma:
    """Requests with the T bit (implements `chamber.platform.dma.Dma`).

    A view, such as of a ring, is of the device's own copy: fetched before the device works, and what has changed of it
    stored when it interrupts, and when it is done (`working`).

    Args:
        carry: takes a packet towards the root port; returns what comes back.
        requester: bus, device and function.

    Attributes:
        stream: the device's end of its stream; set by who makes the device.

    """

    def __init__(self, carry: Callable[[bytes], list[bytes]], *, requester: int) -> None:
        self._carry = carry
        self._requester = requester
        self._copies: list[_Copy] = []
        self._tag = 0
        self.stream: IdeStream | None = None

    def _send(self, request: MemoryRead | MemoryWrite) -> list[Completion]:
        size = request.length if isinstance(request, MemoryRead) else len(request.data)
        access = "read" if isinstance(request, MemoryRead) else "write"
        if self.stream is None:
            raise DmaFault(request.address, size, access, "the device has no stream")
        try:
            answers = self._carry(self.stream.send(request, trusted=True))
            packets = [self.stream.receive(answer).packet for answer in answers]
        except IdeFailure as failure:
            raise DmaFault(request.address, size, access, failure.reason) from None
        return [packet for packet in packets if isinstance(packet, Completion)]

    def read(self, address: int, length: int) -> bytes:
        """Read by as many requests as it takes."""
        data = bytearray()
        while len(data) < length:
            at = address + len(data)
            size = min(length - len(data), MAX_PAYLOAD - at % MAX_PAYLOAD)
            tag = self._tag = (self._tag + 1) % _TAGS
            found = next((answer for answer in self._send(MemoryRead(self._requester, tag, at, size))
                          if answer.tag == tag and answer.status is CompletionStatus.SUCCESS), None)
            if found is None or len(found.data) != size:
                raise DmaFault(at, size, "read", "no completion came")
            data += found.data
        return bytes(data)

    def write(self, address: int, data: bytes | bytearray | memoryview) -> None:
        """Write by as many requests as it takes."""
        done = 0
        while done < len(data):
            at = address + done
            size = min(len(data) - done, MAX_PAYLOAD - at % MAX_PAYLOAD)
            self._send(MemoryWrite(self._requester, at, bytes(data[done:done + size])))
            done += size

    def view(self, address: int, length: int) -> memoryview:
        """Return a view of a copy."""
        copy = _Copy(address, bytearray(self.read(address, length)))
        self._copies.append(copy)
        return memoryview(copy.data)

    @contextmanager
    def working(self) -> Iterator[None]:
        """Have the device see what is in memory now, and store what it has changed."""
        self._copies = [copy for copy in self._copies if copy.in_use()]
        with suppress(DmaFault):  # a link that is down shows the device nothing new
            for copy in self._copies:
                copy.data[:] = copy.stored = self.read(copy.address, len(copy.data))
        yield
        self.store()

    def store(self) -> None:
        """Store what the device has changed in its copies."""
        with suppress(DmaFault):
            for copy in self._copies:
                for at, data in copy.changes():
                    self.write(copy.address + at, data)

    def message(self, address: int, data: int) -> None:
        """Write a message that is an interrupt, after all that it tells of."""
        self.store()
        with suppress(DmaFault):
            self.write(address, data.to_bytes(4, "little"))


class _Copy:
    """Of a piece of memory."""

    def __init__(self, address: int, data: bytearray) -> None:
        self.address = address
        self.data = data
        self.stored = bytes(data)

    def in_use(self) -> bool:
        """Whether anybody has a view of it."""
        try:
            self.data.append(0)  # what is viewed does not change its size
        except BufferError:
            return True
        return False

    def changes(self) -> Iterator[tuple[int, bytes]]:
        """Yield where it differs from what is stored, in words, and what is there; it is stored then."""
        data, before = bytes(self.data), self.stored
        self.stored = data
        begin = None
        for at in range(0, len(data) + _WORD, _WORD):
            differs = data[at:at + _WORD] != before[at:at + _WORD]
            if differs and begin is None:
                begin = at
            elif not differs and begin is not None:
                yield begin, data[begin:at]
                begin = None
