"""Every attack in its device: it acts, it ends, and nothing of it gets out of hand."""

from __future__ import annotations

import pytest

from chamber.attacks.admin import ADMINISTER
from chamber.attacks.attack import Attack, AttackSpec
from chamber.attacks.catalogue import catalogue
from chamber.lab.model import ModelTarget
from chamber.lab.observation import Scenario
from tests.attacks.pci_victim import use_function
from tests.attacks.victim import Victim

PLAIN = [spec for spec in catalogue() if not spec.pci and not spec.hosted]
OF_OWNERS = [spec for spec in catalogue() if ADMINISTER in spec.stimuli]
ON_PCI = [spec for spec in catalogue() if spec.pci and spec not in OF_OWNERS]


def _run(spec: AttackSpec, attack: Attack) -> Victim:
    victim = Victim(spec.device, attack, event_idx="event" in spec.name, ring=spec.ring, reset="reset" in spec.stimuli)
    victim.run()
    return victim


@pytest.mark.parametrize("spec", PLAIN, ids=lambda spec: spec.name)
def test_an_attack_acts_ends_and_does_the_same_twice(spec: AttackSpec) -> None:
    runs = []
    for _ in range(2):
        attack = spec.make()
        victim = _run(spec, attack)
        assert len(attack.strikes) <= Attack.LIMIT
        assert len(attack.captured) <= Attack.CAPTURE
        assert victim.interrupts <= 3000
        assert not any(queue.started for queue in victim.device.queues)
        runs.append(attack.strikes)
    assert runs[0]
    assert runs[0] == runs[1]


@pytest.mark.parametrize("spec", ON_PCI, ids=lambda spec: spec.name)
def test_an_attack_on_a_pci_bus_acts_ends_and_does_the_same_twice(spec: AttackSpec) -> None:
    runs = []
    for _ in range(2):
        attack = spec.make()
        function = use_function(spec.device, attack, reset="reset" in spec.stimuli)
        assert not any(queue.started for queue in function.device.queues)
        runs.append(attack.strikes)
    assert runs[0]
    assert runs[0] == runs[1]
    assert len(runs[0]) <= Attack.LIMIT


@pytest.mark.parametrize("spec", OF_OWNERS, ids=lambda spec: spec.name)
def test_an_attack_by_an_owner_device_acts_and_does_the_same_twice(spec: AttackSpec) -> None:
    runs = [ModelTarget().run(Scenario(spec.device, spec.stimuli, spec, "hardened", pci=True)) for _ in range(2)]
    assert runs[0].strikes
    assert runs[0].strikes == runs[1].strikes
    assert len(runs[0].strikes) <= Attack.LIMIT
