"""What a guest does with sockets to its host in a moment."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING, Final

from chamber.lab.agent import vsock
from chamber.lab.agent.limited_socket import LimitedSocket

if TYPE_CHECKING:
    from chamber.lab.agent.report import Report
    from chamber.lab.agent.sessions import Session

__all__ = ("SESSIONS",)


def _connection(virtio: str, report: Report, kind: int, size: int) -> None:  # noqa: ARG001 - as the others
    with report.step("connection"), vsock.connect(kind) as sock:
        vsock.echo(sock, bytes(size))


def _stream_socket(virtio: str, report: Report) -> None:
    """Connect a stream, and echo."""
    _connection(virtio, report, socket.SOCK_STREAM, 200)


def _message_socket(virtio: str, report: Report) -> None:
    """Connect a socket of messages, and echo."""
    _connection(virtio, report, socket.SOCK_SEQPACKET, 200)


def _large_socket(virtio: str, report: Report) -> None:
    """Echo more than a packet holds."""
    _connection(virtio, report, socket.SOCK_STREAM, 20000)


def _called_socket(virtio: str, report: Report) -> None:  # noqa: ARG001 - as the others
    """Be called by the host."""
    with report.step("listen"), LimitedSocket(socket.AF_VSOCK, socket.SOCK_STREAM) as listener:
        vsock.listen_for_calls(listener)
        report.ask("call")
        vsock.answer(listener)


def _open_sockets(virtio: str, report: Report) -> None:  # noqa: ARG001 - as the others
    """Have connections open while others come and go, and leave data unread."""
    with report.step("first"), vsock.connect(socket.SOCK_STREAM) as one:
        one.send(bytes(3000))
        with report.step("second"), vsock.connect(socket.SOCK_SEQPACKET) as two:
            two.send(bytes(100))
            one.shutdown(socket.SHUT_WR)
            two.recv(50)


SESSIONS: Final[dict[str, Session]] = {
    "stream-socket": _stream_socket, "message-socket": _message_socket, "large-socket": _large_socket,
    "called": _called_socket, "open-sockets": _open_sockets}
