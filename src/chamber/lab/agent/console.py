"""What a guest does with consoles and ports."""

from __future__ import annotations

import os
import random
import select
import termios
import time
import tty
from pathlib import Path
from typing import TYPE_CHECKING, Final

from chamber.lab.agent import kernel
from chamber.lab.agent.report import Silence, WrongData

if TYPE_CHECKING:
    from collections.abc import Callable

    from chamber.lab.agent.report import Report

__all__ = ("STIMULI",)

_PORTS: Final = Path("/sys/class/virtio-ports")
_ECHO_NAME: Final = "chamber.echo"
_TIMEOUT: Final = 0.5


def ports(virtio: str) -> list[str]:
    """Names of the ports of a device, such as ``vport1p0``."""
    device = (Path("/sys/bus/virtio/devices") / virtio).resolve()
    return sorted(p.name for p in _PORTS.iterdir() if (p / "device").resolve() == device)


def echo_port(virtio: str) -> str:
    """Wait for the port that echoes and return its name."""
    deadline = time.monotonic() + 1.0
    while True:
        for port in ports(virtio) if _PORTS.is_dir() else []:
            name = _PORTS / port / "name"
            if name.exists() and name.read_text(encoding="utf-8", errors="replace").strip() == _ECHO_NAME:
                return port
        if time.monotonic() > deadline:
            raise FileNotFoundError(2, f"no port is named {_ECHO_NAME}")
        time.sleep(0.002)


def read_exactly(fd: int, size: int) -> bytes:
    """Read `size` bytes, or raise `Silence`."""
    got = b""
    deadline = time.monotonic() + _TIMEOUT
    while len(got) < size:
        left = deadline - time.monotonic()
        if left <= 0 or not select.select([fd], [], [], left)[0]:
            raise Silence(f"{len(got)} of {size} bytes came back")
        part = os.read(fd, size - len(got))
        if not part:
            raise OSError(5, "the port was closed by the host")
        got += part
    return got


def _echo(fd: int, size: int, dice: random.Random) -> None:
    data = dice.randbytes(size)
    sent = 0
    while sent < size:
        if not select.select([], [fd], [], _TIMEOUT)[1]:
            raise Silence(f"{sent} of {size} bytes were taken")
        sent += os.write(fd, data[sent:])
    if read_exactly(fd, size) != data:
        raise WrongData(f"{size} bytes came back changed")


def use(virtio: str, report: Report) -> None:
    """Open the echo port, write, read back; write to the console."""
    dice = random.Random(virtio)  # noqa: S311 - test data
    with report.step("open the echo port"):
        fd = os.open(f"/dev/{echo_port(virtio)}", os.O_RDWR | os.O_NONBLOCK)
        try:
            for size in (1, 64, 1000, 4000):
                report.attempt(f"echo of {size} bytes", _echo, fd, size, dice)
        finally:
            os.close(fd)
    with report.step("console"):
        console = os.open("/dev/hvc0", os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK)
        try:
            tty.setraw(console, termios.TCSANOW)
            report.attempt("console echo", _echo, console, 64, dice)
        finally:
            os.close(console)


def inspect(virtio: str, report: Report) -> None:
    """Read everything that the kernel tells of the ports."""
    with report.step("sysfs"):
        for port in ports(virtio):
            kernel.read_tree(_PORTS / port, depth=1)
            (_PORTS / port / "name").read_bytes()
    report.attempt("debugfs", kernel.read_tree, kernel.DEBUGFS / "virtio-ports", depth=1)
    report.attempt("device attributes", kernel.read_tree,
                   Path("/sys/bus/virtio/devices") / virtio, depth=0)


STIMULI: Final[dict[str, Callable[[str, Report], None]]] = {"use": use, "inspect": inspect}
