"""vfio-user messages: what is packed is read back, and any bytes are a payload or an error."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chamber.wire.errors import WireError
from chamber.wire.vfio_user import (
    ERROR,
    HEADER_SIZE,
    MAX_MESSAGE,
    MESSAGES,
    NO_REPLY,
    REPLY,
    Access,
    Bitmap,
    Command,
    DeviceFeature,
    DeviceInfo,
    DmaMap,
    DmaTransfer,
    DmaUnmap,
    Empty,
    FrameReader,
    Header,
    IrqInfo,
    IrqSet,
    IrqSetFlag,
    LogRange,
    LogReport,
    LogStart,
    MigrationData,
    Payload,
    RegionAccess,
    RegionInfo,
    RegionIoFds,
    SubRegion,
    Version,
    WriteMulti,
    encode,
)

EXAMPLES: list[Payload] = [
    Empty(), Version(0, 1, {"max_msg_fds": 16}), Version(0, 0), DmaMap(3, 4096, 0x10000, 8192),
    DmaUnmap(0, 0x10000, 8192), DmaUnmap(DmaUnmap.ALL, 0, 0), DeviceInfo(3, 9, 5),
    RegionInfo(2, 7, 1 << 20, 4096, ((0, 4096), (8192, 4096)), 80), IrqInfo(2, 1, 9),
    RegionIoFds(0, (SubRegion(0x3000, 4, 0), SubRegion(0x3004, 4, 1, flags=1, datamatch=1)), 96),
    IrqSet(IrqSetFlag.DATA_EVENTFD | IrqSetFlag.TRIGGER, 2, 0, 4),
    IrqSet(IrqSetFlag.DATA_BOOL | IrqSetFlag.MASK, 0, 0, 2, (True, False)), RegionAccess(0x10, 7, 4),
    RegionAccess(0x10, 7, 4, b"abcd"), DmaTransfer(0x1000, 3), DmaTransfer(0x1000, 3, b"abc"),
    WriteMulti((Access(0, 0, b"ab"), Access(20, 0, b"12345678"))), DeviceFeature(1, DeviceFeature.GET, argsz=16),
    DeviceFeature(2, DeviceFeature.SET, struct.pack("=II", 1, 0), argsz=16),
    LogStart(4096, (LogRange(0, 8192), LogRange(1 << 32, 4096))), LogReport(0, 1 << 20, 4096),
    Bitmap(LogReport(0, 1 << 20, 4096), bytes(32)), MigrationData(5), MigrationData(5, b"state")]
KINDS = sorted({type(example) for example in EXAMPLES}, key=lambda kind: kind.__name__)


@pytest.mark.parametrize("payload", EXAMPLES, ids=repr)
def test_a_payload_is_read_back(payload: Payload) -> None:
    assert type(payload).unpack(payload.pack()) == payload


def test_every_command_has_a_type() -> None:
    assert set(MESSAGES) == set(Command)
    assert {command for command, kind in MESSAGES.items() if kind.by_server} == {Command.DMA_READ, Command.DMA_WRITE}


def test_layouts_are_those_of_the_specification() -> None:
    assert DmaMap(3, 1, 2, 4).pack() == struct.pack("=IIQQQ", 32, 3, 1, 2, 4)
    assert RegionAccess(8, 7, 2, b"xy").pack() == struct.pack("=QII", 8, 7, 2) + b"xy"
    assert encode(5, Command.REGION_READ, b"12", REPLY, 0) == struct.pack("=HHIII", 5, 9, 18, 1, 0) + b"12"
    # Traced from QEMU 11.1.3: it proposes version 0.0 with its capabilities, a zero byte behind the text.
    said = b'\0\0\0\0{"capabilities":{"pgsizes":4096,"max_msg_fds":16,"write_multiple":true}}\0'
    version = Version.unpack(said)
    assert (version.major, version.minor, version.number("max_msg_fds", 1)) == (0, 0, 16)
    assert version.number("max_data_xfer_size", 7) == 7


@pytest.mark.parametrize(("kind", "data", "why"), [
    (Version, b"\0\0\0\0{", "JSON"), (Version, b"\0\0\0\0[]\0", "an object"), (Version, b"\0\0", "4 bytes"),
    (Version, b'\0\0\0\0{"capabilities": 1}\0', "an object"),
    (DmaMap, struct.pack("=IIQQQ", 32, 3, 0, 0, 0), "not empty"),
    (DmaMap, struct.pack("=IIQQQ", 32, 3, 0, 1 << 63, (1 << 63) + 1), "wrap around"),
    (DmaMap, struct.pack("=IIQQQ", 31, 3, 0, 0, 1), "argsz"),
    (RegionInfo, struct.pack("=IIIIQQ", 64, 8, 0, 32, 0, 0) + struct.pack("=HHI", 9, 1, 32), "a list within"),
    (RegionInfo, struct.pack("=IIIIQQ", 64, 8, 0, 1 << 30, 0, 0), "a list within"),
    (RegionInfo, struct.pack("=IIIIQQ", 64, 8, 0, 32, 0, 0) + struct.pack("=HHIII", 1, 1, 0, 99, 0), "areas"),
    (IrqSet, struct.pack("=IIIII", 20, 0x24 | 8, 0, 0, 1), "in one way"),
    (IrqSet, struct.pack("=IIIII", 20, 0x21, 0, 1, 0xFFFFFFFF), "at most"),
    (IrqSet, struct.pack("=IIIII", 20, 0x22, 0, 0, 3) + b"\1", "has a byte"),
    (RegionAccess, struct.pack("=QII", 0, 0, 4) + b"abc", "brings the bytes"),
    (RegionAccess, struct.pack("=QII", 0, 0, 1 << 30), "brings the bytes"),
    (WriteMulti, struct.pack("=Q", 1 << 62), "holds the writes"),
    (WriteMulti, struct.pack("=QQII8s", 1, 0, 0, 9, b""), "eight bytes"),
    (DeviceFeature, struct.pack("=II", 8, 1), "asked for"), (LogStart, struct.pack("=QII", 100, 0, 0), "power of two"),
    (LogStart, struct.pack("=QII", 4096, 1 << 31, 0), "ranges"),
    (LogReport, struct.pack("=QQQ", 0, 1 << 62, 4096), "at most"), (MigrationData, b"\0" * 8, "argsz")])
def test_a_broken_rule_is_named(kind: type[Payload], data: bytes, why: str) -> None:
    with pytest.raises(WireError, match=why):
        kind.unpack(data)


@pytest.mark.parametrize(("capabilities"), [{"max_msg_fds": "x"}, {"max_msg_fds": -1}, {"max_msg_fds": True}])
def test_a_capability_that_is_no_number_is_told(capabilities: dict[str, object]) -> None:
    with pytest.raises(WireError, match="is a number"):
        Version(0, 0, capabilities).number("max_msg_fds", 1)


def test_a_region_that_leaves_no_room_for_areas_says_how_much_it_takes() -> None:
    short = RegionInfo(2, 7, 1 << 20, 0, ((0, 4096),), argsz=32).pack()
    assert len(short) == 32
    assert struct.unpack_from("=I", short)[0] == 32 + 8 + 8 + 16


@given(st.sampled_from(KINDS), st.binary(max_size=200))
def test_any_bytes_are_a_payload_or_an_error(kind: type[Payload], data: bytes) -> None:
    try:
        payload = kind.unpack(data)
    except WireError:
        return
    assert len(payload.pack()) <= len(data) + 4096


@given(st.binary(max_size=64), st.lists(st.integers(1, 20), max_size=8))
def test_any_stream_is_messages_or_an_error(data: bytes, cuts: list[int]) -> None:
    reader = FrameReader()
    try:
        while data:
            assert reader.wanted > 0
            step = min(cuts.pop() if cuts else len(data), reader.wanted)
            frame = reader.feed(data[:step])
            data = data[step:]
            if frame is not None:
                assert len(frame[1]) == frame[0].size
    except WireError:
        pass


def test_flags_say_what_a_message_is() -> None:
    assert Header(1, 9, 0).wants_reply
    assert not Header(1, 9, 0, NO_REPLY).wants_reply
    reply = Header.unpack(encode(1, 9, b"", REPLY | ERROR, 22))
    assert (reply.is_reply, reply.failed, reply.error, reply.wants_reply) == (True, True, 22, False)
    for bad in (struct.pack("=HHIII", 0, 1, HEADER_SIZE - 1, 0, 0), struct.pack("=HHIII", 0, 1, MAX_MESSAGE + 1, 0, 0),
                struct.pack("=HHIII", 0, 1, HEADER_SIZE, 2, 0)):
        with pytest.raises(WireError):
            Header.unpack(bad)
