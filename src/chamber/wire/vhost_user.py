"""The vhost-user protocol: every message of both directions, as values.

A connection is a Unix stream socket. Each message is a 12-byte header, a payload, and file descriptors that travel with
the first byte of the header. Numbers are in the machine's own byte order. Section names below are those of QEMU's
``docs/interop/vhost-user.rst``.

Decoding takes bytes and gives a payload object or `WireError`; nothing here holds a socket or a descriptor.
"""

from __future__ import annotations

import enum
import struct
from dataclasses import dataclass
from typing import ClassVar, Final, Protocol, Self

from chamber.wire.errors import WireError

__all__ = (
    "BACKEND_MESSAGES",
    "FRONTEND_MESSAGES",
    "F_LOG_ALL",
    "F_PROTOCOL_FEATURES",
    "HEADER_SIZE",
    "MAX_FDS",
    "MAX_PAYLOAD",
    "NEED_REPLY",
    "REPLY",
    "U64",
    "VRING_F_LOG",
    "VRING_NO_FD",
    "BackendRequest",
    "Bytes",
    "ConfigSpace",
    "DeviceState",
    "Empty",
    "FrameReader",
    "FrontendRequest",
    "Header",
    "Inflight",
    "Iotlb",
    "Log",
    "MemoryRegion",
    "MemoryTable",
    "MessageType",
    "Mmap",
    "Payload",
    "ProtocolFeature",
    "ShmemConfig",
    "SingleRegion",
    "Uuid",
    "VringAddress",
    "VringArea",
    "VringState",
    "encode",
)

HEADER_SIZE: Final = 12
MAX_PAYLOAD: Final = 4096
"""Larger than any message of the protocol; a peer that announces more is not talking vhost-user."""
MAX_FDS: Final = 8
VERSION: Final = 1
VERSION_MASK: Final = 3
REPLY: Final = 4
NEED_REPLY: Final = 8

F_LOG_ALL: Final = 26
F_PROTOCOL_FEATURES: Final = 30
VRING_F_LOG: Final = 0
VRING_NO_FD: Final = 0x100
"""In the u64 of SET_VRING_KICK, _CALL and _ERR: no descriptor comes along."""

_HEADER = struct.Struct("=III")


class ProtocolFeature(enum.IntEnum):
    """Protocol feature bits (Protocol features)."""

    MQ = 0
    LOG_SHMFD = 1
    RARP = 2
    REPLY_ACK = 3
    MTU = 4
    BACKEND_REQ = 5
    CROSS_ENDIAN = 6
    CRYPTO_SESSION = 7
    PAGEFAULT = 8
    CONFIG = 9
    BACKEND_SEND_FD = 10
    HOST_NOTIFIER = 11
    INFLIGHT_SHMFD = 12
    RESET_DEVICE = 13
    INBAND_NOTIFICATIONS = 14
    CONFIGURE_MEM_SLOTS = 15
    STATUS = 16
    XEN_MMAP = 17
    SHARED_OBJECT = 18
    DEVICE_STATE = 19
    GET_VRING_BASE_INFLIGHT = 20
    GPA_ADDRESSES = 21
    SHMEM_MAP = 22


