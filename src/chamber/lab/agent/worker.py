"""A process of the guest that uses one device again and again, as often as the host says so: for fuzzers.

It talks over a terminal of its own, and may hang, in the kernel and for good: PID 1 does not wait for it.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import signal
import termios
import tty
from typing import TYPE_CHECKING, Final

from chamber.lab.agent import kernel
from chamber.lab.agent.patience import set_patience
from chamber.lab.agent.report import Report

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType

__all__ = ("FIRST_LETTER", "INTERRUPT", "serve")

INTERRUPT: Final = b"\x03"
"""What the host types to end a wait."""
FIRST_LETTER: Final = ord("a")
"""Stands for the first step: the host types a letter for each, as a guest reads what is typed byte by byte."""

_TERMINAL: Final = "/dev/tty2"
_PATIENCE: Final = 0.01
"""A silent device costs some milliseconds then."""


class _Quiet(Report):
    """A report of which nothing is sent but what the host is asked for.

    Attributes:
        failed: steps that did not go well.

    """

    failed = 0

    def send(self, **message: object) -> None:
        """Send what asks for something."""
        if "ask" in message:
            super().send(**message)
        elif message.get("outcome") not in {"begin", "ok", "note"}:
            self.failed += 1


class _Waits:
    """Ends a wait for the device when the host, which sees that nothing more is to come, says so.

    A time-out would have to be long, for a host that has much else to do, and most of what lies about a device leaves
    somebody without an answer.

    Attributes:
        may_end: whether the process is at something that may be ended.

    """

    may_end = False

    def __init__(self, terminal: int) -> None:
        signal.signal(signal.SIGINT, self._end)
        os.setsid()
        fcntl.ioctl(terminal, termios.TIOCSCTTY, 0)
        attributes = termios.tcgetattr(terminal)
        attributes[3] |= termios.ISIG | termios.NOFLSH
        characters = attributes[6]
        characters[:] = [b"\0"] * len(characters)
        characters[termios.VMIN] = 1
        characters[termios.VINTR] = INTERRUPT
        termios.tcsetattr(terminal, termios.TCSANOW, attributes)

    def _end(self, _signal: int, _frame: FrameType | None) -> None:
        if self.may_end:
            raise TimeoutError(errno.ETIMEDOUT, "the host has nothing more to say")


class _Device:
    """One device, and how far it is.

    Attributes:
        virtio: name of the virtio device while it is connected.

    """

    def __init__(self, platform: str) -> None:
        self.virtio = ""
        self._platform = platform
        self._bind: tuple[int, int] | None = None

    def connect(self) -> None:
        """Plug the device in; its driver probes it."""
        kernel.bind_platform(self._platform)
        self.virtio = kernel.virtio_name(self._platform)

    def disconnect(self) -> None:
        """Pull the device out."""
        with contextlib.suppress(OSError):
            self.remove()
        self.virtio = ""
        kernel.unbind_platform(self._platform)

    def probe(self) -> None:
        """Have the driver probe the device, which it was removed from."""
        os.write(self._driver()[1], self.virtio.encode())

    def remove(self) -> None:
        """Remove the driver from the device."""
        os.write(self._driver()[0], self.virtio.encode())

    def _driver(self) -> tuple[int, int]:
        if self._bind is None:
            driver = kernel.driver_of(self.virtio)
            self._bind = os.open(driver / "unbind", os.O_WRONLY), os.open(driver / "bind", os.O_WRONLY)
        return self._bind


def serve(platform: str, uses: dict[str, Callable[[str, Report], None]], *, ends_waits: bool) -> None:
    """Do what the host says, for ever: a letter for each step, and then a line of JSON with what went wrong in them.

    Args:
        platform: the device.
        uses: what is done with it, by name.
        ends_waits: whether the host may end a wait in them.

    """
    terminal = os.open(_TERMINAL, os.O_RDWR | os.O_NOCTTY)
    tty.setraw(terminal)
    set_patience(_PATIENCE)
    waits = _Waits(terminal)
    kernel.SECRET.wanted = False
    report = _Quiet(terminal)
    device = _Device(platform)
    steps: dict[str, Callable[[], None]] = {
        "connect": device.connect, "disconnect": device.disconnect, "probe": device.probe, "remove": device.remove}
    letters = dict(enumerate((*steps, *uses), FIRST_LETTER))
    pending = b""
    Report.send(report, hello=os.getpid(), steps=list(steps), uses=list(uses), ends_waits=ends_waits)
    while True:
        pending += os.read(terminal, 4096)
        while b"\n" in pending:
            line, pending = pending.split(b"\n", 1)
            failed = ""
            report.failed = 0
            for letter in line:
                step = letters[letter]
                try:
                    if step in steps:
                        steps[step]()
                    else:
                        waits.may_end = ends_waits
                        try:
                            uses[step](device.virtio, report)
                        finally:
                            waits.may_end = False
                except OSError as error:
                    failed = failed or f"{step}: {error.strerror or error}"
                except Exception as error:  # a bug of a stimulus must reach the host, and the next may be well
                    failed = failed or f"{step}: {type(error).__name__}: {error}"
                waits.may_end = False  # the end of a wait may have come amid the line above that says so
            # What the kernel does behind a system call shall have its turn before the host looks.
            os.sched_yield()
            Report.send(report, done=failed, failed=report.failed)
