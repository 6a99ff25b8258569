"""A terminal of a guest, over which a process there and the host exchange lines."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import socket
import tty
from typing import TYPE_CHECKING, Any, Final

from chamber.lab.agent.worker import INTERRUPT

if TYPE_CHECKING:
    from collections.abc import Callable

    from chamber.link.eventloop import EventLoop

__all__ = ("UmlChannel",)

_MOST_READ: Final = 4096
"""At once: lines are short, and room for more would be made and given back for each."""


class UmlChannel:
    """The host's end.

    Args:
        loop: where it is read.
        heard: gets each message; what is no object of JSON is dropped, as a guest in trouble writes anything.
        terminal: the guest's end is a terminal here too, for a machine that wants one. User-Mode Linux takes any
            descriptor for its terminals, and a line over a socket takes two switches of processes less.

    Attributes:
        inner: the guest's end, until `handed_over`.

    """

    def __init__(self, loop: EventLoop, heard: Callable[[dict[str, Any]], None], *, terminal: bool = False) -> None:
        self._loop = loop
        self._heard = heard
        self._line = b""
        if terminal:
            self._fd, self.inner = pty.openpty()
            tty.setraw(self.inner)
        else:
            self._fd, self.inner = (end.detach() for end in socket.socketpair())
        os.set_blocking(self._fd, False)

    def handed_over(self) -> None:
        """The guest's process has its end; begin to listen."""
        os.close(self.inner)
        self.inner = -1
        self.listen()

    def listen(self) -> None:
        """Hear what the guest says, whose end stays open here."""
        self._loop.add_reader(self._fd, self._read)

    def send(self, message: object) -> None:
        """Write one line of JSON."""
        self.type(json.dumps(message).encode() + b"\n")

    def type(self, keys: bytes) -> None:
        """Write what is no JSON: each byte takes a guest a system call. One that does not read loses it."""
        with contextlib.suppress(BlockingIOError, BrokenPipeError):  # it has ended, which is seen elsewhere
            os.write(self._fd, keys)

    def wake(self) -> None:
        """Type what means nothing, for a machine that sleeps until there is input."""
        self.type(b"\n")

    def interrupt(self) -> None:
        """Type what ends a wait of the process there."""
        self.type(INTERRUPT)

    def _read(self) -> None:
        try:
            data = os.read(self._fd, _MOST_READ)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            data = b""
        if not data:  # the kernel closed its end
            self._loop.remove_reader(self._fd)
            return
        *lines, self._line = (self._line + data).split(b"\n")
        for line in lines:
            try:
                message = json.loads(str(line, "utf-8"))
            except ValueError:
                continue
            if isinstance(message, dict):
                self._heard(message)

    def close(self) -> None:
        """Close both ends."""
        self._loop.remove_reader(self._fd)
        os.close(self._fd)
        if self.inner >= 0:
            os.close(self.inner)
            self.inner = -1
