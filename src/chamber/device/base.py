"""What every virtio device has: features, configuration space, queues."""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, ClassVar

from chamber.device.errors import DriverError
from chamber.device.queue import DeviceQueue
from chamber.wire.errors import DmaFault
from chamber.wire.virtio import Feature, bit

if TYPE_CHECKING:
    from collections.abc import Callable

    from chamber.device.chain import Chain
    from chamber.device.hooks import Hooks
    from chamber.platform.dma import Dma
    from chamber.wire.virtio import DeviceType

__all__ = ("Device",)

_ALWAYS = bit(Feature.VERSION_1, Feature.RING_INDIRECT_DESC, Feature.RING_EVENT_IDX, Feature.NOTIFICATION_DATA,
              Feature.RING_RESET)


class Device(ABC):
    """A virtio device without a transport.

    A transport (vhost-user, the model's bus) calls the methods below as its guest asks, and sets the three callables.
    Nothing here blocks and nothing here raises for what a driver does: a broken rule kills its queue and is kept in
    `violations`.

    Attributes:
        type: virtio device id.
        config: the honest configuration space.
        queues: all queues that the device could have, by index.
        features: what the driver accepted, 0 before.
        violations: rules that the driver broke, oldest first, at most 100.
        config_interrupt: set by the transport: tell the driver that configuration changed.
        schedule: set by the transport: call a function after a delay in seconds.
        trace: set by whoever wants a transcript: gets one line per event.

    """

    type: ClassVar[DeviceType]

    def __init__(self, *, features: int, config: bytes | bytearray, queues: int, queue_size: int = 256,
                 hooks: Hooks | None = None) -> None:
        self._offered = features | _ALWAYS
        self.config = bytearray(config)
        self.config_generation = 0
        self.queue_size = queue_size
        self.queues = [DeviceQueue(i) for i in range(queues)]
        self.features = 0
        self.violations: list[DriverError] = []
        self.hooks = hooks
        self.config_interrupt: Callable[[], None] = lambda: None
        self.schedule: Callable[[float, Callable[[], None]], None] = lambda _delay, _call: None
        self.trace: Callable[[str], None] | None = None
        self._seen_driver = False
        if hooks is not None:
            hooks.attach(self)

    # What a transport calls.

    def offered_features(self) -> int:
        """Feature bits shown to the driver."""
        return self._offered if self.hooks is None else self.hooks.features(self._offered)

    def refuses_queue(self, index: int) -> bool:
        """Whether the set-up of a queue is to fail, as no honest device has it."""
        return self.hooks is not None and self.hooks.queue_refused(index)

    def accept_features(self, features: int) -> bool:
        """Take the driver's choice; False if it took a bit that was not offered (virtio 1.3, 2.2.2, 3.1.1)."""
        fine = not features & ~self.offered_features()
        self.features = features
        self._seen_driver = False
        self.features_accepted()
        if self.hooks is not None:
            self.hooks.features_accepted(features)
        return fine

    def offer(self, features: int) -> None:
        """Offer more features of rings and transports, such as RING_PACKED; to be called before a driver looks."""
        self._offered |= features

    def has(self, feature: int) -> bool:
        """Whether a feature bit was negotiated."""
        return bool(self.features >> feature & 1)

    def read_config(self, offset: int, size: int) -> bytes:
        """Serve a read of configuration space; bytes beyond its end are zero."""
        config = self.config
        if self.hooks is not None:
            config = self.hooks.config(bytearray(config), offset, size)
        return bytes(config[offset:offset + size]).ljust(size, b"\0")

    def read_generation(self) -> int:
        """Configuration generation, for transports that show one."""
        return self.config_generation if self.hooks is None else self.hooks.generation(self.config_generation)

    def write_config(self, offset: int, data: bytes) -> None:
        """Take a write to configuration space; what is read-only stays as it is."""
        if self.hooks is not None:
            self.hooks.config_written(offset, data)
        self.config_written(offset, data)

    def start_queue(self, index: int, dma: Dma, *, size: int, desc: int, driver: int, device: int,
                    interrupt: Callable[[], None], base: int = 0) -> None:
        """Take a queue over; an illegal one stays stopped, and the broken rule goes to `violations`."""
        queue = self.queues[index]
        try:
            queue.start(dma, size, desc, driver, device, features=self.features, interrupt=interrupt, base=base)
        except DriverError as error:
            self.report(error)
            return
        self.log(f"queue {index} started, size {size}")
        self.queue_started(queue)
        if self.hooks is not None:
            self.hooks.queue_started(queue)

    def stop_queue(self, index: int) -> int:
        """Give a queue back; return the index from which it could go on."""
        queue = self.queues[index]
        if queue.started:
            if self.hooks is not None:
                self.hooks.queue_stopping(queue)
            self.queue_stopped(queue)
            self.log(f"queue {index} stopped")
        return queue.stop()

    def driver_ok(self) -> None:
        """The driver is ready."""
        if not self._seen_driver:
            self._seen_driver = True
            self.driver_ready()
            if self.hooks is not None:
                self.hooks.driver_ok()

    def reset(self) -> None:
        """Forget the driver."""
        for queue in self.queues:
            self.stop_queue(queue.index)
        self.features = 0
        self._seen_driver = False

    def notify(self, index: int, data: int | None = None) -> bool:
        """The driver says that a queue has something; return True if there is more than one turn could do.

        `data` comes with NOTIFICATION_DATA (2.9). It is looked at, and not relied on: the ring says the same.
        """
        if index >= len(self.queues):
            return False
        queue = self.queues[index]
        if queue.ring is None:
            return False
        if data is not None and not queue.ring.could_be_next(data >> 16):
            self.report(DriverError("a notification says where the next descriptor goes", spec="2.9",
                                    detail=f"{data:#x} for queue {index}"))
        if not self._seen_driver:
            self.driver_ok()
        if self.hooks is not None:
            self.hooks.notified(queue)
        return self.pump(queue)

    def pump(self, queue: DeviceQueue) -> bool:
        """Serve a queue, also when it was not the driver that gave a reason to; return as `notify` does.

        Before the driver is ready nothing of it is used (virtio 1.3, 3.1.1).
        """
        if queue.ring is None or not self._seen_driver:
            return False
        try:
            more = self.available(queue)
        except DriverError as error:
            queue.broken = error
            self.report(error)
            more = False
        except DmaFault as error:
            # The driver named memory that it never shared. As for any broken rule, this queue is dead.
            queue.broken = DriverError("a descriptor names shared memory", spec="2.7.5", detail=str(error))
            self.report(queue.broken)
            more = False
        self.flush(queue)
        return more

    @property
    def queue_count(self) -> int:
        """How many queues the device has."""
        return len(self.queues)

    def pending(self, index: int) -> bool:
        """Whether a started queue has chains that were not taken yet."""
        ring = self.queues[index].ring
        return ring is not None and ring.pending()

    def close(self) -> None:
        """Give back what the device itself holds: files, sockets."""

    def pollable(self) -> dict[int, Callable[[], None]]:
        """File descriptors that the transport shall wait for, and what to call when one is readable."""
        return {}

    @property
    def device_memory(self) -> tuple[int, memoryview] | None:
        """Memory of the device's own that the platform shows to the guest, and at which address; None without."""
        return None

    @property
    def device_memory_file(self) -> int | None:
        """A file whose bytes, from its beginning on, are that memory, for whoever would map it; None without."""
        return None

    def queue_role(self, index: int) -> str:  # noqa: ARG002 - for overriding
        """What a queue is for, in one word, such as ``rx``; by default all of them take ``requests``."""
        return "requests"

    def host_action(self, action: str) -> None:
        """Do what an honest host may do at any time, by name; a type of device ignores what it does not know."""

    # What a device type provides.

    @abstractmethod
    def handle(self, queue: DeviceQueue, chain: Chain) -> None:
        """Serve one request, and give it back by `complete` now or later."""

    def available(self, queue: DeviceQueue) -> bool:
        """Serve what is available, one queue's length at most; return whether more may be left.

        Queues that wait for something from outside, such as a receive queue, override it.
        """
        ring = queue.ring
        if ring is None:
            return False
        budget = ring.size
        take = queue.pop if self.hooks is None else functools.partial(self.take, queue)
        ring.suppress_kicks()
        while budget:
            chain = take()
            if chain is None:
                if queue.broken is not None or queue.ring is None or ring.arm_kick():
                    return False
                continue
            budget -= 1
            self.handle(queue, chain)
        return True

    def features_accepted(self) -> None:
        """`features` was set."""

    def queue_started(self, queue: DeviceQueue) -> None:
        """A queue is there; the driver is not ready yet."""

    def queue_stopped(self, queue: DeviceQueue) -> None:
        """A queue is about to go; chains taken from it must not be touched again."""

    def driver_ready(self) -> None:
        """The driver is ready to be talked to."""

    def config_written(self, offset: int, data: bytes) -> None:
        """The driver wrote configuration space; by default all of it is read-only."""

    # What device types call.

    def take(self, queue: DeviceQueue) -> Chain | None:
        """Take a chain that is to be served now; None if there is none."""
        chain = queue.pop()
        if self.hooks is not None:
            while chain is not None and not self.hooks.popped(queue, chain):
                chain = queue.pop()
        return chain

    def take_buffer(self, queue: DeviceQueue, least: int = 1) -> Chain | None:
        """Take a buffer for something from outside; where there is none, have the driver notify when there is.

        Raises:
            DriverError: fewer than `least` bytes of it can be written.

        """
        while True:
            chain = self.take(queue)
            if chain is not None:
                if chain.writable_size < least:
                    raise DriverError("a receive buffer has room for a header, or a byte", spec="5.1.6.3.1, 5.3.6.1",
                                      detail=repr(chain))
                return chain
            if queue.broken is not None or queue.ring is None or queue.ring.arm_kick():
                return None

    def respond(self, queue: DeviceQueue, chain: Chain, data: bytes) -> int:
        """Write a response from the start of the writable part on; return the bytes written."""
        if self.hooks is not None:
            data = self.hooks.response(queue, chain, data)
        return chain.write(data)

    def complete(self, queue: DeviceQueue, chain: Chain, length: int) -> None:
        """Give a chain back with `length` bytes written; `flush` shows it."""
        if self.hooks is None:
            queue.push(chain.head, length)
        else:
            for head, claimed in self.hooks.used(queue, chain, length):
                queue.push(head, claimed)

    def flush(self, queue: DeviceQueue) -> None:
        """Show the driver what was completed, and interrupt it if it wants that."""
        if not queue.unpublished:
            return
        wanted = queue.publish()
        if self.hooks is not None:
            self.hooks.published(queue)
            wanted = self.hooks.interrupt(queue, wanted)
        if wanted:
            queue.interrupt()

    def config_changed(self) -> None:
        """`config` changed: tell the driver."""
        self.config_generation = (self.config_generation + 1) & 0xFF
        self.config_interrupt()

    def report(self, error: DriverError) -> None:
        """Keep a broken rule."""
        self.log(f"driver error: {error}")
        if len(self.violations) < 100:
            self.violations.append(error)

    def log(self, line: str) -> None:
        """Add a line to the transcript, if one is kept."""
        if self.trace is not None:
            self.trace(line)
        if self.hooks is not None:
            self.hooks.logged(line)

