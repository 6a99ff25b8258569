"""What a guest does with a balloon in a moment."""

from __future__ import annotations

import contextlib
import time
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from chamber.lab.agent.report import Report
    from chamber.lab.agent.sessions import Session

__all__ = ("SESSIONS",)


def _memory(virtio: str, report: Report) -> None:  # noqa: ARG001 - as the others
    """Give the host memory, and take it back."""
    for action in ("inflate", "statistics", "deflate", "hint"):
        report.ask(action)
        # A host that sees that the guest has nothing left to do ends this, and no more than this.
        with contextlib.suppress(TimeoutError):
            time.sleep(0.002)


SESSIONS: Final[dict[str, Session]] = {"memory": _memory}
