"""The driver half of a virtqueue, whatever its format in memory (virtio 1.3, 2.6).

The host writes into everything here that is shared, at any time. Where the profile has shadows, what the driver needs
to know again (which descriptors a chain has, where they point, what is free) is kept in private memory and what is
shared is only ever written. A broken rule latches: it is reported once, and the queue is dead.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from chamber.guest.bounce import Direction
from chamber.guest.untrusted import DeviceViolation
from chamber.wire.split import DESC_F_WRITE
from chamber.wire.virtio import Feature

if TYPE_CHECKING:
    from chamber.guest.dma import Buffer, Dma
    from chamber.guest.profile import Profile
    from chamber.guest.untrusted import Checks
    from chamber.platform.heap import Object
    from chamber.platform.scheduler import Scheduler

__all__ = ("Part", "QueueDead", "QueueFull", "Request", "VirtQueue")

_TOKEN_SIZE: Final = 8

Part = tuple[int, int, int]
"""A mapped buffer: its address for the device, its length, and DESC_F_WRITE or 0."""


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

    @property
    def room(self) -> int:
        """Bytes that the device could write."""
        return sum(buffer.length for buffer in self.writable)


class VirtQueue(ABC):
    """One queue from set-up to removal.

    Args:
        index: its number.
        size: descriptors.
        dma: maps buffers.
        profile: which layers there are.
        checks: whether what the device says is checked.
        scheduler: counts steps, so that going round in circles ends.
        features: what was negotiated; RING_INDIRECT_DESC, RING_EVENT_IDX and IN_ORDER matter here.

    Attributes:
        broken: why the queue is dead, if it is.

    """

    spec: str
    """Where the format's rules about used buffers stand."""

    def __init__(self, index: int, size: int, dma: Dma, profile: Profile, checks: Checks, scheduler: Scheduler, *,
                 features: int) -> None:
        self.index = index
        self.size = size
        self.broken: DeviceViolation | None = None
        self._dma = dma
        self._checks = checks
        self._shadowed = profile.shadowed
        self._scheduler = scheduler
        self._indirect = bool(features >> Feature.RING_INDIRECT_DESC & 1)
        self._event_idx = bool(features >> Feature.RING_EVENT_IDX & 1)
        self._in_order = bool(features >> Feature.IN_ORDER & 1)
        self._tokens = dma.heap.alloc(_TOKEN_SIZE * size, "descriptor state", zero=True)
        self._requests: dict[int, Request] = {}
        self._next_token = 1
        # Heads or ids of the chains that the device has, oldest first; what stands by them is the format's own.
        self._outstanding: dict[int, int] = {}
        # With IN_ORDER: chains that one used element took back together, oldest first, and what was written.
        self._batch: deque[tuple[int, int | None]] = deque()

    @property
    @abstractmethod
    def areas(self) -> tuple[int, int, int]:
        """Addresses of descriptor area, driver area and device area."""

    @property
    @abstractmethod
    def free(self) -> int:
        """Descriptors that are free."""

    @property
    @abstractmethod
    def notification_data(self) -> int:
        """What a notification says with NOTIFICATION_DATA: the queue, and where its next descriptor goes (2.9)."""

    @property
    def outstanding(self) -> int:
        """Chains that the device has."""
        return len(self._outstanding)

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
        if count > self.size or self.free < (1 if indirect else count):
            # An indirect table is no way around the longest chain that a queue takes (2.7.5.3.1, 2.8.19).
            raise QueueFull(f"{self.free} of {self.size} descriptors are free, {count} are needed")
        parts: list[Part] = []
        try:
            for buffers, direction, flag in ((request.readable, Direction.TO_DEVICE, 0),
                                             (request.writable, Direction.FROM_DEVICE, DESC_F_WRITE)):
                for buffer in buffers:
                    how = Direction.BOTH if buffer.preset else direction
                    parts.append((self._dma.map(buffer, how), buffer.length, flag))
        except Exception:
            self._unmap(parts, 0)
            raise
        head = self._put(parts, indirect=indirect)
        token = self._next_token
        self._next_token += 1
        self._requests[token] = request
        self._tokens.put(_TOKEN_SIZE * head, _TOKEN_SIZE, token)
        self._expose(head)

    @abstractmethod
    def _put(self, parts: list[Part], *, indirect: bool) -> int:
        """Write descriptors that the device does not see as available yet; return the head, or id, of the chain."""

    @abstractmethod
    def _expose(self, head: int) -> None:
        """Make a chain available, and count it as outstanding."""

    @abstractmethod
    def kick(self) -> bool:
        """Return whether the device wants to be told what was added since the last call."""

    @abstractmethod
    def want_interrupts(self, *, wanted: bool) -> None:
        """Ask for interrupts, or for none."""

    # Back from the device.

    @abstractmethod
    def require_untouched(self) -> None:
        """Check, before DRIVER_OK, that the device has used nothing yet.

        Raises:
            DeviceViolation: it has.

        """

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
        if not self._batch:
            used = self._used()
            if used is None:
                return None
            raw_id, raw_length = used
            last = self._checks.number(raw_id).index(self.size, "a used id is below the queue size", self.spec)
            batch = self._batch_until(last)
            self._skip(batch)
            self._batch.extend((head, None) for head in batch[:-1])
            self._batch.append((last, raw_length))
        return self._take_back(*self._batch.popleft())

    def _batch_until(self, last: int) -> list[int]:
        """Chains that a used id takes back: with IN_ORDER, all that were lent before it as well (2.7.9, 2.8.12)."""
        if not self._in_order:
            return [last]
        batch: list[int] = []
        for head in self._outstanding:
            batch.append(head)
            if head == last:
                return batch
        self._checks.require(False, "a used id is one of the chains that the device has", self.spec, str(last))
        return [last]

    @abstractmethod
    def _used(self) -> tuple[int, int] | None:
        """Read the next used id and length, each once; None if there is none."""

    @abstractmethod
    def _skip(self, batch: list[int]) -> None:
        """Go on behind these chains.

        Raises:
            DeviceViolation: the device can't have used them.

        """

    def _take_back(self, head: int, raw_length: int | None) -> Request:
        token = self._tokens.get(_TOKEN_SIZE * head, _TOKEN_SIZE)
        if not token:
            self._dma.heap.report("null pointer", "request of a used id", f"id {head}")
        # Without shadows the token stays, as it did where nobody cleared it, and leads to what was freed.
        request = self._requests.pop(token) if self._shadowed else self._requests[token]
        request.record.read(0, 8)  # a request that is done already is freed: using it again is noticed here
        room = request.room
        # What a batch skips counts as used completely (2.7.9).
        request.written = self._checks.number(room if raw_length is None else raw_length).at_most(
            room, "a used length is no more than the device could write", self.spec)
        if self._shadowed:
            self._tokens.put(_TOKEN_SIZE * head, _TOKEN_SIZE, 0)
        self._detach(head, request.written)
        self._outstanding.pop(head, None)
        request.done = True
        return request

    @abstractmethod
    def _detach(self, head: int, written: int) -> None:
        """Unmap the buffers of a chain and free its descriptors."""

    def _unmap(self, parts: list[Part] | tuple[Part, ...], written: int) -> None:
        """Take the parts of a chain back; the device fills writable ones in order (2.7.4.2)."""
        for address, length, flags in parts:
            share = min(written, length) if flags & DESC_F_WRITE else 0
            written -= share
            self._dma.unmap(address, share)

    # The end.

    def cancel(self) -> list[Request]:
        """Take back what the device has, oldest first, as if it had written nothing; the queue must have been reset."""
        requests: list[Request] = []
        for head in list(self._outstanding):
            request = self._requests.pop(self._tokens.get(_TOKEN_SIZE * head, _TOKEN_SIZE), None)
            self._abandon(head)
            if request is not None:
                requests.append(request)
        self._outstanding.clear()
        return requests

    @abstractmethod
    def _abandon(self, head: int) -> None:
        """Unmap the buffers of a chain that never came back."""

    def destroy(self) -> None:
        """Free the queue's memory; the device must have been reset before."""
        self.cancel()
        self._dma.heap.free(self._tokens)
        self._free_areas()

    @abstractmethod
    def _free_areas(self) -> None:
        """Free the three areas."""
