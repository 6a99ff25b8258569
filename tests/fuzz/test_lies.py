"""Any bytes are an input, and an input means the same when it is written and read again."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chamber.fuzz import mutator
from chamber.fuzz.lies import HEADER, LIMIT, OVER_PCI, RECORD, Change, Lie, Point, Program, Start

_LIES = st.builds(
    Lie, st.sampled_from(Point), st.integers(0, 255), st.integers(0, 255), st.integers(1, 255), st.integers(0, 0xFFFF),
    st.sampled_from(Change), st.sampled_from((1, 2, 4, 8)), st.integers(0, 2**64 - 1))
_PROGRAMS = st.builds(Program, st.sampled_from(Start), st.integers(0, 255), st.integers(0, 255),
                      st.lists(_LIES, max_size=LIMIT).map(tuple))


@given(st.binary(max_size=3 * LIMIT * RECORD.size))
def test_any_bytes_are_an_input(data: bytes) -> None:
    program = Program.parse(data)
    assert len(program.lies) == min(max(len(data) - HEADER.size, 0) // RECORD.size, LIMIT)
    assert Program.parse(program.build()) == program


@given(_PROGRAMS)
def test_an_input_survives_being_written(program: Program) -> None:
    assert Program.parse(program.build()) == program


def test_where_the_bytes_end_the_device_is_honest() -> None:
    assert Program.parse(b"") == Program() == Program.parse(bytes(HEADER.size + RECORD.size - 1))


@given(_LIES, st.integers(0, 2**64 - 1), st.integers(0, 2**32))
def test_a_number_stays_as_wide_as_it_is(lie: Lie, true: int, room: int) -> None:
    assert 0 <= lie.apply(true, room) < 1 << 8 * lie.width


@given(_LIES, st.binary(max_size=600), st.integers(0, 700))
def test_a_changed_message_fits_its_buffer(lie: Lie, data: bytes, room: int) -> None:
    changed = lie.rewrite(data, room)
    assert len(changed) <= max(room, len(data))
    assert len(changed) >= len(data)


@pytest.mark.parametrize(("change", "value", "expected"), [
    (Change.SET, 7, 7), (Change.ADD, 2**64 - 1, 99), (Change.XOR, 1, 101), (Change.ROOM, 1, 513),
    (Change.NEAR, 16 << 4 | 8, 0x10000), (Change.NEAR, 16 << 4 | 7, 0xFFFF), (Change.NEAR, 33 << 4 | 9, 513)])
def test_how_a_number_changes(change: Change, value: int, expected: int) -> None:
    assert Lie(Point.USED_LENGTH, change=change, value=value).apply(100, 512) == expected


def test_lies_about_features_have_the_device_plugged_in() -> None:
    assert Program(lies=(Lie(Point.RESPONSE),)).least_start is Start.SESSION
    assert Program(lies=(Lie(Point.RESPONSE), Lie(Point.FEATURES))).least_start is Start.CONNECT


# How inputs are varied.

@given(st.binary(max_size=400), st.binary(max_size=400), st.integers(0, 2**32), st.integers(20, 400))
def test_what_is_varied_is_an_input_that_fits(data: bytes, other: bytes, seed: int, most: int) -> None:
    mutator.init(seed)
    varied = bytes(mutator.fuzz(bytearray(data), bytearray(other), most))
    assert len(varied) <= most
    assert Program.parse(varied).build() == varied


def test_a_seed_decides_how_inputs_are_varied() -> None:
    runs = []
    for _ in range(2):
        mutator.init(5)
        data = bytearray()
        for _ in range(50):
            data = mutator.fuzz(data, None, 200)
        runs.append(bytes(data))
    assert runs[0] == runs[1]


def test_every_kind_of_lie_is_made_up() -> None:
    dice = random.Random(1)
    made = [mutator.random_lie(dice) for _ in range(2000)]
    assert {lie.point for lie in made} == set(Point) - OVER_PCI
    assert {lie.change for lie in made} == set(Change)


@given(_PROGRAMS, st.sets(st.integers(0, LIMIT)))
def test_shortening_keeps_what_is_needed(program: Program, needed: set[int]) -> None:
    wanted = [lie for at, lie in enumerate(program.lies) if at in needed]
    attempts = mutator.init_trim(bytearray(program.build()))
    for done in range(attempts):
        lies = list(Program.parse(bytes(mutator.trim())).lies)
        rest = iter(lies)
        assert mutator.post_trim(all(lie in rest for lie in wanted)) == done + 1
    assert list(mutator.shortened().lies) == wanted
