"""Block device: feature bits, configuration space, requests (virtio 1.3, 5.2)."""

from __future__ import annotations

import enum
import struct
from typing import Final

from chamber.wire.layout import Field, Layout, Role

__all__ = (
    "CONFIG",
    "ID_SIZE",
    "REQUEST",
    "REQUEST_STRUCT",
    "SECTOR_SIZE",
    "SEGMENT",
    "SEGMENT_F_UNMAP",
    "SEGMENT_STRUCT",
    "BlkFeature",
    "BlkStatus",
    "RequestType",
)

SECTOR_SIZE: Final = 512
"""Unit of capacity and of every sector number, whatever blk_size says (5.2.4)."""
ID_SIZE: Final = 20
"""Bytes that GET_ID returns (5.2.6)."""


class BlkFeature(enum.IntEnum):
    """Feature bit numbers (5.2.3)."""

    BARRIER = 0
    SIZE_MAX = 1
    SEG_MAX = 2
    GEOMETRY = 4
    RO = 5
    BLK_SIZE = 6
    SCSI = 7
    FLUSH = 9
    TOPOLOGY = 10
    CONFIG_WCE = 11
    MQ = 12
    DISCARD = 13
    WRITE_ZEROES = 14
    LIFETIME = 15
    SECURE_ERASE = 16
    ZONED = 17


class RequestType(enum.IntEnum):
    """``type`` of a request (5.2.6)."""

    IN = 0
    OUT = 1
    FLUSH = 4
    GET_ID = 8
    GET_LIFETIME = 10
    DISCARD = 11
    WRITE_ZEROES = 13
    SECURE_ERASE = 14
    ZONE_APPEND = 15
    ZONE_REPORT = 16
    ZONE_OPEN = 18
    ZONE_CLOSE = 20
    ZONE_FINISH = 22
    ZONE_RESET = 24
    ZONE_RESET_ALL = 26


class BlkStatus(enum.IntEnum):
    """The last byte of a request, written by the device (5.2.6)."""

    OK = 0
    IOERR = 1
    UNSUPP = 2
    ZONE_INVALID_CMD = 3
    ZONE_UNALIGNED_WP = 4
    ZONE_OPEN_RESOURCE = 5
    ZONE_ACTIVE_RESOURCE = 6


CONFIG: Final = Layout(
    "virtio_blk_config", "virtio 1.3, 5.2.4",
    Field("capacity", "le64", Role.SIZE),
    Field("size_max", "le32", Role.SIZE, BlkFeature.SIZE_MAX, range(1, 1 << 32)),
    Field("seg_max", "le32", Role.COUNT, BlkFeature.SEG_MAX, range(1, 1 << 32)),
    Field("geometry.cylinders", "le16", Role.COUNT, BlkFeature.GEOMETRY),
    Field("geometry.heads", "u8", Role.COUNT, BlkFeature.GEOMETRY),
    Field("geometry.sectors", "u8", Role.COUNT, BlkFeature.GEOMETRY),
    Field("blk_size", "le32", Role.SIZE, BlkFeature.BLK_SIZE, tuple(1 << n for n in range(9, 17))),
    Field("topology.physical_block_exp", "u8", Role.SIZE, BlkFeature.TOPOLOGY),
    Field("topology.alignment_offset", "u8", Role.OFFSET, BlkFeature.TOPOLOGY),
    Field("topology.min_io_size", "le16", Role.SIZE, BlkFeature.TOPOLOGY),
    Field("topology.opt_io_size", "le32", Role.SIZE, BlkFeature.TOPOLOGY),
    Field("writeback", "u8", Role.ENUM, BlkFeature.CONFIG_WCE, (0, 1)),
    Field("unused0", "u8"),
    Field("num_queues", "le16", Role.COUNT, BlkFeature.MQ, range(1, 1 << 16)),
    Field("max_discard_sectors", "le32", Role.SIZE, BlkFeature.DISCARD),
    Field("max_discard_seg", "le32", Role.COUNT, BlkFeature.DISCARD),
    Field("discard_sector_alignment", "le32", Role.SIZE, BlkFeature.DISCARD),
    Field("max_write_zeroes_sectors", "le32", Role.SIZE, BlkFeature.WRITE_ZEROES),
    Field("max_write_zeroes_seg", "le32", Role.COUNT, BlkFeature.WRITE_ZEROES),
    Field("write_zeroes_may_unmap", "u8", Role.ENUM, BlkFeature.WRITE_ZEROES, (0, 1)),
    Field("unused1", "bytes:3", Role.BYTES),
    Field("max_secure_erase_sectors", "le32", Role.SIZE, BlkFeature.SECURE_ERASE),
    Field("max_secure_erase_seg", "le32", Role.COUNT, BlkFeature.SECURE_ERASE),
    Field("secure_erase_sector_alignment", "le32", Role.SIZE, BlkFeature.SECURE_ERASE),
    Field("zoned.zone_sectors", "le32", Role.SIZE, BlkFeature.ZONED, range(1, 1 << 32)),
    Field("zoned.max_open_zones", "le32", Role.COUNT, BlkFeature.ZONED),
    Field("zoned.max_active_zones", "le32", Role.COUNT, BlkFeature.ZONED),
    Field("zoned.max_append_sectors", "le32", Role.SIZE, BlkFeature.ZONED, range(1, 1 << 32)),
    Field("zoned.write_granularity", "le32", Role.SIZE, BlkFeature.ZONED, range(1, 1 << 32)),
    Field("zoned.model", "u8", Role.ENUM, BlkFeature.ZONED, (0, 1, 2)),
    Field("zoned.unused2", "bytes:3", Role.BYTES),
)

REQUEST: Final = Layout(
    "virtio_blk_req", "virtio 1.3, 5.2.6",
    Field("type", "le32", Role.ENUM, None, tuple(RequestType)),
    Field("reserved", "le32"),
    Field("sector", "le64", Role.OFFSET),
)
"""What every request starts with; data follows, and one status byte ends it."""
REQUEST_STRUCT: Final = struct.Struct("<IIQ")
"""The same as `REQUEST`, for who is in a hurry: type, reserved, sector."""

SEGMENT_F_UNMAP: Final = 1
SEGMENT: Final = Layout(
    "virtio_blk_discard_write_zeroes", "virtio 1.3, 5.2.6",
    Field("sector", "le64", Role.OFFSET),
    Field("num_sectors", "le32", Role.COUNT),
    Field("flags", "le32", Role.FLAGS, None, (0, SEGMENT_F_UNMAP)),
)
"""One range of a DISCARD, WRITE_ZEROES or SECURE_ERASE request."""
SEGMENT_STRUCT: Final = struct.Struct("<QII")
