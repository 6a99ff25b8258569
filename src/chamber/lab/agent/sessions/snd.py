"""What a guest does with a sound card in a moment."""

from __future__ import annotations

import contextlib
import random
import time
from typing import TYPE_CHECKING, Final

from chamber.lab.agent import snd

if TYPE_CHECKING:
    from chamber.lab.agent.report import Report
    from chamber.lab.agent.sessions import Session

__all__ = ("SESSIONS",)

_DICE: Final = random.Random(1)  # noqa: S311 - test data


def _play(virtio: str, report: Report) -> None:  # noqa: ARG001 - as the others
    """Play two periods."""
    report.attempt("play", snd.play, bytes(3840))


def _record(virtio: str, report: Report) -> None:  # noqa: ARG001 - as the others
    """Record a period."""
    report.attempt("record", snd.record, 480)


def _volume(virtio: str, report: Report) -> None:  # noqa: ARG001 - as the others
    """Turn a knob, and have a plug moved."""
    report.attempt("volume", snd.volume, _DICE.randrange(100), 50)
    report.ask("unplug")
    report.ask("plug")
    # Linux takes no removal amid an event of a jack; a host that sees that the guest has taken it ends this.
    with contextlib.suppress(TimeoutError):
        time.sleep(0.004)


SESSIONS: Final[dict[str, Session]] = {"play": _play, "record": _record, "volume": _volume}
