"""One connection of a socket device, without I/O: its states, credit in both directions, and what to send next.

What the guest says is checked against a table of states and against the credit that it was given. What the host's end
of the connection does (a Unix socket, a Python object) is behind `HostEnd`.
"""

from __future__ import annotations

import enum
from collections import deque
from typing import TYPE_CHECKING, ClassVar, Final

from chamber.device.errors import DriverError
from chamber.wire.vsock import (
    HOST_CID,
    Header,
    SeqFlag,
    ShutdownFlag,
    VsockOp,
    VsockType,
    free_space,
    newer_count,
)

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ("BUFFER", "MESSAGE", "Connection", "HostEnd", "State")

BUFFER: Final = 256 << 10
"""Bytes that wait for the host's end of one connection: the credit that the guest is given."""
_CHUNK: Final = 64 << 10
"""Bytes to take from a stream of the host's at once."""
MESSAGE: Final = 1 << 20
"""Bytes of one message of the host's, at most."""
_U32: Final = 0xFFFFFFFF
_SHUTDOWN: Final = int(ShutdownFlag.BOTH)
_SEQ: Final = int(SeqFlag.EOM | SeqFlag.EOR)


class State(enum.Enum):
    """Where a connection is (virtio 1.3, 5.10.6.5)."""

    REQUESTED = "requested"
    """The host asked, the guest has not answered."""
    OPEN = "open"
    CLOSED = "closed"


class HostEnd:
    """The host's end of a connection; this one is deaf and dumb, and takes whatever comes.

    Attributes:
        connection: set when the connection is made, before any method is called.

    """

    connection: Connection

    def opened(self) -> None:
        """The guest accepted, or was accepted."""

    def received(self, data: bytes) -> None:
        """The guest sent: some bytes of a stream, or one message. `Connection.consume` gives it credit for more."""
        self.connection.consume(len(data))

    def fill(self, space: int) -> None:
        """Everything from here was sent, and the guest has room for `space` bytes of a stream, or of one message."""

    def sent(self, size: int) -> None:
        """Bytes given to `Connection.send` are on their way."""

    def finished(self) -> None:
        """The guest will send no more."""

    def unheard(self) -> None:
        """The guest will receive no more."""

    def closed(self, *, graceful: bool) -> None:
        """The connection is gone; `graceful` where the guest had said before that it would send no more."""


