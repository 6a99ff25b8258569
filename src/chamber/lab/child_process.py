"""How a process behaves that serves another, or has guests of its own to give back."""

from __future__ import annotations

import contextlib
import os
import signal
from pathlib import Path

__all__ = ("end_in_order", "share_niceness")


def _end(_signal: int, _frame: object) -> None:
    """End in order, once: a second signal must not interrupt the cleaning up."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise SystemExit(0)


def end_in_order() -> None:
    """Leave Ctrl-C, which goes to the whole group, to the parent; SIGTERM ends this process by SystemExit."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _end)


def share_niceness() -> None:
    """Make a session that was just begun as nice as this process is.

    Where Linux shares processors out among sessions (sched_autogroup), a process is nice to its own session alone.
    """
    nice = os.nice(0)
    if nice > 0:
        with contextlib.suppress(OSError):
            Path("/proc/self/autogroup").write_text(str(nice), encoding="ascii")
