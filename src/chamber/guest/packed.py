"""The driver half of a packed virtqueue (virtio 1.3, 2.8).

One ring holds what the driver makes available and what the device has used: each descriptor that the driver writes may
come back as anything. So all that is known of a chain, how many places it takes above all, is kept by its buffer id in
private memory.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from chamber.guest.virtqueue import VirtQueue
from chamber.wire.packed import (
    DESC,
    DESC_F_AVAIL,
    DESC_F_USED,
    EVENT,
    EVENT_FLAGS_DESC,
    EVENT_FLAGS_DISABLE,
    EVENT_FLAGS_ENABLE,
    PackedLayout,
    packed_need_event,
)
from chamber.wire.split import DESC_F_INDIRECT, DESC_F_NEXT, DESC_F_WRITE

if TYPE_CHECKING:
    from chamber.guest.dma import Dma
    from chamber.guest.profile import Profile
    from chamber.guest.untrusted import Checks
    from chamber.guest.virtqueue import Part
    from chamber.platform.heap import Object
    from chamber.platform.scheduler import Scheduler

__all__ = ("PackedQueue",)

_MARKS: Final = DESC_F_AVAIL | DESC_F_USED
_FLAGS_AT: Final = 14
_LENGTH_AT: Final = 8


@dataclass(frozen=True, slots=True)
class _Shadow:
    """A chain as the driver wrote it.

    Attributes:
        count: places in the ring.
        parts: what was mapped.
        table: the indirect table, if it has one.

    """

    count: int
    parts: tuple[Part, ...]
    table: Object | None


class PackedQueue(VirtQueue):
    """A queue of one ring and two event suppression structures."""

    spec = "2.8.8"

    def __init__(self, index: int, size: int, dma: Dma, profile: Profile, checks: Checks, scheduler: Scheduler, *,
                 features: int) -> None:
        super().__init__(index, size, dma, profile, checks, scheduler, features=features)
        layout = PackedLayout(size)
        self.desc = dma.alloc_coherent(layout.desc_bytes, "descriptor ring", align=16)
        self.driver_event = dma.alloc_coherent(layout.driver_bytes, "driver event suppression", align=4)
        self.device_event = dma.alloc_coherent(layout.device_bytes, "device event suppression", align=4)
        self._shadow: dict[int, _Shadow] = {}
        self._free_ids = list(range(size - 1, -1, -1))
        self._free_count = size
        self._next, self._wrap = 0, 1
        self._added = 0
        self._head_flags = (0, 0)
        self._last_used, self._used_wrap = 0, 1

    @property
    def areas(self) -> tuple[int, int, int]:
        """Addresses of descriptor ring, driver and device event suppression structure."""
        return self.desc.address, self.driver_event.address, self.device_event.address

    @property
    def free(self) -> int:
        """Descriptors that are free."""
        return self._free_count

    @property
    def notification_data(self) -> int:
        """The queue, the place of the next descriptor and its wrap counter (2.9)."""
        return self.index | self._next << 16 | self._wrap << 31

    # Towards the device.

    def _put(self, parts: list[Part], *, indirect: bool) -> int:
        number = self._free_ids.pop()
        table = None
        written = parts
        if indirect:
            table = self._dma.alloc_coherent(DESC.size * len(parts), "indirect table")
            for i, (address, length, flag) in enumerate(parts):
                table.write(DESC.pack(address, length, 0, flag), DESC.size * i)
            written = [(table.address, table.size, DESC_F_INDIRECT)]
        first = self._next
        for i, (address, length, flag) in enumerate(written):
            flags = flag | (DESC_F_NEXT if i + 1 < len(written) else 0) | (DESC_F_AVAIL if self._wrap else DESC_F_USED)
            at = DESC.size * self._next
            if i:
                self.desc.write(DESC.pack(address, length, number, flags), at)
            else:
                # The first descriptor's flags make the chain available: they come last (2.8.21).
                self.desc.write(DESC.pack(address, length, number, flags)[:_FLAGS_AT], at)
                self._head_flags = (DESC.size * first + _FLAGS_AT, flags)
            self._next += 1
            if self._next == self.size:
                self._next, self._wrap = 0, self._wrap ^ 1
        self._free_count -= len(written)
        self._added += len(written)
        self._shadow[number] = _Shadow(len(written), tuple(parts), table)
        return number

    def _expose(self, head: int) -> None:
        self._outstanding.pop(head, None)
        self._outstanding[head] = 1
        self.desc.put(self._head_flags[0], 2, self._head_flags[1])

    def kick(self) -> bool:
        """Return whether the device wants to be told what was added since the last call (2.8.10)."""
        added, self._added = self._added, 0
        if self.broken is not None or not added:
            return False
        # Whatever the host writes there: it is told too often, or not at all, and has only itself to blame.
        event, flags = EVENT.unpack(self.device_event.read(0, EVENT.size))
        mode = self._checks.number(flags).masked(3)
        if mode == EVENT_FLAGS_DESC and self._event_idx:
            where = self._checks.number(event).masked(0xFFFF)
            return packed_need_event(self.size, where, self._next | self._wrap << 15, added)
        return mode != EVENT_FLAGS_DISABLE

    def want_interrupts(self, *, wanted: bool) -> None:
        """Ask for interrupts, or for none (2.8.10)."""
        if wanted and self._event_idx:
            self._ask_event()
        else:
            self.driver_event.put(2, 2, EVENT_FLAGS_ENABLE if wanted else EVENT_FLAGS_DISABLE)

    def _ask_event(self) -> None:
        self.driver_event.write(EVENT.pack(self._last_used | self._used_wrap << 15, EVENT_FLAGS_DESC))

    # Back from the device.

    def require_untouched(self) -> None:
        """Check, before DRIVER_OK, that the device has used nothing yet.

        Raises:
            DeviceViolation: it has.

        """
        self._checks.number(self.desc.get(_FLAGS_AT, 2)).equals(
            0, "nothing is used before the driver is ready", "3.1.1")

    def _used(self) -> tuple[int, int] | None:
        at = DESC.size * self._last_used
        marks = self._checks.number(self.desc.get(at + _FLAGS_AT, 2)).masked(_MARKS)
        if marks != (_MARKS if self._used_wrap else 0):
            return None
        self._checks.require(bool(self._outstanding), "what was never made available is not used", self.spec)
        # The device may rewrite the descriptor now: length and id are read once, after the marks.
        found = self.desc.read(at + _LENGTH_AT, 6)
        return int.from_bytes(found[4:], "little"), int.from_bytes(found[:4], "little")

    def _skip(self, batch: list[int]) -> None:
        count = 0
        for number in batch:
            self._checks.require(number in self._outstanding, "a used id is one of a chain that the device has",
                                 self.spec, str(number))
            shadow = self._shadow.get(number)
            count += 1 if shadow is None else shadow.count
        self._last_used += count
        if self._last_used >= self.size:
            self._last_used, self._used_wrap = self._last_used - self.size, self._used_wrap ^ 1
        if self._event_idx:
            self._ask_event()

    def _detach(self, head: int, written: int) -> None:
        shadow = self._shadow[head]
        parts = shadow.parts
        if self._shadowed:
            del self._shadow[head]
        elif shadow.table is not None:
            # As drivers did that read an indirect table back to know what they had mapped.
            parts = tuple((a, n, f & DESC_F_WRITE) for a, n, _, f in DESC.iter_unpack(
                shadow.table.read(0, shadow.table.size)))
        if shadow.table is not None:
            self._dma.free_coherent(shadow.table)
        self._free_ids.append(head)
        self._free_count += shadow.count
        self._unmap(parts, written)

    # The end.

    def _abandon(self, head: int) -> None:
        shadow = self._shadow[head]
        self._unmap(shadow.parts, 0)
        if shadow.table is not None and shadow.table.live:
            self._dma.free_coherent(shadow.table)

    def _free_areas(self) -> None:
        for memory in (self.desc, self.driver_event, self.device_event):
            self._dma.free_coherent(memory)
