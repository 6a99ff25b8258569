"""The vfio-user protocol: every message of both directions, as values.

A client (a virtual machine monitor) reaches a PCI function that a server plays, over a Unix stream socket. Each message
is a 16-byte header, a payload, and file descriptors that travel with the header's first byte. Numbers are in the
machine's own byte order. Section names below are those of QEMU's ``docs/interop/vfio-user.rst``; layouts of VFIO's own
are those of ``linux/vfio.h``.

Decoding takes bytes and gives a payload object or `WireError`; nothing here holds a socket or a descriptor.
"""

from __future__ import annotations

import enum
import json
import struct
from dataclasses import dataclass, field
from typing import Any, ClassVar, Final, Protocol, Self

from chamber.wire.errors import WireError

__all__ = (
    "ERROR",
    "HEADER_SIZE",
    "MAX_FDS",
    "MAX_MESSAGE",
    "MAX_TRANSFER",
    "MESSAGES",
    "NO_REPLY",
    "REPLY",
    "Access",
    "Bitmap",
    "Command",
    "DeviceFeature",
    "DeviceInfo",
    "DmaMap",
    "DmaMapFlag",
    "DmaTransfer",
    "DmaUnmap",
    "Empty",
    "FeatureIndex",
    "FrameReader",
    "Header",
    "IrqFlag",
    "IrqIndex",
    "IrqInfo",
    "IrqSet",
    "IrqSetFlag",
    "LogRange",
    "LogReport",
    "LogStart",
    "MessageType",
    "MigrationData",
    "MigrationState",
    "Payload",
    "RegionAccess",
    "RegionFlag",
    "RegionInfo",
    "RegionIoFds",
    "SubRegion",
    "Version",
    "WriteMulti",
    "encode",
)

HEADER_SIZE: Final = 16
MAX_TRANSFER: Final = 1 << 20
"""Bytes of data of one message, unless both sides agree on another number (Version)."""
MAX_MESSAGE: Final = MAX_TRANSFER + 4096
MAX_FDS: Final = 16
_HEADER: Final = struct.Struct("=HHIII")
_TYPE_MASK, REPLY, NO_REPLY, ERROR = 0xF, 1, 1 << 4, 1 << 5
_SPEC: Final = "vfio-user"


class Command(enum.IntEnum):
    """Message types (Commands)."""

    VERSION = 1
    DMA_MAP = 2
    DMA_UNMAP = 3
    DEVICE_GET_INFO = 4
    DEVICE_GET_REGION_INFO = 5
    DEVICE_GET_REGION_IO_FDS = 6
    DEVICE_GET_IRQ_INFO = 7
    DEVICE_SET_IRQS = 8
    REGION_READ = 9
    REGION_WRITE = 10
    DMA_READ = 11
    DMA_WRITE = 12
    DEVICE_RESET = 13
    REGION_WRITE_MULTI = 15
    DEVICE_FEATURE = 16
    MIG_DATA_READ = 17
    MIG_DATA_WRITE = 18


class DmaMapFlag(enum.IntFlag):
    """Flags of DMA_MAP."""

    READ = 1
    WRITE = 2


class RegionFlag(enum.IntFlag):
    """Flags of a region (struct vfio_region_info)."""

    READ = 1
    WRITE = 2
    MMAP = 4
    CAPS = 8


class IrqIndex(enum.IntEnum):
    """Kinds of interrupt of a PCI function."""

    INTX = 0
    MSI = 1
    MSIX = 2
    ERR = 3
    REQ = 4


class IrqFlag(enum.IntFlag):
    """Flags of a kind of interrupt (struct vfio_irq_info)."""

    EVENTFD = 1
    MASKABLE = 2
    AUTOMASKED = 4
    NORESIZE = 8


class IrqSetFlag(enum.IntFlag):
    """Flags of DEVICE_SET_IRQS: one of the first three, one of the others."""

    DATA_NONE = 1
    DATA_BOOL = 2
    DATA_EVENTFD = 4
    MASK = 8
    UNMASK = 16
    TRIGGER = 32


