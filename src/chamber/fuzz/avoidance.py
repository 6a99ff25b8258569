"""Which inputs show what has been found already: each costs a guest, and is no news.

Two sources tell: a confirmed finding, whose lies are those that it takes; and before there is one, or where its lies
are not the only ones, inputs that have shown a report: what they have in common is taken for the reason, unless too
many others have it, too.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from chamber.fuzz.lies import NOTHING_ASKED, Change, Point, Program
from chamber.fuzz.live_json import write_live_json

if TYPE_CHECKING:
    from pathlib import Path

    from chamber.fuzz.lies import Lie

__all__ = ("Avoidance", "CommonTraits", "kinds_of")

_READ_SECONDS: Final = 0.5
_SUFFIX: Final = ".traits"
_ENOUGH: Final = 3
"""Inputs that have shown the same, after which what they have in common is left out. What it is by accident only
narrows what is avoided, and goes with the next input that shows the same without it."""
_PASSED: Final = 30
_WRITTEN: Final = 200
"""Inputs between two times of telling how many have passed."""
_REASONS: Final = 32
_FEATURES: Final = 64
_FILLED: Final = 64
"""Bytes that stand for all from some place on."""
_ACTION: Final = 1 << 8
"""Tells a number of an action from a moment."""
_START, _USE = -1, -2
"""Traits besides those of lies, whose points are numbers from 0 on."""

Kind = tuple[int, int]


def kinds_of(lie: Lie) -> frozenset[Kind]:
    """What a lie is about, whatever its number: a feature, bytes of what is changed, or what is done and when."""
    match lie.point:
        case Point.FEATURES:
            return frozenset({(lie.point, lie.value % _FEATURES)})
        case Point.ACTION:
            return frozenset({(lie.point, lie.moment), (lie.point, _ACTION | lie.value & _ACTION - 1)})
        case point if point in NOTHING_ASKED:
            return frozenset({(point, lie.moment)})
        case point:
            width = _FILLED if lie.change is Change.FILL else lie.width
            return frozenset((point, at) for at in range(lie.offset, lie.offset + width))


def _traits(program: Program) -> frozenset[Kind]:
    """What an input is like: its lies' kinds, where it begins and what the guest does."""
    return frozenset({(_START, program.start), (_USE, program.use)}).union(*map(kinds_of, program.lies))


def _lies(traits: frozenset[Kind]) -> frozenset[Kind]:
    return traits - {(point, place) for point, place in traits if point < 0}


@dataclass(slots=True)
class _Reason:
    """Why inputs show a report, as far as known.

    Attributes:
        times: inputs with the same traits that have shown it.
        passed: inputs with the same traits that have not.

    """

    times: int = 0
    passed: int = 0

    @property
    def good(self) -> bool:
        """Whether it is worth being avoided: one that shows it costs as much as hundreds that do not."""
        return self.times >= _ENOUGH and self.passed <= _PASSED * self.times


_Reasons = dict[frozenset[Kind], _Reason]


class CommonTraits:
    """What inputs that showed a report have in common, told by who executes inputs to who varies them.

    The same may come of different lies: inputs that share none are taken to have different reasons.

    Args:
        reports: the folder of a campaign's reports.

    """

    def __init__(self, reports: Path) -> None:
        self._reports = reports
        self._known: dict[str, _Reasons] = {}
        self._passed = 0

    @property
    def has_any(self) -> bool:
        """Whether a report is known at all."""
        return bool(self._known)

    def passed(self, program: Program) -> None:
        """An input has shown nothing."""
        traits = _traits(program)
        for reasons in self._known.values():
            for common, reason in reasons.items():
                reason.passed += common <= traits
        self._passed += 1
        if self._passed % _WRITTEN == 0:
            for name in self._known:
                self._write(name)

    def showed(self, name: str, program: Program) -> None:
        """An input has shown the report of that name."""
        reasons = self._known[name] = self._read(name)
        traits = _traits(program)
        known = max(reasons, key=lambda common: len(_lies(common & traits)), default=frozenset[Kind]())
        if _lies(common := known & traits):
            reason = reasons.pop(known)
            if common != known:
                reason = reasons.get(common) or _Reason(reason.times)
        elif len(reasons) < _REASONS:
            common, reason = traits, _Reason()
        else:
            return
        reason.times += 1
        reasons[common] = reason
        self._write(name)

    def _read(self, name: str) -> _Reasons:
        """Return what this process knows, and others."""
        reasons = _read_reasons(self._path(name))
        for common, reason in self._known.get(name, {}).items():
            if common in reasons:
                reasons[common].passed = max(reasons[common].passed, reason.passed)
        return reasons

    def _path(self, name: str) -> Path:
        return self._reports / f"{name}{_SUFFIX}"

    def _write(self, name: str) -> None:
        # Another process may do the same; what is lost of one comes again.
        write_live_json(self._path(name), [[reason.times, reason.passed, sorted(common)]
                                           for common, reason in self._known[name].items()])


def _read_reasons(path: Path) -> _Reasons:
    """Return what `CommonTraits` wrote; nothing where that can't be read."""
    try:
        return {frozenset((int(point), int(place)) for point, place in common): _Reason(int(times), int(passed))
                for times, passed, common in json.loads(path.read_text(encoding="utf-8"))}
    except (OSError, ValueError, TypeError):
        return {}


class Avoidance:
    """What a campaign has found, by the traits of inputs that show it.

    Args:
        findings: the folder that confirmations are written to.
        reports: the folder of reports.

    """

    def __init__(self, findings: Path, reports: Path) -> None:
        self._findings = findings
        self._reports = reports
        self._confirmed: dict[str, frozenset[Kind]] = {}
        self._known: list[frozenset[Kind]] = []
        self._read_at = 0.0

    def shows(self, program: Program) -> frozenset[Kind]:
        """Return the kinds of lies by which an input shows what is known; none if it does not."""
        self._refresh()
        traits = _traits(program)
        return next((_lies(known) for known in self._known if known <= traits), frozenset())

    def _refresh(self) -> None:
        now = time.monotonic()
        if now < self._read_at:
            return
        self._read_at = now + _READ_SECONDS
        for path in self._findings.glob("*/finding.json"):
            if path.parent.name not in self._confirmed:
                self._read_finding(path)
        common = [common for path in self._reports.glob(f"*{_SUFFIX}")
                  for common, reason in _read_reasons(path).items() if reason.good]
        # What takes several inputs, or no lie, can't be told by looking at one.
        self._known = [known for known in (*self._confirmed.values(), *common) if _lies(known)]

    def _read_finding(self, path: Path) -> None:
        try:
            finding = json.loads(path.read_text(encoding="utf-8"))
            programs = [Program.parse(bytes.fromhex(text)) for text in finding["inputs"]]
            confirmed = bool(finding["confirmed"])
        except (OSError, ValueError, KeyError, TypeError):
            return  # it is whole the next time, or of no use
        if confirmed and len(programs) == 1:
            self._confirmed[path.parent.name] = _lies(_traits(programs[0]))
