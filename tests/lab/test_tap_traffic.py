"""A stock guest's network through a tap device: ping, and TCP both ways, in a network namespace of the test's own."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from chamber.lab.observation import TargetError
from chamber.lab.uml_guest import UmlGuest
from chamber.lab.uml_kernel import find_kernel
from chamber.lab.uml_program import connect, disconnect, run_program
from chamber.link.eventloop import EventLoop
from chamber.wire.virtio import DeviceType

if TYPE_CHECKING:
    from collections.abc import Iterator

try:
    KERNEL = find_kernel()
except TargetError as error:
    pytest.skip(str(error), allow_module_level=True)

MISSING = [program for program in ("ip", "ping") if shutil.which(program) is None]
pytestmark = [pytest.mark.uml,
              pytest.mark.skipif(os.geteuid() != 0, reason="a network namespace needs root"),
              pytest.mark.skipif(not Path("/dev/net/tun").exists(), reason="needs /dev/net/tun"),
              pytest.mark.skipif(bool(MISSING), reason=f"needs {', '.join(MISSING)}")]

HOST, GUEST = "192.0.2.1", "192.0.2.2"  # TEST-NET-1 (RFC 5737)
PORT = 7000
MEGABYTES = 8

# Sends random bytes and receives the peer's, at the same time; says the checksums of both.
PEER = f"""
import hashlib, os, socket, sys, threading
role, size = sys.argv[1], {MEGABYTES} << 20
if role == "listen":
    server = socket.create_server(("{HOST}", {PORT}))
    print("ready", flush=True)
    line, _ = server.accept()
else:
    line = socket.create_connection(("{HOST}", {PORT}), 20)
line.settimeout(60)
data, came = os.urandom(size), hashlib.sha256()
sender = threading.Thread(target=lambda: (line.sendall(data), line.shutdown(socket.SHUT_WR)))
sender.start()
total = 0
while part := line.recv(1 << 16):
    came.update(part)
    total += len(part)
sender.join()
print(total, hashlib.sha256(data).hexdigest(), came.hexdigest())
"""


def _host(*arguments: str) -> str:
    done = subprocess.run(arguments, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
    assert done.returncode == 0, f"{' '.join(arguments)}: {done.stdout}{done.stderr}"
    return done.stdout


def _guest(guest: UmlGuest, *arguments: str) -> str:
    result = run_program(guest, *arguments, seconds=90)
    assert result.status == 0, f"{' '.join(arguments)}: {result.output}"
    return result.output


@pytest.fixture
def namespace() -> Iterator[str]:
    name = f"chamber-test-{os.getpid()}"
    _host("ip", "netns", "add", name)
    try:
        for words in (("tuntap", "add", "tap0", "mode", "tap"), ("addr", "add", f"{HOST}/24", "dev", "tap0"),
                      ("link", "set", "tap0", "up"), ("link", "set", "lo", "up")):
            _host("ip", "-n", name, *words)
        yield name
    finally:
        _host("ip", "netns", "delete", name)


def _ended(process: subprocess.Popen[str]) -> None:
    process.terminate()
    process.wait()
    for stream in (process.stdout, process.stderr):
        if stream is not None:
            stream.close()


@pytest.fixture
def guest(namespace: str, tmp_path: Path) -> Iterator[UmlGuest]:
    """A guest whose network card is the tap device of the namespace."""
    path = tmp_path / "net"
    with ExitStack() as stack:
        served = subprocess.Popen(
            ["ip", "netns", "exec", namespace, sys.executable, "-m", "chamber", "serve", "net", "--tap", "tap0",
             "--socket", str(path)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        stack.callback(_ended, served)
        while not path.is_socket():
            assert served.poll() is None, served.communicate()
            time.sleep(0.05)
        loop = stack.enter_context(EventLoop())
        made = UmlGuest(KERNEL, loop, {}, sockets={DeviceType.NET: path})
        stack.callback(made.close)
        name = connect(made, DeviceType.NET)
        link = _guest(made, "ls", f"/sys/bus/virtio/devices/{name}/net").strip()
        _guest(made, "ip", "addr", "add", f"{GUEST}/24", "dev", link)
        _guest(made, "ip", "link", "set", link, "up")
        yield made
        disconnect(made, DeviceType.NET)


def test_ping_both_ways(guest: UmlGuest, namespace: str) -> None:
    assert ", 0% packet loss" in _guest(guest, "ping", "-c", "5", "-i", "0.05", "-W", "5", HOST)
    # The guest answers while a program of its own runs.
    process = subprocess.Popen(["ip", "netns", "exec", namespace, "ping", "-c", "5", "-i", "0.1", "-s", "1400", GUEST],
                               stdout=subprocess.PIPE, text=True)
    while process.poll() is None:
        _guest(guest, "sleep", "0.2")
    assert process.stdout is not None
    assert ", 0% packet loss" in process.stdout.read()
    process.stdout.close()


def test_a_transfer_both_ways_arrives_as_it_was_sent(guest: UmlGuest, namespace: str) -> None:
    peer = subprocess.Popen(["ip", "netns", "exec", namespace, sys.executable, "-c", PEER, "listen"],
                            stdout=subprocess.PIPE, text=True)
    try:
        assert peer.stdout is not None
        assert peer.stdout.readline() == "ready\n"
        inside = _guest(guest, os.path.realpath(sys.executable), "-S", "-s", "-c", PEER, "connect").split()
        outside = peer.stdout.readline().split()
        assert int(inside[0]) == int(outside[0]) == MEGABYTES << 20
        assert inside[1] == outside[2]
        assert inside[2] == outside[1]
    finally:
        _ended(peer)
