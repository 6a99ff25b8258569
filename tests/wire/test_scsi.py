from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chamber.wire.errors import WireError
from chamber.wire.scsi import (
    AN_ANSWER,
    AN_REQUEST,
    COMMAND,
    CONFIG,
    EVENT,
    MAX_LUN,
    REPORT_LUNS_UNIT,
    RESPONSE,
    TASK_MANAGEMENT,
    Address,
    parse_lun,
)
from chamber.wire.scsi_commands import (
    FORMATS,
    UNMAP_DESCRIPTOR,
    UNMAP_HEADER,
    Opcode,
    Sense,
    SenseKey,
    ServiceAction,
    build_cdb,
    parse_cdb,
    parse_sense,
    parse_unmap,
)

addresses = st.builds(Address, st.integers(0, 255), st.integers(0, MAX_LUN))


def test_structures_have_their_size() -> None:
    assert CONFIG.size == 36
    assert [s.size for s in (COMMAND, RESPONSE, TASK_MANAGEMENT, AN_REQUEST, AN_ANSWER, EVENT)] == [
        19, 12, 24, 16, 5, 16]
    assert CONFIG["max_channel"].offset == 28
    assert CONFIG["max_lun"].offset == 32


# Addresses.


@given(addresses)
def test_an_address_survives_the_round_trip(address: Address) -> None:
    assert parse_lun(address.pack()) == address
    assert parse_lun(bytes((1, address.target)) + address.pack_lun()[:6]) == address


@pytest.mark.parametrize(("raw", "address"), [
    ("0103000500000000", Address(3, 5)),
    ("0103400500000000", Address(3, 5)),
    ("01ff7fff00000000", Address(255, 0x3FFF)),
])
def test_known_addresses(raw: str, address: Address) -> None:
    assert parse_lun(bytes.fromhex(raw)) == address


@pytest.mark.parametrize("raw", [
    REPORT_LUNS_UNIT.hex(), "", "01", "0003000500000000", "0103010500000000", "0103800500000000",
    "0103000500000001", "010300050000000000",
])
def test_other_addresses_are_refused(raw: str) -> None:
    with pytest.raises(WireError):
        parse_lun(bytes.fromhex(raw))


@given(st.binary(max_size=12))
def test_any_bytes_are_an_address_or_none(raw: bytes) -> None:
    try:
        address = parse_lun(raw)
    except WireError:
        return
    assert 0 <= address.target <= 255
    assert 0 <= address.lun <= MAX_LUN


# Commands.


@pytest.mark.parametrize(("raw", "lba", "length"), [
    ("08 1f ff ff 00 00", 0x1FFFFF, 256),
    ("28 08 00 01 02 03 00 04 05 00", 0x10203, 0x405),
    ("a8 00 00 01 02 03 00 01 00 00 00 00", 0x10203, 0x10000),
    ("8a 00 01 02 03 04 05 06 07 08 00 00 00 09 00 00", 0x102030405060708, 9),
    ("12 01 83 01 02 00", 0, 0x102),
    ("9e 10 00 00 00 00 00 00 00 00 00 00 00 20 00 00", 0, 32),
    ("42 00 00 00 00 00 00 00 18 00", 0, 24),
])
def test_known_commands(raw: str, lba: int, length: int) -> None:
    cdb = parse_cdb(bytes.fromhex(raw).ljust(32, b"\xff"))
    assert (cdb.lba, cdb.length, cdb.raw) == (lba, length, bytes.fromhex(raw))


@given(st.data())
def test_a_command_survives_the_round_trip(data: st.DataObject) -> None:
    form = data.draw(st.sampled_from(list(FORMATS.values())))
    lba = data.draw(st.integers(0, 0x1FFFFF)) if form.lba else 0
    length = data.draw(st.integers(1, 255)) if form.length else 0
    raw = build_cdb(form.opcode, form.action, lba=lba, length=length)
    cdb = parse_cdb(raw)
    assert (cdb.format, cdb.lba, cdb.length, cdb.flags) == (form, lba, length, 0)
    # What is set lies within what is said to be looked at.
    assert not any(bits & ~usage for bits, usage in zip(raw, form.usage_map(), strict=True))


