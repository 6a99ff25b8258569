from __future__ import annotations

import struct
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chamber.device.blk import pattern
from chamber.device.disk import FileDisk, MemoryDisk
from chamber.device.hooks import Hooks
from chamber.device.scsi import EXTRA_UNIT, ScsiDevice, unit_pattern
from chamber.device.scsi_lun import LogicalUnit
from chamber.wire.scsi import (
    AN_ANSWER,
    AN_REQUEST,
    COMMAND,
    CONFIG,
    CONTROL_QUEUE,
    EVENT,
    EVENT_QUEUE,
    EVENTS_MISSED,
    REPORT_LUNS_UNIT,
    REQUEST_QUEUE,
    RESPONSE,
    TASK_MANAGEMENT,
    Address,
    EventType,
    ResetReason,
    Response,
    ScsiFeature,
    TaskFunction,
)
from chamber.wire.scsi_commands import (
    FORMATS,
    UNMAP_DESCRIPTOR,
    UNMAP_HEADER,
    Opcode,
    Sense,
    SenseKey,
    ServiceAction,
    Status,
    build_cdb,
    parse_sense,
)
from chamber.wire.virtio import bit
from tests.device.driver import Driver

if TYPE_CHECKING:
    from pathlib import Path

    from chamber.device.chain import Chain
    from chamber.device.queue import DeviceQueue

A, B, C = Address(0, 0), Address(0, 5), Address(2, 300)
SIZE = 64 * 512
ILLEGAL, ATTENTION = SenseKey.ILLEGAL_REQUEST, SenseKey.UNIT_ATTENTION
INVALID_FIELD = Sense(ILLEGAL, 0x24)
NO_OPCODE = Sense(ILLEGAL, 0x20)
NO_LUN = Sense(ILLEGAL, 0x25)


class Answer:
    """A response, taken apart."""

    def __init__(self, raw: bytes, sense_size: int = 96) -> None:
        length, self.residual, _, status, response = RESPONSE.unpack_from(raw)
        self.status = Status(status)
        self.response = Response(response)
        self.sense = parse_sense(raw[12:12 + length]) if length else None
        self.data = raw[12 + sense_size:]
        assert not any(raw[12 + length:12 + sense_size])


class Guest:
    """Sends commands to a device."""

    def __init__(self, device: ScsiDevice, *, features: int | None = None, memory: int = 8 << 20) -> None:
        self.driver = Driver(device, features=features, memory=memory)
        self.device = device
        self.sense_size = 96
        self.cdb_size = 32
        self.features = self.device.features

    def command(self, cdb: bytes, room: int = 0, out: bytes = b"", at: Address | bytes = A) -> Answer:
        lun = at if isinstance(at, bytes) else at.pack()
        header = COMMAND.pack(lun, 7, 0, 0, 0) + cdb.ljust(self.cdb_size, b"\0")
        raw = self.driver.request(REQUEST_QUEUE, [header, *([out] if out else [])],
                                  [12 + self.sense_size, *([room] if room else [])])
        return Answer(raw, self.sense_size)

    def good(self, cdb: bytes, room: int = 0, out: bytes = b"", at: Address = A) -> bytes:
        answer = self.command(cdb, room, out, at)
        assert (answer.response, answer.status, answer.sense) == (Response.OK, Status.GOOD, None)
        assert answer.residual == room + len(out) - len(answer.data) - (len(out) if out else 0)
        return answer.data

    def refused(self, cdb: bytes, room: int = 0, out: bytes = b"", at: Address = A) -> Sense:
        answer = self.command(cdb, room, out, at)
        assert (answer.response, answer.status, answer.data) == (Response.OK, Status.CHECK_CONDITION, b"")
        assert answer.sense is not None
        return answer.sense

    def ready(self) -> None:
        """Hear what every unit has to tell."""
        for address, unit in self.device.units.items():
            while unit.attentions:
                assert self.refused(build_cdb(Opcode.TEST_UNIT_READY), at=address).key == ATTENTION

    def manage(self, function: int, lun: bytes = A.pack()) -> int:
        (response,) = self.driver.request(CONTROL_QUEUE, [TASK_MANAGEMENT.pack(0, function, lun, 7)], [1])
        return response

    def events(self) -> list[tuple[int, bytes, int]]:
        return [EVENT.unpack(data) for _, data in self.driver.used(EVENT_QUEUE)]

    def lend_events(self, count: int = 8) -> None:
        for _ in range(count):
            self.driver.add(EVENT_QUEUE, [], [16])
        self.driver.notify(EVENT_QUEUE)


def units() -> dict[Address, LogicalUnit]:
    return {A: LogicalUnit(MemoryDisk(unit_pattern(A, SIZE)), serial=b"first"),
            B: LogicalUnit(MemoryDisk(unit_pattern(B, SIZE)), serial=b"second", block_size=4096),
            C: LogicalUnit(MemoryDisk(unit_pattern(C, SIZE), read_only=True), serial=b"third")}


