"""What a guest does with a shared directory in a moment."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from chamber.lab.agent import tree

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from chamber.lab.agent.report import Report
    from chamber.lab.agent.sessions import Session

__all__ = ("sessions_of",)


def sessions_of(kind: str, options: str) -> dict[str, Session]:
    """What is done with a shared directory: each time it is mounted and unmounted."""
    def read(top: Path, report: Report) -> None:
        for name in ("hello", "dir/inner"):
            report.attempt(f"read {name}", (top / name).read_bytes)
        report.attempt("list", os.listdir, top)

    def look(top: Path, report: Report) -> None:
        report.attempt("statfs", os.statvfs, top)
        report.attempt("attributes", os.lstat, top / "big")
        report.attempt("link", os.readlink, top / "link")
        report.attempt("extended attributes", os.listxattr, top / "hello")

    def change(top: Path, report: Report) -> None:
        with report.step("make and remove"):
            (top / "new").write_bytes(bytes(5000))
            try:
                os.rename(top / "new", top / "newer")
            finally:
                for name in ("new", "newer"):
                    (top / name).unlink(missing_ok=True)

    def large(top: Path, report: Report) -> None:
        report.attempt("read much", (top / "big").read_bytes)
        report.attempt("list much", os.listdir, top / "many")

    def do(call: Callable[[Path, Report], None]) -> Session:
        return lambda _virtio, report: tree.mounted(kind, options, report, call)

    return {"read": do(read), "look": do(look), "change": do(change), "large": do(large)}
