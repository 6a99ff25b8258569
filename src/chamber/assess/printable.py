"""Text from a hostile host, made fit to be shown.

Evidence, transcripts and consoles hold bytes that an attacker chose. Printed as they are, they could move a terminal's
cursor, change its title, hide lines or reverse the reading direction; and XML cannot hold them at all. So every string
that comes from a target passes through here once, before anything else sees it.
"""

from __future__ import annotations

import re
from typing import Final

__all__ = ("printable",)

_SUSPECT: Final = re.compile(r"[^\x20-\x7e\n\t]")


def _escape(match: re.Match[str]) -> str:
    character = match[0]
    if character.isprintable():
        return character
    code = ord(character)
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def printable(text: str, limit: int | None = None) -> str:
    """Return `text` with control, format and unassigned characters escaped; newline and tab stay.

    Args:
        text: any string, lone surrogates included.
        limit: characters of `text` to keep at most; what is cut is said so.

    """
    if limit is not None and len(text) > limit:
        text = f"{text[:limit]}\n[{len(text) - limit} more characters]"
    return _SUSPECT.sub(_escape, text.replace("\r\n", "\n"))
