"""Looks for a guest's secrets in what its host can see."""

from __future__ import annotations

from typing import Final

from chamber.lab.observation import Evidence, Harm

__all__ = ("LeakWatch",)

_POISON_RUN: Final = 24
_POISONS: Final = {b"\x6b" * _POISON_RUN: "freed or never written", b"\x5a" * _POISON_RUN: "padding"}
"""What SLUB fills objects and what is around them with (slub_debug=P)."""


class LeakWatch:
    """Sees every byte that a device reads, and knows what must not be among them.

    Args:
        marker: bytes that the guest planted in its own memory.

    """

    def __init__(self, marker: bytes) -> None:
        self.marker = marker
        self.evidence: list[Evidence] = []

    def saw(self, data: bytes) -> None:
        """Look at bytes that the driver handed to the device."""
        if len(data) < _POISON_RUN or self.evidence:
            return
        if self.marker in data:
            self._found("planted secret", data, data.index(self.marker))
        for poison, state in _POISONS.items():
            if poison in data:
                self._found(f"slab memory that was {state}", data, data.index(poison))

    def _found(self, what: str, data: bytes, at: int) -> None:
        excerpt = data[max(0, at - 16):at + 48].hex(" ")
        self.evidence.append(Evidence(Harm.LEAK, f"{what} in bytes that the device reads",
                                      f"{what} at byte {at} of {len(data)}: {excerpt}"))
