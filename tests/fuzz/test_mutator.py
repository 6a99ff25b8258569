"""How inputs are varied: every one means something, and what costs a search much comes seldom, and in rows."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chamber.fuzz import mutator
from chamber.fuzz.lies import HEADER, OVER_PCI, READ_WHEN_PLUGGED_IN, RECORD, Point, Program, Start

_DEAR = {Point.FEATURES, Point.USED_ID, Point.USED_AGAIN, Point.USED_AHEAD, Point.DESCRIPTOR, Point.WITHHELD,
         Point.SILENCE}


def _fuzzed(count: int, seed: int = 1) -> list[Program]:
    mutator.init(seed)
    data, found = Program().build(), []
    for _ in range(count):
        data = bytes(mutator.fuzz(bytearray(data), bytearray(data), 200))
        found.append(Program.parse(data))
    return found


@given(st.binary(max_size=300), st.binary(max_size=300), st.integers(0, 100), st.integers(20, 400))
def test_any_bytes_are_varied_to_whole_lies(data: bytes, other: bytes, seed: int, room: int) -> None:
    mutator.init(seed)
    varied = bytes(mutator.fuzz(bytearray(data), bytearray(other), room))
    assert len(varied) <= room
    assert not (len(varied) - HEADER.size) % RECORD.size
    assert Program.parse(varied).build() == varied


def test_what_costs_much_is_seldom_and_comes_in_rows() -> None:
    starts = [program.start for program in _fuzzed(20_000)]
    rows = [(start, len(list(group))) for start, group in itertools.groupby(starts) if start is not Start.SESSION]
    assert 0.02 < sum(length for _, length in rows) / len(starts) < 0.06
    assert {start for start, _ in rows} == {Start.PROBE, Start.CONNECT}
    assert all(not length % 8 for _, length in rows[:-1])


def test_sessions_mostly_have_no_lies_that_a_driver_has_to_be_brought_back_after() -> None:
    sessions = [program for program in _fuzzed(20_000) if program.start is Start.SESSION]
    dear = [program for program in sessions if any(lie.point in _DEAR for lie in program.lies)]
    assert 0 < len(dear) / len(sessions) < 0.05
    floods = [program for program in sessions if any(lie.times == 0xFF for lie in program.lies)]
    assert 0 < len(floods) / len(sessions) < 0.15


def test_what_is_read_at_plugging_in_is_lied_about_there_alone() -> None:
    for program in _fuzzed(20_000):
        assert program.start is Start.CONNECT or not any(lie.point in READ_WHEN_PLUGGED_IN for lie in program.lies)


@pytest.mark.parametrize("pci", [False, True])
def test_a_function_lies_where_there_is_one(pci: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if pci:
        monkeypatch.setenv(mutator.PCI, "1")
    points = {lie.point for program in _fuzzed(40_000) for lie in program.lies}
    assert points >= set(Point) - OVER_PCI
    assert points & OVER_PCI == (OVER_PCI if pci else set())
