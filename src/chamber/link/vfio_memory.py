"""Guest memory that a vfio-user client maps: by descriptor where one comes along, by messages where none does.

Firmware moves memory about: ranges come, go, and are cut in pieces before a guest boots, dozens of times. A range is
known by exactly the address and size that it came with (vfio-user, VFIO_USER_DMA_MAP).
"""

from __future__ import annotations

import bisect
import mmap
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol

from chamber.wire.errors import DmaFault, WireError
from chamber.wire.vfio_user import DmaMapFlag

if TYPE_CHECKING:
    from collections.abc import Callable

    from chamber.wire.vfio_user import DmaMap, DmaUnmap

__all__ = ("DmaTable", "Remote")

_MOST: Final = 65535
"""Ranges at once; what is said of `max_dma_maps`."""


class Remote(Protocol):
    """Reaches memory by asking the client."""

    def dma_read(self, address: int, length: int) -> bytes:
        """Return bytes."""
        ...

    def dma_write(self, address: int, data: bytes) -> None:
        """Store bytes."""
        ...


@dataclass(frozen=True, slots=True)
class _Range:
    start: int
    size: int
    flags: int
    view: memoryview | None


class DmaTable:
    """What the function may reach (implements `chamber.platform.dma.Dma`).

    Args:
        remote: reaches ranges without a descriptor.
        observer: sees all that is read by `read`, if given.

    Attributes:
        dirty: called for each range of addresses that is written, if set; a view can't tell, and counts as written.

    """

    def __init__(self, remote: Remote, observer: Callable[[bytes], None] | None = None) -> None:
        self._remote = remote
        self._observer = observer
        self._starts: list[int] = []
        self._ranges: list[_Range] = []
        self.dirty: Callable[[int, int], None] | None = None

    def __len__(self) -> int:
        return len(self._ranges)

    def map(self, wanted: DmaMap, fd: int | None) -> None:
        """Add a range; the descriptor is closed.

        Raises:
            WireError: it overlaps another, or there are too many.
            DmaFault: its file is too short, or can't be mapped.

        """
        try:
            place = bisect.bisect_left(self._starts, wanted.address)
            before = self._ranges[place - 1] if place else None
            after = self._ranges[place] if place < len(self._ranges) else None
            if (before is not None and before.start + before.size > wanted.address) or (
                    after is not None and wanted.address + wanted.size > after.start):
                raise WireError("ranges don't overlap", spec="vfio-user, VFIO_USER_DMA_MAP",
                                detail=f"{wanted.address:#x}, {wanted.size:#x}")
            if len(self._ranges) >= _MOST:
                raise WireError(f"there are at most {_MOST} ranges", spec="vfio-user, VFIO_USER_DMA_MAP")
            view = None if fd is None else _mapped(wanted, fd)
        finally:
            if fd is not None:
                os.close(fd)
        self._starts.insert(place, wanted.address)
        self._ranges.insert(place, _Range(wanted.address, wanted.size, wanted.flags, view))

    def unmap(self, wanted: DmaUnmap) -> bool:
        """Take a range away, or all of them; return whether it was there."""
        if wanted.flags & wanted.ALL:
            self.clear()
            return True
        place = bisect.bisect_left(self._starts, wanted.address)
        if place == len(self._starts) or (self._starts[place], self._ranges[place].size) != (wanted.address,
                                                                                             wanted.size):
            return False
        del self._starts[place], self._ranges[place]
        return True

    def clear(self) -> None:
        """Take all ranges away."""
        self._starts.clear()
        self._ranges.clear()

    def _find(self, address: int, length: int, access: str, right: DmaMapFlag) -> tuple[_Range, int]:
        place = bisect.bisect_right(self._starts, address) - 1
        if place >= 0:
            found = self._ranges[place]
            if address + length <= found.start + found.size:
                if not found.flags & right:
                    raise DmaFault(address, length, access, "the client did not allow it")
                return found, address - found.start
        raise DmaFault(address, length, access, "in no range that the client mapped")

    def _pieces(self, address: int, length: int) -> list[tuple[int, int]]:
        """Cut a transfer where one range ends and the next begins: neighbours in memory may be ranges of their own."""
        pieces = []
        while length > 0:
            place = bisect.bisect_right(self._starts, address) - 1
            end = self._ranges[place].start + self._ranges[place].size if place >= 0 else address
            step = min(length, end - address) if end > address else length
            pieces.append((address, step))
            address, length = address + step, length - step
        return pieces

    def read(self, address: int, length: int) -> bytes:
        """Return a copy of bytes."""
        data = b"".join(self._read(at, size) for at, size in self._pieces(address, length))
        if self._observer is not None:
            self._observer(data)
        return data

    def _read(self, address: int, length: int) -> bytes:
        found, offset = self._find(address, length, "read", DmaMapFlag.READ)
        if found.view is None:
            return self._remote.dma_read(address, length)
        return bytes(found.view[offset:offset + length])

    def write(self, address: int, data: bytes | bytearray | memoryview) -> None:
        """Store bytes."""
        source, done = memoryview(data), 0
        for at, size in self._pieces(address, len(data)):
            found, offset = self._find(at, size, "write", DmaMapFlag.WRITE)
            piece = source[done:done + size]
            if found.view is None:
                self._remote.dma_write(at, bytes(piece))
            else:
                found.view[offset:offset + size] = piece
            done += size
        if self.dirty is not None and len(data):
            self.dirty(address, len(data))

    def view(self, address: int, length: int) -> memoryview:
        """Return a live view; there is none of memory that is reached by messages, or lies in two ranges."""
        found, offset = self._find(address, length, "view", DmaMapFlag.WRITE)
        if found.view is None:
            raise DmaFault(address, length, "view", "the client gave no descriptor for it")
        if self.dirty is not None:
            self.dirty(address, length)
        return found.view[offset:offset + length]


def _mapped(wanted: DmaMap, fd: int) -> memoryview:
    """Map a part of a file; what lies beyond its end would kill this process at the first touch."""
    try:
        length = os.fstat(fd).st_size
        skip = wanted.offset % mmap.ALLOCATIONGRANULARITY
        if wanted.offset + wanted.size > length:
            raise DmaFault(wanted.address, wanted.size, "map",
                           f"the file has {length} bytes, the range needs {wanted.offset + wanted.size}")
        rights = mmap.PROT_READ | (mmap.PROT_WRITE if wanted.flags & DmaMapFlag.WRITE else 0)
        mapped = mmap.mmap(fd, wanted.size + skip, mmap.MAP_SHARED, rights, offset=wanted.offset - skip)
    except (OSError, ValueError, OverflowError) as error:
        raise DmaFault(wanted.address, wanted.size, "map", str(error)) from None
    return memoryview(mapped)[skip:]
