"""What a process of a campaign has done: counters in a file that it and who watches it share."""

from __future__ import annotations

import json
import mmap
import os
import struct
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from chamber.fuzz.live_json import write_live_json

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from chamber.lab.kernel.places import Place

__all__ = ("Counts", "Progress", "read_counts", "read_reached")

_COUNTS: Final = struct.Struct("=5Qd")


@dataclass(frozen=True, slots=True)
class Counts:
    """Counters.

    Attributes:
        executions: inputs executed.
        lies: lies told.
        reports: executions that reported something.
        boots: guests started.
        edges: edges of the drivers that were taken at least once.
        seconds: for how long it has executed.

    """

    executions: int = 0
    lies: int = 0
    reports: int = 0
    boots: int = 0
    edges: int = 0
    seconds: float = 0.0

    def __add__(self, other: Counts) -> Counts:
        """Add up what two processes did; of edges, which they share, the larger number counts."""
        return Counts(self.executions + other.executions, self.lies + other.lies, self.reports + other.reports,
                      self.boots + other.boots, max(self.edges, other.edges), self.seconds + other.seconds)


class Progress:
    """The writer's side; it goes on from what the file says, so that a campaign that is resumed adds up.

    Args:
        folder: where the files are.
        job: name of the process.

    """

    def __init__(self, folder: Path, job: str) -> None:
        self._path = folder / f"{job}.counts"
        self._reached_path = folder / f"{job}.reached"
        before = read_counts(self._path)
        fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            os.ftruncate(fd, _COUNTS.size)
            self._map = mmap.mmap(fd, _COUNTS.size)
        finally:
            os.close(fd)
        self._before = before
        self._begin = time.monotonic()
        self._edges = before.edges
        self._reached: set[Place] = set(read_reached(self._reached_path))
        self.executions = before.executions
        self.lies = before.lies
        self.reports = before.reports
        self.boots = before.boots

    def taken(self, edges: int) -> None:
        """Say which edges were taken so far: a byte for each, zero or not, all as one number."""
        taken = edges.to_bytes((edges.bit_length() + 7) // 8, "little")
        self._edges = max(len(taken) - taken.count(0), self._before.edges)

    def reached(self, places: Iterable[Place]) -> None:
        """Add the places that a guest has reached, and show them."""
        self._reached.update(places)
        write_live_json(self._reached_path, sorted(self._reached))

    def write(self) -> None:
        """Show the counters."""
        self._map[:] = _COUNTS.pack(self.executions, self.lies, self.reports, self.boots, self._edges,
                                    self._before.seconds + time.monotonic() - self._begin)

    def close(self) -> None:
        """Write for the last time."""
        self.write()
        self._map.close()


def read_counts(path: Path) -> Counts:
    """Read the counters of one process; zeros if there are none."""
    try:
        return Counts(*_COUNTS.unpack(path.read_bytes()))
    except (OSError, struct.error):
        return Counts()


def read_reached(path: Path) -> list[Place]:
    """Read the places that one process reached."""
    try:
        return [(str(module), str(section), int(offset))
                for module, section, offset in json.loads(path.read_text(encoding="utf-8"))]
    except (OSError, ValueError, TypeError):
        return []
