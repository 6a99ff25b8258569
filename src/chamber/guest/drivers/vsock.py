"""Socket driver: connections to and from the host (virtio 1.3, 5.10)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from chamber.guest.driver import REQUEST_SECONDS, TRANSPORT_FEATURES, DeviceTimeout, Refused, VirtioDriver
from chamber.guest.drivers.vsock_connection import BACKLOG, BUFFER, Socket, SocketState
from chamber.guest.untrusted import DeviceViolation
from chamber.wire.virtio import DeviceType, bit
from chamber.wire.vsock import (
    CONFIG,
    EVENT,
    EVENT_QUEUE,
    HDR_SIZE,
    HOST_CID,
    RX_QUEUE,
    TX_QUEUE,
    Header,
    SeqFlag,
    ShutdownFlag,
    VsockEvent,
    VsockFeature,
    VsockOp,
    VsockType,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from chamber.guest.machine import GuestMachine
    from chamber.guest.virtqueue import Request, VirtQueue
    from chamber.platform.heap import Object
    from chamber.platform.transport import Transport

__all__ = ("VsockDriver",)

_BUFFERS: Final = 8
_EVENTS: Final = 2
_DATA: Final = 1024
"""Bytes of data in one packet, in either direction."""
_UNSENT: Final = 8
"""Packets that wait for the device; replies, which nobody waits for, may be as many again before they are lost."""
_SOCKETS: Final = 32
_FIRST_PORT: Final = 1024
_TYPES: Final = tuple(VsockType)
_OPS: Final = tuple(op for op in VsockOp if op is not VsockOp.INVALID)


class VsockDriver(VirtioDriver):
    """Connects, listens, sends and receives.

    A broken rule latches: the device is not believed any more, and every socket fails with what it did.

    Attributes:
        cid: the guest's context id.

    """

    type = DeviceType.VSOCK
    known = TRANSPORT_FEATURES | bit(VsockFeature.STREAM, VsockFeature.SEQPACKET)
    allowed = known
    config_layout = CONFIG

    def __init__(self, machine: GuestMachine, transport: Transport) -> None:
        super().__init__(machine, transport)
        self.cid = 0
        self._lent: dict[Request, Object] = {}
        self._sockets: dict[tuple[int, int], Socket] = {}
        self._listeners: dict[int, Socket] = {}
        self._handlers: Object | None = None
        self._next_port = _FIRST_PORT

    # The life of a driver.

    def queue_indexes(self) -> list[int]:
        """All three."""
        return [RX_QUEUE, TX_QUEUE, EVENT_QUEUE]

    def initialise(self) -> None:
        """Learn who the guest is."""
        self._sockets.clear()
        self._listeners.clear()
        self._learn_cid()
        # Which function handles which event.
        self._handlers = self.machine.heap.alloc(8 * len(VsockEvent), "event handlers", zero=True)

    def _learn_cid(self) -> None:
        self.cid = self.read_config("guest_cid").between(
            3, 0xFFFFFFFE, "the guest's context id is not a reserved one", "5.10.4")

    def started(self) -> None:
        """Lend buffers for packets and events."""
        for index, count, size in ((RX_QUEUE, _BUFFERS, HDR_SIZE + _DATA), (EVENT_QUEUE, _EVENTS, EVENT.size)):
            for _ in range(count):
                self._lend(self.queues[index], self.machine.heap.alloc(size, "vsock buffer"))
            self.kick(self.queues[index])

    def _lend(self, queue: VirtQueue, buffer: Object) -> None:
        self._lent[self.lend(queue, [], [buffer])] = buffer

    def free_buffers(self) -> None:
        """Free what was lent and known."""
        heap = self.machine.heap
        for request, buffer in self._lent.items():
            heap.free(request.record)
            heap.free(buffer)
        self._lent.clear()
        for socket in (*self._sockets.values(), *self._listeners.values()):
            self._free_socket(socket)
        self._sockets.clear()
        self._listeners.clear()
        if self._handlers is not None:
            heap.free(self._handlers)
            self._handlers = None

    def _free_socket(self, socket: Socket) -> None:
        for memory in (socket.buffer, socket.memory):
            if memory is not None and memory.live:
                self.machine.heap.free(memory)

    @property
    def broken(self) -> DeviceViolation | None:
        """What the device did that is not borne, if it did."""
        return next((q.broken for q in self.queues.values() if q.broken is not None),
                    self.violations[0] if self.violations else None)

    def _wait(self, done: Callable[[], bool], what: str) -> None:
        """Wait for something that the device has to do.

        Raises:
            DeviceViolation: it broke a rule instead.
            DeviceTimeout: it did nothing.

        """
        fine = self.machine.wait(lambda: self.broken is not None or done(), REQUEST_SECONDS)
        if self.broken is not None:
            raise self.broken
        if not fine:
            raise DeviceTimeout(what)

    # From the device.

    def used(self, queue: VirtQueue) -> None:
        """Take packets and events in, and take back what was sent."""
        while (request := queue.get()) is not None:
            buffer = self._lent.pop(request)
            self.machine.heap.free(request.record)
            if queue.index == TX_QUEUE:
                self.machine.heap.free(buffer)
                continue
            try:
                if self.broken is not None:
                    pass  # nothing that it says is listened to any more
                elif queue.index == RX_QUEUE:
                    self._packet(buffer, request.written)
                else:
                    self._event(buffer, request.written)
            except DeviceViolation as violation:
                self.violations.append(violation)
            self._lend(queue, buffer)
        if queue.index != TX_QUEUE:
            self.kick(queue)

    def _packet(self, buffer: Object, written: int) -> None:
        number, checks = self.checks.number, self.checks
        room = number(written).minus(HDR_SIZE, buffer.size, "a packet starts with a header", "5.10.6")
        header = Header.parse(buffer.read(0, HDR_SIZE))
        number(header.src_cid).equals(HOST_CID, "packets come from the host", "5.10.6.2")
        number(header.dst_cid).equals(self.cid, "packets are for the guest", "5.10.6.2")
        size = number(header.len).at_most(room, "a packet has the data that its header says", "5.10.6")
        op = number(header.op).one_of(_OPS, "an operation is one of those defined", "5.10.6")
        kind = number(header.type).masked(0xFFFF)
        if kind not in _TYPES:
            self._reply(header, VsockOp.RST)
            return
        data = buffer.read(HDR_SIZE, size)
        local, remote = number(header.dst_port).masked(0xFFFFFFFF), number(header.src_port).masked(0xFFFFFFFF)
        socket = self._sockets.get((local, remote))
        if socket is not None:
            socket.memory.read(0, 8)
            checks.require(kind == socket.kind, "packets of a connection have its type", "5.10.6.4", header.brief)
            self._hear(socket, header, op, data)
        elif op == VsockOp.REQUEST and local in self._listeners:
            self._requested(self._listeners[local], header, kind)
        elif op != VsockOp.RST:
            self._reply(header, VsockOp.RST)

    def _hear(self, socket: Socket, header: Header, op: int, data: bytes) -> None:
        """Act on a packet of a connection."""
        if socket.state is SocketState.CLOSED:
            return  # sent before the device heard of the end
        socket.take_credit(header)
        if op == VsockOp.RST:
            self._ended(socket)
        elif socket.state is SocketState.CLOSING:
            pass  # nobody reads it any more
        elif op == VsockOp.RESPONSE:
            self.checks.require(socket.state is SocketState.CONNECTING, "a response answers a request, once",
                                "5.10.6.5", header.brief)
            self._establish(socket)
        elif op == VsockOp.RW:
            if socket.buffer is None and not self.checks.enforcing:
                self.machine.heap.report("null pointer", "receive buffer of a connection", header.brief)
            socket.store(header, data)
        elif op == VsockOp.SHUTDOWN:
            flags = self.checks.number(header.flags).flags(
                ShutdownFlag.BOTH, "SHUTDOWN says RECEIVE, SEND or both", "5.10.6.5")
            self.checks.require(socket.open, "a connection is shut down after it was made", "5.10.6.5", header.brief)
            socket.peer_shut |= flags
            if socket.peer_shut == ShutdownFlag.BOTH:
                socket.state = SocketState.CLOSED
                self._reply(header, VsockOp.RST)
        elif op == VsockOp.CREDIT_REQUEST:
            self._say(socket, VsockOp.CREDIT_UPDATE)
        else:
            self.checks.require(op == VsockOp.CREDIT_UPDATE and socket.open,
                                "a packet fits the state of its connection", "5.10.6.5", header.brief)

    def _establish(self, socket: Socket) -> None:
        socket.buffer = self.machine.heap.alloc(BUFFER, "receive buffer of a connection")
        socket.state = SocketState.CONNECTED

    def _ended(self, socket: Socket) -> None:
        """The device says that a connection is over; if its user has said so before, nobody else knows the socket."""
        if socket.state is not SocketState.CLOSING:
            socket.state = SocketState.CLOSED
            return
        socket.state = SocketState.CLOSED
        self._free_socket(socket)
        if self.checks.enforcing:
            # Left out, the table goes on pointing to what was freed: harmless until the device names it again.
            del self._sockets[socket.local, socket.remote]

    def _requested(self, listener: Socket, header: Header, kind: int) -> None:
        """The host connects; as many as nobody has accepted yet are kept waiting, and no more."""
        full = len(listener.pending) >= BACKLOG or self._full
        if kind != listener.kind or (self.checks.enforcing and full):
            self._reply(header, VsockOp.RST)
            return
        listener.memory.put(8 * len(listener.pending), 8, header.src_port)
        socket = self._make(listener.local, header.src_port, listener.kind, SocketState.CONNECTING)
        socket.take_credit(header)
        self._establish(socket)
        listener.pending.append(socket)
        self._say(socket, VsockOp.RESPONSE)

    def _event(self, buffer: Object, written: int) -> None:
        self.checks.number(written).equals(EVENT.size, "an event is 4 bytes", "5.10.6.7")
        ident = self.checks.number(EVENT.get(buffer.read(0, EVENT.size), "id")).index(
            len(VsockEvent), "an event is one of those defined", "5.10.6.7")
        assert self._handlers is not None
        self._handlers.read(8 * ident, 8)
        # The only one: all connections are gone, and the guest may be called otherwise. Who listens goes on.
        for socket in self._sockets.values():
            socket.state = SocketState.CLOSED
        self._learn_cid()

    # To the device.

    def _send(self, header: Header, data: bytes = b"") -> None:
        packet = self.machine.heap.alloc(HDR_SIZE + len(data), "packet to send")
        packet.write(header.build() + data)
        queue = self.queue(TX_QUEUE)
        self._lent[self.lend(queue, [packet], [])] = packet
        self.kick(queue)

    def _reply(self, header: Header, op: VsockOp) -> None:
        """Answer a packet that belongs to no connection; lost if the device takes nothing."""
        if self.queues[TX_QUEUE].outstanding < 2 * _UNSENT:
            self._send(Header(self.cid, header.src_cid, header.dst_port, header.src_port, 0, header.type, op))

    def _say(self, socket: Socket, op: VsockOp, data: bytes = b"", flags: int = 0) -> None:
        """Send a packet of a connection; one that nobody waits for is lost if the device takes nothing."""
        if self.queues[TX_QUEUE].outstanding < 2 * _UNSENT:
            socket.told = socket.forwarded
            self._send(Header(self.cid, HOST_CID, socket.local, socket.remote, len(data), socket.kind, op, flags,
                              BUFFER, socket.forwarded), data)

    def _say_in_turn(self, socket: Socket, op: VsockOp, data: bytes = b"", flags: int = 0) -> None:
        queue = self.queue(TX_QUEUE)
        self._wait(lambda: queue.outstanding < _UNSENT, "packets are not taken")
        self._say(socket, op, data, flags)

    # What users of sockets call.

    @property
    def _full(self) -> bool:
        return sum(socket.memory.live for socket in self._sockets.values()) >= _SOCKETS

    def _make(self, local: int, remote: int, kind: VsockType, state: SocketState) -> Socket:
        memory = self.machine.heap.alloc(64, "socket", zero=True)
        socket = Socket(self.checks, local, remote, kind, state, memory)
        self._sockets[local, remote] = socket
        return socket

    def _drop(self, socket: Socket) -> None:
        """Forget a socket, whatever the device still thinks of it."""
        self._free_socket(socket)
        self._sockets.pop((socket.local, socket.remote), None)

    def connect(self, port: int, kind: VsockType = VsockType.STREAM) -> Socket:
        """Connect to a port of the host.

        Raises:
            Refused: nobody listens there, or the device has no such sockets.
            DeviceTimeout: no answer.
            DeviceViolation: the device broke a rule.

        """
        if kind is VsockType.SEQPACKET and not self.has(VsockFeature.SEQPACKET):
            raise Refused("the device has no seqpacket sockets")
        if self._full:
            raise Refused("too many sockets")
        self._next_port += 1
        socket = self._make(self._next_port, port, kind, SocketState.CONNECTING)
        try:
            self._say_in_turn(socket, VsockOp.REQUEST)
            self._wait(lambda: socket.state is not SocketState.CONNECTING, "no answer to a connection request")
        except Exception:
            self._drop(socket)
            raise
        if not socket.open:
            self._drop(socket)
            raise Refused(f"nobody listens on port {port} of the host")
        return socket

    def listen(self, port: int, kind: VsockType = VsockType.STREAM) -> Socket:
        """Take connections of the host to a port.

        Raises:
            Refused: somebody listens there already.

        """
        if port in self._listeners:
            raise Refused(f"port {port} is taken")
        memory = self.machine.heap.alloc(8 * BACKLOG, "accept queue", zero=True)
        listener = Socket(self.checks, port, 0, kind, SocketState.LISTENING, memory)
        self._listeners[port] = listener
        return listener

    def accept(self, listener: Socket) -> Socket:
        """Return the next connection of the host.

        Raises:
            DeviceTimeout: none comes.
            DeviceViolation: the device broke a rule.

        """
        self._wait(lambda: bool(listener.pending), "nobody connects")
        return listener.pending.pop(0)

    def send(self, socket: Socket, data: bytes) -> None:
        """Send bytes of a stream, or one message, as the device gives credit.

        Raises:
            Refused: the connection is over.
            DeviceTimeout: the device takes nothing.
            DeviceViolation: it broke a rule.

        """
        while data:
            self._wait(lambda: not socket.open or socket.credit > 0, "no credit to send")
            if not socket.open or socket.peer_shut & ShutdownFlag.RECEIVE or socket.own_shut & ShutdownFlag.SEND:
                raise Refused("the connection is over")
            part = data[:min(socket.credit, _DATA)]
            data = data[len(part):]
            ends = socket.kind is VsockType.SEQPACKET and not data
            socket.sent = socket.sent + len(part) & 0xFFFFFFFF
            self._say_in_turn(socket, VsockOp.RW, part, SeqFlag.EOM if ends else 0)

    def receive(self, socket: Socket, size: int) -> bytes:
        """Wait for so many bytes of a stream; fewer where it ends.

        Raises:
            Refused: it was reset before they came; that is not to be taken for its end.
            DeviceTimeout: they don't come.
            DeviceViolation: the device broke a rule.

        """
        data = b""
        while len(data) < size:
            self._wait(lambda: bool(socket.waiting) or not socket.open or bool(socket.peer_shut & ShutdownFlag.SEND),
                       f"{len(data)} of {size} bytes came")
            if not socket.waiting:
                self._require_end(socket)
                break
            data += self._fetch(socket, size - len(data))
        return data

    def receive_message(self, socket: Socket) -> bytes:
        """Wait for one message; empty where there are no more.

        Raises:
            Refused: the connection was reset; that is not to be taken for its end.
            DeviceTimeout: none comes.
            DeviceViolation: the device broke a rule.

        """
        self._wait(lambda: bool(socket.messages) or not socket.open or bool(socket.peer_shut & ShutdownFlag.SEND),
                   "no message came")
        if socket.messages:
            return self._fetch(socket, socket.messages.popleft())
        self._require_end(socket)
        return b""

    @staticmethod
    def _require_end(socket: Socket) -> None:
        if socket.cut or socket.partial:
            raise Refused("the connection ended before what is sent on it did")

    def _fetch(self, socket: Socket, size: int) -> bytes:
        data = socket.fetch(size)
        if socket.owes and socket.open:
            self._say(socket, VsockOp.CREDIT_UPDATE)
        return data

    def finish(self, socket: Socket, flags: ShutdownFlag) -> None:
        """Say that nothing more is sent, or received."""
        if socket.open and socket.own_shut & flags != flags:
            socket.own_shut |= flags
            self._say_in_turn(socket, VsockOp.SHUTDOWN, flags=socket.own_shut)

    def close(self, socket: Socket) -> None:
        """End a connection, in order if the device plays along; or take connections no more.

        Raises:
            DeviceTimeout: the device does not say that it ended.
            DeviceViolation: it broke a rule.

        """
        if socket.state is SocketState.LISTENING:
            del self._listeners[socket.local]
            for child in socket.pending:
                self._drop(child)
            self._free_socket(socket)
            return
        if not socket.open:
            self._drop(socket)
            return
        socket.state = SocketState.CLOSING
        try:
            self._say_in_turn(socket, VsockOp.SHUTDOWN, flags=ShutdownFlag.BOTH)
            self._wait(lambda: socket.state is not SocketState.CLOSING, "a connection does not end")
        except DeviceTimeout:
            self._say(socket, VsockOp.RST)
            raise
        finally:
            if socket.memory.live:
                self._drop(socket)
