"""A user-mode-linux guest that uses one device again and again, as fast as it can."""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import time
from typing import TYPE_CHECKING, Any, Final

from chamber.lab.agent.worker import FIRST_LETTER
from chamber.lab.leaks import LeakWatch
from chamber.lab.observation import TargetError
from chamber.lab.uml_guest import GuestDied, UmlGuest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

    from chamber.lab.uml_kernel import UmlKernel
    from chamber.link.eventloop import EventLoop
    from chamber.link.vhost_user import Servable
    from chamber.wire.virtio import DeviceType

__all__ = ("UmlWorker",)

_START_SECONDS: Final = 20.0
_NUDGE_SECONDS: Final = 0.1
_QUIET_SECONDS: Final = 0.002
"""After which a guest may be waiting for what it does not get."""
_MOMENT_SECONDS: Final = 0.0004
"""After which one that is idle does: longer than what it does with a device sleeps of its own accord."""
_NUDGED_SECONDS: Final = 0.0002
"""The same for one that has just been told to look."""
_SOON_SECONDS: Final = 0.02
"""What the device does within them is done at once where the guest has nothing to do until then."""


class UmlWorker:
    """A process in a guest of its own, and the steps that it is told to do.

    Args:
        kernel: what to boot.
        loop: where the device is served; `do` turns it.
        device: the type of device.
        provide: makes the device when the guest connects to it.
        options: further words for the kernel's command line.
        folder: where the guest's files go for as long as it lives.
        pci: whether what is provided carries a PCI function, in which the guest finds the device.

    Attributes:
        uses: names of what it can do with the device, besides ``connect``, ``disconnect``, ``probe`` and ``remove``.
        asked: gets what the guest asks of an honest host.
        failed: how many parts of the last steps did not go well.
        leaks: has seen all that the device read from buffers.

    Raises:
        TargetError: the guest does not start.

    """

    def __init__(self, kernel: UmlKernel, loop: EventLoop, device: DeviceType,
                 provide: Callable[[], Servable | None], *, options: tuple[str, ...] = (),
                 folder: Path | None = None, pci: bool = False) -> None:
        self.asked: Callable[[str], None] = lambda _action: None
        self.failed = 0
        self.uses: tuple[str, ...] = ()
        self._loop = loop
        self._may_end = False
        self._answers: list[dict[str, Any]] = []
        marker = secrets.token_bytes(24)
        self.leaks = LeakWatch(marker)
        self.guest = UmlGuest(kernel, loop, {device: provide}, options=options, terminal=self._heard, folder=folder,
                              observer=self.leaks.saw, pci=pci)
        assert self.guest.second is not None
        self._terminal = self.guest.second
        try:
            answer = self.guest.request(_START_SECONDS, do="work", platform=self.guest.platform[device],
                                        device=device.short, marker=marker.hex())
            self._pid = -1 if answer is None else int(answer["pid"])
            hello = self._wait(_START_SECONDS)
            if hello is None:
                raise TargetError(f"{kernel.path}: the guest's worker does not start")
        except GuestDied:
            words = self.guest.last_words()
            self.guest.close()
            raise TargetError(f"{kernel.path} did not start: {words}") from None
        except BaseException:
            self.guest.close()
            raise
        self._ends_waits = bool(hello["ends_waits"])
        self.uses = tuple(hello["uses"])
        self._letters = {step: letter for letter, step in enumerate((*hello["steps"], *self.uses), FIRST_LETTER)}

    def _heard(self, message: dict[str, Any]) -> None:
        if "ask" in message:
            self.asked(str(message["ask"]))
        else:
            self._answers.append(message)

    def do(self, steps: Iterable[str], seconds: float, *, stalled: Callable[[], bool] = lambda: False) -> str | None:
        """Have steps done; return what went wrong in them, '' if nothing, None if they do not end in time.

        `stalled` is asked when the guest has not been heard of for a moment: whether that is no wonder.

        Raises:
            GuestDied: the guest ended meanwhile.

        """
        steps = list(steps)
        self._answers.clear()
        self._may_end = self._ends_waits and not set(self.uses).isdisjoint(steps)
        self._terminal.type(bytes(map(self._letters.__getitem__, steps)) + b"\n")
        return self.go_on(seconds, stalled)

    def go_on(self, seconds: float, stalled: Callable[[], bool] = lambda: False) -> str | None:
        """Wait for steps that did not end in time to end after all; return as `do`.

        Raises:
            GuestDied: the guest ended meanwhile.

        """
        answer = self._wait(seconds, stalled)
        if answer is None:
            return None
        self.failed = int(answer.get("failed", 0))
        return str(answer.get("done"))

    def _wait(self, seconds: float, stalled: Callable[[], bool] = lambda: False) -> dict[str, Any] | None:
        answers = self._answers
        guest = self.guest
        heard = ended = now = time.monotonic()
        nudged = 0.0
        deadline = now + seconds
        while not answers and guest.alive:
            moment = _MOMENT_SECONDS if nudged < heard else _NUDGED_SECONDS
            came = self._loop.turn(min(deadline - now, moment))
            now = time.monotonic()
            if came:
                heard = ended = now
            owed = now - heard >= _MOMENT_SECONDS and stalled()
            if now >= deadline or (now - heard >= _QUIET_SECONDS and owed):
                return None
            if self._may_end and not owed and now - ended >= moment and guest.idle:
                ended = now
                if nudged < heard:
                    nudged = now
                    self._nudge()
                elif self._loop.expects(_SOON_SECONDS):
                    self._loop.hasten()
                else:  # it waits for what was lost with a lie
                    self._terminal.interrupt()
            if now - max(heard, nudged) >= _NUDGE_SECONDS:
                nudged = now
                self._nudge()
        if not answers:
            guest.drain()
            raise GuestDied(str(guest.exit_status))
        return answers[0]

    def _nudge(self) -> None:
        """Have the guest look for input: User-Mode Linux misses the signal of some now and then."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.guest.pid, signal.SIGIO)

    def where(self, seconds: float) -> list[str]:
        """Return the kernel stack of a worker that hangs; nothing if the guest does not answer in time."""
        with contextlib.suppress(GuestDied):
            answer = self.guest.request(seconds, do="stack", pid=self._pid)
            if answer is not None:
                return [str(frame) for frame in answer["stack"]]
        return []

    def close(self) -> None:
        """End the guest."""
        self.guest.close()
