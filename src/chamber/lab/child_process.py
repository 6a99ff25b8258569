"""How a process ends that serves another and has guests of its own to give back."""

from __future__ import annotations

import signal

__all__ = ("end_in_order",)


def _end(_signal: int, _frame: object) -> None:
    """End in order, once: a second signal must not interrupt the cleaning up."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise SystemExit(0)


def end_in_order() -> None:
    """Leave Ctrl-C, which goes to the whole group, to the parent; SIGTERM ends this process by SystemExit."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _end)
