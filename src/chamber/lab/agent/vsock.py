"""What a guest does with sockets to its host."""

from __future__ import annotations

import fcntl
import os
import random
import select
import socket
import struct
import time
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Final

from chamber.lab.agent import kernel
from chamber.lab.agent.limited_socket import LimitedSocket
from chamber.lab.agent.patience import patient
from chamber.lab.agent.report import Silence, WrongData

if TYPE_CHECKING:
    from collections.abc import Callable

    from chamber.lab.agent.report import Report

__all__ = ("STIMULI", "answer", "connect", "echo", "listen_for_calls")

_HOST: Final = 2
_ECHO: Final = 7
_CALL: Final = 5000
_LOCAL: Final = 1
_SERVICE: Final = 1100
"""Port of the guest's own that one end of its connection to itself has."""
_NOBODY: Final = 9999
_TIMEOUT: Final = 0.4
_GREETING: Final = bytes((i * 7 + (i >> 8)) & 0xFF for i in range(3000))
"""What the host says first when it calls (`chamber.device.vsock_service`)."""
_BACKLOG: Final = 8
_MANY: Final = 20
_PAUSE: Final = 0.03
"""Seconds to be there still for what a host says a moment after an event or a call."""
_FLOOD: Final = 0.8
"""Seconds to send for."""
_PART: Final = 60000
_HELD: Final = 2.5
"""Seconds to leave unread what comes."""
_GET_LOCAL_CID: Final = 0x7B9
_KINDS: Final = (("stream", socket.SOCK_STREAM), ("message", socket.SOCK_SEQPACKET))


def connect(kind: int, port: int = _ECHO) -> LimitedSocket:
    """Connect to a port of the host's."""
    sock = LimitedSocket(socket.AF_VSOCK, kind)
    try:
        sock.limit(_TIMEOUT)
        sock.connect((_HOST, port))
    except OSError:
        sock.close()
        raise
    return sock


def _receive(sock: socket.socket, size: int) -> bytes:
    got = b""
    while len(got) < size:
        try:
            part = sock.recv(size - len(got))
        except TimeoutError:
            raise Silence(f"{len(got)} of {size} bytes came") from None
        if not part:
            raise OSError(104, f"the connection ended after {len(got)} of {size} bytes")
        got += part
    return got


def echo(sock: socket.socket, data: bytes) -> None:
    """Send, and see that it comes back: a stream's bytes, or one message."""
    sock.sendall(data)
    if sock.type == socket.SOCK_STREAM:
        got = _receive(sock, len(data))
    else:
        got = sock.recv(len(data) + 1)
        if not got:
            raise OSError(104, "the connection ended")
    if got != data:
        raise WrongData(f"{len(data)} bytes came back as {len(got)}, changed")


def _bulk(size: int, dice: random.Random) -> None:
    """Send much and receive it at the same time; finish, and see the other side finish."""
    data = dice.randbytes(size)
    sent = 0
    back = bytearray()
    with connect(socket.SOCK_STREAM) as sock:
        while True:
            readable, writable, _ = select.select([sock], [sock] if sent < size else [], [], patient(_TIMEOUT))
            if not readable and not writable:
                raise Silence(f"{sent} bytes sent, {len(back)} came back")
            if writable:
                sent += sock.send(data[sent:sent + 65536])
                if sent == size:
                    sock.shutdown(socket.SHUT_WR)
            if readable:
                part = sock.recv(65536)
                if not part:
                    break
                back += part
    if len(back) < size:
        raise OSError(104, f"the connection ended after {len(back)} of {size} bytes")
    if zlib.crc32(back) != zlib.crc32(data):
        raise WrongData(f"{size} bytes came back changed")


def _local_cid() -> int:
    fd = os.open("/dev/vsock", os.O_RDONLY)
    try:
        return int(struct.unpack("=I", fcntl.ioctl(fd, _GET_LOCAL_CID, bytes(4)))[0])
    finally:
        os.close(fd)


