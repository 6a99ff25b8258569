"""What a guest maps of a locked virtio device: what its signed report says, and nothing that its host showed.

Configuration space stays the host's while an interface is locked (PCIe 6.1, 11.2.6): capabilities that lead a driver to
its registers are read through whoever traps the access. The report came through SPDM from the device itself. So every
structure is found by the report, in pages that the report calls the interface's, at addresses that the guest compares
with where the host has mapped them.

The report is believed as far as the device is: a verifier has looked at who it is. It is checked all the same for what
would have a driver reach beyond what was mapped.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from chamber.guest.pci import ALIGNED, LEAST, NEEDED, Structure, VirtioFunction, is_multiplier, overlap
from chamber.guest.untrusted import DeviceViolation
from chamber.wire.errors import WireError
from chamber.wire.tdi_report import PAGE, RangeAttribute
from chamber.wire.virtio_pci import CapabilityType
from chamber.wire.virtio_tdi import Guarantee, VirtioTdiInfo

if TYPE_CHECKING:
    from collections.abc import Mapping

    from chamber.guest.untrusted import Checks
    from chamber.wire.tdi_report import InterfaceReport, MmioRange
    from chamber.wire.virtio_tdi import Location

__all__ = ("REQUIRED", "map_by_report", "map_ranges")

REQUIRED: Final = (Guarantee.RESET_BY_LOCK | Guarantee.WINDOW_INERT | Guarantee.NO_LEGACY | Guarantee.OWNER_REFUSED)
"""Without these a host reaches the device past the lock, or finds it as a host before has left it."""
_SPEC: Final = "VTDI 1.0, 5"
_ADDRESS: Final = (1 << 64) - 1


def map_by_report(report: InterfaceReport, mapped: Mapping[int, int], checks: Checks, *, slot: int,
                  reporting_offset: int = 0, required: Guarantee = REQUIRED) -> tuple[VirtioFunction, VirtioTdiInfo]:
    """Find a device's structures by its report.

    Args:
        report: of the locked interface, out of the session with the device.
        mapped: where the host says that it has mapped each BAR into the guest's private memory.
        checks: of the report.
        slot: of the function on its bus.
        reporting_offset: as the interface was locked with.
        required: guarantees that the guest does not do without.

    Returns:
        What a driver is bound to, and what the device says besides.

    Raises:
        DeviceViolation: the report is not to be followed, or the mapping is another one.

    """
    try:
        info = VirtioTdiInfo.decode(report.device_specific)
    except WireError as error:
        raise DeviceViolation(error.rule, error.spec, error.detail) from error
    missing = required & ~info.guarantees
    checks.require(not missing, "the device gives every guarantee that is required", _SPEC,
                   ", ".join(guarantee.name or "" for guarantee in Guarantee if guarantee & missing))
    ranges = map_ranges(report, mapped, checks, reporting_offset)
    structures: dict[CapabilityType, Structure] = {}
    shared: dict[int, Structure] = {}
    multiplier = 0
    for location in info.structures:
        place = _structure(location, ranges, checks)
        if location.cfg_type == CapabilityType.SHARED_MEMORY_CFG:
            checks.require(location.id not in shared, "a region of shared memory stands in the report once", _SPEC)
            shared[location.id] = place
        elif location.cfg_type in set(LEAST):
            kind = CapabilityType(location.cfg_type)
            checks.require(kind not in structures, "a structure stands in the report once", _SPEC, kind.name)
            checks.require(place.length >= LEAST[kind] and not location.offset % ALIGNED[kind],
                           "a structure has its fields, aligned", _SPEC, kind.name)
            structures[kind] = place
            if kind is CapabilityType.NOTIFY_CFG:
                multiplier = _multiplier(location, checks)
    checks.require(all(kind in structures for kind in NEEDED), "the structures that a driver needs are there", _SPEC)
    taken = [*structures.values(), *shared.values()]
    checks.require(not overlap(taken), "no structure lies in another", _SPEC)
    # The interrupts' table is no structure of virtio's: a guest that has it locked finds it in the report, too.
    return VirtioFunction(slot, info.device_type, structures, multiplier, shared, None), info


def map_ranges(report: InterfaceReport, mapped: Mapping[int, int], checks: Checks,
               reporting_offset: int) -> dict[int, tuple[MmioRange, Structure]]:
    """Return where the ranges of the TEE's memory are, each as the guest has it mapped, by their numbers.

    Raises:
        DeviceViolation: one is not mapped, or elsewhere.

    """
    found: dict[int, tuple[MmioRange, Structure]] = {}
    last = -1
    for span in report.ranges:
        checks.require(span.range_id > last, "ranges stand in the order of their BARs", "PCIe 6.1, 11.3.11")
        last = span.range_id
        if span.attributes & RangeAttribute.IS_NON_TEE_MEM:
            continue  # the host's: no structure may lie in it
        address = mapped.get(span.range_id)
        checks.require(address is not None, "every range of the interface is mapped", "PCIe 6.1, 11.5.2",
                       f"BAR {span.range_id}")
        if address is None:
            continue
        # A host that maps another device's pages, or these in another order, is caught here.
        checks.require((address + reporting_offset) & _ADDRESS == span.first_page * PAGE & _ADDRESS,
                       "a range is mapped where the device answers", "PCIe 6.1, 11.5.2", f"BAR {span.range_id}")
        found[span.range_id] = span, Structure(address, span.pages * PAGE)
    return found


def _structure(location: Location, ranges: Mapping[int, tuple[MmioRange, Structure]], checks: Checks) -> Structure:
    entry = ranges.get(location.range_id)
    checks.require(entry is not None, "a structure lies in a range of the TEE's memory", _SPEC,
                   f"BAR {location.range_id}")
    if entry is None:
        return Structure(0, 0)
    span, memory = entry
    checks.require(not span.attributes & (RangeAttribute.MSIX_TABLE | RangeAttribute.MSIX_PBA),
                   "no structure lies among interrupts' registers", _SPEC, f"BAR {location.range_id}")
    checks.require(location.offset + location.length <= memory.length, "a structure ends in its range", _SPEC,
                   f"{location.offset:#x} and {location.length:#x} of {memory.length:#x} bytes")
    return Structure(memory.address + location.offset, location.length)


def _multiplier(location: Location, checks: Checks) -> int:
    value = location.multiplier
    checks.require(value <= 1 << 16 and is_multiplier(value),
                   "the multiplier is an even power of two, or 0", "4.1.4.4.1")
    return value
