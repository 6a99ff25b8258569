"""A buffer that the driver lent to the device: some parts to read, then some to write."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from chamber.platform.dma import Dma

__all__ = ("Chain",)


class Chain:
    """One descriptor chain as the device took it, copied out of the ring once.

    How the driver cut its buffers is its own affair (virtio 1.3, 2.7.4), so all access is by offset into the readable
    or writable bytes as a whole.

    Attributes:
        head: index of the first descriptor; what the used ring calls ``id``.
        readable: (address, length) of each device-readable part.
        writable: (address, length) of each device-writable part.

    """

    __slots__ = ("dma", "head", "readable", "writable")

    def __init__(self, head: int, readable: list[tuple[int, int]], writable: list[tuple[int, int]],
                 dma: Dma) -> None:
        self.head = head
        self.readable = readable
        self.writable = writable
        self.dma = dma

    def __repr__(self) -> str:
        return f"<Chain {self.head}: {self.readable_size} bytes to read, {self.writable_size} to write>"

    @property
    def readable_size(self) -> int:
        """Bytes that the device may read. The driver claims it: nothing says that so much memory exists."""
        return sum(length for _, length in self.readable)

    @property
    def writable_size(self) -> int:
        """Bytes that the device may write; as little proven as `readable_size`."""
        total = 0
        for _, length in self.writable:
            total += length
        return total

    def read(self, offset: int, length: int) -> bytes:
        """Copy up to `length` readable bytes from `offset` on; fewer where the buffer ends."""
        readable = self.readable
        if readable and offset + length <= readable[0][1]:
            return self.dma.read(readable[0][0] + offset, length) if length else b""
        return b"".join(self.dma.read(a, n) for a, n in self.spans(readable, offset, length))

    def write(self, data: bytes | bytearray | memoryview, offset: int = 0) -> int:
        """Store bytes from `offset` of the writable part on; return how many fitted."""
        writable = self.writable
        if writable and offset + len(data) <= writable[0][1]:
            if data:
                self.dma.write(writable[0][0] + offset, data)
            return len(data)
        done = 0
        source = memoryview(data)
        for address, length in self.spans(writable, offset, len(data)):
            self.dma.write(address, source[done:done + length])
            done += length
        return done

    @staticmethod
    def spans(parts: list[tuple[int, int]], offset: int, length: int) -> list[tuple[int, int]]:
        """Cut (address, length) pieces out of `parts` that cover `length` bytes from `offset` on."""
        out: list[tuple[int, int]] = []
        for address, size in parts:
            if length <= 0:
                break
            if offset >= size:
                offset -= size
                continue
            take = min(size - offset, length)
            out.append((address + offset, take))
            length -= take
            offset = 0
        return out

    def room(self, offset: int, length: int) -> list[memoryview]:
        """Memory behind `length` writable bytes from `offset` on; what lies side by side is one view.

        The driver may change it at any time.
        """
        views: list[memoryview] = []
        address = end = 0
        for where, size in self.spans(self.writable, offset, length):
            if where == end:
                end += size
                continue
            if end > address:
                views.append(self.dma.view(address, end - address))
            address, end = where, where + size
        if end > address:
            views.append(self.dma.view(address, end - address))
        return views
