"""One virtqueue of a device, whatever its ring format."""

from __future__ import annotations

from typing import TYPE_CHECKING

from chamber.device.errors import DriverError
from chamber.device.split import SplitRing
from chamber.wire.virtio import Feature

if TYPE_CHECKING:
    from collections.abc import Callable

    from chamber.device.chain import Chain
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

    """

    def __init__(self, index: int) -> None:
        self.index = index
        self.ring: SplitRing | None = None
        self.broken: DriverError | None = None
        self._interrupt: Callable[[], None] = lambda: None

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
        self.ring = SplitRing(dma, size, desc, driver, device, base=base,
                              indirect=bool(features >> Feature.RING_INDIRECT_DESC & 1),
                              event_idx=bool(features >> Feature.RING_EVENT_IDX & 1))
        self._interrupt = interrupt

    def stop(self) -> int:
        """Touch the queue no more; return the index from which it could go on."""
        ring, self.ring = self.ring, None
        self._interrupt = lambda: None
        if ring is None:
            return 0
        ring.release()
        return ring.next_avail

    def pop(self) -> Chain | None:
        """Take the next chain; None when there is none, the queue is stopped or broken.

        Raises:
            DriverError: once, at the first broken rule.

        """
        if self.ring is None or self.broken is not None:
            return None
        try:
            return self.ring.pop()
        except DriverError as error:
            self.broken = error
            raise

    def push(self, head: int, length: int) -> None:
        """Give a chain back, `length` bytes of it written."""
        if self.ring is not None:
            self.ring.push(head, length)

    def publish(self) -> bool:
        """Show what was pushed; return whether the driver wants to be interrupted for it."""
        return self.ring is not None and self.ring.unpublished and self.ring.publish()

    def interrupt(self) -> None:
        """Interrupt the driver for this queue, wanted or not."""
        self._interrupt()
