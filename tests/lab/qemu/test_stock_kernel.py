"""A stock Debian kernel in QEMU, all DMA bounced: honest devices of all types, attacks, filters."""

from __future__ import annotations

import os
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from chamber.attacks.catalogue import find
from chamber.cli.main import run
from chamber.device.catalogue import TYPES
from chamber.lab.observation import Harm, Scenario, TargetError
from chamber.lab.qemu.target import QemuTarget
from chamber.lab.uml_program import connect, disconnect, run_program
from chamber.wire.virtio import DeviceType

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [pytest.mark.qemu, pytest.mark.timeout(300)]
LEAK = "address outside of the bounce pool handed to the device"


@pytest.fixture(scope="module")
def target() -> Iterator[QemuTarget]:
    try:
        made = QemuTarget()
    except TargetError as error:
        pytest.skip(str(error))
    with closing(made):
        yield made


@pytest.mark.parametrize("device", TYPES, ids=lambda device: device.short)
def test_an_honest_device_is_served_and_nothing_outside_of_the_pool_is_lent(target: QemuTarget,
                                                                            device: DeviceType) -> None:
    observation = target.run(Scenario(device, ("use", "rebind", "rescan")))
    assert observation.failure == ""
    assert observation.evidence == []
    assert observation.served, observation.refusals


def test_a_guest_that_is_suspended_wakes(target: QemuTarget) -> None:
    observation = target.run(Scenario(DeviceType.BLOCK, ("use", "suspend")))
    assert observation.evidence == []
    assert observation.served, observation.refusals
    assert sum("suspend and resume" in line and line.endswith("ok") for line in observation.transcript) == 2


@pytest.mark.parametrize("name", ["pmem-flush-dropped", "pmem-content-rolled-back"])
def test_persistent_memory_that_does_not_last_is_taken_for_what_was_stored(target: QemuTarget, name: str) -> None:
    attack = find(name)
    observation = target.run(Scenario(attack.device, attack.stimuli, attack))
    assert any(e.harm is Harm.WRONG_DATA for e in observation.evidence), observation.console
    assert observation.strikes


@pytest.mark.parametrize("name", ["rng-features-bare", "blk-pci-no-access-platform"])
def test_a_guest_that_is_talked_out_of_its_pool_leaks(target: QemuTarget, name: str) -> None:
    attack = find(name)
    observation = target.run(Scenario(attack.device, attack.stimuli, attack))
    assert any(e.harm is Harm.LEAK and e.signature == LEAK for e in observation.evidence), observation.console


@pytest.mark.parametrize("name", ["blk-pci-common-offset-beyond", "net-pci-notify-bar-none"])
def test_a_capability_that_leads_nowhere_is_refused(target: QemuTarget, name: str) -> None:
    attack = find(name)
    observation = target.run(Scenario(attack.device, attack.stimuli, attack))
    assert observation.strikes
    assert not any(e.harm in {Harm.MEMORY, Harm.LEAK} for e in observation.evidence)


def test_a_guest_that_dies_costs_a_boot_and_nothing_else(target: QemuTarget) -> None:
    guest = target.guest()
    os.kill(guest.pid, 9)
    assert not target.run(Scenario(DeviceType.RNG)).served
    assert target.run(Scenario(DeviceType.RNG)).served


def test_a_guest_shuts_down_with_a_device(target: QemuTarget) -> None:
    observation = target.run(Scenario(DeviceType.RNG, ("use", "shutdown")))
    assert observation.evidence == []
    assert observation.served


def test_programs_use_a_device_and_nothing_is_left_of_the_guest(target: QemuTarget) -> None:
    guest = target.guest()
    folder, pid = guest.folder, guest.pid
    connect(guest, DeviceType.BLOCK)
    # What was written is there when it is read past the cache.
    said = run_program(guest, "sh", "-c", "dd if=/dev/urandom of=/tmp/a bs=64k count=8 2>/dev/null; "
                       "dd if=/tmp/a of=/dev/vda bs=64k conv=fsync 2>/dev/null; echo 3 >/proc/sys/vm/drop_caches; "
                       "dd if=/dev/vda of=/tmp/b bs=64k count=8 2>/dev/null; cmp /tmp/a /tmp/b && echo the same")
    assert said.output == "the same\n"
    disconnect(guest, DeviceType.BLOCK)
    target.close()
    assert not folder.exists()
    assert not Path(f"/proc/{pid}").exists()


def test_the_commands(tmp_path: Path, capfd: pytest.CaptureFixture[str], target: QemuTarget) -> None:
    assert target.kind == "qemu"
    assert run(["lab", "boot", "--target", "qemu", "--device", "rng", "sh", "-c",
                "cat /sys/bus/virtio/devices/virtio*/device"]) == 0
    assert "0x0004" in capfd.readouterr().out
    assert run(["assess", "--target", "qemu", "--attack", "rng-zeroes", "--attack", "blk-pci-legacy", "--jobs", "1",
                "--out", str(tmp_path)]) == 0
    assert "deceived" in capfd.readouterr().out
