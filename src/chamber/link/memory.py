"""Guest memory that a front end shares by file descriptors (vhost-user, Memory region description)."""

from __future__ import annotations

import mmap
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from chamber.wire.errors import DmaFault

if TYPE_CHECKING:
    from collections.abc import Callable

    from chamber.wire.vhost_user import MemoryRegion

__all__ = ("SharedMemory",)


@dataclass(frozen=True, slots=True)
class _Mapping:
    """A file, or a part of it, mapped once and used for as long as the front end sends the same."""

    key: tuple[int, int, int, int]
    map: mmap.mmap
    view: memoryview


@dataclass(frozen=True, slots=True)
class _Region:
    start: int
    end: int
    user_start: int
    user_end: int
    delta: int
    view: memoryview
    region: MemoryRegion


class SharedMemory:
    """The regions that the front end shared; implements `chamber.platform.dma.Dma`.

    Addresses are guest-physical, as in descriptors; `guest_address` translates those that name rings. A front end that
    sends the same file again, as User-Mode Linux does at every probe, costs no new mapping.

    Args:
        observer: sees all that is read by `read`, which is what drivers hand to the device.

    """

    def __init__(self, observer: Callable[[bytes], None] | None = None) -> None:
        self._observer = observer
        self._regions: list[_Region] = []
        self._mappings: dict[tuple[int, int, int, int], _Mapping] = {}

    @property
    def regions(self) -> tuple[MemoryRegion, ...]:
        """What is shared now."""
        return tuple(r.region for r in self._regions)

    def replace(self, regions: list[tuple[MemoryRegion, int]]) -> None:
        """Take a new table (SET_MEM_TABLE): each region with the descriptor of its file. The descriptors are closed.

        Raises:
            DmaFault: a file is shorter than it claims, or can't be mapped; the old table stays.

        """
        try:
            fresh = [self._map(region, fd) for region, fd in regions]
        finally:
            for _, fd in regions:
                os.close(fd)
        self._regions = fresh
        self._forget_unused()

    def add(self, region: MemoryRegion, fd: int) -> None:
        """Add a region (ADD_MEM_REG); the descriptor is closed."""
        try:
            self._regions.append(self._map(region, fd))
        finally:
            os.close(fd)

    def remove(self, region: MemoryRegion) -> None:
        """Take a region away (REM_MEM_REG), named by its addresses and size."""
        for known in self._regions:
            if (known.region.guest_address, known.region.user_address, known.region.size) == (
                    region.guest_address, region.user_address, region.size):
                self._regions.remove(known)
                self._forget_unused()
                return
        raise DmaFault(region.guest_address, region.size, "unmap", "no such region")

    def close(self) -> None:
        """Let go of all memory."""
        self._regions = []
        self._forget_unused()

    def _map(self, region: MemoryRegion, fd: int) -> _Region:
        about = os.fstat(fd)
        skip = region.mmap_offset % mmap.ALLOCATIONGRANULARITY
        start, length = region.mmap_offset - skip, region.size + skip
        if region.mmap_offset + region.size > about.st_size:
            # Touching pages beyond the end of a file would kill this process by SIGBUS.
            raise DmaFault(region.guest_address, region.size, "map",
                           f"the file has {about.st_size} bytes, the region needs {region.mmap_offset + region.size}")
        key = (about.st_dev, about.st_ino, start, length)
        mapping = self._mappings.get(key)
        if mapping is None:
            try:
                mapped = mmap.mmap(fd, length, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE, offset=start)
            except (OSError, ValueError, OverflowError) as error:
                raise DmaFault(region.guest_address, region.size, "map", str(error)) from None
            mapping = self._mappings[key] = _Mapping(key, mapped, memoryview(mapped))
        view = mapping.view[skip:]
        return _Region(region.guest_address, region.guest_address + region.size, region.user_address,
                       region.user_address + region.size, -region.guest_address, view, region)

    def _forget_unused(self) -> None:
        used = {id(r.view.obj) for r in self._regions}
        for key, mapping in list(self._mappings.items()):
            if id(mapping.map) not in used:
                del self._mappings[key]  # unmapped when the last ring or request that looks into it is gone

    def _find(self, address: int, length: int, access: str) -> tuple[memoryview, int]:
        for region in self._regions:
            if region.start <= address and address + length <= region.end:
                return region.view, address + region.delta
        raise DmaFault(address, length, access, "not in any region that the front end shared")

    def read(self, address: int, length: int) -> bytes:
        """Return a copy of `length` bytes at a guest-physical address."""
        view, offset = self._find(address, length, "read")
        data = bytes(view[offset:offset + length])
        if self._observer is not None:
            self._observer(data)
        return data

    def write(self, address: int, data: bytes | bytearray | memoryview) -> None:
        """Store bytes at a guest-physical address."""
        view, offset = self._find(address, len(data), "write")
        view[offset:offset + len(data)] = data

    def view(self, address: int, length: int) -> memoryview:
        """Return a live view of a guest-physical range."""
        view, offset = self._find(address, length, "view")
        return view[offset:offset + length]

    def guest_address(self, user_address: int) -> int:
        """Translate a front-end user address to a guest-physical one (VRING_ADDR names rings that way)."""
        for region in self._regions:
            if region.user_start <= user_address < region.user_end:
                return region.region.guest_address + user_address - region.user_start
        raise DmaFault(user_address, 1, "translate", "a user address in no region that the front end shared")
