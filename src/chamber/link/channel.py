"""Messages and descriptors over a Unix stream socket."""

from __future__ import annotations

import array
import contextlib
import os
import socket
from typing import TYPE_CHECKING, Final, Generic, Protocol, TypeVar

from chamber.wire.errors import WireError
from chamber.wire.vhost_user import MAX_FDS, FrameReader, Header, encode

if TYPE_CHECKING:
    from chamber.wire.vhost_user import Payload

__all__ = ("Channel", "FdStream", "Frame", "Gone", "Message", "Reader")

_TRUNCATED: Final = int(socket.MSG_CTRUNC)
"""As a plain number: of an enumeration's, each test makes another."""

H = TypeVar("H", covariant=True)  # noqa: PLC0105 - as short as what it stands for


class Gone(Exception):
    """The peer closed the connection, or it broke."""


class Reader(Protocol[H]):
    """Cuts a stream into messages."""

    @property
    def wanted(self) -> int:
        """Bytes to read at most, so that descriptors come with the message that they belong to."""
        ...

    def feed(self, data: bytes) -> tuple[H, bytes] | None:
        """Take them; return header and payload of a message that is whole."""
        ...


class Frame(Generic[H]):
    """A message as it came: header, payload bytes, and the descriptors that its receiver now owns."""

    __slots__ = ("data", "fds", "header")

    def __init__(self, header: H, data: bytes, fds: list[int]) -> None:
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


class FdStream(Generic[H]):
    """One non-blocking connection.

    Args:
        sock: the connection.
        reader: cuts what comes into messages.
        max_fds: descriptors that one message brings at most.
        spec: where that stands.

    """

    def __init__(self, sock: socket.socket, reader: Reader[H], max_fds: int, spec: str) -> None:
        sock.setblocking(False)
        self._socket = sock
        self._reader = reader
        self._max_fds = max_fds
        self._space = socket.CMSG_SPACE(max_fds * array.array("i").itemsize)
        self._spec = spec
        self._fds: list[int] = []

    def fileno(self) -> int:
        """Descriptor to wait on."""
        return self._socket.fileno()

    def receive(self) -> Frame[H] | None:
        """Return the next message, or None if it is not all there yet.

        Raises:
            Gone: end of the connection.
            WireError: the peer does not speak the protocol.

        """
        while True:
            try:
                data, ancillary, flags, _ = self._socket.recvmsg(self._reader.wanted, self._space)
            except BlockingIOError:
                return None
            except OSError as error:
                raise Gone(str(error)) from None
            for level, kind, value in ancillary:
                if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                    fds = array.array("i")
                    fds.frombytes(value[:len(value) - len(value) % fds.itemsize])
                    self._fds += fds
            if flags & _TRUNCATED or len(self._fds) > self._max_fds:
                raise WireError(f"at most {self._max_fds} descriptors come with a message", spec=self._spec)
            if not data:
                raise Gone("closed by the peer")
            frame = self._reader.feed(data)
            if frame is not None:
                fds_now, self._fds = self._fds, []
                return Frame(*frame, fds_now)

    def send_frame(self, data: bytes, fds: tuple[int, ...] = ()) -> None:
        """Send the bytes of a message; a peer that does not read what its buffer has no room for ends the connection.

        Raises:
            Gone: the peer is gone or reads nothing.

        """
        ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        try:
            sent = self._socket.sendmsg([data], ancillary)
            if sent != len(data):
                self._send_rest(memoryview(data)[sent:])
        except OSError as error:
            raise Gone(str(error)) from None

    def _send_rest(self, data: memoryview) -> None:
        """Send what the peer's buffer had no room for."""
        raise Gone(f"the peer does not read: {len(data)} bytes are left")

    def close(self) -> None:
        """Close the socket and any descriptor that came for a message that never did."""
        for fd in self._fds:
            with contextlib.suppress(OSError):
                os.close(fd)
        self._fds.clear()
        self._socket.close()


Message = Frame[Header]
"""A message of vhost-user."""


class Channel(FdStream[Header]):
    """A connection that speaks vhost-user."""

    def __init__(self, sock: socket.socket) -> None:
        super().__init__(sock, FrameReader(), MAX_FDS, "vhost-user, Message Specification")

    def send(self, request: int, payload: Payload | None = None, flags: int = 0, fds: tuple[int, ...] = ()) -> None:
        """Send a message.

        Raises:
            Gone: the peer is gone or reads nothing.

        """
        self.send_frame(encode(request, payload, flags), fds)
