"""What a guest keeps to itself, and whether its host has seen it."""

from __future__ import annotations

import random
from typing import Final

__all__ = ("Secrets",)

_SIZE: Final = 64
_PIECE: Final = 8


class Secrets:
    """A guest's secret: a marker that fills memory which the guest never meant to share.

    Args:
        seed: decides its bytes.

    Attributes:
        marker: the bytes, repeated through private and stale memory.

    """

    def __init__(self, seed: int) -> None:
        self.marker = random.Random(f"secret {seed}").randbytes(_SIZE)  # noqa: S311 - reproducible on purpose
        self._pieces = [self.marker[i:i + _PIECE] for i in range(0, _SIZE, _PIECE)]

    def found_in(self, data: bytes | bytearray) -> int | None:
        """Return where a piece of the secret stands in `data`, or None: eight aligned bytes of it are no chance."""
        for piece in self._pieces:
            at = data.find(piece)
            if at >= 0:
                return at
        return None