class FeatureIndex(enum.IntEnum):
    """Features of DEVICE_FEATURE (linux/vfio.h)."""

    MIGRATION = 1
    MIG_DEVICE_STATE = 2
    DMA_LOGGING_START = 6
    DMA_LOGGING_STOP = 7
    DMA_LOGGING_REPORT = 8


class MigrationState(enum.IntEnum):
    """States of a device that migrates (enum vfio_device_mig_state)."""

    ERROR = 0
    STOP = 1
    RUNNING = 2
    STOP_COPY = 3
    RESUMING = 4
    RUNNING_P2P = 5
    PRE_COPY = 6
    PRE_COPY_P2P = 7


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


def _head(codec: struct.Struct, data: bytes, name: str) -> tuple[Any, ...]:
    if len(data) < codec.size:
        raise WireError(f"{name} has {codec.size} bytes at least", spec=_SPEC, detail=f"{len(data)} given")
    return codec.unpack_from(data)


def _room(argsz: int, size: int, name: str) -> None:
    if argsz < size:
        raise WireError(f"argsz of {name} leaves room for it", spec=_SPEC, detail=f"{argsz} of {size}")


def _no_wrap(start: int, size: int, what: str) -> None:
    if not size or start + size > 1 << 64:
        raise WireError(f"{what} is not empty and does not wrap around", spec=_SPEC, detail=f"{start:#x}, {size:#x}")


@dataclass(frozen=True, slots=True)
class Empty:
    """No payload; bytes that come nevertheless are not read."""

    def pack(self) -> bytes:
        """Return no bytes."""
        return b""

    @classmethod
    def unpack(cls, data: bytes) -> Self:  # noqa: ARG003 - whatever it is
        """Decode."""
        return cls()


@dataclass(frozen=True, slots=True)
class Version:
    """VERSION: the protocol's, and what a side can do, as JSON.

    Attributes:
        major: versions of another major number don't understand each other.
        minor: the smaller one of both is spoken.
        capabilities: by name.

    """

    major: int
    minor: int
    capabilities: dict[str, Any] = field(default_factory=dict)
    _codec: ClassVar[struct.Struct] = struct.Struct("=HH")

    def pack(self) -> bytes:
        """Return the numbers and a text that a zero byte ends."""
        return self._codec.pack(self.major, self.minor) + json.dumps(
            {"capabilities": self.capabilities}).encode() + b"\0"

    @classmethod
    def unpack(cls, data: bytes) -> Self:
        """Decode; no text stands for no capabilities."""
        major, minor = _head(cls._codec, data, "VERSION")
        text = data[cls._codec.size:].partition(b"\0")[0]
        if not text:
            return cls(major, minor)
        try:
            document = json.loads(text)
        except (ValueError, RecursionError):
            raise WireError("capabilities are JSON", spec=f"{_SPEC}, VFIO_USER_VERSION") from None
        capabilities = document.get("capabilities", {}) if isinstance(document, dict) else None
        if not isinstance(capabilities, dict):
            raise WireError("capabilities are an object", spec=f"{_SPEC}, VFIO_USER_VERSION")
        return cls(major, minor, capabilities)

    def number(self, name: str, default: int) -> int:
        """Return a capability that is a number, not negative.

        Raises:
            WireError: it is something else.

        """
        value = self.capabilities.get(name, default)
        if not isinstance(value, int) or isinstance(value, bool) or value < 0:
            raise WireError(f"{name} is a number", spec=f"{_SPEC}, VFIO_USER_VERSION", detail=repr(value)[:40])
        return value


@dataclass(frozen=True, slots=True)
class DmaMap:
    """DMA_MAP: the function may reach memory; without a descriptor, by messages alone.

    Attributes:
        flags: `DmaMapFlag`.
        offset: where it is in the file that comes along.
        address: where the function finds it.
        size: bytes.

    """

    flags: int
    offset: int
    address: int
    size: int
    _codec: ClassVar[struct.Struct] = struct.Struct("=IIQQQ")

    def pack(self) -> bytes:
        """Return 32 bytes."""
        return self._codec.pack(self._codec.size, self.flags, self.offset, self.address, self.size)

    @classmethod
    def unpack(cls, data: bytes) -> Self:
        """Decode 32 bytes."""
        argsz, flags, offset, address, size = _head(cls._codec, data, "DMA_MAP")
        _room(argsz, cls._codec.size, "DMA_MAP")
        _no_wrap(address, size, "a range of memory")
        _no_wrap(offset, size, "a range of a file")
        return cls(flags, offset, address, size)


