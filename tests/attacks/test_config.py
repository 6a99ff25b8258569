"""Lies about configuration fields: which values, and who gets to see them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chamber.attacks.catalogue import catalogue
from chamber.attacks.config import ConfigLie, lies_about
from chamber.device.rng import RngDevice
from chamber.wire import blk, console, net
from chamber.wire.layout import Field, Layout, Role


@pytest.mark.parametrize("layout", [blk.CONFIG, net.CONFIG, console.CONFIG], ids=lambda layout: layout.name)
def test_every_field_with_a_number_has_its_attacks(layout: Layout) -> None:
    summaries = [spec.summary for spec in catalogue() if spec.spec == layout.spec]
    for field in layout:
        if field.is_integer and "unused" not in field.name:
            assert any(f"says {field.name} = " in summary for summary in summaries), field.name


@given(st.sampled_from(["u8", "le16", "le32", "le64"]), st.sampled_from(list(Role)), st.integers(0, 100),
       st.integers(0, 1 << 16))
def test_lies_fit_differ_and_reach_beyond_what_is_legal(kind: str, role: Role, start: int, span: int) -> None:
    field = Field("f", kind, role, None, range(start, start + span))
    lies = lies_about(field)
    assert all(0 <= value <= field.maximum for value in lies.values())
    assert len(set(lies.values())) == len(lies)
    if start + span <= field.maximum:
        assert start + span in lies.values()
    if 0 < start <= field.maximum:
        assert start - 1 in lies.values()


LAYOUT = Layout("c", "virtio 1.3, 1", Field("a", "le16"), Field("b", "le32", Role.SIZE, 5, range(7, 9)),
                Field("c", "u8", Role.ENUM, 5, (3, 4)))


def device_with(attack: ConfigLie) -> RngDevice:
    device = RngDevice(hooks=attack)
    device.config = LAYOUT.pack(a=1, b=7, c=0)
    return device


def test_a_lie_is_seen_counted_and_has_its_feature() -> None:
    attack = ConfigLie(LAYOUT, {"b": 99})
    device = device_with(attack)
    assert device.offered_features() >> 5 & 1
    assert device.read_config(0, 2) == b"\1\0"
    assert attack.strikes == []
    assert device.read_config(2, 4) == b"\x63\0\0\0"
    assert device.read_config(0, 6)[2:] == b"\x63\0\0\0"
    assert len(attack.strikes) == 2


def test_fields_beside_a_lie_are_plausible() -> None:
    device = device_with(ConfigLie(LAYOUT, {"b": 99}))
    assert device.read_config(6, 1) == b"\3"


def test_an_alternating_lie_starts_with_the_truth() -> None:
    attack = ConfigLie(LAYOUT, {"b": 99}, alternate=True)
    device = device_with(attack)
    assert [device.read_config(2, 4)[0] for _ in range(4)] == [7, 99, 7, 99]
    assert len(attack.strikes) == 2
