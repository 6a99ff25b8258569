"""Plans, the order of results, baselines, interruptions, workers."""

from __future__ import annotations

from collections import Counter
from functools import partial
from typing import TYPE_CHECKING

import pytest

from chamber.assess.engine import Enough, run_plan
from chamber.assess.plan import baseline_of, make_plan
from chamber.assess.verdict import Verdict
from chamber.assess.workers import run_in_workers
from chamber.lab.observation import Harm, Observation, Scenario, TargetError
from chamber.wire.virtio import DeviceType

from .fakes import (
    ATTACKS,
    BEHAVIOUR,
    BROKEN,
    BROKEN_TOO,
    DENIED,
    HELD,
    IDLE,
    SERVED,
    DyingTarget,
    FakeTarget,
    ReversedTarget,
    find,
    harmed,
    spec,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from chamber.assess.result import Result

V = Verdict


def test_plan_takes_what_the_target_can_do() -> None:
    target = FakeTarget("uml")
    target.devices = (DeviceType.BLOCK, DeviceType.RNG)  # type: ignore[attr-defined]
    plan = make_plan(target, ATTACKS)
    assert [s.attack.name for s in plan.scenarios if s.attack] == ["blk-broken", "blk-broken-too", "blk-held"]


def test_each_baseline_is_planned_and_run_once() -> None:
    target = FakeTarget()
    attacks = (HELD, BROKEN, spec("blk-other", stimuli=("use", "rebind")), DENIED)
    target.behaviour = {**BEHAVIOUR, "blk-other": SERVED}
    plan = make_plan(target, attacks, profiles=("bare", "hardened"), seeds=(1, 2))
    run_plan(plan)
    counts = Counter(s for s in target.ran if s.attack is None)
    assert len(counts) == 3 * 2 * 2
    assert set(counts.values()) == {1}
    assert {baseline_of(s) for s in plan.scenarios} == set(counts)


@pytest.mark.parametrize("make", [FakeTarget, ReversedTarget])
def test_results_come_in_the_order_of_the_plan(make: Callable[[], FakeTarget]) -> None:
    target = make()
    plan = make_plan(target, ATTACKS, profiles=("bare", "hardened"))
    seen: list[Result | None] = []
    outcome = run_plan(plan, on_done=seen.append)
    assert [(r.attack, r.profile) for r in outcome.results] == [(s.attack, s.profile) for s in plan.scenarios]
    assert [r.verdict for r in outcome.results if r.profile == "bare"] == [
        V.BROKEN, V.BROKEN, V.HELD, V.DENIED, V.INCONCLUSIVE, V.LEAKED]
    assert {r.verdict for r in outcome.results if r.profile == "hardened"} == {V.HELD}
    assert len(seen) == len(plan.scenarios) + len(plan.baselines)
    assert not outcome.interrupted


def test_bad_baselines_make_all_beside_them_inconclusive() -> None:
    target = FakeTarget(baseline=Observation(failure="no boot"))
    outcome = run_plan(make_plan(target, ATTACKS, profiles=("bare",)))
    assert {r.verdict for r in outcome.results} == {V.INCONCLUSIVE}
    assert all("no boot" in b.fault for b in outcome.baselines)


def _interrupt_at(attack: object) -> Callable[[Scenario], None]:
    def before(scenario: Scenario) -> None:
        if scenario.attack is attack:
            raise KeyboardInterrupt
    return before


def test_interruption_keeps_what_was_done() -> None:
    target = FakeTarget(before=_interrupt_at(HELD))
    outcome = run_plan(make_plan(target, ATTACKS, profiles=("bare",)))
    assert outcome.interrupted
    assert [(r.attack.name, r.verdict) for r in outcome.results] == [
        ("blk-broken", V.BROKEN), ("blk-broken-too", V.BROKEN)]


def test_interruption_before_the_baseline_says_so() -> None:
    def before(scenario: Scenario) -> None:
        if scenario.attack is None:
            raise KeyboardInterrupt

    outcome = run_plan(make_plan(ReversedTarget(before=before), (BROKEN,), profiles=("bare",)))
    assert outcome.interrupted
    assert [(r.verdict, r.note) for r in outcome.results] == [
        (V.INCONCLUSIVE, "its honest baseline was not run (seen nevertheless: memory in f)")]


@pytest.mark.parametrize(("error", "why"), [
    (TargetError("no such kernel"), "no such kernel"), (ZeroDivisionError("by zero"), "ZeroDivisionError: by zero")])
def test_an_error_of_the_harness_is_no_verdict(error: Exception, why: str) -> None:
    def before(scenario: Scenario) -> None:
        if scenario.attack is BROKEN:
            raise error

    outcome = run_plan(make_plan(FakeTarget(before=before), (BROKEN, HELD), profiles=("bare",)))
    assert [r.verdict for r in outcome.results] == [V.INCONCLUSIVE, V.HELD]
    assert why in outcome.results[0].note


def test_a_target_that_gives_up_is_no_verdict() -> None:
    class Lost(FakeTarget):
        def run_all(self, *_arguments: object, **_more: object) -> None:
            raise TargetError("it does not boot")

    outcome = run_plan(make_plan(Lost(), ATTACKS, profiles=("bare",)))
    assert len(outcome.results) == len(ATTACKS)
    assert {r.verdict for r in outcome.results} == {V.INCONCLUSIVE}
    assert all("it does not boot" in r.note for r in outcome.results)


def test_text_of_a_target_is_cleaned() -> None:
    behaviour = {**BEHAVIOUR, "blk-broken": harmed(Harm.MEMORY, signature="a\x1b[31m\nb")}
    (result,) = run_plan(make_plan(FakeTarget(behaviour=behaviour), (BROKEN,), profiles=("bare",))).results
    assert result.signature == "a\\x1b[31m b"
    assert "\x1b" not in result.evidence


def test_workers_run_everything() -> None:
    scenarios = [s for p in ("bare", "hardened") for s in make_plan(FakeTarget(), ATTACKS, profiles=(p,)).scenarios]
    seen: dict[Scenario, Observation] = {}
    run_in_workers(FakeTarget, scenarios, seen.__setitem__, 2, find_attack=find)
    assert set(seen) == set(scenarios)
    target = FakeTarget()
    assert all(seen[s] == target.run(s) for s in scenarios)


def test_a_worker_that_dies_costs_one_scenario() -> None:
    scenarios = list(make_plan(FakeTarget(), (BROKEN, HELD, IDLE), profiles=("bare",)).scenarios)
    seen: dict[Scenario, Observation] = {}
    run_in_workers(DyingTarget, scenarios, seen.__setitem__, 1, find_attack=find)
    assert [seen[s].failure for s in scenarios] == ["the worker that ran it died", "", ""]


def test_a_worker_that_takes_too_long_is_ended() -> None:
    scenarios = list(make_plan(FakeTarget(), (HELD,), profiles=("bare",)).scenarios)
    seen: dict[Scenario, Observation] = {}
    run_in_workers(partial(FakeTarget, before=_for_ever), scenarios, seen.__setitem__, 1, find_attack=find, limit=0.1)
    assert [o.failure for o in seen.values()] == ["no result within 0 s"]


def _for_ever(_scenario: Scenario) -> None:
    while True:
        pass


def test_a_run_ends_when_its_caller_has_enough() -> None:
    def enough(result: Result | None) -> None:
        if result is not None and result.attack is BROKEN_TOO:
            raise Enough

    for target in (FakeTarget(), ReversedTarget()):
        outcome = run_plan(make_plan(target, ATTACKS), on_done=enough)
        assert not outcome.interrupted
        names = [result.attack.name for result in outcome.results]
        assert "blk-broken-too" in names
        assert len(names) < len(make_plan(target, ATTACKS).scenarios)
