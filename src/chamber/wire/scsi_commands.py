"""SCSI commands for disks: CDBs, status codes, sense data (SAM-5, SPC-4, SBC-3). All numbers are big-endian."""

from __future__ import annotations

import enum
import struct
from dataclasses import dataclass
from typing import Final

from chamber.wire.errors import WireError

__all__ = (
    "FORMATS",
    "UNMAP_DESCRIPTOR",
    "UNMAP_HEADER",
    "Cdb",
    "CdbFormat",
    "Opcode",
    "Sense",
    "SenseKey",
    "ServiceAction",
    "Status",
    "VpdPage",
    "build_cdb",
    "parse_cdb",
    "parse_sense",
    "parse_unmap",
)


class Opcode(enum.IntEnum):
    """First byte of a CDB."""

    TEST_UNIT_READY = 0x00
    REQUEST_SENSE = 0x03
    READ_6 = 0x08
    WRITE_6 = 0x0A
    INQUIRY = 0x12
    MODE_SELECT_6 = 0x15
    MODE_SENSE_6 = 0x1A
    START_STOP_UNIT = 0x1B
    READ_CAPACITY_10 = 0x25
    READ_10 = 0x28
    WRITE_10 = 0x2A
    VERIFY_10 = 0x2F
    SYNCHRONIZE_CACHE_10 = 0x35
    WRITE_SAME_10 = 0x41
    UNMAP = 0x42
    MODE_SELECT_10 = 0x55
    MODE_SENSE_10 = 0x5A
    READ_16 = 0x88
    WRITE_16 = 0x8A
    VERIFY_16 = 0x8F
    SYNCHRONIZE_CACHE_16 = 0x91
    WRITE_SAME_16 = 0x93
    SERVICE_ACTION_IN_16 = 0x9E
    REPORT_LUNS = 0xA0
    MAINTENANCE_IN = 0xA3
    READ_12 = 0xA8
    WRITE_12 = 0xAA
    VERIFY_12 = 0xAF


class ServiceAction(enum.IntEnum):
    """Second byte of SERVICE ACTION IN(16) and MAINTENANCE IN, low five bits."""

    READ_CAPACITY_16 = 0x10
    REPORT_SUPPORTED_OPERATION_CODES = 0x0C


class Status(enum.IntEnum):
    """Status codes (SAM-5, 5.3)."""

    GOOD = 0x00
    CHECK_CONDITION = 0x02
    CONDITION_MET = 0x04
    BUSY = 0x08
    RESERVATION_CONFLICT = 0x18
    TASK_SET_FULL = 0x28
    ACA_ACTIVE = 0x30
    TASK_ABORTED = 0x40


class SenseKey(enum.IntEnum):
    """What kind of condition sense data describes (SPC-4, 4.5.6)."""

    NO_SENSE = 0
    RECOVERED_ERROR = 1
    NOT_READY = 2
    MEDIUM_ERROR = 3
    HARDWARE_ERROR = 4
    ILLEGAL_REQUEST = 5
    UNIT_ATTENTION = 6
    DATA_PROTECT = 7
    BLANK_CHECK = 8
    VENDOR_SPECIFIC = 9
    COPY_ABORTED = 10
    ABORTED_COMMAND = 11
    VOLUME_OVERFLOW = 13
    MISCOMPARE = 14
    COMPLETED = 15


class VpdPage(enum.IntEnum):
    """Vital product data that INQUIRY returns by page (SPC-4, 7.8; SBC-3, 6.5)."""

    SUPPORTED_PAGES = 0x00
    SERIAL_NUMBER = 0x80
    IDENTIFICATION = 0x83
    BLOCK_LIMITS = 0xB0
    BLOCK_CHARACTERISTICS = 0xB1
    PROVISIONING = 0xB2


# Sense data.

_SENSE_SIZE: Final = 18
_CURRENT_FIXED, _DEFERRED_FIXED, _CURRENT_DESCRIPTOR, _DEFERRED_DESCRIPTOR = 0x70, 0x71, 0x72, 0x73
_VALID: Final = 0x80


@dataclass(frozen=True, slots=True)
class Sense:
    """A condition that a command met with, or left behind.

    Attributes:
        key: what kind.
        asc: additional sense code.
        ascq: its qualifier.
        information: where, such as a block, if that is known.

    """

    key: int
    asc: int
    ascq: int = 0
    information: int | None = None

    def pack(self) -> bytes:
        """Return the fixed format, 18 bytes, as a current error (SPC-4, 4.5.3)."""
        valid = self.information is not None and self.information < 1 << 32
        return struct.pack(">BBBIB4xBB4x", _CURRENT_FIXED | (_VALID if valid else 0), 0, self.key,
                           self.information or 0 if valid else 0, _SENSE_SIZE - 8, self.asc, self.ascq)


