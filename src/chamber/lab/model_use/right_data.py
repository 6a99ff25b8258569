"""How stimuli of the model guest say that what they were given is wrong."""

from __future__ import annotations

from typing import Final

__all__ = ("PAUSE", "WrongData", "compare")

PAUSE: Final = 0.05
"""Virtual seconds between one request and the next: what a device does a moment later, it does to a guest at work."""


class WrongData(Exception):
    """The guest was given something that is not what it should be, and took it."""


def compare(got: bytes, right: bytes, what: str) -> None:
    """Take data for right.

    Raises:
        WrongData: it is not.

    """
    if got != right:
        raise WrongData(what)
