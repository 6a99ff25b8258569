"""What a guest does with its balloon."""

from __future__ import annotations

import contextlib
import mmap
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

from chamber.lab.agent.patience import patient
from chamber.lab.agent.report import Silence, WrongData

if TYPE_CHECKING:
    from collections.abc import Callable

    from chamber.lab.agent.report import Report

__all__ = ("STIMULI",)

_VMSTAT: Final = Path("/proc/vmstat")
_PAGES: Final = 256
"""What the host asks for, in pages of 4 KiB."""
_SECONDS: Final = 3.0
_POLL_SECONDS: Final = 0.01
_ANSWER_SECONDS: Final = 0.03
_WORK: Final = 4 << 20
_HUGE_PAGES: Final = Path("/proc/sys/vm/nr_hugepages")
_HUGE_MB: Final = 2
_FREE_MB: Final = 192
"""What is left to be hinted, where there is more."""


def _ballooned() -> int:
    """Pages in the balloon, as the kernel counts them."""
    lines = (line.split() for line in _VMSTAT.read_text(encoding="ascii").splitlines())
    counts = {name: int(value) for name, value in lines}
    return counts["balloon_inflate"] - counts["balloon_deflate"]


def _wait(pages: int) -> None:
    deadline = time.monotonic() + patient(_SECONDS)
    while (found := _ballooned()) != pages:
        if time.monotonic() > deadline:
            raise Silence(f"{found} pages in the balloon, {pages} asked for")
        time.sleep(_POLL_SECONDS)


def _put_aside() -> None:
    """Keep most of a large guest's memory from being hinted, as huge pages of nobody: a hint clears all that is free.

    That lasts until the guest is gone: what is given back would be reported to the host anew.
    """
    with contextlib.suppress(FileNotFoundError):
        if int(_HUGE_PAGES.read_text(encoding="ascii")):
            return
        words = Path("/proc/meminfo").read_text(encoding="ascii").split()
        spare = int(words[words.index("MemFree:") + 1]) // 1024 - _FREE_MB
        if spare > 0:
            _HUGE_PAGES.write_text(str(spare // _HUGE_MB), encoding="ascii")


def _use_memory() -> None:
    """Fresh memory reads as zero, and keeps what is written to it."""
    with mmap.mmap(-1, _WORK) as memory:
        for start in range(0, _WORK, mmap.PAGESIZE):
            if memory[start:start + 64].strip(b"\0"):
                raise WrongData(f"fresh memory holds {memory[start:start + 16].hex()}")
            memory[start:start + 8] = start.to_bytes(8, "little")
        for start in range(0, _WORK, mmap.PAGESIZE):
            if memory[start:start + 8] != start.to_bytes(8, "little"):
                raise WrongData(f"memory at {start} forgot what was written")


def use(virtio: str, report: Report) -> None:  # noqa: ARG001 - one signature for all stimuli
    """Let the host take memory and give it back, and use memory meanwhile."""
    empty = _ballooned()
    for action, pages in (("inflate", empty + _PAGES), ("deflate", empty)):
        report.ask(action)
        report.attempt(action, _wait, pages)
        report.attempt(f"use memory after {action}", _use_memory)
    _answer(report)


def _answer(report: Report) -> None:
    """Let the kernel answer statistics and hints; it tells nobody here that it has."""
    _put_aside()
    for action in ("statistics", "hint", "statistics", "hint", "statistics"):
        report.ask(action)
        time.sleep(patient(_ANSWER_SECONDS))


def inspect(virtio: str, report: Report) -> None:
    """Answer statistics and hints, and read what the kernel tells."""
    _answer(report)
    report.attempt("read device attributes", (Path("/sys/bus/virtio/devices") / virtio / "features").read_bytes)
    report.attempt("use memory", _use_memory)


STIMULI: Final[dict[str, Callable[[str, Report], None]]] = {"use": use, "inspect": inspect}
