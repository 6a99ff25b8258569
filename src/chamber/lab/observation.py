"""What a target saw while a guest was under attack."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from chamber.attacks.attack import AttackSpec
    from chamber.wire.virtio import DeviceType

__all__ = ("Evidence", "Harm", "Observation", "Scenario", "Target", "TargetError")


class Harm(enum.Enum):
    """What an oracle saw."""

    MEMORY = "memory"
    """Memory safety lost: a red zone touched, freed or unmapped memory used, an oops, a sanitizer's report."""
    LEAK = "leak"
    """A planted secret, or memory that was never meant to be shared, seen on the host's side."""
    WRONG_DATA = "wrong data"
    """The guest took data for genuine that is not what it should be."""
    DENIAL = "denial"
    """A hang, a BUG or WARN, a clean panic, a device that stays unusable with an honest host."""


@dataclass(frozen=True, slots=True)
class Evidence:
    """One thing that an oracle saw.

    Attributes:
        harm: which kind.
        signature: stable across runs: what and where, without addresses, for telling findings apart.
        text: what was seen, as it was seen.
        complaint: a kernel says so and goes on as before.

    """

    harm: Harm
    signature: str
    text: str
    complaint: bool = False


@dataclass(slots=True)
class Observation:
    """The outcome of one scenario.

    Attributes:
        strikes: what the attack did; empty for a baseline or an attack that did not get to act.
        evidence: what the oracles saw, in order.
        refusals: clean errors by which the guest turned something down; they are no harm.
        completed: the stimuli ran to their end, whether the guest was served or refused cleanly.
        served: the stimuli ended with the right data; what a baseline must reach.
        unprobed: the guest's policy kept the device out: nothing but its identity was read.
        transcript: one line per event.
        console: what the guest's kernel printed.
        seconds: wall time.
        failure: why the harness could not run the scenario, if it could not.
        reached: places of the guest's drivers that this worker had not seen reached before, where they are counted.

    """

    strikes: list[str] = field(default_factory=list)
    evidence: list[Evidence] = field(default_factory=list)
    refusals: list[str] = field(default_factory=list)
    completed: bool = False
    served: bool = False
    unprobed: bool = False
    transcript: list[str] = field(default_factory=list)
    console: str = ""
    seconds: float = 0.0
    failure: str = ""
    reached: list[tuple[str, str, int]] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Scenario:
    """One run: a device, what the guest does with it, and who attacks it.

    Attributes:
        device: device type.
        stimuli: names of stimuli, in order.
        attack: None for the honest baseline.
        profile: column of the model guest; None for targets that have none.
        seed: decides every random choice.
        ring: the kind of queue that the device offers, one of `chamber.device.catalogue.RINGS`.
        pci: whether the model guest finds the device on a PCI bus; other targets have one, or have none.
        hosted: whether a hypervisor stands between the model guest and the device.

    """

    device: DeviceType
    stimuli: tuple[str, ...] = ("use",)
    attack: AttackSpec | None = None
    profile: str | None = None
    seed: int = 1
    ring: str = "split"
    pci: bool = False
    hosted: bool = False


class TargetError(Exception):
    """A target cannot be had; the message is one line that says what to do about it."""


class Target(Protocol):
    """A kind of guest that scenarios can be run on."""

    @property
    def kind(self) -> str:
        """``model`` or ``uml``."""
        ...

    def describe(self) -> dict[str, object]:
        """What the report says about the target: kind, kernel, options."""
        ...

    def run(self, scenario: Scenario) -> Observation:
        """Run one scenario to its end; never raises for what the guest does."""
        ...

    def close(self) -> None:
        """Give everything back."""
        ...
