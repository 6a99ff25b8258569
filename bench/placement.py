"""Measuring on one processor, which guest and devices then take turns on."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ("on_one_processor",)

_T = TypeVar("_T")


def on_one_processor(measure: Callable[[], _T]) -> Callable[[], _T]:
    """Keep this process, and all that it starts, to one processor while `measure` runs."""
    def run() -> _T:
        allowed = os.sched_getaffinity(0)
        os.sched_setaffinity(0, {min(allowed)})
        try:
            return measure()
        finally:
            os.sched_setaffinity(0, allowed)
    return run