class FrontendRequest(enum.IntEnum):
    """Messages from front end to back end (Front-end message types)."""

    GET_FEATURES = 1
    SET_FEATURES = 2
    SET_OWNER = 3
    RESET_OWNER = 4
    SET_MEM_TABLE = 5
    SET_LOG_BASE = 6
    SET_LOG_FD = 7
    SET_VRING_NUM = 8
    SET_VRING_ADDR = 9
    SET_VRING_BASE = 10
    GET_VRING_BASE = 11
    SET_VRING_KICK = 12
    SET_VRING_CALL = 13
    SET_VRING_ERR = 14
    GET_PROTOCOL_FEATURES = 15
    SET_PROTOCOL_FEATURES = 16
    GET_QUEUE_NUM = 17
    SET_VRING_ENABLE = 18
    SEND_RARP = 19
    NET_SET_MTU = 20
    SET_BACKEND_REQ_FD = 21
    IOTLB_MSG = 22
    SET_VRING_ENDIAN = 23
    GET_CONFIG = 24
    SET_CONFIG = 25
    CREATE_CRYPTO_SESSION = 26
    CLOSE_CRYPTO_SESSION = 27
    POSTCOPY_ADVISE = 28
    POSTCOPY_LISTEN = 29
    POSTCOPY_END = 30
    GET_INFLIGHT_FD = 31
    SET_INFLIGHT_FD = 32
    GPU_SET_SOCKET = 33
    RESET_DEVICE = 34
    VRING_KICK = 35
    GET_MAX_MEM_SLOTS = 36
    ADD_MEM_REG = 37
    REM_MEM_REG = 38
    SET_STATUS = 39
    GET_STATUS = 40
    GET_SHARED_OBJECT = 41
    SET_DEVICE_STATE_FD = 42
    CHECK_DEVICE_STATE = 43
    GET_SHMEM_CONFIG = 44


class BackendRequest(enum.IntEnum):
    """Messages from back end to front end, on the socket of SET_BACKEND_REQ_FD (Back-end message types)."""

    IOTLB_MSG = 1
    CONFIG_CHANGE_MSG = 2
    VRING_HOST_NOTIFIER_MSG = 3
    VRING_CALL = 4
    VRING_ERR = 5
    SHARED_OBJECT_ADD = 6
    SHARED_OBJECT_REMOVE = 7
    SHARED_OBJECT_LOOKUP = 8
    SHMEM_MAP = 9
    SHMEM_UNMAP = 10


class Payload(Protocol):
    """A decoded payload."""

    def pack(self) -> bytes:
        """Return the payload's bytes."""
        ...

    @classmethod
    def unpack(cls, data: bytes) -> Self:
        """Decode a payload.

        Raises:
            WireError: the bytes are not such a payload.

        """
        ...


def _exactly(codec: struct.Struct, data: bytes, name: str) -> tuple[int, ...]:
    if len(data) != codec.size:
        raise WireError(f"{name} payload is {codec.size} bytes", spec="vhost-user, Message Specification",
                        detail=f"{len(data)} given")
    return codec.unpack(data)


@dataclass(frozen=True, slots=True)
class Empty:
    """No payload."""

    def pack(self) -> bytes:
        """Return no bytes."""
        return b""

    @classmethod
    def unpack(cls, data: bytes) -> Self:
        """Decode; any byte is one too many."""
        if data:
            raise WireError("the message has no payload", spec="vhost-user, Message Specification",
                            detail=f"{len(data)} bytes given")
        return cls()


@dataclass(frozen=True, slots=True)
class Bytes:
    """A payload that only its own device understands (crypto sessions), uninterpreted."""

    data: bytes

    def pack(self) -> bytes:
        """Return the bytes."""
        return self.data

    @classmethod
    def unpack(cls, data: bytes) -> Self:
        """Keep the bytes."""
        return cls(bytes(data))


@dataclass(frozen=True, slots=True)
class U64:
    """A single 64-bit number."""

    value: int
    _codec: ClassVar[struct.Struct] = struct.Struct("=Q")

    def pack(self) -> bytes:
        """Return 8 bytes."""
        return self._codec.pack(self.value)

    @classmethod
    def unpack(cls, data: bytes) -> Self:
        """Decode 8 bytes."""
        return cls(*_exactly(cls._codec, data, "u64"))


@dataclass(frozen=True, slots=True)
class VringState:
    """A vring state description: queue index and a number.

    The number of GET_VRING_BASE and SET_VRING_BASE is, for a split queue, the next available index; for a packed one,
    available index and wrap counter in bits 0 to 15, used index and wrap counter in bits 16 to 31.
    """

    index: int
    num: int
    _codec: ClassVar[struct.Struct] = struct.Struct("=II")

    def pack(self) -> bytes:
        """Return 8 bytes."""
        return self._codec.pack(self.index, self.num)

    @classmethod
    def unpack(cls, data: bytes) -> Self:
        """Decode 8 bytes."""
        return cls(*_exactly(cls._codec, data, "vring state"))


