"""Which scenarios to run on a target."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from chamber.lab.observation import Scenario
from chamber.wire.virtio import DeviceType

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from chamber.attacks.attack import AttackSpec
    from chamber.lab.observation import Target

__all__ = ("Plan", "baseline_of", "make_plan", "scenario_of")


def baseline_of(scenario: Scenario) -> Scenario:
    """The honest run that a scenario is judged beside."""
    return replace(scenario, attack=None)


def scenario_of(spec: AttackSpec, profile: str | None, seed: int) -> Scenario:
    """One run of an attack."""
    return Scenario(spec.device, spec.stimuli, spec, profile, seed, spec.ring, spec.pci, spec.hosted)


@dataclass(frozen=True, slots=True)
class Plan:
    """What to run on one target.

    Attributes:
        target: where.
        scenarios: the attacks, in the order of the report.
        replay_options: words that a replay of any of them needs besides its name, such as ``--kernel PATH``.

    """

    target: Target
    scenarios: tuple[Scenario, ...]
    replay_options: tuple[str, ...] = ()

    @property
    def baselines(self) -> tuple[Scenario, ...]:
        """Every baseline that the attacks need, each once."""
        return tuple(dict.fromkeys(baseline_of(s) for s in self.scenarios))


def make_plan(target: Target, attacks: Iterable[AttackSpec], *, profiles: Sequence[str | None] = (None,),
              seeds: Sequence[int] = (1,), replay_options: tuple[str, ...] = ()) -> Plan:
    """Plan every attack that can act on the target, with each profile that it is for, and each seed.

    A target may have drivers for some devices only; its attribute ``devices`` says which.
    """
    devices = frozenset(getattr(target, "devices", DeviceType))
    return Plan(target, tuple(
        scenario_of(spec, profile, seed)
        for spec in attacks if target.kind in spec.targets and spec.device in devices
        for profile in profiles if profile is None or profile in spec.profiles for seed in seeds
    ), replay_options)