@pytest.fixture
def guest() -> Guest:
    guest = Guest(ScsiDevice(units()))
    guest.ready()
    return guest


def content(guest: Guest, address: Address = A) -> bytes:
    disk = guest.device.units[address].disk
    return bytes(disk.read(0, disk.size))


# Reading and writing.


READS = (Opcode.READ_6, Opcode.READ_10, Opcode.READ_12, Opcode.READ_16)
WRITES = (Opcode.WRITE_6, Opcode.WRITE_10, Opcode.WRITE_12, Opcode.WRITE_16)


@pytest.mark.parametrize("opcode", READS)
def test_reads(guest: Guest, opcode: Opcode) -> None:
    assert guest.good(build_cdb(opcode, lba=3, length=2), 1024) == pattern(3) + pattern(4)
    answer = guest.command(build_cdb(opcode, lba=3, length=1), 4096)
    assert (answer.data, answer.residual) == (pattern(3), 4096 - 512)


@pytest.mark.parametrize("opcode", WRITES)
def test_writes(guest: Guest, opcode: Opcode) -> None:
    guest.good(build_cdb(opcode, lba=7, length=1), out=b"w" * 512)
    assert content(guest)[7 * 512:9 * 512] == b"w" * 512 + pattern(8)


def test_units_hold_their_own(guest: Guest) -> None:
    first = (A.target << 14 | A.lun) << 32
    assert guest.good(build_cdb(Opcode.READ_10, lba=1, length=1), 512) == pattern(first + 1)
    assert guest.good(build_cdb(Opcode.READ_10, lba=1, length=1), 4096, at=B) == unit_pattern(B, SIZE)[4096:8192]
    assert guest.good(build_cdb(Opcode.READ_16, lba=1, length=1), 512, at=C) == unit_pattern(C, SIZE)[512:1024]
    assert len({guest.good(build_cdb(Opcode.READ_10, length=1), 4096 if at == B else 512, at=at)[:512]
                for at in (A, B, C)}) == 3


@pytest.mark.parametrize(("lba", "length", "asc"), [(64, 1, 0x21), (63, 2, 0x21), (1 << 63, 1, 0x21),
                                                    (0, 0xFFFFFFFF, 0x21), ((1 << 64) - 1, 2, 0x21)])
def test_what_is_beyond_the_end_is_not_there(guest: Guest, lba: int, length: int, asc: int) -> None:
    for opcode in (Opcode.READ_16, Opcode.WRITE_16, Opcode.VERIFY_16, Opcode.SYNCHRONIZE_CACHE_16,
                   Opcode.WRITE_SAME_16):
        out = b"" if opcode == Opcode.READ_16 else bytes(512)
        sense = guest.refused(build_cdb(opcode, lba=lba, length=length), out=out)
        assert (sense.key, sense.asc) == (ILLEGAL, asc)
    assert content(guest) == unit_pattern(A, SIZE)


def test_too_little_room_or_data_is_an_overrun(guest: Guest) -> None:
    for cdb, room, out in ((build_cdb(Opcode.READ_10, length=2), 512, b""),
                           (build_cdb(Opcode.WRITE_10, length=2), 0, bytes(512)),
                           (build_cdb(Opcode.INQUIRY, length=96), 36, b""),
                           (build_cdb(Opcode.READ_CAPACITY_10), 4, b""),
                           (build_cdb(Opcode.REPORT_LUNS, length=64), 16, b""),
                           (build_cdb(Opcode.UNMAP, length=24), 0, bytes(16))):
        answer = guest.command(cdb, room, out)
        assert (answer.response, answer.residual, answer.data) == (Response.OVERRUN, room + len(out), b"")
    assert content(guest) == unit_pattern(A, SIZE)


def test_data_both_ways_needs_inout(guest: Guest) -> None:
    assert guest.command(build_cdb(Opcode.READ_10, length=1), 512, b"out").response is Response.FAILURE
    both = Guest(ScsiDevice(units(), features=bit(ScsiFeature.INOUT)))
    both.ready()
    answer = both.command(build_cdb(Opcode.READ_10, length=1), 512, b"out")
    assert (answer.response, answer.data, answer.residual) == (Response.OK, pattern(0), 3)


def test_protection_and_unknown_flags_are_refused(guest: Guest) -> None:
    for flags in (0x20, 0xE0, 0x04):
        assert guest.refused(build_cdb(Opcode.READ_10, length=1, flags=flags), 512) == INVALID_FIELD
    assert guest.refused(build_cdb(Opcode.TEST_UNIT_READY, b5=4)) == INVALID_FIELD


