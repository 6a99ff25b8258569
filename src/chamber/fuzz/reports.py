"""What executions reported: a file for each kind of report, with the input that showed it and those before it."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from chamber.fuzz.avoidance import CommonTraits
from chamber.fuzz.lies import Program
from chamber.lab.observation import Harm

if TYPE_CHECKING:
    from pathlib import Path

    from chamber.fuzz.execution import Execution
    from chamber.lab.observation import Evidence

__all__ = ("Report", "ReportStore", "place_of")

_HISTORY: Final = 40
"""Inputs before the one that showed something, which may have had a part in it."""
_CONSOLE: Final = 20_000


def place_of(evidence: Evidence) -> str:
    """What reports are told apart by: where it happened, and whether memory was harmed.

    One bug is now a use of freed memory and now one out of bounds, by what lies there.
    """
    kind, _, where = evidence.signature.partition(": ")
    harm = "memory" if evidence.harm is Harm.MEMORY else evidence.harm.name.lower()
    return f"{harm}: {re.sub(r':[0-9]+', '', where or kind)}"


def _name_of(place: str) -> str:
    return hashlib.sha256(place.encode()).hexdigest()[:12]


@dataclass(frozen=True, slots=True)
class Report:
    """The first report of a kind.

    Attributes:
        place: what tells it from others.
        signature: its own signature.
        harm: name of the harm.
        text: what was seen.
        inputs: those before it on the same guest, and the one that showed it, last.
        strikes: the lies told, in words.

    """

    place: str
    signature: str
    harm: str
    text: str
    inputs: tuple[bytes, ...]
    strikes: tuple[str, ...]

    @property
    def name(self) -> str:
        """A file name for it."""
        return _name_of(self.place)

    @classmethod
    def read(cls, path: Path) -> Report:
        """Read what `ReportStore` wrote.

        Raises:
            ValueError: it is something else.

        """
        data = json.loads(path.read_text(encoding="utf-8"))
        try:
            return cls(str(data["place"]), str(data["signature"]), str(data["harm"]), str(data["text"]),
                       tuple(bytes.fromhex(text) for text in data["inputs"]), tuple(map(str, data["strikes"])))
        except (KeyError, TypeError) as error:
            raise ValueError(f"{path}: no report of a campaign ({error})") from None


class ReportStore:
    """A folder of reports that several processes add to.

    Args:
        folder: where they are.

    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._known: set[str] = set()
        self._history: deque[bytes] = deque(maxlen=_HISTORY)
        self._common = CommonTraits(folder)
        self.refresh()

    def refresh(self) -> None:
        """See what other processes have found."""
        self._known = {path.stem for path in self._folder.glob("*.json")}

    def knows(self, evidence: Evidence) -> bool:
        """Whether there is a report of its kind."""
        return _name_of(place_of(evidence)) in self._known

    def seen(self, data: bytes, execution: Execution, *, fresh: bool) -> bool:
        """Take note of an execution; `fresh` says that its guest had executed nothing before. Return if it reported."""
        if fresh:
            self._history.clear()
        self._history.append(data)
        for evidence in execution.evidence[:1]:  # what comes after it may be its consequence
            if not self.knows(evidence):
                self.refresh()
            if not self.knows(evidence):
                self._write(Report(place_of(evidence), evidence.signature, evidence.harm.name, evidence.text[:_CONSOLE],
                                   tuple(self._history), tuple(execution.strikes)))
            self._common.showed(_name_of(place_of(evidence)), Program.parse(data))
        if not execution.evidence and self._common.has_any:
            self._common.passed(Program.parse(data))
        return bool(execution.evidence)

    def _write(self, report: Report) -> None:
        path = self._folder / f"{report.name}.json"
        content = {"place": report.place, "signature": report.signature, "harm": report.harm, "text": report.text,
                   "inputs": [data.hex() for data in report.inputs], "strikes": report.strikes}
        # Whole or not at all, whoever ends this process and when.
        temporary = path.with_suffix(f".{os.getpid()}")
        temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        temporary.replace(path)
        self._known.add(report.name)
