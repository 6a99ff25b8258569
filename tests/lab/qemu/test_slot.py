"""A slot of a machine's bus: the same function to QEMU, whoever is plugged to the guest."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from chamber.device.catalogue import TYPES, make_device
from chamber.device.pmem import SharedMedium
from chamber.device.virtio_pci import REGISTER_BAR, SHARED_MEMORY_BAR, VirtioPci
from chamber.lab.qemu.slot import PciSlot
from chamber.wire.pci import HEADER, Command, ExtendedId
from chamber.wire.virtio import DeviceType, Status
from chamber.wire.virtio_pci import COMMON
from tests.device.driver import BASE, Memory
from tests.lab.trusted_disk import TrustedDisk

if TYPE_CHECKING:
    from chamber.platform.dma import Dma

_STATUS = COMMON["device_status"].offset


def _attached(slot: PciSlot) -> tuple[Memory, list[int]]:
    memory, raised = Memory(), list[int]()
    slot.attach(memory, raised.append, lambda _asserted: None, lambda _delay, call: call())
    return memory, raised


@pytest.mark.parametrize("kind", TYPES)
def test_every_type_is_there_until_the_machine_is_reset(kind: DeviceType) -> None:
    slot = PciSlot(make_device(kind))
    _attached(slot)
    assert slot.read_config(0, 2) == b"\xf4\x1a"
    assert slot.vectors == VirtioPci(make_device(kind)).vectors
    slot.reset()
    assert slot.read_config(0, 4) == b"\xff" * 4
    assert slot.read_bar(REGISTER_BAR, _STATUS, 1) == b"\xff"
    slot.write_config(4, b"\6\0")
    slot.write_bar(REGISTER_BAR, _STATUS, b"\1")
    slot.log("nobody hears it")
    assert slot.pollable() == {}
    slot.close()


def test_who_is_plugged_is_found_anew_and_leaves_nothing() -> None:
    slot = PciSlot(make_device(DeviceType.RNG))
    memory, raised = _attached(slot)
    slot.reset()
    sizes = slot.bar_sizes
    for _ in range(2):
        function = slot.plug(make_device(DeviceType.RNG))
        assert function.dma is memory
        assert slot.bar_sizes == sizes
        slot.write_config(HEADER["command"].offset, bytes((Command.MEMORY | Command.BUS_MASTER, 0)))
        assert slot.read_bar(REGISTER_BAR, _STATUS, 1) == b"\0"
        slot.write_bar(REGISTER_BAR, _STATUS, bytes((Status.ACKNOWLEDGE,)))
        assert slot.read_bar(REGISTER_BAR, _STATUS, 1) == bytes((Status.ACKNOWLEDGE,))
    slot.unplug()
    assert slot.read_config(0, 2) == b"\xff\xff"
    assert raised == []


def test_memory_of_a_devices_own_is_the_slots_whoever_is_plugged() -> None:
    shown = SharedMedium(1 << 14)
    slot = PciSlot(make_device(DeviceType.PMEM, medium=shown))
    _attached(slot)
    assert slot.mappable(SHARED_MEMORY_BAR) == (shown.fd, 1 << 14)
    assert slot.mappable(REGISTER_BAR) is None
    slot.reset()
    for turn in (b"one", b"two"):
        device = slot.plug(make_device(DeviceType.PMEM)).device
        assert bytes(shown.live[:3]) == bytes(3)
        slot.write_config(HEADER["bar2"].offset, (0x12340000).to_bytes(4, "little"))
        slot.write_config(HEADER["command"].offset, bytes((Command.MEMORY, 0)))
        slot.write_bar(SHARED_MEMORY_BAR, 0, turn)
        assert device.device_memory is not None
        start, memory = device.device_memory
        assert (start, bytes(memory[:3]), bytes(shown.live[:3])) == (0x12340000, turn, turn)
        device.close()
    slot.close()


def test_what_is_between_a_device_and_memory_is_made_for_each() -> None:
    made: list[VirtioPci] = []
    other = Memory()

    def wrap(function: VirtioPci, _dma: Dma) -> Dma:
        made.append(function)
        return other

    slot = PciSlot(make_device(DeviceType.RNG), wrap)
    _attached(slot)
    assert made == []
    function = slot.plug(make_device(DeviceType.RNG))
    assert made == [function]
    assert function.dma is other


def test_a_slot_that_nobody_asked_for_yet_can_be_filled() -> None:
    slot = PciSlot(make_device(DeviceType.RNG))
    function = slot.plug(make_device(DeviceType.RNG))
    memory, _ = _attached(slot)
    assert function.dma is memory


def test_a_function_that_proves_itself_is_put_in_as_any_other() -> None:
    slot = PciSlot(make_device(DeviceType.BLOCK))
    memory, raised = _attached(slot)
    disk = TrustedDisk()
    slot.put(disk.behind)
    disk.device.tdi.place()
    assert slot.read_config(disk.device.mailbox_at, 2) == ExtendedId.DOE.to_bytes(2, "little")
    assert slot.read_bar(REGISTER_BAR, _STATUS, 1) == b"\0"
    memory.write(BASE, b"seen")
    assert disk.device.tdi.virtio.dma.read(BASE, 4) == b"seen"
    slot.log("heard")
    slot.unplug()
    assert slot.read_bar(REGISTER_BAR, _STATUS, 1) == b"\xff"
    assert raised == []