def test_verify_compares(guest: Guest) -> None:
    guest.good(build_cdb(Opcode.VERIFY_10, lba=2, length=2))
    guest.good(build_cdb(Opcode.VERIFY_12, lba=2, length=2, flags=0x02), out=pattern(2) + pattern(3))
    wrong = pattern(2) + b"!" + pattern(3)[1:]
    sense = guest.refused(build_cdb(Opcode.VERIFY_16, lba=2, length=2, flags=0x02), out=wrong)
    assert sense == Sense(SenseKey.MISCOMPARE, 0x1D, information=512)
    assert guest.refused(build_cdb(Opcode.VERIFY_10, length=2, flags=0x06), out=pattern(0)).key == SenseKey.MISCOMPARE
    guest.good(build_cdb(Opcode.VERIFY_10, length=1, flags=0x06), out=pattern(0))
    assert guest.refused(build_cdb(Opcode.VERIFY_10, length=1, flags=0x04), out=pattern(0)) == INVALID_FIELD


def test_write_same_repeats_zeroes_and_unmaps(guest: Guest) -> None:
    guest.good(build_cdb(Opcode.WRITE_SAME_10, lba=8, length=2), out=b"x" * 512)
    guest.good(build_cdb(Opcode.WRITE_SAME_16, lba=12, length=2, flags=0x08), out=bytes(512))
    guest.good(build_cdb(Opcode.WRITE_SAME_16, lba=16, length=1, flags=0x09))
    expected = unit_pattern(A, SIZE)
    expected[8 * 512:10 * 512] = b"x" * 1024
    for sector in (12, 13, 16):
        expected[sector * 512:sector * 512 + 512] = bytes(512)
    assert content(guest) == expected
    assert guest.refused(build_cdb(Opcode.WRITE_SAME_10), out=bytes(512)) == INVALID_FIELD


def unmap(*ranges: tuple[int, int]) -> bytes:
    rows = b"".join(UNMAP_DESCRIPTOR.pack(*r) for r in ranges)
    return UNMAP_HEADER.pack(len(rows) + 6, len(rows)) + rows


def test_unmap(guest: Guest) -> None:
    data = unmap((2, 1), (8, 4), (9, 0))
    guest.good(build_cdb(Opcode.UNMAP, length=len(data)), out=data)
    expected = unit_pattern(A, SIZE)
    for sector in (2, 8, 9, 10, 11):
        expected[sector * 512:sector * 512 + 512] = bytes(512)
    assert content(guest) == expected


@pytest.mark.parametrize(("data", "asc"), [
    (unmap(*[(0, 1)] * 17), 0x26), (unmap((0, 1), (63, 2)), 0x21), (unmap((0, 1))[:12], 0x1A), (b"\0" * 4, 0x1A),
    (unmap((0, 0xFFFFFFFF)), 0x26)])
def test_ranges_that_cannot_be_unmapped_change_nothing(guest: Guest, data: bytes, asc: int) -> None:
    sense = guest.refused(build_cdb(Opcode.UNMAP, length=len(data)), out=data)
    assert (sense.key, sense.asc) == (ILLEGAL, asc)
    assert content(guest) == unit_pattern(A, SIZE)


def test_a_read_only_disk_takes_no_writes(guest: Guest) -> None:
    for cdb, out in ((build_cdb(Opcode.WRITE_10, length=1), bytes(512)),
                     (build_cdb(Opcode.WRITE_SAME_16, length=1), bytes(512)),
                     (build_cdb(Opcode.UNMAP, length=24), unmap((0, 1)))):
        assert guest.refused(cdb, out=out, at=C) == Sense(SenseKey.DATA_PROTECT, 0x27)
    assert guest.good(build_cdb(Opcode.MODE_SENSE_6, b2=0x3F, length=255), 255, at=C)[2] == 0x90


class _Flushes(MemoryDisk):
    count = 0
    fails = False

    def flush(self) -> None:
        self.count += 1
        if self.fails:
            raise OSError(28, "no space")

    def read(self, offset: int, length: int) -> memoryview:
        if self.fails:
            raise OSError(5, "broken")
        return super().read(offset, length)


def test_writes_are_cached_until_they_are_flushed() -> None:
    disk = _Flushes(bytearray(SIZE))
    guest = Guest(ScsiDevice({A: LogicalUnit(disk)}))
    guest.ready()
    guest.good(build_cdb(Opcode.WRITE_10, length=1), out=bytes(512))
    assert disk.count == 0
    guest.good(build_cdb(Opcode.SYNCHRONIZE_CACHE_10))
    guest.good(build_cdb(Opcode.SYNCHRONIZE_CACHE_16, lba=3, length=4))
    assert disk.count == 2
    guest.good(build_cdb(Opcode.WRITE_10, length=1, flags=0x08), out=bytes(512))
    assert disk.count == 3
    disk.fails = True
    assert guest.refused(build_cdb(Opcode.READ_10, length=1), 512) == Sense(SenseKey.MEDIUM_ERROR, 0x11)
    assert guest.refused(build_cdb(Opcode.SYNCHRONIZE_CACHE_10)) == Sense(SenseKey.DATA_PROTECT, 0x27, 7)


