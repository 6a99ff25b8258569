"""A kernel built here, for real: from Debian's source, with sanitizers and coverage, under attack."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from chamber.attacks.catalogue import find
from chamber.device.catalogue import TYPES
from chamber.lab.kernel.build import build_kernel
from chamber.lab.kernel.config import KernelOptions
from chamber.lab.kernel.edits import PatchFile
from chamber.lab.kernel.places import read_places
from chamber.lab.kernel.source import find_source
from chamber.lab.kernel.store import BuiltKernel, remove_built
from chamber.lab.observation import Harm, Scenario
from chamber.lab.uml import UmlTarget
from chamber.lab.uml_kernel import find_kernel
from chamber.lab.uml_runner import UmlRunner
from chamber.link.vhost_user import Session
from chamber.wire.vhost_user import FrontendRequest, VringState
from chamber.wire.virtio import DeviceType

if TYPE_CHECKING:
    from collections.abc import Iterator

    from chamber.link.channel import Message

SERIES = "6.12"
PLANTED = """\
// files: drivers/block/virtio_blk.c
@@
identifier vdev;
@@
 virtblk_probe(struct virtio_device *vdev)
 {
 ...
+{ volatile char *planted = kmalloc(24, GFP_KERNEL); if (planted) { planted[24] = 1; kfree((void *)planted); } }
 return 0;
 ...
 }
"""

pytestmark = [pytest.mark.kernel, pytest.mark.timeout(1500)]


@pytest.fixture(scope="module")
def kernel() -> BuiltKernel:
    return build_kernel(find_source(SERIES), KernelOptions())


@pytest.fixture(scope="module")
def runner(kernel: BuiltKernel) -> Iterator[UmlRunner]:
    with closing(UmlRunner(find_kernel(kernel.binary))) as opened:
        yield opened


@pytest.mark.parametrize("device", TYPES, ids=lambda device: device.short)
@pytest.mark.parametrize("stimulus", ["use", "inspect"])
def test_an_honest_device_is_served_without_a_word(runner: UmlRunner, device: DeviceType, stimulus: str) -> None:
    observation = runner.run(Scenario(device, (stimulus,)))
    assert observation.failure == ""
    assert observation.evidence == []
    assert observation.served


def test_a_device_that_lies_about_a_name_is_caught_by_kasan(runner: UmlRunner) -> None:
    observation = runner.run(Scenario(DeviceType.CONSOLE, attack=find("console-port-name-beyond")))
    assert any(e.harm is Harm.MEMORY and e.signature.startswith("KASAN slab-out-of-bounds")
               for e in observation.evidence), observation.console
    # Whose memory it was: stacks are saved by their frames.
    allocated = observation.console.partition("Allocated by task")[2][:1000]
    assert "kmalloc" in allocated
    assert "[virtio_console]" in allocated


def test_a_driver_waits_where_a_queue_begins(kernel: BuiltKernel, monkeypatch: pytest.MonkeyPatch) -> None:
    """A device that completes what nobody asked for may do so before the driver goes on: it finds one half set up."""
    waits: list[bool] = []
    handle = Session._handle

    def seen(self: Session, message: Message) -> bool:
        if message.header.request == FrontendRequest.SET_VRING_ENABLE and VringState.unpack(message.data).num:
            waits.append(message.header.need_reply)
        return handle(self, message)

    monkeypatch.setattr(Session, "_handle", seen)
    with closing(UmlRunner(find_kernel(kernel.binary))) as runner:
        assert runner.run(Scenario(DeviceType.CONSOLE)).served
    assert waits
    assert all(waits)


def test_what_was_reached_is_known_by_file_and_line(kernel: BuiltKernel) -> None:
    known = read_places(kernel)
    with closing(UmlRunner(find_kernel(kernel.binary))) as runner:
        reached = set(runner.run(Scenario(DeviceType.BLOCK)).reached)
        attacked = reached | set(runner.run(Scenario(DeviceType.BLOCK, attack=find("blk-probe-ioerr"))).reached)
    blk = {place for place in reached if place[0] == "virtio_blk"}
    # The disassembly is read by rules of thumb; what runs must be among what they found.
    assert len(blk - known.lines.keys()) * 50 < len(blk)
    by_device = {lines.device: lines for lines in known.report(attacked)}
    covered, lines, sites, all_sites = by_device[DeviceType.BLOCK].counts()
    assert lines / 3 < covered < lines
    assert all_sites / 2 < sites <= all_sites
    assert not any(by_device[DeviceType.CONSOLE].covered.values())


def test_a_planted_bug_shows_with_an_honest_device_and_goes_with_its_patch(kernel: BuiltKernel, tmp_path: Path) -> None:
    patch = tmp_path / "planted.cocci"
    patch.write_text(PLANTED, encoding="utf-8")
    planted = build_kernel(find_source(SERIES), KernelOptions(), [PatchFile(patch)])
    try:
        with closing(UmlTarget(planted.binary)) as target:
            observation = target.run(Scenario(DeviceType.BLOCK))
        assert observation.failure == ""
        assert any(e.signature.startswith("KASAN slab-out-of-bounds: virtblk_probe") for e in observation.evidence)
    finally:
        remove_built(planted)
    source = Path(kernel.tree, "drivers/block/virtio_blk.c")
    assert b"planted" in source.read_bytes()
    remove_built(build_kernel(find_source(SERIES), KernelOptions(), name="again"))
    assert b"planted" not in source.read_bytes()
