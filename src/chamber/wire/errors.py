"""What foreign bytes and foreign accesses raise."""

from __future__ import annotations

__all__ = ("DmaFault", "WireError")


class WireError(ValueError):
    """Bytes from a peer broke a rule of the format.

    Attributes:
        rule: the broken rule, as a sentence without values.
        spec: where the rule stands, such as ``"vhost-user, Memory region description"``.

    """

    def __init__(self, rule: str, *, spec: str = "", detail: str = "") -> None:
        self.rule = rule
        self.spec = spec
        self.detail = detail
        text = rule if not detail else f"{rule} ({detail})"
        super().__init__(f"{text} [{spec}]" if spec else text)


class DmaFault(Exception):
    """A device touched an address that it was not given.

    Attributes:
        address: the first byte of the access, as the device named it.
        length: bytes of the access.
        access: ``"read"`` or ``"write"``.
        reason: why it was refused.

    """

    def __init__(self, address: int, length: int, access: str, reason: str) -> None:
        self.address = address
        self.length = length
        self.access = access
        self.reason = reason
        super().__init__(f"{access} of {length} bytes at {address:#x}: {reason}")
