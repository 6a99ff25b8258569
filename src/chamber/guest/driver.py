"""What every virtio driver does: negotiation, configuration, queues, and the order of beginning and end."""

from __future__ import annotations

from abc import ABC, abstractmethod
from functools import partial
from typing import TYPE_CHECKING, ClassVar, Final

from chamber.guest.dma import Buffer
from chamber.guest.packed import PackedQueue
from chamber.guest.split import SplitQueue
from chamber.guest.untrusted import DeviceViolation
from chamber.guest.virtqueue import QueueDead, Request
from chamber.wire.virtio import Feature, Status, bit

if TYPE_CHECKING:
    from chamber.guest.machine import GuestMachine
    from chamber.guest.untrusted import Untrusted
    from chamber.guest.virtqueue import VirtQueue
    from chamber.platform.heap import Object
    from chamber.platform.transport import Transport
    from chamber.wire.layout import Layout
    from chamber.wire.virtio import DeviceType

__all__ = ("DeviceTimeout", "Refused", "VirtioDriver")

_CONFIG_VECTOR: Final = 0
_GENERATION_TRIES: Final = 8
_ALIVE: Final = 0x6F6B
REQUEST_SECONDS: Final = 2.0
"""Virtual seconds after which a request is given up."""


class Refused(Exception):
    """The driver does not take the device, or a request; the reason is clean and not a broken rule."""


class DeviceTimeout(Exception):
    """The device did not answer in time."""


