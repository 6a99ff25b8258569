"""Measuring on one processor, which guest and devices then take turns on."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ("on_one_processor",)


def on_one_processor(measure: Callable[[], list[str]]) -> Callable[[], list[str]]:
    """Keep this process, and all that it starts, to one processor while `measure` runs."""
    def run() -> list[str]:
        allowed = os.sched_getaffinity(0)
        os.sched_setaffinity(0, {min(allowed)})
        try:
            return measure()
        finally:
            os.sched_setaffinity(0, allowed)
    return run
