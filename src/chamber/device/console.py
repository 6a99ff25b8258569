"""Console device (virtio 1.3, 5.3)."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, ClassVar, Final

from chamber.device.base import Device
from chamber.device.errors import DriverError
from chamber.device.port import Port
from chamber.wire.console import (
    CONFIG,
    CONTROL,
    CONTROL_RX_QUEUE,
    CONTROL_TX_QUEUE,
    RESIZE,
    ConsoleEvent,
    ConsoleFeature,
    port_of_queue,
    rx_queue,
)
from chamber.wire.virtio import DeviceType, bit

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from chamber.device.chain import Chain
    from chamber.device.hooks import Hooks
    from chamber.device.queue import DeviceQueue

__all__ = ("EXTRA_PORT", "ConsoleDevice")

EXTRA_PORT: Final = "chamber.extra"
"""Name of the port that the host action ``plug`` adds; it echoes."""

_DEFAULT: Final = bit(ConsoleFeature.SIZE, ConsoleFeature.MULTIPORT, ConsoleFeature.EMERG_WRITE)
_EMERG_WR: Final = CONFIG["emerg_wr"].offset
_EMERGENCY_LIMIT: Final = 4096
_CONTROL_LIMIT: Final = 1024
"""Control messages that wait for buffers: a driver that asks and never listens shall not fill the host's memory."""
_WRITE_LIMIT: Final = 1 << 20
"""Bytes taken of one transmit buffer: a driver can claim terabytes by naming the same page again and again."""