def parse_sense(raw: bytes) -> Sense:
    """Read sense data of either format, as far as it goes.

    Raises:
        WireError: it is of no known format, or ends before its key.

    """
    code = raw[0] & 0x7F if raw else 0
    fixed = code in {_CURRENT_FIXED, _DEFERRED_FIXED}
    if (not fixed and code not in {_CURRENT_DESCRIPTOR, _DEFERRED_DESCRIPTOR}) or len(raw) < 3:
        raise WireError("sense data has the response code 70h to 73h and a key", spec="SPC-4, 4.5.1",
                        detail=raw[:8].hex())
    whole = raw[:_SENSE_SIZE].ljust(_SENSE_SIZE, b"\0")
    if not fixed:
        return Sense(whole[1] & 0xF, whole[2], whole[3])
    # Codes behind the additional length are not there, whatever those bytes hold.
    end = 8 + whole[7]
    information = int.from_bytes(whole[3:7], "big") if raw[0] & _VALID else None
    return Sense(whole[2] & 0xF, whole[12] if end > 12 else 0, whole[13] if end > 13 else 0, information)


# Commands.

_SIZES: Final = (6, 10, 10, 0, 16, 12, 0, 0)
"""CDB size by group, the top three bits of the operation code (SPC-4, 4.2.5.1); 0 for those not used here."""
_FUA_DPO: Final = 0x18


@dataclass(frozen=True, slots=True)
class CdbFormat:
    """Where a command keeps its numbers.

    Attributes:
        opcode: operation code.
        action: service action, for codes that have them.
        lba: first byte and width of the block address.
        length: first byte and width of the transfer, allocation or parameter list length.
        flags: bits of byte 1 that mean something here, the service action left out.
        usage: bits of further bytes that mean something, by offset.

    """

    opcode: Opcode
    action: ServiceAction | None = None
    lba: tuple[int, int] | None = None
    length: tuple[int, int] | None = None
    flags: int = 0
    usage: tuple[tuple[int, int], ...] = ()

    @property
    def size(self) -> int:
        """Bytes of the CDB."""
        return _SIZES[self.opcode >> 5]

    def usage_map(self) -> bytes:
        """Return which bits of the CDB are looked at, as REPORT SUPPORTED OPERATION CODES tells (SPC-4, 6.35.3)."""
        usage = bytearray(self.size)
        for numbers in (self.lba, self.length):
            if numbers is not None:
                usage[numbers[0]:sum(numbers)] = b"\xff" * numbers[1]
        usage[0] = self.opcode
        usage[1] |= self.flags | (0 if self.action is None else self.action)
        for offset, bits in self.usage:
            usage[offset] |= bits
        if self.opcode in {Opcode.READ_6, Opcode.WRITE_6}:
            usage[1] = 0x1F
        return bytes(usage)


_ALL: Final = (
    CdbFormat(Opcode.TEST_UNIT_READY),
    CdbFormat(Opcode.REQUEST_SENSE, length=(4, 1), flags=0x01),
    CdbFormat(Opcode.READ_6, lba=(1, 3), length=(4, 1)),
    CdbFormat(Opcode.WRITE_6, lba=(1, 3), length=(4, 1)),
    CdbFormat(Opcode.INQUIRY, length=(3, 2), flags=0x01, usage=((2, 0xFF),)),
    CdbFormat(Opcode.MODE_SENSE_6, length=(4, 1), flags=0x08, usage=((2, 0xFF), (3, 0xFF))),
    CdbFormat(Opcode.START_STOP_UNIT, flags=0x01, usage=((4, 0xF7),)),
    CdbFormat(Opcode.READ_CAPACITY_10, lba=(2, 4), usage=((8, 0x01),)),
    CdbFormat(Opcode.READ_10, lba=(2, 4), length=(7, 2), flags=_FUA_DPO),
    CdbFormat(Opcode.WRITE_10, lba=(2, 4), length=(7, 2), flags=_FUA_DPO),
    CdbFormat(Opcode.VERIFY_10, lba=(2, 4), length=(7, 2), flags=0x16),
    CdbFormat(Opcode.SYNCHRONIZE_CACHE_10, lba=(2, 4), length=(7, 2), flags=0x02),
    CdbFormat(Opcode.WRITE_SAME_10, lba=(2, 4), length=(7, 2), flags=0x08),
    CdbFormat(Opcode.UNMAP, length=(7, 2)),
    CdbFormat(Opcode.MODE_SENSE_10, length=(7, 2), flags=0x18, usage=((2, 0xFF), (3, 0xFF))),
    CdbFormat(Opcode.READ_16, lba=(2, 8), length=(10, 4), flags=_FUA_DPO),
    CdbFormat(Opcode.WRITE_16, lba=(2, 8), length=(10, 4), flags=_FUA_DPO),
    CdbFormat(Opcode.VERIFY_16, lba=(2, 8), length=(10, 4), flags=0x16),
    CdbFormat(Opcode.SYNCHRONIZE_CACHE_16, lba=(2, 8), length=(10, 4), flags=0x02),
    CdbFormat(Opcode.WRITE_SAME_16, lba=(2, 8), length=(10, 4), flags=0x09),
    CdbFormat(Opcode.SERVICE_ACTION_IN_16, ServiceAction.READ_CAPACITY_16, length=(10, 4)),
    CdbFormat(Opcode.REPORT_LUNS, length=(6, 4), usage=((2, 0xFF),)),
    CdbFormat(Opcode.MAINTENANCE_IN, ServiceAction.REPORT_SUPPORTED_OPERATION_CODES, length=(6, 4),
              usage=((2, 0x87), (3, 0xFF), (4, 0xFF), (5, 0xFF))),
    CdbFormat(Opcode.READ_12, lba=(2, 4), length=(6, 4), flags=_FUA_DPO),
    CdbFormat(Opcode.WRITE_12, lba=(2, 4), length=(6, 4), flags=_FUA_DPO),
    CdbFormat(Opcode.VERIFY_12, lba=(2, 4), length=(6, 4), flags=0x16),
)
FORMATS: Final[dict[tuple[int, int | None], CdbFormat]] = {(f.opcode, f.action): f for f in _ALL}
"""The commands that are understood, by operation code and service action."""
_WITH_ACTION: Final = frozenset(f.opcode for f in _ALL if f.action is not None)


