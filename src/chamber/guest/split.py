"""The driver half of a split virtqueue (virtio 1.3, 2.7)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from chamber.guest.virtqueue import VirtQueue
from chamber.wire.split import (
    AVAIL_F_NO_INTERRUPT,
    DESC,
    DESC_F_INDIRECT,
    DESC_F_NEXT,
    DESC_SIZE,
    USED_ELEM,
    USED_F_NO_NOTIFY,
    SplitLayout,
    vring_need_event,
)

if TYPE_CHECKING:
    from chamber.guest.dma import Dma
    from chamber.guest.profile import Profile
    from chamber.guest.untrusted import Checks
    from chamber.guest.virtqueue import Part
    from chamber.platform.heap import Object
    from chamber.platform.scheduler import Scheduler

__all__ = ("SplitQueue",)


@dataclass(slots=True)
class _Shadow:
    """A descriptor as the driver wrote it."""

    address: int
    length: int
    flags: int
    follow: int
    table: Object | None = None
    parts: tuple[Part, ...] = ()


class SplitQueue(VirtQueue):
    """A queue of descriptor table, available ring and used ring."""

    spec = "2.7.8"

    def __init__(self, index: int, size: int, dma: Dma, profile: Profile, checks: Checks, scheduler: Scheduler, *,
                 features: int) -> None:
        super().__init__(index, size, dma, profile, checks, scheduler, features=features)
        layout = SplitLayout(size)
        self.desc = dma.alloc_coherent(layout.desc_bytes, "descriptor table", align=16)
        self.avail = dma.alloc_coherent(layout.avail_bytes, "available ring", align=16)
        self.used = dma.alloc_coherent(layout.used_bytes, "used ring", align=16)
        self._shadow: dict[int, _Shadow] = {}
        self._free_next = list(range(1, size + 1))
        for i in range(size):
            self.desc.write(DESC.pack(0, 0, 0, (i + 1) % size), DESC_SIZE * i)
        self._free_head = 0
        self._free_count = size
        self._taken = 0
        self._shown = 0
        self._avail_idx = 0
        self._kicked = 0
        self._last_used = 0
        self._pending = 0
        self._avail_event_at = layout.used_bytes - 2
        self._used_event_at = layout.avail_bytes - 2

    @property
    def areas(self) -> tuple[int, int, int]:
        """Addresses of descriptor table, available ring and used ring."""
        return self.desc.address, self.avail.address, self.used.address

    @property
    def free(self) -> int:
        """Descriptors that are free."""
        return self._free_count

    @property
    def notification_data(self) -> int:
        """The queue and the available index (2.9)."""
        return self.index | self._avail_idx << 16

    # Towards the device.

    def _put(self, parts: list[Part], *, indirect: bool) -> int:
        if not indirect:
            numbers = [self._take() for _ in parts]
            for i, (address, length, flag) in enumerate(parts):
                more = i + 1 < len(parts)
                self._write(numbers[i], _Shadow(address, length, flag | (DESC_F_NEXT if more else 0),
                                                numbers[i + 1] if more else 0))
            return numbers[0]
        table = self._dma.alloc_coherent(DESC_SIZE * len(parts), "indirect table")
        for i, (address, length, flag) in enumerate(parts):
            more = i + 1 < len(parts)
            table.write(DESC.pack(address, length, flag | (DESC_F_NEXT if more else 0), i + 1 if more else 0),
                        DESC_SIZE * i)
        head = self._take()
        self._write(head, _Shadow(table.address, table.size, DESC_F_INDIRECT, 0, table, tuple(parts)))
        return head

    def _take(self) -> int:
        number = self._free_head
        self._free_count -= 1
        if self._in_order:
            # Descriptors are used in ring order, and come back in it (2.7.5.1).
            self._free_head = (number + 1) % self.size
        elif self._shadowed:
            self._free_head = self._free_next[number]
        else:
            # The free list runs through the shared table: the host can lead it anywhere.
            self._free_head = self.desc.get(DESC_SIZE * number + 14, 2)
        return number

    def _write(self, number: int, shadow: _Shadow) -> None:
        self.desc.write(DESC.pack(shadow.address, shadow.length, shadow.flags, shadow.follow), DESC_SIZE * number)
        self._shadow[number] = shadow

    def _expose(self, head: int) -> None:
        # How many used elements the device had shown before the chain was lent: none of those can be about it. In the
        # order of lending, also where an id that never came back is lent again.
        self._outstanding.pop(head, None)
        self._outstanding[head] = self._shown
        self.avail.put(4 + 2 * (self._avail_idx % self.size), 2, head)
        self._avail_idx = (self._avail_idx + 1) & 0xFFFF
        self.avail.put(2, 2, self._avail_idx)

    def kick(self) -> bool:
        """Return whether the device wants to be told what was added since the last call (2.7.10)."""
        new, old = self._avail_idx, self._kicked
        self._kicked = new
        if self.broken is not None or new == old:
            return False
        # Whatever the host writes there: it is told too often, or not at all, and has only itself to blame.
        if self._event_idx:
            event = self._checks.number(self.used.get(self._avail_event_at, 2)).masked(0xFFFF)
            return vring_need_event(event, new, old)
        return not self._checks.number(self.used.get(0, 2)).masked(USED_F_NO_NOTIFY)

    def want_interrupts(self, *, wanted: bool) -> None:
        """Ask for interrupts, or for none (2.7.7)."""
        self.avail.put(0, 2, 0 if wanted else AVAIL_F_NO_INTERRUPT)
        if self._event_idx and wanted:
            self.avail.put(self._used_event_at, 2, self._last_used)

    # Back from the device.

    def require_untouched(self) -> None:
        """Check, before DRIVER_OK, that the device has used nothing yet.

        Raises:
            DeviceViolation: it has.

        """
        self._checks.number(self.used.get(2, 2)).equals(
            0, "nothing is used before the driver is ready", "3.1.1")

    def _used(self) -> tuple[int, int] | None:
        used_idx = self._checks.number((self.used.get(2, 2) - self._last_used) & 0xFFFF)
        self._pending = used_idx.at_most(
            len(self._outstanding), "the used index moves by what is outstanding at most", self.spec)
        if not self._pending:
            return None
        self._shown = self._taken + self._pending
        at = 4 + USED_ELEM.size * (self._last_used % self.size)
        number, length = USED_ELEM.unpack(self.used.read(at, USED_ELEM.size))
        return number, length

    def _skip(self, batch: list[int]) -> None:
        self._checks.require(len(batch) <= self._pending, "a batch is as long as the used index moved", "2.7.9",
                             f"{len(batch)} of {self._pending}")
        self._last_used = (self._last_used + len(batch)) & 0xFFFF
        if self._event_idx:
            self.avail.put(self._used_event_at, 2, self._last_used)
        # An element that was there before the chain was lent can't be about it: a driver that lends buffers again while
        # it takes others back would otherwise take the same completion twice.
        for head in batch:
            self._checks.require(self._outstanding.get(head, self._shown) <= self._taken,
                                 "a used id is the head of a chain that the device has", self.spec, str(head))
        self._taken += len(batch)

    def _detach(self, head: int, written: int) -> None:
        if self._shadowed:
            self._unmap(self._forget(head), written)
        else:
            self._detach_shared(head, written)

    def _forget(self, head: int) -> list[Part]:
        """Free a chain's descriptors; return what was mapped."""
        parts: list[Part] = []
        number = head
        while True:
            shadow = self._shadow.pop(number)
            if shadow.table is not None:
                parts += shadow.parts
                self._dma.free_coherent(shadow.table)
            else:
                parts.append((shadow.address, shadow.length, shadow.flags))
            if not self._in_order:
                self._free_next[number] = self._free_head
                self._free_head = number
            self._free_count += 1
            if not shadow.flags & DESC_F_NEXT:
                return parts
            number = shadow.follow

    def _detach_shared(self, head: int, written: int) -> None:
        """As drivers did that kept nothing: all is read back from memory that the host writes."""
        parts: list[Part] = []
        first, number = self._free_head, head
        while True:
            self._scheduler.step()
            address, length, flags, follow = DESC.unpack(self.desc.read(DESC_SIZE * number, DESC_SIZE))
            if flags & DESC_F_INDIRECT:
                shadow = self._shadow.get(number)
                table = None if shadow is None else shadow.table
                if table is None or table.address != address or table.size != length:
                    self._dma.heap.report("wild access", "indirect table", "an address or size that the host wrote")
                else:
                    parts += [DESC.unpack(table.read(at, DESC_SIZE))[:3] for at in range(0, table.size, DESC_SIZE)]
                    self._dma.free_coherent(table)
            else:
                parts.append((address, length, flags))
            self._free_count += 1
            if not flags & DESC_F_NEXT:
                break
            number = follow
        if not self._in_order:
            self.desc.put(DESC_SIZE * number + 14, 2, first)
            self._free_head = head
        self._unmap(parts, written)

    # The end.

    def _abandon(self, head: int) -> None:
        shadow = self._shadow.get(head)
        while shadow is not None:
            self._unmap(shadow.parts or ((shadow.address, shadow.length, 0),), 0)
            if shadow.table is not None and shadow.table.live:
                self._dma.free_coherent(shadow.table)
            shadow = self._shadow.get(shadow.follow) if shadow.flags & DESC_F_NEXT else None

    def _free_areas(self) -> None:
        for memory in (self.desc, self.avail, self.used):
            self._dma.free_coherent(memory)
