"""Sets of protections: the columns of the model's matrix."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Final

__all__ = ("PROFILES", "UNTRUSTED", "Profile", "Trust")


class Trust(enum.Flag):
    """How a guest and a device that can prove itself deal with each other; nothing for a device that nobody trusts."""

    NONE = 0
    ATTESTED = enum.auto()
    """The device has proven itself by SPDM, TDISP has it locked, and it reaches the guest's private memory."""
    REPORTED = enum.auto()
    """The signed report says where registers are, not configuration space."""
    CLOSED = enum.auto()
    """The lock closes the device's other doors: the window in configuration space, and its owner's commands."""
    RELOCATED = enum.auto()
    """What configuration space says lies at a known place of the device's memory, under device ids of its own."""
    EMULATED = enum.auto()
    """The host plays the device's control registers (vDPA); data alone is between the guest and the device."""


@dataclass(frozen=True, slots=True)
class Profile:
    """Which layers a guest has. The drivers' source is the same in all of them.

    Attributes:
        name: the column.
        private: pages are private unless shared, and DMA goes through the bounce pool.
        checked: values from the host are checked (`chamber.guest.untrusted`).
        shadowed: addresses, lengths, chains and free lists are kept in private memory; without it they are read back
            from the shared descriptor table, as Linux did before 5.14.
        ordered: nothing the host sends is acted on before the driver is ready or after it is gone.
        filtered: only the features on the driver's list are accepted, and only devices that the guest expects.
        trust: how it takes devices that it trusts.

    """

    name: str
    private: bool
    checked: bool
    shadowed: bool
    ordered: bool
    filtered: bool
    trust: Trust = Trust.NONE

    @property
    def attested(self) -> bool:
        """Whether devices prove themselves, and reach private memory then."""
        return Trust.ATTESTED in self.trust

    @property
    def bounced(self) -> bool:
        """Whether all that a device reaches is in the bounce pool."""
        return self.private and not self.attested


def _trusting(name: str, trust: Trust) -> Profile:
    """Return one whose drivers are as hardened as the others, and which trusts its devices besides."""
    return Profile(name, private=True, checked=True, shadowed=True, ordered=True, filtered=True, trust=trust)


PROFILES: Final = {
    profile.name: profile for profile in (
        Profile("bare", private=False, checked=False, shadowed=False, ordered=False, filtered=False),
        Profile("bounced", private=True, checked=False, shadowed=False, ordered=False, filtered=False),
        Profile("hardened", private=True, checked=True, shadowed=True, ordered=True, filtered=True),
        _trusting("tdisp", Trust.ATTESTED),
        _trusting("tdisp-measured", Trust.ATTESTED | Trust.REPORTED),
        _trusting("tdisp-locked", Trust.ATTESTED | Trust.CLOSED),
        _trusting("tdisp-relocated", Trust.ATTESTED | Trust.CLOSED | Trust.RELOCATED),
        _trusting("tdisp-virtio", Trust.ATTESTED | Trust.REPORTED | Trust.CLOSED),
        _trusting("vdpa", Trust.EMULATED),
        _trusting("vdpa-tdisp", Trust.ATTESTED | Trust.CLOSED | Trust.EMULATED),
    )
}
UNTRUSTED: Final = tuple(name for name, profile in PROFILES.items() if not profile.trust)
"""Names of those that trust no device."""
