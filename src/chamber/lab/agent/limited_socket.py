"""A socket whose calls the kernel ends when their time is up."""

from __future__ import annotations

import ctypes
import errno
import socket
import struct
from typing import TYPE_CHECKING, Any, Final, Self

from chamber.lab.agent.patience import patient

if TYPE_CHECKING:
    from typing_extensions import Buffer

__all__ = ("LimitedSocket",)

_LIBC: Final = ctypes.CDLL(None, use_errno=True)
_VSOCK_CONNECT_TIMEOUT: Final = 6
"""SO_VM_SOCKETS_CONNECT_TIMEOUT, of the level AF_VSOCK."""


class LimitedSocket(socket.socket):
    """As a socket with a time-out, by whose calls `TimeoutError` is raised.

    Python's own looks at the clock and waits for the socket before each call: three system calls of a guest for one.
    """

    def limit(self, seconds: float) -> Self:
        """Say how long a call may take at most, where the guest has time for that."""
        seconds = patient(seconds)
        time_out = struct.pack("@ll", int(seconds), int(seconds % 1 * 1e6))
        options = [(socket.SOL_SOCKET, socket.SO_RCVTIMEO), (socket.SOL_SOCKET, socket.SO_SNDTIMEO)]
        if self.family == socket.AF_VSOCK:
            options.append((socket.AF_VSOCK, _VSOCK_CONNECT_TIMEOUT))
        for level, option in options:
            # Python (3.11) takes numbers alone for options of such sockets.
            if _LIBC.setsockopt(self.fileno(), level, option, time_out, len(time_out)):
                raise OSError(ctypes.get_errno(), "a time-out is not taken")
        return self

    def connect(self, address: tuple[Any, ...] | str | Buffer, /) -> None:
        """Connect."""
        try:
            super().connect(address)
        except BlockingIOError as error:
            raise self._over(error) from None

    def accept(self) -> tuple[LimitedSocket, Any]:
        """Accept a connection, which has no limit yet."""
        try:
            accepted, address = super().accept()
        except BlockingIOError as error:
            raise self._over(error) from None
        return LimitedSocket(self.family, self.type, self.proto, fileno=accepted.detach()), address

    def recv(self, size: int, flags: int = 0, /) -> bytes:
        """Receive."""
        try:
            return super().recv(size, flags)
        except BlockingIOError as error:
            raise self._over(error) from None

    def send(self, data: Buffer, flags: int = 0, /) -> int:
        """Send what there is room for."""
        try:
            return super().send(data, flags)
        except BlockingIOError as error:
            raise self._over(error) from None

    def sendall(self, data: Buffer, flags: int = 0, /) -> None:
        """Send all of it."""
        try:
            super().sendall(data, flags)
        except BlockingIOError as error:
            raise self._over(error) from None

    def _over(self, error: BlockingIOError) -> OSError:
        """What a call raises whose time is up, or which was to wait for nothing."""
        return TimeoutError(errno.ETIMEDOUT, "timed out") if self.getblocking() else error