@dataclass(frozen=True, slots=True)
class DmaUnmap:
    """DMA_UNMAP: the function must reach that memory no more. Flag 2 stands for all memory."""

    flags: int
    address: int
    size: int
    ALL: ClassVar[int] = 2
    _codec: ClassVar[struct.Struct] = struct.Struct("=IIQQ")

    def pack(self) -> bytes:
        """Return 24 bytes."""
        return self._codec.pack(self._codec.size, self.flags, self.address, self.size)

    @classmethod
    def unpack(cls, data: bytes) -> Self:
        """Decode 24 bytes."""
        argsz, flags, address, size = _head(cls._codec, data, "DMA_UNMAP")
        _room(argsz, cls._codec.size, "DMA_UNMAP")
        if not flags & cls.ALL:
            _no_wrap(address, size, "a range of memory")
        return cls(flags, address, size)


@dataclass(frozen=True, slots=True)
class DeviceInfo:
    """DEVICE_GET_INFO: how many regions and kinds of interrupt there are."""

    flags: int
    regions: int
    irqs: int
    RESET: ClassVar[int] = 1
    PCI: ClassVar[int] = 2
    _codec: ClassVar[struct.Struct] = struct.Struct("=IIII")

    def pack(self) -> bytes:
        """Return 16 bytes."""
        return self._codec.pack(self._codec.size, self.flags, self.regions, self.irqs)

    @classmethod
    def unpack(cls, data: bytes) -> Self:
        """Decode 16 bytes."""
        argsz, flags, regions, irqs = _head(cls._codec, data, "DEVICE_GET_INFO")
        _room(argsz, cls._codec.size, "DEVICE_GET_INFO")
        return cls(flags, regions, irqs)


_CAPABILITY = struct.Struct("=HHI")
_SPARSE_MMAP: Final = 1
_AREA = struct.Struct("=QQ")
_MOST_AREAS: Final = 64


@dataclass(frozen=True, slots=True)
class RegionInfo:
    """DEVICE_GET_REGION_INFO.

    Attributes:
        index: the region: BARs from 0, 6 the ROM, 7 configuration space, 8 VGA.
        flags: `RegionFlag`; CAPS is set for who has `areas`.
        size: bytes.
        offset: where it is in the file that comes along, if it can be mapped.
        areas: (offset, size) of what can be mapped, where that is not all of it.
        argsz: room that the asker has for an answer.

    """

    index: int
    flags: int = 0
    size: int = 0
    offset: int = 0
    areas: tuple[tuple[int, int], ...] = ()
    argsz: int = 1 << 12
    _codec: ClassVar[struct.Struct] = struct.Struct("=IIIIQQ")

    def pack(self) -> bytes:
        """Return 32 bytes, and the capability that lists areas; a request is just the 32."""
        more = b""
        flags = self.flags
        if self.areas:
            flags |= RegionFlag.CAPS
            more = _CAPABILITY.pack(_SPARSE_MMAP, 1, 0) + struct.pack("=II", len(self.areas), 0) + b"".join(
                _AREA.pack(*area) for area in self.areas)
        size = self._codec.size + len(more)
        caps = self._codec.size if more else 0
        # As VFIO has it: who has too little room learns how much it takes, and asks again.
        if size > self.argsz:
            more, caps = b"", 0
        return self._codec.pack(max(size, self._codec.size), flags, self.index, caps, self.size, self.offset) + more

    def request(self) -> bytes:
        """Return what asks for it."""
        return self._codec.pack(self.argsz, 0, self.index, 0, 0, 0)

    @classmethod
    def unpack(cls, data: bytes) -> Self:
        """Decode a request or an answer."""
        argsz, flags, index, caps, size, offset = _head(cls._codec, data, "DEVICE_GET_REGION_INFO")
        _room(argsz, cls._codec.size, "DEVICE_GET_REGION_INFO")
        areas: tuple[tuple[int, int], ...] = ()
        seen: set[int] = set()
        while caps and flags & RegionFlag.CAPS:
            if caps in seen or caps < cls._codec.size or caps + _CAPABILITY.size > len(data):
                raise WireError("capabilities of a region are a list within the message", spec=_SPEC, detail=str(caps))
            seen.add(caps)
            kind, _, following = _CAPABILITY.unpack_from(data, caps)
            if kind == _SPARSE_MMAP:
                areas = cls._areas(data, caps + _CAPABILITY.size)
            caps = following
        return cls(index, flags & ~RegionFlag.CAPS, size, offset, areas, argsz)

    @staticmethod
    def _areas(data: bytes, at: int) -> tuple[tuple[int, int], ...]:
        if at + 8 > len(data):
            raise WireError("a list of areas has a count", spec=_SPEC)
        count = struct.unpack_from("=I", data, at)[0]
        if count > _MOST_AREAS or at + 8 + count * _AREA.size > len(data):
            raise WireError(f"a list holds the areas that it counts, at most {_MOST_AREAS}", spec=_SPEC,
                            detail=str(count))
        return tuple((int(a), int(b)) for a, b in _AREA.iter_unpack(data[at + 8:at + 8 + count * _AREA.size]))


