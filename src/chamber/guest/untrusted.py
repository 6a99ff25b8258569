"""Values that the host had a hand in, and the only ways to make plain values of them.

All that a driver reads from shared memory, configuration space or a device's reply is `Untrusted`. It can't be computed
with, compared, tested, indexed by, printed or hashed; a method that names the check returns a plain value, or reports a
`DeviceViolation`. It is the ``__user`` that virtio never had, at run time and for the type checker.

Whether a failed check stops the driver is a layer that can be left out: with `TRUSTING` checks every method returns
what the host said, as a driver that trusts its device would go on. The driver's source is the same.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, NoReturn, TypeVar

if TYPE_CHECKING:
    from collections.abc import Collection

__all__ = ("ENFORCING", "TRUSTING", "Checks", "DeviceViolation", "Untrusted")

T = TypeVar("T")


class DeviceViolation(Exception):
    """The device broke a rule that the driver checks.

    Attributes:
        rule: the broken rule, without values.
        spec: its section of virtio 1.3.
        detail: the values.

    """

    def __init__(self, rule: str, spec: str, detail: str = "") -> None:
        self.rule = rule
        self.spec = spec
        self.detail = detail
        super().__init__(f"{rule}{f' ({detail})' if detail else ''} [virtio 1.3, {spec}]")


@dataclass(frozen=True, slots=True)
class Checks:
    """Whether checks are made.

    Attributes:
        enforcing: a failed check raises; otherwise it is as if nobody had looked.

    """

    enforcing: bool

    def require(self, holds: bool, rule: str, spec: str, detail: str = "") -> None:
        """Check a rule that is not about a single value."""
        if self.enforcing and not holds:
            raise DeviceViolation(rule, spec, detail)

    def number(self, value: int) -> Untrusted[int]:
        """Take in a number."""
        return Untrusted(value, self)

    def content(self, value: bytes) -> Untrusted[bytes]:
        """Take in bytes."""
        return Untrusted(value, self)


ENFORCING = Checks(enforcing=True)
TRUSTING = Checks(enforcing=False)


def _no(self: object, *_: object) -> NoReturn:
    raise TypeError(f"{type(self).__name__} values must be checked before use: call at_most, index, one_of, ...")


class Untrusted(Generic[T]):
    """A value from the host."""

    __slots__ = ("_checks", "_value")

    def __init__(self, value: T, checks: Checks) -> None:
        self._value = value
        self._checks = checks

    def __repr__(self) -> str:
        return "<untrusted>"

    def _failed(self, rule: str, spec: str, expected: str) -> bool:
        if self._checks.enforcing:
            raise DeviceViolation(rule, spec, f"{self._value!r}, not {expected}")
        return False

    def at_most(self: Untrusted[int], limit: int, rule: str, spec: str) -> int:
        """Return the number if it is from 0 to `limit`."""
        value = self._value
        _ = 0 <= value <= limit or self._failed(rule, spec, f"at most {limit}")
        return value

    def between(self: Untrusted[int], low: int, high: int, rule: str, spec: str) -> int:
        """Return the number if it is from `low` to `high`."""
        value = self._value
        _ = low <= value <= high or self._failed(rule, spec, f"{low} to {high}")
        return value

    def index(self: Untrusted[int], length: int, rule: str, spec: str) -> int:
        """Return the number if it is an index below `length`, clamped under speculation as array_index_nospec does."""
        value = self._value
        _ = 0 <= value < length or self._failed(rule, spec, f"below {length}")
        # Python does not speculate; the mask stands where a compiled driver needs it.
        return value & -(0 <= value < length) if self._checks.enforcing else value

    def one_of(self, values: Collection[T], rule: str, spec: str) -> T:
        """Return the value if it is one of those listed."""
        value = self._value
        _ = value in values or self._failed(rule, spec, "one of those allowed")
        return value

    def flags(self: Untrusted[int], allowed: int, rule: str, spec: str) -> int:
        """Return the number if no bit outside of `allowed` is set."""
        value = self._value
        # Of an enumeration of flags, ~ gives the other flags that it knows, and no bit besides.
        _ = not value & ~int(allowed) or self._failed(rule, spec, f"within {allowed:#x}")
        return value

    def equals(self, expected: T, rule: str, spec: str) -> T:
        """Return the value if it is the one expected."""
        value = self._value
        _ = value == expected or self._failed(rule, spec, repr(expected))
        return value

    def minus(self: Untrusted[int], amount: int, limit: int, rule: str, spec: str) -> int:
        """Return the number less `amount`, if it is from `amount` to `limit`; unchecked, it wraps as a u32 does."""
        value = self._value
        _ = amount <= value <= limit or self._failed(rule, spec, f"{amount} to {limit}")
        return (value - amount) & 0xFFFFFFFF

    def masked(self: Untrusted[int], mask: int) -> int:
        """Return the bits of `mask`: any number will do, and the rest of it does not matter."""
        return self._value & mask

    def opaque(self, reason: str) -> T:
        """Return the value as it is, because `reason`: nothing depends on it but what its user makes of it."""
        _ = reason
        return self._value

    if not TYPE_CHECKING:
        # Hidden from the type checker: an operator that it could see, it would allow.
        __int__ = __index__ = __float__ = __bytes__ = __len__ = __iter__ = __getitem__ = __contains__ = _no
        __add__ = __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = __floordiv__ = __rfloordiv__ = _no
        __truediv__ = __rtruediv__ = __mod__ = __rmod__ = __invert__ = __neg__ = _no
        __and__ = __rand__ = __or__ = __ror__ = __xor__ = __rxor__ = _no
        __lshift__ = __rlshift__ = __rshift__ = __rrshift__ = __lt__ = __le__ = __gt__ = __ge__ = _no

    # Every object has these for the type checker: one that does not return makes what follows unreachable.
    __bool__ = _no
    __hash__ = _no
    __str__ = _no
    __format__ = _no

    def __eq__(self, other: object) -> NoReturn:
        _no(self)

    def __ne__(self, other: object) -> NoReturn:
        _no(self)
