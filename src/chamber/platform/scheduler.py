"""Virtual time: what happens next is decided by when it is due and who asked first, and by nothing else."""

from __future__ import annotations

import heapq
import itertools
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ("BudgetExhausted", "Scheduler")


class BudgetExhausted(Exception):
    """More steps were taken than any sound run takes: something goes round in circles."""


class Scheduler:
    """A clock that jumps from event to event.

    Args:
        budget: steps that may be taken in all.

    Attributes:
        now: virtual seconds since the start.

    """

    def __init__(self, budget: int) -> None:
        self.now = 0.0
        self._budget = budget
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()

    def call_later(self, delay: float, call: Callable[[], None]) -> None:
        """Have something happen after `delay` virtual seconds."""
        heapq.heappush(self._events, (self.now + max(delay, 0.0), next(self._order), call))

    def step(self) -> None:
        """Count one step.

        Raises:
            BudgetExhausted: it was one too many.

        """
        self._budget -= 1
        if self._budget < 0:
            raise BudgetExhausted("the guest goes round in circles")

    def advance(self, until: float) -> bool:
        """Let the next event happen if it is due by `until`; else let time pass to `until` and return False."""
        self.step()
        if not self._events or self._events[0][0] > until:
            self.now = max(self.now, until)
            return False
        when, _, call = heapq.heappop(self._events)
        self.now = max(self.now, when)
        call()
        return True
