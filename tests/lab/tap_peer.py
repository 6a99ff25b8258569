"""One end of a TCP transfer: sends and receives at once, and prints what went and came as SHA-256.

Runs as a program of its own, with the standard library only: in the guest, and in a network namespace of the host.

    python tap_peer.py listen|connect ADDRESS SEED BYTES

Both ends send so many bytes, made from their seeds.
"""

from __future__ import annotations

import hashlib
import json
import random
import socket
import sys
import threading
import time

_PORT = 5001
_SECONDS = 60.0
_PIECE = 100_000


def content(seed: int, size: int) -> bytes:
    """What the end with this seed sends."""
    return random.Random(seed).randbytes(size)


def transfer(sock: socket.socket, seed: int, size: int) -> dict[str, object]:
    """Send and receive to the end, both at once."""
    def send() -> None:
        data = content(seed, size)
        for start in range(0, size, _PIECE):
            sock.sendall(data[start:start + _PIECE])
        sock.shutdown(socket.SHUT_WR)

    sender = threading.Thread(target=send)
    sender.start()
    digest, got = hashlib.sha256(), 0
    while data := sock.recv(1 << 16):
        digest.update(data)
        got += len(data)
    sender.join()
    return {"bytes": got, "sha256": digest.hexdigest()}


def reach(address: str) -> socket.socket:
    """Connect, as soon as the other end listens."""
    end = time.monotonic() + _SECONDS
    while True:
        try:
            return socket.create_connection((address, _PORT), timeout=_SECONDS)
        except ConnectionRefusedError:
            if time.monotonic() > end:
                raise
            time.sleep(0.1)


def main() -> None:
    """Transfer once, and print the outcome."""
    role, address, seed, size = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
    if role == "listen":
        with socket.create_server((address, _PORT)) as server:
            server.settimeout(_SECONDS)
            sock, _ = server.accept()
    else:
        sock = reach(address)
    with sock:
        sock.settimeout(_SECONDS)
        sys.stdout.write(json.dumps(transfer(sock, seed, size)))


if __name__ == "__main__":
    main()
