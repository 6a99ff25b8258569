"""Every attack in its device: it acts, it ends, and nothing of it gets out of hand."""

from __future__ import annotations

import pytest

from chamber.attacks.attack import Attack, AttackSpec
from chamber.attacks.catalogue import catalogue
from tests.attacks.victim import Victim


def _run(spec: AttackSpec, attack: Attack) -> Victim:
    victim = Victim(spec.device, attack, event_idx="event" in spec.name, ring=spec.ring, reset="reset" in spec.stimuli)
    victim.run()
    return victim


@pytest.mark.parametrize("spec", catalogue(), ids=lambda spec: spec.name)
def test_an_attack_acts_and_ends(spec: AttackSpec) -> None:
    attack = spec.make()
    victim = _run(spec, attack)
    assert attack.strikes
    assert len(attack.strikes) <= Attack.LIMIT
    assert len(attack.captured) <= Attack.CAPTURE
    assert victim.interrupts <= 3000
    assert not any(queue.started for queue in victim.device.queues)


@pytest.mark.parametrize("spec", catalogue(), ids=lambda spec: spec.name)
def test_an_attack_is_deterministic(spec: AttackSpec) -> None:
    runs = []
    for _ in range(2):
        attack = spec.make()
        _run(spec, attack)
        runs.append(attack.strikes)
    assert runs[0] == runs[1]
