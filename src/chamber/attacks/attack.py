"""What an attack is, and how it says that it acted."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from chamber.device.hooks import Hooks

if TYPE_CHECKING:
    from collections.abc import Callable

    from chamber.wire.virtio import DeviceType

__all__ = ("EVERYWHERE", "LINUX", "MODEL", "PCI", "PCI_LINUX", "TRUSTED", "UNTRUSTED", "Aim", "Attack", "AttackSpec",
           "Surface")

MODEL: Final = frozenset({"model"})
"""Kinds of target on which an attack can act: the model alone,"""
PCI_LINUX: Final = frozenset({"uml-pci", "qemu"})
"""those whose guest is Linux and finds its devices on a PCI bus,"""
PCI: Final = MODEL | PCI_LINUX
"""those whose guest finds its devices there, or can,"""
LINUX: Final = frozenset({"uml"}) | PCI_LINUX
"""those whose guest is Linux,"""
EVERYWHERE: Final = MODEL | LINUX
"""all of them."""
UNTRUSTED: Final = ("bare", "bounced", "hardened")
"""Profiles of the model guest that trust no device,"""
TRUSTED: Final = ("hardened", "tdisp", "tdisp-measured", "tdisp-locked", "tdisp-relocated", "tdisp-virtio", "vdpa",
                  "vdpa-tdisp")
"""and those to compare where the device is trusted: the best of the others, and the ways to trust one."""


class Surface(enum.Enum):
    """Where an attack acts."""

    DISCOVERY = "discovery"
    FEATURES = "features"
    CONFIG = "config"
    RING = "ring"
    LENGTH = "length"
    PAYLOAD = "payload"
    NOTIFICATION = "notification"
    LIFECYCLE = "lifecycle"
    DMA = "dma"
    CONTENT = "content"
    TDISP = "tdisp"
    REPORT = "report"
    LINK = "link"


class Aim(enum.Enum):
    """What an attack is after. What it achieves is measured, never read off here."""

    MEMORY = "memory safety"
    LEAK = "leak"
    DECEPTION = "deception"
    DENIAL = "denial of service"


class Attack(Hooks):
    """A malicious device or host: overrides what it interferes with.

    An attack knows the device it sits in and the bytes it sees. It does not know its victim, and not its verdict: it
    says what it did by `strike`, and oracles elsewhere tell what came of it. One instance serves one run.

    Over vhost-user to a real guest an attack may write only to memory that the driver lends to the device at that time,
    and to the rings while they are started: anything else would be a hole in the harness, not in the guest.

    Attributes:
        strikes: what was done, in order, at most `LIMIT` entries; empty means that the attack did not get to act.
        captured: bytes of the guest that the attack got hold of, at most `CAPTURE` of them, for oracles that know what
            must not be among them.

    """

    LIMIT = 200
    CAPTURE = 1 << 18

    def __init__(self) -> None:
        self.strikes: list[str] = []
        self.captured = bytearray()

    def strike(self, what: str) -> None:
        """Record one hostile act."""
        if len(self.strikes) < self.LIMIT:
            self.strikes.append(what)
        self.device.log(f"ATTACK {what}")

    def capture(self, data: bytes) -> None:
        """Keep bytes of the guest."""
        self.captured += data[:self.CAPTURE - len(self.captured)]


@dataclass(frozen=True, slots=True)
class AttackSpec:
    """One entry of the catalogue.

    Attributes:
        name: unique; starts with the device's short name.
        device: the device type it is mounted in.
        surface: where it acts.
        aim: what it is after.
        spec: the clause that it breaks, such as ``"virtio 1.3, 2.7.8.2"``.
        summary: one sentence: what the device does.
        make: builds a fresh attack.
        stimuli: what the guest does meanwhile, by name (`chamber.lab.stimuli`).
        targets: kinds of target on which it can act at all.
        known: the public bug of this class that it would have found, if there is one.
        ring: the kind of queue that the device offers, one of `chamber.device.catalogue.RINGS`.
        pci: whether it acts on a PCI bus alone.
        hosted: whether it is one of a hypervisor between a guest and a device that is honest.
        profiles: sets of protections of the model guest that it is for.

    """

    name: str
    device: DeviceType
    surface: Surface
    aim: Aim
    spec: str
    summary: str
    make: Callable[[], Attack] = field(repr=False, compare=False)
    stimuli: tuple[str, ...] = ("use",)
    targets: frozenset[str] = EVERYWHERE
    known: str = ""
    ring: str = "split"
    pci: bool = False
    hosted: bool = False
    profiles: tuple[str, ...] = UNTRUSTED
