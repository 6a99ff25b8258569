"""What sessions cost a search, told by who executes inputs to who varies them."""

from __future__ import annotations

import json
import math
import time
from collections import Counter
from statistics import median
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

__all__ = ("Costs", "write_costs")

_READ_SECONDS: Final = 2.0
_LEAST: Final = 0.1
"""A use that is costly, or that most inputs have, gets its turns all the same. None gets more than usual: time that is
spent on what takes none is well spent on the others."""
_REMEMBERED: Final = 500
"""Inputs after which what was seen before counts half."""


def write_costs(path: Path, costs: Mapping[int, float]) -> None:
    """Write the seconds that a session of each use takes, so that a reader sees all of it or what was before."""
    temporary = path.with_suffix(".new")
    temporary.write_text(json.dumps(costs), encoding="utf-8")
    temporary.replace(path)


class Costs:
    """The reader's side: how much of a search's turns each use gets, so that all get about the same time.

    Args:
        path: what is written; read now and then, and may not be there yet.

    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._costs: dict[int, float] = {}
        self._turns: Counter[int] = Counter()
        self._read_at = 0.0

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
        now = time.monotonic()
        if now < self._read_at:
            return
        self._read_at = now + _READ_SECONDS
        try:
            costs = json.loads(self._path.read_text(encoding="utf-8"))
            read = {int(use): float(seconds) for use, seconds in costs.items()}
            self._costs = {use: seconds for use, seconds in read.items() if use >= 0 and 0 < seconds < math.inf}
        except (OSError, ValueError, TypeError, AttributeError, OverflowError):
            pass  # whole the next time