def _reset(report: Report) -> None:
    """Have the transport reset, and wait until the guest is called otherwise."""
    before = _local_cid()
    report.ask("reset")
    kernel.wait_until("the guest's context id stays", lambda: _local_cid() != before, _TIMEOUT)


def use(virtio: str, report: Report) -> None:
    """Connect, echo streams and messages, also after a reset of the transport.

    What a silent device can't do anyway is left out: all of it together would take too long to tell from a hang.
    """
    dice = random.Random(virtio)  # noqa: S311 - test data
    fine = True
    for name, kind in _KINDS:
        with report.step(f"{name} socket"), connect(kind) as sock:
            for size in (1, 64, 1000, 5000, 20000):
                if not report.attempt(f"echo of {size} bytes by {name}", echo, sock, dice.randbytes(size)):
                    fine = False
                    break
        fine = fine and report.fine
    reset = report.attempt("reset", _reset, report)
    time.sleep(patient(_PAUSE))
    if reset and fine:
        with report.step("stream after a reset"), connect(socket.SOCK_STREAM) as sock:
            echo(sock, dice.randbytes(100))
        report.attempt("echo of 400,000 bytes", _bulk, 400_000, dice)


def inspect(virtio: str, report: Report) -> None:
    """Ask what the kernel tells; see what a reset and a port without a listener do."""
    report.attempt("device attributes", kernel.read_tree, Path("/sys/bus/virtio/devices") / virtio, depth=0)
    report.attempt("context id", _local_cid)
    with report.step("a port that nobody listens on"):
        try:
            connect(socket.SOCK_STREAM, _NOBODY).close()
        except ConnectionResetError:
            pass
        else:
            raise WrongData("a connection to a port that nobody listens on")
    if not report.fine:
        return
    with report.step("a reset ends connections"), connect(socket.SOCK_STREAM) as sock:
        _reset(report)
        try:
            if sock.recv(1):
                raise WrongData("data on a connection that a reset ended")
        except ConnectionResetError:
            pass
    with report.step("a new connection"), connect(socket.SOCK_STREAM) as sock:
        echo(sock, b"again")


def listen_for_calls(listener: LimitedSocket) -> None:
    """Wait where the host calls."""
    listener.bind((socket.VMADDR_CID_ANY, _CALL))
    listener.listen(_BACKLOG)
    listener.limit(_TIMEOUT)


def listen(virtio: str, report: Report) -> None:  # noqa: ARG001 - one signature for all stimuli
    """Have the host call, several times before anybody accepts; after that, as often as may wait at once."""
    for name, kind in _KINDS:
        with report.step(f"listen for a {name} socket"), LimitedSocket(socket.AF_VSOCK, kind) as listener:
            listen_for_calls(listener)
            for _ in range(2):
                report.ask("call" if kind == socket.SOCK_STREAM else "call-seqpacket")
            for turn in range(2):
                if not report.attempt(f"call {turn + 1} by {name}", answer, listener):
                    break
            else:
                time.sleep(patient(_PAUSE))
                for _ in range(_BACKLOG):
                    report.ask("call" if kind == socket.SOCK_STREAM else "call-seqpacket")
                for turn in range(_BACKLOG):
                    if not report.attempt(f"later call {turn + 1} by {name}", _answer_host, listener):
                        break


def _answer_host(listener: LimitedSocket) -> None:
    """Answer the host, whoever else called before it: the kernel takes one call more than the backlog says."""
    for _ in range(_BACKLOG + 2):
        sock, (cid, _) = listener.accept()
        if cid == _HOST:
            _hear(sock)
            return
        sock.close()
    raise Silence("the host did not call")


def answer(listener: LimitedSocket) -> None:
    """Accept a call of the host's, hear its greeting and send it back the other way round."""
    sock, (cid, _) = listener.accept()
    if cid != _HOST:
        sock.close()
        raise WrongData(f"a call from context id {cid}")
    _hear(sock)


