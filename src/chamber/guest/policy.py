"""Which devices a guest probes, which features it negotiates, and what it believes of their configuration.

A policy is the guest owner's word, not the host's: it comes with the guest's image, and is measured with it. All that
it decides about is the host's word. A device is looked at for its identity (transport, vendor, virtio id, position),
and if no rule has room for it, for nothing else.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from chamber.platform.transport import Identity
    from chamber.wire.virtio import DeviceType

__all__ = ("Admissions", "DeviceRule", "FieldRule", "Policy")


@dataclass(frozen=True, slots=True)
class FieldRule:
    """What a field of configuration space may be.

    Attributes:
        least: the smallest value, None for any.
        most: the largest, None for any.
        one_of: the only values, None for any.

    """

    least: int | None = None
    most: int | None = None
    one_of: frozenset[int] | None = None

    def allows(self, value: int) -> bool:
        """Whether a value is within the rule."""
        return ((self.least is None or value >= self.least) and (self.most is None or value <= self.most)
                and (self.one_of is None or value in self.one_of))

    def __str__(self) -> str:
        if self.one_of is not None:
            return "one of " + ", ".join(map(str, sorted(self.one_of)))
        return f"{0 if self.least is None else self.least} to {'any' if self.most is None else self.most}"


@dataclass(frozen=True, slots=True)
class DeviceRule:
    """Devices that may be probed, and how.

    Attributes:
        where: how messages name the rule.
        type: virtio id.
        transports: ``pci``, ``mmio``; empty for any.
        vendors: vendor ids; empty for any.
        positions: patterns of shell for where the device is, such as ``0000:00:04.*``; empty for anywhere.
        most: so many devices at most; None for any number.
        may: feature bits that may be negotiated, None for all that the driver takes.
        must: feature bits without which the device is refused.
        must_not: feature bits that the driver is not shown.
        config: rules for fields of configuration space.

    """

    where: str
    type: DeviceType
    transports: frozenset[str] = frozenset()
    vendors: frozenset[int] = frozenset()
    positions: tuple[str, ...] = ()
    most: int | None = None
    may: int | None = None
    must: int = 0
    must_not: int = 0
    config: Mapping[str, FieldRule] = field(default_factory=dict)

    def admits(self, identity: Identity) -> bool:
        """Whether the rule is about a device with this identity."""
        return (identity.device_type == self.type
                and (not self.transports or identity.transport in self.transports)
                and (not self.vendors or identity.vendor in self.vendors)
                and (not self.positions or any(fnmatchcase(identity.position, p) for p in self.positions)))

    def visible(self, offered: int) -> int:
        """Return the features that a driver is shown, of those that a device offers."""
        return offered & ~self.must_not & (offered if self.may is None else self.may | self.must)


@dataclass(frozen=True, slots=True)
class Policy:
    """A whole policy; the first rule with room for a device is the one for it, and without one it is not probed.

    Attributes:
        name: how messages and reports name it.
        rules: in order.
        description: what it is for.

    """

    name: str
    rules: tuple[DeviceRule, ...]
    description: str = ""


class Admissions:
    """The devices that a guest has taken under a policy.

    A position has one device: a host can't have the same one counted under two rules, nor a second one in its place.
    """

    def __init__(self, policy: Policy) -> None:
        self.policy = policy
        self._taken: dict[tuple[str, str], DeviceRule] = {}

    def admit(self, identity: Identity) -> DeviceRule | None:
        """Return the rule for a device, and count it; None if it must not be probed."""
        place = identity.transport, identity.position
        if place in self._taken:
            rule = self._taken[place]
            return rule if rule.admits(identity) else None
        for rule in self.policy.rules:
            taken = sum(other is rule for other in self._taken.values())
            if rule.admits(identity) and (rule.most is None or taken < rule.most):
                self._taken[place] = rule
                return rule
        return None
