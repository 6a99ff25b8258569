"""A file that one process writes anew now and then while others read it."""

from __future__ import annotations

import json
import os
import time
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ("LiveJson", "write_live_json")

_READ_SECONDS: Final = 2.0


def write_live_json(path: Path, data: object) -> None:
    """Write a file so that a reader sees all of it, or what was before; another process may do the same."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}")
    temporary.write_text(json.dumps(data), encoding="utf-8")
    temporary.replace(path)


class LiveJson:
    """The reader's side.

    Args:
        path: what is written; may not be there yet.

    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._read_at = 0.0

    def read(self) -> Any:  # noqa: ANN401 - what JSON holds
        """Return what the file holds if it was not read for a while; None in between, or where there is none."""
        now = time.monotonic()
        if now < self._read_at:
            return None
        self._read_at = now + _READ_SECONDS
        try:
            return json.loads(self._path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