def test_what_does_not_fit_is_not_cut() -> None:
    with pytest.raises(OverflowError):
        build_cdb(Opcode.READ_10, lba=1 << 32)
    with pytest.raises(OverflowError):
        build_cdb(Opcode.READ_10, length=1 << 16)


def test_a_service_action_is_no_flag() -> None:
    cdb = parse_cdb(build_cdb(Opcode.SERVICE_ACTION_IN_16, ServiceAction.READ_CAPACITY_16, length=32))
    assert (cdb.flags, cdb.format.action) == (0, ServiceAction.READ_CAPACITY_16)


@given(st.binary(max_size=40))
def test_any_bytes_are_a_command_or_none(raw: bytes) -> None:
    try:
        cdb = parse_cdb(raw)
    except WireError:
        return
    assert cdb.raw == raw[:cdb.format.size]
    assert cdb.lba < 1 << 64
    assert cdb.length < 1 << 32


# Sense data.


@given(st.sampled_from(SenseKey), st.integers(0, 255), st.integers(0, 255),
       st.one_of(st.none(), st.integers(0, 0xFFFFFFFF)))
def test_sense_data_survives_the_round_trip(key: SenseKey, asc: int, ascq: int, information: int | None) -> None:
    sense = Sense(key, asc, ascq, information)
    assert len(sense.pack()) == 18
    assert parse_sense(sense.pack()) == sense


def test_sense_data_of_either_format() -> None:
    assert Sense(5, 0x24).pack().hex(" ") == "70 00 05 00 00 00 00 0a 00 00 00 00 24 00 00 00 00 00"
    assert parse_sense(bytes.fromhex("720b4701")) == Sense(11, 0x47, 1)
    assert parse_sense(bytes.fromhex("7000050000000004000000002400")) == Sense(5, 0)
    assert Sense(3, 0x11, information=1 << 40).pack()[0] == 0x70


@given(st.binary(max_size=300))
def test_any_bytes_are_sense_data_or_not(raw: bytes) -> None:
    try:
        sense = parse_sense(raw)
    except WireError:
        return
    assert 0 <= sense.key <= 15
    assert 0 <= sense.asc <= 255
    assert 0 <= sense.ascq <= 255


# UNMAP.


def unmap(ranges: list[tuple[int, int]]) -> bytes:
    rows = b"".join(UNMAP_DESCRIPTOR.pack(*r) for r in ranges)
    return UNMAP_HEADER.pack(len(rows) + 6, len(rows)) + rows


@given(st.lists(st.tuples(st.integers(0, (1 << 64) - 1), st.integers(0, 0xFFFFFFFF)), max_size=20))
def test_ranges_survive_the_round_trip(ranges: list[tuple[int, int]]) -> None:
    assert parse_unmap(unmap(ranges)) == ranges


def test_a_range_that_is_not_whole_is_left_out() -> None:
    raw = UNMAP_HEADER.pack(6 + 20, 20) + bytes(20)
    assert parse_unmap(raw) == [(0, 0)]
    assert parse_unmap(b"") == []


@pytest.mark.parametrize("raw", [b"\0" * 7, UNMAP_HEADER.pack(22, 32) + bytes(16), UNMAP_HEADER.pack(0, 0),
                                 UNMAP_HEADER.pack(6, 16) + bytes(16), UNMAP_HEADER.pack(0xFFFF, 0xFFFF)])
def test_lengths_that_disagree_are_refused(raw: bytes) -> None:
    with pytest.raises(WireError):
        parse_unmap(raw)


@given(st.binary(max_size=200))
def test_any_bytes_are_ranges_or_not(raw: bytes) -> None:
    try:
        ranges = parse_unmap(raw)
    except WireError:
        return
    assert 16 * len(ranges) <= len(raw)
