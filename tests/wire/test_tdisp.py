"""TDISP and IDE_KM messages: a recorded session, and any bytes."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chamber.wire import ide_km, tdisp
from chamber.wire.errors import WireError
from chamber.wire.ide_km import KeyProgram, KeySet
from chamber.wire.tdi_report import InterfaceInfo, InterfaceReport, MmioRange, RangeAttribute
from chamber.wire.tdisp import FunctionId, LockFlag, LockInterface, MessageType, State

_SESSION = [(direction, bytes.fromhex(data)) for direction, data in (
    line.split() for line in (Path(__file__).parent / "tdisp_session.txt").read_text().splitlines() if line[0] != "#")]


def _recorded(protocol: int) -> list[tuple[str, bytes]]:
    return [(direction, data[1:]) for direction, data in _SESSION if data[0] == protocol]


@pytest.mark.parametrize(("direction", "data"), _recorded(tdisp.PROTOCOL_ID))
def test_a_recorded_tdisp_message_is_read_and_written_alike(direction: str, data: bytes) -> None:
    message = tdisp.decode(data)
    assert tdisp.encode(message.type, message.function, message.body) == data
    assert tdisp.is_request(message.type) == (direction == "request")
    assert message.function == FunctionId(0xBEEF)


@pytest.mark.parametrize(("direction", "data"), _recorded(ide_km.PROTOCOL_ID))
def test_a_recorded_key_message_is_read_and_written_alike(direction: str, data: bytes) -> None:
    message = ide_km.decode(data)
    assert message.encode() == data
    assert (data[0] in {ide_km.Object.QUERY, ide_km.Object.KEY_PROG, ide_km.Object.K_SET_GO,
                        ide_km.Object.K_SET_STOP}) == (direction == "request")


def test_what_the_recorded_messages_say() -> None:
    messages = [tdisp.decode(data) for _, data in _recorded(tdisp.PROTOCOL_ID)]
    lock = next(m.body for m in messages if m.type is MessageType.LOCK_INTERFACE_REQUEST)
    assert lock == LockInterface(LockFlag.NO_FW_UPDATE | LockFlag.CACHE_LINE_128 | LockFlag.LOCK_MSIX, 0, 0xD0000000)
    capabilities = next(m.body for m in messages if isinstance(m.body, tdisp.Capabilities))
    assert capabilities.requests == frozenset(range(0x81, 0x88))
    assert capabilities.dev_addr_width == 48
    states = [m.body.state for m in messages if isinstance(m.body, tdisp.InterfaceState)]
    assert states == [State.CONFIG_UNLOCKED, State.CONFIG_LOCKED, State.RUN, State.CONFIG_UNLOCKED]
    keys = [ide_km.decode(data) for _, data in _recorded(ide_km.PROTOCOL_ID)]
    programmed = [k.which for k in keys if isinstance(k, KeyProgram)]
    assert {(which.sub_stream, which.transmit) for which in programmed} == {
        (number, transmit) for number in ide_km.SubStream for transmit in (False, True)}
    assert {k.ifv for k in keys if isinstance(k, KeyProgram)} == {ide_km.INITIAL_IFV}


def test_the_recorded_report() -> None:
    portions = [m.body for m in map(tdisp.decode, (d for _, d in _recorded(tdisp.PROTOCOL_ID)))
                if isinstance(m.body, tdisp.ReportPortion)]
    assert [p.remainder for p in portions] == [len(portions[1].portion), 0]
    data = b"".join(p.portion for p in portions)
    report = InterfaceReport.decode(data)
    assert report.encode() == data
    assert report.info == InterfaceInfo.NO_FW_UPDATE | InterfaceInfo.DMA_WITHOUT_PASID
    assert report.ranges[0] == MmioRange(0, 1, RangeAttribute.IS_NON_TEE_MEM, 1)
    assert report.device_specific == b"tdisp_dev_emu\0\0\0"


def test_a_key_lies_on_the_wire_by_registers() -> None:
    key = bytes(range(32))
    message = KeyProgram(KeySet(7, ide_km.SubStream.COMPLETION, 1, transmit=True, port_index=3), key).encode()
    assert message[:7] == bytes((2, 0, 0, 7, 0, 0x23, 3))
    assert message[7:15] == bytes((3, 2, 1, 0, 7, 6, 5, 4))
    assert message[-8:] == bytes((0, 0, 0, 0, 1, 0, 0, 0))
    assert ide_km.decode(message) == KeyProgram(KeySet(7, 2, 1, transmit=True, port_index=3), key)
    assert key.hex() not in repr(ide_km.decode(message))
    assert str(key) not in repr(ide_km.decode(message))


@pytest.mark.parametrize("offset", [0, 0x1000, -0x1000, -(1 << 63), (1 << 63) - 1])
def test_the_reporting_offset_is_signed(offset: int) -> None:
    body = LockInterface(mmio_reporting_offset=offset)
    assert LockInterface.decode(body.encode()) == body


@pytest.mark.parametrize(("data", "error"), [
    (b"", WireError), (bytes(16), tdisp.UnknownVersion), (b"\x11\x81" + bytes(14), tdisp.UnknownVersion),
    (b"\x10\x8c" + bytes(14), tdisp.UnknownMessage), (b"\x10\x83" + bytes(14), WireError),
    (b"\x10\x81" + bytes(15), WireError), (b"\x10\x05" + bytes(14) + b"\4", WireError),
    (b"\x10\x04" + bytes(14) + b"\5\0\0\0abcd", WireError), (b"\x10\x8b" + bytes(14) + b"\0\x09ab", WireError),
    (b"\x10\x7f" + bytes(14) + b"\1\0\0\0\0\0\0\0more", WireError)])
def test_what_is_no_message_is_refused(data: bytes, error: type[WireError]) -> None:
    with pytest.raises(error) as caught:
        tdisp.decode(data)
    assert type(caught.value) is error


@given(st.one_of(st.binary(max_size=80),
                 st.builds(lambda kind, rest: bytes((tdisp.VERSION, kind)) + rest,
                           st.sampled_from(MessageType), st.binary(min_size=14, max_size=80))))
def test_any_bytes_are_a_tdisp_message_or_an_error(data: bytes) -> None:
    try:
        message = tdisp.decode(data)
    except WireError:
        return
    again = tdisp.encode(message.type, message.function, message.body)
    assert tdisp.decode(again) == message
    assert len(again) == len(data)


@given(st.one_of(st.binary(max_size=60), st.builds(
    lambda kind, rest: bytes((kind,)) + rest, st.sampled_from(ide_km.Object), st.binary(max_size=60))))
def test_any_bytes_are_a_key_message_or_an_error(data: bytes) -> None:
    try:
        message = ide_km.decode(data)
    except WireError:
        return
    assert ide_km.decode(message.encode()) == message


@given(st.binary(max_size=200))
def test_any_bytes_are_a_report_or_an_error(data: bytes) -> None:
    try:
        report = InterfaceReport.decode(data)
    except WireError:
        return
    assert InterfaceReport.decode(report.encode()) == report


def test_a_report_of_four_billion_ranges_is_refused_at_once() -> None:
    with pytest.raises(WireError, match="beyond the report"):
        InterfaceReport.decode(bytes(12) + b"\xff\xff\xff\xff" + bytes(64))


def test_a_report_that_fits_in_no_sixteen_bits_is_not_made() -> None:
    InterfaceReport(InterfaceInfo(0), (), bytes(0xFFFF - 20)).encode()
    with pytest.raises(ValueError, match="65535"):
        InterfaceReport(InterfaceInfo(0), (), bytes(0xFFFF - 19)).encode()
