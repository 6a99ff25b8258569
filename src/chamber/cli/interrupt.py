"""Ctrl-C, once."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING, Final, Self

if TYPE_CHECKING:
    from types import FrameType, TracebackType

__all__ = ("InterruptOnce",)

_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class InterruptOnce:
    """Within it the first signal to end raises KeyboardInterrupt and further ones do nothing.

    So neither the removal of guests nor the report of what was done until then is cut short by a second key press; both
    take bounded time.
    """

    def __init__(self) -> None:
        self._armed = True

    def __enter__(self) -> Self:
        """Take the signals over."""
        self._before = [signal.signal(number, self._caught) for number in _SIGNALS]
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        """Give the signals back."""
        for number, handler in zip(_SIGNALS, self._before, strict=True):
            signal.signal(number, handler)

    def disarm(self) -> None:
        """Ignore signals from now on: only the report is left to do."""
        self._armed = False

    def _caught(self, _number: int, _frame: FrameType | None) -> None:
        if self._armed:
            self._armed = False
            raise KeyboardInterrupt
