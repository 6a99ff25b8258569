"""Unix sockets as the host's ends of connections, after the convention of Firecracker and vhost-device-vsock.

A guest that connects to port P of the host reaches the program that listens at ``PATH_P``. A program that connects to
``PATH`` and sends ``CONNECT P`` and a newline reaches port P of the guest; when the guest accepts it reads ``OK Q`` and
a newline, where Q is the host's port, and what it reads before that is the end of a socket: nobody listens.

Messages (SOCK_SEQPACKET on both sides) work the same way: a program listens at ``PATH_P`` with a socket of that type,
or connects to ``PATH.seqpacket``, where both lines are messages. Message boundaries are kept, empty messages are not.
"""

from __future__ import annotations

import errno
import re
import select
import socket
from collections import deque
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Final

from chamber.device.vsock_connection import MESSAGE, HostEnd
from chamber.device.vsock_service import Host
from chamber.wire.vsock import PORT_ANY, VsockType

if TYPE_CHECKING:
    from collections.abc import Callable

    from chamber.device.vsock_service import Dial

__all__ = ("UnixHost",)

_BACKLOG: Final = 128
_SOCKETS: Final = 1024
"""Sockets in all, with those that have not said where to yet, and those that still take what a gone guest sent."""
_GREETING: Final = 32
_CONNECT: Final = re.compile(rb"CONNECT (\d{1,10})\n?")
_EVENTS_PER_TURN: Final = 256
_IN: Final = select.EPOLLIN | select.EPOLLRDHUP | select.EPOLLET
_TYPES: Final = {VsockType.STREAM: socket.SOCK_STREAM, VsockType.SEQPACKET: socket.SOCK_SEQPACKET}


class _SocketEnd(HostEnd):
    """A connection's end that is a Unix socket.

    The socket is watched edge-triggered: that something can be read is remembered until the guest has room for it, so
    that a slow guest costs no turns of the loop.
    """

    def __init__(self, host: UnixHost, sock: socket.socket, kind: VsockType, *, called: bool) -> None:
        self._host = host
        self._sock = sock
        self._kind = kind
        self._called = called
        self._backlog: deque[memoryview] = deque()
        self._readable = True
        self._ending = False
        self._ended = False
        self._finished = False
        self._gone = False
        self._writing = False

    # From the guest.

    def opened(self) -> None:
        """Say so to a program that asked."""
        if self._called:
            self._write(memoryview(b"OK %d\n" % self.connection.host_port))

    def received(self, data: bytes) -> None:
        """Write now, or when there is room; only then the guest may send more."""
        view = memoryview(data)
        if self._backlog:
            self._backlog.append(view)
            return
        written = self._write(view)
        if written:
            self.connection.consume(written)
        if written < len(view):
            self._backlog.append(view[written:])
            self._watch_writing(on=True)

    def _write(self, data: memoryview) -> int:
        """Write what fits; what a program does not want any more counts as written."""
        try:
            return self._sock.send(data, socket.MSG_NOSIGNAL)
        except BlockingIOError:
            return 0
        except OSError as error:
            if error.errno == errno.EMSGSIZE:
                self.connection.reset()  # a message can't be cut
            else:
                self.connection.listen_no_more()  # what the program wrote before it closed is still to be read
            return len(data)

    def _drain(self) -> None:
        while self._backlog:
            first = self._backlog[0]
            written = self._write(first)
            self.connection.consume(written)
            if not self._backlog:
                return  # closed meanwhile
            if written < len(first):
                self._backlog[0] = first[written:]
                return
            self._backlog.popleft()
        self._watch_writing(on=False)
        if self._gone:
            self._close()
        elif self._finished:
            self._stop_writing()

    def finished(self) -> None:
        """Pass the end on, after all that came before it."""
        self._finished = True
        if not self._backlog:
            self._stop_writing()

    def unheard(self) -> None:
        """The program's writing fails from here on."""
        self._shutdown(socket.SHUT_RD)

    def closed(self, *, graceful: bool) -> None:
        """Close the socket; what the guest sent before it closed in order is still written."""
        self._gone = True
        if not graceful or not self._backlog:
            self._close()

    def _stop_writing(self) -> None:
        self._shutdown(socket.SHUT_WR)

    def _shutdown(self, how: int) -> None:
        try:
            self._sock.shutdown(how)
        except OSError:
            self.connection.hang_up()  # the program closed its end

    # From the program.

    def fill(self, space: int) -> None:
        """Read once."""
        if not self._readable:
            return
        # One byte more than fits tells a message that is too long.
        limit = space + 1 if self._kind is VsockType.SEQPACKET else space
        buffer = self._host.buffer
        try:
            size = self._sock.recv_into(buffer, limit)
        except BlockingIOError:
            self._readable = False
            return
        except OSError:
            size = 0
            self._ending = True
        if size > space:
            self.connection.reset()
        elif size:
            # A stream that gave less than asked has no more; whatever comes then is a new edge.
            self._readable = size == limit or self._kind is VsockType.SEQPACKET or self._ending
            self.connection.send(bytes(buffer[:size]))
        elif self._ending or self._kind is VsockType.STREAM:
            self._readable = False
            self._ended = True
            self._end()
        else:  # an empty message
            self.connection.poke()

    def _end(self) -> None:
        """The program closed its end, or half of it."""
        poll = select.poll()
        poll.register(self._sock, 0)
        if poll.poll(0):
            self.connection.hang_up()
        else:
            self.connection.finish()

    def event(self, events: int) -> None:
        """Something happened to the socket."""
        over = events & (select.EPOLLHUP | select.EPOLLERR)
        if over or events & select.EPOLLRDHUP:
            self._ending = True
        if events & select.EPOLLOUT and self._backlog:
            self._drain()
        if self._gone:
            if over:
                self._close()
        elif self._ended:
            self._end()
        elif events & ~select.EPOLLOUT:
            self._readable = True
            self.connection.poke()

    def _watch_writing(self, *, on: bool) -> None:
        if self._writing != on:
            self._writing = on
            self._host.watch(self._sock, writing=on)

    def _close(self) -> None:
        self._backlog.clear()
        self._host.forget(self._sock)


