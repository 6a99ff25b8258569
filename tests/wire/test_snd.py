"""Sound codecs: sizes as the specification has them, what is built is read back, any bytes."""

from __future__ import annotations

import contextlib

from hypothesis import given
from hypothesis import strategies as st

from chamber.wire import snd
from chamber.wire.errors import WireError
from chamber.wire.snd import ControlInfo, ControlType, Params, PcmFormat, PcmInfo

U8 = st.integers(0, 0xFF)
U32 = st.integers(0, (1 << 32) - 1)
U64 = st.integers(0, (1 << 64) - 1)


def test_sizes_are_the_specification_s() -> None:
    sizes = {"QUERY": 16, "JACK_INFO": 24, "PCM_INFO": 32, "SET_PARAMS": 24, "CHMAP_INFO": 24, "CTL_INFO": 92,
             "JACK_REMAP": 16, "TLV": 8,
             "EVENT": 8, "STATUS": 8, "XFER": 4, "ENUM_ITEM": 64}
    assert {name: getattr(snd, name).size for name in sizes} == sizes
    assert [(field.name, field.offset) for field in snd.CONFIG] == [
        ("jacks", 0), ("streams", 4), ("chmaps", 8), ("controls", 12)]


@given(st.builds(PcmInfo, U32, U64, U64, U8, U8, U8))
def test_streams(info: PcmInfo) -> None:
    assert PcmInfo.parse(info.build()) == info


@given(st.builds(Params, U32, U32, U8, U8, U8, U32), U32)
def test_parameters(params: Params, stream: int) -> None:
    data = params.build(stream)
    assert Params.parse(data) == params
    assert int.from_bytes(data[4:8], "little") == stream


@given(st.sampled_from([ControlType.BOOLEAN, ControlType.INTEGER]), U32, U32, U32, U32, U32,
       st.binary(max_size=43).filter(lambda name: b"\0" not in name))
def test_control_elements(kind: int, access: int, count: int, low: int, high: int, step: int, name: bytes) -> None:
    info = ControlInfo(kind, access, count, name, low, high, step)
    assert ControlInfo.parse(info.build()) == info
    wide = ControlInfo(ControlType.INTEGER64, access, count, name, low << 32, high << 32, step)
    assert ControlInfo.parse(wide.build()) == wide
    items = ControlInfo(ControlType.ENUMERATED, access, count, name, 0, high)
    assert ControlInfo.parse(items.build()) == items


def test_how_long_sound_lasts() -> None:
    params = Params(7680, 1920, 2, PcmFormat.S16, snd.RATES.index(48000))
    assert params.frame == 4
    assert params.seconds(192_000) == 1.0


@given(st.binary(max_size=120))
def test_any_bytes(data: bytes) -> None:
    for parse in (PcmInfo.parse, Params.parse, ControlInfo.parse):
        with contextlib.suppress(WireError):
            assert parse(data) is not None
