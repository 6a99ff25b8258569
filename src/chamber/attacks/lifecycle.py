"""Used elements before the driver is ready and after it stopped, and memory that changes after it was handed back."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Final

from chamber.attacks.attack import EVERYWHERE, LINUX, MODEL, Aim, Attack, AttackSpec, Surface
from chamber.device.catalogue import TYPES
from chamber.device.errors import DriverError
from chamber.wire.errors import DmaFault
from chamber.wire.virtio import DeviceType

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from chamber.device.chain import Chain
    from chamber.device.queue import DeviceQueue

__all__ = ("lifecycle_attacks",)

_PAGE: Final = 4096


class EarlyUsed(Attack):
    """Puts a used element into a queue as soon as the queue exists, and interrupts.

    An id that no driver accepts breaks the queue before the driver ever used it: what it does then, few have tried.

    Args:
        head: id of the element.
        delay: seconds until the interrupt, 0 for at once.
        config: also say that configuration changed.

    """

    def __init__(self, head: int, *, delay: float = 0.0, config: bool = False) -> None:
        super().__init__()
        self._head = head
        self._delay = delay
        self._config = config

    def queue_started(self, queue: DeviceQueue) -> None:
        """Strike before DRIVER_OK. What is honestly published later sets the index right again."""
        ring = queue.ring
        if ring is None:
            return
        ring.raw_used(0, self._head, 8)
        ring.raw_claim(1)
        self.strike(f"queue {queue.index}: used element (id {self._head}, len 8) before the driver is ready")

        def interrupt() -> None:
            if queue.ring is ring:
                queue.interrupt()
                if self._config:
                    self.device.config_interrupt()

        if self._delay:
            self.device.schedule(self._delay, interrupt)
        else:
            interrupt()


class ResetCompletion(EarlyUsed):
    """Completes, in a queue that was taken back and handed over anew, what was lent before (virtio 1.3, 2.6.1)."""

    def __init__(self) -> None:
        super().__init__(0)
        self._ready = False

    def driver_ok(self) -> None:
        """What starts from now on starts again."""
        self._ready = True

    def queue_started(self, queue: DeviceQueue) -> None:
        """Strike where a queue begins while the driver is ready."""
        if self._ready:
            super().queue_started(queue)

    def queue_stopping(self, queue: DeviceQueue) -> None:
        """Interrupt while the driver is at it."""
        if self._ready:
            queue.interrupt()


class RemovalCompletion(Attack):
    """Completes all that is outstanding while the driver takes its queues back, and what it took last once more."""

    def __init__(self) -> None:
        super().__init__()
        self._last: dict[int, Chain] = {}

    def popped(self, queue: DeviceQueue, chain: Chain) -> bool:
        """Remember the latest chain of each queue."""
        self._last[queue.index] = chain
        return True

    def queue_stopping(self, queue: DeviceQueue) -> None:
        """Complete without touching the buffers, which may be freed by now."""
        ring = queue.ring
        if ring is None:
            return
        count = 0
        last = self._last.pop(queue.index, None)
        if last is not None:
            queue.push(last.head, last.writable_size)
            count += 1
        with suppress(DriverError, DmaFault):
            while count < ring.size and (chain := queue.pop()) is not None:
                queue.push(chain.head, chain.writable_size)
                count += 1
        if count:
            self.strike(f"queue {queue.index}: {count} chains completed while it is being stopped")
            queue.publish()
            for _ in range(4):
                queue.interrupt()


class RemovalGarbage(Attack):
    """Moves the used index while the driver takes its queues back, and interrupts."""

    def queue_stopping(self, queue: DeviceQueue) -> None:
        """Let the driver find what was never completed."""
        ring = queue.ring
        if ring is None:
            return
        for slot in range(ring.size):
            ring.raw_used(slot, slot, 0xFFFFFFFF)
        ring.raw_claim(ring.size)
        self.strike(f"queue {queue.index}: {ring.size} used elements while it is being stopped")
        for _ in range(4):
            queue.interrupt()
        self.device.config_interrupt()


class Rewriter(Attack):
    """Rewrites a buffer after its completion, once at once or between the guest's reads of it.

    Memory that was handed back is the driver's. It is still shared where buffers are bounced or shared for good, which
    the model's memory knows; over vhost-user nothing does, so this runs on the model alone.

    Args:
        on_read: whether to wait for the guest's reads.

    """

    def __init__(self, *, on_read: bool) -> None:
        super().__init__()
        self._on_read = on_read
        self._done: list[tuple[DeviceQueue, Chain]] = []
        self._targets: list[tuple[DeviceQueue, Chain]] = []
        self._left = 500

    def used(self, queue: DeviceQueue, chain: Chain, length: int) -> Iterable[tuple[int, int]]:
        """Remember what is about to be handed back."""
        if chain.writable:
            self._done.append((queue, chain))
        return ((chain.head, length),)

    def published(self, queue: DeviceQueue) -> None:  # noqa: ARG002 - the hook's signature
        """Rewrite now, or from now on."""
        if self._on_read:
            self._targets = (self._targets + self._done)[-8:]
        else:
            for _, chain in self._done:
                self._invert(chain, "after completion")
        self._done = []

    def guest_read(self, address: int, length: int) -> None:
        """The guest read: if it was a buffer of ours, what it reads next differs."""
        for queue, chain in self._targets:
            if queue.started and any(a < address + length and address < a + n for a, n in chain.writable):
                self._invert(chain, "between two reads")

    def queue_stopping(self, queue: DeviceQueue) -> None:
        """The buffers go away."""
        self._targets = [entry for entry in self._targets if entry[0] is not queue]

    def _invert(self, chain: Chain, when: str) -> None:
        if self._left <= 0:
            return
        self._left -= 1
        address, length = chain.writable[0]
        with suppress(DmaFault):
            old = chain.dma.read(address, min(length, 64))
            chain.dma.write(address, bytes(b ^ 0x5A for b in old))
            self.strike(f"{len(old)} bytes of chain {chain.head} rewritten {when}")


class Overwriter(Attack):
    """Writes to what it may only read."""

    def __init__(self) -> None:
        super().__init__()
        self._left = 50

    def used(self, queue: DeviceQueue, chain: Chain, length: int) -> Iterable[tuple[int, int]]:
        """Spoil the readable parts of a served request."""
        if chain.readable and self._left:
            self._left -= 1
            address, size = chain.readable[-1]
            with suppress(DmaFault):
                chain.dma.write(address, b"\xA5" * min(size, 64))
                self.strike(f"queue {queue.index}: device-readable part of chain {chain.head} overwritten")
        return ((chain.head, length),)


class Scanner(Attack):
    """Reads, or overwrites, what lies around the buffers that it was lent.

    Args:
        write: whether to overwrite the bytes behind each writable part.

    """

    def __init__(self, *, write: bool) -> None:
        super().__init__()
        self._write = write
        self._left = 100

    def popped(self, queue: DeviceQueue, chain: Chain) -> bool:
        """Look at the pages around each part."""
        for address, length in (*chain.readable, *chain.writable):
            if not self._left:
                break
            self._left -= 1
            if self._write:
                self._spoil(queue, chain, address + length)
            else:
                self._look(queue, chain, address & -_PAGE)
        return True

    def _look(self, queue: DeviceQueue, chain: Chain, page: int) -> None:
        for address in (page - _PAGE, page, page + _PAGE):
            if address >= 0:
                with suppress(DmaFault):
                    found = chain.dma.read(address, _PAGE)
                    self.capture(found)
                    self.strike(f"queue {queue.index}: page {address:#x} beside chain {chain.head} read, "
                                f"{'something' if any(found) else 'nothing'} in it")

    def _spoil(self, queue: DeviceQueue, chain: Chain, end: int) -> None:
        with suppress(DmaFault):
            chain.dma.write(end, b"\xEE" * 32)
            self.strike(f"queue {queue.index}: 32 bytes behind chain {chain.head} overwritten")


class QueueRefused(Attack):
    """Fails the set-up of queues: the driver has to undo half a probe.

    Args:
        first: the first queue to fail; those behind it fail as well.

    """

    def __init__(self, first: int) -> None:
        super().__init__()
        self._first = first

    def queue_refused(self, index: int) -> bool:
        """Refuse."""
        if index < self._first:
            return False
        self.strike(f"queue {index} can't be set up")
        return True


Kind = tuple[str, Surface, Aim, str, str, "Callable[[], Attack]", tuple[str, ...], frozenset[str]]

_KINDS: Final[tuple[Kind, ...]] = (
    ("early-used", Surface.LIFECYCLE, Aim.MEMORY, "3.1.1",
     "completes descriptor 0 of each queue before DRIVER_OK and interrupts",
     lambda: EarlyUsed(0), ("use", "rebind"), EVERYWHERE),
    ("early-used-delayed", Surface.LIFECYCLE, Aim.MEMORY, "3.1.1",
     "completes descriptor 0 of each queue before DRIVER_OK and interrupts a moment later",
     lambda: EarlyUsed(0, delay=0.002, config=True), ("use", "rebind"), EVERYWHERE),
    ("early-used-wild", Surface.LIFECYCLE, Aim.MEMORY, "3.1.1",
     "completes an id beyond the table before DRIVER_OK, and says that configuration changed",
     lambda: EarlyUsed(0xFFFF, config=True), ("use", "rebind"), EVERYWHERE),
    ("reset-completion", Surface.LIFECYCLE, Aim.MEMORY, "2.6.1",
     "completes descriptor 0 of a queue that was just reset, and interrupts",
     ResetCompletion, ("use", "reset", "inspect"), MODEL),
    ("removal-completion", Surface.LIFECYCLE, Aim.MEMORY, "2.4.1",
     "completes all that is outstanding while the driver takes its queues back",
     RemovalCompletion, ("use", "rebind"), EVERYWHERE),
    ("removal-garbage", Surface.LIFECYCLE, Aim.MEMORY, "2.4.1",
     "fills the used ring while the driver takes it back",
     RemovalGarbage, ("use", "rebind"), EVERYWHERE),
    ("queue-refused", Surface.LIFECYCLE, Aim.MEMORY, "4.2.3.2", "refuses to have a queue",
     lambda: QueueRefused(0), ("use", "rebind"), LINUX),
    ("queue-refused-later", Surface.LIFECYCLE, Aim.MEMORY, "4.2.3.2", "refuses to have all queues but the first",
     lambda: QueueRefused(1), ("use", "rebind"), LINUX),
    ("payload-rewritten", Surface.PAYLOAD, Aim.DECEPTION, "2.7.8.2",
     "rewrites buffers right after it completed them",
     lambda: Rewriter(on_read=False), ("use",), MODEL),
    ("payload-double-fetch", Surface.PAYLOAD, Aim.MEMORY, "2.7.8.2",
     "rewrites buffers between two reads of the driver",
     lambda: Rewriter(on_read=True), ("use", "inspect"), MODEL),
    ("readable-overwritten", Surface.DMA, Aim.DECEPTION, "2.7.5.1",
     "writes to buffers that it may only read",
     Overwriter, ("use",), MODEL),
    ("dma-scan", Surface.DMA, Aim.LEAK, "2.7.4",
     "reads the pages around the buffers that it was lent",
     lambda: Scanner(write=False), ("use",), MODEL),
    ("dma-overwrite", Surface.DMA, Aim.MEMORY, "2.7.4",
     "overwrites the bytes behind the buffers that it was lent",
     lambda: Scanner(write=True), ("use",), MODEL),
)

_KNOWN: Final = {
    "console-early-used": "virtio_console: fix misc probe bugs",
    "net-early-used": "virtio-net: fix race between ndo_open() and virtio_device_ready()",
    "rng-early-used": "virtio-rng: make device ready before making request",
}


_POINTLESS: Final = {
    *((device, "queue-refused-later") for device in (DeviceType.RNG, DeviceType.BLOCK, DeviceType.PMEM,
                                                     DeviceType.TRANSPORT_9P)),  # have one queue
    (DeviceType.RNG, "readable-overwritten"),  # its requests have nothing to read
    (DeviceType.BALLOON, "payload-double-fetch"),  # and this one's answers nothing that is looked at
}


def lifecycle_attacks() -> Iterator[AttackSpec]:
    """Attacks on the edges of a driver's life and of a buffer's, for every device."""
    for device in TYPES:
        for what, surface, aim, spec, summary, make, stimuli, targets in _KINDS:
            if (device, what) in _POINTLESS:
                continue
            name = f"{device.short}-{what}"
            yield AttackSpec(name, device, surface, aim, f"virtio 1.3, {spec}", f"The device {summary}.", make,
                             stimuli=stimuli, targets=targets, known=_KNOWN.get(name, ""))
