"""SCSI host device: feature bits, configuration space, requests, events, addresses (virtio 1.3, 5.6)."""

from __future__ import annotations

import enum
import struct
from dataclasses import dataclass
from typing import Final

from chamber.wire.errors import WireError
from chamber.wire.layout import Field, Layout, Role

__all__ = (
    "AN_ANSWER",
    "AN_REQUEST",
    "CDB_SIZE",
    "COMMAND",
    "CONFIG",
    "CONTROL_QUEUE",
    "EVENT",
    "EVENTS_MISSED",
    "EVENT_QUEUE",
    "MAX_LUN",
    "MAX_TARGET",
    "REPORT_LUNS_UNIT",
    "REQUEST_QUEUE",
    "RESPONSE",
    "SENSE_SIZE",
    "TASK_MANAGEMENT",
    "Address",
    "AsyncEvent",
    "ControlType",
    "EventType",
    "ResetReason",
    "Response",
    "ScsiFeature",
    "TaskFunction",
    "parse_lun",
)

CONTROL_QUEUE: Final = 0
EVENT_QUEUE: Final = 1
REQUEST_QUEUE: Final = 2
"""The first of the request queues (5.6.2)."""

CDB_SIZE: Final = 32
SENSE_SIZE: Final = 96
"""What cdb_size and sense_size are until the driver changes them (5.6.4)."""
MAX_TARGET: Final = 255
MAX_LUN: Final = 0x3FFF
"""What an address can name (5.6.6.1)."""


class ScsiFeature(enum.IntEnum):
    """Feature bit numbers (5.6.3)."""

    INOUT = 0
    HOTPLUG = 1
    CHANGE = 2
    T10_PI = 3


class Response(enum.IntEnum):
    """``response`` of a request; 10 to 12 are for task management (5.6.6.1.1, 5.6.6.2)."""

    OK = 0
    """Also FUNCTION_COMPLETE."""
    OVERRUN = 1
    ABORTED = 2
    BAD_TARGET = 3
    RESET = 4
    BUSY = 5
    TRANSPORT_FAILURE = 6
    TARGET_FAILURE = 7
    NEXUS_FAILURE = 8
    FAILURE = 9
    FUNCTION_SUCCEEDED = 10
    FUNCTION_REJECTED = 11
    INCORRECT_LUN = 12


class ControlType(enum.IntEnum):
    """``type`` of a request on the control queue (5.6.6.2)."""

    TMF = 0
    AN_QUERY = 1
    AN_SUBSCRIBE = 2


class TaskFunction(enum.IntEnum):
    """``subtype`` of a task management function (5.6.6.2)."""

    ABORT_TASK = 0
    ABORT_TASK_SET = 1
    CLEAR_ACA = 2
    CLEAR_TASK_SET = 3
    I_T_NEXUS_RESET = 4
    LOGICAL_UNIT_RESET = 5
    QUERY_TASK = 6
    QUERY_TASK_SET = 7


class AsyncEvent(enum.IntFlag):
    """Events that a logical unit can be asked to report (5.6.6.2)."""

    OPERATIONAL_CHANGE = 2
    POWER_MGMT = 4
    EXTERNAL_REQUEST = 8
    MEDIA_CHANGE = 16
    MULTI_HOST = 32
    DEVICE_BUSY = 64


EVENTS_MISSED: Final = 0x80000000
"""Set in ``event`` where events were lost for want of buffers (5.6.6.3)."""


class EventType(enum.IntEnum):
    """``event`` without the flag (5.6.6.3)."""

    NO_EVENT = 0
    TRANSPORT_RESET = 1
    ASYNC_NOTIFY = 2
    PARAM_CHANGE = 3


class ResetReason(enum.IntEnum):
    """``reason`` of a TRANSPORT_RESET (5.6.6.3)."""

    HARD = 0
    RESCAN = 1
    REMOVED = 2


CONFIG: Final = Layout(
    "virtio_scsi_config", "virtio 1.3, 5.6.4",
    # Two of at most 65,536 queues are for control and events.
    Field("num_queues", "le32", Role.COUNT, None, range(1, 65535)),
    Field("seg_max", "le32", Role.COUNT, None, range(1, 1 << 32)),
    Field("max_sectors", "le32", Role.SIZE, None, range(1, 1 << 32)),
    Field("cmd_per_lun", "le32", Role.COUNT, None, range(1, 1 << 32)),
    Field("event_info_size", "le32", Role.SIZE, None, range(16, 1 << 32)),
    Field("sense_size", "le32", Role.SIZE, None, (SENSE_SIZE,)),
    Field("cdb_size", "le32", Role.SIZE, None, (CDB_SIZE,)),
    Field("max_channel", "le16", Role.INDEX, None, (0,)),
    Field("max_target", "le16", Role.INDEX, None, range(MAX_TARGET + 1)),
    Field("max_lun", "le32", Role.INDEX, None, range(MAX_LUN + 1)),
)
"""Only sense_size and cdb_size can be written."""

COMMAND: Final = struct.Struct("<8sQBBB")
"""A request's lun, id, task_attr, prio and crn; the CDB follows, then data for the device (5.6.6.1)."""
RESPONSE: Final = struct.Struct("<IIHBB")
"""sense_len, residual, status_qualifier, status and response; sense data follows, then data for the driver."""
TASK_MANAGEMENT: Final = struct.Struct("<II8sQ")
"""type, subtype, lun and id; the answer is one byte, the response (5.6.6.2)."""
AN_REQUEST: Final = struct.Struct("<I8sI")
"""type, lun and event_requested (5.6.6.2)."""
AN_ANSWER: Final = struct.Struct("<IB")
"""event_actual and response."""
EVENT: Final = struct.Struct("<I8sI")
"""event, lun and reason (5.6.6.3)."""

REPORT_LUNS_UNIT: Final = bytes.fromhex("c101000000000000")
"""Address of the well-known logical unit that lists all others (5.6.6.1)."""

_FLAT: Final = 0x40
"""Address method of a single level LUN structure: flat space; 0 is for peripherals, with 8 bits."""


@dataclass(frozen=True, slots=True)
class Address:
    """A logical unit of the device's SCSI domain.

    Attributes:
        target: 0 to 255.
        lun: 0 to 16383.

    """

    target: int
    lun: int

    def __str__(self) -> str:
        return f"{self.target}:{self.lun}"

    def pack(self) -> bytes:
        """Return the 8 bytes that name it in requests and events.

        Small LUNs go as peripherals: Linux takes those of events for plain numbers.
        """
        return bytes((1, self.target)) + self.pack_lun()[:6]

    def pack_lun(self) -> bytes:
        """Return the 8 bytes that name it within its target, as REPORT LUNS does."""
        method = _FLAT if self.lun > 0xFF else 0
        return bytes((method | self.lun >> 8, self.lun & 0xFF, 0, 0, 0, 0, 0, 0))


def parse_lun(raw: bytes) -> Address:
    """Read an address of 8 bytes, its LUN as a peripheral or in flat space.

    Raises:
        WireError: it has another format, `REPORT_LUNS_UNIT` included.

    """
    method = raw[2] & 0xC0 if len(raw) == 8 else -1
    if method not in {0, _FLAT} or raw[0] != 1 or any(raw[4:]) or (not method and raw[2]):
        raise WireError("lun is 1, the target, and a single level LUN", spec="virtio 1.3, 5.6.6.1", detail=raw.hex())
    return Address(raw[1], (raw[2] & 0x3F) << 8 | raw[3])