@dataclass(frozen=True, slots=True)
class VringAddress:
    """A vring address description: where the three areas of a queue lie, as front-end user addresses."""

    index: int
    flags: int
    desc: int
    used: int
    avail: int
    log: int
    _codec: ClassVar[struct.Struct] = struct.Struct("=IIQQQQ")

    def pack(self) -> bytes:
        """Return 40 bytes."""
        return self._codec.pack(self.index, self.flags, self.desc, self.used, self.avail, self.log)

    @classmethod
    def unpack(cls, data: bytes) -> Self:
        """Decode 40 bytes."""
        return cls(*_exactly(cls._codec, data, "vring address"))


_REGION = struct.Struct("=QQQQ")


@dataclass(frozen=True, slots=True)
class MemoryRegion:
    """One region of guest memory; all in bytes.

    Attributes:
        guest_address: guest-physical address of its start.
        size: length.
        user_address: where the front end has it mapped, which ring addresses refer to.
        mmap_offset: where it starts in the file that comes along.

    """

    guest_address: int
    size: int
    user_address: int
    mmap_offset: int

    def __post_init__(self) -> None:
        top = 1 << 64
        if not self.size:
            raise WireError("a memory region is not empty", spec="vhost-user, Memory region description")
        if any(start + self.size > top for start in (self.guest_address, self.user_address, self.mmap_offset)):
            raise WireError("a memory region does not wrap around", spec="vhost-user, Memory region description")

    def pack(self) -> bytes:
        """Return 32 bytes."""
        return _REGION.pack(self.guest_address, self.size, self.user_address, self.mmap_offset)

    @classmethod
    def unpack(cls, data: bytes) -> Self:
        """Decode 32 bytes."""
        return cls(*_exactly(_REGION, data, "memory region"))


@dataclass(frozen=True, slots=True)
class MemoryTable:
    """Multiple memory regions (SET_MEM_TABLE); one descriptor comes along for each."""

    regions: tuple[MemoryRegion, ...]

    def pack(self) -> bytes:
        """Return 8 bytes and 32 for each region."""
        return struct.pack("=II", len(self.regions), 0) + b"".join(r.pack() for r in self.regions)

    @classmethod
    def unpack(cls, data: bytes) -> Self:
        """Decode; bytes after the last region are ignored.

        User-mode Linux before 7.0 always sends room for two regions, whatever the number that it names.
        """
        if len(data) < 8:
            raise WireError("a memory table starts with a count", spec="vhost-user, Multiple memory regions")
        count = struct.unpack_from("=I", data)[0]
        if not 0 < count <= MAX_FDS:
            raise WireError(f"a memory table has 1 to {MAX_FDS} regions", spec="vhost-user, Multiple memory regions",
                            detail=str(count))
        if len(data) < 8 + 32 * count:
            raise WireError("a memory table holds all the regions it counts",
                            spec="vhost-user, Multiple memory regions", detail=f"{count} in {len(data)} bytes")
        return cls(tuple(MemoryRegion.unpack(data[8 + 32 * i:40 + 32 * i]) for i in range(count)))


@dataclass(frozen=True, slots=True)
class SingleRegion:
    """A single memory region (ADD_MEM_REG, REM_MEM_REG)."""

    region: MemoryRegion

    def pack(self) -> bytes:
        """Return 40 bytes."""
        return bytes(8) + self.region.pack()

    @classmethod
    def unpack(cls, data: bytes) -> Self:
        """Decode 40 bytes."""
        if len(data) != 40:
            raise WireError("a single memory region is 40 bytes", spec="vhost-user, Single memory region description",
                            detail=f"{len(data)} given")
        return cls(MemoryRegion.unpack(data[8:]))


