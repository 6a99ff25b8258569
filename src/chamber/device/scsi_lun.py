"""A SCSI disk: carries out commands over what keeps its blocks (SPC-4, SBC-3)."""

from __future__ import annotations

import errno
import struct
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from chamber.device.scsi_pages import DiskFacts, inquiry, mode_pages, vpd_page
from chamber.wire.errors import WireError
from chamber.wire.scsi_commands import (
    FORMATS,
    Cdb,
    Opcode,
    Sense,
    SenseKey,
    Status,
    parse_unmap,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from chamber.device.disk import Disk

__all__ = (
    "CAPACITY_CHANGED",
    "INVALID_FIELD",
    "INVALID_OPCODE",
    "LUNS_CHANGED",
    "LUN_NOT_SUPPORTED",
    "POWER_ON",
    "UNIT_RESET",
    "CheckCondition",
    "DataOut",
    "LogicalUnit",
    "Overrun",
    "Reply",
)

_K = SenseKey
INVALID_OPCODE: Final = Sense(_K.ILLEGAL_REQUEST, 0x20)
INVALID_FIELD: Final = Sense(_K.ILLEGAL_REQUEST, 0x24)
LUN_NOT_SUPPORTED: Final = Sense(_K.ILLEGAL_REQUEST, 0x25)
POWER_ON: Final = Sense(_K.UNIT_ATTENTION, 0x29)
UNIT_RESET: Final = Sense(_K.UNIT_ATTENTION, 0x29, 0x03)
CAPACITY_CHANGED: Final = Sense(_K.UNIT_ATTENTION, 0x2A, 0x09)
LUNS_CHANGED: Final = Sense(_K.UNIT_ATTENTION, 0x3F, 0x0E)
_NOTHING: Final = Sense(_K.NO_SENSE, 0)
_STOPPED: Final = Sense(_K.NOT_READY, 0x04, 0x02)
_LENGTH_ERROR: Final = Sense(_K.ILLEGAL_REQUEST, 0x1A)
_INVALID_PARAMETER: Final = Sense(_K.ILLEGAL_REQUEST, 0x26)
_NO_SAVED_PAGES: Final = Sense(_K.ILLEGAL_REQUEST, 0x39)
_WRITE_PROTECTED: Final = Sense(_K.DATA_PROTECT, 0x27)
_NO_SPACE: Final = Sense(_K.DATA_PROTECT, 0x27, 0x07)

_TRANSFER_LIMIT: Final = 16 << 20
"""Bytes that one command may move: a driver can claim terabytes by naming the same page again and again."""
_UNMAP_RANGES: Final = 16
_ATTENTIONS: Final = 8
_BEFORE_ATTENTION: Final = frozenset({Opcode.INQUIRY, Opcode.REPORT_LUNS, Opcode.REQUEST_SENSE})
"""Commands that are carried out although the driver has something to be told (SAM-5, 5.14)."""
_WRITES: Final = frozenset({Opcode.WRITE_6, Opcode.WRITE_10, Opcode.WRITE_12, Opcode.WRITE_16, Opcode.WRITE_SAME_10,
                            Opcode.WRITE_SAME_16, Opcode.UNMAP})
_WHEN_STOPPED: Final = frozenset({Opcode.INQUIRY, Opcode.REQUEST_SENSE, Opcode.START_STOP_UNIT, Opcode.MODE_SENSE_6,
                                  Opcode.MODE_SENSE_10, Opcode.MAINTENANCE_IN})
_FUA: Final = 0x08


class CheckCondition(Exception):
    """A command ends with CHECK CONDITION.

    Attributes:
        sense: why.

    """

    def __init__(self, sense: Sense) -> None:
        self.sense = sense
        super().__init__(repr(sense))


class Overrun(Exception):
    """A command calls for more data than its request has room for, or brings (virtio 1.3, 5.6.6.1.1)."""


class DataOut:
    """The data that a request brings.

    Args:
        size: bytes.
        read: copies so many bytes from the start.

    Attributes:
        taken: bytes that the command used.

    """

    __slots__ = ("_read", "size", "taken")

    def __init__(self, size: int, read: Callable[[int], bytes]) -> None:
        self.size = size
        self.taken = 0
        self._read = read

    def take(self, length: int) -> bytes:
        """Return that many bytes.

        Raises:
            Overrun: there are fewer.

        """
        if length > self.size:
            raise Overrun
        self.taken = length
        return self._read(length)


@dataclass(frozen=True, slots=True)
class Reply:
    """How a command ended.

    Attributes:
        status: status code.
        sense: sense data, with CHECK CONDITION.
        data: what goes to the driver.

    """

    status: Status
    sense: bytes = b""
    data: bytes | memoryview = b""


class LogicalUnit:
    """A disk with thin provisioning and a write cache.

    Args:
        disk: where the blocks are; closed with the unit.
        serial: serial number, printable ASCII, which also makes its identity; no two units have the same.
        block_size: bytes of a logical block, a power of two from 512 to 4096.

    Attributes:
        blocks: how many there are, from `resize`.
        attentions: what the driver has to be told before its next command is carried out, oldest first.

    Raises:
        ValueError: the disk has no whole block, or the block size is none of those.

    """

    def __init__(self, disk: Disk, *, serial: bytes = b"chamber", block_size: int = 512) -> None:
        if block_size not in {512, 1024, 2048, 4096} or disk.size < block_size:
            raise ValueError("a block is 512 to 4096 bytes, and a disk has one at least")
        self.disk = disk
        self.serial = serial
        self.block_size = block_size
        self.blocks = disk.size // block_size
        self.attentions: deque[Sense] = deque((POWER_ON,), maxlen=_ATTENTIONS)
        self._stopped = False
        self._max_blocks = _TRANSFER_LIMIT // block_size
        self._facts = DiskFacts(serial, block_size, (4096 // block_size).bit_length() - 1, self._max_blocks,
                                self._max_blocks, _UNMAP_RANGES)
        op = Opcode
        self._commands: dict[Opcode, Callable[[Cdb, DataOut, int], bytes | memoryview]] = {
            op.TEST_UNIT_READY: self._nothing, op.REQUEST_SENSE: self._request_sense, op.INQUIRY: self._inquiry,
            op.MODE_SENSE_6: self._mode_sense, op.MODE_SENSE_10: self._mode_sense,
            op.START_STOP_UNIT: self._start_stop, op.READ_CAPACITY_10: self._capacity_10,
            op.SERVICE_ACTION_IN_16: self._capacity_16, op.UNMAP: self._unmap,
            op.MAINTENANCE_IN: self._supported_operations,
            **dict.fromkeys((op.READ_6, op.READ_10, op.READ_12, op.READ_16), self._read),
            **dict.fromkeys((op.WRITE_6, op.WRITE_10, op.WRITE_12, op.WRITE_16), self._write),
            **dict.fromkeys((op.VERIFY_10, op.VERIFY_12, op.VERIFY_16), self._verify),
            **dict.fromkeys((op.SYNCHRONIZE_CACHE_10, op.SYNCHRONIZE_CACHE_16), self._synchronize),
            **dict.fromkeys((op.WRITE_SAME_10, op.WRITE_SAME_16), self._write_same),
        }

    # What the device calls.

    def resize(self, blocks: int) -> None:
        """Show that many blocks of the disk, and have the driver told.

        Raises:
            ValueError: none, or more than the disk has.

        """
        if not 0 < blocks <= self.disk.size // self.block_size:
            raise ValueError(f"the disk has {self.disk.size // self.block_size} blocks")
        self.blocks = blocks
        self.attention(CAPACITY_CHANGED)

    def reset(self, reason: Sense) -> None:
        """Start anew: forget what the driver did, and have it told."""
        self._stopped = False
        self.attentions.clear()
        self.attention(reason)

    def attention(self, sense: Sense) -> None:
        """Have the driver told something, once."""
        if sense not in self.attentions:
            self.attentions.append(sense)

    def execute(self, cdb: Cdb, out: DataOut, room: int) -> Reply:
        """Carry out a command that may return up to `room` bytes.

        Raises:
            Overrun: it brings too little data, or has too little room.

        """
        opcode = cdb.opcode
        try:
            if self.attentions and opcode not in _BEFORE_ATTENTION:
                raise CheckCondition(self.attentions.popleft())
            if cdb.flags & ~cdb.format.flags or cdb.raw[-1] & 0x04:
                raise CheckCondition(INVALID_FIELD)
            if self._stopped and opcode not in _WHEN_STOPPED:
                raise CheckCondition(_STOPPED)
            if self.disk.read_only and opcode in _WRITES:
                raise CheckCondition(_WRITE_PROTECTED)
            return Reply(Status.GOOD, data=self._commands[opcode](cdb, out, room))
        except CheckCondition as condition:
            return Reply(Status.CHECK_CONDITION, condition.sense.pack())
        except OSError as error:
            if error.errno == errno.ENOSPC:
                sense = _NO_SPACE
            else:
                sense = Sense(_K.MEDIUM_ERROR, 0x0C if opcode in _WRITES else 0x11)
            return Reply(Status.CHECK_CONDITION, sense.pack())

    # Commands about the unit.

    def _nothing(self, cdb: Cdb, out: DataOut, room: int) -> bytes:  # noqa: ARG002 - one signature for all commands
        return b""

    @staticmethod
    def _allocated(data: bytes, cdb: Cdb, room: int) -> bytes:
        """Cut data to the allocation length."""
        if cdb.length > room:
            raise Overrun
        return data[:cdb.length]

    def _request_sense(self, cdb: Cdb, out: DataOut, room: int) -> bytes:  # noqa: ARG002
        if cdb.flags:
            raise CheckCondition(INVALID_FIELD)  # no sense data with descriptors here
        if cdb.length > room:
            raise Overrun
        return self._allocated((self.attentions.popleft() if self.attentions else _NOTHING).pack(), cdb, room)

    def _inquiry(self, cdb: Cdb, out: DataOut, room: int) -> bytes:  # noqa: ARG002
        page = cdb.raw[2]
        data = vpd_page(page, self._facts) if cdb.flags else inquiry() if not page else None
        if data is None:
            raise CheckCondition(INVALID_FIELD)
        return self._allocated(data, cdb, room)

    def _mode_sense(self, cdb: Cdb, out: DataOut, room: int) -> bytes:  # noqa: ARG002
        control, page = divmod(cdb.raw[2], 64)
        if control == 3:
            raise CheckCondition(_NO_SAVED_PAGES)
        pages = mode_pages(page, cdb.raw[3], control)
        if pages is None:
            raise CheckCondition(INVALID_FIELD)
        # Write protection, and that writes and reads take FUA.
        specific = 0x10 | (0x80 if self.disk.read_only else 0)
        block = b"" if cdb.flags & 0x08 else struct.pack(">II", min(self.blocks, 0xFFFFFFFF), self.block_size)
        rest = block + pages
        if cdb.opcode is Opcode.MODE_SENSE_6:
            return self._allocated(bytes((3 + len(rest), 0, specific, len(block))) + rest, cdb, room)
        return self._allocated(struct.pack(">HBBHH", 6 + len(rest), 0, specific, 0, len(block)) + rest, cdb, room)

    def _start_stop(self, cdb: Cdb, out: DataOut, room: int) -> bytes:  # noqa: ARG002
        if cdb.raw[4] & 0xF2:
            raise CheckCondition(INVALID_FIELD)  # no power conditions, nothing to load or eject
        self._stopped = not cdb.raw[4] & 1
        if self._stopped:
            self.disk.flush()
        return b""

    def _capacity_10(self, cdb: Cdb, out: DataOut, room: int) -> bytes:  # noqa: ARG002
        if cdb.lba and not cdb.raw[8] & 1:
            raise CheckCondition(INVALID_FIELD)
        if room < 8:
            raise Overrun
        return struct.pack(">II", min(self.blocks - 1, 0xFFFFFFFF), self.block_size)

    def _capacity_16(self, cdb: Cdb, out: DataOut, room: int) -> bytes:  # noqa: ARG002
        # Thin provisioning, and what is not provisioned reads as zeros.
        data = struct.pack(">QIBBH16x", self.blocks - 1, self.block_size, 0, self._facts.physical_exponent, 0xC000)
        return self._allocated(data, cdb, room)

    def _supported_operations(self, cdb: Cdb, out: DataOut, room: int) -> bytes:  # noqa: ARG002
        """Tell which commands there are (SPC-4, 6.35)."""
        timeouts = struct.pack(">HBBII", 10, 0, 0, 0, 0) if cdb.raw[2] & 0x80 else b""
        option, opcode, action = cdb.raw[2] & 7, cdb.raw[3], int.from_bytes(cdb.raw[4:6], "big")
        if option == 0:
            rows = b"".join(struct.pack(
                ">BBHBBH", f.opcode, 0, f.action or 0, 0, (f.action is not None) | bool(timeouts) << 1, f.size)
                + timeouts for f in FORMATS.values())
            return self._allocated(struct.pack(">I", len(rows)) + rows, cdb, room)
        has_actions = any(code == opcode and kind is not None for code, kind in FORMATS)
        if option > 3 or (option == 1 and has_actions) or (option == 2 and not has_actions):
            raise CheckCondition(INVALID_FIELD)
        form = FORMATS.get((opcode, action if has_actions else None))
        if form is None:
            return self._allocated(bytes((0, 1, 0, 0)), cdb, room)
        usage = form.usage_map()
        return self._allocated(struct.pack(">BBH", 0, 3 | bool(timeouts) << 7, len(usage)) + usage + timeouts,
                               cdb, room)

    # Commands about blocks.

    def _span(self, lba: int, count: int, *, limit: bool = True) -> tuple[int, int]:
        """Return offset and length in bytes of blocks that a command names, if they are there."""
        if lba > self.blocks or count > self.blocks - lba:
            raise CheckCondition(Sense(_K.ILLEGAL_REQUEST, 0x21, information=max(lba, self.blocks)))
        if limit and count > self._max_blocks:
            raise CheckCondition(INVALID_FIELD)
        return lba * self.block_size, count * self.block_size

    def _read(self, cdb: Cdb, out: DataOut, room: int) -> bytes | memoryview:  # noqa: ARG002
        offset, length = self._span(cdb.lba, cdb.length)
        if length > room:
            raise Overrun
        if cdb.flags & _FUA:
            self.disk.flush()
        return self.disk.read(offset, length)

    def _write(self, cdb: Cdb, out: DataOut, room: int) -> bytes:  # noqa: ARG002
        offset, length = self._span(cdb.lba, cdb.length)
        self.disk.write(offset, out.take(length))
        if cdb.flags & _FUA:
            self.disk.flush()
        return b""

    def _verify(self, cdb: Cdb, out: DataOut, room: int) -> bytes:  # noqa: ARG002
        """Read blocks, and compare them with the data or, each of them, with its one block."""
        compare = cdb.flags >> 1 & 3
        if compare == 2:
            raise CheckCondition(INVALID_FIELD)
        offset, length = self._span(cdb.lba, cdb.length)
        if not compare:
            self.disk.read(offset, length)
            return b""
        right = out.take(length if compare == 1 else min(length, self.block_size))
        if compare == 3:
            right *= cdb.length
        found = self.disk.read(offset, length)
        if found != right:
            size = self.block_size
            block = next(at for at in range(0, length, size) if found[at:at + size] != right[at:at + size])
            at = next(at for at in range(block, length) if found[at] != right[at])
            raise CheckCondition(Sense(_K.MISCOMPARE, 0x1D, information=at))
        return b""

    def _synchronize(self, cdb: Cdb, out: DataOut, room: int) -> bytes:  # noqa: ARG002
        self._span(cdb.lba, cdb.length, limit=False)
        self.disk.flush()
        return b""

    def _write_same(self, cdb: Cdb, out: DataOut, room: int) -> bytes:  # noqa: ARG002
        """Repeat a block; zeros are left to the disk, which may unmap them if the driver allows that."""
        if not cdb.length:
            raise CheckCondition(INVALID_FIELD)  # as the block limits say: all blocks to the end is too much at once
        offset, length = self._span(cdb.lba, cdb.length)
        no_data = bool(cdb.flags & 0x01)
        block = bytes(self.block_size) if no_data else out.take(self.block_size)
        if any(block):
            self.disk.write(offset, block * cdb.length)
        else:
            self.disk.zero(offset, length, unmap=bool(cdb.flags & 0x08))
        return b""

    def _unmap(self, cdb: Cdb, out: DataOut, room: int) -> bytes:  # noqa: ARG002
        try:
            ranges = parse_unmap(out.take(cdb.length))
        except WireError:
            raise CheckCondition(_LENGTH_ERROR) from None
        if len(ranges) > _UNMAP_RANGES or sum(count for _, count in ranges) > self._max_blocks:
            raise CheckCondition(_INVALID_PARAMETER)
        spans = [self._span(lba, count) for lba, count in ranges]
        for offset, length in spans:
            if length:
                self.disk.zero(offset, length, unmap=True)
        return b""
