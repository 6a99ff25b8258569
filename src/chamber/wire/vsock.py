"""Socket device: feature bits, configuration space, packets, events, queue numbers (virtio 1.3, 5.10)."""

from __future__ import annotations

import enum
import struct
from typing import Final, NamedTuple, Self

from chamber.wire.errors import WireError
from chamber.wire.layout import Field, Layout, Role

__all__ = (
    "CONFIG",
    "EVENT",
    "EVENT_QUEUE",
    "HDR",
    "HDR_SIZE",
    "HOST_CID",
    "PORT_ANY",
    "RX_QUEUE",
    "TX_QUEUE",
    "Header",
    "SeqFlag",
    "ShutdownFlag",
    "VsockEvent",
    "VsockFeature",
    "VsockOp",
    "VsockType",
    "free_space",
    "newer_count",
)

RX_QUEUE: Final = 0
TX_QUEUE: Final = 1
EVENT_QUEUE: Final = 2

HOST_CID: Final = 2
"""The host's own context id (5.10.4)."""
PORT_ANY: Final = 0xFFFFFFFF
"""No port: what sockets interfaces take for "any of them"."""

_U32: Final = 0xFFFFFFFF
_HALF: Final = 1 << 31


class VsockFeature(enum.IntEnum):
    """Feature bit numbers (5.10.3)."""

    STREAM = 0
    SEQPACKET = 1
    NO_IMPLIED_STREAM = 2


class VsockType(enum.IntEnum):
    """``type`` of a packet (5.10.6)."""

    STREAM = 1
    SEQPACKET = 2


class VsockOp(enum.IntEnum):
    """``op`` of a packet (5.10.6)."""

    INVALID = 0
    REQUEST = 1
    RESPONSE = 2
    RST = 3
    SHUTDOWN = 4
    RW = 5
    CREDIT_UPDATE = 6
    CREDIT_REQUEST = 7


class ShutdownFlag(enum.IntEnum):
    """``flags`` of SHUTDOWN: what its sender will not do any more (5.10.6.5)."""

    RECEIVE = 1
    SEND = 2
    BOTH = 3


class SeqFlag(enum.IntEnum):
    """``flags`` of RW on seqpacket sockets (5.10.6.6.1)."""

    EOM = 1
    """The message ends here: what one call of the sender sent."""
    EOR = 2
    """The record ends here: what the sender marked."""


class VsockEvent(enum.IntEnum):
    """``id`` of an event (5.10.6.7)."""

    TRANSPORT_RESET = 0


CONFIG: Final = Layout(
    "virtio_vsock_config", "virtio 1.3, 5.10.4",
    Field("guest_cid", "le64", Role.ID, None, range(3, _U32)),
)

HDR: Final = Layout(
    "virtio_vsock_hdr", "virtio 1.3, 5.10.6",
    Field("src_cid", "le64", Role.ID),
    Field("dst_cid", "le64", Role.ID),
    Field("src_port", "le32", Role.ID),
    Field("dst_port", "le32", Role.ID),
    Field("len", "le32", Role.LENGTH),
    Field("type", "le16", Role.ENUM, None, tuple(VsockType)),
    Field("op", "le16", Role.ENUM, None, tuple(VsockOp)[1:]),
    Field("flags", "le32", Role.FLAGS),
    Field("buf_alloc", "le32", Role.SIZE),
    Field("fwd_cnt", "le32", Role.COUNT),
)
HDR_SIZE: Final = HDR.size
_STRUCT: Final = struct.Struct("<QQIIIHHIII")

EVENT: Final = Layout("virtio_vsock_event", "virtio 1.3, 5.10.6.7", Field("id", "le32", Role.ENUM, None, (0,)))


class Header(NamedTuple):
    """The fields of virtio_vsock_hdr (5.10.6)."""

    src_cid: int
    dst_cid: int
    src_port: int
    dst_port: int
    len: int
    type: int
    op: int
    flags: int = 0
    buf_alloc: int = 0
    fwd_cnt: int = 0

    @classmethod
    def parse(cls, data: bytes | bytearray | memoryview) -> Self:
        """Take the first 44 bytes.

        Raises:
            WireError: there are fewer.

        """
        if len(data) < HDR_SIZE:
            raise WireError("a packet starts with a header of 44 bytes", spec=HDR.spec, detail=f"{len(data)} bytes")
        return cls(*_STRUCT.unpack_from(data))

    def build(self) -> bytes:
        """The header's 44 bytes; numbers are cut to their fields' width."""
        return _STRUCT.pack(
            self.src_cid & (1 << 64) - 1, self.dst_cid & (1 << 64) - 1, self.src_port & _U32, self.dst_port & _U32,
            self.len & _U32, self.type & 0xFFFF, self.op & 0xFFFF, self.flags & _U32, self.buf_alloc & _U32,
            self.fwd_cnt & _U32)

    @property
    def brief(self) -> str:
        """One line for transcripts."""
        kind = VsockType(self.type).name.lower() if self.type in tuple(VsockType) else f"type {self.type}"
        name = VsockOp(self.op).name if self.op in tuple(VsockOp) else f"op {self.op}"
        return (f"{name} {kind} {self.src_cid}:{self.src_port} -> {self.dst_cid}:{self.dst_port}, {self.len} bytes, "
                f"flags {self.flags}, buf_alloc {self.buf_alloc}, fwd_cnt {self.fwd_cnt}")


def free_space(buf_alloc: int, sent: int, fwd_cnt: int) -> int:
    """Bytes that may still be sent to a peer (5.10.6.3); the counters wrap at 2**32.

    A peer may make its buffer smaller than what is on its way: then there is no space, and not nearly 4 GiB.

    >>> free_space(100, 5, 0xFFFFFFFF)
    94
    >>> free_space(4, 5, 0)
    0
    """
    return max(buf_alloc - (sent - fwd_cnt & _U32), 0)


def newer_count(fwd_cnt: int, known: int, sent: int) -> int | None:
    """Take a peer's count of forwarded bytes; None if it claims more than was sent.

    Packets may overtake each other while they are made, so an older count tells nothing, and is no error.

    >>> newer_count(7, 5, 9), newer_count(3, 5, 9), newer_count(10, 5, 9)
    (7, 5, None)
    """
    if fwd_cnt - known & _U32 <= sent - known & _U32:
        return fwd_cnt
    return known if known - fwd_cnt & _U32 < _HALF else None