def test_a_raw_file(tmp_path: Path) -> None:
    path = tmp_path / "disk"
    path.write_bytes(unit_pattern(A, SIZE))
    guest = Guest(ScsiDevice({A: LogicalUnit(FileDisk(path))}))
    guest.ready()
    guest.good(build_cdb(Opcode.WRITE_16, lba=1, length=1), out=b"f" * 512)
    guest.good(build_cdb(Opcode.UNMAP, length=24), out=unmap((8, 8)))
    assert guest.good(build_cdb(Opcode.READ_10, lba=1, length=1), 512) == b"f" * 512
    guest.device.close()
    assert path.read_bytes()[8 * 512:16 * 512] == bytes(8 * 512)
    assert path.read_bytes()[512:1024] == b"f" * 512


# What a unit says about itself.


def test_inquiry(guest: Guest) -> None:
    data = guest.good(build_cdb(Opcode.INQUIRY, length=255), 255)
    assert (data[0], data[2], data[3] & 0xF, len(data)) == (0, 6, 2, data[4] + 5)
    assert data[8:32] == b"CHAMBER virtual disk    "
    assert guest.good(build_cdb(Opcode.INQUIRY, length=36), 36) == data[:36]
    assert guest.refused(build_cdb(Opcode.INQUIRY, length=36, b2=0x80), 36) == INVALID_FIELD


def vpd(guest: Guest, page: int, at: Address = A) -> bytes:
    data = guest.good(build_cdb(Opcode.INQUIRY, length=255, flags=1, b2=page), 255, at=at)
    assert data[1] == page
    assert int.from_bytes(data[2:4], "big") == len(data) - 4
    return data[4:]


def test_vital_product_data(guest: Guest) -> None:
    assert list(vpd(guest, 0x00)) == [0x00, 0x80, 0x83, 0xB0, 0xB1, 0xB2]
    for page in vpd(guest, 0x00):
        vpd(guest, page)
    assert [vpd(guest, 0x80, at) for at in (A, B, C)] == [b"first", b"second", b"third"]
    names = {vpd(guest, 0x83, at)[-8:] for at in (A, B, C)}
    assert len(names) == 3
    assert {name[0] >> 4 for name in names} == {3}
    assert int.from_bytes(vpd(guest, 0xB0)[4:8], "big") == 32768
    assert vpd(guest, 0xB1)[:2] == b"\0\1"
    assert vpd(guest, 0xB2)[1] == 0xE4
    assert guest.refused(build_cdb(Opcode.INQUIRY, length=255, flags=1, b2=0x89), 255) == INVALID_FIELD


def test_capacity(guest: Guest) -> None:
    assert guest.good(build_cdb(Opcode.READ_CAPACITY_10), 8) == struct.pack(">II", 63, 512)
    assert guest.good(build_cdb(Opcode.READ_CAPACITY_10), 8, at=B) == struct.pack(">II", 7, 4096)
    data = guest.good(build_cdb(Opcode.SERVICE_ACTION_IN_16, ServiceAction.READ_CAPACITY_16, length=32), 32)
    assert struct.unpack_from(">QIBBH", data) == (63, 512, 0, 3, 0xC000)
    assert guest.refused(build_cdb(Opcode.READ_CAPACITY_10, lba=1), 8) == INVALID_FIELD


def test_mode_sense(guest: Guest) -> None:
    six = guest.good(build_cdb(Opcode.MODE_SENSE_6, b2=0x3F, length=255), 255)
    assert (six[0], six[2], six[3]) == (len(six) - 1, 0x10, 8)
    assert struct.unpack(">II", six[4:12]) == (64, 512)
    assert [six[12], six[24], six[44]] == [0x01, 0x08, 0x0A]
    ten = guest.good(build_cdb(Opcode.MODE_SENSE_10, b2=0x08, flags=0x08, length=255), 255)
    assert ten == struct.pack(">HBBHH", len(ten) - 2, 0, 0x10, 0, 0) + bytes((8, 18, 4)) + bytes(17)
    changeable = guest.good(build_cdb(Opcode.MODE_SENSE_10, b2=0x48, flags=0x08, length=255), 255)
    assert changeable[8:] == bytes((8, 18)) + bytes(18)
    assert guest.refused(build_cdb(Opcode.MODE_SENSE_6, b2=0xC8, length=255), 255) == Sense(ILLEGAL, 0x39)
    assert guest.refused(build_cdb(Opcode.MODE_SENSE_6, b2=0x1C, length=255), 255) == INVALID_FIELD
    assert guest.refused(build_cdb(Opcode.MODE_SENSE_6, b2=0x08, b3=1, length=255), 255) == INVALID_FIELD


@pytest.mark.parametrize("raw", ["15100000180000", "551000000000000018", "5e000000000000000800", "a305", "ff", "7f"])
def test_commands_that_there_are_not(guest: Guest, raw: str) -> None:
    sense = guest.refused(bytes.fromhex(raw), out=bytes(24))
    assert sense == (INVALID_FIELD if raw == "a305" else NO_OPCODE)


