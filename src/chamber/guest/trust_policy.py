"""Which devices a guest takes into its trusted base, as files (TOML): strictly read (form: docs/tdisp.md)."""

from __future__ import annotations

import re
import tomllib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from chamber.guest.policy_file import (
    PolicyError,
    features_of,
    known_keys,
    one_table,
    text_of,
    texts_of,
    type_of,
)
from chamber.guest.virtio_tdi import REQUIRED
from chamber.wire.spdm_messages import MeasurementType
from chamber.wire.virtio_tdi import Guarantee

if TYPE_CHECKING:
    from pathlib import Path

    from chamber.wire.spdm_messages import Measurement
    from chamber.wire.virtio import DeviceType

__all__ = ("SCHEMA", "MeasurementRule", "TrustPolicy", "load_trust", "parse_trust")

SCHEMA: Final = "chamber-trust/1"
_MOST_BYTES: Final = 1 << 20
_VERSION: Final = re.compile(r"1\.([1-4])")
_HASHES: Final = frozenset({64, 96, 128})
"""Digits of a hash."""
_TYPES: Final = {kind.name.lower().replace("_", "-"): kind for kind in MeasurementType}
_SECURE_VERSION: Final = 8
"""Bytes of a security version number."""


@dataclass(frozen=True, slots=True)
class MeasurementRule:
    """What one measurement has to be.

    Attributes:
        index: which one.
        type: what it is of; None for anything.
        values: what it may be; empty for anything.
        least: the lowest security version number; None where it is none.

    """

    index: int
    type: MeasurementType | None = None
    values: frozenset[bytes] = frozenset()
    least: int | None = None

    def broken_by(self, blocks: tuple[Measurement, ...]) -> str:
        """Say what is wrong; empty if nothing is."""
        block = next((block for block in blocks if block.index == self.index), None)
        if block is None:
            return f"measurement {self.index} is missing"
        if self.type is not None and block.type != self.type:
            return f"measurement {self.index} is of another type"
        if self.values and block.value not in self.values:
            return f"measurement {self.index} is {block.value.hex()}"
        if self.least is not None:
            number = int.from_bytes(block.value, "little")
            if not block.raw or len(block.value) != _SECURE_VERSION or number < self.least:
                return f"measurement {self.index} is a security version of {number}, below {self.least}"
        return ""


@dataclass(frozen=True, slots=True)
class TrustPolicy:
    """A whole policy.

    Attributes:
        name: how messages call it.
        roots: fingerprints (SHA-256) of makers' root certificates.
        least_version: of SPDM.
        measurements: rules; a measurement that has none is not looked at.
        complete: whether there may be no measurement without a rule.
        certificates: fingerprints (SHA-256) of devices' own certificates; empty for all of the makers'.
        type: virtio type of the device; None for any.
        guarantees: what the device must undertake.
        must: feature bits that it must offer.
        must_not: feature bits that it must not.

    """

    name: str
    roots: frozenset[bytes]
    least_version: int = 0x12
    measurements: tuple[MeasurementRule, ...] = ()
    complete: bool = False
    certificates: frozenset[bytes] = frozenset()
    type: DeviceType | None = None
    guarantees: Guarantee = field(default=REQUIRED)
    must: int = 0
    must_not: int = 0


