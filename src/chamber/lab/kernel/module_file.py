"""What a kernel module's file says of itself."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ("module_name", "module_needs")

_DEPENDS: Final = re.compile(rb"\0depends=([\w,-]*)\0")


def module_name(path: Path) -> str:
    """Return what other modules call it, compressed or not."""
    return path.name.partition(".ko")[0].replace("-", "_")


def module_needs(data: bytes) -> list[str]:
    """Return the names of the modules that one says it needs, as it lists them; its bytes are not compressed."""
    says = _DEPENDS.search(data)
    return [name for name in says[1].decode().replace("-", "_").split(",") if name] if says else []
