"""The lying device on the model guest: honest without lies, and every kind of lie can be told."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chamber.device.catalogue import TYPES, make_device
from chamber.device.virtio_pci import VirtioPci
from chamber.fuzz.liar import Liar
from chamber.fuzz.lies import OVER_PCI, Change, Lie, Moment, Point, Program, Start
from chamber.fuzz.model_executor import ModelExecutor
from chamber.fuzz.mutator import random_lie
from chamber.wire.virtio import DeviceType

if TYPE_CHECKING:
    from chamber.fuzz.execution import Execution


def _run(device: DeviceType, *lies: Lie, profile: str = "hardened", use: str = "use") -> Execution:
    executor = ModelExecutor(device, profile, trace=True)
    return executor.run(Program(Start.CONNECT, executor.uses.index(use), 0, lies))


@pytest.mark.parametrize("device", TYPES, ids=lambda device: device.short)
@pytest.mark.parametrize("profile", ["bare", "hardened"])
def test_an_input_without_lies_is_an_honest_run(device: DeviceType, profile: str) -> None:
    executor = ModelExecutor(device, profile)
    for use in range(len(executor.uses)):
        execution = executor.run(Program(Start.CONNECT, use))
        assert not execution.evidence
        assert not execution.strikes
        assert sum(map(bool, executor.edges)) > 100


@pytest.mark.parametrize("device", TYPES, ids=lambda device: device.short)
def test_the_hardened_guest_survives_lies_of_any_kind(device: DeviceType) -> None:
    executor = ModelExecutor(device)
    dice = random.Random(device)
    told = 0
    for _ in range(25):
        lies = tuple(random_lie(dice) for _ in range(dice.randint(1, 6)))
        execution = executor.run(Program(Start.CONNECT, dice.randrange(16), dice.randrange(4), lies))
        assert not execution.evidence
        told += sum(execution.told.values())
        assert len(execution.strikes) == sum(execution.told.values())
    assert told


_ALWAYS = 0xFF
_TELLING = {
    Point.FEATURES: Lie(Point.FEATURES, change=Change.XOR, value=1),
    Point.CONFIG: Lie(Point.CONFIG, offset=4, value=9, times=_ALWAYS),
    Point.RESPONSE: Lie(Point.RESPONSE, queue=_ALWAYS, change=Change.XOR, value=1),
    Point.SIZE: Lie(Point.SIZE, queue=_ALWAYS, change=Change.ADD, value=2**64 - 1),
    Point.USED_LENGTH: Lie(Point.USED_LENGTH, queue=_ALWAYS, value=7),
    Point.USED_ID: Lie(Point.USED_ID, queue=_ALWAYS, value=9),
    Point.USED_AGAIN: Lie(Point.USED_AGAIN, queue=_ALWAYS),
    Point.USED_AHEAD: Lie(Point.USED_AHEAD, queue=_ALWAYS, value=1),
    Point.DESCRIPTOR: Lie(Point.DESCRIPTOR, queue=_ALWAYS, value=1),
    Point.WITHHELD: Lie(Point.WITHHELD, queue=_ALWAYS),
    Point.MESSAGE: Lie(Point.MESSAGE, queue=_ALWAYS, times=_ALWAYS, offset=Moment.PUBLISHED),
    Point.INTERRUPT: Lie(Point.INTERRUPT, queue=_ALWAYS, offset=Moment.PUBLISHED),
    Point.CONFIG_INTERRUPT: Lie(Point.CONFIG_INTERRUPT, queue=_ALWAYS, offset=Moment.PUBLISHED),
    Point.SILENCE: Lie(Point.SILENCE, queue=_ALWAYS),
    Point.ACTION: Lie(Point.ACTION, queue=_ALWAYS, offset=Moment.PUBLISHED, value=1),
}


@pytest.mark.parametrize("point", _TELLING, ids=lambda point: point.name)
def test_each_kind_of_lie_can_be_told(point: Point) -> None:
    execution = _run(DeviceType.CONSOLE, _TELLING[point])
    assert execution.told == {0: 1} or execution.told[0] > 1
    assert execution.strikes


def test_every_kind_of_lie_is_tried() -> None:
    assert set(_TELLING) | OVER_PCI == set(Point)


def _function(*lies: Lie) -> tuple[VirtioPci, Liar]:
    liar = Liar(lies)
    function = VirtioPci(make_device(DeviceType.RNG, hooks=liar))
    function.write_config(4, b"\6\0")  # memory may be read, and mastered
    return function, liar


def test_a_function_lies_about_its_configuration_space_where_it_is_told_to() -> None:
    function, liar = _function(Lie(Point.CONFIG_SPACE, offset=2, width=2, value=0x1AF4, times=_ALWAYS))
    honest = VirtioPci(make_device(DeviceType.RNG))
    assert function.read_config(0, 4) == honest.read_config(0, 2) + b"\xf4\x1a"
    assert function.read_config(3, 1) == honest.read_config(3, 1)
    assert function.read_config(2, 1) == b"\xf4"
    assert liar.told == {0: 2}
    assert "configuration space at 0x0" in liar.strikes[0]


def test_a_function_lies_about_a_register_of_one_bar() -> None:
    function, liar = _function(Lie(Point.REGISTER, 0, offset=0x12, width=2, value=9))
    assert function.read_bar(0, 0x12, 2) == b"\t\0"
    assert function.read_bar(0, 0x12, 2) == b"\1\0"
    assert liar.told == {0: 1}


def test_a_write_is_lost_once() -> None:
    function, liar = _function(Lie(Point.WRITE_LOST, 0, offset=0x14))
    for _ in range(2):
        before = function.read_bar(0, 0x14, 1)
        function.write_bar(0, 0x14, b"\1")
        assert (before, function.read_bar(0, 0x14, 1)) in {(b"\0", b"\0"), (b"\0", b"\1")}
    assert function.read_bar(0, 0x14, 1) == b"\1"
    assert liar.told == {0: 1}
    assert liar.owes  # a guest that waits for what it wrote may do so


@pytest.mark.parametrize(("change", "raised"), [(Change.SET, [5]), (Change.FILL, [1, 5]), (Change.ADD, [6])])
def test_other_vectors_are_raised(change: Change, raised: list[int]) -> None:
    function, liar = _function(Lie(Point.VECTOR, change=change, value=5))
    assert list(liar.vectors(function, 1)) == raised
    assert list(liar.vectors(function, 1)) == [1]


@given(st.sampled_from(sorted(OVER_PCI)), st.integers(0, 2), st.integers(0, 0x5000), st.sampled_from(Change),
       st.sampled_from((1, 2, 4, 8)), st.integers(0, 2**64 - 1), st.integers(0, 0x1000), st.sampled_from((1, 2, 4)))
def test_whatever_a_function_says_is_as_long_as_was_asked_for(
        point: Point, bar: int, offset: int, change: Change, width: int, value: int, at: int, size: int) -> None:
    function, _ = _function(Lie(point, bar, 0, _ALWAYS, offset, change, width, value))
    assert len(function.read_config(at, size)) == size
    assert len(function.read_bar(bar, at, size)) == size
    assert all(0 <= vector < 2048 for vector in function.device.hooks.vectors(function, 0))  # type: ignore[union-attr]


@pytest.mark.parametrize("moment", Moment, ids=lambda moment: moment.name)
def test_there_is_a_moment_for_what_answers_nothing(moment: Moment) -> None:
    queue = 2  # where a single one has to be named
    execution = _run(DeviceType.CONSOLE, Lie(Point.CONFIG_INTERRUPT, 0xFF if moment is not Moment.LATER else queue,
                                             offset=moment | 2 << 8))
    assert execution.told[0]


def test_opportunities_are_let_pass_and_counted() -> None:
    execution = _run(DeviceType.CONSOLE, Lie(Point.USED_LENGTH, 2, when=1, times=2, value=7))
    assert execution.told == {0: 2}


def test_a_lie_is_told_in_the_words_of_its_device() -> None:
    # The device says which ports there are, that one is the console and open, and then what the other is called.
    messages = _run(DeviceType.CONSOLE, Lie(Point.USED_LENGTH, 2, times=_ALWAYS, change=Change.ADD)).strikes
    at = next(at for at, text in enumerate(messages) if "PORT_NAME" in text)
    lies = _run(DeviceType.CONSOLE, Lie(Point.USED_LENGTH, 2, when=at, value=7)).strikes
    assert len(lies) == 1
    assert "used length 7 where" in lies[0]
    assert "for a PORT_NAME message of port 1" in lies[0]


def test_what_is_kept_is_given_in_the_end() -> None:
    execution = _run(DeviceType.BLOCK, Lie(Point.WITHHELD, 0, when=2, change=Change.ADD))
    assert execution.told == {0: 1}
    assert "kept until the end" in execution.strikes[0]


def test_nothing_is_written_through_a_queue_whose_completions_have_lied() -> None:
    execution = _run(DeviceType.BLOCK, Lie(Point.USED_AGAIN, 0), Lie(Point.RESPONSE, 0, times=_ALWAYS, value=5),
                     profile="bare")
    after = execution.strikes[next(at for at, text in enumerate(execution.strikes) if "completed" in text) + 1:]
    assert not [text for text in after if "byte 0" in text]


def test_a_bare_guest_falls_and_an_input_shows_where() -> None:
    execution = _run(DeviceType.RNG, Lie(Point.USED_LENGTH, 0, value=5000), profile="bare")
    assert any("out-of-bounds read" in e.signature for e in execution.evidence)


def test_the_same_input_comes_to_the_same() -> None:
    dice = random.Random(3)
    program = Program(Start.CONNECT, 0, 0, tuple(random_lie(dice) for _ in range(5)))
    runs = []
    for _ in range(2):
        executor = ModelExecutor(DeviceType.NET, trace=True)
        execution = executor.run(program)
        runs.append((execution.transcript, execution.strikes, bytes(executor.edges)))
    assert runs[0] == runs[1]
