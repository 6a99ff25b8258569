"""A guest that finds a function: what it is shown decides nothing before it was looked at."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chamber.device.catalogue import TYPES, make_device
from chamber.device.hooks import Hooks
from chamber.device.virtio_pci import REGISTER_BAR, VirtioPci
from chamber.guest.machine import GuestMachine
from chamber.guest.pci import find_function
from chamber.guest.profile import PROFILES
from chamber.guest.untrusted import ENFORCING, TRUSTING, DeviceViolation
from chamber.guest.virtio_pci import PciTransport
from chamber.lab.model_stimuli import DRIVERS, STIMULI
from chamber.platform.interrupts import InterruptController
from chamber.platform.pci_bus import MEMORY, PciBus
from chamber.wire.pci import HEADER
from chamber.wire.virtio import DeviceType
from chamber.wire.virtio_pci import CAPABILITY, COMMON, CapabilityType

if TYPE_CHECKING:
    from collections.abc import Callable


class Lies(Hooks):
    """Says something else at one place of configuration space, or in one register."""

    def __init__(self, space: dict[int, bytes] | None = None, registers: dict[int, bytes] | None = None) -> None:
        self.space = space or {}
        self.registers = registers or {}

    def config_space(self, function: VirtioPci, offset: int, data: bytes) -> bytes:
        return bytes(self.space.get(at, bytes((byte,)))[0] for at, byte in enumerate(data, offset))

    def register(self, function: VirtioPci, bar: int, offset: int, data: bytes) -> bytes:
        return self.registers.get(offset, data) if bar == REGISTER_BAR else data


def plugged(hooks: Hooks | None = None, kind: DeviceType = DeviceType.BLOCK) -> tuple[PciBus, VirtioPci]:
    bus, pci = PciBus(InterruptController()), VirtioPci(make_device(kind, hooks=hooks))
    bus.plug(3, pci)
    return bus, pci


def spread(at: int, data: bytes) -> dict[int, bytes]:
    return {at + place: bytes((byte,)) for place, byte in enumerate(data)}


@pytest.mark.parametrize("kind", TYPES)
def test_an_honest_function_is_found(kind: DeviceType) -> None:
    bus, pci = plugged(kind=kind)
    found = find_function(bus, 3, ENFORCING)
    assert found.device_type == kind
    assert found.msix is not None
    assert found.msix.vectors == len(pci.device.queues) + 1
    assert all(MEMORY.start <= s.address and s.address + s.length <= MEMORY.stop for s in found.structures.values())
    assert bool(found.shared_memory) == (pci.device.device_memory is not None)
    pci.device.close()


def test_an_empty_slot_holds_nothing_of_virtios() -> None:
    bus, _ = plugged()
    with pytest.raises(DeviceViolation, match="the function is virtio's"):
        find_function(bus, 1, ENFORCING)
    bus.unplug(3)
    with pytest.raises(DeviceViolation, match="the function is virtio's"):
        find_function(bus, 3, ENFORCING)


def _in(kind: CapabilityType, name: str, value: int) -> Callable[[VirtioPci], dict[int, bytes]]:
    field = CAPABILITY[name]
    return lambda pci: spread(pci.capabilities[kind] + field.offset, value.to_bytes(field.size, "little"))


def _head(name: str, value: int) -> Callable[[VirtioPci], dict[int, bytes]]:
    field = HEADER[name]
    return lambda _pci: spread(field.offset, value.to_bytes(field.size, "little"))


@pytest.mark.parametrize(("lie", "why"), [
    (_in(CapabilityType.COMMON_CFG, "bar", 5), "in a BAR that there is"),
    (_in(CapabilityType.COMMON_CFG, "offset", 1 << 14), "has its fields, and ends in its BAR"),
    (_in(CapabilityType.COMMON_CFG, "offset", (1 << 32) - 4), "begins in its BAR"),
    (_in(CapabilityType.COMMON_CFG, "offset", 2), "is aligned"),
    (_in(CapabilityType.COMMON_CFG, "length", 8), "has its fields"),
    (_in(CapabilityType.NOTIFY_CFG, "length", (1 << 32) - 1), "ends in its BAR"),
    (_in(CapabilityType.COMMON_CFG, "cfg_type", 0x77), "has the structures that it needs"),
    (_in(CapabilityType.DEVICE_CFG, "offset", 0), "no structure lies in another"),
    (lambda pci: spread(pci.capabilities[CapabilityType.DEVICE_CFG] + 4, b"\1\0\0\0\0\0\0\0"),
     "no structure lies in another"),
    (_in(CapabilityType.ISR_CFG, "cap_len", 4), "as long as it is"),
    (lambda pci: {(at := pci.capabilities[CapabilityType.COMMON_CFG]) + 1: bytes((at,))},
     "the list of capabilities ends"),
    (lambda pci: {pci.capabilities[CapabilityType.COMMON_CFG] + 1: b"\x10"}, "behind the header"),
    (lambda pci: spread(pci.capabilities[CapabilityType.NOTIFY_CFG] + 16, b"\xff" * 4), "the multiplier fits"),
    (lambda pci: spread(pci.capabilities[CapabilityType.NOTIFY_CFG] + 16, b"\3\0\0\0"), "an even power of two"),
    (_head("header_type", 1), "no bridge"), (_head("status", 0), "has capabilities"),
    (_head("device", 0x1001), "without a legacy interface"), (_head("bar0", 0x80000000), "a size that fits"),
    (_head("bar0", 0xFFFF5000), "power of two"), (_head("bar0", 0), "in a BAR that there is"),
])
def test_a_lie_is_refused_before_anything_is_mapped(lie: Callable[[VirtioPci], dict[int, bytes]], why: str) -> None:
    lies = Lies()
    bus, pci = plugged(lies)
    lies.space = lie(pci)
    with pytest.raises(DeviceViolation, match=why):
        find_function(bus, 3, ENFORCING)
    assert not pci.function.command, "the function may not work"


def machine_with(hooks: Hooks, profile: str = "hardened") -> tuple[GuestMachine, PciTransport]:
    machine = GuestMachine(PROFILES[profile], 1)
    bus, pci = PciBus(machine.interrupts), VirtioPci(make_device(DeviceType.BLOCK, hooks=hooks))
    pci.dma = machine.memory.host
    pci.device.schedule = machine.scheduler.call_later
    bus.plug(0, pci)
    return machine, PciTransport(machine, bus)


@pytest.mark.parametrize(("name", "value", "why"), [
    ("device_status", b"\x01", "a reset comes to its end"),
    ("queue_msix_vector", b"\xff\xff", "the device takes the vector"),
    ("config_msix_vector", b"\xff\xff", "the device takes the vector"),
    ("queue_notify_off", b"\xff\x7f", "notified within the structure"),
    ("queue_enable", b"\0\0", "the device takes the queue"),
    ("num_queues", b"\0\0", "the device has queues"),
])
def test_a_register_that_lies_is_told(name: str, value: bytes, why: str) -> None:
    machine, transport = machine_with(Lies(registers={COMMON[name].offset: value}))
    with pytest.raises(DeviceViolation, match=why):
        DRIVERS[DeviceType.BLOCK](machine, transport).probe()
    machine.close()


def test_a_guest_does_not_read_configuration_space_twice() -> None:
    class Counting(Hooks):
        reads: dict[tuple[int, int], int]

        def config_space(self, function: VirtioPci, offset: int, data: bytes) -> bytes:
            self.reads[offset, len(data)] = self.reads.get((offset, len(data)), 0) + 1
            return data

    hooks = Counting()
    hooks.reads = {}
    machine, transport = machine_with(hooks)
    driver = DRIVERS[DeviceType.BLOCK](machine, transport)
    for _ in range(2):
        driver.probe()
        STIMULI[DeviceType.BLOCK]["use"](driver, machine, lambda _action: None)
        driver.remove()
    assert not {place: count for place, count in hooks.reads.items() if count > 1}
    machine.close()


@given(st.dictionaries(st.integers(0, 255), st.binary(min_size=1, max_size=1), max_size=12), st.booleans())
@settings(max_examples=150)
def test_any_configuration_space_is_a_function_or_a_violation(space: dict[int, bytes], trusting: bool) -> None:
    bus, pci = plugged(Lies(space))
    try:
        found = find_function(bus, 3, TRUSTING if trusting else ENFORCING)
    except DeviceViolation:
        assert not trusting
        return
    if not trusting:
        assert all(MEMORY.start <= s.address and s.address + s.length <= MEMORY.stop for s in found.structures.values())
    pci.device.close()
