"""Both ends of checksummed transfers over many sockets at once; runs on the host, and as a program in the guest.

Each side sends on each connection what the other can work out from the connection's number, and says it has no more;
what came is told by its SHA-256, of messages together with where each one ends.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import random
import selectors
import socket
import sys
import time
from collections import deque

STREAMS = 50
MESSAGES = 4
"""Connections of each type; those of messages have the numbers behind the streams'."""
TO_HOST = {socket.SOCK_STREAM: 1000, socket.SOCK_SEQPACKET: 1001}
TO_GUEST = {socket.SOCK_STREAM: 2000, socket.SOCK_SEQPACKET: 2001}
SECONDS = 50.0
_HOST_CID = 2
_STREAM_SIZE = 200_000
_MESSAGE_SIZES = (1, 100, 4096, 5000, 20_000, 64_000)
"""Together less than what the other side has room for: a message for which there is none can't be sent in parts."""
_PART = 1 << 16


def kind_of(number: int) -> socket.SocketKind:
    return socket.SOCK_STREAM if number < STREAMS else socket.SOCK_SEQPACKET


def content(side: str, number: int) -> list[bytes]:
    """What a side sends on a connection, in pieces or messages."""
    dice = random.Random(f"{side} {number}")
    if kind_of(number) == socket.SOCK_SEQPACKET:
        return [dice.randbytes(size) for size in dice.sample(_MESSAGE_SIZES, len(_MESSAGE_SIZES))]
    data = dice.randbytes(_STREAM_SIZE + 1013 * number)
    return [data[at:at + _PART] for at in range(0, len(data), _PART)]


def checksum(number: int, pieces: list[bytes]) -> str:
    ends = [len(piece) for piece in pieces] if kind_of(number) == socket.SOCK_SEQPACKET else []
    return hashlib.sha256(json.dumps(ends).encode() + b"".join(pieces)).hexdigest()


def expected(side: str) -> dict[int, str]:
    """What a side should have been sent."""
    other = {"guest": "host", "host": "guest"}[side]
    return {number: checksum(number, content(other, number)) for number in range(STREAMS + MESSAGES)}


class _Flow:
    """One connection: `number` is known to who opened it, and the first thing that is said."""

    def __init__(self, sock: socket.socket, side: str, number: int | None) -> None:
        sock.setblocking(False)
        self.sock = sock
        self.number = number
        self.pieces: list[bytes] = []
        self.ended = False
        self._side = side
        self._out: deque[memoryview] = deque()
        self._finished = False
        if number is not None:
            self._begin(number)
            self._out.appendleft(memoryview(number.to_bytes(4, "big")))
        self._named = number is not None

    def _begin(self, number: int) -> None:
        self.number = number
        self._out.extend(memoryview(piece) for piece in content(self._side, number))

    @property
    def events(self) -> int:
        return ((0 if self.ended else selectors.EVENT_READ)
                | (0 if self._finished or self.number is None else selectors.EVENT_WRITE))

    def read(self) -> None:
        data = self.sock.recv(_PART)
        if not data:
            self.ended = True
            return
        self.pieces.append(data)
        if not self._named:
            first = b"".join(self.pieces)
            if len(first) >= 4:
                self._named = True
                self.pieces = [first[4:]] if first[4:] else []
                self._begin(int.from_bytes(first[:4], "big"))

    def write(self) -> None:
        if self._out:
            sent = self.sock.send(self._out[0])
            if sent == len(self._out[0]):
                self._out.popleft()
            else:
                self._out[0] = self._out[0][sent:]
        if not self._out:
            self._finished = True
            self.sock.shutdown(socket.SHUT_WR)


def exchange(side: str, opened: dict[int, socket.socket], listeners: list[socket.socket]) -> dict[int, str]:
    """Transfer both ways on all connections at once; return the checksum of what came on each.

    Raises:
        TimeoutError: it takes too long.
        OSError: a connection broke.

    """
    deadline = time.monotonic() + SECONDS
    done: dict[int, str] = {}
    flows: set[_Flow] = set()
    with selectors.DefaultSelector() as selector:
        for number, sock in opened.items():
            flows.add(flow := _Flow(sock, side, number))
            selector.register(sock, flow.events, flow)
        for listener in listeners:
            listener.setblocking(False)
            selector.register(listener, selectors.EVENT_READ, None)
        try:
            while len(done) < STREAMS + MESSAGES:
                if time.monotonic() > deadline:
                    raise TimeoutError(f"{len(done)} connections are done, {len(flows)} are not")
                for key, events in selector.select(1.0):
                    flow = key.data
                    if flow is None:
                        sock = key.fileobj.accept()[0]  # type: ignore[union-attr]
                        flows.add(flow := _Flow(sock, side, None))
                        selector.register(sock, flow.events, flow)
                        continue
                    with contextlib.suppress(BlockingIOError):  # a part of a message makes a socket readable
                        if events & selectors.EVENT_READ:
                            flow.read()
                    with contextlib.suppress(BlockingIOError):
                        if events & selectors.EVENT_WRITE:
                            flow.write()
                    if flow.events:
                        selector.modify(flow.sock, flow.events, flow)
                    else:
                        done[flow.number] = checksum(flow.number, flow.pieces)
                        selector.unregister(flow.sock)
                        flow.sock.close()
                        flows.remove(flow)
        finally:
            for flow in flows:
                flow.sock.close()
    return done


def _guest(way: str) -> dict[int, str]:
    if way == "out":
        opened = {}
        for number in range(STREAMS + MESSAGES):
            opened[number] = socket.socket(socket.AF_VSOCK, kind_of(number))
            opened[number].connect((_HOST_CID, TO_HOST[kind_of(number)]))
        return exchange("guest", opened, [])
    listeners = []
    for kind, port in TO_GUEST.items():
        listeners.append(listener := socket.socket(socket.AF_VSOCK, kind))
        listener.bind((socket.VMADDR_CID_ANY, port))
        listener.listen(STREAMS)
    try:
        return exchange("guest", {}, listeners)
    finally:
        for listener in listeners:
            listener.close()


if __name__ == "__main__":
    wrong = {n: got for n, got in _guest(sys.argv[1]).items() if got != expected("guest")[n]}
    sys.stdout.write(f"{STREAMS + MESSAGES - len(wrong)} right, {len(wrong)} wrong {sorted(wrong)}\n")
    sys.exit(bool(wrong))