@dataclass(frozen=True, slots=True)
class Log:
    """A log description: the dirty bitmap in the file that comes along."""

    size: int
    offset: int
    _codec: ClassVar[struct.Struct] = struct.Struct("=QQ")

    def pack(self) -> bytes:
        """Return 16 bytes."""
        return self._codec.pack(self.size, self.offset)

    @classmethod
    def unpack(cls, data: bytes) -> Self:
        """Decode 16 bytes."""
        return cls(*_exactly(cls._codec, data, "log"))


@dataclass(frozen=True, slots=True)
class Iotlb:
    """An IOTLB message: what an I/O virtual address means.

    Attributes:
        iova: I/O virtual address.
        size: bytes.
        user_address: front-end user address.
        permission: 1 read, 2 write, 3 both.
        kind: 1 miss, 2 update, 3 invalidate, 4 access failed.

    """

    iova: int
    size: int
    user_address: int
    permission: int
    kind: int
    _codec: ClassVar[struct.Struct] = struct.Struct("=QQQBB6x")

    def pack(self) -> bytes:
        """Return 32 bytes, the last six padding."""
        return self._codec.pack(self.iova, self.size, self.user_address, self.permission, self.kind)

    @classmethod
    def unpack(cls, data: bytes) -> Self:
        """Decode 32 bytes."""
        return cls(*_exactly(cls._codec, data, "IOTLB"))


@dataclass(frozen=True, slots=True)
class ConfigSpace:
    """A virtio device config space message.

    Attributes:
        offset: of the first byte in configuration space.
        flags: 0 for a driver's write, 1 during migration; as front ends send it for a read.
        data: the bytes; their number is the size field.

    """

    offset: int
    flags: int
    data: bytes
    _codec: ClassVar[struct.Struct] = struct.Struct("=III")

    def pack(self) -> bytes:
        """Return 12 bytes and the data."""
        return self._codec.pack(self.offset, len(self.data), self.flags) + self.data

    @classmethod
    def unpack(cls, data: bytes) -> Self:
        """Decode; the size field must count the bytes that follow."""
        if len(data) < 12:
            raise WireError("a config message starts with 12 bytes",
                            spec="vhost-user, Virtio device config space", detail=f"{len(data)} given")
        offset, size, flags = cls._codec.unpack_from(data)
        if size != len(data) - 12:
            raise WireError("the size of a config message counts its bytes",
                            spec="vhost-user, Virtio device config space", detail=f"{size} of {len(data) - 12}")
        if offset + size > MAX_PAYLOAD:
            raise WireError("a config message stays within configuration space",
                            spec="vhost-user, Virtio device config space", detail=f"{offset} + {size}")
        return cls(offset, flags, bytes(data[12:]))


@dataclass(frozen=True, slots=True)
class VringArea:
    """A vring area description (VRING_HOST_NOTIFIER_MSG): queue index and flags, and where its doorbell lies."""

    index: int
    size: int
    offset: int
    _codec: ClassVar[struct.Struct] = struct.Struct("=QQQ")

    def pack(self) -> bytes:
        """Return 24 bytes."""
        return self._codec.pack(self.index, self.size, self.offset)

    @classmethod
    def unpack(cls, data: bytes) -> Self:
        """Decode 24 bytes."""
        return cls(*_exactly(cls._codec, data, "vring area"))


@dataclass(frozen=True, slots=True)
class Inflight:
    """An inflight description: the shared buffer that tracks requests in flight."""

    mmap_size: int
    mmap_offset: int
    num_queues: int
    queue_size: int
    _codec: ClassVar[struct.Struct] = struct.Struct("=QQHH4x")

    def pack(self) -> bytes:
        """Return 24 bytes, the last four padding as C compilers add it."""
        return self._codec.pack(self.mmap_size, self.mmap_offset, self.num_queues, self.queue_size)

    @classmethod
    def unpack(cls, data: bytes) -> Self:
        """Decode 20 bytes, or 24 with padding."""
        if len(data) == 20:
            data += bytes(4)
        return cls(*_exactly(cls._codec, data, "inflight"))


