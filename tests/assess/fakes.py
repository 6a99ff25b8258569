"""A guest that does as it is told, and attacks that do nothing."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import TYPE_CHECKING

from chamber.assess.plan import make_plan
from chamber.assess.result import Report, make_baseline, make_result
from chamber.attacks.attack import Aim, Attack, AttackSpec, Surface
from chamber.lab.observation import Evidence, Harm, Observation, Scenario
from chamber.wire.virtio import DeviceType

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

HOSTILE = "</pre><script>alert(1)</script>\x1b]0;owned\x07\x1b[2J\u202e\ud800 & [red]x[/red] http://evil.example/x.js"

SERVED = Observation(strikes=["did it"], completed=True, served=True, seconds=0.5)
REFUSED = Observation(strikes=["did it"], completed=True, refusals=["read: used id 9 of 8"], seconds=0.5)


def harmed(*harms: Harm, signature: str = "") -> Observation:
    return Observation(strikes=["did it"], completed=True, seconds=1.0, transcript=["0.1 began", "0.2 ATTACK did it"],
                       console="a line\nBUG: a line\n",
                       evidence=[Evidence(h, signature or f"{h.name.lower()} in f", f"saw {h.value}") for h in harms])


def spec(name: str, *, surface: Surface = Surface.RING, device: DeviceType = DeviceType.BLOCK,
         targets: frozenset[str] = frozenset({"model", "uml"}), stimuli: tuple[str, ...] = ("use",)) -> AttackSpec:
    return AttackSpec(name, device, surface, Aim.MEMORY, "virtio 1.3, 2.7.8.2", f"The device does {name}.", Attack,
                      stimuli=stimuli, targets=targets)


HELD = spec("blk-held")
BROKEN = spec("blk-broken", surface=Surface.LENGTH)
BROKEN_TOO = spec("blk-broken-too")
DENIED = spec("net-denied", device=DeviceType.NET)
IDLE = spec("net-idle", device=DeviceType.NET)
LEAKED = spec("rng-hostile", device=DeviceType.RNG, targets=frozenset({"model"}))
ATTACKS = (BROKEN, BROKEN_TOO, HELD, DENIED, IDLE, LEAKED)

BEHAVIOUR: dict[str, Observation] = {
    "blk-held": REFUSED,
    "blk-broken": harmed(Harm.MEMORY),
    "blk-broken-too": harmed(Harm.MEMORY),
    "net-denied": harmed(Harm.DENIAL),
    "net-idle": replace(SERVED, strikes=[]),
    "rng-hostile": replace(harmed(Harm.LEAK, signature=HOSTILE), strikes=[HOSTILE], transcript=[HOSTILE],
                           refusals=[HOSTILE], console=HOSTILE),
}


def find(name: str) -> AttackSpec:
    return next(a for a in ATTACKS if a.name == name)


class FakeTarget:
    """Runs nothing, sees what it was told to see.

    Attributes:
        ran: scenarios in the order in which they came.
    """

    profiles: tuple[str, ...] = ("bare", "hardened")

    def __init__(self, kind: str = "model", behaviour: Mapping[str, Observation] = BEHAVIOUR, *,
                 baseline: Observation = SERVED, before: Callable[[Scenario], None] = lambda _s: None) -> None:
        self.kind = kind
        self.behaviour = behaviour
        self.baseline = baseline
        self.before = before
        self.ran: list[Scenario] = []
        self.closed = False

    def describe(self) -> dict[str, object]:
        return {"kind": self.kind, "kernel": "6.1.0", "options": ["a", "b"]}

    def run(self, scenario: Scenario) -> Observation:
        self.ran.append(scenario)
        self.before(scenario)
        if scenario.attack is None:
            return self.baseline
        if scenario.profile == "hardened":
            return REFUSED
        return self.behaviour[scenario.attack.name]

    def close(self) -> None:
        self.closed = True


class ReversedTarget(FakeTarget):
    """Hands results over in another order than that of the plan."""

    def run_all(self, scenarios: list[Scenario], on_result: Callable[[Scenario, Observation], None],
                jobs: int) -> None:
        for scenario in reversed(scenarios):
            on_result(scenario, self.run(scenario))


class DyingTarget(FakeTarget):
    """Takes its process down with one scenario."""

    def run(self, scenario: Scenario) -> Observation:
        if scenario.attack is BROKEN:
            os._exit(3)
        return super().run(scenario)


def make_report(*, interrupted: bool = False) -> Report:
    """A report with every verdict but deceived, on two targets."""
    results, baselines = [], []
    for target, profiles in ((FakeTarget("model"), ("bare", "hardened")), (FakeTarget("uml"), (None,))):
        plan = make_plan(target, ATTACKS, profiles=profiles)
        results += [make_result(s, target.run(s), SERVED, target=target.kind) for s in plan.scenarios]
        baselines += [make_baseline(s, SERVED, target=target.kind) for s in plan.baselines]
    targets = (FakeTarget("model").describe(), FakeTarget("uml").describe())
    return Report("0.0", 1, "2026-01-02T03:04:05+00:00", 12.3, interrupted, targets, tuple(results), tuple(baselines))
