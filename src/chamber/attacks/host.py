"""What attacks of a hypervisor have in common: it stands between a guest and a device that is honest."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from chamber.attacks.attack import MODEL, TRUSTED, Aim, Attack, AttackSpec, Surface
from chamber.host.hooks import HostHooks
from chamber.wire.virtio import DeviceType

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ("HostAttack", "flipped", "host_attack")

_USED: Final = ("identify", "use")


class HostAttack(Attack, HostHooks):
    """One thing that a hypervisor does.

    Where a guest trusts no device nothing is locked, sealed or encrypted: then the host does by the open way what it
    would gain by breaking a seal. Whether it gets anything by it is measured as ever.
    """

    @property
    def is_open(self) -> bool:
        """Whether the guest trusts no device."""
        return self.host.device is None


def flipped(data: bytes, at: int = 0) -> bytes:
    """Return other bytes: all bits of one of them turned."""
    at %= max(1, len(data))
    return data[:at] + bytes((data[at] ^ 0xFF,)) + data[at + 1:] if data else data


def host_attack(name: str, surface: Surface, aim: Aim, spec: str, summary: str,
                make: Callable[[], HostAttack]) -> AttackSpec:
    """Make an entry of the catalogue, in front of a disk."""
    return AttackSpec(f"blk-host-{name}", DeviceType.BLOCK, surface, aim, spec, summary, make, stimuli=_USED,
                      targets=MODEL, hosted=True, profiles=TRUSTED)
