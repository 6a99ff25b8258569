"""Socket device (virtio 1.3, 5.10)."""

from __future__ import annotations

import random
from collections import deque
from functools import partial
from typing import TYPE_CHECKING, ClassVar, Final

from chamber.device.base import Device
from chamber.device.errors import DriverError
from chamber.device.vsock_connection import Connection, State
from chamber.device.vsock_service import CALL_PORT, ECHO_PORT, Caller, EchoEnd, Services
from chamber.wire.errors import WireError
from chamber.wire.virtio import DeviceType, bit
from chamber.wire.vsock import (
    CONFIG,
    EVENT,
    EVENT_QUEUE,
    HDR_SIZE,
    HOST_CID,
    PORT_ANY,
    RX_QUEUE,
    TX_QUEUE,
    Header,
    VsockEvent,
    VsockFeature,
    VsockOp,
    VsockType,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from chamber.device.chain import Chain
    from chamber.device.hooks import Hooks
    from chamber.device.queue import DeviceQueue
    from chamber.device.vsock_connection import HostEnd
    from chamber.device.vsock_service import Host

__all__ = ("GUEST_CID", "VsockDevice")

GUEST_CID: Final = 3
"""The guest's context id, unless another is given."""

_DEFAULT: Final = bit(VsockFeature.STREAM, VsockFeature.SEQPACKET, VsockFeature.NO_IMPLIED_STREAM)
_CONNECTIONS: Final = 1024
_PACKET: Final = 64 << 10
_RESETS: Final = 256
"""RST for connections that do not exist, waiting for buffers: a driver that never listens shall not fill memory."""
_HOST_PORTS: Final = range(1 << 30, 1 << 31)
_TICK: Final = 1.0
_ANSWER_TICKS: Final = 2
_GOODBYE_TICKS: Final = 8
_GONE: Final = 0.5
"""Seconds after which a driver that took its queues back is taken for gone; a front end that only changes its memory
table starts them again at once."""


class VsockDevice(Device):
    """Connects the guest's stream and seqpacket sockets with those of the host.

    Args:
        hosts: who on the host can be reached, asked in turn; by default an echo service on `ECHO_PORT`. Those who
            connect to the guest are among them.
        guest_cid: the guest's context id.
        features: feature bits to offer instead of all three.
        first_port: the host's port of the first connection that the host makes, from 2**30 on; by default any, as a
            host's kernel picks them. A guest remembers connections for a while that ended without its peer's word, and
            would take one of the same ports for those.
        queue_size: descriptors per queue.
        hooks: interference, if any; packets to the guest and events are responses.

    Attributes:
        connections: what is connected, by the guest's and the host's port.
        packet_limit: bytes of data in one packet to the guest, where its buffers are as large.

    """

    type: ClassVar[DeviceType] = DeviceType.VSOCK

    def __init__(self, hosts: Sequence[Host] | None = None, *, guest_cid: int = GUEST_CID, features: int | None = None,
                 first_port: int | None = None, queue_size: int = 256, hooks: Hooks | None = None) -> None:
        self.connections: dict[tuple[int, int], Connection] = {}
        self.packet_limit = _PACKET
        self._hosts = tuple(hosts) if hosts is not None else (Services({ECHO_PORT: EchoEnd}),)
        self._cid = guest_cid
        # Connections with something to send, in the order of their turns; a connection stands here once.
        self._ready: dict[Connection, None] = {}
        self._resets: deque[Header] = deque()
        self._events: list[VsockEvent] = []
        # A buffer that was taken and turned out not to be needed yet.
        self._spare: Chain | None = None
        self._busy = False
        self._clock: object | None = None
        if first_port is None:
            first_port = random.choice(_HOST_PORTS)  # noqa: S311 - no secret
        self._next_port = first_port - _HOST_PORTS.start
        super().__init__(features=_DEFAULT if features is None else features, config=CONFIG.pack(guest_cid=guest_cid),
                         queues=3, queue_size=queue_size, hooks=hooks)
        for host in self._hosts:
            host.attach(self.dial)

    def queue_role(self, index: int) -> str:
        """``rx``, ``tx`` or ``event`` (5.10.2)."""
        return {RX_QUEUE: "rx", TX_QUEUE: "tx"}.get(index, "event")

    # What the host does.

    def dial(self, guest_port: int, kind: VsockType, end: HostEnd) -> Connection | None:
        """Connect the host to a port of the guest; None where there are too many connections already."""
        if len(self.connections) >= _CONNECTIONS or not self._allows(kind):
            return None
        while (guest_port, port := _HOST_PORTS[self._next_port % len(_HOST_PORTS)]) in self.connections:
            self._next_port += 1
        self._next_port += 1
        connection = Connection.requested(guest_port, port, kind, end, self._wake)
        self.connections[guest_port, port] = connection
        self._watch()
        self._wake(connection)
        return connection

    def reset_transport(self, guest_cid: int) -> None:
        """End all connections and give the guest another context id, as after it moved to another host (5.10.6.7)."""
        self._drop_all()
        self._cid = guest_cid
        CONFIG.put(self.config, "guest_cid", guest_cid)
        self.config_generation = (self.config_generation + 1) & 0xFF
        if not self._events:
            self._events.append(VsockEvent.TRANSPORT_RESET)
        self.pump(self.queues[EVENT_QUEUE])

    def host_action(self, action: str) -> None:
        """Call the guest on `CALL_PORT`, by ``call`` or ``call-seqpacket``, or ``reset`` the transport."""
        if action == "call":
            self.dial(CALL_PORT, VsockType.STREAM, Caller())
        elif action == "call-seqpacket":
            self.dial(CALL_PORT, VsockType.SEQPACKET, Caller())
        elif action == "reset":
            self.reset_transport(self._cid + 1)

    def pollable(self) -> dict[int, Callable[[], None]]:
        """What those on the host wait for."""
        return {fd: partial(self._in_one_go, call) for host in self._hosts for fd, call in host.pollable().items()}

    def close(self) -> None:
        """End all connections, and those who are on the host."""
        self._drop_all()
        for host in self._hosts:
            host.close()

    # The life of a driver.

    def features_accepted(self) -> None:
        """A driver begins: whatever was connected before was another's."""
        self._drop_all()

    def reset(self) -> None:
        """Forget the driver, and end what it had connected."""
        super().reset()
        self._drop_all()
        self._events.clear()
        self._clock = None

    def driver_ready(self) -> None:
        """Deliver what waited for the driver."""
        self._send()
        self.pump(self.queues[EVENT_QUEUE])

    def queue_stopped(self, queue: DeviceQueue) -> None:
        """End all connections if the driver does not come back soon: their host's ends shall not wait for ever."""
        if queue.index == RX_QUEUE:
            self._spare = None
        elif queue.index == TX_QUEUE:
            self.schedule(_GONE, self._end_if_gone)

    def _end_if_gone(self) -> None:
        if not self.queues[TX_QUEUE].started:
            self._drop_all()

    def _drop_all(self) -> None:
        connections, self.connections = self.connections, {}
        self._ready.clear()
        self._resets.clear()
        for connection in connections.values():
            connection.drop()

    # To the guest.

    def _wake(self, connection: Connection) -> None:
        self._ready[connection] = None
        if not self._busy:
            self._send()

    def _in_one_go(self, call: Callable[[], None]) -> None:
        """Let something happen, and send only then what came of it, with one interrupt."""
        busy, self._busy = self._busy, True
        try:
            call()
        finally:
            self._busy = busy
        if not busy:
            self._send()

    def _send(self) -> None:
        if self._ready or self._resets:
            self.pump(self.queues[RX_QUEUE])

    def available(self, queue: DeviceQueue) -> bool:
        """Serve a queue: take what the guest sends, or use as many buffers as there is something for."""
        more = False

        def serve() -> None:
            nonlocal more
            more = super(VsockDevice, self).available(queue)

        if queue.index == TX_QUEUE:
            self._in_one_go(serve)
        elif queue.index == RX_QUEUE:
            busy, self._busy = self._busy, True
            try:
                self._fill(queue)
            finally:
                self._busy = busy
        else:
            self._tell(queue)
        return more

    def _fill(self, queue: DeviceQueue) -> None:
        """Fill receive buffers, each connection in turn, one ring of buffers at most."""
        budget = queue.ring.size if queue.ring is not None else 0
        while self._ready or self._resets:
            if not budget:
                # Others shall have a turn too.
                self.schedule(0.0, self._send)
                return
            chain = self._spare or self.take_buffer(queue, HDR_SIZE)
            self._spare = chain
            if chain is None:
                return
            packet = self._next(min(chain.writable_size - HDR_SIZE, self.packet_limit))
            if packet is None:
                return
            budget -= 1
            self._spare = None
            header, data = packet
            self.complete(queue, chain, self.respond(queue, chain, header.build() + data))

    def _next(self, room: int) -> tuple[Header, memoryview | bytes] | None:
        """Return the next packet for the guest; None if all wait for credit, or have nothing."""
        if self._resets:
            return self._resets.popleft(), b""
        while self._ready:
            connection = next(iter(self._ready))
            del self._ready[connection]
            packet = connection.next(self._cid, room)
            if connection.over:
                self._forget(connection)
            elif packet is not None:
                self._ready[connection] = None
                if connection.impatient:
                    self._watch()
            if packet is not None:
                return packet
        return None

    def _forget(self, connection: Connection) -> None:
        key = connection.guest_port, connection.host_port
        if self.connections.get(key) is connection:
            del self.connections[key]

    def _watch(self) -> None:
        if self._clock is None:
            clock = self._clock = object()
            self.schedule(_TICK, lambda: self._tick(clock))

    def _tick(self, clock: object) -> None:
        """Lose patience with a guest that does not answer, or does not hang up."""
        if clock is not self._clock:
            return
        self._clock = None
        waiting = [connection for connection in self.connections.values() if connection.impatient]
        if waiting:
            self._watch()
        for connection in waiting:
            connection.patience += 1
            if connection.patience >= (_ANSWER_TICKS if connection.state is State.REQUESTED else _GOODBYE_TICKS):
                connection.reset()

    def _tell(self, queue: DeviceQueue) -> None:
        while self._events:
            chain = self.take_buffer(queue, EVENT.size)
            if chain is None:
                return
            event = bytes(EVENT.pack(id=self._events.pop(0)))
            self.complete(queue, chain, self.respond(queue, chain, event))

    # From the guest.

    def handle(self, queue: DeviceQueue, chain: Chain) -> None:
        """Take a packet that the guest sent."""
        try:
            self._hear(chain)
        except (DriverError, WireError) as error:
            if isinstance(error, WireError):
                error = DriverError(error.rule, spec="5.10.6", detail=error.detail)
            self.report(error)
        self.complete(queue, chain, 0)

    def _hear(self, chain: Chain) -> None:
        header = Header.parse(chain.read(0, HDR_SIZE))
        if self.trace is not None:
            self.log(f"from the guest: {header.brief}")
        if header.src_cid != self._cid or header.dst_cid != HOST_CID:
            # To somebody else, or as somebody else: there is no connection that it could end.
            raise DriverError("packets go from the guest to the host", spec="5.10.6.2", detail=header.brief)
        connection = self.connections.get((header.src_port, header.dst_port))
        if connection is not None:
            self._pass_on(connection, header, chain)
        elif header.op == VsockOp.REQUEST and header.type in tuple(VsockType) and self._connect(header):
            pass
        elif header.op != VsockOp.RST:
            self._refuse(header)

    def _pass_on(self, connection: Connection, header: Header, chain: Chain) -> None:
        if connection.state is State.CLOSED:
            return  # sent before the guest heard of the end
        try:
            connection.packet(header, self._payload(chain, header, connection))
        except DriverError:
            connection.reset()
            raise
        if connection.over:
            self._ready.pop(connection, None)
            self._forget(connection)

    @staticmethod
    def _payload(chain: Chain, header: Header, connection: Connection) -> bytes:
        """Read the data of a packet; no more than the guest had credit for, whatever it claims."""
        if not header.len or header.op != VsockOp.RW:
            return b""
        data = chain.read(HDR_SIZE, min(header.len, connection.credit()))
        if len(data) < header.len <= connection.credit():
            raise DriverError("a packet has the data that its header says", spec="5.10.6", detail=header.brief)
        return data

    def _connect(self, header: Header) -> bool:
        """Accept a connection, if there is somebody to connect to."""
        kind = VsockType(header.type)
        if len(self.connections) >= _CONNECTIONS or not self._allows(kind) or header.dst_port == PORT_ANY:
            return False
        for host in self._hosts:
            end = host.connect(header.dst_port, kind)
            if end is not None:
                connection = Connection.accepted(header, end, self._wake)
                self.connections[header.src_port, header.dst_port] = connection
                self._wake(connection)
                return True
        return False

    def _allows(self, kind: VsockType) -> bool:
        """Whether the socket type was negotiated; streams are implied, unless that was negotiated away (5.10.3)."""
        if kind is VsockType.SEQPACKET:
            return self.has(VsockFeature.SEQPACKET)
        return self.has(VsockFeature.STREAM) or not self.has(VsockFeature.NO_IMPLIED_STREAM)

    def _refuse(self, header: Header) -> None:
        """Answer what belongs to no connection (5.10.6.4)."""
        if len(self._resets) >= _RESETS:
            raise DriverError("the receive queue has buffers", spec="5.10.6.1")
        self._resets.append(Header(HOST_CID, self._cid, header.dst_port, header.src_port, 0, header.type, VsockOp.RST))