@dataclass(frozen=True, slots=True)
class Uuid:
    """A virtio shared object's name, 16 bytes as RFC 4122 has them."""

    uuid: bytes

    def pack(self) -> bytes:
        """Return 16 bytes."""
        return self.uuid

    @classmethod
    def unpack(cls, data: bytes) -> Self:
        """Decode 16 bytes."""
        if len(data) != 16:
            raise WireError("a shared object's UUID is 16 bytes", spec="vhost-user, VIRTIO shared object",
                            detail=f"{len(data)} given")
        return cls(bytes(data))


@dataclass(frozen=True, slots=True)
class DeviceState:
    """Device state transfer parameters: direction (0 save, 1 load) and migration phase (0 stopped)."""

    direction: int
    phase: int
    _codec: ClassVar[struct.Struct] = struct.Struct("=II")

    def pack(self) -> bytes:
        """Return 8 bytes."""
        return self._codec.pack(self.direction, self.phase)

    @classmethod
    def unpack(cls, data: bytes) -> Self:
        """Decode 8 bytes."""
        return cls(*_exactly(cls._codec, data, "device state"))


@dataclass(frozen=True, slots=True)
class Mmap:
    """An MMAP request: which part of a file to map where in a shared memory region."""

    shmid: int
    fd_offset: int
    shm_offset: int
    length: int
    flags: int
    _codec: ClassVar[struct.Struct] = struct.Struct("=B7xQQQQ")

    def pack(self) -> bytes:
        """Return 40 bytes."""
        return self._codec.pack(self.shmid, self.fd_offset, self.shm_offset, self.length, self.flags)

    @classmethod
    def unpack(cls, data: bytes) -> Self:
        """Decode 40 bytes."""
        return cls(*_exactly(cls._codec, data, "mmap"))


@dataclass(frozen=True, slots=True)
class ShmemConfig:
    """VIRTIO shared memory region configuration: the size of each of up to 256 regions, in bytes."""

    sizes: tuple[int, ...]
    _codec: ClassVar[struct.Struct] = struct.Struct("=II256Q")

    def pack(self) -> bytes:
        """Return 2056 bytes."""
        present = sum(1 for size in self.sizes if size)
        return self._codec.pack(present, 0, *(*self.sizes, *[0] * (256 - len(self.sizes))))

    @classmethod
    def unpack(cls, data: bytes) -> Self:
        """Decode 2056 bytes; sizes after the last region that exists are left out."""
        count, _, *sizes = _exactly(cls._codec, data, "shared memory config")
        if count != sum(1 for size in sizes if size):
            raise WireError("the count of shared memory regions counts them",
                            spec="vhost-user, VIRTIO shared memory region configuration", detail=str(count))
        while sizes and not sizes[-1]:
            sizes.pop()
        return cls(tuple(sizes))


@dataclass(frozen=True, slots=True)
class MessageType:
    """What the protocol says of one message.

    Attributes:
        payload: type of the request's payload.
        reply: type of the payload of the answer that always comes, or None where only REPLY_ACK brings one.
        fds: how many descriptors may come along, least and most.
        gate: the protocol feature without which it must not be sent.

    """

    payload: type[Payload]
    reply: type[Payload] | None = None
    fds: tuple[int, int] = (0, 0)
    gate: ProtocolFeature | None = None


_F = FrontendRequest
_P = ProtocolFeature

