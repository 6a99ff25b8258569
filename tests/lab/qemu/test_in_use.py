"""A stock kernel on virtio-pci with real work: ext4, fio, transfers through the host's own network stack."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest

from chamber.device.blk import BlkDevice
from chamber.device.disk import FileDisk
from chamber.device.pmem import PmemDevice
from chamber.device.scsi import ScsiDevice
from chamber.device.scsi_lun import LogicalUnit
from chamber.lab.uml_program import connect, disconnect
from chamber.link.eventloop import EventLoop
from chamber.wire.scsi import Address
from chamber.wire.virtio import DeviceType, Feature
from tests.lab.qemu.stock_guest import sh, stock_guest
from tests.lab.tap_server import TAP, serving_net

if TYPE_CHECKING:
    from collections.abc import Iterator

    from chamber.device.base import Device
    from chamber.lab.qemu.guest import QemuGuest

pytestmark = [pytest.mark.qemu, pytest.mark.timeout(400)]

SIZE: Final = 48 << 20
MIB: Final = 1 << 20
_PROGRAMS: Final = ("mkfs.ext4", "e2fsck", "debugfs", "fio")


def _guest(loop: EventLoop, kinds: tuple[DeviceType, ...], device: Device | None, *, programs: tuple[str, ...] = (),
           more: tuple[str, ...] = ()) -> QemuGuest:
    def provide(_kind: DeviceType) -> Device:
        assert device is not None
        return device
    return stock_guest(loop, kinds, provide, more=more,
                       programs=[Path(found) for name in programs if (found := shutil.which(name)) is not None])


class Bench:
    """A guest with a disk that is a file of the host."""

    def __init__(self, guest: QemuGuest, kind: DeviceType, image: Path) -> None:
        self.guest = guest
        self.kind = kind
        self.image = image
        self.disk = "/dev/vda" if kind is DeviceType.BLOCK else "/dev/sda"

    def run(self, command: str) -> str:
        return sh(self.guest, command)


@pytest.fixture(params=[DeviceType.BLOCK, DeviceType.SCSI], ids=lambda kind: kind.short)
def bench(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Bench]:
    if None in map(shutil.which, _PROGRAMS):
        pytest.skip("it takes e2fsprogs and fio")
    image = tmp_path / "disk"
    with image.open("wb") as file:
        file.truncate(SIZE)
    disk = FileDisk(image)
    device = BlkDevice(disk) if request.param is DeviceType.BLOCK else ScsiDevice(
        units={Address(0, 0): LogicalUnit(disk)})
    with contextlib.closing(EventLoop()) as loop, contextlib.closing(
            _guest(loop, (request.param,), device, programs=("mkfs.ext4", "fio"))) as guest:
        made = Bench(guest, request.param, image)
        connect(guest, request.param)
        assert device.has(Feature.ACCESS_PLATFORM)
        made.run(f"for i in $(seq 100); do [ -b {made.disk} ] && exit; sleep 0.1; done; exit 1")
        yield made
        disconnect(guest, request.param)
    assert not device.violations
    device.close()


def _on_host(*command: str) -> str:
    result = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert result.returncode == 0, f"{' '.join(command)}: {result.stdout}{result.stderr}"
    return result.stdout


def test_ext4_and_fio(bench: Bench, tmp_path: Path) -> None:
    mkfs = shutil.which("mkfs.ext4")
    bench.run(f"{mkfs} -q {bench.disk} && mkdir -p /mnt && mount -t ext4 {bench.disk} /mnt")
    bench.run("cd /mnt && for i in $(seq 60); do mkdir -p d$((i % 7)); "
              "dd if=/dev/urandom of=d$((i % 7))/f$i bs=1k count=$i 2>/dev/null; done; "
              "dd if=/dev/urandom of=large bs=64k count=64 2>/dev/null; ln -s ../nowhere d1/link; "
              "rm d2/f2 && mv d3/f3 d4/moved && sync && echo 3 >/proc/sys/vm/drop_caches")
    sums = "cd {} && find . -type f | sort | xargs sha256sum"
    there = hashlib.sha256(bench.run(sums.format("/mnt") + " >/tmp/sums; cat /tmp/sums | sha256sum").encode()).digest()
    bench.run("umount /mnt")
    _on_host("e2fsck", "-fn", str(bench.image))
    out = tmp_path / "out"
    out.mkdir()
    _on_host("debugfs", "-R", f"rdump / {out}", str(bench.image))
    (out / "lost+found").rmdir()
    assert len(list(out.rglob("f*"))) == 58
    assert (out / "d4/moved").stat().st_size == 3 << 10
    assert hashlib.sha256(_on_host("sh", "-c", sums.format(out) + " | sha256sum").encode()).digest() == there
    fio = (f"{shutil.which('fio')} --filename={bench.disk} --direct=1 --ioengine=psync --verify=crc32c "
           "--verify_fatal=1 --randseed=7 --size=4m")
    for options in ("--name=random --rw=randwrite --bsrange=512-128k", "--name=mixed --rw=randrw --bs=4k --offset=8m"):
        assert "err= 0" in bench.run(f"{fio} {options}")
    with bench.image.open("rb") as file:
        assert any(file.read(4 << 20))


def test_files_in_persistent_memory_last(tmp_path: Path) -> None:
    """The guest's ext4 is in the host's memory, and whole after a power cut; the host's own tools read it."""
    device = PmemDevice()
    with contextlib.closing(EventLoop()) as loop, contextlib.closing(
            _guest(loop, (DeviceType.PMEM,), device, programs=("mkfs.ext4",))) as guest:
        connect(guest, DeviceType.PMEM)
        sh(guest, "mkfs.ext4 -q -b 4096 -O ^has_journal /dev/pmem0; mkdir -p /disk; mount -o dax=always /dev/pmem0 "
                  "/disk && grep -q dax /proc/mounts && seq 50000 >/disk/numbers && mkdir /disk/in && umount /disk")
        device.host_action("power-cut")
        image = tmp_path / "memory"
        image.write_bytes(device.medium.live)
        said = subprocess.run(["e2fsck", "-fn", image], capture_output=True, text=True, check=False)
        assert said.returncode == 0, said.stdout
        kept = subprocess.run(["debugfs", "-R", "cat /numbers", image], capture_output=True, check=True).stdout
        assert kept == b"".join(b"%d\n" % number for number in range(1, 50001))
        disconnect(guest, DeviceType.PMEM)