class UnixHost(Host):
    """Programs that listen and connect on Unix sockets.

    Args:
        path: where programs connect that want to reach the guest, and what the paths of those that listen start with.

    Attributes:
        buffer: what sockets are read into.

    Raises:
        OSError: the path is in use or can't be made.

    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.buffer = memoryview(bytearray(MESSAGE + 1))
        self._dial: Dial = lambda _port, _kind, _end: None
        self._epoll = select.epoll()
        self._handlers: dict[int, Callable[[int], None]] = {}
        self._sockets: dict[int, socket.socket] = {}
        self._closing = ExitStack()
        with ExitStack() as stack:
            stack.callback(self._epoll.close)
            for kind, where in ((VsockType.STREAM, path), (VsockType.SEQPACKET, Path(f"{path}.seqpacket"))):
                self._listen(stack, where, kind)
            self._closing = stack.pop_all()

    def _listen(self, stack: ExitStack, path: Path, kind: VsockType) -> None:
        listener = socket.socket(socket.AF_UNIX, _TYPES[kind] | socket.SOCK_NONBLOCK)
        stack.callback(listener.close)
        listener.bind(str(path))
        stack.callback(path.unlink, missing_ok=True)
        listener.listen(_BACKLOG)
        self._epoll.register(listener, select.EPOLLIN)
        self._handlers[listener.fileno()] = lambda _events: self._accept(listener, kind)

    def attach(self, dial: Dial) -> None:
        """Remember how to reach the guest."""
        self._dial = dial

    def pollable(self) -> dict[int, Callable[[], None]]:
        """One descriptor that stands for all sockets."""
        return {self._epoll.fileno(): self._events}

    def close(self) -> None:
        """Close all sockets, and remove those that listened."""
        for sock in self._sockets.values():
            sock.close()
        self._sockets.clear()
        self._handlers.clear()
        self._closing.close()

    def _events(self) -> None:
        for fd, events in self._epoll.poll(0, _EVENTS_PER_TURN):
            handler = self._handlers.get(fd)
            if handler is not None:  # an earlier event of this turn may have ended it
                handler(events)

    # Sockets.

    def _keep(self, sock: socket.socket, handler: Callable[[int], None]) -> None:
        self._sockets[sock.fileno()] = sock
        self._handlers[sock.fileno()] = handler
        self._epoll.register(sock, _IN)

    def watch(self, sock: socket.socket, *, writing: bool) -> None:
        """Tell also when a socket can be written, or not any more."""
        self._epoll.modify(sock, _IN | (select.EPOLLOUT if writing else 0))

    def forget(self, sock: socket.socket) -> None:
        """Close a socket."""
        if self._sockets.pop(sock.fileno(), None) is not None:
            del self._handlers[sock.fileno()]
            self._epoll.unregister(sock)
            sock.close()

    # The guest connects.

    def connect(self, port: int, kind: VsockType) -> HostEnd | None:
        """Connect to the program that listens for a port; None if none does."""
        if len(self._sockets) >= _SOCKETS:
            return None
        sock = socket.socket(socket.AF_UNIX, _TYPES[kind] | socket.SOCK_NONBLOCK)
        try:
            sock.connect(f"{self.path}_{port}")
        except OSError:
            sock.close()
            return None
        end = _SocketEnd(self, sock, kind, called=False)
        self._keep(sock, end.event)
        return end

    # A program connects.

    def _accept(self, listener: socket.socket, kind: VsockType) -> None:
        try:
            sock, _ = listener.accept()
        except OSError:  # it went away again
            return
        if len(self._sockets) >= _SOCKETS:
            sock.close()
            return
        sock.setblocking(False)
        self._keep(sock, lambda events: self._greeted(sock, kind, events))
        self._greeted(sock, kind, 0)

    def _greeted(self, sock: socket.socket, kind: VsockType, events: int) -> None:
        """Look for the line that says which port; what comes after it is the guest's."""
        try:
            line = sock.recv(_GREETING, socket.MSG_PEEK)
        except BlockingIOError:
            return
        except OSError:
            line = b""
        if kind is VsockType.STREAM:
            line = line[:line.find(b"\n") + 1] or line
            if line and not line.endswith(b"\n") and len(line) < _GREETING and not events & select.EPOLLRDHUP:
                return
        match = _CONNECT.fullmatch(line)
        if match is None or int(match[1]) >= PORT_ANY or (kind is VsockType.STREAM and not line.endswith(b"\n")):
            self.forget(sock)
            return
        sock.recv(len(line))
        end = _SocketEnd(self, sock, kind, called=True)
        self._handlers[sock.fileno()] = end.event
        if self._dial(int(match[1]), kind, end) is None:
            self.forget(sock)
