"""Runs a plan and judges what comes of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from chamber.assess.plan import baseline_of
from chamber.assess.result import make_baseline, make_result
from chamber.assess.workers import run_in_workers, run_safely
from chamber.lab.observation import Observation, TargetError

if TYPE_CHECKING:
    from collections.abc import Callable

    from chamber.assess.plan import Plan
    from chamber.assess.result import Baseline, Result
    from chamber.lab.observation import Scenario, Target

__all__ = ("Enough", "Outcome", "RunsAll", "run_plan")


class Enough(Exception):
    """Raised by `on_done`: what it was told is all that was wanted."""


@runtime_checkable
class RunsAll(Protocol):
    """A target that spreads scenarios over guests of its own."""

    def run_all(self, scenarios: list[Scenario], on_result: Callable[[Scenario, Observation], None],
                jobs: int) -> None:
        """Run scenarios, up to `jobs` at a time, and hand each observation over as it is ready, in any order."""
        ...


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a plan came to.

    Attributes:
        results: in the order of the plan; without those that an interruption left undone.
        baselines: likewise.
        interrupted: Ctrl-C ended it.

    """

    results: tuple[Result, ...]
    baselines: tuple[Baseline, ...]
    interrupted: bool


def _nothing(_done: Result | None) -> None:
    """Show no progress."""


class _Judge:
    """Takes observations in any order; judges each attack once its baseline is there."""

    def __init__(self, plan: Plan, on_done: Callable[[Result | None], None]) -> None:
        self._plan = plan
        self._on_done = on_done
        self.baselines: dict[Scenario, Observation] = {}
        self.results: dict[Scenario, Result] = {}
        self.waiting: dict[Scenario, Observation] = {}

    def take(self, scenario: Scenario, observation: Observation) -> None:
        """Take what was seen of a scenario of the plan."""
        if scenario.attack is None:
            self.baselines[scenario] = observation
            self._on_done(None)
            for attack in [s for s in self.waiting if baseline_of(s) == scenario]:
                self._judge(attack, self.waiting.pop(attack))
        elif baseline_of(scenario) in self.baselines:
            self._judge(scenario, observation)
        else:
            self.waiting[scenario] = observation

    def _judge(self, scenario: Scenario, observation: Observation) -> None:
        result = make_result(scenario, observation, self.baselines.get(baseline_of(scenario)),
                             target=self._plan.target.kind, options=self._plan.replay_options)
        self.results[scenario] = result
        self._on_done(result)

    def finish(self, reason: str = "") -> None:
        """Judge what waits for a baseline that never came, and, given a `reason`, what was not run at all."""
        for scenario, observation in self.waiting.items():
            self._judge(scenario, observation)
        self.waiting.clear()
        if reason:
            for scenario in (*self._plan.baselines, *self._plan.scenarios):
                if scenario not in self.results and scenario not in self.baselines:
                    self.take(scenario, Observation(failure=reason))


def run_plan(plan: Plan, *, jobs: int = 1, make_target: Callable[[], Target] | None = None,
             on_done: Callable[[Result | None], None] = _nothing) -> Outcome:
    """Run every scenario of a plan, each baseline once, and judge them.

    Ctrl-C ends the run, and so does `Enough`; what was done so far is returned.

    Args:
        plan: what to run.
        jobs: scenarios to run at once, if the target or `make_target` allows it.
        make_target: builds the plan's target anew in a worker process, where it is found by name; without it, a target
            that has no `run_all` is run on in this process.
        on_done: called after each scenario, with its result, or None for a baseline. May raise `Enough`.

    """
    scenarios = [*plan.baselines, *plan.scenarios]
    judge = _Judge(plan, on_done)
    interrupted = False
    reason = ""
    try:
        if isinstance(plan.target, RunsAll):
            plan.target.run_all(scenarios, judge.take, jobs)
        elif jobs > 1 and make_target is not None:
            run_in_workers(make_target, scenarios, judge.take, jobs)
        else:
            for scenario in scenarios:
                judge.take(scenario, run_safely(plan.target, scenario))
    except TargetError as error:
        reason = str(error)
    except KeyboardInterrupt:
        interrupted = True
    except Enough:
        judge.waiting.clear()
    judge.finish(reason)
    return Outcome(
        tuple(judge.results[s] for s in plan.scenarios if s in judge.results),
        tuple(make_baseline(s, judge.baselines[s], target=plan.target.kind)
              for s in plan.baselines if s in judge.baselines),
        interrupted)
