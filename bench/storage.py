"""Disks and directories of one stock guest, served by Chamber and by the programs of QEMU, in one run."""

from __future__ import annotations

import contextlib
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from chamber.lab.observation import TargetError
from chamber.lab.uml_guest import UmlGuest
from chamber.lab.uml_kernel import find_kernel
from chamber.lab.uml_program import connect, disconnect, run_program
from chamber.link.eventloop import EventLoop
from chamber.wire.virtio import DeviceType

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ("disk_rows",)

_IMAGE: Final = 64 << 20
_MEMORY_MB: Final = 384
_ROUNDS: Final = 3
_START_SECONDS: Final = 20.0
_FIO_SECONDS: Final = 60.0
_JOBS: Final = (("4 KiB", "4k", 1, "16m"), ("4 KiB", "4k", 32, "16m"), ("1 MiB", "1m", 1, "256m"),
                ("1 MiB", "1m", 32, "256m"))
_CHAMBER: Final = "chamber"


@dataclass(frozen=True, slots=True)
class _Server:
    """A back end in a process of its own."""

    name: str
    command: tuple[str, ...]
    path: Path


@contextlib.contextmanager
def _running(server: _Server) -> Iterator[None]:
    process = subprocess.Popen(server.command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + _START_SECONDS
        while not _listens(server.path):
            if process.poll() is not None or time.monotonic() > deadline:
                raise TargetError(f"{server.name} does not serve: {' '.join(server.command)}")
            time.sleep(0.05)
        yield
    finally:
        process.terminate()
        process.wait()


def _listens(path: Path) -> bool:
    """Whether a socket is there; connecting to it would be a front end's first word."""
    return path.is_socket()


def _fio(guest: UmlGuest, block: str, depth: int, amount: str) -> tuple[float, float]:
    """Random reads past the page cache: requests a second, MB a second."""
    result = run_program(
        guest, "fio", "--name=bench", "--filename=/dev/vda", "--direct=1", "--ioengine=libaio", f"--iodepth={depth}",
        f"--bs={block}", "--rw=randread", "--norandommap", f"--io_size={amount}", "--thread", "--minimal",
        seconds=_FIO_SECONDS)
    fields = result.output.split(";")
    if result.status or len(fields) < 8:
        raise TargetError(f"fio: {result.output[-200:]}")
    return float(fields[7]), float(fields[6]) * 1024 / 1e6


def disk_rows() -> list[str]:
    """Requests and bytes a second of random reads from the same image, medians and ratios."""
    daemon = shutil.which("qemu-storage-daemon")
    if daemon is None or shutil.which("fio") is None:
        raise TargetError("it needs qemu-storage-daemon (qemu-system-common) and fio")
    with tempfile.TemporaryDirectory(prefix="chamber-bench-") as name, EventLoop() as loop:
        folder = Path(name)
        image = folder / "disk"
        image.write_bytes(os.urandom(_IMAGE))
        servers = [
            _Server(_CHAMBER, (sys.executable, "-m", "chamber", "serve", "blk", "--socket", str(folder / "c"),
                               "--file", str(image)), folder / "c"),
            _Server("qemu-storage-daemon", (
                daemon, "--blockdev", f"driver=file,node-name=disk,filename={image}",
                "--export", f"type=vhost-user-blk,id=e,node-name=disk,addr.type=unix,addr.path={folder / 'q'},writable=on"),
                folder / "q")]
        figures: dict[tuple[str, str, int], list[tuple[float, float]]] = {}
        with contextlib.ExitStack() as stack:
            guests = {}
            for server in servers:
                stack.enter_context(_running(server))
                guest = UmlGuest(find_kernel(), loop, {}, sockets={DeviceType.BLOCK: server.path},
                                 memory_mb=_MEMORY_MB)
                stack.callback(guest.close)
                connect(guest, DeviceType.BLOCK)
                guests[server.name] = guest
            # Turn about, so that what else the machine does falls on both.
            for _ in range(_ROUNDS):
                for size, block, depth, amount in _JOBS:
                    for server_name, guest in guests.items():
                        figures.setdefault((server_name, size, depth), []).append(_fio(guest, block, depth, amount))
            for guest in guests.values():
                disconnect(guest, DeviceType.BLOCK)
    return [_row(figures, size, depth, [s.name for s in servers]) for size, _, depth, _ in _JOBS]


def _row(figures: dict[tuple[str, str, int], list[tuple[float, float]]], size: str, depth: int,
         names: list[str]) -> str:
    medians = [statistics.median(rate for rate, _ in figures[name, size, depth]) for name in names]
    bandwidth = [statistics.median(rate for _, rate in figures[name, size, depth]) for name in names]
    ratio = statistics.median(a / b for (a, _), (b, _) in zip(figures[names[0], size, depth],
                                                              figures[names[1], size, depth], strict=True))
    return (f"| {size}, depth {depth} | {medians[0]:,.0f} | {medians[1]:,.0f} | {bandwidth[0]:,.0f} | "
            f"{bandwidth[1]:,.0f} | {ratio:.2f} |")