@pytest.mark.skipif(os.geteuid() != 0 or not Path("/dev/net/tun").exists() or shutil.which("nsenter") is None,
                    reason="it takes root, tun and namespaces")
def test_transfers_through_a_tap_device(tmp_path: Path) -> None:
    path = tmp_path / "net"
    content = random.Random(3).randbytes(4 * MIB)
    served = tmp_path / "served"
    served.mkdir()
    (served / "content").write_bytes(content)
    device = json.dumps({"driver": "vfio-user-pci", "addr": "1e", "socket": {"type": "unix", "path": str(path)}})
    with (contextlib.closing(EventLoop()) as loop, serving_net(path, "--protocol", "vfio-user") as server,
          contextlib.closing(_guest(loop, (), None, more=("-device", device))) as guest):
        inside = ("nsenter", f"--net=/proc/{server}/ns/net")
        _on_host(*inside, "ip", "address", "add", "10.98.0.1/24", "dev", TAP)
        _on_host(*inside, "ip", "link", "set", TAP, "up")
        sh(guest, "ip address add 10.98.0.2/24 dev eth0 && ip link set eth0 up")
        assert " 0% packet loss" in sh(guest, "ping -c 3 -s 1400 10.98.0.1")
        with subprocess.Popen((*inside, sys.executable, "-m", "http.server", "-b", "10.98.0.1", "-d", str(served),
                               "8000"), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as web:
            try:
                sh(guest, "for i in $(seq 30); do wget -q -O /tmp/got http://10.98.0.1:8000/content && exit; "
                     "sleep 0.2; done; exit 1")
            finally:
                web.kill()
        assert sh(guest, "sha256sum </tmp/got").split()[0] == hashlib.sha256(content).hexdigest()
        # And the other way: the guest serves what it has got.
        sh(guest, "mkdir /tmp/web && mv /tmp/got /tmp/web && httpd -p 10.98.0.2:80 -h /tmp/web")
        fetch = "import sys, urllib.request as u; sys.stdout.buffer.write(u.urlopen(sys.argv[1], timeout=60).read())"
        back = subprocess.run((*inside, sys.executable, "-c", fetch, "http://10.98.0.2/got"), capture_output=True,
                              timeout=90, check=True).stdout
        assert back == content