@dataclass(frozen=True, slots=True)
class SubRegion:
    """A piece of a region that a descriptor stands for: a write to it is a write to an eventfd, without a message.

    Attributes:
        size: bytes of an access that is meant; any if 0.
        fd_index: which of the message's descriptors; several pieces may share one.

    """

    IOEVENTFD: ClassVar = 0
    """The kind of descriptor that is served here; others bring messages of their own."""

    offset: int
    size: int
    fd_index: int
    kind: int = IOEVENTFD
    flags: int = 0
    datamatch: int = 0
    _codec: ClassVar[struct.Struct] = struct.Struct("=QQIIIIQ")

    def pack(self) -> bytes:
        """Return 40 bytes."""
        return self._codec.pack(self.offset, self.size, self.fd_index, self.kind, self.flags, 0, self.datamatch)


@dataclass(frozen=True, slots=True)
class RegionIoFds:
    """DEVICE_GET_REGION_IO_FDS: which pieces of a region have descriptors.

    Attributes:
        argsz: bytes that there is room for in an answer, or that the whole one has; at least what this message has.

    """

    index: int
    pieces: tuple[SubRegion, ...] = ()
    argsz: int = 0
    _codec: ClassVar[struct.Struct] = struct.Struct("=IIII")

    def pack(self) -> bytes:
        """Return 16 bytes and 40 for each piece."""
        body = b"".join(piece.pack() for piece in self.pieces)
        return self._codec.pack(max(self.argsz, self._codec.size + len(body)), 0, self.index, len(self.pieces)) + body

    @classmethod
    def unpack(cls, data: bytes) -> Self:
        """Decode a request or an answer."""
        argsz, _, index, count = _head(cls._codec, data, "DEVICE_GET_REGION_IO_FDS")
        _room(argsz, cls._codec.size, "DEVICE_GET_REGION_IO_FDS")
        piece = SubRegion._codec  # noqa: SLF001 - of the same file
        rest = data[cls._codec.size:]
        if count * piece.size > len(rest):
            raise WireError("a list holds the pieces that it counts", spec=_SPEC, detail=str(count))
        pieces = tuple(SubRegion(o, s, f, k, fl, d)
                       for o, s, f, k, fl, _, d in piece.iter_unpack(rest[:count * piece.size]))
        return cls(index, pieces, argsz)


