"""What sessions cost a search, told by who executes inputs to who varies them."""

from __future__ import annotations

import math
from collections import Counter
from statistics import median
from typing import TYPE_CHECKING, Final

from chamber.fuzz.live_json import LiveJson

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ("Costs",)

_LEAST: Final = 0.1
"""A use that is costly, or that most inputs have, gets its turns all the same. None gets more than usual: time that is
spent on what takes none is well spent on the others."""
_REMEMBERED: Final = 500
"""Inputs after which what was seen before counts half."""


class Costs:
    """How much of a search's turns each use gets, so that all get about the same time.

    Args:
        path: a `LiveJson` of the seconds that a session of each use takes.

    """

    def __init__(self, path: Path) -> None:
        self._file = LiveJson(path)
        self._costs: dict[int, float] = {}
        self._turns: Counter[int] = Counter()

    def share(self, use: int) -> float:
        """An input with such a number of a use has its turn: return what to multiply the usual number of turns by."""
        self._refresh()
        if not self._costs:
            return 1.0
        use %= max(self._costs) + 1
        often = (self._turns[use] + 1) * len(self._costs) / (self._turns.total() + len(self._costs))
        self._turns[use] += 1
        if self._turns.total() >= _REMEMBERED:
            self._turns = Counter({number: turns // 2 for number, turns in self._turns.items()})
        cost = self._costs.get(use)
        return 1.0 if cost is None else min(max(median(self._costs.values()) / cost / often, _LEAST), 1.0)

    def _refresh(self) -> None:
        costs = self._file.read()
        if costs is None:
            return
        try:
            read = {int(use): float(seconds) for use, seconds in costs.items()}
        except (ValueError, TypeError, AttributeError, OverflowError):
            return
        self._costs = {use: seconds for use, seconds in read.items() if use >= 0 and 0 < seconds < math.inf}