def _hear(sock: LimitedSocket) -> None:
    with sock:
        sock.limit(_TIMEOUT)
        got = _receive(sock, len(_GREETING)) if sock.type == socket.SOCK_STREAM else sock.recv(len(_GREETING) + 1)
        if not got:
            raise OSError(104, "the connection ended")
        if got != _GREETING:
            raise WrongData(f"the host's greeting is changed, {len(got)} bytes")
        echo(sock, _GREETING[::-1])


def many(virtio: str, report: Report) -> None:
    """Use many connections at once."""
    dice = random.Random(virtio)  # noqa: S311 - test data
    sockets: list[socket.socket] = []
    with report.step(f"{_MANY} connections"):
        try:
            sockets.extend(connect(socket.SOCK_STREAM) for _ in range(_MANY))
            for turn in range(3):
                data = [dice.randbytes(dice.randint(1, 9000)) for _ in sockets]
                if not report.attempt(f"echo on all, turn {turn + 1}", _echo_all, sockets, data):
                    break
        finally:
            for sock in sockets:
                sock.close()


def _echo_all(sockets: list[socket.socket], data: list[bytes]) -> None:
    for sock, part in zip(sockets, data, strict=True):
        sock.sendall(part)
    for sock, part in reversed(list(zip(sockets, data, strict=True))):
        if _receive(sock, len(part)) != part:
            raise WrongData(f"{len(part)} bytes came back changed")


def flood(virtio: str, report: Report) -> None:  # noqa: ARG001 - one signature for all stimuli
    """Send as much as the host says that it has space for, for a while, and read nothing of what it sends."""
    for name, kind in _KINDS:
        with report.step(f"send by a {name} socket all that is taken"), connect(kind) as sock:
            _press(sock)
    with report.step("stream after that"), connect(socket.SOCK_STREAM) as sock:
        echo(sock, b"again")


def hold(virtio: str, report: Report) -> None:  # noqa: ARG001 - as above
    """Leave unread for a while what comes on a connection, then go on."""
    with report.step("a connection that is not read"), connect(socket.SOCK_SEQPACKET) as sock:
        sock.sendall(b"?")
        time.sleep(patient(_HELD))
    with report.step("stream after that"), connect(socket.SOCK_STREAM) as sock:
        echo(sock, b"again")


def local(virtio: str, report: Report) -> None:  # noqa: ARG001 - as above
    """Connect to the guest itself, by ports that anybody can guess, and to the host at the same time."""
    with LimitedSocket(socket.AF_VSOCK, socket.SOCK_STREAM) as listener, \
            LimitedSocket(socket.AF_VSOCK, socket.SOCK_STREAM) as client:
        listen_for_calls(listener)
        client.bind((socket.VMADDR_CID_ANY, _SERVICE))
        client.limit(_TIMEOUT)
        try:
            client.connect((_LOCAL, _CALL))
        except OSError:
            # Without vsock_loopback the kernel asks the host for it.
            report.note("no connections of the guest to itself: this kernel has no vsock_loopback")
            return
        server, _ = listener.accept()
        with server:
            server.limit(_TIMEOUT)
            with report.step("a connection to the host"), connect(socket.SOCK_STREAM) as sock:
                echo(sock, b"to the host")
            time.sleep(patient(_PAUSE))
            for here, there, data in ((client, server, b"to the server"), (server, client, b"to the client")):
                report.attempt(data.decode(), _hand_over, here, there, data)


def _hand_over(here: socket.socket, there: socket.socket, data: bytes) -> None:
    here.sendall(data)
    if _receive(there, len(data)) != data:
        raise WrongData("what came on a connection of the guest to itself")


def _press(sock: socket.socket) -> None:
    sock.setblocking(False)
    end = time.monotonic() + _FLOOD
    while time.monotonic() < end:
        try:
            sock.send(bytes(_PART))
        except BlockingIOError:
            select.select([], [sock], [], _PAUSE)


STIMULI: Final[dict[str, Callable[[str, Report], None]]] = {
    "use": use, "inspect": inspect, "listen": listen, "many": many, "flood": flood, "hold": hold, "local": local,
}
