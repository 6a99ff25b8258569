"""The model target: honest runs are served, lies that nobody listed are judged by what they do."""

from __future__ import annotations

from itertools import product
from typing import TYPE_CHECKING

import pytest

from chamber.assess.engine import run_plan
from chamber.assess.plan import make_plan, scenario_of
from chamber.assess.verdict import Verdict
from chamber.attacks.admin import ADMINISTER
from chamber.attacks.attack import Aim, Attack, AttackSpec, Surface
from chamber.attacks.catalogue import catalogue, find
from chamber.attacks.ring import Withheld
from chamber.device.catalogue import TYPES
from chamber.guest.profile import UNTRUSTED
from chamber.lab.model import ModelTarget
from chamber.lab.model_stimuli import STIMULI
from chamber.lab.observation import Harm, Observation, Scenario
from chamber.wire.virtio import DeviceType

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from chamber.device.chain import Chain
    from chamber.device.queue import DeviceQueue

COMMON = ("use", "inspect", "rebind", "rescan", "reset", "shutdown")
STIMULI_OF = [(device, name) for device in TYPES for name in (*COMMON, *sorted(STIMULI[device].keys() - set(COMMON)))]


def run(device: DeviceType, profile: str, *stimuli: str, attack: Callable[[], Attack] | None = None,
        seed: int = 1) -> Observation:
    spec = None if attack is None else AttackSpec("test", device, Surface.RING, Aim.MEMORY, "-", "-", attack)
    return ModelTarget().run(Scenario(device, stimuli or ("use",), spec, profile, seed))


def harms(observation: Observation) -> set[Harm]:
    return {evidence.harm for evidence in observation.evidence}


@pytest.mark.parametrize("profile", UNTRUSTED)
@pytest.mark.parametrize(("device", "stimulus"), STIMULI_OF, ids=lambda value: getattr(value, "short", value))
def test_an_honest_device_is_served(device: DeviceType, stimulus: str, profile: str) -> None:
    for seed in range(3):
        observation = run(device, profile, stimulus, seed=seed)
        assert observation.served
        assert observation.completed
        assert not observation.evidence
        assert not observation.refusals
        assert not observation.failure


@pytest.mark.parametrize("profile", UNTRUSTED)
@pytest.mark.parametrize("ring", ["split", "packed"])
@pytest.mark.parametrize("device", TYPES, ids=lambda device: device.short)
def test_an_honest_device_on_a_pci_bus_is_served(device: DeviceType, ring: str, profile: str) -> None:
    scenario = Scenario(device, ("use", "rebind", "rescan", "use", "reset"), None, profile, 1, ring, pci=True)
    observation = ModelTarget().run(scenario)
    assert observation.served
    assert not observation.evidence
    assert not observation.refusals


@pytest.mark.parametrize("device", TYPES, ids=lambda device: device.short)
def test_stimuli_of_the_catalogue_are_known_to_the_model(device: DeviceType) -> None:
    used = {name for spec in catalogue() if spec.device is device and "model" in spec.targets for name in spec.stimuli}
    assert used <= {*COMMON, ADMINISTER, *STIMULI[device]}


@pytest.mark.parametrize("profile", UNTRUSTED)
@pytest.mark.parametrize("device", TYPES, ids=lambda device: device.short)
def test_a_device_is_probed_and_removed_again_and_again(device: DeviceType, profile: str) -> None:
    observation = run(device, profile, *("rebind",) * 10)
    assert observation.served
    assert not observation.evidence


@pytest.mark.parametrize("name", ["rng-completed-twice", "blk-used-id-repeated", "net-rx-used-len-max",
                                  "console-input-flood"])
def test_the_seed_decides_everything(name: str) -> None:
    spec = find(name)
    for profile in UNTRUSTED:
        first, second = (ModelTarget().run(Scenario(spec.device, spec.stimuli, spec, profile, 7)) for _ in range(2))
        first.seconds = second.seconds = 0.0
        assert first == second


class Quiet(Attack):
    """Strikes and does nothing."""

    def notified(self, queue: DeviceQueue) -> None:
        self.strike(f"queue {queue.index}")


class Content(Attack):
    """Answers with bytes of its own choice: no driver can know."""

    def response(self, queue: DeviceQueue, chain: Chain, data: bytes) -> bytes:
        self.strike("content")
        return b"\x5a" * (len(data) - 1) + data[-1:]


