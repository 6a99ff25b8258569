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

from bench.tag_relay import TagRelay
from chamber.lab.observation import TargetError
from chamber.lab.uml_guest import UmlGuest
from chamber.lab.uml_kernel import find_kernel
from chamber.lab.uml_program import connect, disconnect, run_program
from chamber.link.eventloop import EventLoop
from chamber.wire.virtio import DeviceType

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ("disk_rows", "file_rows")

_CONTENT: Final = 64 << 20
_MEMORY_MB: Final = 384
_ROUNDS: Final = 3
_START_SECONDS: Final = 20.0
_FIO_SECONDS: Final = 60.0
_JOBS: Final = (("4 KiB", "4k", 1, "16m"), ("4 KiB", "4k", 32, "16m"), ("1 MiB", "1m", 1, "256m"),
                ("1 MiB", "1m", 32, "256m"))
_VIRTIOFSD: Final = "/usr/lib/qemu/virtiofsd"
_MOUNT: Final = "/tmp/mnt"  # noqa: S108 - in the guest

Rates = dict[tuple[str, str, int], list[tuple[float, float]]]


@dataclass(frozen=True, slots=True)
class _Server:
    """A back end in a process of its own, and the socket where it serves."""

    command: tuple[str, ...]
    path: Path


@contextlib.contextmanager
def _running(server: _Server) -> Iterator[None]:
    process = subprocess.Popen(server.command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + _START_SECONDS
        # Connecting to it, to see whether it listens, would be a front end's first word.
        while not server.path.is_socket():
            if process.poll() is not None or time.monotonic() > deadline:
                raise TargetError(f"it does not serve: {' '.join(server.command)}")
            time.sleep(0.05)
        yield
    finally:
        process.terminate()
        process.wait()


def _chamber(device: str, path: Path, *options: str) -> _Server:
    return _Server((sys.executable, "-m", "chamber", "serve", device, "--socket", str(path), *options), path)


def _fio(guest: UmlGuest, file: str, block: str, depth: int, amount: str) -> tuple[float, float]:
    """Random reads past the page cache: requests a second, MB a second."""
    result = run_program(
        guest, "fio", "--name=bench", f"--filename={file}", "--direct=1", "--ioengine=libaio", f"--iodepth={depth}",
        f"--bs={block}", "--rw=randread", "--norandommap", f"--io_size={amount}", "--thread", "--minimal",
        seconds=_FIO_SECONDS)
    fields = result.output.split(";")
    if result.status or len(fields) < 8:
        raise TargetError(f"fio: {result.output[-200:]}")
    return float(fields[7]), float(fields[6]) * 1024 / 1e6


def _measure(guests: dict[str, UmlGuest], file: str, where: str) -> list[str]:
    """Read the same from each guest, turn about, so that what else the machine does falls on both."""
    rates: Rates = {}
    for _ in range(_ROUNDS):
        for size, block, depth, amount in _JOBS:
            for name, guest in guests.items():
                rates.setdefault((name, size, depth), []).append(_fio(guest, file, block, depth, amount))
    ours, theirs = guests
    return [_row(rates[ours, size, depth], rates[theirs, size, depth], f"{size}, depth {depth}{where}")
            for size, _, depth, _ in _JOBS]


def _row(ours: list[tuple[float, float]], theirs: list[tuple[float, float]], what: str) -> str:
    requests = [statistics.median(rate for rate, _ in side) for side in (ours, theirs)]
    bandwidth = [statistics.median(rate for _, rate in side) for side in (ours, theirs)]
    ratio = statistics.median(a / b for (a, _), (b, _) in zip(ours, theirs, strict=True))
    return (f"| {what} | {requests[0]:,.0f} | {requests[1]:,.0f} | {bandwidth[0]:,.0f} | {bandwidth[1]:,.0f} | "
            f"{ratio:.2f} |")


@contextlib.contextmanager
def _guest(loop: EventLoop, device: DeviceType, path: Path,
           serve: Callable[[], contextlib.AbstractContextManager[None]]) -> Iterator[UmlGuest]:
    """Boot a guest, then start its server: virtiofsd ends with its first connection, and the boot makes one."""
    guest = UmlGuest(find_kernel(), loop, {}, sockets={device: path}, memory_mb=_MEMORY_MB)
    with contextlib.closing(guest), serve():
        connect(guest, device)
        yield guest
        disconnect(guest, device)


def disk_rows(where: str = "") -> list[str]:
    """Requests and bytes a second of random reads from the same image, by Chamber and by qemu-storage-daemon.

    `where` is said in each row.
    """
    daemon = shutil.which("qemu-storage-daemon")
    if daemon is None or shutil.which("fio") is None:
        raise TargetError("it needs qemu-storage-daemon (qemu-system-common) and fio")
    with tempfile.TemporaryDirectory(prefix="chamber-bench-") as name, EventLoop() as loop, \
            contextlib.ExitStack() as stack:
        folder = Path(name)
        image = folder / "disk"
        image.write_bytes(os.urandom(_CONTENT))
        theirs = folder / "q"
        export = f"type=vhost-user-blk,id=e,node-name=disk,addr.type=unix,addr.path={theirs},writable=on"
        guests = {}
        for server in (_chamber("blk", folder / "c", "--file", str(image)),
                       _Server((daemon, "--blockdev", f"driver=file,node-name=disk,filename={image}",
                                "--export", export), theirs)):
            guests[server.command[0]] = stack.enter_context(
                _guest(loop, DeviceType.BLOCK, server.path, lambda server=server: _running(server)))  # type: ignore[misc]
        return _measure(guests, "/dev/vda", where)


def file_rows(where: str = "") -> list[str]:
    """The same from a file of a shared directory, by Chamber and by virtiofsd."""
    if not Path(_VIRTIOFSD).exists() or shutil.which("fio") is None:
        raise TargetError("it needs virtiofsd (qemu-system-common) and fio")
    with tempfile.TemporaryDirectory(prefix="chamber-bench-") as name, EventLoop() as loop, \
            contextlib.ExitStack() as stack:
        folder = Path(name)
        shared = folder / "shared"
        shared.mkdir()
        (shared / "file").write_bytes(os.urandom(_CONTENT))
        ours = _chamber("fs", folder / "c", "--directory", str(shared))
        theirs = _Server((_VIRTIOFSD, f"--socket-path={folder / 'v'}", "-o", f"source={shared}"), folder / "v")

        @contextlib.contextmanager
        def relayed() -> Iterator[None]:
            with _running(theirs), TagRelay(folder / "r", theirs.path, "chamber"):
                yield

        guests = {}
        for label, path, serve in (("chamber", ours.path, lambda: _running(ours)),
                                   ("virtiofsd", folder / "r", relayed)):
            guests[label] = guest = stack.enter_context(_guest(loop, DeviceType.FS, path, serve))
            for command in (("mount", "-t", "tmpfs", "scratch", "/tmp"), ("mkdir", _MOUNT),  # noqa: S108 - its own
                            ("mount", "-t", "virtiofs", "chamber", _MOUNT)):
                if run_program(guest, *command).status:
                    raise TargetError(f"{label}: {' '.join(command)}")
            stack.callback(run_program, guest, "umount", _MOUNT)
        return _measure(guests, f"{_MOUNT}/file", where)
