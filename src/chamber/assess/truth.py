"""Ground truth: bugs of real drivers that a device can reach, and how to bring each back (``chamber-truth/1``)."""

from __future__ import annotations

import re
import tomllib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from chamber.assess.verdict import Verdict
from chamber.lab.kernel.edits import Substitution
from chamber.lab.observation import TargetError
from chamber.wire.virtio import DeviceType

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ("KnownBug", "OpenBug", "Truth", "read_truth")

_SCHEMA: Final = "chamber-truth/1"
_DEVICES: Final = {device.short: device for device in DeviceType}
_ID: Final = re.compile(r"[a-z0-9][a-z0-9-]{0,60}")


@dataclass(frozen=True, slots=True)
class KnownBug:
    """A bug that was fixed, and the edit that undoes the fix.

    Attributes:
        id: its name here.
        subject: what the fix is called.
        cve: its number, or empty.
        device: the driver.
        fixed: where it was fixed, in words.
        source: the kernel whose fix is undone, as ``chamber lab build`` takes it.
        trigger: what a malicious device does.
        expected: verdicts that count as found.
        undo: the edit.
        smp: whether the kernel is built for two processors, where user-mode-linux has them.

    """

    id: str
    subject: str
    cve: str
    device: DeviceType
    fixed: str
    source: str
    trigger: str
    expected: frozenset[Verdict]
    undo: Substitution
    smp: bool = False


@dataclass(frozen=True, slots=True)
class OpenBug:
    """A finding that a fixed kernel shows rightly: what its tree has not fixed, or can't.

    Attributes:
        device: the driver.
        signature: a pattern for the finding's signature.
        attack: a pattern for the whole name of the attack: what follows on corrupt memory has many signatures.
        reason: what it is.

    """

    device: DeviceType
    signature: re.Pattern[str]
    attack: re.Pattern[str]
    reason: str

    def explains(self, device: DeviceType, attack: str, signature: str) -> bool:
        """Whether a finding is this."""
        return (self.device is device and self.attack.fullmatch(attack) is not None
                and self.signature.search(signature) is not None)


@dataclass(frozen=True, slots=True)
class Truth:
    """A file of ground truth."""

    bugs: tuple[KnownBug, ...]
    open: tuple[OpenBug, ...]


def read_truth(path: Path, source: str | None = None) -> Truth:
    """Read a file of ground truth; `source` takes the place of the kernel that its rows name.

    Raises:
        TargetError: it can't be read, or a row is not as it should be.

    """
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise TargetError(f"{path}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise TargetError(f"{path}: {error}") from None
    if document.get("schema") != _SCHEMA:
        raise TargetError(f"{path}: its schema is not {_SCHEMA}")
    bugs = tuple(_bug(path, number, row, source) for number, row in enumerate(_rows(path, document, "bug"), 1))
    if len({bug.id for bug in bugs}) != len(bugs):
        raise TargetError(f"{path}: two bugs have the same id")
    return Truth(bugs, tuple(_open(path, number, row) for number, row in enumerate(_rows(path, document, "open"), 1)))


def _rows(path: Path, document: dict[str, Any], key: str) -> list[dict[str, Any]]:
    rows = document.get(key, [])
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise TargetError(f"{path}: {key} is not a list of tables")
    return rows


def _word(where: str, row: dict[str, Any], key: str, default: str | None = None) -> str:
    value = row.get(key, default)
    if not isinstance(value, str) or (default is None and not value):
        raise TargetError(f"{where}: {key} is missing, or no text")
    return value


def _device(where: str, row: dict[str, Any]) -> DeviceType:
    device = _DEVICES.get(_word(where, row, "driver"))
    if device is None:
        raise TargetError(f"{where}: driver is none of {', '.join(_DEVICES)}")
    return device


def _bug(path: Path, number: int, row: dict[str, Any], source: str | None) -> KnownBug:
    where = f"{path}: bug {number}"
    name = _word(where, row, "id")
    if not _ID.fullmatch(name):
        raise TargetError(f"{where}: {name} is no id: small letters, digits and dashes")
    where = f"{path}: bug {name}"
    changes = row.get("undo")
    if not isinstance(changes, list) or not changes or not all(isinstance(change, dict) for change in changes):
        raise TargetError(f"{where}: undo is a list of tables with file, find and put")
    undo = Substitution(f"undo-{name}", tuple(
        (_word(where, change, "file"), _word(where, change, "find"), _word(where, change, "put", ""))
        for change in changes))
    expected = row.get("expected", ["broken"])
    try:
        verdicts = frozenset(Verdict(word) for word in expected)
    except (TypeError, ValueError):
        raise TargetError(f"{where}: expected lists verdicts") from None
    if not verdicts:
        raise TargetError(f"{where}: expected names no verdict")
    smp = row.get("smp", False)
    if not isinstance(smp, bool):
        raise TargetError(f"{where}: smp is true or false")
    return KnownBug(name, _word(where, row, "subject"), _word(where, row, "cve", ""), _device(where, row),
                    _word(where, row, "fixed"), source or _word(where, row, "source"), _word(where, row, "trigger"),
                    verdicts, undo, smp)


def _open(path: Path, number: int, row: dict[str, Any]) -> OpenBug:
    where = f"{path}: open {number}"
    if not row.keys() & {"signature", "attack"}:
        raise TargetError(f"{where}: neither signature nor attack says what it is")
    return OpenBug(_device(where, row), _pattern(where, row, "signature"), _pattern(where, row, "attack"),
                   _word(where, row, "reason"))


def _pattern(where: str, row: dict[str, Any], key: str) -> re.Pattern[str]:
    """Return the pattern of a field; one that is left out fits everything."""
    try:
        return re.compile(_word(where, row, key, ".*"))
    except re.error as error:
        raise TargetError(f"{where}: {key}: {error}") from None
