"""Lies are made to be about what comes up, as far as that is known."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chamber.fuzz.lies import ANY_QUEUE, NOTHING_ASKED, Change, Lie, Moment, Point, Program, Start
from chamber.fuzz.live_json import write_live_json
from chamber.fuzz.model_executor import ModelExecutor
from chamber.fuzz.mutator import fitted, mutate, random_lie
from chamber.fuzz.occasions import KnownOccasions, LearntOccasions, Occasions
from chamber.wire.virtio import DeviceType

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

SEEN = Occasions()
SEEN.taken.update({1: 3, 4: 9})
SEEN.room.update({4: 70})
SEEN.unasked.update(NOTHING_ASKED - {Point.ACTION})
SEEN.moments.update({(Moment.TAKEN, 1): 3, (Moment.CONFIG, ANY_QUEUE): 2})
SEEN.config.add((8, 4))


@given(st.binary(min_size=16, max_size=16), st.integers(0, 1000))
def test_any_lie_fits_afterwards(data: bytes, seed: int) -> None:
    lie = Lie.parse(data)
    fit = SEEN.fit(lie, random.Random(seed))
    if lie.point is Point.ACTION:
        assert fit is None, "it never could be told"
        return
    assert fit is not None
    assert SEEN.fit(fit, random.Random(seed)) == fit, "what fits is left alone"
    assert Lie.parse(fit.build()) == fit
    match fit.point:
        case Point.CONFIG:
            assert fit.offset < 8 + 4
            assert fit.offset + fit.width > 8
        case Point.RESPONSE | Point.SIZE:
            assert fit.queue in {4, ANY_QUEUE}
        case Point.USED_LENGTH | Point.WITHHELD:
            assert (fit.queue, fit.when) in {(queue, when) for queue, times in ((1, 3), (4, 9), (ANY_QUEUE, 12))
                                             for when in range(times)}
        case point if point in NOTHING_ASKED and fit.moment is not Moment.LATER:
            assert fit.moment in {Moment.TAKEN, Moment.CONFIG}


def test_what_fits_is_left_as_it_is() -> None:
    lie = Lie(Point.RESPONSE, queue=4, when=8, offset=66, width=4)
    assert SEEN.fit(lie, random.Random(1)) == lie
    filled = Lie(Point.RESPONSE, queue=4, offset=69, change=Change.FILL, width=8)
    assert SEEN.fit(filled, random.Random(1)) == filled


@pytest.mark.parametrize("point", [Point.CONFIG, Point.RESPONSE, Point.USED_LENGTH, Point.INTERRUPT, Point.MESSAGE])
def test_where_nothing_comes_up_there_is_nothing_to_lie_about(point: Point) -> None:
    assert Occasions().fit(Lie(point), random.Random(1)) is None


def _known(path: Path, learnt: LearntOccasions) -> KnownOccasions:
    write_live_json(path, learnt.to_json())
    return KnownOccasions(path)


def test_what_one_process_learns_another_knows(tmp_path: Path) -> None:
    learnt = LearntOccasions()
    assert learnt.look(Start.PROBE, 0) is not None
    learnt.add(Start.PROBE, 0, SEEN)
    more = Occasions()
    more.taken.update({4: 11})
    learnt.add(Start.PROBE, 0, more)
    learnt.add(Start.SESSION, 2, Occasions())
    known = _known(tmp_path / "occasions", learnt)
    assert known.of(Start.PROBE, 1) is None
    probe = known.of(Start.PROBE, 3)  # the third use is the first again
    assert probe is not None
    assert (probe.taken, probe.room, probe.unasked, probe.moments, probe.config) == (
        {1: 3, 4: 11}, SEEN.room, SEEN.unasked, SEEN.moments, SEEN.config)


def test_enough_is_learnt_at_some_time() -> None:
    learnt = LearntOccasions()
    while learnt.look(Start.SESSION, 1) is not None:
        learnt.add(Start.SESSION, 1, Occasions())
    assert learnt.look(Start.SESSION, 0) is not None


@pytest.mark.parametrize("text", [None, "[", "{}", "7", '[[0, 0]]', '[[0, 0, {"taken": 1}]]', '[[0, 0, {}]]'])
def test_nothing_is_known_where_nothing_was_written(text: str | None, tmp_path: Path) -> None:
    if text is not None:
        (tmp_path / "occasions").write_text(text, encoding="utf-8")
    assert KnownOccasions(tmp_path / "occasions").of(Start.SESSION, 0) is None


def _telling(executor: ModelExecutor, programs: Iterable[Program]) -> float:
    told = [bool(executor.run(program).told) for program in programs]
    return sum(told) / len(told)


@pytest.mark.parametrize("device", [DeviceType.BLOCK, DeviceType.CONSOLE, DeviceType.RNG])
def test_most_inputs_lie_once_it_is_known_what_comes_up(device: DeviceType, tmp_path: Path) -> None:
    executor = ModelExecutor(device)
    for use in range(len(executor.uses)):
        executor.run(Program(Start.SESSION, use))
    known = _known(tmp_path / "occasions", executor.occasions)
    dice = random.Random(device)
    blind = [mutate(Program(use=dice.randrange(16)), Program(lies=(random_lie(dice),)), dice) for _ in range(40)]
    fit = [fitted(program, known.of(program.start, program.use), dice) for program in blind]
    assert _telling(executor, fit) > max(_telling(executor, blind), 0.5)
