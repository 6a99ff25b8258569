"""What a guest does with a disk in a moment."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Final

from chamber.lab.agent import blk, kernel
from chamber.lab.agent.disk import BLKRRPART, Direct

if TYPE_CHECKING:
    from chamber.lab.agent.report import Report
    from chamber.lab.agent.sessions import Session

__all__ = ("SESSIONS",)


def _read_disk(virtio: str, report: Report) -> None:
    """Read from a disk, small and large."""
    with report.step("read"), Direct(blk.disk_of(virtio), os.O_RDONLY) as direct:
        direct.read(8, 8)
        direct.read(256, 64)


def _write_disk(virtio: str, report: Report) -> None:
    """Write to a disk, and flush."""
    with report.step("write"), Direct(blk.disk_of(virtio), os.O_RDWR) as direct:
        direct.write(1024, bytes(4096))
        direct.flush()


def _disk_attributes(virtio: str, report: Report) -> None:
    """Read what is told of a disk."""
    block = Path("/sys/block") / blk.disk_of(virtio)
    report.attempt("serial number", kernel.read, block / "serial")
    report.attempt("cache type", kernel.read, block / "cache_type")


def _disk_cache(virtio: str, report: Report) -> None:
    """Have a disk write back what it caches."""
    path = Path("/sys/block") / blk.disk_of(virtio) / "cache_type"
    report.attempt("set cache type", kernel.write, path, "write back")


def _disk_partitions(virtio: str, report: Report) -> None:
    """Look for partitions."""
    with report.step("partitions"), Direct(blk.disk_of(virtio), os.O_RDONLY) as direct:
        direct.ioctl(BLKRRPART)


SESSIONS: Final[dict[str, Session]] = {
    "read": _read_disk, "write": _write_disk, "attributes": _disk_attributes, "cache": _disk_cache,
    "partitions": _disk_partitions}