def test_a_stopped_unit_is_not_ready(guest: Guest) -> None:
    guest.good(build_cdb(Opcode.START_STOP_UNIT, b4=0))
    not_ready = Sense(SenseKey.NOT_READY, 4, 2)
    assert guest.refused(build_cdb(Opcode.TEST_UNIT_READY)) == not_ready
    assert guest.refused(build_cdb(Opcode.READ_10, length=1), 512) == not_ready
    guest.good(build_cdb(Opcode.INQUIRY, length=36), 36)
    guest.good(build_cdb(Opcode.START_STOP_UNIT, b4=1))
    guest.good(build_cdb(Opcode.TEST_UNIT_READY))
    for wrong in (0x02, 0x13):
        assert guest.refused(build_cdb(Opcode.START_STOP_UNIT, b4=wrong)) == INVALID_FIELD


def test_what_is_supported_is_what_is_said(guest: Guest) -> None:
    def ask(**fields: int) -> bytes:
        return build_cdb(Opcode.MAINTENANCE_IN, ServiceAction.REPORT_SUPPORTED_OPERATION_CODES, length=4096, **fields)

    data = guest.good(ask(), 4096)
    rows = list(struct.iter_unpack(">BBHBBH", data[4:]))
    assert int.from_bytes(data[:4], "big") == len(data) - 4
    assert {(row[0], row[2] if row[4] & 1 else None) for row in rows} == set(FORMATS)
    for form in FORMATS.values():
        action = form.action
        one = guest.good(ask(b2=1, b3=form.opcode) if action is None else ask(b2=2, b3=form.opcode, b5=action), 4096)
        assert one == bytes((0, 3, 0, form.size)) + form.usage_map()
    assert guest.good(ask(b2=1, b3=Opcode.MODE_SELECT_6), 4096) == b"\0\1\0\0"
    assert guest.good(ask(b2=3, b3=Opcode.READ_10), 4096)[1] == 3
    assert guest.good(ask(b2=0x81, b3=Opcode.READ_10), 4096)[-12:] == b"\0\x0a" + bytes(10)
    assert guest.refused(ask(b2=1, b3=Opcode.MAINTENANCE_IN), 4096) == INVALID_FIELD
    assert guest.refused(ask(b2=2, b3=Opcode.READ_10), 4096) == INVALID_FIELD
    assert guest.refused(ask(b2=4), 4096) == INVALID_FIELD


# Units, present and absent.


def luns(guest: Guest, at: Address | bytes, select: int = 0) -> list[bytes]:
    answer = guest.command(build_cdb(Opcode.REPORT_LUNS, b2=select, length=256), 256, at=at)
    assert answer.response is Response.OK
    count = int.from_bytes(answer.data[:4], "big")
    assert count == len(answer.data) - 8
    return [answer.data[i:i + 8] for i in range(8, len(answer.data), 8)]


def test_report_luns(guest: Guest) -> None:
    assert luns(guest, A) == [bytes(8), bytes((0, 5)) + bytes(6)]
    assert luns(guest, Address(0, 99)) == luns(guest, A)
    assert luns(guest, C) == [bytes((0x41, 0x2C)) + bytes(6)]
    assert luns(guest, REPORT_LUNS_UNIT) == [A.pack(), B.pack(), C.pack()]
    assert luns(guest, A, 1) == []
    assert guest.refused(build_cdb(Opcode.REPORT_LUNS, length=15), 15) == INVALID_FIELD
    assert guest.refused(build_cdb(Opcode.REPORT_LUNS, b2=3, length=16), 16) == INVALID_FIELD


def test_what_is_not_there(guest: Guest) -> None:
    absent = Address(0, 1)
    assert guest.good(build_cdb(Opcode.INQUIRY, length=36), 36, at=absent)[0] == 0x7F
    assert guest.good(build_cdb(Opcode.REQUEST_SENSE, length=18), 18, at=absent) == NO_LUN.pack()
    for cdb in (build_cdb(Opcode.TEST_UNIT_READY), build_cdb(Opcode.READ_10), b"\xff"):
        assert guest.refused(cdb, at=absent) == NO_LUN
    answer = guest.command(build_cdb(Opcode.TEST_UNIT_READY), at=Address(1, 0))
    assert (answer.response, answer.residual) == (Response.BAD_TARGET, 0)
    assert guest.command(build_cdb(Opcode.TEST_UNIT_READY), at=b"\0" * 8).response is Response.BAD_TARGET
    answer = guest.command(build_cdb(Opcode.INQUIRY, length=36), 36, at=REPORT_LUNS_UNIT)
    assert (answer.response, answer.data[0]) == (Response.OK, 0x1E)


