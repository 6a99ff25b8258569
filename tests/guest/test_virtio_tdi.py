"""A guest maps a locked device by its report: what it takes, and every way in which it does not."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chamber.device.catalogue import TYPES, make_device
from chamber.device.tdi import PLACES, Tdi
from chamber.device.virtio_pci import MSIX_BAR, REGISTER_BAR, VirtioPci
from chamber.device.virtio_tdi import describe
from chamber.guest.untrusted import ENFORCING, DeviceViolation
from chamber.guest.virtio_tdi import map_by_report
from chamber.wire.tdi_report import PAGE, InterfaceReport, RangeAttribute
from chamber.wire.tdisp import LockFlag, LockInterface
from chamber.wire.virtio import DeviceType
from chamber.wire.virtio_pci import COMMON, CapabilityType
from chamber.wire.virtio_tdi import Guarantee, Location, VirtioTdiInfo
from tests.device.driver import Memory

if TYPE_CHECKING:
    from chamber.guest.pci import VirtioFunction



def _locked(kind: DeviceType, offset: int = 0) -> tuple[Tdi, InterfaceReport]:
    tdi = Tdi(VirtioPci(make_device(kind)), shared=Memory(), private=Memory(), device_info=describe)
    tdi.place()
    lock = LockInterface(LockFlag.LOCK_MSIX, 0, offset)
    assert tdi.obstacle(lock) is None
    return tdi, tdi.lock(lock)


def _map(report: InterfaceReport, mapped: dict[int, int] | None = None, reporting_offset: int = 0) -> VirtioFunction:
    function, _ = map_by_report(report, PLACES if mapped is None else mapped, ENFORCING, slot=0,
                                reporting_offset=reporting_offset)
    return function


@pytest.mark.parametrize("kind", TYPES, ids=lambda kind: kind.short)
def test_every_device_is_mapped_by_its_report(kind: DeviceType) -> None:
    tdi, report = _locked(kind)
    function, info = map_by_report(InterfaceReport.decode(report.encode()), PLACES, ENFORCING, slot=3)
    assert (function.slot, function.device_type) == (3, kind)
    tdi.run()
    common = function.structures[CapabilityType.COMMON_CFG]
    at = common.address - PLACES[REGISTER_BAR]
    queues = COMMON["num_queues"]
    assert tdi.trusted.read_bar(REGISTER_BAR, at + queues.offset, 2) == len(info.queue_sizes).to_bytes(2, "little")
    assert info.features == tdi.virtio.device.offered_features()
    assert info.config == bytes(tdi.virtio.device.config)
    assert bool(function.shared_memory) == (tdi.virtio.device.device_memory is not None)


def test_a_reporting_offset_is_taken_into_account() -> None:
    _, report = _locked(DeviceType.RNG, 0x7000_0000)
    assert _map(report, reporting_offset=0x7000_0000) == _map(_locked(DeviceType.RNG)[1])
    with pytest.raises(DeviceViolation, match="where the device answers"):
        _map(report)


def test_what_a_host_writes_into_capabilities_changes_nothing() -> None:
    tdi, report = _locked(DeviceType.RNG)
    before = _map(report)
    at = tdi.virtio.capabilities[CapabilityType.COMMON_CFG]
    for offset in range(at, at + 16, 4):
        tdi.write_config(offset, b"\xff\xff\xff\xff")
    assert describe(tdi.virtio) == report.device_specific
    assert _map(report) == before


def _changed(**changes: object) -> InterfaceReport:
    _, report = _locked(DeviceType.RNG)
    info = VirtioTdiInfo.decode(report.device_specific)
    return replace(report, device_specific=replace(info, **changes).encode())  # type: ignore[arg-type]


def _places(**changes: int) -> InterfaceReport:
    """Change the place of the common configuration, which is the first."""
    _, report = _locked(DeviceType.RNG)
    first, *others = VirtioTdiInfo.decode(report.device_specific).structures
    return _changed(structures=(replace(first, **changes), *others))


def _structures() -> tuple[Location, ...]:
    return VirtioTdiInfo.decode(_locked(DeviceType.RNG)[1].device_specific).structures


@pytest.mark.parametrize(("report", "rule"), [
    (replace(_changed(), device_specific=b""), "is 16 bytes"),
    (_changed(guarantees=Guarantee.RESET_BY_LOCK), "every guarantee"),
    (_places(range_id=1), "interrupts' registers"),
    (_places(range_id=5), "range of the TEE's memory"),
    (_places(offset=1 << 63), "ends in its range"),
    (_places(offset=4 * PAGE - 8), "ends in its range"),
    (_places(length=8), "has its fields"),
    (_places(offset=2), "aligned"),
    (_places(offset=PAGE), "in another"),
    (_changed(structures=_structures()[1:]), "that a driver needs"),
    (_changed(structures=(*_structures(), _structures()[0])), "stands in the report once"),
    (_changed(structures=tuple(replace(s, multiplier=3) for s in _structures())), "even power of two"),
], ids=["nothing", "guarantees", "interrupts' table", "no range", "far", "end", "short", "unaligned", "overlap",
        "missing", "twice", "multiplier"])
def test_a_report_that_is_not_to_be_followed_is_refused(report: InterfaceReport, rule: str) -> None:
    with pytest.raises(DeviceViolation, match=rule):
        _map(report)


@pytest.mark.parametrize(("mapped", "rule"), [
    ({}, "is mapped"), ({**PLACES, REGISTER_BAR: 0x9000_0000}, "where the device answers"),
    ({**PLACES, REGISTER_BAR: PLACES[MSIX_BAR], MSIX_BAR: PLACES[REGISTER_BAR]}, "where the device answers"),
], ids=["nowhere", "elsewhere", "exchanged"])
def test_a_mapping_that_is_not_the_reports_is_refused(mapped: dict[int, int], rule: str) -> None:
    with pytest.raises(DeviceViolation, match=rule):
        _map(_locked(DeviceType.RNG)[1], mapped)


def test_memory_that_the_host_may_reach_holds_no_structure() -> None:
    _, report = _locked(DeviceType.RNG)
    first, *others = report.ranges
    shared = replace(first, attributes=first.attributes | RangeAttribute.IS_NON_TEE_MEM)
    with pytest.raises(DeviceViolation, match="range of the TEE's memory"):
        _map(replace(report, ranges=(shared, *others)))


@given(st.binary(max_size=200))
def test_any_information_is_followed_or_refused(data: bytes) -> None:
    _, report = _LOCKED
    with pytest.raises(DeviceViolation):
        _map(replace(report, device_specific=data))


_LOCKED = _locked(DeviceType.RNG)