@dataclass(frozen=True, slots=True)
class IrqInfo:
    """DEVICE_GET_IRQ_INFO: how many interrupts of a kind there are."""

    index: int
    flags: int = 0
    count: int = 0
    _codec: ClassVar[struct.Struct] = struct.Struct("=IIII")

    def pack(self) -> bytes:
        """Return 16 bytes."""
        return self._codec.pack(self._codec.size, self.flags, self.index, self.count)

    @classmethod
    def unpack(cls, data: bytes) -> Self:
        """Decode 16 bytes."""
        argsz, flags, index, count = _head(cls._codec, data, "DEVICE_GET_IRQ_INFO")
        _room(argsz, cls._codec.size, "DEVICE_GET_IRQ_INFO")
        return cls(index, flags, count)


@dataclass(frozen=True, slots=True)
class IrqSet:
    """DEVICE_SET_IRQS: what shall become of some interrupts of a kind.

    Attributes:
        flags: `IrqSetFlag`.
        index: the kind.
        start: the first of them.
        count: how many; 0 with DATA_NONE and TRIGGER takes all of a kind away.
        bools: for DATA_BOOL, which of them.

    """

    flags: int
    index: int
    start: int
    count: int
    bools: tuple[bool, ...] = ()
    MOST: ClassVar[int] = 2048
    _codec: ClassVar[struct.Struct] = struct.Struct("=IIIII")

    def pack(self) -> bytes:
        """Return 20 bytes, and one for each bool."""
        return self._codec.pack(self._codec.size + len(self.bools), self.flags, self.index, self.start,
                                self.count) + bytes(self.bools)

    @classmethod
    def unpack(cls, data: bytes) -> Self:
        """Decode."""
        argsz, flags, index, start, count = _head(cls._codec, data, "DEVICE_SET_IRQS")
        _room(argsz, cls._codec.size, "DEVICE_SET_IRQS")
        how = flags & (IrqSetFlag.DATA_NONE | IrqSetFlag.DATA_BOOL | IrqSetFlag.DATA_EVENTFD)
        what = flags & (IrqSetFlag.MASK | IrqSetFlag.UNMASK | IrqSetFlag.TRIGGER)
        if how.bit_count() != 1 or what.bit_count() != 1:
            raise WireError("interrupts are set in one way, to one end", spec=_SPEC, detail=f"flags {flags:#x}")
        if start + count > cls.MOST:
            raise WireError(f"there are at most {cls.MOST} interrupts of a kind", spec=_SPEC,
                            detail=f"{start} + {count}")
        rest = data[cls._codec.size:]
        if not flags & IrqSetFlag.DATA_BOOL:
            return cls(flags, index, start, count)
        if len(rest) < count:
            raise WireError("each interrupt has a byte", spec=_SPEC, detail=f"{len(rest)} of {count}")
        return cls(flags, index, start, count, tuple(bool(byte) for byte in rest[:count]))


@dataclass(frozen=True, slots=True)
class RegionAccess:
    """REGION_READ and REGION_WRITE, and their answers: a request to read has no data, nor has an answer to a write."""

    offset: int
    region: int
    count: int
    data: bytes = b""
    _codec: ClassVar[struct.Struct] = struct.Struct("=QII")

    def pack(self) -> bytes:
        """Return 16 bytes and the data."""
        return self._codec.pack(self.offset, self.region, self.count) + self.data

    @classmethod
    def unpack(cls, data: bytes) -> Self:
        """Decode; data is there as a whole, or not at all."""
        offset, region, count = _head(cls._codec, data, "an access to a region")
        rest = data[cls._codec.size:]
        if count > MAX_TRANSFER or (rest and len(rest) != count):
            raise WireError(f"an access brings the bytes that it counts, at most {MAX_TRANSFER}", spec=_SPEC,
                            detail=f"{len(rest)} of {count}")
        return cls(offset, region, count, rest)


