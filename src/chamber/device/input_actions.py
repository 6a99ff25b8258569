"""What an honest host does with an input device, by name: apart from the device, for a guest that compares."""

from __future__ import annotations

from typing import Final

from chamber.wire.input import Abs, EventType, InputEvent

__all__ = ("ACTIONS",)

_E: Final = EventType
_SYN: Final = InputEvent(_E.SYN, 0, 0)


def _press(code: int) -> tuple[tuple[InputEvent, ...], ...]:
    return (InputEvent(_E.KEY, code, 1), _SYN), (InputEvent(_E.KEY, code, 0), _SYN)


def _contact(slot: int, track: int, x: int, y: int) -> tuple[InputEvent, ...]:
    values = {Abs.MT_SLOT: slot, Abs.MT_TRACKING_ID: track, Abs.MT_POSITION_X: x, Abs.MT_POSITION_Y: y}
    return tuple(InputEvent(_E.ABS, code, value) for code, value in values.items())


ACTIONS: Final[dict[str, tuple[tuple[InputEvent, ...], ...]]] = {
    "type": tuple(sequence for code in (35, 18, 38, 38, 24) for sequence in _press(code)),
    "move": ((InputEvent(_E.REL, 0, 5), InputEvent(_E.REL, 1, -3), _SYN), (InputEvent(_E.REL, 8, 1), _SYN),
             *_press(0x110)),
    "touch": ((*_contact(0, 7, 100, 200), *_contact(1, 8, 3000, 4000), InputEvent(_E.KEY, 0x14A, 1), _SYN),
              (InputEvent(_E.ABS, Abs.MT_SLOT, 1), InputEvent(_E.ABS, Abs.MT_POSITION_X, 3001), _SYN)),
}
"""Sequences of events."""