FRONTEND_MESSAGES: Final[dict[FrontendRequest, MessageType]] = {
    _F.GET_FEATURES: MessageType(Empty, U64),
    _F.SET_FEATURES: MessageType(U64),
    _F.SET_OWNER: MessageType(Empty),
    _F.RESET_OWNER: MessageType(Empty),
    _F.SET_MEM_TABLE: MessageType(MemoryTable, fds=(1, MAX_FDS)),
    _F.SET_LOG_BASE: MessageType(Log, U64, (0, 1)),
    _F.SET_LOG_FD: MessageType(Empty, fds=(1, 1)),
    _F.SET_VRING_NUM: MessageType(VringState),
    _F.SET_VRING_ADDR: MessageType(VringAddress),
    _F.SET_VRING_BASE: MessageType(VringState),
    _F.GET_VRING_BASE: MessageType(VringState, VringState),
    _F.SET_VRING_KICK: MessageType(U64, fds=(0, 1)),
    _F.SET_VRING_CALL: MessageType(U64, fds=(0, 1)),
    _F.SET_VRING_ERR: MessageType(U64, fds=(0, 1)),
    _F.GET_PROTOCOL_FEATURES: MessageType(Empty, U64),
    _F.SET_PROTOCOL_FEATURES: MessageType(U64),
    _F.GET_QUEUE_NUM: MessageType(Empty, U64, gate=_P.MQ),
    _F.SET_VRING_ENABLE: MessageType(VringState),
    _F.SEND_RARP: MessageType(U64, gate=_P.RARP),
    _F.NET_SET_MTU: MessageType(U64, gate=_P.MTU),
    _F.SET_BACKEND_REQ_FD: MessageType(Empty, fds=(1, 1), gate=_P.BACKEND_REQ),
    _F.IOTLB_MSG: MessageType(Iotlb),
    _F.SET_VRING_ENDIAN: MessageType(VringState, gate=_P.CROSS_ENDIAN),
    _F.GET_CONFIG: MessageType(ConfigSpace, ConfigSpace, gate=_P.CONFIG),
    _F.SET_CONFIG: MessageType(ConfigSpace, gate=_P.CONFIG),
    _F.CREATE_CRYPTO_SESSION: MessageType(Bytes, Bytes, gate=_P.CRYPTO_SESSION),
    _F.CLOSE_CRYPTO_SESSION: MessageType(U64, gate=_P.CRYPTO_SESSION),
    _F.POSTCOPY_ADVISE: MessageType(Empty, Empty, gate=_P.PAGEFAULT),
    _F.POSTCOPY_LISTEN: MessageType(Empty, gate=_P.PAGEFAULT),
    _F.POSTCOPY_END: MessageType(Empty, U64, gate=_P.PAGEFAULT),
    _F.GET_INFLIGHT_FD: MessageType(Inflight, Inflight, gate=_P.INFLIGHT_SHMFD),
    _F.SET_INFLIGHT_FD: MessageType(Inflight, fds=(1, 1), gate=_P.INFLIGHT_SHMFD),
    _F.GPU_SET_SOCKET: MessageType(Empty, fds=(1, 1)),
    _F.RESET_DEVICE: MessageType(Empty, gate=_P.RESET_DEVICE),
    _F.VRING_KICK: MessageType(VringState, gate=_P.INBAND_NOTIFICATIONS),
    _F.GET_MAX_MEM_SLOTS: MessageType(Empty, U64, gate=_P.CONFIGURE_MEM_SLOTS),
    _F.ADD_MEM_REG: MessageType(SingleRegion, fds=(1, 1), gate=_P.CONFIGURE_MEM_SLOTS),
    _F.REM_MEM_REG: MessageType(SingleRegion, fds=(0, 1), gate=_P.CONFIGURE_MEM_SLOTS),
    _F.SET_STATUS: MessageType(U64, gate=_P.STATUS),
    _F.GET_STATUS: MessageType(Empty, U64, gate=_P.STATUS),
    _F.GET_SHARED_OBJECT: MessageType(Uuid, Empty, gate=_P.SHARED_OBJECT),
    _F.SET_DEVICE_STATE_FD: MessageType(DeviceState, U64, (1, 1), _P.DEVICE_STATE),
    _F.CHECK_DEVICE_STATE: MessageType(Empty, U64, gate=_P.DEVICE_STATE),
    _F.GET_SHMEM_CONFIG: MessageType(Empty, ShmemConfig, gate=_P.SHMEM_MAP),
}
"""Every message that a front end sends."""