def test_a_driver_is_told_first_what_happened() -> None:
    guest = Guest(ScsiDevice(units()))
    read = build_cdb(Opcode.READ_10, length=1)
    assert guest.good(build_cdb(Opcode.INQUIRY, length=36), 36)
    assert guest.refused(read, 512) == Sense(ATTENTION, 0x29)
    guest.good(read, 512)
    guest.device.units[A].resize(32)
    assert guest.good(build_cdb(Opcode.REQUEST_SENSE, length=252), 252) == Sense(ATTENTION, 0x2A, 9).pack()
    assert guest.good(build_cdb(Opcode.REQUEST_SENSE, length=252), 252) == Sense(0, 0).pack()
    assert guest.refused(build_cdb(Opcode.REQUEST_SENSE, length=18, flags=1), 18) == INVALID_FIELD
    assert guest.good(build_cdb(Opcode.READ_CAPACITY_10), 8) == struct.pack(">II", 31, 512)
    assert guest.refused(build_cdb(Opcode.READ_10, lba=31, length=2), 1024).asc == 0x21


def test_only_so_much_is_kept_to_be_told() -> None:
    unit = LogicalUnit(MemoryDisk(bytearray(SIZE)))
    for ascq in range(100):
        unit.attention(Sense(ATTENTION, 0x3F, ascq))
    assert len(unit.attentions) == 8


@pytest.mark.parametrize(("size", "block_size"), [(511, 512), (SIZE, 0), (SIZE, 513), (SIZE, 8192), (0, 512)])
def test_a_unit_has_blocks(size: int, block_size: int) -> None:
    with pytest.raises(ValueError, match="block"):
        LogicalUnit(MemoryDisk(bytearray(size)), block_size=block_size)


# Task management.


def test_task_management(guest: Guest) -> None:
    for function in (TaskFunction.ABORT_TASK, TaskFunction.ABORT_TASK_SET, TaskFunction.CLEAR_TASK_SET,
                     TaskFunction.QUERY_TASK, TaskFunction.QUERY_TASK_SET):
        assert guest.manage(function) == Response.OK
    assert guest.manage(TaskFunction.CLEAR_ACA) == Response.FUNCTION_REJECTED
    assert guest.manage(99) == Response.FUNCTION_REJECTED
    assert guest.manage(TaskFunction.ABORT_TASK, Address(0, 1).pack()) == Response.INCORRECT_LUN
    assert guest.manage(TaskFunction.I_T_NEXUS_RESET, Address(1, 0).pack()) == Response.BAD_TARGET
    assert guest.manage(TaskFunction.LOGICAL_UNIT_RESET, b"\xff" * 8) == Response.BAD_TARGET
    assert not guest.device.units[A].attentions


def test_resets_are_told_of(guest: Guest) -> None:
    reset = Sense(ATTENTION, 0x29, 3)
    guest.good(build_cdb(Opcode.START_STOP_UNIT, b4=0))
    assert guest.manage(TaskFunction.LOGICAL_UNIT_RESET) == Response.OK
    assert guest.refused(build_cdb(Opcode.TEST_UNIT_READY)) == reset
    guest.good(build_cdb(Opcode.TEST_UNIT_READY))
    assert not guest.device.units[B].attentions
    assert guest.manage(TaskFunction.I_T_NEXUS_RESET, Address(0, 77).pack()) == Response.OK
    assert [guest.refused(build_cdb(Opcode.TEST_UNIT_READY), at=at) for at in (A, B)] == [reset, reset]
    assert not guest.device.units[C].attentions


@pytest.mark.parametrize("kind", [1, 2])
def test_asynchronous_events_are_none(guest: Guest, kind: int) -> None:
    for lun, response in ((A.pack(), Response.OK), (Address(0, 1).pack(), Response.INCORRECT_LUN),
                          (Address(9, 1).pack(), Response.BAD_TARGET)):
        raw = guest.driver.request(CONTROL_QUEUE, [AN_REQUEST.pack(kind, lun, 0x7E)], [5])
        assert AN_ANSWER.unpack(raw) == (0, response)


@pytest.mark.parametrize(("request_", "room"), [(b"", 1), (b"\0" * 23, 1), (b"\0" * 24, 0), (b"\3" + b"\0" * 23, 9),
                                                (b"\1" + b"\0" * 14, 5), (b"\1" + b"\0" * 15, 4)])
def test_control_requests_that_are_none(guest: Guest, request_: bytes, room: int) -> None:
    parts, rooms = ([request_] if request_ else []), ([room] if room else [])
    assert guest.driver.request(CONTROL_QUEUE, parts, rooms) == b""
    assert guest.device.violations
    assert guest.manage(TaskFunction.QUERY_TASK) == Response.OK


# Events.


def test_units_come_and_go(guest: Guest) -> None:
    guest.lend_events()
    for _ in range(2):
        guest.device.host_action("plug")
        guest.device.host_action("plug")
        assert guest.events() == [(EventType.TRANSPORT_RESET, EXTRA_UNIT.pack(), ResetReason.RESCAN)]
        assert guest.refused(build_cdb(Opcode.TEST_UNIT_READY), at=EXTRA_UNIT) == Sense(ATTENTION, 0x29)
        assert guest.good(build_cdb(Opcode.READ_10, length=1), 512, at=EXTRA_UNIT) == unit_pattern(EXTRA_UNIT, 512)
        guest.device.host_action("unplug")
        guest.device.host_action("unplug")
        assert guest.events() == [(EventType.TRANSPORT_RESET, EXTRA_UNIT.pack(), ResetReason.REMOVED)]
        answer = guest.command(build_cdb(Opcode.READ_10, length=1), 512, at=EXTRA_UNIT)
        assert answer.response is Response.BAD_TARGET
    assert not guest.device.violations


