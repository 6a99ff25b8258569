"""The driver half of a split virtqueue (virtio 1.3, 2.7).

The host writes into everything here that is shared, at any time. Where the profile has shadows, what the driver needs
to know again (which descriptors a chain has, where they point, what is free) is kept in private memory and the shared
table is only ever written. A broken rule latches: it is reported once, and the queue is dead.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from chamber.guest.bounce import Direction
from chamber.guest.untrusted import DeviceViolation
from chamber.wire.split import (
    AVAIL_F_NO_INTERRUPT,
    DESC,
    DESC_F_INDIRECT,
    DESC_F_NEXT,
    DESC_F_WRITE,
    DESC_SIZE,
    USED_ELEM,
    USED_F_NO_NOTIFY,
    SplitLayout,
    vring_need_event,
)

if TYPE_CHECKING:
    from chamber.guest.dma import Buffer, Dma
    from chamber.guest.profile import Profile
    from chamber.guest.untrusted import Checks
    from chamber.platform.heap import Object
    from chamber.platform.scheduler import Scheduler

__all__ = ("QueueDead", "QueueFull", "Request", "VirtQueue")

_TOKEN_SIZE = 8


class QueueFull(Exception):
    """No descriptors are free."""


class QueueDead(Exception):
    """The queue was latched when the device broke a rule; the reason was reported then."""


@dataclass(slots=True, eq=False)
class Request:
    """What the driver lent to the device, from `VirtQueue.add` until `VirtQueue.get`.

    Attributes:
        record: the driver's own note of the request, in private memory; freed when the request is.
        readable: buffers that the device reads.
        writable: buffers that it writes.
        done: it came back.
        written: bytes that the device says it wrote, checked to be no more than it could.

    """

    record: Object
    readable: list[Buffer] = field(default_factory=list)
    writable: list[Buffer] = field(default_factory=list)
    done: bool = False
    written: int = 0


@dataclass(slots=True)
class _Shadow:
    """A descriptor as the driver wrote it."""

    address: int
    length: int
    flags: int
    follow: int
    table: Object | None = None
    parts: tuple[tuple[int, int, int], ...] = ()


class VirtQueue:
    """One queue from set-up to removal.

    Args:
        index: its number.
        size: descriptors.
        dma: maps buffers.
        profile: which layers there are.
        checks: whether what the device says is checked.
        scheduler: counts steps, so that going round in circles ends.
        indirect: RING_INDIRECT_DESC was negotiated.
        event_idx: RING_EVENT_IDX was negotiated.

    Attributes:
        broken: why the queue is dead, if it is.

    """

    def __init__(self, index: int, size: int, dma: Dma, profile: Profile, checks: Checks, scheduler: Scheduler, *,
                 indirect: bool, event_idx: bool) -> None:
        layout = SplitLayout(size)
        self.index = index
        self.size = size
        self.broken: DeviceViolation | None = None
        self._dma = dma
        self._checks = checks
        self._shadowed = profile.shadowed
        self._scheduler = scheduler
        self._indirect = indirect
        self._event_idx = event_idx
        self.desc = dma.alloc_coherent(layout.desc_bytes, "descriptor table", align=16)
        self.avail = dma.alloc_coherent(layout.avail_bytes, "available ring", align=16)
        self.used = dma.alloc_coherent(layout.used_bytes, "used ring", align=16)
        self._tokens = dma.heap.alloc(_TOKEN_SIZE * size, "descriptor state", zero=True)
        self._requests: dict[int, Request] = {}
        self._next_token = 1
        self._shadow: dict[int, _Shadow] = {}
        self._free_next = list(range(1, size + 1))
        for i in range(size):
            self.desc.write(DESC.pack(0, 0, 0, (i + 1) % size), DESC_SIZE * i)
        self._free_head = 0
        self._free_count = size
        # For each chain that the device has, how many used elements it had shown before the chain was lent.
        self._outstanding: dict[int, int] = {}
        self._taken = 0
        self._shown = 0
        self._avail_idx = 0
        self._kicked = 0
        self._last_used = 0
        self._avail_event_at = layout.used_bytes - 2
        self._used_event_at = layout.avail_bytes - 2

    @property
    def outstanding(self) -> int:
        """Chains that the device has."""
        return len(self._outstanding)

    @property
    def free(self) -> int:
        """Descriptors that are free."""
        return self._free_count

    # Towards the device.

    def add(self, request: Request) -> None:
        """Make a request available; `kick` tells the device.

        Raises:
            QueueDead: the queue was latched.
            QueueFull: not enough descriptors.
            PoolFull: the bounce pool has no room.

        """
        if self.broken is not None:
            raise QueueDead(str(self.broken))
        count = len(request.readable) + len(request.writable)
        indirect = self._indirect and count > 1
        if self._free_count < (1 if indirect else count):
            raise QueueFull(f"{self._free_count} descriptors are free")
        parts: list[tuple[int, int, int]] = []
        try:
            for buffers, direction, flag in ((request.readable, Direction.TO_DEVICE, 0),
                                             (request.writable, Direction.FROM_DEVICE, DESC_F_WRITE)):
                for buffer in buffers:
                    how = Direction.BOTH if buffer.preset else direction
                    parts.append((self._dma.map(buffer, how), buffer.length, flag))
        except Exception:
            for address, _, _ in parts:
                self._dma.unmap(address, 0)
            raise
        head = self._put_indirect(parts) if indirect else self._put_chain(parts)
        token = self._next_token
        self._next_token += 1
        self._requests[token] = request
        self._tokens.put(_TOKEN_SIZE * head, _TOKEN_SIZE, token)
        self._outstanding[head] = self._shown
        self.avail.put(4 + 2 * (self._avail_idx % self.size), 2, head)
        self._avail_idx = (self._avail_idx + 1) & 0xFFFF
        self.avail.put(2, 2, self._avail_idx)

    def _put_indirect(self, parts: list[tuple[int, int, int]]) -> int:
        table = self._dma.alloc_coherent(DESC_SIZE * len(parts), "indirect table")
        for i, (address, length, flag) in enumerate(parts):
            more = DESC_F_NEXT if i + 1 < len(parts) else 0
            table.write(DESC.pack(address, length, flag | more, i + 1 if more else 0), DESC_SIZE * i)
        head = self._take()
        self._write(head, table.address, table.size, DESC_F_INDIRECT, 0, table=table, parts=tuple(parts))
        return head

    def _put_chain(self, parts: list[tuple[int, int, int]]) -> int:
        numbers = [self._take() for _ in parts]
        for i, (address, length, flag) in enumerate(parts):
            more = i + 1 < len(parts)
            self._write(numbers[i], address, length, flag | (DESC_F_NEXT if more else 0), numbers[i + 1] if more else 0)
        return numbers[0]

    def _take(self) -> int:
        number = self._free_head
        self._free_count -= 1
        if self._shadowed:
            self._free_head = self._free_next[number]
        else:
            # The free list runs through the shared table: the host can lead it anywhere.
            self._free_head = self.desc.get(DESC_SIZE * number + 14, 2)
        return number

    def _write(self, number: int, address: int, length: int, flags: int, follow: int, *, table: Object | None = None,
               parts: tuple[tuple[int, int, int], ...] = ()) -> None:
        self.desc.write(DESC.pack(address, length, flags, follow), DESC_SIZE * number)
        self._shadow[number] = _Shadow(address, length, flags, follow, table, parts)

    def kick(self) -> bool:
        """Return whether the device wants to be told what was added since the last call."""
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
        """Ask for interrupts, or for none."""
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

    def get(self) -> Request | None:
        """Take back one request that the device has used; None if there is none, or if the queue is dead.

        Raises:
            DeviceViolation: once, when the device breaks a rule; from then on the queue is dead.

        """
        if self.broken is not None:
            return None
        try:
            return self._get()
        except DeviceViolation as violation:
            self.broken = violation
            raise

    def _get(self) -> Request | None:
        self._scheduler.step()
        used_idx = self._checks.number((self.used.get(2, 2) - self._last_used) & 0xFFFF)
        pending = used_idx.at_most(
            len(self._outstanding), "the used index moves by what is outstanding at most", "2.7.8")
        if not pending:
            return None
        self._shown = self._taken + pending
        at = 4 + USED_ELEM.size * (self._last_used % self.size)
        raw_id, raw_length = USED_ELEM.unpack(self.used.read(at, USED_ELEM.size))
        self._last_used = (self._last_used + 1) & 0xFFFF
        if self._event_idx:
            self.avail.put(self._used_event_at, 2, self._last_used)
        head = self._checks.number(raw_id).index(self.size, "a used id is below the queue size", "2.7.8")
        # An element that was there before the chain was lent can't be about it: a driver that lends buffers again while
        # it takes others back would otherwise take the same completion twice.
        self._checks.require(self._outstanding.get(head, self._shown) <= self._taken,
                             "a used id is the head of a chain that the device has", "2.7.8", str(head))
        self._taken += 1
        token = self._tokens.get(_TOKEN_SIZE * head, _TOKEN_SIZE)
        if not token:
            self._dma.heap.report("null pointer", "request of a used id", f"id {head}")
        # Without shadows the token stays, as it did where nobody cleared it, and leads to what was freed.
        request = self._requests.pop(token) if self._shadowed else self._requests[token]
        request.record.read(0, 8)  # a request that is done already is freed: using it again is noticed here
        room = sum(buffer.length for buffer in request.writable)
        request.written = self._checks.number(raw_length).at_most(
            room, "a used length is no more than the device could write", "2.7.8.2")
        if self._shadowed:
            self._tokens.put(_TOKEN_SIZE * head, _TOKEN_SIZE, 0)
            self._detach_shadowed(head, request.written)
        else:
            self._detach_shared(head, request.written)
        self._outstanding.pop(head, None)
        request.done = True
        return request

    def _unmap(self, parts: list[tuple[int, int, int]], written: int) -> None:
        """Take the parts of a chain back; the device fills writable ones in order (2.7.4.2)."""
        for address, length, flags in parts:
            share = min(written, length) if flags & DESC_F_WRITE else 0
            written -= share
            self._dma.unmap(address, share)

    def _detach_shadowed(self, head: int, written: int) -> None:
        parts: list[tuple[int, int, int]] = []
        number = head
        while True:
            shadow = self._shadow.pop(number)
            if shadow.table is not None:
                parts += shadow.parts
                self._dma.free_coherent(shadow.table)
            else:
                parts.append((shadow.address, shadow.length, shadow.flags))
            self._release(number)
            if not shadow.flags & DESC_F_NEXT:
                break
            number = shadow.follow
        self._unmap(parts, written)

    def _release(self, number: int) -> None:
        self._free_next[number] = self._free_head
        self._free_head = number
        self._free_count += 1

    def _detach_shared(self, head: int, written: int) -> None:
        """As drivers did that kept nothing: all is read back from memory that the host writes."""
        parts: list[tuple[int, int, int]] = []
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
        self.desc.put(DESC_SIZE * number + 14, 2, first)
        self._free_head = head
        self._unmap(parts, written)

    def destroy(self) -> None:
        """Free the queue's memory; the device must have been reset before."""
        for head in sorted(self._outstanding):
            shadow = self._shadow.get(head)
            while shadow is not None:
                for address, _, _ in shadow.parts or ((shadow.address, shadow.length, shadow.flags),):
                    self._dma.unmap(address, 0)
                shadow = self._shadow.get(shadow.follow) if shadow.flags & DESC_F_NEXT else None
        self._outstanding.clear()
        for memory in (self._tokens,):
            self._dma.heap.free(memory)
        for memory in (self.desc, self.avail, self.used):
            self._dma.free_coherent(memory)
