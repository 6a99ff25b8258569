"""Policies as files (TOML): strictly read, as a word that is not understood protects nobody (form: docs/filters.md)."""

from __future__ import annotations

import tomllib
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from chamber.guest.policy import DeviceRule, FieldRule, Policy
from chamber.wire.device_types import CONFIGS, feature_number
from chamber.wire.virtio import DeviceType, bit

if TYPE_CHECKING:
    from collections.abc import Collection

__all__ = ("SHIPPED", "PolicyError", "features_of", "known_keys", "load_policy", "one_table", "parse_policy", "text_of",
           "texts_of", "type_of")

SCHEMA: Final = "chamber-policy/1"
_MOST_BYTES: Final = 1 << 20
_TRANSPORTS: Final = ("pci", "mmio")
_TYPES: Final = {kind.short: kind for kind in DeviceType}


class PolicyError(ValueError):
    """A policy can't be read; the message is one line that says where and why."""


def _shipped() -> dict[str, str]:
    folder = resources.files("chamber.guest") / "policies"
    return {entry.name.removesuffix(".toml"): entry.read_text(encoding="utf-8")
            for entry in sorted(folder.iterdir(), key=lambda e: e.name) if entry.name.endswith(".toml")}


SHIPPED: Final = _shipped()
"""Policies that come with Chamber, by name."""


def load_policy(name: str) -> Policy:
    """Read a policy: one that comes with Chamber by its name, any other by the path of its file.

    Raises:
        PolicyError: there is none, or it can't be read.

    """
    if name in SHIPPED:
        return parse_policy(SHIPPED[name], name)
    path = Path(name)
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise PolicyError(f"{name}: a policy has at most {_MOST_BYTES} bytes")
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise PolicyError(f"{name}: {error.strerror}; policies that come with Chamber are "
                          f"{', '.join(SHIPPED)}") from error
    except UnicodeDecodeError as error:
        raise PolicyError(f"{name}: not text in UTF-8") from error
    return parse_policy(text, name)


def parse_policy(text: str, name: str) -> Policy:
    """Read a policy's text; `name` is how messages call it.

    Raises:
        PolicyError: it says something that is not understood, or the same thing twice.

    """
    try:
        top = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise PolicyError(f"{name}: {str(error) or 'nested too deeply'}") from error
    known_keys(top, ("schema", "name", "description", "device"), name)
    if top.get("schema") != SCHEMA:
        raise PolicyError(f'{name}: schema is "{SCHEMA}"')
    title = text_of(top.get("name", name), f"{name}: name")
    rows = top.get("device", [])
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise PolicyError(f"{name}: [[device]] is a list of tables")
    rules = tuple(_rule(row, f"policy {title}, device {number}") for number, row in enumerate(rows, 1))
    return Policy(title, rules, text_of(top.get("description", ""), f"{name}: description"))


def _rule(row: dict[str, Any], where: str) -> DeviceRule:
    known_keys(row, ("type", "transport", "vendor", "position", "most", "features", "config"), where)
    kind = type_of(row.get("type"), where)
    where = f"{where} ({kind.short})"
    features = one_table(row.get("features", {}), f"{where}: features")
    known_keys(features, ("may", "must", "must-not"), f"{where}: features")
    may = features_of(kind, features["may"], f"{where}: features.may") if "may" in features else None
    must = features_of(kind, features.get("must", []), f"{where}: features.must")
    must_not = features_of(kind, features.get("must-not", []), f"{where}: features.must-not")
    if must & must_not:
        raise PolicyError(f"{where}: a feature must be and must not be")
    if may is not None and may & must_not:
        raise PolicyError(f"{where}: a feature may be and must not be")
    transports = texts_of(row.get("transport", []), f"{where}: transport")
    for transport in transports:
        if transport not in _TRANSPORTS:
            raise PolicyError(f"{where}: transport is one of {', '.join(_TRANSPORTS)}, not {transport!r}")
    vendors = row.get("vendor", [])
    if not isinstance(vendors, list) or not all(_is_number(v, 0xFFFFFFFF) for v in vendors):
        raise PolicyError(f"{where}: vendor is a list of ids")
    most = row.get("most")
    if most is not None and not _is_number(most, 1 << 16):
        raise PolicyError(f"{where}: most is a number of devices")
    config = one_table(row.get("config", {}), f"{where}: config")
    return DeviceRule(where, kind, frozenset(transports), frozenset(vendors),
                      _positions(row.get("position", []), f"{where}: position"), most, may, must, must_not,
                      {name: _field(kind, name, value, f"{where}: config.{name}") for name, value in config.items()})


def _positions(value: object, where: str) -> tuple[str, ...]:
    patterns = texts_of(value, where)
    # The same patterns go into a table for a shell, which has its own ways with these.
    if any(set(pattern) & set(" ,;&|<>()$`\\\"'") for pattern in patterns):
        raise PolicyError(f"{where}: a pattern has letters, digits, and any of . : - _ * ? [ ]")
    return tuple(patterns)


def type_of(short: object, where: str) -> DeviceType:
    """Read the name of a device type."""
    if not isinstance(short, str) or short not in _TYPES:
        raise PolicyError(f"{where}: type is one of {', '.join(_TYPES)}")
    return _TYPES[short]


def features_of(kind: DeviceType, names: object, where: str) -> int:
    """Read names of features, as bits."""
    numbers = []
    for name in texts_of(names, where):
        number = feature_number(kind, name)
        if number is None:
            raise PolicyError(f"{where}: {kind.short} has no feature {name!r}")
        numbers.append(number)
    return bit(*numbers)


def _field(kind: DeviceType, name: str, value: object, where: str) -> FieldRule:
    layout = CONFIGS.get(kind)
    if layout is None or name not in layout.fields or not layout[name].is_integer:
        raise PolicyError(f"{where}: {kind.short} has no such number in its configuration space")
    table = one_table(value, where)
    known_keys(table, ("least", "most", "one-of"), where)
    highest = layout[name].maximum
    bounds = [table.get(key) for key in ("least", "most")]
    if not table or not all(bound is None or _is_number(bound, highest) for bound in bounds):
        raise PolicyError(f"{where}: least and most are numbers from 0 to {highest}")
    least, most = bounds
    if least is not None and most is not None and least > most:
        raise PolicyError(f"{where}: least is more than most")
    only = table.get("one-of")
    if only is not None and (len(table) > 1 or not isinstance(only, list) or not only
                             or not all(_is_number(number, highest) for number in only)):
        raise PolicyError(f"{where}: one-of stands alone and lists numbers from 0 to {highest}")
    return FieldRule(least, most, None if only is None else frozenset(only))


def known_keys(table: dict[str, Any], keys: Collection[str], where: str) -> None:
    """Refuse a word that is not understood."""
    for key in table:
        if key not in keys:
            raise PolicyError(f"{where}: {key!r} is none of {', '.join(keys)}")


def one_table(value: object, where: str) -> dict[str, Any]:
    """Read a table."""
    if not isinstance(value, dict):
        raise PolicyError(f"{where} is a table")
    return value


def text_of(value: object, where: str) -> str:
    """Read a line."""
    if not isinstance(value, str) or not value.isprintable():
        raise PolicyError(f"{where} is a line of text")
    return value


def texts_of(value: object, where: str) -> list[str]:
    """Read a list of words."""
    if not isinstance(value, list) or not all(isinstance(v, str) and v.isprintable() and v for v in value):
        raise PolicyError(f"{where} is a list of words")
    return value


def _is_number(value: object, highest: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= highest
