"""What a guest does with consoles and ports in a moment."""

from __future__ import annotations

import fcntl
import os
import select
import termios
import time
import tty
from pathlib import Path
from typing import TYPE_CHECKING, Final

from chamber.lab.agent import console, kernel

if TYPE_CHECKING:
    from chamber.lab.agent.report import Report
    from chamber.lab.agent.sessions import Session

__all__ = ("SESSIONS",)

_RAW: Final = Path("/sys/class/virtio-ports")
_MOMENT: Final = 0.0002


def _echo_port(virtio: str, report: Report) -> None:
    """Write to the echo port, and read back."""
    with report.step("echo"):
        fd = os.open(f"/dev/{console.wait_for_port(virtio, 'chamber.echo')}", os.O_RDWR | os.O_NONBLOCK)
        try:
            os.write(fd, bytes(64))
            console.read_exactly(fd, 64)
        finally:
            os.close(fd)


def _terminal(_virtio: str, report: Report) -> None:
    """Write to the console, and read back."""
    with report.step("console"):
        fd = os.open("/dev/hvc0", os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK)
        try:
            tty.setraw(fd, termios.TCSANOW)
            os.write(fd, bytes(16))
            console.read_exactly(fd, 16)
            fcntl.ioctl(fd, termios.TIOCGWINSZ, bytes(8))
        finally:
            os.close(fd)


def _every_port(virtio: str, report: Report) -> None:
    """Open, poll and write to whatever ports there are, and read their names."""
    for name in console.ports(virtio):
        report.attempt("name", kernel.read, f"{_RAW}/{name}/name")
        with report.step("port"):
            fd = os.open(f"/dev/{name}", os.O_RDWR | os.O_NONBLOCK)
            try:
                os.write(fd, b"word")
                select.select([fd], [], [], _MOMENT)
                os.read(fd, 100)
            finally:
                os.close(fd)
    if (kernel.DEBUGFS / "virtio-ports").is_dir():
        report.attempt("debugfs", kernel.read_tree, kernel.DEBUGFS / "virtio-ports", depth=1)


def _come_and_go(virtio: str, report: Report) -> None:
    """Hold a port while the host unplugs it, and another comes."""
    with report.step("come and go"):
        report.ask("plug")
        fd = os.open(f"/dev/{console.wait_for_port(virtio, 'chamber.extra')}", os.O_RDWR | os.O_NONBLOCK)
        try:
            os.write(fd, bytes(8))
            report.ask("unplug")
            select.select([fd], [], [], _MOMENT)
            os.read(fd, 100)
        finally:
            os.close(fd)


def _new_size(virtio: str, report: Report) -> None:  # noqa: ARG001 - as the others
    """Have the host change the console's size."""
    report.ask("resize")
    time.sleep(_MOMENT)


def _closed_and_opened(virtio: str, report: Report) -> None:
    """Hold a port while the host closes its side and opens it."""
    with report.step("hang up"):
        fd = os.open(f"/dev/{console.wait_for_port(virtio, 'chamber.echo')}", os.O_RDWR | os.O_NONBLOCK)
        try:
            report.ask("hangup")
            os.write(fd, bytes(8))
            console.read_exactly(fd, 8)
        finally:
            os.close(fd)


SESSIONS: Final[dict[str, Session]] = {
    "echo": _echo_port, "terminal": _terminal, "ports": _every_port, "come-and-go": _come_and_go, "size": _new_size,
    "closed-and-opened": _closed_and_opened}