@dataclass(frozen=True, slots=True)
class DmaTransfer:
    """DMA_READ and DMA_WRITE, and their answers: a server reaches memory for which it has no descriptor."""

    address: int
    count: int
    data: bytes = b""
    _codec: ClassVar[struct.Struct] = struct.Struct("=QQ")

    def pack(self) -> bytes:
        """Return 16 bytes and the data."""
        return self._codec.pack(self.address, self.count) + self.data

    @classmethod
    def unpack(cls, data: bytes) -> Self:
        """Decode; data is there as a whole, or not at all."""
        address, count = _head(cls._codec, data, "a DMA transfer")
        rest = data[cls._codec.size:]
        if count > MAX_TRANSFER or (rest and len(rest) != count):
            raise WireError(f"a transfer brings the bytes that it counts, at most {MAX_TRANSFER}", spec=_SPEC,
                            detail=f"{len(rest)} of {count}")
        return cls(address, count, rest)


@dataclass(frozen=True, slots=True)
class Access:
    """One write of REGION_WRITE_MULTI: eight bytes at most."""

    offset: int
    region: int
    data: bytes


@dataclass(frozen=True, slots=True)
class WriteMulti:
    """REGION_WRITE_MULTI: several small writes; the answer counts those that were done."""

    writes: tuple[Access, ...]
    _count: ClassVar[struct.Struct] = struct.Struct("=Q")
    _codec: ClassVar[struct.Struct] = struct.Struct("=QII8s")

    def pack(self) -> bytes:
        """Return 8 bytes and 24 for each write."""
        return self._count.pack(len(self.writes)) + b"".join(
            self._codec.pack(w.offset, w.region, len(w.data), w.data) for w in self.writes)

    @classmethod
    def unpack(cls, data: bytes) -> Self:
        """Decode."""
        (count,) = _head(cls._count, data, "REGION_WRITE_MULTI")
        rest = data[cls._count.size:]
        if count * cls._codec.size > len(rest):
            raise WireError("a message holds the writes that it counts", spec=_SPEC, detail=str(count))
        writes = []
        for offset, region, size, value in cls._codec.iter_unpack(rest[:count * cls._codec.size]):
            if size > 8:
                raise WireError("a write of several has eight bytes at most", spec=_SPEC, detail=str(size))
            writes.append(Access(offset, region, value[:size]))
        return cls(tuple(writes))


@dataclass(frozen=True, slots=True)
class DeviceFeature:
    """DEVICE_FEATURE: ask for a feature, change it, or ask whether it is there.

    Attributes:
        index: `FeatureIndex`.
        flags: GET, SET or PROBE.
        data: what the feature says.
        argsz: room that the asker has for an answer.

    """

    index: int
    flags: int
    data: bytes = b""
    argsz: int = 0
    GET: ClassVar[int] = 1 << 16
    SET: ClassVar[int] = 1 << 17
    PROBE: ClassVar[int] = 1 << 18
    _codec: ClassVar[struct.Struct] = struct.Struct("=II")

    def pack(self) -> bytes:
        """Return 8 bytes and the data."""
        return self._codec.pack(max(self.argsz, self._codec.size + len(self.data)), self.index | self.flags) + self.data

    @classmethod
    def unpack(cls, data: bytes) -> Self:
        """Decode."""
        argsz, word = _head(cls._codec, data, "DEVICE_FEATURE")
        _room(argsz, cls._codec.size, "DEVICE_FEATURE")
        flags = word & (cls.GET | cls.SET | cls.PROBE)
        if not flags or flags & (cls.GET | cls.SET) == cls.GET | cls.SET:
            raise WireError("a feature is asked for, changed or looked for", spec=_SPEC, detail=f"{word:#x}")
        return cls(word & 0xFFFF, flags, data[cls._codec.size:], argsz)


@dataclass(frozen=True, slots=True)
class LogRange:
    """A range of addresses that a function may write to."""

    address: int
    size: int


