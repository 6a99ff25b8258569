"""A transport under a policy: the driver behind it sees what the guest's owner lets it see, and nothing else."""

from __future__ import annotations

from typing import TYPE_CHECKING

from chamber.guest.driver import Refused
from chamber.guest.untrusted import DeviceViolation

if TYPE_CHECKING:
    from chamber.guest.policy import Admissions, DeviceRule
    from chamber.platform.transport import Identity, Transport
    from chamber.wire.layout import Layout

__all__ = ("FilteredTransport", "NotAdmitted", "PolicyViolation", "admit")


class PolicyViolation(DeviceViolation):
    """The device is not as a rule of the policy has it."""

    def __str__(self) -> str:
        return f"{self.rule} ({self.detail})"


class NotAdmitted(Refused):
    """No rule of the policy has room for the device; nothing was read of it but its identity."""


def admit(admissions: Admissions, transport: Transport, layout: Layout | None) -> FilteredTransport:
    """Look who a device is, and return the way to it that the policy leaves.

    Args:
        admissions: the policy, and what it has admitted so far.
        transport: the way to the device; only `identity` is called.
        layout: configuration space of the type that the guest's driver is for.

    Raises:
        NotAdmitted: the device must not be probed.

    """
    identity = transport.identity()
    rule = admissions.admit(identity)
    if rule is None:
        raise NotAdmitted(f"policy {admissions.policy.name} admits no such device: {identity}")
    return FilteredTransport(transport, identity, rule, layout)


class FilteredTransport:
    """Implements `chamber.platform.transport.Transport` for one admitted device.

    Args:
        inner: the way to the device.
        identity: what was admitted.
        rule: why.
        layout: fields of its configuration space.

    """

    def __init__(self, inner: Transport, identity: Identity, rule: DeviceRule, layout: Layout | None) -> None:
        self._inner = inner
        self._identity = identity
        self._rule = rule
        self._fields = {} if layout is None else {name: layout[name] for name in rule.config}

    def _violated(self, what: str, detail: str) -> PolicyViolation:
        return PolicyViolation(f"{self._rule.where}: {what}", "policy", detail)

    def identity(self) -> Identity:
        """Who the device was when it was admitted; nobody asks it again."""
        return self._identity

    def device_type(self) -> int:
        """Virtio id; one that is another now than when it was admitted is a lie."""
        found = self._inner.device_type()
        if found != self._identity.device_type:
            raise self._violated("a device stays what it was admitted as",
                                 f"{found}, admitted as {self._identity.device_type}")
        return found

    def read_features(self) -> int:
        """Features of those offered that may be negotiated."""
        offered = self._inner.read_features()
        missing = self._rule.must & ~offered
        if missing:
            raise self._violated("features that must be are offered", f"{missing:#x} is not")
        return self._rule.visible(offered)

    def write_features(self, features: int) -> None:
        """Accept features, all of those that must be among them."""
        missing = self._rule.must & ~features
        if missing:
            raise Refused(f"{self._rule.where}: the driver does not take features that must be ({missing:#x})")
        self._inner.write_features(self._rule.visible(features))

    def read_config(self, offset: int, size: int) -> bytes:
        """Read configuration space; a field with a rule is read whole, and is within its rule."""
        data = self._inner.read_config(offset, size)
        for name, field in self._fields.items():
            at = field.offset - offset
            if at >= size or at + field.size <= 0:
                continue
            if at < 0 or at + field.size > size:
                raise self._violated(f"config.{name} is read whole", f"{size} bytes at {offset}")
            value = int.from_bytes(data[at:at + field.size], "little")
            if not self._rule.config[name].allows(value):
                raise self._violated(f"config.{name} is {self._rule.config[name]}", str(value))
        return data

    # What the policy says nothing about.

    def write_config(self, offset: int, data: bytes) -> None:
        """Change configuration space."""
        self._inner.write_config(offset, data)

    def read_status(self) -> int:
        """Device status field."""
        return self._inner.read_status()

    def write_status(self, status: int) -> None:
        """Device status field."""
        self._inner.write_status(status)

    def read_generation(self) -> int:
        """Configuration generation."""
        return self._inner.read_generation()

    def admin_queue(self) -> int | None:
        """Number of the administration queue; None where there is none."""
        return self._inner.admin_queue()

    def queue_size_max(self, index: int) -> int:
        """Largest size of a queue."""
        return self._inner.queue_size_max(index)

    def setup_queue(self, index: int, size: int, desc: int, driver: int, device: int) -> None:
        """Hand a queue over."""
        self._inner.setup_queue(index, size, desc, driver, device)

    def shared_memory(self, number: int) -> tuple[int, int] | None:
        """Where a shared memory region is."""
        return self._inner.shared_memory(number)

    def reset_queue(self, index: int) -> None:
        """Take a queue back."""
        self._inner.reset_queue(index)

    def notify(self, index: int, data: int | None = None) -> None:
        """Tell the device that a queue has something."""
        self._inner.notify(index, data)
