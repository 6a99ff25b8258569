"""A guest with Chamber's agent in it: its process, its console, and what it is asked."""

from __future__ import annotations

import contextlib
import fcntl
import os
import termios
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from chamber.lab.dma_watch import pool_of

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable

    from chamber.lab.kernel.coverage import CoverageMap
    from chamber.lab.uml_channel import UmlChannel
    from chamber.link.eventloop import EventLoop
    from chamber.wire.virtio import DeviceType

__all__ = ("BOOT_SECONDS", "AgentGuest", "GuestDied")

BOOT_SECONDS: Final = 60.0
_CONSOLE_LIMIT: Final = 1 << 20
_NO_BYTES: Final = bytes(4)
"""FIONREAD's answer where there is nothing."""
_NUDGE_SECONDS: Final = 1.0


class GuestDied(Exception):
    """The guest's process ended while something was asked of it."""


class AgentGuest:
    """What all guests have in which `chamber.lab.agent` is PID 1.

    Args:
        loop: where the guest is heard and its devices are served; `request` turns it.

    Attributes:
        platform: what the guest calls each device.
        folder: a folder of its own, which goes with it.
        asked: gets what the guest asks of an honest host.
        steps: what the last request's stimuli told, step by step.
        coverage: what its drivers execute, if its kernel counts that.
        sections: where its modules' code is: for each module, the addresses of its sections.

    """

    def __init__(self, loop: EventLoop) -> None:
        self.platform: dict[DeviceType, str] = {}
        self.asked: Callable[[str], None] = lambda _action: None
        self.steps: list[dict[str, Any]] = []
        self.coverage: CoverageMap | None = None
        self.sections: dict[str, dict[str, int]] = {}
        self.folder = Path()
        self._loop = loop
        self._console = bytearray()
        self._console_fd = -1
        self._messages: list[dict[str, Any]] = []
        self._process: subprocess.Popen[bytes] | None = None
        self._watch = -1
        self._agent: UmlChannel
        self._closing = contextlib.ExitStack()

    def _attend(self, stack: contextlib.ExitStack, console: int) -> None:
        """Hear the console and the end of the process from now on, for as long as the stack lasts."""
        assert self._process is not None
        self._console_fd = console
        self._watch = os.pidfd_open(self._process.pid)
        stack.callback(os.close, self._watch)
        for fd, call in ((console, self._read_console), (self._watch, self._reap)):
            self._loop.add_reader(fd, call)
            stack.callback(self._loop.remove_reader, fd)

    def _nudge(self) -> None:
        """Have a guest look for input that it may have missed a signal of."""

    def wake(self) -> None:
        """Wake a suspended guest, as a press on the power button does."""

    def where(self) -> str:
        """Have the kernel print where it is; empty if it can't."""
        return ""

    def close(self) -> None:
        """End the guest and remove what it left."""
        self._closing.close()

    # What the guest says.

    def _heard(self, message: dict[str, Any]) -> None:
        if "ask" in message:
            self.asked(str(message["ask"]))
        elif "outcome" in message:
            self.steps.append(message)
        else:
            self._messages.append(message)

    def _read_console(self) -> None:
        # Who reads from an empty pipe wakes whoever writes to it: User-Mode Linux would look at all of its inputs.
        if fcntl.ioctl(self._console_fd, termios.FIONREAD, _NO_BYTES) == _NO_BYTES and self.alive:
            return
        try:
            data = os.read(self._console_fd, 65536)
        except BlockingIOError:
            return
        if not data:
            self._loop.remove_reader(self._console_fd)
        if len(self._console) < _CONSOLE_LIMIT:
            self._console += data

    def _reap(self) -> None:
        assert self._process is not None
        self._process.poll()
        self._loop.remove_reader(self._watch)

    @property
    def alive(self) -> bool:
        """Whether the guest's process runs."""
        return self._process is not None and self._process.returncode is None

    @property
    def exit_status(self) -> int | None:
        """How the process ended: its status, or the negated signal."""
        return None if self._process is None else self._process.returncode

    @property
    def pid(self) -> int:
        """Process id of the guest's kernel."""
        assert self._process is not None
        return self._process.pid

    def take_console(self) -> str:
        """Return what the kernel printed since the last call."""
        self._read_console()
        text = self._console.decode(errors="replace").replace("\r", "")
        self._console.clear()
        return text

    def last_words(self) -> str:
        """Return the last line that the kernel printed."""
        lines = [line for line in self.take_console().splitlines() if line.strip() and "[<" not in line]
        return next((line for line in lines if "panic" in line), lines[-1] if lines else "it printed nothing")

    # What the guest is asked.

    def request(self, seconds: float, /, **message: object) -> dict[str, Any] | None:
        """Ask the agent something and serve the devices until it answers; None if it does not within `seconds`.

        Raises:
            GuestDied: the guest ended meanwhile.

        """
        self._messages.clear()
        self.steps = []
        self._agent.send(message)
        return self._wait(lambda m: "done" in m, seconds, nudge=True)

    def _wait(self, wanted: Callable[[dict[str, Any]], bool], seconds: float, *,
              nudge: bool = False) -> dict[str, Any] | None:
        """Wait for a message; `nudge` has a guest look for input now and then, as any signal of input does.

        Once in a thousand requests User-Mode Linux (6.1) misses the signal that tells of one, and nothing else would
        ever wake it. Before it handles the signal, it would die of it.
        """
        answer: list[dict[str, Any]] = []

        def arrived() -> bool:
            answer.extend(m for m in self._messages if wanted(m))
            return bool(answer) or not self.alive

        deadline = time.monotonic() + seconds
        while not self._loop.run_until(arrived, min(deadline, time.monotonic() + _NUDGE_SECONDS)):
            if time.monotonic() >= deadline:
                break
            if nudge:
                self._nudge()
        if answer:
            return answer[0]
        if not self.alive:
            self.drain()
            raise GuestDied(str(self.exit_status))
        return None

    def log(self, word: str) -> list[str]:
        """Return the lines of the kernel's log that have a word; its console shows fewer.

        Raises:
            GuestDied: the guest ended meanwhile.

        """
        answer = self.request(BOOT_SECONDS, do="log", word=word)
        return [] if answer is None else list(answer.get("lines", []))

    def bounce_pool(self) -> range | None:
        """Ask the kernel where its bounce pool is; None if it has none, or ended."""
        try:
            return pool_of("\n".join(self.log("software IO TLB")))
        except GuestDied:
            return None

    def drain(self) -> None:
        """Read all that the kernel has printed."""
        for _ in range(64):
            before = len(self._console)
            self._read_console()
            if len(self._console) == before:
                break

    def settle(self, seconds: float) -> None:
        """Serve the devices for a while."""
        self._loop.run_until(lambda: not self.alive, time.monotonic() + seconds)

    def processor_seconds(self) -> float:
        """Processor time that the guest's kernel has used; it stands still while the guest sleeps."""
        fields = Path(f"/proc/{self.pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
