"""What a guest does with keyboards, mice and touch screens in a moment."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final

from chamber.lab.agent import input  # noqa: A004 - the device's name

if TYPE_CHECKING:
    from chamber.lab.agent.report import Report
    from chamber.lab.agent.sessions import Session

__all__ = ("SESSIONS",)


def _events_of(action: str) -> Session:
    """Have the host use the device, and read the events."""
    def session(virtio: str, report: Report) -> None:
        with report.step(action):
            fd = os.open(input.node(virtio), os.O_RDWR | os.O_NONBLOCK)
            try:
                input.act(fd, action, report)
            finally:
                os.close(fd)
    return session


SESSIONS: Final[dict[str, Session]] = {action: _events_of(action) for action in ("type", "move", "touch")}
