"""Group administration commands of virtio: frames, lists, capabilities, resource objects, device parts.

Source: virtio 1.4, 2.12 (device groups), 2.13 (administration virtqueues) and 2.14 (device parts). Where its table of
opcodes and its text differ (0xb and 0xc), the text is followed: it is what the structures stand beside.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Self

from chamber.wire.errors import WireError
from chamber.wire.layout import Field, Layout, Role

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = (
    "CAPABILITY_HEADER",
    "CREATE",
    "HEADER",
    "LEGACY_ACCESS",
    "LEGACY_OPCODES",
    "MODE_STOPPED",
    "MOST_NOTIFY_INFO",
    "MOST_PARTS_BYTES",
    "NOTIFY_INFO",
    "OBJECT_HEADER",
    "PARTS_CAPABILITY",
    "PARTS_LIST_HEADER",
    "PARTS_OBJECT",
    "PARTS_REQUEST",
    "STATUS",
    "VQ_CFG",
    "VQ_NOTIFY_CFG",
    "CapabilityKind",
    "Group",
    "MetadataType",
    "NotifyFlags",
    "ObjectType",
    "Opcode",
    "Part",
    "PartType",
    "PartsRequest",
    "PartsUse",
    "Qualifier",
    "Status",
    "build_bits",
    "parse_bits",
    "parse_parts",
)

_SPEC: Final = "virtio 1.4, 2.12"
_PARTS_SPEC: Final = "virtio 1.4, 2.14"
MOST_PARTS_BYTES: Final = 1 << 20
"""A state of a device that is larger is none."""
_MOST_BITS: Final = 4096
"""Opcodes and capabilities that a list may have room for."""
_WORD: Final = 8

HEADER: Final = Layout(
    "virtio_admin_cmd", f"{_SPEC}.1", Field("opcode", "le16", Role.ENUM), Field("group_type", "le16", Role.ENUM),
    Field("reserved1", "bytes:12", Role.BYTES), Field("group_member_id", "le64", Role.ID))
STATUS: Final = Layout(
    "virtio_admin_cmd_status", f"{_SPEC}.1", Field("status", "le16", Role.ENUM),
    Field("status_qualifier", "le16", Role.ENUM), Field("reserved2", "bytes:4", Role.BYTES))


class Group(enum.IntEnum):
    """Types of groups."""

    SELF = 0
    SRIOV = 1


class Opcode(enum.IntEnum):
    """Commands."""

    LIST_QUERY = 0x0
    LIST_USE = 0x1
    LEGACY_COMMON_CFG_WRITE = 0x2
    LEGACY_COMMON_CFG_READ = 0x3
    LEGACY_DEV_CFG_WRITE = 0x4
    LEGACY_DEV_CFG_READ = 0x5
    LEGACY_NOTIFY_INFO = 0x6
    CAP_ID_LIST_QUERY = 0x7
    DEVICE_CAP_GET = 0x8
    DRIVER_CAP_SET = 0x9
    RESOURCE_OBJ_CREATE = 0xA
    RESOURCE_OBJ_MODIFY = 0xB
    RESOURCE_OBJ_QUERY = 0xC
    RESOURCE_OBJ_DESTROY = 0xD
    DEV_PARTS_METADATA_GET = 0xE
    DEV_PARTS_GET = 0xF
    DEV_PARTS_SET = 0x10
    DEV_MODE_SET = 0x11


class Status(enum.IntEnum):
    """How a command ended, for applications: numbers of Linux's errors."""

    OK = 0
    ENXIO = 6
    EAGAIN = 11
    ENOMEM = 12
    EBUSY = 16
    EEXIST = 17
    EINVAL = 22
    ENOSPC = 28


class Qualifier(enum.IntEnum):
    """How it ended, for who looks closer."""

    OK = 0
    INVALID_COMMAND = 1
    INVALID_OPCODE = 2
    INVALID_FIELD = 3
    INVALID_GROUP = 4
    INVALID_MEMBER = 5
    NORESOURCE = 6
    TRYAGAIN = 7