class Connection:
    """A stream or seqpacket connection between a port of the guest and one of the host.

    Args:
        guest_port: the guest's.
        host_port: the host's.
        kind: stream or seqpacket.
        end: who is at the host's end.
        wake: called when there is something to send.

    Attributes:
        state: where it is.
        patience: seconds that it has waited for the guest to answer or to hang up, counted by its device.

    """

    def __init__(self, guest_port: int, host_port: int, kind: VsockType, end: HostEnd,
                 wake: Callable[[Connection], None]) -> None:
        self.guest_port = guest_port
        self.host_port = host_port
        self.kind = kind
        self.end = end
        self.state = State.OPEN
        self.patience = 0
        self._wake = wake
        self._control: list[VsockOp] = []
        # From guest to host: counted modulo 2**32, as the protocol does.
        self._received = 0
        self._forwarded = 0
        self._told = 0
        self._message = bytearray()
        self._guest_shut = 0
        # From host to guest.
        self._outgoing: deque[memoryview] = deque()
        self._started = False
        self._sent = 0
        self._space_total = 0
        self._space_forwarded = 0
        self._asked = False
        self._host_shut = 0
        self._host_told = 0
        end.connection = self

    def __repr__(self) -> str:
        return f"<Connection {self.guest_port}-{self.host_port}: {self.kind.name.lower()}, {self.state.value}>"

    @classmethod
    def accepted(cls, header: Header, end: HostEnd, wake: Callable[[Connection], None]) -> Connection:
        """Make one that the guest asked for; its first packet is the answer."""
        connection = cls(header.src_port, header.dst_port, VsockType(header.type), end, wake)
        connection._space_total = header.buf_alloc
        connection._control.append(VsockOp.RESPONSE)
        return connection

    @classmethod
    def requested(cls, guest_port: int, host_port: int, kind: VsockType, end: HostEnd,
                  wake: Callable[[Connection], None]) -> Connection:
        """Make one that the host asks for; its first packet is the question."""
        connection = cls(guest_port, host_port, kind, end, wake)
        connection.state = State.REQUESTED
        connection._control.append(VsockOp.REQUEST)
        return connection

    # What the host's end does.

    def send(self, data: bytes) -> None:
        """Send bytes of a stream, or one message. Ends keep this bounded: by `fill`, or by credit that they keep."""
        if data and self.state is not State.CLOSED and not self._guest_shut & ShutdownFlag.RECEIVE:
            self._outgoing.append(memoryview(data))
            self._wake(self)

    def poke(self) -> None:
        """Have `HostEnd.fill` called when the guest has room."""
        self._wake(self)

    def consume(self, size: int) -> None:
        """Give the guest credit for bytes that it sent; it is told when that is worth a packet."""
        self._forwarded = self._forwarded + size & _U32
        if self._forwarded - self._told & _U32 >= BUFFER // 2:
            self._queue(VsockOp.CREDIT_UPDATE)

    def finish(self) -> None:
        """Send no more, once all is sent."""
        self._shut(ShutdownFlag.SEND)

    def listen_no_more(self) -> None:
        """Receive no more; what the guest still sends is thrown away."""
        self._shut(ShutdownFlag.RECEIVE)

    def hang_up(self) -> None:
        """Neither send nor receive any more, once all is sent."""
        self._shut(ShutdownFlag.BOTH)

    def _shut(self, flags: ShutdownFlag) -> None:
        if self._host_shut & flags != flags and self.state is not State.CLOSED:
            self._host_shut |= flags
            self._wake(self)

    def reset(self) -> None:
        """End it here and now, on both sides."""
        if self.state is not State.CLOSED:
            self._close()
            self._control = [VsockOp.RST]
            self._wake(self)

    def drop(self) -> None:
        """End it on the host's side alone: the guest knows, or is gone."""
        if self.state is not State.CLOSED:
            self._close()

    def _close(self) -> None:
        self.state = State.CLOSED
        self._outgoing.clear()
        self._message.clear()
        self._control.clear()
        self.end.closed(graceful=bool(self._guest_shut & ShutdownFlag.SEND))

    @property
    def over(self) -> bool:
        """Whether it is closed and the guest knows."""
        return self.state is State.CLOSED and not self._control

    @property
    def impatient(self) -> bool:
        """Whether it waits for something that the guest has to say soon: an answer, or a last word (5.10.6.5)."""
        return self.state is State.REQUESTED or self._host_told == ShutdownFlag.BOTH

    # What the guest sends.

    def credit(self) -> int:
        """Bytes that the guest may still send."""
        return free_space(BUFFER, self._received, self._forwarded)

    def packet(self, header: Header, data: bytes) -> None:
        """Take a packet of the guest.

        Raises:
            DriverError: it breaks a rule; what is left to do is `reset`.

        """
        action = self._ACTIONS.get((self.state, header.op))
        if action is None:
            raise DriverError("a packet fits the state of its connection", spec="5.10.6.5", detail=header.brief)
        if header.type != self.kind:
            raise DriverError("packets of a connection have its type", spec="5.10.6.4", detail=header.brief)
        self._space(header)
        action(self, header, data)

    def _space(self, header: Header) -> None:
        forwarded = newer_count(header.fwd_cnt, self._space_forwarded, self._sent)
        if forwarded is None:
            raise DriverError("fwd_cnt is no more than was sent", spec="5.10.6.3",
                              detail=f"{header.fwd_cnt}, {self._sent} sent")
        self._space_forwarded = forwarded
        self._space_total = header.buf_alloc
        if self._outgoing or self._started:
            self._wake(self)

    def _opened(self, _header: Header, _data: bytes) -> None:
        self.state = State.OPEN
        self.patience = 0
        self._open_end()

    def _open_end(self) -> None:
        self._started = True
        self.end.opened()
        self._wake(self)

    def _data(self, header: Header, data: bytes) -> None:
        if self._guest_shut & ShutdownFlag.SEND:
            raise DriverError("nothing is sent after SHUTDOWN said so", spec="5.10.6.5", detail=header.brief)
        if header.len > self.credit():
            raise DriverError("no more is sent than the receiver has space for", spec="5.10.6.3",
                              detail=f"{header.len} bytes, space for {self.credit()}")
        self._received = self._received + header.len & _U32
        if self._host_shut & ShutdownFlag.RECEIVE:
            self.consume(header.len)
        elif self.kind is VsockType.STREAM:
            if data:
                self.end.received(data)
        else:
            if header.flags & ~_SEQ:
                raise DriverError("flags of RW are EOM and EOR", spec="5.10.6.6.1", detail=header.brief)
            self._message += data
            if header.flags & SeqFlag.EOM:
                message = bytes(self._message)
                self._message.clear()
                self.end.received(message)

    def _shutdown(self, header: Header, _data: bytes) -> None:
        if header.flags & ~_SHUTDOWN or not header.flags:
            raise DriverError("SHUTDOWN says RECEIVE, SEND or both", spec="5.10.6.5", detail=header.brief)
        new = header.flags & ~self._guest_shut
        self._guest_shut |= header.flags
        if self._guest_shut == ShutdownFlag.BOTH:
            self.reset()
            return
        if new & ShutdownFlag.RECEIVE:
            self._outgoing.clear()
            self.end.unheard()
        if new & ShutdownFlag.SEND:
            self.end.finished()

    def _credit_request(self, _header: Header, _data: bytes) -> None:
        self._queue(VsockOp.CREDIT_UPDATE)

    def _credit_update(self, header: Header, data: bytes) -> None:
        """What it says was taken already: every packet says it."""

    def _reset(self, _header: Header, _data: bytes) -> None:
        self.drop()

    # What to send.

    def _queue(self, op: VsockOp) -> None:
        """Queue a packet without data: one of a kind, so that no driver can have them pile up."""
        if op not in self._control and self.state is not State.CLOSED:
            self._control.append(op)
            self._wake(self)

    def next(self, cid: int, room: int) -> tuple[Header, memoryview] | None:
        """Return the next packet to the guest, with `room` bytes of data at most; None if it has to wait.

        Args:
            cid: the guest's.
            room: bytes that the buffer has besides the header.

        """
        flags = 0
        data = memoryview(b"")
        if self._control:
            op = self._control.pop(0)
        elif self.state is not State.OPEN:
            return None
        elif (part := self._next_data(room)) is not None:
            op, data, flags = VsockOp.RW, *part
        elif self._control:  # no credit, or a message that is too long
            op = self._control.pop(0)
        elif not self._outgoing and self._host_shut & ~self._host_told:
            op, flags = VsockOp.SHUTDOWN, self._host_shut
            self._host_told = self._host_shut
            self.patience = 0
        else:
            return None
        self._told = self._forwarded
        header = Header(HOST_CID, cid, self.host_port, self.guest_port, len(data), self.kind, op, flags, BUFFER,
                        self._forwarded)
        if op is VsockOp.RESPONSE:
            self._open_end()
        return header, data

    def _next_data(self, room: int) -> tuple[memoryview, int] | None:
        if self._guest_shut & ShutdownFlag.RECEIVE:
            return None
        space = free_space(self._space_total, self._sent, self._space_forwarded)
        if not self._outgoing and not self._host_shut & ShutdownFlag.SEND and space and self._started:
            self.end.fill(min(space, _CHUNK) if self.kind is VsockType.STREAM else min(self._space_total, MESSAGE))
        if not self._outgoing or self.state is not State.OPEN:
            return None
        first = self._outgoing[0]
        flags = 0
        if self.kind is VsockType.SEQPACKET:
            if len(first) > self._space_total:
                # The guest gives credit for a message's parts when all of it is there: this one would never be.
                self.reset()
                return None
            if len(first) > space:
                space = 0
            elif len(first) <= room:
                flags = SeqFlag.EOM
        if not space:
            if not self._asked:
                self._asked = True
                self._queue(VsockOp.CREDIT_REQUEST)
            return None
        self._asked = False
        return self._cut(first, min(room, space)), flags

    def _cut(self, first: memoryview, size: int) -> memoryview:
        """Take `size` bytes at most: of one message, or of as much of a stream as is there."""
        if len(first) > size:
            data, self._outgoing[0] = first[:size], first[size:]
        else:
            data = first
            self._outgoing.popleft()
            if self.kind is VsockType.STREAM and self._outgoing and len(data) < size:
                data = memoryview(bytes(data) + self._more(size - len(data)))
        self._sent = self._sent + len(data) & _U32
        self.end.sent(len(data))
        return data

    def _more(self, size: int) -> bytes:
        parts = bytearray()
        while self._outgoing and len(parts) < size:
            piece = self._outgoing.popleft()
            left = size - len(parts)
            parts += piece[:left]
            if len(piece) > left:
                self._outgoing.appendleft(piece[left:])
        return bytes(parts)

    _ACTIONS: ClassVar[dict[tuple[State, int], Callable[[Connection, Header, bytes], None]]] = {
        (State.REQUESTED, VsockOp.RESPONSE): _opened,
        (State.REQUESTED, VsockOp.RST): _reset,
        (State.OPEN, VsockOp.RW): _data,
        (State.OPEN, VsockOp.SHUTDOWN): _shutdown,
        (State.OPEN, VsockOp.CREDIT_REQUEST): _credit_request,
        (State.OPEN, VsockOp.CREDIT_UPDATE): _credit_update,
        (State.OPEN, VsockOp.RST): _reset,
    }
    """What may come in which state."""
