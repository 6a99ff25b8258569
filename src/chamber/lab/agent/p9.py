"""What a guest does with a directory shared by 9p."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path
from typing import TYPE_CHECKING, Final

from chamber.lab.agent import tree
from chamber.lab.agent.report import WrongData

if TYPE_CHECKING:
    from collections.abc import Callable

    from chamber.lab.agent.report import Report

__all__ = ("OPTIONS", "STIMULI")

_KIND: Final = "9p"
OPTIONS: Final = "trans=virtio,version=9p2000.L,msize=65536"
_XATTR: Final = b"value"


def use(virtio: str, report: Report) -> None:  # noqa: ARG001 - one signature for all stimuli
    """Read what is known, list, follow a link; make, write, rename and remove."""
    tree.mounted(_KIND, OPTIONS, report, tree.use)


def inspect(virtio: str, report: Report) -> None:
    """Ask for everything that can be asked, and lock a file."""
    report.attempt("read the tag", (Path("/sys/bus/virtio/devices") / virtio / "mount_tag").read_bytes)
    tree.mounted(_KIND, OPTIONS, report, tree.inspect, _locks)


def modify(virtio: str, report: Report) -> None:  # noqa: ARG001 - as above
    """Make many files and what is no file, and give one an attribute; keep nothing of it in the page cache."""
    tree.mounted(_KIND, f"{OPTIONS},cache=none", report, tree.many_files, _special)


def _locks(top: Path, report: Report) -> None:
    with report.step("lock a file"), (top / "hello").open("rb+") as file:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB, 10)
        fcntl.lockf(file, fcntl.LOCK_UN)


def _special(top: Path, report: Report) -> None:
    with report.step("a named pipe, and an attribute"):
        os.mkfifo(top / "pipe")
        (top / "file").write_bytes(b"content")
        try:
            os.setxattr(top / "file", "user.one", _XATTR)
            if os.getxattr(top / "file", "user.one") != _XATTR:
                raise WrongData("an attribute that was set")
        finally:
            for name in ("pipe", "file"):
                (top / name).unlink()


STIMULI: Final[dict[str, Callable[[str, Report], None]]] = {"use": use, "inspect": inspect, "modify": modify}
