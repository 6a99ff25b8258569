"""The catalogue as such: names, clauses, what is promised to be there."""

from __future__ import annotations

import re
from collections import Counter
from typing import TYPE_CHECKING

import pytest

from chamber.attacks.admin import ADMINISTER
from chamber.attacks.attack import Attack, AttackSpec, Surface
from chamber.attacks.catalogue import UnknownAttackError, catalogue, find
from chamber.cli.targets import KINDS
from chamber.device.catalogue import TYPES
from chamber.lab.model_stimuli import STIMULI as MODEL

if TYPE_CHECKING:
    from chamber.wire.virtio import DeviceType

STIMULI = {ADMINISTER, "use", "inspect", "rebind", "rescan", "reset", "shutdown", "suspend", "flood", "hold", "local",
           *(name for own in MODEL.values() for name in own)}


def test_names_are_unique() -> None:
    counts = Counter(spec.name for spec in catalogue())
    assert [name for name, count in counts.items() if count > 1] == []


def test_order_is_device_then_surface_then_name() -> None:
    keys = [(spec.device.short, spec.surface.value, spec.name) for spec in catalogue()]
    assert keys == sorted(keys)


@pytest.mark.parametrize("spec", catalogue(), ids=lambda spec: spec.name)
def test_an_entry_is_complete(spec: AttackSpec) -> None:
    assert re.fullmatch(rf"{spec.device.short}-[a-z0-9-]+", spec.name)
    assert re.fullmatch(r"(virtio 1\.[34]|PCIe 6\.[01]|DSP0274 1\.3), \d+(\.\d+)*", spec.spec)
    assert spec.summary.endswith(".")
    assert len(spec.summary) > 20
    assert set(spec.stimuli) <= STIMULI
    assert spec.stimuli
    assert spec.targets
    assert spec.targets <= set(KINDS)
    first, second = spec.make(), spec.make()
    assert isinstance(first, Attack)
    assert first is not second
    assert first.strikes == []


def test_attacks_on_memory_never_lent_stay_in_the_model() -> None:
    assert {spec.targets for spec in catalogue() if spec.surface is Surface.DMA} == {frozenset({"model"})}


@pytest.mark.parametrize("device", TYPES)
def test_every_device_is_attacked_on_every_common_surface(device: DeviceType) -> None:
    surfaces = {spec.surface for spec in catalogue() if spec.device is device}
    assert surfaces >= {Surface.FEATURES, Surface.RING, Surface.LENGTH, Surface.NOTIFICATION, Surface.LIFECYCLE,
                        Surface.PAYLOAD, Surface.DMA}


def test_find_returns_the_entry() -> None:
    assert find("blk-used-id-repeated").name == "blk-used-id-repeated"


def test_find_suggests_what_was_meant() -> None:
    with pytest.raises(UnknownAttackError, match="did you mean blk-used-id-repeated") as caught:
        find("blk-used-id-repaeted")
    assert "blk-used-id-repeated" in caught.value.suggestions
    with pytest.raises(KeyError, match="chamber attacks"):
        find("0")