def load_trust(path: Path) -> TrustPolicy:
    """Read a policy's file.

    Raises:
        PolicyError: it can't be read, or says something that is not understood.

    """
    try:
        with path.open("rb") as file:
            data = file.read(_MOST_BYTES + 1)
        if len(data) > _MOST_BYTES:
            raise PolicyError(f"{path}: more than a mebibyte")
        return parse_trust(data.decode(), str(path))
    except OSError as error:
        raise PolicyError(f"{path}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise PolicyError(f"{path}: not text in UTF-8") from error


def parse_trust(text: str, name: str) -> TrustPolicy:
    """Read a policy's text; `name` is how messages call it.

    Raises:
        PolicyError: it says something that is not understood, or trusts nobody.

    """
    try:
        top = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise PolicyError(f"{name}: {str(error) or 'nested too deeply'}") from error
    known_keys(top, ("schema", "name", "roots", "least-version", "complete", "measurement", "device"), name)
    if top.get("schema") != SCHEMA:
        raise PolicyError(f'{name}: schema is "{SCHEMA}"')
    roots = frozenset(_hex(root, f"{name}: roots", frozenset({64})) for root in texts_of(top.get("roots", []),
                                                                                      f"{name}: roots"))
    if not roots:
        raise PolicyError(f"{name}: roots has at least one fingerprint")
    spoken = _VERSION.fullmatch(text_of(top.get("least-version", "1.2"), f"{name}: least-version"))
    if spoken is None:
        raise PolicyError(f"{name}: least-version is 1.1 to 1.4")
    complete = top.get("complete", False)
    rows = top.get("measurement", [])
    if not isinstance(complete, bool) or not isinstance(rows, list):
        raise PolicyError(f"{name}: complete is true or false, and [[measurement]] a list of tables")
    rules = tuple(_rule(row, f"{name}: measurement {number}") for number, row in enumerate(rows, 1))
    if len({rule.index for rule in rules}) != len(rules):
        raise PolicyError(f"{name}: a measurement has one rule")
    device = one_table(top.get("device", {}), f"{name}: device")
    known_keys(device, ("type", "certificates", "guarantees", "features"), f"{name}: device")
    where = f"{name}: device.certificates"
    own = frozenset(_hex(text, where, frozenset({64})) for text in texts_of(device.get("certificates", []), where))
    if "certificates" in device and not own:
        raise PolicyError(f"{where} has at least one fingerprint")
    kind = type_of(device["type"], f"{name}: device") if "type" in device else None
    features = one_table(device.get("features", {}), f"{name}: device.features")
    known_keys(features, ("must", "must-not"), f"{name}: device.features")
    if features and kind is None:
        raise PolicyError(f"{name}: device.features needs device.type")
    bits = [0 if kind is None else features_of(kind, features.get(key, []), f"{name}: device.features.{key}")
            for key in ("must", "must-not")]
    return TrustPolicy(text_of(top.get("name", name), f"{name}: name"), roots, 0x10 | int(spoken[1]), rules, complete,
                       own, kind, _guarantees(device, name), *bits)


def _guarantees(device: dict[str, Any], name: str) -> Guarantee:
    if "guarantees" not in device:
        return REQUIRED
    total = Guarantee(0)
    for word in texts_of(device["guarantees"], f"{name}: device.guarantees"):
        if word not in Guarantee.__members__:
            raise PolicyError(f"{name}: device.guarantees: {word!r} is none of {', '.join(Guarantee.__members__)}")
        total |= Guarantee[word]
    return total


def _hex(text: str, where: str, digits: frozenset[int]) -> bytes:
    if len(text) not in digits or not re.fullmatch(r"[0-9a-f]*", text):
        raise PolicyError(f"{where}: {text[:20]!r} is no hash in lower case hexadecimal")
    return bytes.fromhex(text)


def _rule(row: object, where: str) -> MeasurementRule:
    table = one_table(row, where)
    known_keys(table, ("index", "type", "value", "one-of", "least"), where)
    index, least = table.get("index"), table.get("least")
    if not isinstance(index, int) or isinstance(index, bool) or not 1 <= index <= 0xFE:
        raise PolicyError(f"{where}: index is a number from 1 to 254")
    if least is not None and (not isinstance(least, int) or isinstance(least, bool) or not 0 <= least < 1 << 64):
        raise PolicyError(f"{where}: least is a security version number")
    kind = table.get("type")
    if kind is not None and kind not in _TYPES:
        raise PolicyError(f"{where}: type is one of {', '.join(_TYPES)}")
    if "value" in table and "one-of" in table:
        raise PolicyError(f"{where}: value or one-of, not both")
    texts = texts_of(table.get("one-of", [table["value"]] if "value" in table else []), where)
    if "one-of" in table and not texts:
        raise PolicyError(f"{where}: one-of lists hashes")
    return MeasurementRule(index, None if kind is None else _TYPES[kind],
                           frozenset(_hex(text, where, _HASHES) for text in texts), least)