class TooLong(Attack):
    """Claims more than the buffer holds."""

    def used(self, queue: DeviceQueue, chain: Chain, length: int) -> Iterable[tuple[int, int]]:
        self.strike("length")
        return ((chain.head, chain.writable_size + 4096),)


class Curious(Attack):
    """Reads the page that a buffer lies in."""

    def popped(self, queue: DeviceQueue, chain: Chain) -> bool:
        for address, _ in chain.writable:
            self.strike("page")
            self.capture(chain.dma.read(address & -4096, 4096))
        return True


class Deaf(Attack):
    """Never answers."""

    def popped(self, queue: DeviceQueue, chain: Chain) -> bool:
        self.strike("kept")
        return False


@pytest.mark.parametrize(("profile", "device"), list(product(UNTRUSTED, TYPES)),
                         ids=lambda value: getattr(value, "short", value))
def test_what_strikes_and_does_nothing_is_survived(profile: str, device: DeviceType) -> None:
    observation = run(device, profile, attack=Quiet)
    assert observation.strikes
    assert observation.served
    assert not observation.evidence


@pytest.mark.parametrize("profile", UNTRUSTED)
def test_content_is_believed_whatever_protects_the_guest(profile: str) -> None:
    assert harms(run(DeviceType.BLOCK, profile, attack=Content)) == {Harm.WRONG_DATA}


@pytest.mark.parametrize(("profile", "expected"),
                         [("bare", {Harm.MEMORY}), ("bounced", {Harm.MEMORY}), ("hardened", set())])
def test_a_length_beyond_the_buffer(profile: str, expected: set[Harm]) -> None:
    observation = run(DeviceType.RNG, profile, attack=TooLong)
    assert harms(observation) == expected
    assert bool(observation.refusals) == (not expected)


@pytest.mark.parametrize(("profile", "expected"), [("bare", {Harm.LEAK}), ("bounced", set()), ("hardened", set())])
def test_what_lies_around_a_buffer(profile: str, expected: set[Harm]) -> None:
    assert harms(run(DeviceType.BLOCK, profile, attack=Curious)) == expected


@pytest.mark.parametrize("profile", UNTRUSTED)
@pytest.mark.parametrize("device", TYPES, ids=lambda device: device.short)
def test_silence_denies_and_does_nothing_worse(device: DeviceType, profile: str) -> None:
    observation = run(device, profile, attack=Deaf)
    assert harms(observation) == {Harm.DENIAL}
    assert not any(evidence.signature.startswith("afterwards") for evidence in observation.evidence)


@pytest.mark.parametrize(("profile", "broken"), [("bare", True), ("bounced", True), ("hardened", False)])
def test_an_answer_to_what_was_given_up_finds_nothing_freed(profile: str, broken: bool) -> None:
    observation = run(DeviceType.BLOCK, profile, "use", "inspect",
                      attack=lambda: Withheld("requests", after=1, delay=2.05))
    assert Harm.DENIAL in harms(observation)
    assert (Harm.MEMORY in harms(observation)) == broken


@pytest.mark.parametrize(("profile", "broken"), [("bare", True), ("bounced", True), ("hardened", False)])
@pytest.mark.parametrize("device", TYPES, ids=lambda device: device.short)
def test_a_device_that_outlives_the_shutdown(device: DeviceType, profile: str, broken: bool) -> None:
    spec = find(f"{device.short}-shutdown-interrupt")
    observation = ModelTarget().run(Scenario(device, spec.stimuli, spec, profile))
    assert observation.strikes
    assert (Harm.MEMORY in harms(observation)) == broken


HARDENED = [spec for spec in catalogue() if "model" in spec.targets]


@pytest.mark.parametrize("spec", HARDENED, ids=lambda spec: spec.name)
def test_the_hardened_guest_keeps_its_memory_and_its_secrets(spec: AttackSpec) -> None:
    observation = ModelTarget().run(scenario_of(spec, "hardened", 1))
    assert not observation.failure
    assert not harms(observation) & {Harm.MEMORY, Harm.LEAK}


def test_an_attack_on_a_pci_bus_acts_in_a_worker_process_too() -> None:
    spec = find("blk-pci-next-loop")
    outcome = run_plan(make_plan(ModelTarget(), [spec], profiles=("bare",)), jobs=2, make_target=ModelTarget)
    (result,) = outcome.results
    assert result.verdict is not Verdict.INCONCLUSIVE, result.note
