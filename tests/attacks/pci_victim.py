"""A guest that looks at all that a PCI function shows, twice, and uses the device in it as the model does."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from chamber.device.catalogue import make_device
from chamber.device.virtio_pci import REGISTER_BAR, VirtioPci
from chamber.guest.machine import GuestMachine
from chamber.guest.profile import PROFILES
from chamber.guest.virtio_pci import PciTransport
from chamber.lab.model_stimuli import DRIVERS, STIMULI
from chamber.platform.heap import MemoryViolation
from chamber.platform.pci_bus import PciBus
from chamber.wire.pci import CONFIG_SIZE, HEADER, Command
from chamber.wire.virtio_pci import COMMON

if TYPE_CHECKING:
    from chamber.attacks.attack import Attack
    from chamber.wire.virtio import DeviceType


def use_function(device_type: DeviceType, attack: Attack, *, reset: bool) -> VirtioPci:
    """Look at a function whose device is attacked, use the device, and give it back."""
    machine = GuestMachine(PROFILES["bare"], 1)
    device = make_device(device_type, hooks=attack)
    device.schedule = machine.scheduler.call_later
    function = VirtioPci(device)
    function.dma = machine.memory.host
    bus = PciBus(machine.interrupts)
    bus.plug(0, function)
    driver = DRIVERS[device_type](machine, PciTransport(machine, bus))
    with contextlib.suppress(Exception):  # a guest that believes everything may end in any way
        for _ in range(3):
            driver.probe()
            STIMULI[device_type]["use"](driver, machine, device.host_action)
            if reset:
                for index in list(driver.queues):
                    driver.reset_queue(index)
            driver.remove()
    for _ in range(2):
        for offset in range(0, CONFIG_SIZE, 4):
            function.read_config(offset, 4)
        function.write_config(HEADER["command"].offset, bytes((Command.MEMORY | Command.BUS_MASTER, 0)))
        for field in COMMON:
            function.read_bar(REGISTER_BAR, field.offset, field.size)
    with contextlib.suppress(MemoryViolation):  # of a driver that is half there
        machine.settle(10.0)
    device.reset()
    device.close()
    machine.close()
    return function
