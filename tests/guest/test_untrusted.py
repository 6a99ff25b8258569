"""Values from the host: nothing can be done with them before a check that has a name."""

from __future__ import annotations

import operator
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chamber.guest.untrusted import ENFORCING, TRUSTING, DeviceViolation, Untrusted
from chamber.wire.vsock import ShutdownFlag

if TYPE_CHECKING:
    from collections.abc import Callable

    from chamber.guest.untrusted import Checks

RULE, SPEC = "a rule", "2.7"
NUMBERS = st.integers(-(1 << 65), 1 << 65)

MISUSES: dict[str, Callable[[Any], object]] = {
    "bool": bool, "int": int, "float": float, "len": len, "iter": iter, "hash": hash, "str": str,
    "format": lambda value: f"{value}",
    "repr in a format": lambda value: f"{value:x}",
    "index": lambda value: [1, 2, 3][value],
    "item": lambda value: value[0],
    "in": lambda value: 1 in value,
    "not": operator.not_,
    "invert": operator.inv,
    "negate": operator.neg,
    "range": lambda value: range(value),  # noqa: PLW0108
    "bytes": lambda value: bytes(value),  # noqa: PLW0108
    **{f"{op.__name__} {side}": call
       for op in (operator.add, operator.sub, operator.mul, operator.floordiv, operator.truediv, operator.mod,
                  operator.and_, operator.or_, operator.xor, operator.lshift, operator.rshift, operator.lt,
                  operator.le, operator.gt, operator.ge, operator.eq, operator.ne)
       for side, call in (("left", lambda value, op=op: op(value, 1)), ("right", lambda value, op=op: op(1, value)))},
}


@pytest.mark.parametrize("checks", [ENFORCING, TRUSTING], ids=["enforcing", "trusting"])
@pytest.mark.parametrize("misuse", MISUSES.values(), ids=MISUSES.keys())
def test_nothing_can_be_done_with_it(misuse: Callable[[Any], object], checks: Checks) -> None:
    with pytest.raises(TypeError, match="must be checked before use"):
        misuse(checks.number(3))


def test_it_does_not_tell_its_value() -> None:
    assert repr(ENFORCING.content(b"from the host")) == "<untrusted>"


Check = tuple["Callable[[Untrusted[int]], int]", "Callable[[int], bool]"]
CHECKS: dict[str, Check] = {
    "at_most": (lambda u: u.at_most(10, RULE, SPEC), lambda v: 0 <= v <= 10),
    "between": (lambda u: u.between(5, 10, RULE, SPEC), lambda v: 5 <= v <= 10),
    "index": (lambda u: u.index(10, RULE, SPEC), lambda v: 0 <= v < 10),
    "one_of": (lambda u: u.one_of((1, 4, 9), RULE, SPEC), lambda v: v in {1, 4, 9}),
    "flags": (lambda u: u.flags(0b101, RULE, SPEC), lambda v: v in {0, 1, 4, 5}),
    "flags of an enumeration": (lambda u: u.flags(ShutdownFlag.BOTH, RULE, SPEC), lambda v: v in {0, 1, 2, 3}),
    "equals": (lambda u: u.equals(7, RULE, SPEC), lambda v: v == 7),
}


@pytest.mark.parametrize("name", CHECKS)
@given(value=st.one_of(st.integers(-3, 16), NUMBERS))
def test_a_check_lets_exactly_the_right_values_through(name: str, value: int) -> None:
    check, holds = CHECKS[name]
    if holds(value):
        assert check(ENFORCING.number(value)) == value
    else:
        with pytest.raises(DeviceViolation) as caught:
            check(ENFORCING.number(value))
        assert (caught.value.rule, caught.value.spec) == (RULE, SPEC)
        assert str(value) in caught.value.detail


@pytest.mark.parametrize("name", CHECKS)
@given(value=NUMBERS)
def test_a_driver_that_trusts_goes_on_with_what_the_host_said(name: str, value: int) -> None:
    assert CHECKS[name][0](TRUSTING.number(value)) == value


@given(st.integers(0, (1 << 32) - 1))
def test_less_is_checked_or_wraps_as_32_bits_do(value: int) -> None:
    assert TRUSTING.number(value).minus(8, 100, RULE, SPEC) == (value - 8) % (1 << 32)
    if 8 <= value <= 100:
        assert ENFORCING.number(value).minus(8, 100, RULE, SPEC) == value - 8
    else:
        with pytest.raises(DeviceViolation):
            ENFORCING.number(value).minus(8, 100, RULE, SPEC)


def test_an_index_into_nothing_is_never_right() -> None:
    with pytest.raises(DeviceViolation):
        ENFORCING.number(0).index(0, RULE, SPEC)


def test_rules_about_more_than_one_value() -> None:
    TRUSTING.require(False, RULE, SPEC)
    ENFORCING.require(True, RULE, SPEC)
    with pytest.raises(DeviceViolation, match=r"a rule \(17\) \[virtio 1\.3, 2\.7\]"):
        ENFORCING.require(False, RULE, SPEC, "17")


WRONG = """\
from chamber.guest.untrusted import Untrusted
def add(u: Untrusted[int]) -> int: return u + 1
def add_right(u: Untrusted[int]) -> int: return 1 + u
def compare(u: Untrusted[int]) -> bool: return u < 4
def index(u: Untrusted[int]) -> int: return [1, 2][u]
def count(u: Untrusted[int]) -> range: return range(u)
def number(u: Untrusted[int]) -> int: return int(u)
def size(u: Untrusted[bytes]) -> int: return len(u)
def item(u: Untrusted[bytes]) -> int: return u[0]
def plain(u: Untrusted[int]) -> int: return u
"""


def test_the_type_checker_refuses_it_as_well(tmp_path: Path) -> None:
    source = tmp_path / "wrong.py"
    source.write_text(WRONG, encoding="utf-8")
    found = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "--config-file=", "--cache-dir", str(tmp_path / "cache"),
         "--no-error-summary", str(source)],
        capture_output=True, text=True, check=False, env={"MYPYPATH": str(Path(__file__).parents[2] / "src")})
    assert not found.stderr
    lines = {int(line.split(":")[1]) for line in found.stdout.splitlines() if ": error:" in line}
    assert lines == set(range(2, 11)), found.stdout
