"""Which inputs show what has been found already: each costs a guest, and is no news."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Final

from chamber.fuzz.lies import NOTHING_ASKED, Program

if TYPE_CHECKING:
    from pathlib import Path

    from chamber.fuzz.lies import Lie

__all__ = ("Avoidance", "kind_of")

_READ_SECONDS: Final = 2.0


def kind_of(lie: Lie) -> tuple[int, int]:
    """What a lie is about, whatever its number: the moment of what answers nothing, or the place in what is changed."""
    return lie.point, lie.moment if lie.point in NOTHING_ASKED else lie.offset


class Avoidance:
    """The confirmed findings of a campaign, by the kinds of lies that each takes.

    Args:
        findings: the folder that confirmations are written to.

    """

    def __init__(self, findings: Path) -> None:
        self._findings = findings
        self._kinds: dict[str, frozenset[tuple[int, int]]] = {}
        self._read_at = 0.0

    def shows(self, program: Program) -> frozenset[tuple[int, int]]:
        """Return the kinds of lies by which an input shows what is known; none if it does not."""
        self._refresh()
        kinds = {kind_of(lie) for lie in program.lies}
        return next((known for known in self._kinds.values() if known <= kinds), frozenset())

    def _refresh(self) -> None:
        now = time.monotonic()
        if now < self._read_at:
            return
        self._read_at = now + _READ_SECONDS
        for path in self._findings.glob("*/finding.json"):
            if path.parent.name in self._kinds:
                continue
            try:
                finding = json.loads(path.read_text(encoding="utf-8"))
                programs = [Program.parse(bytes.fromhex(text)) for text in finding["inputs"]]
                confirmed = bool(finding["confirmed"])
            except (OSError, ValueError, KeyError, TypeError):
                continue  # it is whole the next time, or of no use
            kinds = frozenset(kind_of(lie) for program in programs for lie in program.lies)
            # What takes several inputs, or none, can't be told by looking at one.
            if confirmed and len(programs) == 1 and kinds:
                self._kinds[path.parent.name] = kinds
