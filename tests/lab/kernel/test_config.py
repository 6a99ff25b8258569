"""Configuration: what was asked for is looked for in what came out."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest

from chamber.lab.kernel.config import KernelOptions, fragment, missing
from chamber.lab.kernel.drivers import SOURCES
from chamber.lab.observation import TargetError
from chamber.wire.virtio import DeviceType

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    (tmp_path / "Kconfig").write_text('config KASAN\n\tbool "a"\nmenuconfig NET\n\tbool "b"\n'
                                      'config PCI_DOE\n\tbool\nconfig VIRTIO_NET\n\ttristate "c"\n\tdepends on NET\n')
    return tmp_path


PLAIN = KernelOptions(kasan=False, ubsan=False, coverage=False)


def test_options_bring_their_fragments() -> None:
    assert "CONFIG_KASAN=y" in fragment(KernelOptions())
    assert "CONFIG_KASAN=y" not in fragment(PLAIN)
    assert KernelOptions(smp=True).words() == ["kasan", "ubsan", "coverage", "smp"]


def test_no_fragment_brings_what_silences_kasan() -> None:
    everything = fragment(KernelOptions(lockdep=True, smp=True, time_travel=True))
    assert not re.search(r"CONFIG_(?:SLUB_TINY|KCOV)=y", everything)


def test_each_device_type_has_a_driver_under_test() -> None:
    assert set(SOURCES) == set(DeviceType)


def test_what_the_tree_has_and_the_result_has_not_is_named(tree: Path) -> None:
    assert missing(tree, PLAIN, "CONFIG_NET=y\nCONFIG_VIRTIO_NET=m\n") == []
    assert missing(tree, PLAIN, "CONFIG_NET=y\n# CONFIG_VIRTIO_NET is not set\n") == ["CONFIG_VIRTIO_NET=m"]


def test_what_can_not_be_chosen_is_not_missed(tree: Path) -> None:
    kconfig = tree / "Kconfig"
    kconfig.write_text(kconfig.read_text().replace("config PCI_DOE\n\tbool", 'config PCI_DOE\n\tbool "d"'))
    assert missing(tree, PLAIN, "CONFIG_NET=y\nCONFIG_VIRTIO_NET=m\n") == ["CONFIG_PCI_DOE=y"]


def test_a_sanitizer_that_was_left_out_is_an_error(tree: Path) -> None:
    with pytest.raises(TargetError, match="no kasan"):
        missing(tree, KernelOptions(ubsan=False, coverage=False), "CONFIG_NET=y\nCONFIG_VIRTIO_NET=m\n")
