"""What the socket driver keeps of one socket: its state, its receive buffer, and credit in both directions."""

from __future__ import annotations

import enum
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from chamber.wire.vsock import SeqFlag, ShutdownFlag, VsockType, free_space, newer_count

if TYPE_CHECKING:
    from chamber.guest.untrusted import Checks
    from chamber.platform.heap import Object
    from chamber.wire.vsock import Header

__all__ = ("BACKLOG", "BUFFER", "Socket", "SocketState")

BUFFER: Final = 4096
"""Bytes that wait for the reader of one socket: the credit that the device is given."""
BACKLOG: Final = 4
"""Connections that wait to be accepted."""
_U32: Final = 0xFFFFFFFF
_SEQ: Final = int(SeqFlag.EOM | SeqFlag.EOR)


class SocketState(enum.Enum):
    """Where a socket is."""

    CONNECTING = enum.auto()
    CONNECTED = enum.auto()
    CLOSING = enum.auto()
    """Its user is done with it; the device has yet to say that it is, too."""
    CLOSED = enum.auto()
    LISTENING = enum.auto()


@dataclass(slots=True, eq=False)
class Socket:
    """A socket as the guest knows it.

    Attributes:
        checks: whether what the device says is checked.
        local: the guest's port.
        remote: the host's port; of no meaning where it listens.
        kind: stream or seqpacket.
        state: where it is.
        memory: the driver's own note of it, freed when the socket is; where it listens, the queue of those to accept.
        buffer: what came and was not read; there from when it is connected.
        waiting: bytes in `buffer`.
        pending: connections that nobody has accepted yet, oldest first.

    """

    checks: Checks
    local: int
    remote: int
    kind: VsockType
    state: SocketState
    memory: Object
    buffer: Object | None = None
    waiting: int = 0
    pending: list[Socket] = field(default_factory=list)
    peer_shut: int = 0
    own_shut: int = 0
    received: int = 0
    forwarded: int = 0
    told: int = 0
    sent: int = 0
    peer_alloc: int = 0
    peer_forwarded: int = 0
    messages: deque[int] = field(default_factory=deque)
    partial: int = 0

    @property
    def open(self) -> bool:
        """Whether it is connected, as far as the guest knows."""
        return self.state is SocketState.CONNECTED

    @property
    def cut(self) -> bool:
        """Whether it ended without the other side having said so: what came may not be all."""
        return self.state is SocketState.CLOSED and not self.peer_shut & ShutdownFlag.SEND

    # Credit.

    def take_credit(self, header: Header) -> None:
        """Take what a packet says about the device's buffer.

        Raises:
            DeviceViolation: it says that more was forwarded than was ever sent.

        """
        self.peer_alloc = self.checks.number(header.buf_alloc).masked(_U32)
        forwarded = self.checks.number(header.fwd_cnt).masked(_U32)
        known = newer_count(forwarded, self.peer_forwarded, self.sent)
        self.checks.require(known is not None, "fwd_cnt is no more than was sent", "5.10.6.3",
                            f"{forwarded}, {self.sent} sent")
        self.peer_forwarded = known if known is not None and self.checks.enforcing else forwarded

    @property
    def credit(self) -> int:
        """Bytes that may be sent now."""
        if self.checks.enforcing:
            return free_space(self.peer_alloc, self.sent, self.peer_forwarded)
        return self.peer_alloc - (self.sent - self.peer_forwarded) & _U32

    @property
    def owes(self) -> bool:
        """Whether the device should be told what was read: when half of the buffer is free that it takes for full."""
        return self.forwarded - self.told & _U32 >= BUFFER // 2

    # Data.

    def store(self, header: Header, data: bytes) -> None:
        """Take data in.

        Raises:
            DeviceViolation: nobody may send now, or not so much, or not so.

        """
        size = len(data)
        self.checks.require(self.open and not self.peer_shut & ShutdownFlag.SEND and self.buffer is not None,
                            "data comes on a connection, before SHUTDOWN", "5.10.6.5", f"{size} bytes")
        space = free_space(BUFFER, self.received, self.told)
        self.checks.number(size).at_most(space, "no more is sent than the receiver has space for", "5.10.6.3")
        assert self.buffer is not None
        self.buffer.write(data, self.waiting)
        self.waiting += size
        self.received = self.received + size & _U32
        if self.kind is VsockType.SEQPACKET:
            flags = self.checks.number(header.flags).flags(_SEQ, "flags of RW are EOM and EOR", "5.10.6.6.1")
            self.partial += size
            # An empty message can't be told from the end, and costs no credit: it does not count.
            if flags & SeqFlag.EOM and self.partial:
                self.messages.append(self.partial)
                self.partial = 0

    def fetch(self, size: int) -> bytes:
        """Give up to `size` bytes to the reader; of messages, what belongs to one."""
        assert self.buffer is not None
        size = min(size, self.waiting)
        data = self.buffer.read(0, size)
        self.buffer.write(self.buffer.read(size, self.waiting - size))
        self.waiting -= size
        self.forwarded = self.forwarded + size & _U32
        return data
