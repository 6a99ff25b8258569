"""Capabilities in a device's memory: found as those of configuration space; any bytes are a function or a refusal."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chamber.device.catalogue import TYPES, make_device
from chamber.device.virtio_pci import VirtioPci
from chamber.guest.pci import FunctionFinder, TableFinder, VirtioFunction
from chamber.guest.untrusted import ENFORCING, DeviceViolation
from chamber.platform.interrupts import InterruptController
from chamber.platform.pci_bus import PciBus
from chamber.wire.virtio import DeviceType
from chamber.wire.virtio_pci import RELOCATED, RELOCATED_AT, RELOCATED_MAGIC


class Bus(PciBus):
    """Has something else where the table is."""

    table: bytes | None = None

    def read(self, address: int, size: int) -> bytes:
        data = super().read(address, size)
        return data if self.table is None or not address & RELOCATED_AT else self.table.ljust(size, b"\0")[:size]


def bus(kind: DeviceType, *, relocated: bool) -> Bus:
    made = Bus(InterruptController())
    made.plug(0, VirtioPci(make_device(kind), relocated=relocated))
    return made


@pytest.mark.parametrize("kind", TYPES, ids=lambda kind: kind.short)
def test_a_table_leads_where_configuration_space_does(kind: DeviceType) -> None:
    usual = FunctionFinder(bus(kind, relocated=False), 0, ENFORCING).look()
    finder = TableFinder(bus(kind, relocated=True), 0, ENFORCING)
    finder.place()
    finder.enable()
    found = finder.find()
    assert found.device_type == usual.device_type
    base = finder.bars[0].address
    assert {name: (place.address - base, place.length) for name, place in found.structures.items()} == {
        name: (place.address - usual.bars[0].address, place.length) for name, place in usual.structures.items()}
    assert found.notify_multiplier == usual.notify_multiplier
    assert set(found.shared_memory) == set(usual.shared_memory)
    assert found.msix is None
    msix = finder.find_msix()
    assert msix is not None
    assert usual.msix is not None
    assert msix.vectors == usual.msix.vectors


def test_one_kind_of_function_is_none_of_the_other() -> None:
    with pytest.raises(DeviceViolation):
        FunctionFinder(bus(DeviceType.RNG, relocated=True), 0, ENFORCING).look()
    with pytest.raises(DeviceViolation):
        TableFinder(bus(DeviceType.RNG, relocated=False), 0, ENFORCING).place()


@given(st.binary(max_size=200), st.booleans())
@settings(deadline=None)
def test_any_bytes_are_a_table_or_a_refusal(data: bytes, headed: bool) -> None:
    host = bus(DeviceType.RNG, relocated=True)
    finder = TableFinder(host, 0, ENFORCING)
    finder.place()
    finder.enable()
    host.table = bytes(RELOCATED.pack(magic=RELOCATED_MAGIC, length=len(data))) + data if headed else data
    try:
        found = finder.find()
    except DeviceViolation:
        return
    assert isinstance(found, VirtioFunction)
