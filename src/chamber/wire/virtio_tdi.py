"""DEVICE_SPECIFIC_INFO of a virtio device, version 1.0: what a guest learns of it from the signed report alone.

Neither virtio nor TDISP says what a virtio device puts there. This format is Chamber's own, and specified in
docs/device-specific-info.md, to which the sections here refer.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Final, Self

from chamber.wire.errors import WireError
from chamber.wire.layout import Field, Layout, Role

__all__ = (
    "MAGIC",
    "MOST_QUEUES",
    "MOST_STRUCTURES",
    "VERSION",
    "Guarantee",
    "Location",
    "RecordType",
    "VirtioTdiInfo",
)

MAGIC: Final = 0x49445456
"""``VTDI``."""
VERSION: Final = 1, 0
MOST_STRUCTURES: Final = 64
MOST_QUEUES: Final = 1024
_FEATURE_WORDS: Final = 2
"""128 feature bits (virtio 1.4, 2.2), in words of 64."""
_SPEC: Final = "VTDI 1.0"
_MANDATORY: Final = 1 << 15
_PAD: Final = 4

_HEAD: Final = Layout(
    "virtio_tdi_info", f"{_SPEC}, 2",
    Field("magic", "le32", Role.ID), Field("major", "u8", Role.ID), Field("minor", "u8", Role.ID),
    Field("device_type", "le16", Role.ID), Field("length", "le32", Role.LENGTH),
    Field("guarantees", "le32", Role.FLAGS),
)
_RECORD: Final = Layout("virtio_tdi_record", f"{_SPEC}, 3", Field("type", "le16", Role.ENUM),
                        Field("length", "le16", Role.LENGTH))
_STRUCTURE: Final = Layout(
    "virtio_tdi_structure", f"{_SPEC}, 3.1",
    Field("cfg_type", "u8", Role.ENUM), Field("range_id", "u8", Role.INDEX), Field("id", "u8", Role.ID),
    Field("padding", "u8"), Field("multiplier", "le32", Role.SIZE), Field("offset", "le64", Role.OFFSET),
    Field("length", "le64", Role.LENGTH),
)


class Guarantee(enum.IntFlag):
    """What the device undertakes for as long as the interface is locked (section 4)."""

    RESET_BY_LOCK = 1 << 0
    """The lock has reset the virtio device: no feature is negotiated, no queue set up."""
    WINDOW_INERT = 1 << 1
    """The window through configuration space leads nowhere."""
    NO_LEGACY = 1 << 2
    """No legacy interface: none in an I/O BAR, none by administration commands of the owner."""
    OWNER_REFUSED = 1 << 3
    """Nothing that the owner of a group commands reaches what is in the interface; stopping it aside."""
    CONFIG_HELD = 1 << 4
    """Device configuration does not change but for what its type says that it changes, and as the guest makes it."""


class RecordType(enum.IntEnum):
    """Types of records; those with the highest bit must be understood (section 3)."""

    STRUCTURES = _MANDATORY | 1
    FEATURES = _MANDATORY | 2
    QUEUES = _MANDATORY | 3
    CONFIG = _MANDATORY | 4


@dataclass(frozen=True, slots=True)
class Location:
    """Where a virtio structure is.

    Attributes:
        cfg_type: what it is, as ``cfg_type`` of a capability.
        range_id: of the MMIO range that it is in.
        offset: bytes from the range's beginning.
        length: bytes.
        id: of a shared memory region.
        multiplier: ``notify_off_multiplier`` of a notification structure.

    """

    cfg_type: int
    range_id: int
    offset: int
    length: int
    id: int = 0
    multiplier: int = 0


@dataclass(frozen=True, slots=True)
class VirtioTdiInfo:
    """All of it.

    Attributes:
        device_type: virtio device id.
        guarantees: what the device undertakes.
        structures: where its structures are.
        features: feature bits that it offers.
        queue_sizes: the largest size of each queue, so that their number is that of the queues.
        config: device configuration at the lock.
        minor: of the version.

    """

    device_type: int
    guarantees: Guarantee
    structures: tuple[Location, ...]
    features: int
    queue_sizes: tuple[int, ...]
    config: bytes
    minor: int = VERSION[1]

    def encode(self) -> bytes:
        """Return its bytes."""
        records = {
            RecordType.STRUCTURES: b"".join(bytes(_STRUCTURE.pack(
                cfg_type=at.cfg_type, range_id=at.range_id, id=at.id, multiplier=at.multiplier, offset=at.offset,
                length=at.length)) for at in self.structures),
            RecordType.FEATURES: self.features.to_bytes(8 * _FEATURE_WORDS, "little"),
            RecordType.QUEUES: b"".join(size.to_bytes(2, "little") for size in self.queue_sizes),
            RecordType.CONFIG: self.config,
        }
        body = b"".join(bytes(_RECORD.pack(type=kind, length=len(data))) + data + bytes(-len(data) % _PAD)
                        for kind, data in records.items())
        return bytes(_HEAD.pack(magic=MAGIC, major=VERSION[0], minor=self.minor, device_type=self.device_type,
                                length=_HEAD.size + len(body), guarantees=self.guarantees)) + body

    @classmethod
    def decode(cls, data: bytes) -> Self:
        """Read it, as a guest does that knows version 1.0.

        Raises:
            WireError: it breaks a rule of the format, or asks for more than this version knows.

        """
        head = _HEAD.unpack(data)
        _require(head["magic"] == MAGIC, "the information is virtio's", "2")
        _require(head["major"] == VERSION[0], "the major version is known", "2", f"{head['major']}")
        _require(head["length"] == len(data), "the information is as long as it says", "2",
                 f"{head['length']} said, {len(data)} there")
        records = _records(data)
        for kind in RecordType:
            _require(kind in records, "every record of this version is there", "3", kind.name)
        return cls(head["device_type"], Guarantee(head["guarantees"] & sum(Guarantee)),
                   _structures(records[RecordType.STRUCTURES]), _features(records[RecordType.FEATURES]),
                   _queues(records[RecordType.QUEUES]), records[RecordType.CONFIG], head["minor"])


def _require(holds: bool, rule: str, section: str, detail: str = "") -> None:
    if not holds:
        raise WireError(rule, spec=f"{_SPEC}, {section}", detail=detail)


def _records(data: bytes) -> dict[int, bytes]:
    found: dict[int, bytes] = {}
    at, last = _HEAD.size, -1
    while at < len(data):
        _require(at + _RECORD.size <= len(data), "a record has a head", "3")
        head = _RECORD.unpack(data, at)
        kind, begin = head["type"], at + _RECORD.size
        end = begin + head["length"]
        at = end + -head["length"] % _PAD
        _require(at <= len(data), "a record ends in the information", "3", f"type {kind:#x}")
        _require(kind & ~_MANDATORY > last, "records stand in the order of their types, each once", "3",
                 f"type {kind:#x}")
        _require(not any(data[end:at]), "what fills a record up is zero", "3", f"type {kind:#x}")
        last = kind & ~_MANDATORY
        if kind in set(RecordType):
            found[kind] = data[begin:end]
        else:
            # What a guest may leave out, a later version says without the bit.
            _require(not kind & _MANDATORY, "a record that must be understood is", "3", f"type {kind:#x}")
    return found


def _structures(data: bytes) -> tuple[Location, ...]:
    count, rest = divmod(len(data), _STRUCTURE.size)
    _require(not rest and count <= MOST_STRUCTURES, "structures have their size, and are not too many", "3.1")
    rows = (_STRUCTURE.unpack(data, at) for at in range(0, len(data), _STRUCTURE.size))
    return tuple(Location(row["cfg_type"], row["range_id"], row["offset"], row["length"], row["id"], row["multiplier"])
                 for row in rows)


def _features(data: bytes) -> int:
    _require(len(data) == 8 * _FEATURE_WORDS, "features have 128 bits", "3.2", f"{len(data)} bytes")
    return int.from_bytes(data, "little")


def _queues(data: bytes) -> tuple[int, ...]:
    _require(not len(data) % 2 and len(data) <= 2 * MOST_QUEUES, "queues have a size each, and are not too many", "3.3")
    return tuple(int.from_bytes(data[at:at + 2], "little") for at in range(0, len(data), 2))
