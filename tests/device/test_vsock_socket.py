"""Unix sockets as the host's ends of a guest's connections."""

from __future__ import annotations

import contextlib
import os
import select
import socket
import time
from typing import TYPE_CHECKING

import pytest

from chamber.device.vsock import VsockDevice
from chamber.device.vsock_connection import BUFFER
from chamber.device.vsock_socket import UnixHost
from chamber.wire.vsock import SeqFlag, ShutdownFlag, VsockOp, VsockType
from tests.device.vsock_guest import Guest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

OP = VsockOp
TYPES = {VsockType.STREAM: socket.SOCK_STREAM, VsockType.SEQPACKET: socket.SOCK_SEQPACKET}
KINDS = pytest.mark.parametrize("kind", list(VsockType), ids=lambda kind: kind.name.lower())


class Lab:
    """A guest and programs of the host, in one process."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.device = VsockDevice([UnixHost(path)])
        self.guest = Guest(self.device)
        self.sockets: list[socket.socket] = []

    def turn(self) -> None:
        """Serve what is there."""
        for fd, call in self.device.pollable().items():
            if select.select([fd], [], [], 0)[0]:
                call()

    def keep(self, sock: socket.socket) -> socket.socket:
        sock.settimeout(10)
        self.sockets.append(sock)
        return sock

    def listen(self, port: int, kind: VsockType = VsockType.STREAM) -> socket.socket:
        listener = self.keep(socket.socket(socket.AF_UNIX, TYPES[kind]))
        listener.bind(f"{self.path}_{port}")
        listener.listen()
        return listener

    def program(self, port: int = 50, kind: VsockType = VsockType.STREAM) -> socket.socket:
        """A program that the guest is connected to."""
        listener = self.listen(port, kind)
        self.guest.connect(port, kind=kind)
        return self.keep(listener.accept()[0])

    def caller(self, hello: bytes, kind: VsockType = VsockType.STREAM) -> socket.socket:
        """A program that connects to the guest."""
        sock = self.keep(socket.socket(socket.AF_UNIX, TYPES[kind]))
        sock.connect(str(self.path) + (".seqpacket" if kind is VsockType.SEQPACKET else ""))
        if hello:
            sock.send(hello)
        self.turn()
        self.turn()
        return sock

    def until(self, wanted: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 10
        while not wanted():
            assert time.monotonic() < deadline
            self.turn()


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    before = len(os.listdir("/proc/self/fd"))
    lab = Lab(tmp_path / "v")
    yield lab
    for sock in lab.sockets:
        sock.close()
    lab.device.close()
    assert not list(tmp_path.glob("v")) + list(tmp_path.glob("v.seqpacket"))
    assert len(os.listdir("/proc/self/fd")) == before


@KINDS
def test_the_guest_reaches_a_program(lab: Lab, kind: VsockType) -> None:
    program = lab.program(kind=kind)
    lab.guest.send(OP.RW, 50, data=b"hello", kind=kind, flags=SeqFlag.EOM if kind is VsockType.SEQPACKET else 0)
    assert program.recv(100) == b"hello"
    program.send(b"hello")
    lab.turn()
    assert [d for _, d in lab.guest.packets()] == [b"hello"]


@KINDS
def test_a_program_reaches_the_guest(lab: Lab, kind: VsockType) -> None:
    caller = lab.caller(b"CONNECT 1234\n", kind)
    (header, _), = lab.guest.packets()
    assert (header.op, header.type, header.dst_port) == (OP.REQUEST, kind, 1234)
    assert not select.select([caller], [], [], 0)[0]
    lab.guest.send(OP.RESPONSE, header.src_port, local=1234, kind=kind)
    assert caller.recv(100) == b"OK %d\n" % header.src_port
    caller.send(b"data")
    lab.turn()
    assert [d for _, d in lab.guest.packets()] == [b"data"]


def test_what_follows_the_line_is_the_guests(lab: Lab) -> None:
    caller = lab.caller(b"CONN")
    caller.send(b"ECT 9\nearly\nwords")
    lab.turn()
    (header, _), = lab.guest.packets()
    lab.guest.send(OP.RESPONSE, header.src_port, local=9)
    lab.turn()
    assert [d for _, d in lab.guest.packets()] == [b"early\nwords"]


@pytest.mark.parametrize("line", [b"HELLO\n", b"CONNECT\n", b"CONNECT -1\n", b"CONNECT 4294967295\n", b"CONNECT 1 2\n",
                                  b"x" * 40, b"\n", b"CONNECT 99999999999\n"])
def test_other_lines_are_turned_away(lab: Lab, line: bytes) -> None:
    caller = lab.caller(line)
    assert lab.guest.packets() == []
    with contextlib.suppress(ConnectionResetError):  # the line itself was not read
        assert caller.recv(10) == b""
    assert lab.device.connections == {}


def test_a_program_that_says_nothing_and_leaves(lab: Lab) -> None:
    lab.caller(b"").close()
    lab.caller(b"CONNECT 5").close()
    lab.turn()
    assert lab.guest.packets() == []


def test_the_guest_refuses(lab: Lab) -> None:
    caller = lab.caller(b"CONNECT 1234\n")
    (header, _), = lab.guest.packets()
    lab.guest.send(OP.RST, header.src_port, local=1234)
    assert caller.recv(100) == b""


def test_nobody_listens_or_listens_for_something_else(lab: Lab) -> None:
    lab.guest.send(OP.REQUEST, 50)
    assert lab.guest.ops() == [OP.RST]
    lab.listen(50, VsockType.SEQPACKET)
    lab.guest.send(OP.REQUEST, 50)
    assert lab.guest.ops() == [OP.RST]


def test_messages_keep_their_boundaries_and_empty_ones_are_left_out(lab: Lab) -> None:
    program = lab.program(kind=VsockType.SEQPACKET)
    for message in (b"one", b"", b"three" * 1000):
        program.send(message)
    lab.turn()
    assert [(len(d), h.flags) for h, d in lab.guest.packets()] == [(3, 1), (4096, 0), (904, 1)]


def test_a_message_that_the_guest_has_no_room_for_ends_the_connection(lab: Lab) -> None:
    listener = lab.listen(50, VsockType.SEQPACKET)
    lab.guest.connect(50, kind=VsockType.SEQPACKET, alloc=1000)
    program = lab.keep(listener.accept()[0])
    program.send(b"x" * 1001)
    lab.turn()
    assert lab.guest.ops() == [OP.RST]
    assert program.recv(1) == b""


def test_a_slow_program_holds_the_guest_back_and_loses_nothing(lab: Lab) -> None:
    program = lab.program()
    sent = 0
    while sent < 3 * BUFFER:
        credit = lab.device.connections[1000, 50].credit()
        if not credit:
            break
        size = min(credit, 65536)
        lab.guest.send(OP.RW, 50, data=(sent >> 10).to_bytes(4, "little") * (size // 4))
        sent += size // 4 * 4
    assert sent >= BUFFER
    lab.guest.packets()
    got = b""
    program.setblocking(False)

    def drained() -> bool:
        nonlocal got
        with contextlib.suppress(BlockingIOError):
            got += program.recv(1 << 16)
        return len(got) == sent

    lab.until(drained)
    assert lab.guest.ops().count(OP.CREDIT_UPDATE) >= 1
    assert lab.device.connections[1000, 50].credit() == BUFFER
    assert lab.device.violations == []


def test_what_a_guest_sent_before_it_closed_arrives_though_the_program_is_slow(lab: Lab) -> None:
    program = lab.program()
    for _ in range(BUFFER >> 16):
        lab.guest.send(OP.RW, 50, data=b"z" * 65536)
    while lab.device.connections[1000, 50].credit():
        lab.guest.send(OP.RW, 50, data=b"z" * lab.device.connections[1000, 50].credit())
    lab.guest.packets()
    lab.guest.send(OP.SHUTDOWN, 50, flags=ShutdownFlag.BOTH)
    assert lab.guest.ops() == [OP.RST]
    got = 0
    program.setblocking(False)

    def ended() -> bool:
        nonlocal got
        try:
            data = program.recv(1 << 16)
        except BlockingIOError:
            return False
        got += len(data)
        return not data

    lab.until(ended)
    assert got >= BUFFER


def test_a_slow_guest_holds_the_program_back_and_loses_nothing(lab: Lab) -> None:
    program = lab.program()
    payload = bytes(range(256)) * 2048
    sender = memoryview(payload)
    program.setblocking(False)
    received = b""
    while len(received) < len(payload):
        if sender:
            with contextlib.suppress(BlockingIOError):
                sender = sender[program.send(sender):]
        lab.turn()
        for header, data in lab.guest.packets():
            assert header.op in {OP.RW, OP.CREDIT_REQUEST}
            received += data
        lab.guest.send(OP.CREDIT_UPDATE, 50, fwd=len(received))
    assert received == payload


def test_a_program_that_half_closes(lab: Lab) -> None:
    program = lab.program()
    program.send(b"last words")
    program.shutdown(socket.SHUT_WR)
    lab.turn()
    assert [(h.op, h.flags) for h, _ in lab.guest.packets()] == [(OP.RW, 0), (OP.SHUTDOWN, ShutdownFlag.SEND)]
    lab.guest.send(OP.RW, 50, data=b"answer", fwd=10)
    assert program.recv(100) == b"answer"
    program.close()
    lab.turn()
    assert [(h.op, h.flags) for h, _ in lab.guest.packets()] == [(OP.SHUTDOWN, ShutdownFlag.BOTH)]


def test_a_program_that_closes(lab: Lab) -> None:
    program = lab.program()
    program.send(b"last words")
    program.close()
    lab.turn()
    assert [(h.op, h.flags) for h, _ in lab.guest.packets()] == [(OP.RW, 0), (OP.SHUTDOWN, ShutdownFlag.BOTH)]


def test_a_program_that_closes_without_reading_is_read_to_its_end(lab: Lab) -> None:
    program = lab.program()
    program.send(b"answer")
    lab.guest.send(OP.RW, 50, data=b"unread")
    program.close()
    lab.guest.send(OP.RW, 50, data=b"too late")
    lab.turn()
    lab.turn()
    packets = lab.guest.packets()
    assert b"".join(d for _, d in packets) == b"answer"
    assert packets[-1][0].flags == ShutdownFlag.BOTH


def test_a_guest_that_half_closes(lab: Lab) -> None:
    program = lab.program()
    lab.guest.send(OP.RW, 50, data=b"question")
    lab.guest.send(OP.SHUTDOWN, 50, flags=ShutdownFlag.SEND)
    assert program.recv(100) == b"question"
    assert program.recv(100) == b""
    program.send(b"answer")
    lab.turn()
    assert [d for _, d in lab.guest.packets()] == [b"answer"]


def test_a_guest_that_listens_no_more(lab: Lab) -> None:
    program = lab.program()
    lab.guest.send(OP.SHUTDOWN, 50, flags=ShutdownFlag.RECEIVE)
    with pytest.raises(BrokenPipeError):
        program.send(b"to nobody")


def test_a_guest_that_resets(lab: Lab) -> None:
    program = lab.program()
    lab.guest.send(OP.RST, 50)
    assert program.recv(100) == b""
    lab.turn()
    assert lab.guest.packets() == []


def test_a_path_in_use_is_refused(lab: Lab) -> None:
    with pytest.raises(OSError, match="in use"):
        UnixHost(lab.path)