@dataclass(frozen=True, slots=True)
class LogStart:
    """What DMA_LOGGING_START says: which pages are to be watched."""

    page_size: int
    ranges: tuple[LogRange, ...]
    MOST: ClassVar[int] = 1024
    _codec: ClassVar[struct.Struct] = struct.Struct("=QII")

    def pack(self) -> bytes:
        """Return 16 bytes and 16 for each range."""
        return self._codec.pack(self.page_size, len(self.ranges), 0) + b"".join(
            _AREA.pack(r.address, r.size) for r in self.ranges)

    @classmethod
    def unpack(cls, data: bytes) -> Self:
        """Decode."""
        page_size, count, _ = _head(cls._codec, data, "DMA_LOGGING_START")
        rest = data[cls._codec.size:]
        if page_size < 4096 or page_size & (page_size - 1):
            raise WireError("a page is a power of two, of 4096 bytes at least", spec=_SPEC, detail=str(page_size))
        if count > cls.MOST or count * _AREA.size > len(rest):
            raise WireError(f"a message holds the ranges that it counts, at most {cls.MOST}", spec=_SPEC,
                            detail=str(count))
        ranges = []
        for address, size in _AREA.iter_unpack(rest[:count * _AREA.size]):
            _no_wrap(address, size, "a range to be watched")
            ranges.append(LogRange(address, size))
        return cls(page_size, tuple(ranges))


