"""What a guest does with SCSI disks."""

from __future__ import annotations

import os
import random
import struct
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeVar

from chamber.lab.agent import kernel
from chamber.lab.agent.disk import BLKDISCARD, BLKFLSBUF, BLKRRPART, BLKZEROOUT, IOCTLS, Direct, compare
from chamber.lab.agent.patience import patient
from chamber.lab.agent.report import Silence, WrongData

if TYPE_CHECKING:
    from collections.abc import Callable

    from chamber.lab.agent.report import Report

__all__ = ("EXTRA", "STIMULI", "disk_of", "lose_extra")

_T = TypeVar("_T")
_PATTERN: Final = 0x63686D6272
_FIRST, _SECOND, EXTRA = (0, 0), (0, 1), (1, 0)
_READS: Final = {_FIRST: ((0, 8), (9, 1), (64, 128), (256, 512)), _SECOND: ((0, 8), (16, 16), (64, 128))}
_WRITES: Final = {_FIRST: ((1024, 8), (1124, 256)), _SECOND: ((256, 8), (320, 64))}
"""Sectors of 512 bytes: start and count. Everything that is not written keeps the pattern."""
_SG_SCSI_RESET: Final = 0x2284
_RESET_DEVICE: Final = 0x101
"""The device, and nothing more if that fails."""
_APPEAR_SECONDS: Final = 2.0
_LEAST_SECONDS: Final = 0.5
"""However hurried: who gives up has the driver removed amid an event, which Linux before 6.18 does not take. It
prepares the work that handles an event anew, in that work, and so loses that somebody waits for it. A host that sees
that nothing more is to come ends the wait sooner."""


def _first(virtio: str, pattern: str) -> str:
    """Name of the first of a device's files that a pattern fits; empty if there is none."""
    return next((path.name for path in (Path("/sys/bus/virtio/devices") / virtio).glob(pattern)), "")


def _wait(otherwise: str, done: Callable[[], _T]) -> _T:
    return kernel.wait_until(otherwise, done, _APPEAR_SECONDS, least=_LEAST_SECONDS)


def disk_of(virtio: str, unit: tuple[int, int] = _FIRST) -> str:
    """Wait for a disk to appear: that goes on behind the probe, and behind events."""
    name = _wait(f"the disk {unit[0]}:{unit[1]} did not appear",
                 lambda: _first(virtio, f"host*/target*/*:0:{unit[0]}:{unit[1]}/block/*"))
    # Its folder is the first of it, its file not always the last.
    for path in (Path("/dev") / name, Path("/sys/block") / name / "size"):
        _wait(f"the disk's {path} did not appear", path.exists)
    return name


def lose_extra(virtio: str) -> None:
    """Wait until the disk that comes and goes has gone, and its driver is done with the event that told of it.

    The disk's name goes first, its target last: the driver has the disk write its cache in between, for as long as
    the host takes.
    """
    _wait(f"the disk {EXTRA[0]}:{EXTRA[1]} did not disappear",
          lambda: not _first(virtio, f"host*/target*:0:{EXTRA[0]}"))
    time.sleep(0.002)


def _right(unit: tuple[int, int], sector: int, count: int) -> bytes:
    """Return what a disk holds at first: each sector's number, which its address is part of, XORed, 64 times."""
    first = ((unit[0] << 14 | unit[1]) << 32) + sector
    return b"".join(struct.pack("<Q", (first + i) ^ _PATTERN) * 64 for i in range(count))


def _sectors(disk: str) -> int:
    return int(Path(f"/sys/block/{disk}/size").read_text(encoding="ascii"))


