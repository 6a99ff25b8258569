"""Messages and descriptors over a Unix stream socket."""

from __future__ import annotations

import array
import contextlib
import os
import socket
from typing import TYPE_CHECKING

from chamber.wire.errors import WireError
from chamber.wire.vhost_user import MAX_FDS, FrameReader, encode

if TYPE_CHECKING:
    from chamber.wire.vhost_user import Header, Payload

__all__ = ("Channel", "Gone", "Message")

_FD_SPACE = socket.CMSG_SPACE(MAX_FDS * array.array("i").itemsize)


class Gone(Exception):
    """The peer closed the connection, or it broke."""


class Message:
    """A message as it came: header, payload bytes, and the descriptors that its receiver now owns."""

    __slots__ = ("data", "fds", "header")

    def __init__(self, header: Header, data: bytes, fds: list[int]) -> None:
        self.header = header
        self.data = data
        self.fds = fds

    def take_fd(self) -> int | None:
        """Hand out the next descriptor; it is the caller's to close."""
        return self.fds.pop(0) if self.fds else None

    def close(self) -> None:
        """Close the descriptors that nobody took."""
        for fd in self.fds:
            os.close(fd)
        self.fds.clear()


class Channel:
    """One non-blocking connection."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self._socket = sock
        self._reader = FrameReader()
        self._fds: list[int] = []

    def fileno(self) -> int:
        """Descriptor to wait on."""
        return self._socket.fileno()

    def receive(self) -> Message | None:
        """Return the next message, or None if it is not all there yet.

        Raises:
            Gone: end of the connection.
            WireError: the peer does not speak vhost-user.

        """
        while True:
            try:
                data, ancillary, flags, _ = self._socket.recvmsg(self._reader.wanted, _FD_SPACE)
            except BlockingIOError:
                return None
            except OSError as error:
                raise Gone(str(error)) from None
            for level, kind, value in ancillary:
                if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                    fds = array.array("i")
                    fds.frombytes(value[:len(value) - len(value) % fds.itemsize])
                    self._fds += fds
            if flags & socket.MSG_CTRUNC or len(self._fds) > MAX_FDS:
                raise WireError(f"at most {MAX_FDS} descriptors come with a message",
                                spec="vhost-user, Message Specification")
            if not data:
                raise Gone("closed by the peer")
            frame = self._reader.feed(data)
            if frame is not None:
                fds_now, self._fds = self._fds, []
                return Message(*frame, fds_now)

    def send(self, request: int, payload: Payload | None = None, flags: int = 0, fds: tuple[int, ...] = ()) -> None:
        """Send a message; one that the peer's buffer has no room for ends the connection, as it does not read.

        Raises:
            Gone: the peer is gone or reads nothing.

        """
        data = encode(request, payload, flags)
        ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        try:
            if self._socket.sendmsg([data], ancillary) != len(data):
                raise Gone("the peer does not read")
        except OSError as error:
            raise Gone(str(error)) from None

    def close(self) -> None:
        """Close the socket and any descriptor that came for a message that never did."""
        for fd in self._fds:
            with contextlib.suppress(OSError):
                os.close(fd)
        self._fds.clear()
        self._socket.close()
