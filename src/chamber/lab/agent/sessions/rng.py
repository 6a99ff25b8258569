"""What a guest does with a source of random bytes in a moment."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final

from chamber.lab.agent import rng

if TYPE_CHECKING:
    from chamber.lab.agent.report import Report
    from chamber.lab.agent.sessions import Session

__all__ = ("SESSIONS",)


def _random(virtio: str, report: Report) -> None:  # noqa: ARG001 - as the others
    """Read random bytes."""
    with report.step("read"):
        fd = os.open("/dev/hwrng", os.O_RDONLY | os.O_NONBLOCK)
        try:
            rng.read(fd, 64)
        finally:
            os.close(fd)


SESSIONS: Final[dict[str, Session]] = {"read": _random}
