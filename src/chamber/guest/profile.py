"""Sets of protections: the columns of the model's matrix."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

__all__ = ("PROFILES", "Profile")


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

    """

    name: str
    private: bool
    checked: bool
    shadowed: bool
    ordered: bool
    filtered: bool


PROFILES: Final = {
    profile.name: profile for profile in (
        Profile("bare", private=False, checked=False, shadowed=False, ordered=False, filtered=False),
        Profile("bounced", private=True, checked=False, shadowed=False, ordered=False, filtered=False),
        Profile("hardened", private=True, checked=True, shadowed=True, ordered=True, filtered=True),
    )
}
