"""The stock Linux kernel of Debian's user-mode-linux, booted for real."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from chamber.attacks.catalogue import find
from chamber.lab.observation import Harm, Observation, Scenario, TargetError
from chamber.lab.uml import UmlTarget
from chamber.lab.uml_kernel import find_kernel
from chamber.lab.uml_runner import UmlRunner
from chamber.wire.virtio import DeviceType

if TYPE_CHECKING:
    from collections.abc import Iterator

try:
    KERNEL = find_kernel()
except TargetError as error:
    pytest.skip(str(error), allow_module_level=True)

pytestmark = pytest.mark.uml

STIMULI = {
    DeviceType.FS: ("use", "inspect", "tree", "direct", "rebind", "suspend"),
    DeviceType.BALLOON: ("use", "inspect", "rebind", "suspend"),
    DeviceType.BLOCK: ("use", "inspect", "discard", "rebind", "suspend"),
    DeviceType.NET: ("use", "inspect", "configure", "forward", "xdp", "rebind", "suspend"),
    DeviceType.CONSOLE: ("use", "inspect", "hotplug", "hangup", "rebind", "suspend"),
    DeviceType.SCSI: ("use", "inspect", "discard", "hotplug", "resize", "rebind", "suspend"),
    DeviceType.VSOCK: ("use", "inspect", "listen", "many", "flood", "hold", "local", "rebind", "suspend"),
}
ALL = [(device, stimulus) for device, stimuli in STIMULI.items() for stimulus in stimuli]


@pytest.fixture(scope="module")
def runner() -> Iterator[UmlRunner]:
    runner = UmlRunner(KERNEL)
    yield runner
    runner.close()


def attacked(runner: UmlRunner, name: str) -> Observation:
    spec = find(name)
    return runner.run(Scenario(spec.device, spec.stimuli, spec))


@pytest.mark.parametrize(("device", "stimulus"), ALL, ids=lambda value: getattr(value, "short", value))
def test_an_honest_device_is_used_without_a_finding(runner: UmlRunner, device: DeviceType, stimulus: str) -> None:
    observation = runner.run(Scenario(device, (stimulus,)))
    assert observation.evidence == []
    assert observation.served, (observation.refusals, observation.failure)
    assert observation.strikes == []


def test_honest_devices_bear_a_shutdown(runner: UmlRunner) -> None:
    for device in KERNEL.devices:
        observation = runner.run(Scenario(device, ("use", "shutdown")))
        assert observation.evidence == []
        assert observation.completed


@pytest.mark.parametrize(("name", "harm", "where"), [
    ("console-port-name-underflow", Harm.MEMORY, "strncpy"),
    ("net-rss-indirection-overflow", Harm.MEMORY, "overwritten"),
    ("blk-config-writeback-beyond", Harm.DENIAL, "cache_type_show"),
    ("blk-early-used", Harm.MEMORY, "virtblk_done"),
    ("net-echo-stale", Harm.LEAK, "planted secret"),
])
def test_what_the_kernel_is_known_to_fall_to_is_found(runner: UmlRunner, name: str, harm: Harm, where: str) -> None:
    observation = attacked(runner, name)
    assert observation.strikes
    assert any(e.harm is harm and where in e.signature for e in observation.evidence), observation.evidence


def test_an_attack_that_does_nothing_leaves_no_evidence(runner: UmlRunner) -> None:
    observation = attacked(runner, "blk-used-len-zero")
    assert observation.strikes
    assert observation.evidence == []
    assert observation.served


def test_what_is_no_kernel_is_refused_in_one_line(tmp_path: Path) -> None:
    for path in (tmp_path / "missing", Path("/bin/true"), Path("/etc/passwd")):
        with pytest.raises(TargetError) as refusal:
            find_kernel(path)
        assert "\n" not in str(refusal.value)


def test_several_guests_at_once_bring_every_result_and_leave_nothing(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", None)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    descriptors = len(os.listdir("/proc/self/fd"))
    specs = [find(name) for name in ("blk-config-writeback-beyond", "blk-used-len-zero", "console-port-name-underflow",
                                     "console-shutdown-interrupt")]
    scenarios = [Scenario(DeviceType.BLOCK), *(Scenario(s.device, s.stimuli, s) for s in specs)]
    seen: dict[Scenario, Observation] = {}
    target = UmlTarget()
    target.run_all(scenarios, seen.__setitem__, jobs=1)
    target.close()
    assert set(seen) == set(scenarios)
    assert seen[scenarios[0]].served
    assert not any(o.failure for o in seen.values())
    assert list(tmp_path.iterdir()) == []
    assert len(os.listdir("/proc/self/fd")) <= descriptors + 1  # multiprocessing keeps one to its resource tracker
    assert not [p for p in Path("/proc").iterdir() if p.name.isdigit() and str(tmp_path) in _command_line(p)]


def _command_line(process: Path) -> str:
    try:
        return (process / "cmdline").read_text(errors="replace")
    except OSError:
        return ""


@pytest.mark.slow
@pytest.mark.parametrize("device", KERNEL.devices, ids=lambda device: device.short)
def test_a_thousand_honest_probes_and_removals(device: DeviceType) -> None:
    runner = UmlRunner(KERNEL)
    try:
        guest = runner.guest()
        answer = guest.request(600, do="cycle", platform=guest.platform[device], count=1000)
        assert answer is not None
        assert "failed" not in answer
        observation = runner.run(Scenario(device))
        assert observation.evidence == []
        assert observation.served
    finally:
        runner.close()


@pytest.mark.slow
@pytest.mark.parametrize(("device", "stimulus"), ALL, ids=lambda value: getattr(value, "short", value))
def test_every_stimulus_a_hundred_times(runner: UmlRunner, device: DeviceType, stimulus: str) -> None:
    for _ in range(100):
        observation = runner.run(Scenario(device, (stimulus,)))
        assert observation.evidence == []
        assert observation.served, (observation.refusals, observation.failure)