def test_a_neighbour_says_that_units_changed(guest: Guest) -> None:
    extra = Address(0, 1)
    guest.device.attach(extra, LogicalUnit(MemoryDisk(bytearray(SIZE)), serial=b"extra"))
    for at in (A, B):
        assert guest.refused(build_cdb(Opcode.TEST_UNIT_READY), at=at) == Sense(ATTENTION, 0x3F, 0xE)
    assert not guest.device.units[C].attentions
    guest.device.detach(extra)
    assert guest.refused(build_cdb(Opcode.READ_10), at=extra) == NO_LUN
    with pytest.raises(ValueError, match="no disk"):
        guest.device.attach(A, LogicalUnit(MemoryDisk(bytearray(SIZE))))
    with pytest.raises(ValueError, match="no disk"):
        guest.device.attach(Address(256, 0), LogicalUnit(MemoryDisk(bytearray(SIZE))))


def test_a_disk_changes_its_size(guest: Guest) -> None:
    guest.lend_events()
    guest.device.host_action("shrink")
    guest.device.host_action("grow")
    guest.device.host_action("reset")
    assert guest.events() == [(EventType.PARAM_CHANGE, A.pack(), 0x092A), (EventType.PARAM_CHANGE, A.pack(), 0x092A),
                              (EventType.TRANSPORT_RESET, A.pack(), ResetReason.HARD)]
    with pytest.raises(ValueError, match="blocks"):
        guest.device.resize(A, 65)


def test_events_wait_for_buffers_and_what_is_lost_is_told(guest: Guest) -> None:
    for _ in range(3):
        guest.device.host_action("plug")
        guest.device.host_action("unplug")
    assert guest.events() == []
    guest.lend_events(8)
    kinds = [reason for _, _, reason in guest.events()]
    assert kinds == [ResetReason.RESCAN, ResetReason.REMOVED] * 3
    guest.lend_events(8)
    for _ in range(15):
        guest.device.host_action("plug")
        guest.device.host_action("unplug")
    guest.device.host_action("plug")
    guest.lend_events(30)
    events = guest.events()
    assert len(events) == 10 + 16
    assert [bool(event & EVENTS_MISSED) for event, _, _ in events] == [False] * 25 + [True]
    guest.device.host_action("unplug")
    assert guest.events() == [(EventType.TRANSPORT_RESET, EXTRA_UNIT.pack(), ResetReason.REMOVED)]


def test_a_driver_without_the_features_is_not_told() -> None:
    guest = Guest(ScsiDevice(units()), features=bit(32))
    guest.lend_events()
    for action in ("plug", "shrink", "unplug"):
        guest.device.host_action(action)
    assert guest.events() == []


def test_a_new_driver_starts_anew(guest: Guest) -> None:
    for _ in range(20):
        guest.device.host_action("plug")
        guest.device.host_action("unplug")
    guest.good(build_cdb(Opcode.START_STOP_UNIT, b4=0))
    guest.device.reset()
    again = Guest(guest.device)
    again.lend_events()
    assert again.events() == []
    assert again.refused(build_cdb(Opcode.TEST_UNIT_READY)) == Sense(ATTENTION, 0x29)
    again.good(build_cdb(Opcode.TEST_UNIT_READY))


def test_a_buffer_too_small_for_an_event_ends_the_queue(guest: Guest) -> None:
    guest.driver.add(EVENT_QUEUE, [], [15])
    guest.device.host_action("reset")
    assert guest.device.queues[EVENT_QUEUE].broken
    guest.good(build_cdb(Opcode.INQUIRY, length=36), 36)


# The virtio side.


def test_sizes_that_the_driver_sets(guest: Guest) -> None:
    at = CONFIG["sense_size"].offset
    guest.device.write_config(at, struct.pack("<II", 252, 16))
    guest.sense_size, guest.cdb_size = 252, 16
    assert guest.refused(b"\xff") == NO_OPCODE
    assert guest.good(build_cdb(Opcode.READ_16, lba=1, length=1), 512) == pattern(1)
    for bad in (struct.pack("<II", 0, 32), struct.pack("<II", 96, 15), struct.pack("<II", 1 << 31, 32),
                struct.pack("<II", 96, 0xFFFFFFFF)):
        guest.device.write_config(at, bad)
        assert guest.device.read_config(at, 8) == struct.pack("<II", 252, 16)
    guest.device.write_config(0, b"\xff" * 4)
    guest.device.write_config(32, b"\xff" * 100)
    guest.device.write_config(1 << 20, b"\xff")
    assert guest.device.read_config(0, 4) == b"\1\0\0\0"
    assert len(guest.device.config) == 36
    guest.device.write_config(at, struct.pack("<I", 96))
    assert guest.device.read_config(at, 8) == struct.pack("<II", 96, 16)
    guest.device.reset()
    assert guest.device.read_config(at, 8) == struct.pack("<II", 96, 32)


