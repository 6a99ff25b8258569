"""Input events, ranges, bits, recordings and scripts."""

from __future__ import annotations

import contextlib
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chamber.wire.errors import WireError
from chamber.wire.input import (
    CONFIG,
    AbsInfo,
    EventType,
    InputEvent,
    bitmap,
    codes_of,
    parse_recording,
    parse_script,
)

U16 = st.integers(0, 0xFFFF)
S32 = st.integers(-(1 << 31), (1 << 31) - 1)
EVENTS = st.builds(InputEvent, U16, U16, S32)


def test_configuration_has_the_specification_s_offsets() -> None:
    assert [(field.name, field.offset) for field in CONFIG] == [
        ("select", 0), ("subsel", 1), ("size", 2), ("reserved", 3), ("u", 8)]
    assert CONFIG.size == 136


@given(EVENTS, st.builds(AbsInfo, S32, S32, S32, S32, S32))
def test_what_is_built_is_read_back(event: InputEvent, info: AbsInfo) -> None:
    assert InputEvent.parse(event.build()) == event
    assert AbsInfo.parse(info.build()) == info


@given(st.frozensets(st.integers(0, 1023)))
def test_bits(codes: frozenset[int]) -> None:
    assert codes_of(bitmap(codes)) == codes
    assert not codes or len(bitmap(codes)) == max(codes) // 8 + 1


@given(st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 999_999), EVENTS), max_size=5))
def test_recordings(entries: list[tuple[int, int, InputEvent]]) -> None:
    data = b"".join(struct.pack("<qqHHi", seconds, micros, event.type, event.code, event.value)
                    for seconds, micros, event in entries)
    read = list(parse_recording(data))
    assert [event for _, event in read] == [event for _, _, event in entries]
    assert not read or read[0][0] == 0


def test_scripts() -> None:
    script = "# a key\n0 key 30 1\n0 SYN 0 0\n\n0.5 abs 0x35 -7 # elsewhere\n"
    assert list(parse_script(script)) == [
        (0.0, InputEvent(EventType.KEY, 30, 1)), (0.0, InputEvent(EventType.SYN, 0, 0)),
        (0.5, InputEvent(EventType.ABS, 0x35, -7))]
    for wrong in ("0 key 30", "0 nothing 1 1", "x key 1 1", "0 key 99999999 1", "-1 key 1 1", "nan key 1 1"):
        with pytest.raises(WireError, match=r"seconds|line"):
            list(parse_script(wrong))


@given(st.binary(max_size=100), st.text(max_size=60))
def test_any_bytes(data: bytes, text: str) -> None:
    for parse in (InputEvent.parse, AbsInfo.parse, lambda d: list(parse_recording(d))):
        with contextlib.suppress(WireError):
            parse(data)
    with contextlib.suppress(WireError):
        assert len(list(parse_script(text))) <= text.count("\n") + len(text.splitlines())
    assert all(code < 8 * len(data) for code in codes_of(data))