class ConsoleDevice(Device):
    """A console with named ports, added and removed at run time.

    Args:
        ports: from id 0 on; by default one console that echoes.
        max_ports: how many there can be.
        cols: width of the console in characters.
        rows: its height.
        features: feature bits to offer instead of SIZE, MULTIPORT and EMERG_WRITE; only port 0 works without MULTIPORT.
        config: fields of configuration space to set otherwise, by name.
        queue_size: descriptors per queue.
        hooks: interference, if any; control messages and input are responses.

    Attributes:
        ports: what is there, by id.
        emergency: what the driver printed through emerg_wr, the last 4 KiB.

    """

    type: ClassVar[DeviceType] = DeviceType.CONSOLE

    def __init__(self, ports: Sequence[Port] | None = None, *, max_ports: int = 4, cols: int = 80, rows: int = 25,
                 features: int | None = None, config: Mapping[str, int | bytes] | None = None, queue_size: int = 128,
                 hooks: Hooks | None = None) -> None:
        values: dict[str, int | bytes] = {"cols": cols, "rows": rows, "max_nr_ports": max_ports, **(config or {})}
        self.max_ports = max_ports
        self.ports: dict[int, Port] = {}
        self.emergency = bytearray()
        self._control: deque[bytes] = deque()
        self._driver_ready = False
        super().__init__(features=_DEFAULT if features is None else features, config=CONFIG.pack(**values),
                         queues=2 + 2 * max_ports, queue_size=queue_size, hooks=hooks)
        for port in (Port(console=True),) if ports is None else ports:
            self.add_port(port)

    def queue_role(self, index: int) -> str:
        """``rx``, ``tx``, ``control`` (to the driver) or ``control-tx`` (5.3.2)."""
        role = "tx" if index % 2 else "rx"
        return {CONTROL_RX_QUEUE: "control", CONTROL_TX_QUEUE: "control-tx"}.get(index, role)

    def close(self) -> None:
        """Close all ports' back ends."""
        for port in self.ports.values():
            port.backend.close()

    def pollable(self) -> dict[int, Callable[[], None]]:
        """What the ports wait for."""
        return {fd: call for port in self.ports.values() for fd, call in port.backend.pollable(port).items()}

    # What the host does.

    def add_port(self, port: Port) -> int:
        """Plug a port in, also while the guest runs; return its id.

        Raises:
            ValueError: there are max_ports already.

        """
        for ident in range(self.max_ports):
            if ident not in self.ports:
                break
        else:
            raise ValueError(f"a console device has at most {self.max_ports} ports")
        port.id = ident
        port.wake = lambda: self._wake(port)
        self.ports[ident] = port
        if self._driver_ready:
            self._tell(ident, ConsoleEvent.DEVICE_ADD)
        return ident

    def remove_port(self, ident: int) -> None:
        """Unplug a port, also while the guest runs, and close its back end.

        Raises:
            KeyError: there is no such port.

        """
        port = self.ports.pop(ident)
        port.wake = lambda: None
        port.forget_guest()
        port.backend.close()
        if self._driver_ready:
            self._tell(ident, ConsoleEvent.DEVICE_REMOVE)

    def open_port(self, ident: int, *, is_open: bool = True) -> None:
        """Open or close the host's end of a port, and tell the guest.

        Raises:
            KeyError: there is no such port.

        """
        port = self.ports[ident]
        port.host_open = is_open
        if port.ready:
            self._tell(ident, ConsoleEvent.PORT_OPEN, is_open)

    def resize(self, cols: int, rows: int) -> None:
        """Change the size of the console, in characters."""
        CONFIG.put(self.config, "cols", cols)
        CONFIG.put(self.config, "rows", rows)
        self.config_changed()
        for port in self.ports.values():
            if port.ready and port.console:
                self._tell_size(port)

    def host_action(self, action: str) -> None:
        """Plug or unplug a further port, hang up port 1 and take it up again, or change the console's size.

        The actions are ``plug``, ``unplug``, ``hangup`` and ``resize``; one that has nothing to act on does nothing.
        """
        extra = next((port.id for port in self.ports.values() if port.name == EXTRA_PORT), None)
        if action == "plug" and extra is None and len(self.ports) < self.max_ports:
            self.add_port(Port(EXTRA_PORT))
        elif action == "unplug" and extra is not None:
            self.remove_port(extra)
        elif action == "hangup" and 1 in self.ports:
            self.open_port(1, is_open=False)
            self.open_port(1)
        elif action == "resize" and self.has(ConsoleFeature.SIZE):
            # Turned on its side, so that each time is a change.
            self.resize(CONFIG.get(self.config, "rows"), CONFIG.get(self.config, "cols"))

    # What the driver causes.

    def driver_ready(self) -> None:
        """Deliver what waited for the driver."""
        for port in self.ports.values():
            self._wake(port)

    def queue_stopped(self, queue: DeviceQueue) -> None:
        """Forget what the driver said over the queue; it starts over when the queue does."""
        ident = port_of_queue(queue.index)
        if ident is None:
            self._control.clear()
            self._driver_ready = False
        elif ident in self.ports:
            self.ports[ident].forget_guest()

    def config_written(self, offset: int, data: bytes) -> None:
        """Take a character of an emergency; nothing else can be written (5.3.4, 5.3.5)."""
        at = _EMERG_WR - offset
        if 0 <= at < len(data) and self._offered >> ConsoleFeature.EMERG_WRITE & 1:
            self.emergency = (self.emergency + data[at:at + 1])[-_EMERGENCY_LIMIT:]

    def available(self, queue: DeviceQueue) -> bool:
        """Serve a queue: receive queues take as many buffers as there is data for, others all."""
        if queue.index == CONTROL_RX_QUEUE:
            self._serve_control(queue)
            return False
        if queue.index % 2 == 0:
            port = self.ports.get(port_of_queue(queue.index) or 0)
            if port is not None:
                self._serve_input(queue, port)
            return False
        return super().available(queue)

    def handle(self, queue: DeviceQueue, chain: Chain) -> None:
        """Take what the driver sent on a transmit queue."""
        if queue.index == CONTROL_TX_QUEUE:
            self._hear(chain.read(0, CONTROL.size))
            self.complete(queue, chain, 0)
            return
        data = chain.read(0, _WRITE_LIMIT)
        # Given back first: what the guest wrote is used up before an answer to it arrives.
        self.complete(queue, chain, 0)
        port = self.ports.get(port_of_queue(queue.index) or 0)
        if port is not None and data:
            port.backend.received(port, data)

    def _serve_control(self, queue: DeviceQueue) -> None:
        while self._control:
            chain = self.take_buffer(queue)
            if chain is None:
                return
            self.complete(queue, chain, self.respond(queue, chain, self._control.popleft()))

    def _serve_input(self, queue: DeviceQueue, port: Port) -> None:
        while port.waiting and (port.guest_open or port.console or not self.has(ConsoleFeature.MULTIPORT)):
            chain = self.take_buffer(queue)
            if chain is None:
                return
            room = chain.writable_size
            data = bytes(port.waiting[:room])
            del port.waiting[:room]
            self.complete(queue, chain, self.respond(queue, chain, data))

    def _wake(self, port: Port) -> None:
        self.pump(self.queues[rx_queue(port.id)])

    def _tell(self, ident: int, event: ConsoleEvent, value: int = 1, extra: bytes = b"") -> None:
        """Send a control message when the driver has a buffer for it."""
        if not self.has(ConsoleFeature.MULTIPORT):
            return
        if len(self._control) >= _CONTROL_LIMIT:
            self.report(DriverError("the control queue has buffers to receive", spec="5.3.6.2.2"))
            return
        self.log(f"control message to the driver: port {ident}, {event.name} {int(value)}")
        self._control.append(bytes(CONTROL.pack(id=ident, event=event, value=value)) + extra)
        self.pump(self.queues[CONTROL_RX_QUEUE])

    def _tell_size(self, port: Port) -> None:
        if self.has(ConsoleFeature.SIZE):
            self._tell(port.id, ConsoleEvent.RESIZE, extra=bytes(RESIZE.pack(
                cols=CONFIG.get(self.config, "cols"), rows=CONFIG.get(self.config, "rows"))))

    def _hear(self, message: bytes) -> None:
        """Act on a control message of the driver."""
        if len(message) < CONTROL.size or not self.has(ConsoleFeature.MULTIPORT):
            self.report(DriverError("a control message is 8 bytes, under MULTIPORT", spec="5.3.6.2",
                                    detail=f"{len(message)} bytes"))
            return
        ident, event, value = CONTROL.unpack(message).values()
        self.log(f"control message from the driver: port {ident}, event {event}, value {value}")
        if event == ConsoleEvent.DEVICE_READY:
            self._driver_ready = bool(value)
            if value:
                for known in sorted(self.ports):
                    self._tell(known, ConsoleEvent.DEVICE_ADD)
            return
        port = self.ports.get(ident)
        if port is None or event not in {ConsoleEvent.PORT_READY, ConsoleEvent.PORT_OPEN}:
            self.report(DriverError("the driver says DEVICE_READY, or PORT_READY or PORT_OPEN of a port that exists",
                                    spec="5.3.6.2", detail=f"port {ident}, event {event}"))
        elif event == ConsoleEvent.PORT_READY:
            port.ready = bool(value)
            if value:
                self._introduce(port)
        else:
            port.guest_open = bool(value)
            port.backend.opened(port, port.guest_open)
            if value:
                self._wake(port)
            else:
                port.waiting.clear()

    def _introduce(self, port: Port) -> None:
        """Say what a port is, now that the driver can use it."""
        if port.console:
            self._tell(port.id, ConsoleEvent.CONSOLE_PORT)
            self._tell_size(port)
        if port.name:
            self._tell(port.id, ConsoleEvent.PORT_NAME, extra=port.name.encode())
        if port.host_open:
            self._tell(port.id, ConsoleEvent.PORT_OPEN)