@dataclass(frozen=True, slots=True)
class Cdb:
    """A command descriptor block.

    Attributes:
        format: which command.
        lba: its block address, 0 where it has none.
        length: its transfer, allocation or parameter list length, 0 where it has none.
        flags: byte 1 without a service action.
        raw: its bytes.

    """

    format: CdbFormat
    lba: int
    length: int
    flags: int
    raw: bytes

    @property
    def opcode(self) -> Opcode:
        """Operation code."""
        return self.format.opcode


def parse_cdb(raw: bytes) -> Cdb:
    """Read a CDB; bytes behind it are not looked at.

    Raises:
        WireError: the command is not known, or ends too soon.

    """
    opcode = raw[0] if raw else 0
    action = raw[1] & 0x1F if opcode in _WITH_ACTION and len(raw) > 1 else None
    form = FORMATS.get((opcode, action))
    if form is None or len(raw) < form.size:
        raise WireError("the command is one that is supported", spec="SPC-4, 4.2.5.1", detail=raw[:16].hex())
    raw = raw[:form.size]
    lba, length = (0 if at is None else int.from_bytes(raw[at[0]:sum(at)], "big") for at in (form.lba, form.length))
    if form.opcode in {Opcode.READ_6, Opcode.WRITE_6}:
        return Cdb(form, lba & 0x1FFFFF, length or 256, 0, raw)
    return Cdb(form, lba, length, raw[1] & ~0x1F if action is not None else raw[1], raw)


def build_cdb(opcode: Opcode, action: ServiceAction | None = None, *, lba: int = 0, length: int = 0, flags: int = 0,
              **fields: int) -> bytes:
    """Make a CDB; `fields` are further bytes, as ``b2=0x3F``.

    Raises:
        OverflowError: a number does not fit into this command.

    """
    form = FORMATS[opcode, action]
    raw = bytearray(form.size)
    if form.lba is not None:
        raw[form.lba[0]:sum(form.lba)] = lba.to_bytes(form.lba[1], "big")
    if form.length is not None:
        raw[form.length[0]:sum(form.length)] = length.to_bytes(form.length[1], "big")
    raw[0] = opcode
    raw[1] |= flags | (action or 0)
    for name, value in fields.items():
        raw[int(name[1:])] = value
    return bytes(raw)


UNMAP_HEADER: Final = struct.Struct(">HH4x")
"""Length of what follows the first field, and of the descriptors."""
UNMAP_DESCRIPTOR: Final = struct.Struct(">QI4x")
"""First block and number of blocks."""


def parse_unmap(raw: bytes) -> list[tuple[int, int]]:
    """Read the parameter list of UNMAP: blocks and counts; a descriptor that is not whole is left out (SBC-3, 5.28).

    Raises:
        WireError: the lengths in it contradict each other, or the list's.

    """
    if not raw:
        return []
    if len(raw) < UNMAP_HEADER.size:
        raise WireError("a parameter list holds its header", spec="SBC-3, 5.28.2", detail=f"{len(raw)} bytes")
    data_length, descriptors = UNMAP_HEADER.unpack_from(raw)
    if data_length < UNMAP_HEADER.size - 2 or descriptors > len(raw) - UNMAP_HEADER.size or (
            descriptors > data_length + 2 - UNMAP_HEADER.size):
        raise WireError("the lengths in a parameter list agree", spec="SBC-3, 5.28.2",
                        detail=f"{data_length} and {descriptors} in {len(raw)} bytes")
    whole = descriptors // UNMAP_DESCRIPTOR.size * UNMAP_DESCRIPTOR.size
    return list(UNMAP_DESCRIPTOR.iter_unpack(raw[UNMAP_HEADER.size:UNMAP_HEADER.size + whole]))
