"""Fifty connections at once between the stock guest and programs of the host, with checksums, both ways on each."""

from __future__ import annotations

import os
import socket
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from chamber.device.vsock import VsockDevice
from chamber.device.vsock_socket import UnixHost
from chamber.lab.observation import TargetError
from chamber.lab.uml_guest import UmlGuest
from chamber.lab.uml_kernel import find_kernel
from chamber.lab.uml_program import connect, disconnect, run_program
from chamber.link.eventloop import EventLoop
from chamber.wire.virtio import DeviceType
from tests.lab import vsock_peer
from tests.lab.vsock_peer import MESSAGES, STREAMS, TO_GUEST, TO_HOST, exchange, expected, kind_of

if TYPE_CHECKING:
    from collections.abc import Iterator

try:
    KERNEL = find_kernel()
except TargetError as error:
    pytest.skip(str(error), allow_module_level=True)

pytestmark = pytest.mark.uml

ALL = STREAMS + MESSAGES
PROGRAM = str(Path(vsock_peer.__file__).resolve())
PYTHON = os.path.realpath(sys.executable)


class Lab:
    """A guest whose sockets lead to Unix sockets of the host."""

    def __init__(self, guest: UmlGuest, device: VsockDevice, path: Path) -> None:
        self.guest = guest
        self.device = device
        self.path = path

    def run(self, way: str) -> str:
        result = run_program(self.guest, PYTHON, "-S", "-s", PROGRAM, way)
        assert result.status == 0, result.output
        return result.output


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    descriptors = len(os.listdir("/proc/self/fd"))
    path = tmp_path / "vsock"
    device = VsockDevice([UnixHost(path)])
    with ExitStack() as stack:
        stack.callback(device.close)
        loop = stack.enter_context(EventLoop())
        guest = UmlGuest(KERNEL, loop, {DeviceType.VSOCK: lambda: device}, memory_mb=256)
        stack.callback(guest.close)
        connect(guest, DeviceType.VSOCK)
        yield Lab(guest, device, path)
        deadline = time.monotonic() + 10  # the last of them is still saying goodbye
        while device.connections and time.monotonic() < deadline:
            guest.settle(0.05)
        assert device.connections == {}
        assert device.violations == []
        disconnect(guest, DeviceType.VSOCK)
    assert list(tmp_path.iterdir()) == []
    assert len(os.listdir("/proc/self/fd")) == descriptors


def _dial(path: Path, number: int) -> socket.socket:
    """Connect to the guest, as soon as somebody there listens."""
    kind = kind_of(number)
    where = path if kind == socket.SOCK_STREAM else f"{path}.seqpacket"
    deadline = time.monotonic() + 30
    while True:
        sock = socket.socket(socket.AF_UNIX, kind)
        sock.settimeout(30)
        sock.connect(str(where))
        sock.send(b"CONNECT %d\n" % TO_GUEST[kind])
        if sock.recv(64).startswith(b"OK "):
            return sock
        sock.close()
        assert time.monotonic() < deadline
        time.sleep(0.05)


def _call(path: Path) -> dict[int, str]:
    with ExitStack() as stack:
        opened = {number: stack.enter_context(_dial(path, number)) for number in range(ALL)}
        return exchange("host", opened, [])


def test_programs_of_the_guest_reach_programs_of_the_host(lab: Lab) -> None:
    with ExitStack() as stack, ThreadPoolExecutor(1) as pool:
        listeners = []
        for kind, port in TO_HOST.items():
            listeners.append(listener := stack.enter_context(socket.socket(socket.AF_UNIX, kind)))
            where = Path(f"{lab.path}_{port}")
            listener.bind(str(where))
            stack.callback(where.unlink)
            listener.listen(ALL)
        host = pool.submit(exchange, "host", {}, listeners)
        assert lab.run("out") == f"{ALL} right, 0 wrong []\n"
        assert host.result() == expected("host")


def test_programs_of_the_host_reach_programs_of_the_guest(lab: Lab) -> None:
    with ThreadPoolExecutor(1) as pool:
        host = pool.submit(_call, lab.path)
        assert lab.run("in") == f"{ALL} right, 0 wrong []\n"
        assert host.result() == expected("host")
