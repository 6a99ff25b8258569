"""How long a guest waits for its devices: less where it has no time for silent ones."""

from __future__ import annotations

__all__ = ("patient", "set_patience")


class _Patience:
    """What usual times are multiplied by."""

    factor = 1.0


def set_patience(factor: float) -> None:
    """Wait `factor` times as long as usual, from now on, in this process."""
    _Patience.factor = factor


def patient(seconds: float) -> float:
    """Return how long to wait for what is usually waited for so long."""
    return seconds * _Patience.factor
