"""The device half of a packed virtqueue (virtio 1.3, 2.8)."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Final

from chamber.device.chain import Chain
from chamber.device.errors import DriverError
from chamber.device.ring import Ring
from chamber.wire.packed import (
    DESC,
    DESC_F_AVAIL,
    DESC_F_USED,
    EVENT_FLAGS_DESC,
    EVENT_FLAGS_DISABLE,
    EVENT_FLAGS_ENABLE,
    WRAP,
    PackedLayout,
    packed_need_event,
)
from chamber.wire.split import DESC_F_INDIRECT, DESC_F_NEXT, DESC_F_WRITE, DESC_SIZE

if TYPE_CHECKING:
    from chamber.platform.dma import Dma

__all__ = ("PackedRing",)

_FENCE: Final = threading.Lock()
_MARKS: Final = DESC_F_AVAIL | DESC_F_USED
_FRESH: Final = WRAP << 16 | WRAP
"""Position of a ring that nothing has gone through: both offsets 0, both wrap counters 1."""
_unpack_desc = DESC.unpack_from


def _full_fence() -> None:
    """Order an earlier store before a later load; taking a lock is a locked instruction."""
    with _FENCE:
        pass


class PackedRing(Ring):
    """The device's view of one packed queue in guest memory.

    Descriptors are copied out once and checked. How many places a chain takes is remembered here by its buffer id: the
    ring itself is the driver's to overwrite.

    Args:
        dma: guest memory.
        size: number of descriptors; any from 1 to 32768.
        desc: address of the descriptor ring.
        driver: address of the driver event suppression structure.
        device: address of the device event suppression structure.
        indirect: whether RING_INDIRECT_DESC was negotiated.
        event_idx: whether RING_EVENT_IDX was negotiated.
        base: position from which to go on. User-Mode Linux says 0 for a fresh ring, which is the position after an odd
            number of laps; what stands in the first place tells the two apart.

    """

    __slots__ = ("_avail", "_avail_wrap", "_desc", "_device", "_driver", "_held", "_hidden", "_moved", "_taken",
                 "_used", "_used_wrap", "_words")

    def __init__(self, dma: Dma, size: int, desc: int, driver: int, device: int, *, indirect: bool,
                 event_idx: bool, base: int = 0) -> None:
        if not 0 < size <= 32768:
            raise DriverError("a packed queue has 1 to 32768 descriptors", spec="2.8.10.1", detail=str(size))
        if desc % 16 or driver % 4 or device % 4:
            raise DriverError("the three areas are aligned to 16, 4 and 4 bytes", spec="2.8.10.1",
                              detail=f"{desc:#x}, {driver:#x}, {device:#x}")
        super().__init__(dma, size, indirect=indirect, event_idx=event_idx)
        layout = PackedLayout(size)
        self._desc = dma.view(desc, layout.desc_bytes)
        self._words = self._desc.cast("H")
        if not base and not self._words[7] & DESC_F_USED:
            base = _FRESH
        self._avail, self._avail_wrap = base & (WRAP - 1), base >> 15 & 1
        self._used, self._used_wrap = base >> 16 & (WRAP - 1), base >> 31 & 1
        if self._avail >= size or self._used >= size:
            raise DriverError("a ring goes on at a place that it has", spec="2.8.1", detail=f"{base:#x}")
        self._driver = dma.view(driver, layout.driver_bytes).cast("H")
        self._device = dma.view(device, layout.device_bytes).cast("H")
        # Places that a chain takes, by its buffer id.
        self._taken: dict[int, int] = {}
        self._held = 0
        # Flags of used descriptors that are written but not shown, by place.
        self._hidden: list[tuple[int, int]] = []
        self._moved = 0

    @property
    def position(self) -> int:
        """Both offsets and wrap counters, as vhost-user packs them."""
        return self._avail | self._avail_wrap << 15 | self._used << 16 | self._used_wrap << 31

    def release(self) -> None:
        """Let go of guest memory, so that it can be unmapped."""
        for view in (self._words, self._desc, self._driver, self._device):
            view.release()

    def pending(self) -> bool:
        """Whether the next descriptor is marked available."""
        return self._words[8 * self._avail + 7] & _MARKS == (DESC_F_AVAIL if self._avail_wrap else DESC_F_USED)

    def could_be_next(self, where: int) -> bool:
        """Whether the ring has such a place."""
        return where & (WRAP - 1) < self.size

    def pop(self) -> Chain | None:
        """Take the next available chain, or None.

        Raises:
            DriverError: the driver broke a rule of 2.8.

        """
        if not self.pending():
            return None
        size = self.size
        at = self._avail
        readable: list[tuple[int, int]] = []
        writable: list[tuple[int, int]] = []
        count = 0
        while True:
            addr, length, buffer_id, flags = _unpack_desc(self._desc, DESC_SIZE * at)
            count += 1
            at = at + 1 if at + 1 < size else 0
            if flags & DESC_F_INDIRECT:
                if count > 1 or flags & DESC_F_NEXT:
                    raise DriverError("an indirect descriptor stands alone", spec="2.8.19")
                self._indirect(addr, length, readable, writable)
            else:
                self._part(addr, length, flags, readable, writable)
            if not flags & DESC_F_NEXT:
                break
            if count >= size:
                raise DriverError("a chain is no longer than the queue", spec="2.8.21", detail=f"at {self._avail}")
        # The id stands in the last descriptor (2.8.6).
        if at <= self._avail:
            self._avail_wrap ^= 1
        self._avail = at
        if buffer_id in self._taken:
            raise DriverError("a buffer id is in use once", spec="2.8.6", detail=str(buffer_id))
        self._held += count
        if self._held > size:
            raise DriverError("no more descriptors are available than the queue has", spec="2.8.21",
                              detail=f"{self._held} of {size}")
        self._taken[buffer_id] = count
        return Chain(buffer_id, readable, writable, self.dma)

    @staticmethod
    def _part(addr: int, length: int, flags: int, readable: list[tuple[int, int]],
              writable: list[tuple[int, int]]) -> None:
        if flags & DESC_F_WRITE:
            writable.append((addr, length))
        elif writable:
            raise DriverError("device-readable parts come before device-writable ones", spec="2.8.17")
        else:
            readable.append((addr, length))

    def _indirect(self, addr: int, length: int, readable: list[tuple[int, int]],
                  writable: list[tuple[int, int]]) -> None:
        if not self.indirect:
            raise DriverError("indirect descriptors need RING_INDIRECT_DESC", spec="2.8.19")
        if not length or length % DESC_SIZE:
            raise DriverError("an indirect table is a whole number of descriptors", spec="2.8.7",
                              detail=f"{length} bytes")
        if length // DESC_SIZE > self.size:
            raise DriverError("a chain is no longer than the queue", spec="2.8.19",
                              detail=f"{length // DESC_SIZE} of {self.size}")
        for part, size, _, flags in DESC.iter_unpack(self.dma.read(addr, length)):
            if flags & DESC_F_INDIRECT:
                raise DriverError("an indirect table holds no indirect descriptor", spec="2.8.19")
            # All of the table is the chain; NEXT means nothing in it (2.8.7).
            self._part(part, size, flags, readable, writable)

    def push(self, head: int, length: int, skipped: tuple[int, ...] = ()) -> None:
        """Write a used descriptor, its marks still as the driver left them; `publish` turns them."""
        place = self._used
        words = self._words
        at = 8 * place
        words[at + 4] = length & 0xFFFF
        words[at + 5] = length >> 16 & 0xFFFF
        words[at + 6] = head & 0xFFFF
        self._hidden.append((place, (_MARKS if self._used_wrap else 0) | (DESC_F_WRITE if length else 0)))
        self.unpublished = True
        count = self._taken.pop(head, 0) + sum(self._taken.pop(earlier, 0) for earlier in skipped)
        self._held -= count
        count = count or 1
        self._moved += count
        self._used += count
        if self._used >= self.size:
            self._used -= self.size
            self._used_wrap ^= 1

    def publish(self) -> bool:
        """Show the driver all used descriptors; return whether it wants an interrupt for them (2.8.10, 2.8.13)."""
        # The first one last: a driver that sees it sees all of the batch.
        for place, flags in reversed(self._hidden):
            self._words[8 * place + 7] = flags
        self._hidden.clear()
        moved, self._moved = self._moved, 0
        self.unpublished = False
        _full_fence()
        event, flags = self._driver
        flags &= 3
        if flags == EVENT_FLAGS_DESC and self.event_idx:
            return packed_need_event(self.size, event, self._used | self._used_wrap << 15, moved)
        return flags != EVENT_FLAGS_DISABLE

    def suppress_kicks(self) -> None:
        """Ask the driver not to notify while the device is at work anyway (2.8.10)."""
        self._device[1] = EVENT_FLAGS_DISABLE

    def arm_kick(self) -> bool:
        """Ask for notifications again; return True if nothing became available meanwhile."""
        if self.event_idx:
            self._device[0] = self._avail | self._avail_wrap << 15
            self._device[1] = EVENT_FLAGS_DESC
        else:
            self._device[1] = EVENT_FLAGS_ENABLE
        _full_fence()
        return not self.pending()

    # What follows writes lies.

    def raw_used(self, ahead: int, head: int, length: int) -> None:
        """Write a used descriptor, marks and all."""
        place = (self._used + ahead) % self.size
        wrap = self._used_wrap ^ (self._used + ahead >= self.size)
        DESC.pack_into(self._desc, DESC_SIZE * place, 0, length & 0xFFFFFFFF, head & 0xFFFF,
                       (_MARKS if wrap else 0) | DESC_F_WRITE)

    def raw_claim(self, count: int) -> None:
        """Mark the next places used, whatever stands in them."""
        for ahead in range(min(count, self.size)):
            wrap = self._used_wrap ^ (self._used + ahead >= self.size)
            self.raw_marks((self._used + ahead) % self.size, wrap, wrap)

    def raw_marks(self, place: int, avail: int, used: int) -> None:
        """Set the two marks of a descriptor; the rest of it stays."""
        at = 8 * (place % self.size) + 7
        self._words[at] = self._words[at] & ~_MARKS | (DESC_F_AVAIL if avail else 0) | (DESC_F_USED if used else 0)

    def raw_desc(self, place: int) -> tuple[int, int, int, int]:
        """Read one descriptor: addr, len, id, flags."""
        addr, length, buffer_id, flags = _unpack_desc(self._desc, DESC_SIZE * (place % self.size))
        return addr, length, buffer_id, flags

    def raw_write_desc(self, place: int, addr: int, length: int, buffer_id: int, flags: int) -> None:
        """Overwrite one descriptor of the ring."""
        DESC.pack_into(self._desc, DESC_SIZE * (place % self.size), addr & (1 << 64) - 1, length & 0xFFFFFFFF,
                       buffer_id & 0xFFFF, flags & 0xFFFF)

    def raw_device_event(self, off_wrap: int, flags: int) -> None:
        """Set the device event suppression structure."""
        self._device[0], self._device[1] = off_wrap & 0xFFFF, flags & 0xFFFF

    def raw_driver_event(self, off_wrap: int, flags: int) -> None:
        """Overwrite the driver's event suppression structure."""
        self._driver[0], self._driver[1] = off_wrap & 0xFFFF, flags & 0xFFFF

    @property
    def used_place(self) -> int:
        """Where the next used descriptor goes."""
        return self._used

    @property
    def used_wrap(self) -> int:
        """The wrap counter there."""
        return self._used_wrap
