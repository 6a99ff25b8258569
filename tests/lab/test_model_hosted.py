"""The model guest with a hypervisor before its device: honest ones are served, and attacks fall where it is said."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import TYPE_CHECKING

import pytest
from cryptography.hazmat.primitives import hashes

from chamber.assess.plan import baseline_of, make_plan, scenario_of
from chamber.assess.verdict import FAILURES, Verdict, judge
from chamber.attacks.attack import TRUSTED, UNTRUSTED
from chamber.attacks.catalogue import catalogue, find
from chamber.guest import profile as guest_profile
from chamber.lab import model_hosted
from chamber.lab.model import ModelTarget

if TYPE_CHECKING:
    from chamber.lab.observation import Observation

HOSTED = [spec for spec in catalogue() if spec.hosted]
FALLS = {Verdict.BROKEN, Verdict.LEAKED, Verdict.DECEIVED}
ALL = frozenset(TRUSTED)
OPEN = frozenset({"hardened", "vdpa"})
"""Where nothing is proven or encrypted."""
DOORS = frozenset({"tdisp", "tdisp-measured"})
"""Where a lock leaves the device's other doors open."""
SPACE = frozenset({"tdisp", "tdisp-locked"})
"""Where configuration space says where registers are."""

FALLING = {
    # The talk: only memory is encrypted, configuration is trapped and emulated.
    "fake-all": OPEN | SPACE, "fake-device": OPEN | SPACE | {"vdpa-tdisp"}, "fake-proxy": OPEN | {"tdisp"},
    # The gateway in configuration space; and VIRTIO_ADMIN_CMD_LEGACY, which must be disabled upon lock.
    "window-steals": DOORS, "window-corrupts": DOORS, "window-alters": OPEN | DOORS,
    "owner-steals": DOORS, "owner-corrupts": DOORS, "owner-alters": OPEN | DOORS,
    # vDPA: DMA redirected arbitrarily, lies about features and configuration.
    "memory-steals": frozenset({"vdpa-tdisp"}), "memory-corrupts": frozenset({"vdpa-tdisp"}), "memory-alters": OPEN,
    "control-no-flush": OPEN | {"vdpa-tdisp"}, "control-capacity-more": OPEN | {"vdpa-tdisp"},
    # What a proof, a seal and an encrypted link are for.
    "spdm-proof": OPEN, "impostor-session": OPEN, "firmware-before": OPEN, "firmware-after-measuring": OPEN,
    "firmware-after-session": OPEN, "firmware-running": OPEN, "firmware-old-measurements": OPEN,
    "own-session-opens-memory": OPEN, "sealed-report-spoilt": OPEN, "mapped-registers": OPEN, "mapped-swapped": OPEN,
    "link-data-in-alters": OPEN, "link-data-in-drops": OPEN, "link-data-out-alters": OPEN,
    # Makers are trusted, not specimens.
    "device-sibling": ALL,
    "space-notify-on-status": frozenset(), "set-up-before": frozenset(), "running-bar-moved": frozenset(),
}
"""Where attacks get at what the guest protects; everywhere else it holds, or is denied service."""


@cache
def _baseline(profile: str) -> Observation:
    return ModelTarget().run(baseline_of(scenario_of(HOSTED[0], profile, 1)))


def _judged(name: str, profile: str) -> tuple[Verdict, Observation]:
    scenario = scenario_of(find(f"blk-host-{name}"), profile, 1)
    observation = ModelTarget().run(scenario)
    return judge(observation, _baseline(profile)).verdict, observation


def test_the_catalogue_knows_the_guests_profiles() -> None:
    assert set(UNTRUSTED) | set(TRUSTED) == set(guest_profile.PROFILES)
    assert UNTRUSTED == guest_profile.UNTRUSTED


def test_there_are_enough_on_every_surface() -> None:
    surfaces = [spec.surface.value for spec in HOSTED]
    assert len(surfaces) >= 60
    for surface in ("tdisp", "report", "link", "discovery", "config"):
        assert surfaces.count(surface) >= 6, surface


@pytest.mark.parametrize("profile", TRUSTED)
def test_an_honest_hypervisor_is_served_with_a_device_that_it_can_not_read(profile: str) -> None:
    observation = _baseline(profile)
    assert observation.served
    assert observation.completed
    assert not observation.evidence
    assert not observation.refusals


@pytest.mark.parametrize("profile", TRUSTED)
@pytest.mark.parametrize("name", FALLING)
def test_what_falls_where(name: str, profile: str) -> None:
    verdict, observation = _judged(name, profile)
    assert observation.strikes
    assert verdict is not Verdict.INCONCLUSIVE
    assert (verdict in FALLS) == (profile in FALLING[name]), (verdict, observation.evidence)


@pytest.mark.parametrize("spec", HOSTED, ids=lambda spec: spec.name)
def test_measured_and_locked_together_hold_all_but_another_device_of_the_same_make(spec: object) -> None:
    name = str(getattr(spec, "name", "")).removeprefix("blk-host-")
    verdict, observation = _judged(name, "tdisp-virtio")
    assert observation.strikes, "the attack did not get to act"
    assert (verdict in FAILURES) == (name == "device-sibling"), observation.evidence


def test_a_policy_that_names_the_device_keeps_others_of_its_make_out(monkeypatch: pytest.MonkeyPatch) -> None:
    usual = model_hosted._policy
    own = model_hosted._identity("disk").certificates[-1].fingerprint(hashes.SHA256())
    monkeypatch.setattr(model_hosted, "_policy", lambda *about: replace(usual(*about), certificates=frozenset({own})))
    verdict, observation = _judged("device-sibling", "tdisp-virtio")
    assert verdict is Verdict.HELD
    assert any("none that is named" in refusal for refusal in observation.refusals)


def test_a_link_that_was_meddled_with_is_why_the_guest_stops() -> None:
    _, observation = _judged("link-data-in-alters", "tdisp")
    assert any("the link to the device is whole" in refusal for refusal in observation.refusals)


def test_a_plan_has_an_attack_in_the_profiles_that_it_is_for() -> None:
    specs = [find("blk-host-window-steals"), find("blk-used-id-repeated")]
    plan = make_plan(ModelTarget(), specs, profiles=ModelTarget.profiles)
    hosted = [profile for profile in ModelTarget.profiles if profile in TRUSTED]
    assert [s.profile for s in plan.scenarios if s.attack is specs[0]] == hosted
    assert [s.profile for s in plan.scenarios if s.attack is specs[1]] == list(UNTRUSTED)
    assert {scenario.hosted for scenario in plan.baselines} == {True, False}
