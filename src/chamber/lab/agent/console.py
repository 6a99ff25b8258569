"""What a guest does with consoles and ports."""

from __future__ import annotations

import fcntl
import os
import random
import select
import termios
import time
import tty
from pathlib import Path
from typing import TYPE_CHECKING, Final

from chamber.lab.agent import kernel
from chamber.lab.agent.patience import patient
from chamber.lab.agent.report import Silence, WrongData

if TYPE_CHECKING:
    from collections.abc import Callable

    from chamber.lab.agent.report import Report

__all__ = ("STIMULI",)

_PORTS: Final = Path("/sys/class/virtio-ports")
_ECHO_NAME: Final = "chamber.echo"
_EXTRA_NAME: Final = "chamber.extra"
_TIMEOUT: Final = 0.5
_PAUSE: Final = 0.0005
_FOUND: Final[dict[tuple[str, str], str]] = {}


def ports(virtio: str) -> list[str]:
    """Names of the ports of a device, such as ``vport1p0``."""
    try:
        return sorted(os.listdir(f"/sys/bus/virtio/devices/{virtio}/virtio-ports"))
    except FileNotFoundError:
        return []


def find_port(virtio: str, wanted: str) -> str | None:
    """Return the port of that name, if there is one now: mostly where it was before."""
    before = _FOUND.get((virtio, wanted))
    if before is not None and _is_named(before, wanted):
        return before
    for port in ports(virtio):
        if _is_named(port, wanted):
            _FOUND[virtio, wanted] = port
            return port
    return None


def _is_named(port: str, wanted: str) -> bool:
    try:
        return kernel.read(f"{_PORTS}/{port}/name").strip() == wanted.encode()
    except OSError:  # one without a name has no such file
        return False


def wait_for_port(virtio: str, wanted: str) -> str:
    """Wait for the port of that name."""
    return kernel.wait_until(f"no port is named {wanted}", lambda: find_port(virtio, wanted), _TIMEOUT, pause=_PAUSE)


def read_exactly(fd: int, size: int) -> bytes:
    """Read `size` bytes from what does not block, or raise `Silence`."""
    got = b""
    deadline = 0.0
    while len(got) < size:
        try:
            part = os.read(fd, size - len(got))
        except BlockingIOError:  # they are there mostly, and to look at a clock takes as long
            now = time.monotonic()
            deadline = deadline or now + patient(_TIMEOUT)
            if now >= deadline or not select.select([fd], [], [], deadline - now)[0]:
                raise Silence(f"{len(got)} of {size} bytes came back") from None
            continue
        if not part:
            raise OSError(5, "the port was closed by the host")
        got += part
    return got


def _echo(fd: int, size: int, dice: random.Random) -> None:
    data = dice.randbytes(size)
    sent = 0
    while sent < size:
        if not select.select([], [fd], [], patient(_TIMEOUT))[1]:
            raise Silence(f"{sent} of {size} bytes were taken")
        taken = os.write(fd, data[sent:])
        if not taken:
            raise OSError(5, "the port takes nothing")
        sent += taken
    if read_exactly(fd, size) != data:
        raise WrongData(f"{size} bytes came back changed")


def use(virtio: str, report: Report) -> None:
    """Open the echo port, write, read back; write to the console."""
    dice = random.Random(virtio)  # noqa: S311 - test data
    with report.step("open the echo port"):
        fd = os.open(f"/dev/{wait_for_port(virtio, _ECHO_NAME)}", os.O_RDWR | os.O_NONBLOCK)
        try:
            for size in (1, 64, 1000, 4000):
                if not report.attempt(f"echo of {size} bytes", _echo, fd, size, dice):
                    break
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
    report.attempt("wait for the echo port", wait_for_port, virtio, _ECHO_NAME)
    with report.step("sysfs"):
        for port in ports(virtio):
            kernel.read_tree(_PORTS / port, depth=1)
    if (kernel.DEBUGFS / "virtio-ports").is_dir():
        report.attempt("debugfs", kernel.read_tree, kernel.DEBUGFS / "virtio-ports", depth=1)
    with report.step("size of the console"):
        console = os.open("/dev/hvc0", os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK)
        try:
            fcntl.ioctl(console, termios.TIOCGWINSZ, bytes(8))
        finally:
            os.close(console)
    report.attempt("device attributes", kernel.read_tree, Path("/sys/bus/virtio/devices") / virtio, depth=0)


def _wait_until_gone(virtio: str, wanted: str) -> None:
    kernel.wait_until(f"the port {wanted} stays", lambda: find_port(virtio, wanted) is None, _TIMEOUT, pause=_PAUSE)


def hotplug(virtio: str, report: Report) -> None:
    """Have ports plugged and unplugged, with and without somebody who holds them."""
    dice = random.Random(virtio)  # noqa: S311 - test data
    if not report.attempt("wait for the echo port", wait_for_port, virtio, _ECHO_NAME):
        return
    for turn, hold in enumerate((False, True, True)):
        with report.step(f"plug, turn {turn + 1}"):
            report.ask("plug")
            fd = os.open(f"/dev/{wait_for_port(virtio, _EXTRA_NAME)}", os.O_RDWR | os.O_NONBLOCK)
            try:
                _echo(fd, 64, dice)
                if hold:
                    report.ask("unplug")
                    _wait_until_gone(virtio, _EXTRA_NAME)
                    report.attempt("read a port that is gone", _expect_end, fd)
            finally:
                os.close(fd)
        if not hold:
            with report.step("unplug"):
                report.ask("unplug")
                _wait_until_gone(virtio, _EXTRA_NAME)
    report.ask("resize")
    report.attempt("still echoes", use, virtio, report)


def _expect_end(fd: int) -> None:
    """A port without a device gives an end or an error, and not data."""
    try:
        data = os.read(fd, 64)
    except OSError:
        return
    if data:
        raise WrongData(f"{len(data)} bytes from a port that is gone")


def hangup(virtio: str, report: Report) -> None:
    """Keep ports and the console open while the host closes and opens its side."""
    dice = random.Random(virtio)  # noqa: S311 - test data
    with report.step("hold the echo port"):
        fd = os.open(f"/dev/{wait_for_port(virtio, _ECHO_NAME)}", os.O_RDWR | os.O_NONBLOCK)
        try:
            for turn in range(2):
                report.ask("hangup")
                time.sleep(0.02)
                report.attempt(f"echo after hang-up {turn + 1}", _echo, fd, 64, dice)
        finally:
            os.close(fd)
    with report.step("hold the console"):
        console = os.open("/dev/hvc0", os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK)
        try:
            tty.setraw(console, termios.TCSANOW)
            report.ask("resize")
            report.attempt("remove under an open console", kernel.rebind_driver, virtio, 1)
        finally:
            os.close(console)


STIMULI: Final[dict[str, Callable[[str, Report], None]]] = {
    "use": use, "inspect": inspect, "hotplug": hotplug, "hangup": hangup,
}
