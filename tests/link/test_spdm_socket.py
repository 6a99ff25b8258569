"""A device that is served over a socket, and peers that do not speak its framing."""

from __future__ import annotations

import socket
import threading
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING

import pytest

from chamber.link.spdm_socket import SpdmClient, SpdmServer, SpdmSilence
from chamber.wire.spdm_emulator import HEAD_SIZE, SERVER_HELLO, Frame, FrameCommand, Transport

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

HOST = "127.0.0.1"


@contextmanager
def served(answer: Callable[[bytes], bytes | None], transport: Transport = Transport.DOE,
           connections: int = 1) -> Iterator[SpdmServer]:
    with closing(SpdmServer((HOST, 0), transport, answer)) as server:
        def serve() -> None:
            for _ in range(connections):
                server.serve_one()

        worker = threading.Thread(target=serve)
        worker.start()
        yield server
        worker.join(20)
        assert not worker.is_alive()


def _echo(transport: Transport) -> Callable[[bytes], bytes | None]:
    def answer(message: bytes) -> bytes | None:
        payload, secured = transport.unwrap(message)
        return transport.wrap(payload[::-1], secured=secured) if payload != b"none" else None
    return answer


@pytest.mark.parametrize("transport", Transport)
def test_payloads_go_there_and_back(transport: Transport) -> None:
    with served(_echo(transport), transport) as server, SpdmClient((HOST, server.port), transport) as client:
        assert client.exchange(b"abcd", False) == b"dcba"
        assert client.exchange(b"efgh", True) == b"hgfe"
        assert client.exchange(b"none", False) == b""


def _raw(port: int) -> socket.socket:
    return socket.create_connection((HOST, port), 10)


def _receive(sock: socket.socket) -> Frame:
    command, transport, size = Frame.head(sock.recv(HEAD_SIZE, socket.MSG_WAITALL))
    return Frame(command, transport, sock.recv(size, socket.MSG_WAITALL) if size else b"")


def test_commands_are_answered_as_the_emulators_do() -> None:
    with served(lambda message: message) as server, closing(_raw(server.port)) as sock:
        for command, answer in ((FrameCommand.TEST, SERVER_HELLO), (FrameCommand.CONTINUE, b"")):
            sock.sendall(Frame(command, 2, b"Client Hello!\0").encode())
            assert _receive(sock) == Frame(command, 2, answer)
        for frame in (Frame(0x77, 2), Frame(FrameCommand.NORMAL, 1, b"x")):
            sock.sendall(frame.encode())
            assert _receive(sock).command == FrameCommand.UNKNOWN
        sock.sendall(Frame(FrameCommand.SHUTDOWN, 2).encode())
        assert _receive(sock).command == FrameCommand.SHUTDOWN
        assert sock.recv(1) == b""


@pytest.mark.parametrize("data", [b"", b"\0\0", Frame(FrameCommand.TEST, 2).encode()[:8] + b"\xff" * 4,
                                  Frame(FrameCommand.NORMAL, 2, bytes(100)).encode()[:50]])
def test_whoever_leaves_or_talks_nonsense_does_not_keep_the_next_one_out(data: bytes) -> None:
    with served(_echo(Transport.DOE), connections=2) as server:
        with closing(_raw(server.port)) as sock:
            sock.sendall(data)
            if len(data) == HEAD_SIZE:
                assert sock.recv(1) == b""
        with SpdmClient((HOST, server.port), Transport.DOE) as client:
            assert client.exchange(b"abcd", False) == b"dcba"


def test_a_device_that_is_not_there_or_speaks_otherwise_is_silence() -> None:
    with closing(socket.create_server((HOST, 0))) as listener:
        port = listener.getsockname()[1]
        with pytest.raises(SpdmSilence, match="in time"):
            SpdmClient((HOST, port), Transport.DOE, seconds=0.2)
        accepted, _ = listener.accept()
        accepted.close()
    with pytest.raises(SpdmSilence):
        SpdmClient((HOST, port), Transport.DOE)
    with closing(SpdmServer((HOST, 0), Transport.DOE, lambda message: message)) as server:
        server._reply = lambda frame: Frame(FrameCommand.UNKNOWN, frame.transport)  # type: ignore[method-assign]
        worker = threading.Thread(target=server.serve_one)
        worker.start()
        with pytest.raises(SpdmSilence, match="0xffff"):
            SpdmClient((HOST, server.port), Transport.DOE)
        worker.join(20)
