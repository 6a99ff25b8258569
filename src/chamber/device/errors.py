"""What a device raises when its driver breaks a rule."""

from __future__ import annotations

__all__ = ("DriverError",)


class DriverError(Exception):
    """The driver broke a rule that the device relies on; the queue is dead until it is set up again.

    Attributes:
        rule: the broken rule, without values.
        spec: the section of virtio 1.3.

    """

    def __init__(self, rule: str, *, spec: str, detail: str = "") -> None:
        self.rule = rule
        self.spec = spec
        self.detail = detail
        super().__init__(f"{rule}{f' ({detail})' if detail else ''} [virtio 1.3, {spec}]")