_B = BackendRequest

BACKEND_MESSAGES: Final[dict[BackendRequest, MessageType]] = {
    _B.IOTLB_MSG: MessageType(Iotlb),
    _B.CONFIG_CHANGE_MSG: MessageType(Empty, gate=_P.CONFIG),
    _B.VRING_HOST_NOTIFIER_MSG: MessageType(VringArea, fds=(0, 1), gate=_P.HOST_NOTIFIER),
    _B.VRING_CALL: MessageType(VringState, gate=_P.INBAND_NOTIFICATIONS),
    _B.VRING_ERR: MessageType(VringState, gate=_P.INBAND_NOTIFICATIONS),
    _B.SHARED_OBJECT_ADD: MessageType(Uuid, gate=_P.SHARED_OBJECT),
    _B.SHARED_OBJECT_REMOVE: MessageType(Uuid, gate=_P.SHARED_OBJECT),
    _B.SHARED_OBJECT_LOOKUP: MessageType(Uuid, U64, gate=_P.SHARED_OBJECT),
    _B.SHMEM_MAP: MessageType(Mmap, fds=(1, 1), gate=_P.SHMEM_MAP),
    _B.SHMEM_UNMAP: MessageType(Mmap, gate=_P.SHMEM_MAP),
}
"""Every message that a back end sends on its own account."""


@dataclass(frozen=True, slots=True)
class Header:
    """A message header (Header): request, flags, and the payload's size in bytes."""

    request: int
    flags: int
    size: int

    @property
    def is_reply(self) -> bool:
        """Whether it answers a message."""
        return bool(self.flags & REPLY)

    @property
    def need_reply(self) -> bool:
        """Whether the sender waits for an answer (REPLY_ACK)."""
        return bool(self.flags & NEED_REPLY)

    @classmethod
    def unpack(cls, data: bytes) -> Self:
        """Decode 12 bytes.

        Raises:
            WireError: another version, or a payload that no message has.

        """
        request, flags, size = _exactly(_HEADER, data, "header")
        if flags & VERSION_MASK != VERSION:
            raise WireError("the protocol version is 1", spec="vhost-user, Header", detail=f"flags {flags:#x}")
        if size > MAX_PAYLOAD:
            raise WireError(f"a payload has at most {MAX_PAYLOAD} bytes", spec="vhost-user, Header", detail=str(size))
        return cls(request, flags, size)


def encode(request: int, payload: Payload | None = None, flags: int = 0) -> bytes:
    """Return a whole message, header and payload; the version is added to `flags`."""
    body = b"" if payload is None else payload.pack()
    return _HEADER.pack(request, flags | VERSION, len(body)) + body


class FrameReader:
    """Cuts a byte stream into messages without holding a socket.

    Read exactly `wanted` bytes at most at a time, so that descriptors arrive with the header that they belong to.

    >>> reader = FrameReader()
    >>> reader.wanted
    12
    >>> reader.feed(encode(FrontendRequest.SET_OWNER))
    (Header(request=3, flags=1, size=0), b'')
    """

    def __init__(self) -> None:
        self._header: Header | None = None
        self._data = bytearray()

    @property
    def wanted(self) -> int:
        """How many bytes are missing to the end of the header, or of the payload."""
        target = HEADER_SIZE if self._header is None else self._header.size
        return target - len(self._data)

    @property
    def at_start(self) -> bool:
        """Whether the next byte is the first of a message."""
        return self._header is None and not self._data

    def feed(self, data: bytes) -> tuple[Header, bytes] | None:
        """Take up to `wanted` bytes; return a message when it is whole.

        Raises:
            WireError: the header is not one.

        """
        self._data += data
        if self._header is None:
            if len(self._data) < HEADER_SIZE:
                return None
            self._header = Header.unpack(bytes(self._data))
            self._data.clear()
        if len(self._data) < self._header.size:
            return None
        done = self._header, bytes(self._data)
        self._header = None
        self._data.clear()
        return done