def build_bits(numbers: Iterable[int]) -> bytes:
    """Return a list of opcodes or capabilities: a bit for each, in words of 64."""
    bits = 0
    for number in numbers:
        bits |= 1 << number
    words = max(1, -(-bits.bit_length() // (8 * _WORD)))
    return bits.to_bytes(words * _WORD, "little")


def parse_bits(data: bytes) -> frozenset[int]:
    """Read such a list; bytes that are missing are zero, and what is beyond 4,096 bits is not looked at."""
    bits = int.from_bytes(data[:_MOST_BITS // 8], "little")
    return frozenset(number for number in range(bits.bit_length()) if bits >> number & 1)


# Access to the legacy interface of a member (2.12.1.2).

LEGACY_OPCODES: Final = frozenset({Opcode.LEGACY_COMMON_CFG_WRITE, Opcode.LEGACY_COMMON_CFG_READ,
                                   Opcode.LEGACY_DEV_CFG_WRITE, Opcode.LEGACY_DEV_CFG_READ, Opcode.LEGACY_NOTIFY_INFO})
"""A device has all of them or none."""
LEGACY_ACCESS: Final = Layout("virtio_admin_cmd_legacy_wr_data", f"{_SPEC}.1.2", Field("offset", "u8", Role.OFFSET),
                              Field("reserved", "bytes:7", Role.BYTES))
"""What registers stand behind that are written; to read, the first byte is enough."""
MOST_NOTIFY_INFO: Final = 4


class NotifyFlags(enum.IntEnum):
    """Whose BAR a doorbell is in."""

    END = 0
    OWNER = 1
    MEMBER = 2


NOTIFY_INFO: Final = Layout(
    "virtio_pci_legacy_notify_info", f"{_SPEC}.1.2", Field("flags", "u8", Role.ENUM, None, tuple(NotifyFlags)),
    Field("bar", "u8", Role.INDEX, None, range(6)), Field("padding", "bytes:6", Role.BYTES),
    Field("offset", "le64", Role.OFFSET))

# Capabilities (2.12.1.3) and resource objects (2.12.1.4).

class CapabilityKind(enum.IntEnum):
    """Capabilities."""

    DEV_PARTS = 0


class ObjectType(enum.IntEnum):
    """Resource objects."""

    DEV_PARTS = 0


class PartsUse(enum.IntEnum):
    """What an object for device parts is for."""

    GET = 0
    SET = 1


CAPABILITY_HEADER: Final = Layout("virtio_admin_cmd_cap_get_data", f"{_SPEC}.1.3", Field("id", "le16", Role.ID),
                                  Field("reserved", "bytes:6", Role.BYTES))
PARTS_CAPABILITY: Final = Layout(
    "virtio_dev_parts_cap", f"{_SPEC}.1.5.1", Field("get_parts_resource_objects_limit", "u8", Role.COUNT),
    Field("set_parts_resource_objects_limit", "u8", Role.COUNT))
OBJECT_HEADER: Final = Layout(
    "virtio_admin_cmd_resource_obj_cmd_hdr", f"{_SPEC}.1.4", Field("type", "le16", Role.ENUM),
    Field("reserved", "bytes:2", Role.BYTES), Field("id", "le32", Role.ID))
CREATE: Final = Layout("virtio_admin_cmd_resource_obj_create_data", f"{_SPEC}.1.4", *OBJECT_HEADER,
                       Field("flags", "le64", Role.FLAGS))
PARTS_OBJECT: Final = Layout("virtio_resource_obj_dev_parts", f"{_SPEC}.1.5.2", Field("type", "u8", Role.ENUM),
                             Field("padding", "bytes:7", Role.BYTES))

# Device parts (2.14), and commands about them (2.12.1.5).

MODE_STOPPED: Final = 1 << 0
"""VIRTIO_ADMIN_CMD_DEV_MODE_F_STOPPED."""


class MetadataType(enum.IntEnum):
    """What is asked of parts before they are."""

    SIZE = 0
    COUNT = 1
    LIST = 2


class PartsRequest(enum.IntEnum):
    """Which parts are asked for."""

    SELECTED = 0
    ALL = 1


PARTS_REQUEST: Final = Layout("virtio_admin_cmd_dev_parts_metadata_data", f"{_SPEC}.1.5.3", *OBJECT_HEADER,
                              Field("kind", "u8", Role.ENUM), Field("padding", "bytes:7", Role.BYTES))
PARTS_LIST_HEADER: Final = Layout("virtio_admin_cmd_dev_parts_metadata_result", f"{_SPEC}.1.5.3",
                                  Field("count", "le32", Role.COUNT), Field("reserved", "bytes:4", Role.BYTES))
VQ_CFG: Final = Layout(
    "virtio_dev_part_vq_cfg", f"{_PARTS_SPEC}.1.5", Field("queue_size", "le16", Role.SIZE),
    Field("vector", "le16", Role.INDEX), Field("enabled", "le16", Role.ENUM), Field("reserved", "le16"),
    Field("queue_desc", "le64", Role.OFFSET), Field("queue_driver", "le64", Role.OFFSET),
    Field("queue_device", "le64", Role.OFFSET))
VQ_NOTIFY_CFG: Final = Layout(
    "virtio_dev_part_vq_notify_data", f"{_PARTS_SPEC}.1.6", Field("queue_notify_off", "le16", Role.OFFSET),
    Field("queue_notif_config_data", "le16", Role.ID), Field("reserved", "bytes:4", Role.BYTES))


class PartType(enum.IntEnum):
    """Parts, in the order in which they stand (2.12.1.5.4)."""

    DEV_FEATURES = 0x100
    DRV_FEATURES = 0x101
    PCI_COMMON_CFG = 0x102
    DEVICE_STATUS = 0x103
    VQ_CFG = 0x104
    VQ_NOTIFY_CFG = 0x105
    VQ_POSITION = 0x5FF
    """Chamber's own, from the range of device types: where a queue goes on. A packed ring does not say, and a device
    that begins anew in the middle of one would take descriptors again that it has given back."""


_PART_HEADER: Final = Layout(
    "virtio_dev_part_hdr", _PARTS_SPEC, Field("part_type", "le16", Role.ENUM), Field("flags", "u8", Role.FLAGS),
    Field("reserved", "u8"), Field("selector", "le64", Role.INDEX), Field("length", "le32", Role.LENGTH))
_OPTIONAL: Final = 1 << 0


@dataclass(frozen=True, slots=True)
class Part:
    """One part of a device's state.

    Attributes:
        type: what it is: a `PartType`, or a number that is none.
        value: its bytes; none where only its header is spoken of.
        selector: offset of a field of the common configuration, or a queue's number.
        optional: whether a device may do without it.
        length: bytes of the value.

    """

    type: int
    value: bytes = b""
    selector: int = 0
    optional: bool = False
    length: int = -1

    @property
    def size(self) -> int:
        """Bytes of its value."""
        return len(self.value) if self.length < 0 else self.length

    def build(self, *, header: bool = False) -> bytes:
        """Return its bytes, or those of its header alone."""
        head = bytes(_PART_HEADER.pack(part_type=self.type, flags=_OPTIONAL * self.optional, selector=self.selector,
                                       length=self.size))
        return head if header else head + self.value

    @classmethod
    def parse(cls, data: bytes, at: int = 0, *, header: bool = False) -> Self:
        """Read a part, or a header alone.

        Raises:
            WireError: the bytes end before the part does.

        """
        fields = _PART_HEADER.unpack(data, at)
        start, length = at + _PART_HEADER.size, fields["length"]
        if not header and length > len(data) - start:
            raise WireError("a part ends where its bytes do", spec=_PARTS_SPEC, detail=f"{length} bytes")
        return cls(fields["part_type"], b"" if header else bytes(data[start:start + length]), fields["selector"],
                   bool(fields["flags"] & _OPTIONAL), length if header else -1)


def parse_parts(data: bytes, *, headers: bool = False) -> tuple[Part, ...]:
    """Read parts one behind the other, or headers; zeros at the end are padding.

    Raises:
        WireError: they are too large, or end before one of them does.

    """
    if len(data) > MOST_PARTS_BYTES:
        raise WireError("the parts of a device have a mebibyte at most", spec=_PARTS_SPEC)
    parts = []
    at = 0
    while at < len(data) and any(data[at:at + _PART_HEADER.size]):
        part = Part.parse(data, at, header=headers)
        parts.append(part)
        at += _PART_HEADER.size + (0 if headers else part.size)
    return tuple(parts)
