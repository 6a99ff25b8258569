"""A kernel built here that finds its devices on a PCI bus, and bounces all that it lends to them."""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING

import pytest

from chamber.attacks.catalogue import find
from chamber.cli.main import run
from chamber.device.catalogue import TYPES
from chamber.lab.dma_watch import DmaWatch, pool_of
from chamber.lab.kernel.build import build_kernel
from chamber.lab.kernel.config import KernelOptions
from chamber.lab.kernel.edits import Substitution
from chamber.lab.kernel.source import find_source
from chamber.lab.kernel.store import remove_built
from chamber.lab.observation import Evidence, Harm, Scenario
from chamber.lab.uml import UmlPciTarget
from chamber.wire.virtio import DeviceType
from tests.device.driver import BASE, Memory

if TYPE_CHECKING:
    from collections.abc import Iterator

SERIES = "6.12"
BOOT_LOG = "[    0.1] software IO TLB: area num 1.\n[    0.2] software IO TLB: mapped [mem 0x11000-0x13000] (4MB)\n"
LEAK = "address outside of the bounce pool handed to the device"


@pytest.fixture(scope="module")
def target() -> Iterator[UmlPciTarget]:
    kernel = build_kernel(find_source(SERIES), KernelOptions())
    with closing(UmlPciTarget(kernel.binary)) as opened:
        yield opened


@pytest.mark.kernel
@pytest.mark.timeout(1500)
@pytest.mark.parametrize("device", TYPES, ids=lambda device: device.short)
def test_an_honest_device_is_served_and_nothing_outside_of_the_pool_is_lent(target: UmlPciTarget,
                                                                            device: DeviceType) -> None:
    observation = target.run(Scenario(device, ("use", "rebind", "rescan")))
    assert observation.failure == ""
    assert observation.evidence == []
    assert observation.served
    assert any("; 0 descriptors led to where nothing was mapped" in line for line in observation.transcript)


@pytest.mark.kernel
@pytest.mark.timeout(1500)
@pytest.mark.parametrize("name", ["blk-pci-no-access-platform", "net-pci-no-access-platform"])
def test_a_guest_that_is_talked_out_of_its_pool_leaks(target: UmlPciTarget, name: str) -> None:
    attack = find(name)
    observation = target.run(Scenario(attack.device, attack.stimuli, attack))
    assert any(e.harm is Harm.LEAK and e.signature == LEAK for e in observation.evidence), observation.console


@pytest.mark.kernel
@pytest.mark.timeout(1500)
@pytest.mark.parametrize("name", ["blk-pci-common-offset-beyond", "blk-pci-common-length-zero",
                                  "net-pci-notify-bar-none", "net-pci-legacy"])
def test_a_capability_that_leads_nowhere_is_refused(target: UmlPciTarget, name: str) -> None:
    attack = find(name)
    observation = target.run(Scenario(attack.device, attack.stimuli, attack))
    assert observation.strikes
    assert observation.refusals
    assert not any(e.harm in {Harm.MEMORY, Harm.LEAK} for e in observation.evidence)


@pytest.mark.kernel
@pytest.mark.timeout(1500)
def test_a_driver_that_leaves_buffers_mapped_does_not_spoil_what_comes_after_it(target: UmlPciTarget) -> None:
    for _ in range(34):  # Linux 6.12 leaves 64 of 2,048 slots each time
        observation = target.run(Scenario(DeviceType.INPUT))
        assert observation.served, observation.transcript
        assert any(line.endswith(" of 2048 slots are mapped still") for line in observation.transcript)


@pytest.mark.kernel
@pytest.mark.timeout(1500)
def test_a_guest_is_booted_by_hand(target: UmlPciTarget, capfd: pytest.CaptureFixture[str]) -> None:
    script = "cd /sys/bus/pci/drivers/virtio-pci; echo 0000* >unbind; cat /sys/kernel/debug/swiotlb/io_tlb_nslabs"
    assert run(["lab", "boot", "--target", "uml-pci", "--kernel", str(target.kernel.path), "--device", "input",
                "sh", "-c", script]) == 0
    assert capfd.readouterr().out.startswith("2048\n")


