"""What a guest does with a directory shared by virtiofs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final

from chamber.lab.agent import tree

if TYPE_CHECKING:
    from collections.abc import Callable

    from chamber.lab.agent.report import Report

__all__ = ("STIMULI",)

_KIND: Final = "virtiofs"


def use(virtio: str, report: Report) -> None:  # noqa: ARG001 - one signature for all stimuli
    """Read what is known, list, follow a link; make, write, rename and remove."""
    tree.mounted(_KIND, "", report, tree.use)


def inspect(virtio: str, report: Report) -> None:
    """Ask for everything that can be asked, and see a change that the host makes."""
    report.attempt("read device attributes", (Path("/sys/bus/virtio/devices") / virtio / "features").read_bytes)
    tree.mounted(_KIND, "", report, tree.inspect, tree.changed_by_the_host)


def many_files(virtio: str, report: Report) -> None:  # noqa: ARG001 - as above
    """Make many small files, read them in another order, remove them."""
    tree.mounted(_KIND, "", report, tree.many_files)


def direct(virtio: str, report: Report) -> None:  # noqa: ARG001 - as above
    """Write and read much at once, past the page cache."""
    tree.mounted(_KIND, "", report, tree.direct)


STIMULI: Final[dict[str, Callable[[str, Report], None]]] = {
    "use": use, "inspect": inspect, "tree": many_files, "direct": direct}