def test_a_request_without_header_or_room_is_given_back(guest: Guest) -> None:
    header = COMMAND.pack(A.pack(), 0, 0, 0, 0) + bytes(32)
    assert guest.driver.request(REQUEST_QUEUE, [header[:-1]], [108]) == b""
    assert guest.driver.request(REQUEST_QUEUE, [header], [107]) == b""
    assert guest.driver.request(REQUEST_QUEUE, [header], []) == b""
    assert len(guest.device.violations) == 3
    guest.good(build_cdb(Opcode.TEST_UNIT_READY))


@pytest.mark.parametrize("cut", [1, 11, 12, 100, 107, 108, 300])
def test_buffers_may_be_cut_anywhere(guest: Guest, cut: int) -> None:
    header = COMMAND.pack(A.pack(), 0, 0, 0, 0) + build_cdb(Opcode.READ_10, lba=2, length=1).ljust(32, b"\0")
    raw = guest.driver.request(REQUEST_QUEUE, [header[:10], header[10:]], [cut, 108 + 512 - cut])
    assert Answer(raw).data == pattern(2)


class _Seen(Hooks):
    def __init__(self) -> None:
        self.data: list[bytes] = []

    def response(self, queue: DeviceQueue, chain: Chain, data: bytes) -> bytes:
        self.data.append(data)
        return data[:8] + bytes((0, 0, 0x28, 0)) + data[12:]


def test_hooks_see_and_change_responses() -> None:
    hooks = _Seen()
    guest = Guest(ScsiDevice(units(), hooks=hooks))
    answer = guest.command(build_cdb(Opcode.INQUIRY, length=36), 36)
    assert answer.status is Status.TASK_SET_FULL
    assert len(hooks.data[0]) == 108 + 36


@given(cdb=st.binary(min_size=32, max_size=32), opcode=st.sampled_from([f.opcode for f in FORMATS.values()]),
       out=st.binary(max_size=600), room=st.integers(0, 5000),
       at=st.sampled_from([A, B, C, Address(0, 1), Address(7, 7)]))
@settings(max_examples=150, deadline=None)
def test_any_command_is_answered(cdb: bytes, opcode: int, out: bytes, room: int, at: Address) -> None:
    guest = Guest(ScsiDevice(units()), memory=1 << 18)
    guest.ready()
    answer = guest.command(bytes((opcode,)) + cdb[1:], room, out, at)
    assert len(answer.data) <= room
    assert answer.residual <= room + len(out)
    assert (answer.status is Status.CHECK_CONDITION) == (answer.sense is not None)


LUNS = st.one_of(st.sampled_from([A.pack(), B.pack(), C.pack(), REPORT_LUNS_UNIT]), st.binary(min_size=8, max_size=8))

# Mostly zeros, so that many of the numbers are blocks that there are.
CDBS = st.one_of(st.binary(min_size=32, max_size=32),
                 st.lists(st.sampled_from([0, 0, 0, 0, 0, 1, 8]), min_size=32, max_size=32).map(bytes))


@given(st.lists(st.tuples(LUNS, CDBS, st.sampled_from([None, *FORMATS]),
                          st.binary(max_size=1100), st.integers(0, 5000)), max_size=12))
@settings(max_examples=60, deadline=None)
def test_any_commands_to_any_unit_leave_the_disks_what_they_are(commands: list[tuple[
        bytes, bytes, tuple[int, int | None] | None, bytes, int]]) -> None:
    guest = Guest(ScsiDevice(units()), memory=1 << 18)
    for lun, cdb, form, out, room in commands:
        start = cdb[:1] if form is None else bytes((form[0],))
        answer = guest.command(start + cdb[len(start):], room, out, lun)
        assert len(answer.data) <= room
        assert (answer.status is Status.CHECK_CONDITION) == (answer.sense is not None)
    for address, unit in guest.device.units.items():
        assert len(content(guest, address)) == SIZE
        assert len(unit.attentions) <= 8
    assert content(guest, C) == unit_pattern(C, SIZE)  # which can't be written


@given(st.lists(st.tuples(st.binary(max_size=40), st.integers(0, 40)), max_size=10))
@settings(max_examples=60, deadline=None)
def test_any_control_request_is_answered_or_given_back(requests: list[tuple[bytes, int]]) -> None:
    guest = Guest(ScsiDevice(units()), memory=1 << 18)
    for raw, room in requests:
        if raw or room:
            answer = guest.driver.request(CONTROL_QUEUE, [raw] if raw else [], [room] if room else [])
            assert len(answer) in {0, 1, AN_ANSWER.size}
    assert guest.manage(TaskFunction.QUERY_TASK) == Response.OK
