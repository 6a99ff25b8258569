"""What a guest does with a directory that is shared by 9p in a moment."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from chamber.lab.agent import p9
from chamber.lab.agent.sessions.shared import sessions_of

if TYPE_CHECKING:
    from chamber.lab.agent.sessions import Session

__all__ = ("SESSIONS",)

SESSIONS: Final[dict[str, Session]] = sessions_of("9p", p9.OPTIONS)
