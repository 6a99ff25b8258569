"""QEMU as the front end, firmware as the guest: SeaBIOS reads a disk, iPXE looks for a network."""

from __future__ import annotations

import shutil
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from chamber.device.blk import BlkDevice
from chamber.device.disk import FileDisk
from chamber.device.net import NetDevice
from chamber.device.net_backend import NetBackend, PacketHeader
from chamber.wire.ethernet import BROADCAST, Ethernet, IpProtocol, Ipv4
from tests.link.frontend import Served

if TYPE_CHECKING:
    from collections.abc import Callable

QEMU = shutil.which("qemu-system-x86_64")
PXE = Path("/usr/lib/ipxe/qemu/pxe-virtio.rom")
MAC = "52:54:00:63:68:6d"
EXIT_STATUS = 33

pytestmark = pytest.mark.skipif(QEMU is None, reason="qemu-system-x86_64 is not installed")

MARKER = b"read by SeaBIOS\0"
# Prints what follows it to the first serial port, then ends QEMU by isa-debug-exit.
CODE = bytes.fromhex("31c0 8ed8 be1b7c ac 84c0 7406 baf803 ee ebf5 b010 baf400 ee f4 ebfd")


def boot(socket: Path, devices: list[str], folder: Path, done: Callable[[], bool] = lambda: False) -> tuple[int, bytes]:
    """Run QEMU until it ends or `done()`; return its status and what the guest printed."""
    assert QEMU is not None
    serial = folder / "serial"
    command = [QEMU, "-machine", "pc,accel=tcg,memory-backend=m", "-m", "64", "-object",
               "memory-backend-memfd,id=m,size=64M,share=on", "-nodefaults", "-display", "none", "-no-reboot",
               "-serial", f"file:{serial}", "-device", "isa-debug-exit,iobase=0xf4,iosize=1",
               "-chardev", f"socket,id=c,path={socket}", *devices]
    with subprocess.Popen(command, stderr=subprocess.PIPE) as process:
        deadline = time.monotonic() + 60
        while process.poll() is None and not done() and time.monotonic() < deadline:
            time.sleep(0.02)
        process.kill()
        _, errors = process.communicate()
    assert time.monotonic() < deadline, errors.decode()
    return process.returncode, serial.read_bytes()


class Listener(NetBackend):
    """The other end of a wire, which listens and says nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.frames: list[bytes] = []

    def transmit(self, frame: bytes, header: PacketHeader) -> None:
        self.frames.append(frame)


def test_seabios_boots_from_a_disk(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.write_bytes((CODE + MARKER).ljust(510, b"\0") + b"\x55\xaa" + bytes((1 << 20) - 512))
    path = tmp_path / "socket"
    device = BlkDevice(FileDisk(disk))
    with Served(device, path):
        status, said = boot(path, ["-device", "vhost-user-blk-pci,chardev=c,bootindex=0"], tmp_path)
    device.close()
    assert said.startswith(MARKER[:-1])
    assert status == EXIT_STATUS
    assert device.violations == []


@pytest.mark.skipif(not PXE.exists(), reason="ipxe-qemu is not installed")
def test_ipxe_asks_for_an_address(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    wire = Listener()
    device = NetDevice(wire)
    with Served(device, path):
        boot(path, ["-netdev", "vhost-user,id=n,chardev=c", "-device",
                    f"virtio-net-pci,netdev=n,mac={MAC},bootindex=0"], tmp_path, done=lambda: bool(wire.frames))
    device.close()
    assert device.violations == []
    frame = Ethernet.parse(wire.frames[0])
    assert frame.destination == BROADCAST
    assert frame.source == bytes.fromhex(MAC.replace(":", ""))
    assert Ipv4.parse(frame.payload).protocol == IpProtocol.UDP
