"""What drivers have executed, in a file that the kernel and this process share (``tree/coverage.h``)."""

from __future__ import annotations

import mmap
import os
import struct
from typing import TYPE_CHECKING, Final, Self

if TYPE_CHECKING:
    from pathlib import Path
    from types import TracebackType

__all__ = ("EDGES", "CoverageMap")

EDGES: Final = 1 << 16
_PLACES: Final = 1 << 16
_HEADER: Final = 4096
_EVER: Final = _HEADER + EDGES + 8 * _PLACES
_BYTES: Final = _EVER + EDGES
_NO_EDGES: Final = bytes(EDGES)
_MAGIC: Final = 0x564F43424D484301
_WORD_MAGIC, _WORD_ON, _WORD_LOST = 0, 1, 2


class CoverageMap:
    """The shared file. Reading it asks nothing of the guest, and goes on when the guest has crashed.

    The guest's kernel writes it: what it says is a count and an address, and nothing is done with them but to compare
    and to look them up.

    Args:
        path: the file, made anew; `close` removes it.

    """

    def __init__(self, path: Path) -> None:
        self.path = path
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            os.ftruncate(fd, _BYTES)
            self._map = mmap.mmap(fd, _BYTES)
        except BaseException:
            path.unlink()
            raise
        finally:
            os.close(fd)
        self._words = memoryview(self._map).cast("Q")
        self.edges = memoryview(self._map)[_HEADER:_HEADER + EDGES]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        self.close()

    @property
    def argument(self) -> str:
        """The word for the kernel's command line."""
        return f"chamber.coverage={self.path}"

    @property
    def attached(self) -> bool:
        """Whether a kernel counts into it."""
        return self._words[_WORD_MAGIC] == _MAGIC

    @property
    def lost(self) -> int:
        """How often a place found no room."""
        return int(self._words[_WORD_LOST])

    def count(self, *, on: bool) -> None:
        """Switch counting on or off; it is off at first."""
        self._words[_WORD_ON] = int(on)

    def clear_edges(self) -> None:
        """Forget the counts of edges; places stay."""
        self.edges[:] = _NO_EDGES

    def clear_places(self) -> None:
        """Forget the places."""
        self._map[_HEADER + EDGES:_EVER] = bytes(8 * _PLACES)

    def ever(self) -> bytes:
        """Return which edges were taken since the guest began, whatever was forgotten: a byte of 1 for each."""
        return self._map[_EVER:]

    def places(self) -> set[int]:
        """Return the addresses behind each call of the hook that was reached: one for each basic block."""
        raw = self._map[_HEADER + EDGES:_EVER]
        return {place for (place,) in struct.iter_unpack("<Q", raw) if place}

    def close(self) -> None:
        """Unmap the file and remove it; a guest that has it mapped keeps it to itself."""
        for view in (self._words, self.edges):
            view.release()
        self._map.close()
        self.path.unlink(missing_ok=True)
