"""What more devices, longer queues and longer chains cost; drawn for docs/."""

from __future__ import annotations

import contextlib
import os
import statistics
import tempfile
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final

from bench.ring import chain_seconds, device_memory, reads_a_second
from chamber.device.blk import BlkDevice
from chamber.device.disk import FileDisk
from chamber.lab.observation import TargetError
from chamber.lab.uml_guest import UmlGuest
from chamber.lab.uml_kernel import find_kernel
from chamber.lab.uml_program import connect, disconnect, run_program
from chamber.link.eventloop import EventLoop
from chamber.link.listener import Backend
from chamber.wire.virtio import DeviceType

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ("Points", "chain_rows", "device_rows", "draw", "queue_rows")

_DISKS: Final = (1, 4, 16)
_SIZES: Final = tuple(1 << n for n in range(4, 16))
_CHAINS: Final = (1, 8, 64, 512, 4096, 32752)
_RUNS: Final = 3
_DISK: Final = 4 << 20
_MEMORY_MB: Final = 384
_SPIN_SECONDS: Final = 0.0002

Points = list[tuple[int, float]]


def queue_rows() -> tuple[list[str], Points]:
    """Reads of 4 KiB a second and the device's memory, by queue size."""
    rows, points = [], []
    for size in _SIZES:
        rate = statistics.median(reads_a_second(size) for _ in range(_RUNS))
        points.append((size, 1e6 / rate))
        rows.append(f"| {size} | {rate:,.0f} | {1e6 / rate:.1f} | {device_memory(size):,} |")
    return rows, points


def chain_rows() -> tuple[list[str], Points]:
    """Microseconds for a read, by the descriptors that it is scattered over."""
    rows, points = [], []
    for parts in _CHAINS:
        times = max(8, 4096 // parts)
        seconds = statistics.median(chain_seconds(parts, times=times) for _ in range(_RUNS))
        points.append((parts, seconds * 1e6))
        rows.append(f"| {parts} | {seconds * 1e6:,.0f} | {seconds * 1e6 / parts:.2f} |")
    return rows, points


def device_rows() -> tuple[list[str], Points]:
    """All disks of one guest read at once, served by one process: requests a second and memory."""
    rows, points = [], []
    for count in _DISKS:
        rate, megabytes = _disks(count)
        points.append((count, rate))
        rows.append(f"| {count} | {rate:,.0f} | {megabytes:.1f} |")
    return rows, points


def _disks(count: int) -> tuple[float, float]:
    with tempfile.TemporaryDirectory(prefix="chamber-bench-") as folder, EventLoop(spin=_SPIN_SECONDS) as loop, \
            contextlib.ExitStack() as stack:
        image = Path(folder, "image")
        image.write_bytes(os.urandom(_DISK))
        before = _private_mb()
        paths = [Path(folder, str(number)) for number in range(count)]
        for path in paths:
            stack.enter_context(contextlib.closing(Backend(path, partial(_disk, image), loop, replace=True)))
        guest = stack.enter_context(contextlib.closing(UmlGuest(
            find_kernel(), loop, {}, more=[(DeviceType.BLOCK, path) for path in paths], memory_mb=_MEMORY_MB)))
        for name in guest.more:
            connect(guest, name)
        files = ":".join(f"/dev/vd{chr(ord('a') + number)}" for number in range(count))
        result = run_program(
            guest, "fio", "--name=bench", f"--filename={files}", "--direct=1", "--ioengine=libaio",
            f"--iodepth={4 * count}", "--bs=4k", "--rw=randread", "--norandommap", f"--io_size={64 << 20}",
            "--file_service_type=roundrobin", "--thread", "--minimal")
        fields = result.output.split(";")
        if result.status or len(fields) < 8:
            raise TargetError(f"fio: {result.output[-200:]}")
        memory = _private_mb() - before
        for name in guest.more:
            disconnect(guest, name)
        return float(fields[7]), memory


def _disk(image: Path) -> BlkDevice:
    return BlkDevice(disk=FileDisk(image, read_only=True))


def _private_mb() -> float:
    """Memory of this process that no other shares."""
    lines = Path(f"/proc/{os.getpid()}/smaps_rollup").read_text(encoding="ascii").splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("Private_")) * 1024 / 1e6


def draw(path: Path, queues: Points, chains: Points, devices: Points) -> None:
    """Draw the three curves beside each other."""
    import matplotlib as mpl  # noqa: PLC0415 - loaded for this alone

    mpl.use("svg")
    from matplotlib import pyplot as plt  # noqa: PLC0415 - as above

    mpl.rcParams["svg.hashsalt"] = "chamber"
    figure, axes = plt.subplots(1, 3, figsize=(12, 3.4), layout="constrained")
    panels: Sequence[tuple[Points, str, str, str]] = (
        (devices, "disks of one guest", "requests a second, all together", "linear"),
        (queues, "queue size", "µs a 4 KiB read", "linear"),
        (chains, "descriptors of a chain", "µs a chain", "log"),
    )
    for axis, (points, across, up, scale) in zip(axes, panels, strict=True):
        axis.plot([x for x, _ in points], [y for _, y in points], marker="o")
        axis.set(xlabel=across, ylabel=up, xscale="log", yscale=scale)
        axis.set_xticks([x for x, _ in points][::max(1, len(points) // 6)])
        axis.xaxis.set_major_formatter("{x:g}")
        axis.minorticks_off()
        axis.grid(visible=True, alpha=0.3)
        if scale == "linear":
            axis.set_ylim(bottom=0)
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)
