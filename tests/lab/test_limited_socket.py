"""Sockets whose calls end when their time is up."""

from __future__ import annotations

import contextlib
import socket
import time
from typing import TYPE_CHECKING

import pytest

from chamber.lab.agent.limited_socket import LimitedSocket

if TYPE_CHECKING:
    from collections.abc import Callable

SECONDS = 0.05


def _listening() -> LimitedSocket:
    listener = LimitedSocket(socket.AF_INET, socket.SOCK_STREAM)
    listener.bind(("127.0.0.1", 0))
    listener.listen(1)
    return listener.limit(SECONDS)


def _fill(sock: LimitedSocket) -> None:
    while True:
        sock.send(bytes(1 << 16))


CALLS: dict[str, Callable[[LimitedSocket], object]] = {
    "recv": lambda sock: sock.recv(1),
    "send": _fill,
    "sendall": lambda sock: sock.sendall(bytes(1 << 26)),
}


@pytest.mark.parametrize("name", CALLS)
def test_a_call_ends_when_its_time_is_up(name: str) -> None:
    with _listening() as listener, LimitedSocket(socket.AF_INET, socket.SOCK_STREAM).limit(SECONDS) as sock:
        sock.connect(listener.getsockname())
        begin = time.monotonic()
        with pytest.raises(TimeoutError):
            CALLS[name](sock)
        assert time.monotonic() - begin > SECONDS / 2


@pytest.mark.parametrize("name", CALLS)
def test_one_that_waits_for_nothing_says_so(name: str) -> None:
    with _listening() as listener, LimitedSocket(socket.AF_INET, socket.SOCK_STREAM).limit(SECONDS) as sock:
        sock.connect(listener.getsockname())
        sock.setblocking(False)
        with pytest.raises(BlockingIOError):
            CALLS[name](sock)


def test_nobody_calls_and_somebody_does() -> None:
    with _listening() as listener:
        with pytest.raises(TimeoutError):
            listener.accept()
        with LimitedSocket(socket.AF_INET, socket.SOCK_STREAM).limit(SECONDS) as sock:
            sock.connect(listener.getsockname())
            accepted, _ = listener.accept()
            with accepted:
                sock.sendall(b"word")
                assert accepted.recv(10) == b"word"


def test_a_connection_that_is_not_taken_ends_too() -> None:
    with _listening() as listener, contextlib.ExitStack() as stack:
        one, two, three = (stack.enter_context(LimitedSocket(socket.AF_INET, socket.SOCK_STREAM).limit(SECONDS))
                           for _ in range(3))
        # Linux takes one call more than the backlog says, and drops what comes after.
        for sock in (one, two):
            sock.connect(listener.getsockname())
        with pytest.raises(TimeoutError):
            three.connect(listener.getsockname())
