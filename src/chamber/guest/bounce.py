"""The bounce pool: the only memory that devices reach, after Linux's SWIOTLB (kernel/dma/swiotlb.c).

Slots of 2 KiB in segments of 128; a mapping takes neighbouring slots of one segment. Each processor has an area of its
own, and goes to the others' when that is full.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from chamber.guest.untrusted import DeviceViolation

if TYPE_CHECKING:
    from chamber.platform.heap import Heap, Object
    from chamber.platform.memory import GuestMemory

__all__ = ("SEGMENT_SLOTS", "SLOT", "BouncePool", "Direction", "PoolFull", "Usage")

SLOT: Final = 2048
"""Bytes of a slot (IO_TLB_SIZE)."""
SEGMENT_SLOTS: Final = 128
"""Slots of a segment (IO_TLB_SEGSIZE): the largest mapping is 256 KiB."""


class Direction(enum.Enum):
    """Who writes and who reads a mapping."""

    TO_DEVICE = enum.auto()
    FROM_DEVICE = enum.auto()
    BOTH = enum.auto()


class PoolFull(Exception):
    """No run of free slots is long enough.

    Attributes:
        wanted: bytes asked for.
        used: slots in use.
        total: slots that exist.

    """

    def __init__(self, wanted: int, used: int, total: int) -> None:
        self.wanted = wanted
        self.used = used
        self.total = total
        super().__init__(f"bounce pool full: {wanted} bytes wanted, {used} of {total} slots in use")


@dataclass(frozen=True, slots=True)
class Usage:
    """Figures of a pool, in slots.

    Attributes:
        total: that exist.
        used: in use now.
        high_water: most that were in use at once.

    """

    total: int
    used: int
    high_water: int


@dataclass(slots=True)
class _Mapping:
    origin: Object
    offset: int
    length: int
    direction: Direction
    slots: int


class BouncePool:
    """A pool in shared pages.

    Args:
        memory: where.
        start: first byte; the pages become shared.
        segments: how many segments of 128 slots.
        areas: how many processors have an area of their own; segments are dealt out to them.
        heap: reports what goes wrong with addresses that nobody checked.
        checked: whether addresses and lengths of unmappings are compared with what was mapped.

    """

    def __init__(self, memory: GuestMemory, start: int, segments: int, areas: int, heap: Heap, *,
                 checked: bool) -> None:
        if not 0 < areas <= segments:
            raise ValueError("each area has a segment at least")
        self.memory = memory
        self.start = start
        self.size = segments * SEGMENT_SLOTS * SLOT
        self._heap = heap
        self._checked = checked
        self._areas = areas
        self._taken = bytearray(segments * SEGMENT_SLOTS)
        self._mappings: dict[int, _Mapping] = {}
        self._used = 0
        self._high_water = 0
        memory.share(start, self.size)

    @property
    def usage(self) -> Usage:
        """How full the pool is."""
        return Usage(len(self._taken), self._used, self._high_water)

    def map(self, origin: Object, offset: int, length: int, direction: Direction, *, cpu: int = 0) -> int:
        """Give a piece of private memory a place that the device reaches; return its address.

        The slots are cleared first: what an earlier mapping left there is not this device's to see, and what the device
        does not write must not come back as data.

        Raises:
            PoolFull: no room.

        """
        slots = max(1, -(-length // SLOT))
        if slots > SEGMENT_SLOTS:
            raise PoolFull(length, self._used, len(self._taken))
        first = self._find(slots, cpu)
        self._taken[first:first + slots] = b"\1" * slots
        self._used += slots
        self._high_water = max(self._high_water, self._used)
        address = self.start + first * SLOT
        self._mappings[address] = _Mapping(origin, offset, length, direction, slots)
        self.memory.write(address, bytes(slots * SLOT))
        if direction is not Direction.FROM_DEVICE:
            self.memory.write(address, origin.read(offset, length))
        return address

    def _find(self, slots: int, cpu: int) -> int:
        segments = len(self._taken) // SEGMENT_SLOTS
        own = [s for s in range(segments) if s % self._areas == cpu % self._areas]
        others = [s for s in range(segments) if s % self._areas != cpu % self._areas]
        free = bytes(slots)
        for segment in (*own, *others):
            at = self._taken.find(free, segment * SEGMENT_SLOTS, (segment + 1) * SEGMENT_SLOTS)
            if at >= 0:
                return at
        raise PoolFull(slots * SLOT, self._used, len(self._taken))

    def sync_for_cpu(self, address: int, written: int) -> None:
        """Copy back what the device may have written: `written` bytes at most, and not beyond the mapping.

        Without checks the length is believed, and a length beyond the buffer writes beyond it.
        """
        mapping = self._mapping(address)
        if mapping.direction is not Direction.TO_DEVICE and written > 0:
            length = min(written, mapping.length) if self._checked else min(written, self.size)
            mapping.origin.write(self.memory.read(address, length), mapping.offset)

    def unmap(self, address: int, written: int) -> None:
        """End a mapping, after copying back what the device may have written."""
        self.sync_for_cpu(address, written)
        mapping = self._mappings.pop(address)
        first = (address - self.start) // SLOT
        self._taken[first:first + mapping.slots] = bytes(mapping.slots)
        self._used -= mapping.slots

    def _mapping(self, address: int) -> _Mapping:
        mapping = self._mappings.get(address)
        if mapping is None:
            if self._checked:
                raise DeviceViolation("only what was mapped is unmapped", "2.7.5", f"{address:#x}")
            # Linux looks the slot up by its address: outside of the pool that is any memory, inside a stale entry.
            self._heap.report("wild access", "bounce slot", "an address that was not mapped")
            raise AssertionError  # report() does not return
        return mapping