class VirtioDriver(ABC):
    """A driver and its device, from `probe` to `remove`.

    Attributes:
        type: the device type that it drives.
        known: features that the driver can handle.
        allowed: features that a filtering guest accepts, fewer.
        violations: rules that the device broke and the driver noticed.
        admin: number of the queue for administration commands, if the driver is the owner of others and has one.

    """

    type: ClassVar[DeviceType]
    known: ClassVar[int]
    allowed: ClassVar[int]
    config_layout: ClassVar[Layout]

    def __init__(self, machine: GuestMachine, transport: Transport) -> None:
        self.machine = machine
        self.admin: int | None = None
        self._more = 0
        self.transport = transport
        self.checks = machine.checks
        self.features = 0
        self.queues: dict[int, VirtQueue] = {}
        self.violations: list[DeviceViolation] = []
        self.state: Object | None = None
        self._ready = False
        self._unanswered: list[Request] = []

    def own_others(self) -> None:
        """Be, from the next probe on, the driver of a device that owns others, if it has a queue for commands."""
        self._more = bit(Feature.ADMIN_VQ)

    # The life of a driver.

    def probe(self) -> None:
        """Take the device.

        Raises:
            DeviceViolation: the device broke a rule.
            Refused: the driver can't or won't use such a device.

        """
        transport = self.transport
        transport.write_status(Status.RESET)
        transport.write_status(Status.ACKNOWLEDGE)
        self.checks.number(transport.device_type()).equals(self.type, "the device is what the guest expects", "5")
        transport.write_status(Status.ACKNOWLEDGE | Status.DRIVER)
        self._negotiate()
        self.state = self.machine.heap.alloc(64, f"{self.type.short} driver state", track=True)
        if self.machine.profile.ordered:
            self._initialise()
            self._make_queues()
            self._become_ready()
            self._listen()
        else:
            # As drivers did that set their queues up before their own locks and lists.
            self._make_queues()
            self._listen()
            self.machine.interrupts.deliver()
            self._initialise()
            self._become_ready()
        self.started()

    def remove(self) -> None:
        """Give the device back."""
        self.machine.interrupts.deliver()
        if self.machine.profile.ordered:
            self._deafen()
            self.transport.write_status(Status.RESET)
            self._free()
        else:
            self._free()
            self.transport.write_status(Status.RESET)
            self.machine.interrupts.deliver()
            self._deafen()

    def shutdown(self) -> None:
        """The guest goes down, and its memory to whoever comes next: the device must not touch it any more."""
        if self.machine.profile.ordered:
            self._deafen()
            self.transport.write_status(Status.RESET)
        self._free()

    def _negotiate(self) -> None:
        transport = self.transport
        offered = self.checks.number(transport.read_features()).masked((1 << 64) - 1)
        accept = offered & ((self.allowed if self.machine.profile.filtered else self.known) | self._more)
        self.checks.require(bool(offered >> Feature.VERSION_1 & 1), "the device offers VERSION_1", "6.1")
        transport.write_features(accept)
        transport.write_status(Status.ACKNOWLEDGE | Status.DRIVER | Status.FEATURES_OK)
        status = self.checks.number(transport.read_status()).masked(0xFF)
        if not status & Status.FEATURES_OK:
            raise Refused("the device does not accept its own features")
        self.features = accept

    def _initialise(self) -> None:
        assert self.state is not None
        self.state.write(_ALIVE.to_bytes(8, "little"))
        self.initialise()

    def _make_queues(self) -> None:
        if self.has(Feature.ADMIN_VQ):
            self.admin = self.transport.admin_queue()
        for index in (*self.queue_indexes(), *(() if self.admin is None else (self.admin,))):
            self.queues[index] = self._make_queue(index)
            if not self.machine.profile.ordered:
                self._listen_to(index)
            self.transport.setup_queue(index, self.queues[index].size, *self.queues[index].areas)

    def _make_queue(self, index: int) -> VirtQueue:
        most = self.checks.number(self.transport.queue_size_max(index)).between(
            1, 32768, "a queue that the driver needs exists", "4.1.4.3")
        size = min(most, self.machine.queue_size)
        make: type[VirtQueue] = PackedQueue
        if not self.has(Feature.RING_PACKED):
            make = SplitQueue
            size = 1 << size.bit_length() - 1 if size else 0  # only a power of 2 will do (2.7)
        return make(index, size, self.machine.dma, self.machine.profile, self.checks, self.machine.scheduler,
                    features=self.features)

    def reset_queue(self, index: int) -> None:
        """Take a single queue back and hand it over anew, with all that was lent through it (2.6.1).

        What a driver had given up waiting for is freed: the device has it no more.

        Raises:
            Refused: RING_RESET was not negotiated.

        """
        if not self.has(Feature.RING_RESET):
            raise Refused("the device does not reset single queues")
        self.transport.reset_queue(index)
        lent = self.queues[index].cancel()
        self.queues[index].destroy()
        queue = self.queues[index] = self._make_queue(index)
        self.transport.setup_queue(index, queue.size, *queue.areas)
        for request in lent:
            if request in self._unanswered:
                self._unanswered.remove(request)
                self._discard(request)
            else:
                queue.add(request)
        self.kick(queue)

    def _discard(self, request: Request) -> None:
        for memory in (request.record, *(b.memory for b in (*request.readable, *request.writable))):
            self.machine.heap.free(memory)

    def _become_ready(self) -> None:
        for queue in self.queues.values():
            queue.require_untouched()
        self._ready = True
        self.transport.write_status(Status.ACKNOWLEDGE | Status.DRIVER | Status.FEATURES_OK | Status.DRIVER_OK)

    def _listen(self) -> None:
        self.machine.interrupts.attach(_CONFIG_VECTOR, self._config_interrupt)
        for index in self.queues:
            self._listen_to(index)

    def _listen_to(self, index: int) -> None:
        self.machine.interrupts.attach(1 + index, partial(self._queue_interrupt, index))

    def _deafen(self) -> None:
        for vector in (_CONFIG_VECTOR, *(1 + index for index in self.queues)):
            self.machine.interrupts.detach(vector)
        self._ready = False

    def _free(self) -> None:
        self.free_buffers()
        for queue in self.queues.values():
            queue.destroy()
        for request in self._unanswered:
            self._discard(request)
        self._unanswered = []
        if self.state is not None:
            self.machine.heap.free(self.state)
        if self.machine.profile.ordered:
            self.queues = {}
            self.state = None

    def _queue_interrupt(self, index: int) -> None:
        assert self.state is not None
        self.state.read(0, 8)  # every handler takes the driver's lock first
        try:
            self.used(self.queues[index])
        except DeviceViolation as violation:
            self.violations.append(violation)

    def _config_interrupt(self) -> None:
        assert self.state is not None
        self.state.read(0, 8)
        try:
            self.config_changed()
        except DeviceViolation as violation:
            self.violations.append(violation)

    # What a device type provides.

    @abstractmethod
    def queue_indexes(self) -> list[int]:
        """Queues to set up."""

    @abstractmethod
    def initialise(self) -> None:
        """Prepare the driver's own data, before anything comes from the device."""

    def started(self) -> None:
        """The device is ready: fill receive queues, announce, ask."""

    def used(self, queue: VirtQueue) -> None:
        """A queue has something: take requests back."""
        while queue.get() is not None:
            pass

    def config_changed(self) -> None:
        """Configuration changed."""

    def free_buffers(self) -> None:
        """Free what was lent."""

    # What drivers call.

    def has(self, feature: int) -> bool:
        """Whether a feature was negotiated."""
        return bool(self.features >> feature & 1)

    def read_config(self, name: str) -> Untrusted[int]:
        """Read one field of configuration space, each byte once, the same generation before and after.

        Raises:
            DeviceViolation: the generation never settles.

        """
        layout_field = self.config_layout[name]
        for _ in range(_GENERATION_TRIES):
            before = self.transport.read_generation()
            data = self.transport.read_config(layout_field.offset, layout_field.size)
            if self.transport.read_generation() == before:
                return self.checks.number(int.from_bytes(data, "little"))
        raise DeviceViolation("configuration settles between two changes", "2.5.1",
                              f"{_GENERATION_TRIES} generations in a row")

    def read_config_bytes(self, name: str) -> Untrusted[bytes]:
        """Read a field of raw bytes."""
        layout_field = self.config_layout[name]
        return self.checks.content(self.transport.read_config(layout_field.offset, layout_field.size))

    def lend(self, queue: VirtQueue, readable: list[Object], writable: list[Object],
             status: Object | None = None) -> Request:
        """Make objects available to the device as one request; `status` ends it, and is seen as it is."""
        record = self.machine.heap.alloc(32, "request", zero=True)
        request = Request(record, [Buffer.whole(m) for m in readable], [Buffer.whole(m) for m in writable])
        if status is not None:
            request.writable.append(Buffer(status, 0, status.size, preset=True))
        try:
            queue.add(request)
        except Exception:
            self.machine.heap.free(record)
            raise
        return request

    def kick(self, queue: VirtQueue) -> None:
        """Notify the device, if it wants that."""
        if queue.kick():
            self.transport.notify(queue.index, queue.notification_data if self.has(Feature.NOTIFICATION_DATA) else None)

    def transact(self, queue: VirtQueue, readable: list[Object], writable: list[Object],
                 status: Object | None = None) -> int:
        """Have the device handle one request; return the bytes that it wrote. `release` frees the objects.

        Raises:
            DeviceViolation: the queue was latched meanwhile.
            DeviceTimeout: no answer.

        """
        request = self.lend(queue, readable, writable, status)
        self.kick(queue)
        self.machine.wait(lambda: request.done or queue.broken is not None, REQUEST_SECONDS)
        if not request.done:
            if self.machine.profile.ordered:
                self._unanswered.append(request)
            if queue.broken is not None:
                raise queue.broken
            raise DeviceTimeout(f"queue {queue.index} does not answer")
        self.machine.heap.free(request.record)
        return request.written

    def release(self, *memories: Object) -> None:
        """Free what was lent by `transact`; what the device still has, only after it was reset."""
        kept = {buffer.memory for request in self._unanswered for buffer in (*request.readable, *request.writable)}
        for memory in memories:
            if memory not in kept:
                self.machine.heap.free(memory)

    def queue(self, index: int) -> VirtQueue:
        """Return a queue that is alive.

        Raises:
            QueueDead: it was latched.

        """
        queue = self.queues[index]
        if queue.broken is not None:
            raise QueueDead(str(queue.broken))
        return queue


TRANSPORT_FEATURES: Final = bit(
    Feature.VERSION_1, Feature.ACCESS_PLATFORM, Feature.RING_INDIRECT_DESC, Feature.RING_EVENT_IDX,
    Feature.RING_PACKED, Feature.IN_ORDER, Feature.NOTIFICATION_DATA, Feature.RING_RESET)
"""What the ring code handles; the addresses in it are always those that the bounce pool, or the platform, gives."""
