"""Linux's own 9p client before Chamber's server: a tree of some hundred files, by way of a socket of the guest's.

The stock kernel has no virtio transport for 9p. It has one for sockets, so the messages go through virtio-vsock.
"""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

import pytest

from chamber.device.p9_server import MOST_MSIZE, P9Server
from chamber.device.vsock import VsockDevice
from chamber.device.vsock_connection import HostEnd
from chamber.device.vsock_service import Services
from chamber.lab.observation import TargetError
from chamber.lab.uml_guest import UmlGuest
from chamber.lab.uml_kernel import find_kernel
from chamber.lab.uml_program import connect, disconnect, run_program
from chamber.link.eventloop import EventLoop
from chamber.wire.virtio import DeviceType
from tests.lab.file_tree import FILES, HOLE, describe, make_tree

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

try:
    KERNEL = find_kernel()
except TargetError as error:
    pytest.skip(str(error), allow_module_level=True)

pytestmark = [pytest.mark.uml, pytest.mark.timeout(400),
              pytest.mark.skipif(os.geteuid() != 0, reason="files of others need root")]

PORT = 564
MODULES = ("fs/netfs/netfs", "fs/fscache/fscache", "net/9p/9pnet", "net/9p/9pnet_fd", "fs/9p/9p")
# The kernel keeps the socket when the program that mounted has ended.
MOUNT = f"""
import ctypes, os, socket, sys
libc = ctypes.CDLL(None, use_errno=True)
for module in sys.argv[1:]:
    with open(module, "rb") as file:
        libc.syscall(313, file.fileno(), b"", 0)  # finit_module(2)
line = socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM)
line.connect((socket.VMADDR_CID_HOST, {PORT}))
options = f"trans=fd,rfdno={{line.fileno()}},wfdno={{line.fileno()}},version=9p2000.L,msize=131072,access=client"
if libc.mount(b"chamber", b"/tmp/mnt", b"9p", 0, options.encode()):
    raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
"""


class Session(HostEnd):
    """Cuts a stream into messages and has a server answer them."""

    def __init__(self, root: Path) -> None:
        self.server = P9Server(root)
        self._waiting = bytearray()

    def received(self, data: bytes) -> None:
        self.connection.consume(len(data))
        self._waiting += data
        while len(self._waiting) >= 4:
            size = int.from_bytes(self._waiting[:4], "little")
            if len(self._waiting) < size:
                return
            message = bytes(self._waiting[:size])
            del self._waiting[:size]
            self.connection.send(self.server.handle(message, MOST_MSIZE))

    def closed(self, *, graceful: bool) -> None:
        self.server.close()


def _run(guest: UmlGuest, *arguments: str) -> str:
    result = run_program(guest, *arguments, seconds=120)
    assert result.status == 0, f"{' '.join(arguments)}: {result.output}"
    return result.output


@pytest.fixture
def shared(tmp_path: Path) -> Iterator[tuple[UmlGuest, Path]]:
    """A guest that has mounted a directory of the host."""
    path = tmp_path / "shared"
    path.mkdir()
    device = VsockDevice((Services({PORT: lambda: Session(path)}),))
    loop = EventLoop(spin=0.0002)
    guest = UmlGuest(KERNEL, loop, {DeviceType.VSOCK: lambda: device}, memory_mb=256)
    try:
        folder = KERNEL.modules[0]
        while folder.name != "kernel":
            folder = folder.parent
        connect(guest, DeviceType.VSOCK)
        _run(guest, "mount", "-t", "tmpfs", "scratch", "/tmp")
        _run(guest, "mkdir", "/tmp/mnt")
        _run(guest, os.path.realpath(sys.executable), "-S", "-s", "-c", MOUNT,
             *(str(folder / f"{module}.ko") for module in MODULES))
        yield guest, path
        _run(guest, "umount", "/tmp/mnt")
        disconnect(guest, DeviceType.VSOCK)
    finally:
        guest.close()
        device.close()
        loop.close()


def test_a_tree_goes_out_and_comes_back(shared: tuple[UmlGuest, Path]) -> None:
    guest, path = shared
    make_tree(path / "in", xattrs=False, files=FILES // 10)
    before = describe(path / "in", xattrs=False)
    assert len(before) > FILES // 10
    _run(guest, "cp", "-a", "/tmp/mnt/in", "/tmp/copy")
    _run(guest, "diff", "-r", "--no-dereference", "/tmp/mnt/in", "/tmp/copy")
    _run(guest, "cp", "-a", "/tmp/copy", "/tmp/mnt/back")
    _run(guest, "sync")
    assert _whole_seconds(describe(path / "back", xattrs=False)) == _whole_seconds(before)
    assert (path / "back" / "sparse").stat().st_blocks * 512 < HOLE // 4
    _run(guest, "rm", "-r", "/tmp/mnt/in", "/tmp/mnt/back")
    assert list(path.iterdir()) == []


def _whole_seconds(tree: dict[str, tuple[object, ...]]) -> dict[str, tuple[object, ...]]:
    """Times without their fractions: Linux cuts them off when it sets them on a 9p file (s_time_gran)."""
    return {name: (*entry[:6], int(str(entry[6] or 0)) // 10**9, entry[7])
            for name, entry in tree.items()}