def use(virtio: str, report: Report) -> None:
    """Read what is known, write, flush, read back, reset, on both disks."""
    for unit, reads in _READS.items():
        disk = disk_of(virtio, unit)
        report.note(f"{disk} has {_sectors(disk)} sectors")
        with Direct(disk, os.O_RDWR) as direct:
            for sector, count in reads:
                with report.step(f"read {count} sectors at {sector}"):
                    compare(direct.read(sector, count), _right(unit, sector, count), f"sector {sector}")
            dice = random.Random(unit[1])  # noqa: S311 - test data
            for sector, count in _WRITES[unit]:
                data = dice.randbytes(count * 512)
                # Only what was written without an error has to be there afterwards.
                with report.step(f"write {count} sectors at {sector}, flush, read back"):
                    direct.write(sector, data)
                    direct.flush()
                    compare(direct.read(sector, count), data, f"written sector {sector}")
            report.attempt("flush buffers", direct.ioctl, BLKFLSBUF)
            report.attempt("reset", direct.ioctl, _SG_SCSI_RESET, struct.pack("=i", _RESET_DEVICE))
            report.ask("reset")
        with report.step("read through the page cache"), open(f"/dev/{disk}", "rb") as cached:
            data = cached.read(128 * 1024)
            if len(data) < 128 * 1024:
                raise OSError(5, f"{len(data)} bytes in the page cache")
            compare(data, _right(unit, 0, 256), "page cache")


def inspect(virtio: str, report: Report) -> None:
    """Read everything that the kernel tells of the disk, and have it look again."""
    disk = disk_of(virtio)
    block = Path("/sys/block") / disk
    report.attempt("read sysfs", kernel.read_tree, block)
    report.attempt("read the device", kernel.read_tree, block / "device", depth=2)
    report.attempt("look at the device again", kernel.write, block / "device/rescan", "1")
    for host in (Path("/sys/bus/virtio/devices") / virtio).glob("host*/scsi_host/host*"):
        report.attempt("read the host", kernel.read_tree, host, depth=0)
        report.attempt("scan the host", kernel.write, host / "scan", "- - -")
    with Direct(disk_of(virtio), os.O_RDONLY) as direct:
        for name, request in IOCTLS.items():
            report.attempt(name, direct.ioctl, request, bytes(64))
        report.attempt("BLKRRPART", direct.ioctl, BLKRRPART)
        with report.step("read"):
            compare(direct.read(2, 1), _right(_FIRST, 2, 1), "sector 2")


def discard(virtio: str, report: Report) -> None:
    """Discard and zero ranges, and see zeros."""
    start, size = _WRITES[_FIRST][0][0], 64 << 10
    with Direct(disk_of(virtio), os.O_RDWR) as direct:
        for name, request in (("discard", BLKDISCARD), ("zero out", BLKZEROOUT)):
            with report.step(f"write, {name}, read zeros"):
                direct.write(start, b"\xd1" * size)
                direct.ioctl(request, struct.pack("=QQ", start * 512, size))
                compare(direct.read(start, size // 512), bytes(size), "zeroed sectors")


def hotplug(virtio: str, report: Report) -> None:
    """Use a disk that comes and goes."""
    disk_of(virtio)
    for turn in range(2):
        report.ask("plug")
        with report.step(f"plug, turn {turn + 1}"), Direct(disk_of(virtio, EXTRA), os.O_RDWR) as direct:
            compare(direct.read(0, 8), _right(EXTRA, 0, 8), "sector 0")
            data = bytes((turn,)) * 4096
            direct.write(8, data)
            direct.flush()
            compare(direct.read(8, 8), data, "written sector 8")
        report.ask("unplug")
        with report.step(f"unplug, turn {turn + 1}"):
            lose_extra(virtio)
    use(virtio, report)


def resize(virtio: str, report: Report) -> None:
    """See a disk shrink and grow."""
    disk = disk_of(virtio)
    whole = _sectors(disk)
    for action, sectors in (("shrink", whole // 2), ("grow", whole)):
        report.ask(action)
        with report.step(action):
            deadline = time.monotonic() + patient(_APPEAR_SECONDS)
            while _sectors(disk) != sectors:
                if time.monotonic() > deadline:
                    raise Silence(f"the disk has {_sectors(disk)} sectors, not {sectors}")
                time.sleep(0.002)
            with Direct(disk, os.O_RDONLY) as direct:
                compare(direct.read(sectors - 1, 1), _right(_FIRST, sectors - 1, 1), "last sector")
    if _sectors(disk) != whole:
        raise WrongData("the disk has another size than it had")


STIMULI: Final[dict[str, Callable[[str, Report], None]]] = {
    "use": use, "inspect": inspect, "discard": discard, "hotplug": hotplug, "resize": resize}
