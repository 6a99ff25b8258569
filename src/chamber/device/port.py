"""What is at the other end of a console port."""

from __future__ import annotations

import os
import pty
import select
import tty
from typing import TYPE_CHECKING, Final, Self

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ("BUFFER_LIMIT", "CallbackBackend", "EchoBackend", "FileBackend", "Port", "PortBackend")

BUFFER_LIMIT: Final = 1 << 20
"""Bytes that wait for a slow reader on either side; what comes beyond is lost, as on a serial line."""


class PortBackend:
    """The host's end of a port: hears what the guest writes, and answers by `Port.send`. This one is deaf and dumb."""

    def received(self, port: Port, data: bytes) -> None:
        """The guest wrote."""

    def opened(self, port: Port, is_open: bool) -> None:
        """The guest opened or closed the port."""

    def pollable(self, port: Port) -> dict[int, Callable[[], None]]:  # noqa: ARG002 - for overriding
        """File descriptors to wait for, and what to call when one is readable."""
        return {}

    def close(self) -> None:
        """Give back what the back end holds."""


class EchoBackend(PortBackend):
    """Sends back whatever the guest writes."""

    def received(self, port: Port, data: bytes) -> None:
        """Echo."""
        port.send(data)


class CallbackBackend(PortBackend):
    """Hands what the guest writes to a function, which may answer by `Port.send`."""

    def __init__(self, call: Callable[[Port, bytes], None]) -> None:
        self._call = call

    def received(self, port: Port, data: bytes) -> None:
        """Call."""
        self._call(port, data)


class FileBackend(PortBackend):
    """Connects a port to file descriptors: what is readable goes to the guest, what the guest writes is written.

    The descriptors become non-blocking and belong to the back end. Its port must exist before a transport asks the
    device what to wait for.

    Attributes:
        path: of the terminal that `terminal` made, else empty.

    """

    def __init__(self, read_fd: int, write_fd: int) -> None:
        self.path = ""
        self._read_fd = read_fd
        self._write_fd = write_fd
        self._own = {read_fd, write_fd}
        self._backlog = bytearray()
        for fd in self._own:
            os.set_blocking(fd, False)
        # The transport waits for this one descriptor, so that what it waits for can change behind it.
        self._epoll = select.epoll()
        self._events: dict[int, int] = {}
        self._watch(read_fd, select.EPOLLIN)

    @classmethod
    def terminal(cls) -> Self:
        """Make a pseudo-terminal; `path` is what a user opens."""
        master, slave = pty.openpty()
        tty.setraw(slave)
        backend = cls(master, master)
        backend.path = os.ttyname(slave)
        # Held open: without any opener the master reports an error instead of silence.
        backend._own.add(slave)
        return backend

    def _watch(self, fd: int, events: int, *, off: bool = False) -> None:
        before = self._events.get(fd, 0)
        after = before & ~events if off else before | events
        if after == before:
            return
        self._events[fd] = after
        if not before:
            self._epoll.register(fd, after)
        elif after:
            self._epoll.modify(fd, after)
        else:
            self._epoll.unregister(fd)

    def received(self, port: Port, data: bytes) -> None:  # noqa: ARG002 - the back end serves one port
        """Write now, or when there is room again."""
        self._backlog += data[:BUFFER_LIMIT - len(self._backlog)]
        self._drain()

    def _drain(self) -> None:
        try:
            while self._backlog:
                del self._backlog[:os.write(self._write_fd, self._backlog)]
        except BlockingIOError:
            self._watch(self._write_fd, select.EPOLLOUT)
            return
        except OSError:
            self._backlog.clear()  # nobody reads any more
        self._watch(self._write_fd, select.EPOLLOUT, off=True)

    def pollable(self, port: Port) -> dict[int, Callable[[], None]]:
        """One descriptor that is readable when either side can go on."""
        return {self._epoll.fileno(): lambda: self._ready(port)}

    def _ready(self, port: Port) -> None:
        for fd, events in self._epoll.poll(0):
            if fd == self._write_fd and events & (select.EPOLLOUT | select.EPOLLERR) and self._backlog:
                self._drain()
            if fd == self._read_fd and events & (select.EPOLLIN | select.EPOLLHUP | select.EPOLLERR):
                self._read(port)

    def _read(self, port: Port) -> None:
        try:
            data = os.read(self._read_fd, 1 << 16)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if data:
            port.send(data)
        else:
            self._watch(self._read_fd, select.EPOLLIN, off=True)

    def close(self) -> None:
        """Close the descriptors."""
        self._epoll.close()
        for fd in self._own:
            os.close(fd)
        self._own = set()


class Port:
    """A port of a console device, from the host's side.

    Attributes:
        name: shown to the guest; empty for none.
        console: whether the guest shall make it a console (hvc).
        backend: who is at the host's end.
        id: number of the port; -1 before it is added to a device.
        ready: the driver set the port up.
        guest_open: a program of the guest has it open.
        host_open: somebody is at the host's end.
        waiting: bytes on their way to the guest.

    """

    def __init__(self, name: str = "", *, console: bool = False, backend: PortBackend | None = None) -> None:
        self.name = name
        self.console = console
        self.backend = EchoBackend() if backend is None else backend
        self.id = -1
        self.ready = False
        self.guest_open = False
        self.host_open = True
        self.waiting = bytearray()
        self.wake: Callable[[], None] = lambda: None

    def send(self, data: bytes) -> int:
        """Send to the guest as it opens the port and gives buffers; return how many bytes found room."""
        taken = data[:BUFFER_LIMIT - len(self.waiting)]
        self.waiting += taken
        self.wake()
        return len(taken)

    def forget_guest(self) -> None:
        """Go back to the state before a driver came."""
        self.ready = False
        self.guest_open = False
        self.waiting.clear()
