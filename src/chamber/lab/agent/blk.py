"""What a guest does with a disk."""

from __future__ import annotations

import os
import random
import struct
from pathlib import Path
from typing import TYPE_CHECKING, Final

from chamber.lab.agent import kernel
from chamber.lab.agent.disk import BLKDISCARD, BLKFLSBUF, BLKRRPART, BLKZEROOUT, IOCTLS, Direct, compare

if TYPE_CHECKING:
    from collections.abc import Callable

    from chamber.lab.agent.report import Report

__all__ = ("STIMULI", "disk_of")

_PATTERN: Final = 0x63686D6272
_WRITE_AREA: Final = 1024
"""First sector that stimuli write to; everything below keeps the pattern."""
_BLKSECDISCARD: Final = 0x127D


def disk_of(virtio: str) -> str:
    """Name of the disk that a virtio device became."""
    folder = Path("/sys/bus/virtio/devices") / virtio / "block"
    kernel.wait_for("the disk", folder)
    return next(entry.name for entry in folder.iterdir())


def _right(sector: int, count: int) -> bytes:
    """Return what the pattern disk holds: each sector's number, XORed, 64 times."""
    return b"".join(struct.pack("<Q", (sector + i) ^ _PATTERN) * 64 for i in range(count))


def use(virtio: str, report: Report) -> None:
    """Read what is known, write, flush, read back; whole and in pieces."""
    disk = disk_of(virtio)
    sectors = int(Path(f"/sys/block/{disk}/size").read_text(encoding="ascii"))
    report.note(f"{disk} has {sectors} sectors")
    with Direct(disk, os.O_RDWR) as direct:
        for sector, count in ((0, 8), (9, 1), (64, 128), (256, 512)):
            with report.step(f"read {count} sectors at {sector}"):
                compare(direct.read(sector, count), _right(sector, count), f"sector {sector}")
        dice = random.Random(sectors)  # noqa: S311 - test data
        for sector, count in ((_WRITE_AREA, 8), (_WRITE_AREA + 100, 256)):
            data = dice.randbytes(count * 512)
            # Only what was written without an error has to be there afterwards.
            with report.step(f"write {count} sectors at {sector}, flush, read back"):
                direct.write(sector, data)
                direct.flush()
                compare(direct.read(sector, count), data, f"written sector {sector}")
        report.attempt("flush buffers", direct.ioctl, BLKFLSBUF)
    with report.step("read through the page cache"), open(f"/dev/{disk}", "rb") as cached:
        data = cached.read(256 * 1024)
        if len(data) < 256 * 1024:
            raise OSError(5, f"{len(data)} bytes in the page cache")
        compare(data, _right(0, 512), "page cache")


def inspect(virtio: str, report: Report) -> None:
    """Read everything that the kernel tells of the disk, and write what may be written."""
    disk = disk_of(virtio)
    block = Path("/sys/block") / disk
    report.attempt("read sysfs", kernel.read_tree, block)
    report.attempt("read the serial number", (block / "serial").read_bytes)
    for mode in ("write through", "write back"):
        report.attempt(f"set cache_type to {mode}", kernel.write, block / "cache_type", mode)
        report.attempt("read cache_type", (block / "cache_type").read_bytes)
    with Direct(disk, os.O_RDONLY) as direct:
        for name, request in IOCTLS.items():
            report.attempt(name, direct.ioctl, request, bytes(64))
        report.attempt("BLKRRPART", direct.ioctl, BLKRRPART)
    report.attempt("read device attributes", kernel.read_tree, Path("/sys/bus/virtio/devices") / virtio, depth=0)


def discard(virtio: str, report: Report) -> None:
    """Discard and zero ranges, and see zeros."""
    with Direct(disk_of(virtio), os.O_RDWR) as direct:
        for name, request in (("discard", BLKDISCARD), ("secure discard", _BLKSECDISCARD)):
            for start, size in ((_WRITE_AREA * 512, 65536), (_WRITE_AREA * 512, 1 << 20)):
                report.attempt(f"{name} {size} bytes", direct.ioctl, request, struct.pack("=QQ", start, size))
        with report.step("zero out"):
            direct.ioctl(BLKZEROOUT, struct.pack("=QQ", _WRITE_AREA * 512, 65536))
        with report.step("read zeros"):
            compare(direct.read(_WRITE_AREA, 128), bytes(65536), "zeroed sectors")


STIMULI: Final[dict[str, Callable[[str, Report], None]]] = {"use": use, "inspect": inspect, "discard": discard}
