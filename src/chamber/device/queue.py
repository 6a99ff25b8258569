"""One virtqueue of a device, whatever its ring format."""

from __future__ import annotations

from collections import deque
from contextlib import suppress
from typing import TYPE_CHECKING

from chamber.device.errors import DriverError
from chamber.device.packed import PackedRing
from chamber.device.split import SplitRing
from chamber.wire.errors import DmaFault
from chamber.wire.virtio import Feature

if TYPE_CHECKING:
    from collections.abc import Callable

    from chamber.device.chain import Chain
    from chamber.device.ring import Ring
    from chamber.platform.dma import Dma

__all__ = ("DeviceQueue",)


class DeviceQueue:
    """A queue that can be started, stopped and started again.

    A rule that the driver breaks is reported once; from then on the queue is empty until it is started anew, so that no
    worker spins on it.

    Attributes:
        index: number of the queue.
        ring: the ring while started, else None.
        broken: what the driver did wrong, if it did.
        lent: gets each chain that the driver lends, also those that the device never takes; for oracles.

    """

    def __init__(self, index: int) -> None:
        self.index = index
        self.ring: Ring | None = None
        self.broken: DriverError | None = None
        self.lent: Callable[[Chain], None] | None = None
        self._interrupt: Callable[[], None] = lambda: None
        # With IN_ORDER: what was taken and not given back, oldest first, with the bytes that could be written; what is
        # done before its turn; and what is done and not in the ring yet.
        self._order: deque[tuple[int, int]] | None = None
        self._early: dict[int, int] = {}
        self._batch: list[tuple[int, int, int]] = []

    def __repr__(self) -> str:
        state = "stopped" if self.ring is None else f"size {self.ring.size}"
        return f"<DeviceQueue {self.index}: {state}{', broken' if self.broken else ''}>"

    @property
    def started(self) -> bool:
        """Whether the driver handed the queue over."""
        return self.ring is not None

    def start(self, dma: Dma, size: int, desc: int, driver: int, device: int, *, features: int,
              interrupt: Callable[[], None], base: int = 0) -> None:
        """Take a queue over from the driver.

        Raises:
            DriverError: size or alignment are not legal.

        """
        self.stop()
        self.broken = None
        ring = PackedRing if features >> Feature.RING_PACKED & 1 else SplitRing
        self.ring = ring(dma, size, desc, driver, device, base=base,
                         indirect=bool(features >> Feature.RING_INDIRECT_DESC & 1),
                         event_idx=bool(features >> Feature.RING_EVENT_IDX & 1))
        self._order = deque() if features >> Feature.IN_ORDER & 1 else None
        self._early.clear()
        self._batch.clear()
        self._interrupt = interrupt

    def stop(self) -> int:
        """Touch the queue no more; return the index from which it could go on."""
        ring, self.ring = self.ring, None
        self._batch.clear()
        self._interrupt = lambda: None
        if ring is None:
            return 0
        position = ring.position
        if self.lent is not None and self.broken is None:
            # What the driver takes back untouched was shared all the same; it may name it wrongly even now.
            with suppress(DriverError, DmaFault):
                for _ in range(ring.size):
                    chain = ring.pop()
                    if chain is None:
                        break
                    self.lent(chain)
        ring.release()
        return position

    def pop(self) -> Chain | None:
        """Take the next chain; None when there is none, the queue is stopped or broken.

        Raises:
            DriverError: once, at the first broken rule.

        """
        if self.ring is None or self.broken is not None:
            return None
        try:
            chain = self.ring.pop()
        except DriverError as error:
            self.broken = error
            raise
        if chain is not None and self.lent is not None:
            self.lent(chain)
        if self._order is not None and chain is not None:
            self._order.append((chain.head, chain.writable_size))
        return chain

    def push(self, head: int, length: int) -> None:
        """Give a chain back, `length` bytes of it written; with IN_ORDER it waits for those taken before it."""
        order = self._order
        if self.ring is None:
            return
        if order is None or not any(head == taken for taken, _ in order):
            self.ring.push(head, length)
            return
        self._early[head] = length
        while order and order[0][0] in self._early:
            head, room = order.popleft()
            self._batch.append((head, self._early.pop(head), room))

    def _push_batch(self) -> None:
        """Put what is done in order into the ring: one element stands for all before it that were used completely."""
        ring = self.ring
        assert ring is not None
        skipped: list[int] = []
        for place, (head, length, room) in enumerate(self._batch, 1):
            if place < len(self._batch) and length == room:
                skipped.append(head)
            else:
                ring.push(head, length, tuple(skipped))
                skipped = []
        self._batch.clear()

    @property
    def unpublished(self) -> bool:
        """Whether chains were given back that the driver can't see yet."""
        return bool(self._batch) or (self.ring is not None and self.ring.unpublished)

    def publish(self) -> bool:
        """Show what was pushed; return whether the driver wants to be interrupted for it."""
        if self._batch:
            self._push_batch()
        return self.ring is not None and self.ring.unpublished and self.ring.publish()

    def interrupt(self) -> None:
        """Interrupt the driver for this queue, wanted or not."""
        self._interrupt()
