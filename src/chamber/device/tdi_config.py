"""What a write to configuration space does to an interface that a guest has locked (PCIe 6.1, 11.2.6).

Configuration requests stay the host's, and need not be protected: a device can only notice what a host changes, and go
to ERROR. The completion of the write is the same either way.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from chamber.wire.pci import (
    CONVENTIONAL_SIZE,
    EXPRESS,
    HEADER,
    MSIX,
    CapabilityId,
    Command,
    ExpressControl,
    ExtendedId,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from chamber.platform.pci import PciFunction

__all__ = ("VENDOR_ANALYSED", "capability_at", "violation")

_ALWAYS: Final = tuple(HEADER[name] for name in ("bist", "rom", *(f"bar{index}" for index in range(6))))
"""Fields of the header that nobody may write."""
_CAPABILITIES: Final = frozenset((CapabilityId.ENHANCED_ALLOCATION,))
_EXTENDED: Final = frozenset((
    ExtendedId.ARI, ExtendedId.SRIOV, ExtendedId.MULTICAST, ExtendedId.PAGE_REQUEST, ExtendedId.RESIZABLE_BAR,
    ExtendedId.PASID, ExtendedId.VF_RESIZABLE_BAR, ExtendedId.IDE))
VENDOR_ANALYSED: Final = frozenset((CapabilityId.VENDOR,))
"""Capabilities of which the specification leaves it to the vendor what a write to them means."""
_CONTROL: Final = (ExpressControl.EXTENDED_TAG | ExpressControl.PHANTOM_FUNCTIONS | ExpressControl.NO_SNOOP
                   | ExpressControl.FLR)
_POWER_STATE: Final = 3
_POWER_CONTROL: Final = 4


def _capabilities(function: PciFunction) -> Iterator[tuple[int, int]]:
    """Id and offset of what the function itself put into configuration space; extended ids count from 0x10000 on."""
    config = function.config
    at = config[HEADER["capabilities"].offset]
    while at:
        yield config[at], at
        at = config[at + 1]
    at = CONVENTIONAL_SIZE
    while at and any(config[at:at + 4]):
        word = int.from_bytes(config[at:at + 4], "little")
        yield 0x10000 | word & 0xFFFF, at
        at = word >> 20


def capability_at(function: PciFunction, offset: int) -> tuple[int, int] | None:
    """Return id and place of the capability that a byte belongs to; None for the header."""
    found = None
    for kind, at in _capabilities(function):
        if at <= offset and (found is None or at > found[1]):
            found = kind, at
    return found


def violation(function: PciFunction, offset: int, data: bytes, *, msix_locked: bool) -> str | None:
    """Return how a write violates a lock, None if it does not.

    Args:
        function: with the configuration as it was before the write.
        offset: of the first byte that is written.
        data: what is written.
        msix_locked: whether the interrupts' table is part of what was locked.

    """
    end = offset + len(data)
    for field in _ALWAYS:
        if offset < field.offset + field.size and field.offset < end:
            return f"{field.name} was written"
    now, then = function.config, bytearray(function.config)
    then[offset:end] = data[:max(0, len(then) - offset)]
    before, after = (HEADER.get(config, "command") for config in (now, then))
    if before & ~after & (Command.MEMORY | Command.BUS_MASTER):
        return "memory accesses were switched off"
    owners = {capability_at(function, byte) for byte in range(offset, min(end, len(now)))}
    for kind, at in sorted(owner for owner in owners if owner is not None):
        if kind == CapabilityId.MSIX and not (offset < at + MSIX.size and at < end):
            continue  # behind the last capability there is nothing
        reason = _in_capability(now, then, kind, at, msix_locked=msix_locked)
        if reason is not None:
            return reason
    return None


def _in_capability(now: bytearray, then: bytearray, kind: int, at: int, *, msix_locked: bool) -> str | None:
    if kind == CapabilityId.MSIX and msix_locked:
        return "MSI-X was written, which is locked"
    if kind == CapabilityId.EXPRESS:
        before, after = (EXPRESS.get(config, "device_control", at) for config in (now, then))
        return "the device control register was changed" if (before ^ after) & _CONTROL else None
    if kind == CapabilityId.POWER:
        return "the function was sent to sleep" if then[at + _POWER_CONTROL] & _POWER_STATE else None
    if kind in _CAPABILITIES or kind - 0x10000 in _EXTENDED:
        return f"a capability ({kind:#x}) was written that decides who the function is, or where"
    return None
