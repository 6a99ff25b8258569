"""The device half of a split virtqueue (virtio 1.3, 2.7)."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Final

from chamber.device.chain import Chain
from chamber.device.errors import DriverError
from chamber.device.ring import Ring
from chamber.wire.split import (
    AVAIL_F_NO_INTERRUPT,
    DESC,
    DESC_F_INDIRECT,
    DESC_F_NEXT,
    DESC_F_WRITE,
    DESC_SIZE,
    USED_F_NO_NOTIFY,
    SplitLayout,
    vring_need_event,
)

if TYPE_CHECKING:
    from chamber.platform.dma import Dma

__all__ = ("SplitRing",)

_FENCE: Final = threading.Lock()
_unpack_desc = DESC.unpack_from


def _full_fence() -> None:
    """Order an earlier store before a later load; taking a lock is a locked instruction."""
    with _FENCE:
        pass


class SplitRing(Ring):
    """The device's view of one split queue in guest memory.

    The driver is not trusted: descriptors are copied out once and checked, chains are bounded by the queue size, and a
    broken rule raises `DriverError`; the queue that owns this ring is then dead.

    The ``raw_`` methods write whatever they are told into shared memory. An honest device never calls them.

    Args:
        dma: guest memory.
        size: number of descriptors.
        desc: address of the descriptor table.
        driver: address of the driver area (the available ring).
        device: address of the device area (the used ring).
        indirect: whether RING_INDIRECT_DESC was negotiated.
        event_idx: whether RING_EVENT_IDX was negotiated.
        base: index from which to go on.

    """

    __slots__ = ("_avail", "_avail_event_at", "_desc", "_mask", "_signalled", "_used", "_used_elems", "_used_event_at",
                 "next_avail", "used_idx")

    def __init__(self, dma: Dma, size: int, desc: int, driver: int, device: int, *, indirect: bool,
                 event_idx: bool, base: int = 0) -> None:
        if not 0 < size <= 32768 or size & (size - 1):
            raise DriverError("the size of a split queue is a power of 2 up to 32768", spec="2.7", detail=str(size))
        if desc % 16 or driver % 2 or device % 4:
            raise DriverError("the three areas are aligned to 16, 2 and 4 bytes", spec="2.7",
                              detail=f"{desc:#x}, {driver:#x}, {device:#x}")
        super().__init__(dma, size, indirect=indirect, event_idx=event_idx)
        layout = SplitLayout(size)
        self._mask = size - 1
        self._desc = dma.view(desc, layout.desc_bytes)
        self._avail = dma.view(driver, layout.avail_bytes).cast("H")
        used = dma.view(device, layout.used_bytes)
        self._used = used.cast("H")
        self._used_elems = used[:4 + 8 * size].cast("I")
        self.next_avail = base & 0xFFFF
        # A queue that goes on after a stop has used elements already; a fresh one starts at zero.
        self.used_idx = self._used[1]
        self._signalled = self.used_idx
        self._used_event_at = 2 + size
        self._avail_event_at = 2 + 4 * size

    @property
    def position(self) -> int:
        """The next available index."""
        return self.next_avail

    def release(self) -> None:
        """Let go of guest memory, so that it can be unmapped."""
        self._used_elems.release()
        for view in (self._desc, self._avail, self._used):
            view.release()

    def pending(self) -> bool:
        """Whether the driver's index is ahead."""
        return self._avail[1] != self.next_avail

    def could_be_next(self, where: int) -> bool:
        """Whether the available index can be that far."""
        return (where - self.next_avail) & 0xFFFF <= self.size

    def pop(self) -> Chain | None:
        """Take the next available chain, or None.

        Raises:
            DriverError: the driver broke a rule of 2.7.

        """
        avail = self._avail
        head_at = self.next_avail
        pending = (avail[1] - head_at) & 0xFFFF
        if not pending:
            return None
        if pending > self.size:
            raise DriverError("more chains are available than the queue has descriptors", spec="2.7.13.3.1",
                              detail=f"{pending} of {self.size}")
        head = avail[2 + (head_at & self._mask)]
        chain = self._walk(head)
        self.next_avail = (head_at + 1) & 0xFFFF
        return chain

    def _walk(self, head: int) -> Chain:
        size = self.size
        if head >= size:
            raise DriverError("a descriptor index lies below the queue size", spec="2.7.6", detail=f"{head} of {size}")
        addr, length, flags, follow = _unpack_desc(self._desc, head * DESC_SIZE)
        table: memoryview | bytes = self._desc
        entries = size
        if flags & DESC_F_INDIRECT:
            table, entries = self._indirect_table(addr, length, flags)
            addr, length, flags, follow = _unpack_desc(table, 0)
            if flags & DESC_F_INDIRECT:
                raise DriverError("an indirect table holds no indirect descriptor", spec="2.7.5.3.1")
        readable: list[tuple[int, int]] = []
        writable: list[tuple[int, int]] = []
        seen = 1
        while True:
            if flags & DESC_F_WRITE:
                writable.append((addr, length))
            elif writable:
                raise DriverError("device-readable parts come before device-writable ones", spec="2.7.4.2")
            else:
                readable.append((addr, length))
            if not flags & DESC_F_NEXT:
                return Chain(head, readable, writable, self.dma)
            seen += 1
            if seen > size:
                raise DriverError("a chain is no longer than the queue", spec="2.7.5.2", detail=f"head {head}")
            if follow >= entries:
                raise DriverError("next names a descriptor of the table", spec="2.7.5", detail=f"{follow} of {entries}")
            addr, length, flags, follow = _unpack_desc(table, follow * DESC_SIZE)
            if flags & DESC_F_INDIRECT:
                if table is not self._desc:
                    raise DriverError("an indirect table holds no indirect descriptor", spec="2.7.5.3.1")
                # Legal only as the last of a chain (2.7.5.3.1 forbids NEXT with INDIRECT); the table goes on from here.
                table, entries = self._indirect_table(addr, length, flags)
                addr, length, flags, follow = _unpack_desc(table, 0)
                if flags & DESC_F_INDIRECT:
                    raise DriverError("an indirect table holds no indirect descriptor", spec="2.7.5.3.1")

    def _indirect_table(self, addr: int, length: int, flags: int) -> tuple[bytes, int]:
        if not self.indirect:
            raise DriverError("indirect descriptors need RING_INDIRECT_DESC", spec="2.7.5.3.1")
        if flags & DESC_F_NEXT:
            raise DriverError("an indirect descriptor has no next", spec="2.7.5.3.1")
        if not length or length % DESC_SIZE:
            raise DriverError("an indirect table is a whole number of descriptors", spec="2.7.5.3",
                              detail=f"{length} bytes")
        entries = length // DESC_SIZE
        if entries > self.size:
            raise DriverError("a chain is no longer than the queue", spec="2.7.5.3.1",
                              detail=f"{entries} of {self.size}")
        return self.dma.read(addr, length), entries

    def push(self, head: int, length: int, skipped: tuple[int, ...] = ()) -> None:
        """Put a used element after those already there; the driver sees it after `publish`."""
        at = 1 + 2 * (self.used_idx & self._mask)
        self._used_elems[at] = head & 0xFFFFFFFF
        self._used_elems[at + 1] = length & 0xFFFFFFFF
        self.used_idx = (self.used_idx + 1 + len(skipped)) & 0xFFFF
        self.unpublished = True

    def publish(self) -> bool:
        """Show the driver all used elements; return whether it wants an interrupt for them (2.7.7, 2.7.8)."""
        new = self.used_idx
        self._used[1] = new
        self.unpublished = False
        if self.event_idx:
            _full_fence()
            old, self._signalled = self._signalled, new
            return vring_need_event(self._avail[self._used_event_at], new, old)
        self._signalled = new
        return not self._avail[0] & AVAIL_F_NO_INTERRUPT

    def suppress_kicks(self) -> None:
        """Ask the driver not to notify while the device is at work anyway (2.7.10)."""
        if not self.event_idx:
            self._used[0] = USED_F_NO_NOTIFY

    def arm_kick(self) -> bool:
        """Ask for notifications again; return True if nothing became available meanwhile."""
        if self.event_idx:
            self._used[self._avail_event_at] = self.next_avail
        else:
            self._used[0] = 0
        _full_fence()
        return self._avail[1] == self.next_avail

    # What follows writes lies.

    def raw_used(self, ahead: int, head: int, length: int) -> None:
        """Write a used element; the index that would show it stays."""
        self.raw_used_elem(self.used_idx + ahead, head, length)

    def raw_claim(self, count: int) -> None:
        """Move the used index."""
        self.raw_used_idx(self.used_idx + count)

    def raw_used_idx(self, value: int) -> None:
        """Set the used index that the driver reads, whatever was pushed."""
        self._used[1] = value & 0xFFFF

    def raw_used_flags(self, value: int) -> None:
        """Set the flags of the used ring."""
        self._used[0] = value & 0xFFFF

    def raw_avail_event(self, value: int) -> None:
        """Set the avail_event word."""
        self._used[self._avail_event_at] = value & 0xFFFF

    def raw_used_elem(self, slot: int, head: int, length: int) -> None:
        """Overwrite one used element, counted modulo the queue size."""
        at = 1 + 2 * (slot & self._mask)
        self._used_elems[at] = head & 0xFFFFFFFF
        self._used_elems[at + 1] = length & 0xFFFFFFFF

    def raw_desc(self, index: int) -> tuple[int, int, int, int]:
        """Read one descriptor: addr, len, flags, next."""
        addr, length, flags, follow = _unpack_desc(self._desc, (index & self._mask) * DESC_SIZE)
        return addr, length, flags, follow

    def raw_write_desc(self, index: int, addr: int, length: int, flags: int, follow: int) -> None:
        """Overwrite one descriptor of the driver's table."""
        DESC.pack_into(self._desc, (index & self._mask) * DESC_SIZE, addr & (1 << 64) - 1, length & 0xFFFFFFFF,
                       flags & 0xFFFF, follow & 0xFFFF)

    def raw_avail_idx(self) -> int:
        """Return the driver's available index as it stands."""
        return self._avail[1]

    def raw_write_avail(self, word: int, value: int) -> None:
        """Overwrite a 16-bit word of the driver area: 0 flags, 1 idx, 2 on the ring."""
        self._avail[word] = value & 0xFFFF