@dataclass(frozen=True, slots=True)
class LogReport:
    """What DMA_LOGGING_REPORT asks for: which pages of a range were written since."""

    address: int
    size: int
    page_size: int
    MOST_PAGES: ClassVar[int] = 1 << 22
    _codec: ClassVar[struct.Struct] = struct.Struct("=QQQ")

    def pack(self) -> bytes:
        """Return 24 bytes; an answer has the bitmap behind them."""
        return self._codec.pack(self.address, self.size, self.page_size)

    @classmethod
    def unpack(cls, data: bytes) -> Self:
        """Decode 24 bytes."""
        address, size, page_size = _head(cls._codec, data, "DMA_LOGGING_REPORT")
        _no_wrap(address, size, "a range to report on")
        if page_size < 4096 or page_size & (page_size - 1) or size // page_size > cls.MOST_PAGES:
            raise WireError(f"a page is a power of two, and there are at most {cls.MOST_PAGES}", spec=_SPEC,
                            detail=f"{size} / {page_size}")
        return cls(address, size, page_size)

    @property
    def bitmap_bytes(self) -> int:
        """Bytes of the bitmap: whole quadwords."""
        pages = -(-self.size // self.page_size)
        return -(-pages // 64) * 8


@dataclass(frozen=True, slots=True)
class Bitmap:
    """An answer of DMA_LOGGING_REPORT: a bit for each page, the lowest first."""

    report: LogReport
    bits: bytes

    def pack(self) -> bytes:
        """Return 24 bytes and the bitmap."""
        return self.report.pack() + self.bits

    @classmethod
    def unpack(cls, data: bytes) -> Self:
        """Decode."""
        report = LogReport.unpack(data)
        bits = data[24:]
        if len(bits) != report.bitmap_bytes:
            raise WireError("a bitmap has a bit for each page", spec=_SPEC,
                            detail=f"{len(bits)} of {report.bitmap_bytes} bytes")
        return cls(report, bits)


@dataclass(frozen=True, slots=True)
class MigrationData:
    """MIG_DATA_READ and MIG_DATA_WRITE, and their answers: a piece of a device's state."""

    size: int
    data: bytes = b""
    _codec: ClassVar[struct.Struct] = struct.Struct("=II")

    def pack(self) -> bytes:
        """Return 8 bytes and the data."""
        return self._codec.pack(self._codec.size + len(self.data), self.size) + self.data

    @classmethod
    def unpack(cls, data: bytes) -> Self:
        """Decode; data is there as a whole, or not at all."""
        argsz, size = _head(cls._codec, data, "migration data")
        _room(argsz, cls._codec.size, "migration data")
        rest = data[cls._codec.size:]
        if size > MAX_TRANSFER or (rest and len(rest) != size):
            raise WireError(f"a piece of state has the bytes that it counts, at most {MAX_TRANSFER}", spec=_SPEC,
                            detail=f"{len(rest)} of {size}")
        return cls(size, rest)


@dataclass(frozen=True, slots=True)
class MessageType:
    """What a command carries, from whom.

    Attributes:
        request: its payload.
        by_server: whether a server sends it.
        fds: fewest and most descriptors that come along.

    """

    request: type[Payload]
    by_server: bool = False
    fds: tuple[int, int] = (0, 0)


MESSAGES: Final[dict[Command, MessageType]] = {
    Command.VERSION: MessageType(Version),
    Command.DMA_MAP: MessageType(DmaMap, fds=(0, 1)),
    Command.DMA_UNMAP: MessageType(DmaUnmap),
    Command.DEVICE_GET_INFO: MessageType(DeviceInfo),
    Command.DEVICE_GET_REGION_INFO: MessageType(RegionInfo),
    Command.DEVICE_GET_REGION_IO_FDS: MessageType(RegionIoFds),
    Command.DEVICE_GET_IRQ_INFO: MessageType(IrqInfo),
    Command.DEVICE_SET_IRQS: MessageType(IrqSet, fds=(0, MAX_FDS)),
    Command.REGION_READ: MessageType(RegionAccess),
    Command.REGION_WRITE: MessageType(RegionAccess),
    Command.DMA_READ: MessageType(DmaTransfer, by_server=True),
    Command.DMA_WRITE: MessageType(DmaTransfer, by_server=True),
    Command.DEVICE_RESET: MessageType(Empty),
    Command.REGION_WRITE_MULTI: MessageType(WriteMulti),
    Command.DEVICE_FEATURE: MessageType(DeviceFeature),
    Command.MIG_DATA_READ: MessageType(MigrationData),
    Command.MIG_DATA_WRITE: MessageType(MigrationData),
}
"""Every message."""


@dataclass(frozen=True, slots=True)
class Header:
    """A message header (Header).

    Attributes:
        message_id: the sender's; the reply has it too.
        command: as in `Command`.
        size: bytes of the payload; the header is not counted.
        flags: type, NO_REPLY, ERROR.
        error: an errno, where ERROR is set.

    """

    message_id: int
    command: int
    size: int
    flags: int = 0
    error: int = 0

    @property
    def is_reply(self) -> bool:
        """Whether it answers a message."""
        return self.flags & _TYPE_MASK == REPLY

    @property
    def wants_reply(self) -> bool:
        """Whether the sender waits for an answer."""
        return not self.is_reply and not self.flags & NO_REPLY

    @property
    def failed(self) -> bool:
        """Whether it says that something did not work."""
        return bool(self.flags & ERROR)

    @classmethod
    def unpack(cls, data: bytes) -> Self:
        """Decode 16 bytes.

        Raises:
            WireError: neither a command nor a reply, or a size that no message has.

        """
        message_id, command, size, flags, error = _head(_HEADER, data, "a header")
        if flags & _TYPE_MASK > REPLY:
            raise WireError("a message is a command or a reply", spec=f"{_SPEC}, Header", detail=f"flags {flags:#x}")
        if not HEADER_SIZE <= size <= MAX_MESSAGE:
            raise WireError(f"a message has {HEADER_SIZE} to {MAX_MESSAGE} bytes", spec=f"{_SPEC}, Header",
                            detail=str(size))
        return cls(message_id, command, size - HEADER_SIZE, flags, error)


def encode(message_id: int, command: int, body: bytes = b"", flags: int = 0, error: int = 0) -> bytes:
    """Return a whole message."""
    return _HEADER.pack(message_id & 0xFFFF, command, HEADER_SIZE + len(body), flags, error) + body


class FrameReader:
    """Cuts a byte stream into messages without holding a socket.

    Read exactly `wanted` bytes at most at a time, so that descriptors arrive with the header that they belong to.

    >>> reader = FrameReader()
    >>> reader.feed(encode(7, Command.DEVICE_RESET))
    (Header(message_id=7, command=13, size=0, flags=0, error=0), b'')
    """

    def __init__(self) -> None:
        self._header: Header | None = None
        self._data = bytearray()

    @property
    def wanted(self) -> int:
        """How many bytes are missing to the end of the header, or of the payload."""
        return (HEADER_SIZE if self._header is None else self._header.size) - len(self._data)

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
