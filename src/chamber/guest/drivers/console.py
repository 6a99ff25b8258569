"""Console driver with ports that come and go (virtio 1.3, 5.3)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from chamber.guest.driver import REQUEST_SECONDS, TRANSPORT_FEATURES, DeviceTimeout, Refused, VirtioDriver
from chamber.wire.console import (
    CONFIG,
    CONTROL,
    CONTROL_RX_QUEUE,
    CONTROL_TX_QUEUE,
    ConsoleEvent,
    ConsoleFeature,
    port_of_queue,
    rx_queue,
    tx_queue,
)
from chamber.wire.virtio import DeviceType, bit

if TYPE_CHECKING:
    from chamber.guest.machine import GuestMachine
    from chamber.guest.untrusted import DeviceViolation
    from chamber.guest.virtqueue import Request, VirtQueue
    from chamber.platform.heap import Object
    from chamber.platform.transport import Transport

__all__ = ("ConsoleDriver", "ConsolePort")

_PORTS: Final = 4
"""Ports that this guest has use for; the device may offer more."""
_BUFFERS: Final = 4
_INPUT: Final = 512
_NAME: Final = 64
_CONTROL_SIZE: Final = CONTROL.size + _NAME


@dataclass(slots=True, eq=False)
class ConsolePort:
    """A port as the guest knows it.

    Attributes:
        ident: its number.
        memory: the driver's own note of it, freed when the port is removed.
        name: what the device calls it.
        console: it shall be a console.
        open_by_host: somebody is at the other end.
        received: bytes that nobody took yet.

    """

    ident: int
    memory: Object
    name: str = ""
    console: bool = False
    open_by_host: bool = False
    received: bytearray = field(default_factory=bytearray)


class ConsoleDriver(VirtioDriver):
    """Ports by name, bytes both ways."""

    type = DeviceType.CONSOLE
    known = TRANSPORT_FEATURES | bit(ConsoleFeature.SIZE, ConsoleFeature.MULTIPORT)
    allowed = TRANSPORT_FEATURES | bit(ConsoleFeature.MULTIPORT)
    config_layout = CONFIG

    def __init__(self, machine: GuestMachine, transport: Transport) -> None:
        super().__init__(machine, transport)
        self._count = 0
        self._table: Object | None = None
        self._ports: dict[int, ConsolePort] = {}
        self._known: dict[int, ConsolePort] = {}
        self._lent: dict[Request, tuple[VirtQueue, Object]] = {}

    def queue_indexes(self) -> list[int]:
        """Control queues and those of the ports; without MULTIPORT those of port 0."""
        if not self.has(ConsoleFeature.MULTIPORT):
            return [rx_queue(0), tx_queue(0)]
        self._learn_ports()
        return sorted([CONTROL_RX_QUEUE, CONTROL_TX_QUEUE, *(queue(p) for p in range(min(self._count, _PORTS))
                                                            for queue in (rx_queue, tx_queue))])

    def _learn_ports(self) -> None:
        """Read how many ports there may be, once for each probe."""
        if not self.has(ConsoleFeature.MULTIPORT):
            self._count = 1
        elif not self._count:
            offered = self.read_config("max_nr_ports").between(
                1, 32767, "there is a port, and a queue for each", "5.3.4")
            self._count = min(offered, _PORTS) if self.checks.enforcing else offered

    def initialise(self) -> None:
        """Make the table of ports; it has room for as many as the device says there are."""
        self._learn_ports()
        self._table = self.machine.heap.alloc(8 * self._count, "port table", zero=True)
        self._ports.clear()
        self._known.clear()

    def started(self) -> None:
        """Lend buffers for control messages and say that the driver is there."""
        if self.has(ConsoleFeature.MULTIPORT):
            self._fill(self.queues[CONTROL_RX_QUEUE], _CONTROL_SIZE)
            self._tell(0xFFFFFFFF, ConsoleEvent.DEVICE_READY, 1)
        else:
            self._add_port(0)

    def _fill(self, queue: VirtQueue, size: int) -> None:
        while queue.outstanding < _BUFFERS:
            self._lend(queue, self.machine.heap.alloc(size, "console buffer"))
        self.kick(queue)

    def _lend(self, queue: VirtQueue, buffer: Object) -> None:
        request = self.lend(queue, [], [buffer])
        self._lent[request] = (queue, buffer)

    def used(self, queue: VirtQueue) -> None:
        """Take what came in: control messages, or bytes of a port."""
        while (request := queue.get()) is not None:
            if request not in self._lent:
                continue  # something sent came back; whoever waits for it frees it
            _, buffer = self._lent.pop(request)
            self.machine.heap.free(request.record)
            if queue.index == CONTROL_RX_QUEUE:
                self._control(buffer, request.written)
            else:
                self._input(queue, buffer, request.written)
            self._lend(queue, buffer)
            self.kick(queue)

    # Control messages.

    def _control(self, buffer: Object, written: int) -> None:
        extra = self.checks.number(written).minus(
            CONTROL.size, _CONTROL_SIZE, "a control message is 8 bytes at least", "5.3.6.2")
        message = buffer.read(0, CONTROL.size)
        ident = self.checks.number(CONTROL.get(message, "id"))
        event = self.checks.number(CONTROL.get(message, "event")).one_of(
            tuple(ConsoleEvent), "an event is one of those defined", "5.3.6.2")
        value = self.checks.number(CONTROL.get(message, "value")).masked(1)
        number = ident.index(self._count, "a port is below max_nr_ports", "5.3.6.2")
        if event == ConsoleEvent.DEVICE_ADD:
            if number < _PORTS:
                self.checks.require(number not in self._ports, "a port is added once", "5.3.6.2", str(number))
                self._add_port(number)
            return
        port = self._port(number)
        if event == ConsoleEvent.DEVICE_REMOVE:
            self._remove_port(port)
        elif event == ConsoleEvent.CONSOLE_PORT:
            port.console = True
            self._tell(number, ConsoleEvent.PORT_OPEN, 1)
        elif event == ConsoleEvent.PORT_OPEN:
            port.open_by_host = bool(value)
        elif event == ConsoleEvent.PORT_NAME:
            self.checks.require(0 < extra <= _NAME, "a name is not empty", "5.3.6.2", f"{extra} bytes")
            name = self.machine.heap.alloc(_NAME + 1, "port name", zero=True)
            name.write(buffer.read(CONTROL.size, extra))
            port.name = name.read(0, _NAME).rstrip(b"\0").decode("utf-8", errors="replace")
            self.machine.heap.free(name)

    def _port(self, number: int) -> ConsolePort:
        assert self._table is not None
        handle = self._table.get(8 * number, 8)
        self.checks.require(number in self._ports, "a message is about a port that was added", "5.3.6.2", str(number))
        if not handle:
            self.machine.heap.report("null pointer", "port of a control message", f"port {number}")
        port = self._known[handle]
        port.memory.read(0, 8)
        return port

    def _add_port(self, number: int) -> None:
        memory = self.machine.heap.alloc(64, "console port", zero=True)
        assert self._table is not None
        handle = len(self._known) + 1
        self._known[handle] = self._ports[number] = ConsolePort(number, memory)
        self._table.put(8 * number, 8, handle)
        self._fill(self.queues[rx_queue(number)], _INPUT)
        if self.has(ConsoleFeature.MULTIPORT):
            self._tell(number, ConsoleEvent.PORT_READY, 1)

    def _remove_port(self, port: ConsolePort) -> None:
        self._ports.pop(port.ident, None)
        self.machine.heap.free(port.memory)
        if self.checks.enforcing and self._table is not None:
            # Left out, the table goes on pointing to what was freed: harmless until the device names the port again.
            self._table.put(8 * port.ident, 8, 0)

    def _tell(self, ident: int, event: ConsoleEvent, value: int) -> None:
        message = self.machine.heap.alloc(CONTROL.size, "control message")
        message.write(bytes(CONTROL.pack(id=ident, event=event, value=value)))
        queue = self.queues[CONTROL_TX_QUEUE]
        request = self.lend(queue, [message], [])
        self.kick(queue)
        # Interrupts are off here, as the driver holds its lock; the queue is polled, but not for ever.
        for _ in range(_BUFFERS * 4):
            if request.done or queue.broken is not None:
                break
            taken = queue.get()
            if taken is None and not self.machine.scheduler.advance(self.machine.scheduler.now + REQUEST_SECONDS / 8):
                continue
        if not request.done:
            if queue.broken is not None:
                raise queue.broken
            raise DeviceTimeout("control messages are not taken")
        for memory in (request.record, message):
            self.machine.heap.free(memory)

    # Ports.

    def _input(self, queue: VirtQueue, buffer: Object, written: int) -> None:
        port = self._ports.get(port_of_queue(queue.index) or 0)
        if port is not None and port.memory.live:
            port.received += buffer.read(0, written)

    def wait_for(self, name: str) -> ConsolePort:
        """Wait for a port by its name.

        Raises:
            DeviceTimeout: none comes.

        """
        def there() -> bool:
            return self.broken is not None or any(p.name == name for p in self._ports.values())

        self.machine.wait(there, REQUEST_SECONDS)
        self.raise_if_broken()
        for port in self._ports.values():
            if port.name == name:
                return port
        raise DeviceTimeout(f"no port is named {name}")

    @property
    def broken(self) -> DeviceViolation | None:
        """What the device did to a queue of the driver, if it did."""
        return next((q.broken for q in self.queues.values() if q.broken is not None),
                    self.violations[0] if self.violations else None)

    def raise_if_broken(self) -> None:
        """Raise what the device did."""
        if self.broken is not None:
            raise self.broken

    def open(self, port: ConsolePort) -> None:
        """Say that somebody uses the port."""
        if self.has(ConsoleFeature.MULTIPORT):
            self._tell(port.ident, ConsoleEvent.PORT_OPEN, 1)

    def close(self, port: ConsolePort) -> None:
        """Say that nobody does any more."""
        if self.has(ConsoleFeature.MULTIPORT) and self._ports.get(port.ident) is port:
            self._tell(port.ident, ConsoleEvent.PORT_OPEN, 0)

    def send(self, port: ConsolePort, data: bytes) -> None:
        """Send bytes.

        Raises:
            Refused: the port is gone.

        """
        if self._ports.get(port.ident) is not port:
            raise Refused("the port is gone")
        port.memory.read(0, 8)
        buffer = self.machine.heap.alloc(len(data), "console output")
        buffer.write(data)
        try:
            self.transact(self.queue(tx_queue(port.ident)), [buffer], [])
        finally:
            self.release(buffer)

    def receive(self, port: ConsolePort, size: int) -> bytes:
        """Wait for so many bytes.

        Raises:
            DeviceTimeout: they don't come.

        """
        self.machine.wait(lambda: len(port.received) >= size or self.broken is not None, REQUEST_SECONDS)
        if len(port.received) < size:
            self.raise_if_broken()
            raise DeviceTimeout(f"{len(port.received)} of {size} bytes came")
        data = bytes(port.received[:size])
        del port.received[:size]
        return data

    def config_changed(self) -> None:
        """Take the size of the console, whatever it is."""
        if self.has(ConsoleFeature.SIZE):
            self.read_config("cols").masked(0xFFFF)
            self.read_config("rows").masked(0xFFFF)

    def free_buffers(self) -> None:
        """Free what was lent and known."""
        heap = self.machine.heap
        for request, (_, buffer) in self._lent.items():
            heap.free(request.record)
            heap.free(buffer)
        self._lent.clear()
        for port in self._ports.values():
            if port.memory.live:
                heap.free(port.memory)
        if self._table is not None:
            heap.free(self._table)
            self._table = None
        self._count = 0
