"""What a guest does with a crypto device in a moment."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from chamber.lab.agent import crypto

if TYPE_CHECKING:
    from chamber.lab.agent.report import Report
    from chamber.lab.agent.sessions import Session

__all__ = ("SESSIONS",)


def _encrypt(virtio: str, report: Report) -> None:  # noqa: ARG001 - as the others
    """Encrypt two blocks."""
    report.attempt("encrypt", crypto.encrypt)


def _key_pair(virtio: str, report: Report) -> None:  # noqa: ARG001 - as the others
    """Decrypt with a key pair."""
    crypto.decrypt_with_key_pair(report)


SESSIONS: Final[dict[str, Session]] = {"encrypt": _encrypt, "key-pair": _key_pair}