@pytest.mark.kernel
@pytest.mark.timeout(1500)
def test_a_guest_with_a_device_on_the_bus_shuts_down(target: UmlPciTarget) -> None:
    observation = target.run(Scenario(DeviceType.RNG, ("use", "shutdown")))
    assert observation.evidence == []
    assert observation.served


_LENDS = "{ struct scatterlist more, *sgs[2] = { &more, &sg }; \
sg_init_one(&more, (void *)__get_free_page(GFP_KERNEL), PAGE_SIZE); \
virtqueue_add_sgs(vi->vq, sgs, 1, 1, vi->data, GFP_KERNEL); }"
_LEAK = Substitution("planted-leak", ((
    "drivers/char/hw_random/virtio-rng.c", r"virtqueue_add_inbuf\(vi->vq, &sg, 1, vi->data, GFP_KERNEL\);", _LENDS),))
"""Each request for randomness lends a page that nobody has cleared, for the device to read."""
_TOO_MUCH = Substitution("planted-copy", ((
    "kernel/dma/swiotlb.c", r"memcpy\(phys_to_virt\(orig_addr\), vaddr, size\);",
    "memcpy(phys_to_virt(orig_addr), vaddr, size + (size < IO_TLB_SIZE ? 16 : 0));"),))
"""16 bytes more than were mapped are copied back to the guest."""


@pytest.mark.kernel
@pytest.mark.timeout(1500)
@pytest.mark.parametrize(("plant", "device", "harm", "signature"), [
    (_LEAK, DeviceType.RNG, Harm.LEAK, "planted secret in the bounce pool in bytes lent to be read"),
    (_TOO_MUCH, DeviceType.BLOCK, Harm.MEMORY, "bytes beyond a mapping came back from the bounce pool")],
    ids=["leak", "too-much"])
def test_what_was_planted_in_a_kernel_is_found(plant: Substitution, device: DeviceType, harm: Harm,
                                               signature: str) -> None:
    planted = build_kernel(find_source(SERIES), KernelOptions(), [plant])
    try:
        with closing(UmlPciTarget(planted.binary)) as target:
            # Which freed page a driver gets, and what lay there, is chance.
            runs = [target.run(Scenario(device)) for _ in range(3)]
    finally:
        remove_built(planted)
    assert [run.failure for run in runs] == [""] * 3
    assert any(e.harm is harm and e.signature == signature for run in runs for e in run.evidence), [
        run.transcript for run in runs]


def watched() -> tuple[DmaWatch, Memory, list[Evidence], list[tuple[int, int]]]:
    pool = pool_of(BOOT_LOG)
    assert pool is not None
    memory, found = Memory(), list[Evidence]()
    rings: list[tuple[int, int]] = []
    return DmaWatch(memory, pool, lambda: rings, found.append), memory, found, rings


def test_the_pool_is_where_the_kernel_says() -> None:
    assert pool_of(BOOT_LOG) == range(0x11000, 0x13000)
    assert pool_of("nothing of it") is None


def test_the_pool_and_the_pages_of_rings_are_reached_in_silence() -> None:
    watch, memory, found, rings = watched()
    memory.write(0x11000, b"bounced")
    assert watch.read(0x11000, 7) == b"bounced"
    watch.write(0x12FFF, b"x")
    rings.append((0x14010, 0x100))
    watch.view(0x14000, 0x1000)
    assert found == []


@pytest.mark.parametrize(("address", "length"), [(0x10FFF, 2), (0x12FFF, 2), (0x20000, 16), (BASE, 1)])
def test_what_is_outside_is_told_with_its_bytes(address: int, length: int) -> None:
    watch, memory, found, _ = watched()
    memory.write(address, b"\xab" * length)
    watch.read(address, length)
    watch.write(address, b"\xcd" * length)
    watch.view(address, length)
    assert [e.harm for e in found] == [Harm.LEAK] * 3
    assert {e.signature for e in found} == {LEAK}
    assert "ab" in found[0].text


def test_a_guest_that_leaks_all_the_time_is_told_of_a_few_times() -> None:
    watch, _, found, _ = watched()
    for _ in range(100):
        watch.read(0x20000, 8)
    assert len(found) == 8
