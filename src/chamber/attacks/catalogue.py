"""All attacks, by name."""

from __future__ import annotations

import difflib
from functools import cache
from typing import TYPE_CHECKING, Final

from chamber.attacks.admin import admin_attacks
from chamber.attacks.balloon import balloon_attacks
from chamber.attacks.blk import blk_attacks
from chamber.attacks.config import config_attacks
from chamber.attacks.console import console_attacks
from chamber.attacks.crypto import crypto_attacks
from chamber.attacks.features import feature_attacks
from chamber.attacks.frames import frame_attacks
from chamber.attacks.fs import fs_attacks
from chamber.attacks.host_device import host_device_attacks
from chamber.attacks.host_doors import host_door_attacks
from chamber.attacks.host_link import host_link_attacks
from chamber.attacks.host_locked import host_locked_attacks
from chamber.attacks.host_session import host_session_attacks
from chamber.attacks.host_space import host_space_attacks
from chamber.attacks.input import input_attacks
from chamber.attacks.lifecycle import lifecycle_attacks
from chamber.attacks.net import net_attacks
from chamber.attacks.notification import notification_attacks
from chamber.attacks.p9 import p9_attacks
from chamber.attacks.packed import packed_attacks
from chamber.attacks.pci import pci_attacks
from chamber.attacks.pci_registers import pci_register_attacks
from chamber.attacks.pci_removal import pci_removal_attacks
from chamber.attacks.pmem import pmem_attacks
from chamber.attacks.ring import ring_attacks
from chamber.attacks.rng import rng_attacks
from chamber.attacks.scsi import scsi_attacks
from chamber.attacks.snd import snd_attacks
from chamber.attacks.vsock import vsock_attacks

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from chamber.attacks.attack import AttackSpec

__all__ = ("UnknownAttackError", "catalogue", "find")

_SOURCES: Final[tuple[Callable[[], Iterator[AttackSpec]], ...]] = (
    admin_attacks,
    balloon_attacks,
    blk_attacks,
    config_attacks,
    console_attacks,
    crypto_attacks,
    feature_attacks,
    frame_attacks,
    fs_attacks,
    host_device_attacks,
    host_door_attacks,
    host_link_attacks,
    host_locked_attacks,
    host_session_attacks,
    host_space_attacks,
    input_attacks,
    lifecycle_attacks,
    net_attacks,
    notification_attacks,
    p9_attacks,
    packed_attacks,
    pci_attacks,
    pci_register_attacks,
    pci_removal_attacks,
    pmem_attacks,
    ring_attacks,
    rng_attacks,
    scsi_attacks,
    snd_attacks,
    vsock_attacks,
)


class UnknownAttackError(KeyError):
    """No attack has this name.

    Attributes:
        name: what was asked for.
        suggestions: names that look like it, at most three.

    """

    def __init__(self, name: str, suggestions: tuple[str, ...]) -> None:
        self.name = name
        self.suggestions = suggestions
        hint = f"; did you mean {', '.join(suggestions)}?" if suggestions else "; `chamber attacks` lists them all"
        super().__init__(f"there is no attack {name!r}{hint}")

    def __str__(self) -> str:
        return str(self.args[0])


@cache
def catalogue() -> tuple[AttackSpec, ...]:
    """All attacks, by device, then surface, then name."""
    specs = [spec for source in _SOURCES for spec in source()]
    return tuple(sorted(specs, key=lambda spec: (spec.device.short, spec.surface.value, spec.name)))


@cache
def _by_name() -> dict[str, AttackSpec]:
    return {spec.name: spec for spec in catalogue()}


def find(name: str) -> AttackSpec:
    """Return one attack.

    Raises:
        UnknownAttackError: there is none of that name.

    """
    try:
        return _by_name()[name]
    except KeyError:
        raise UnknownAttackError(name, tuple(difflib.get_close_matches(name, _by_name(), 3))) from None
