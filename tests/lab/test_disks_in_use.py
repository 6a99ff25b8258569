"""File systems on Chamber's disks: what the stock guest wrote is read by the host's tools, and the other way about."""

from __future__ import annotations

import hashlib
import os
import random
import shutil
import subprocess
from typing import TYPE_CHECKING, Final

import pytest

from chamber.device.catalogue import make_device
from chamber.device.disk import FileDisk
from chamber.device.scsi_lun import LogicalUnit
from chamber.lab.observation import TargetError
from chamber.lab.uml_guest import UmlGuest
from chamber.lab.uml_kernel import find_kernel
from chamber.lab.uml_program import connect, disconnect, run_program
from chamber.link.eventloop import EventLoop
from chamber.wire.scsi import Address
from chamber.wire.virtio import DeviceType, Feature

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from chamber.device.base import Device

try:
    KERNEL = find_kernel()
except TargetError as error:
    pytest.skip(str(error), allow_module_level=True)

pytestmark = [pytest.mark.uml, pytest.mark.skipif(os.geteuid() != 0, reason="files of others need root"),
              pytest.mark.skipif(None in map(shutil.which, ("mkfs.ext4", "debugfs", "fio")),
                                 reason="it takes e2fsprogs and fio")]

SIZE: Final = 64 << 20
FILES: Final = 400
_CHECK: Final = """
cd {0} && find . ! -name lost+found -printf '%p %y %m %U:%G %l\\n' | sort | sha256sum
find . -type f -print0 | sort -z | xargs -0 sha256sum | sha256sum"""
"""Two sums: of all names, types, permissions, owners and links' targets; of all contents."""


class Bench:
    """A guest with a disk that is a file of the host."""

    def __init__(self, guest: UmlGuest, kind: DeviceType, image: Path, devices: list[Device], *, packed: bool) -> None:
        self.guest = guest
        self.kind = kind
        self.image = image
        self.devices = devices
        self.packed = packed
        self.disk = "/dev/vda" if kind is DeviceType.BLOCK else "/dev/sda"

    def run(self, *arguments: str, seconds: float = 120) -> str:
        result = run_program(self.guest, *arguments, seconds=seconds)
        assert result.status == 0, f"{' '.join(arguments)}: {result.output}"
        return result.output

    def plug(self) -> None:
        connect(self.guest, self.kind)
        assert self.devices[-1].has(Feature.RING_PACKED) == self.packed
        # SCSI disks are looked for behind the probe.
        self.run("sh", "-c", f"for i in $(seq 100); do blockdev --getsz {self.disk} && exit; sleep 0.05; done; exit 1")

    def unplug(self) -> None:
        disconnect(self.guest, self.kind)


@pytest.fixture(params=[(DeviceType.BLOCK, "split"), (DeviceType.BLOCK, "packed"), (DeviceType.SCSI, "split")],
                ids=lambda param: f"{param[0].short}-{param[1]}")
def bench(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Bench]:
    kind, ring = request.param
    image = tmp_path / "disk"
    with image.open("wb") as file:
        file.truncate(SIZE)
    devices: list[Device] = []

    def provide() -> Device:
        disk = FileDisk(image)
        devices.append(make_device(kind, ring=ring, disk=disk) if kind is DeviceType.BLOCK else
                       make_device(kind, ring=ring, units={Address(0, 0): LogicalUnit(disk)}))
        return devices[-1]

    loop = EventLoop()
    guest = UmlGuest(KERNEL, loop, {kind: provide}, memory_mb=384)
    try:
        yield Bench(guest, kind, image, devices, packed=ring == "packed")
    finally:
        guest.close()
        loop.close()
        for device in devices:
            assert not device.violations
            device.close()


def make_files(root: Path) -> None:
    """Some hundreds of files with what an ext4 can lose."""
    dice = random.Random(4)
    folders = [root]
    root.mkdir()
    for i in range(30):
        folders.append(dice.choice(folders) / f"d{i}")
        folders[-1].mkdir()
    for i in range(FILES):
        file = dice.choice(folders) / f"f{i}"
        file.write_bytes(dice.randbytes(dice.choice((0, 1, 511, 4096, 5000, 30_000))))
        file.chmod(dice.choice((0o644, 0o600, 0o4755, 0o400)))
        os.chown(file, dice.choice((0, 1000)), dice.choice((0, 1000)))
    (root / "large").write_bytes(dice.randbytes(8 << 20))
    for i in range(20):
        (dice.choice(folders) / f"l{i}").symlink_to(dice.choice(("f1", "../nowhere", "x" * 200)))
    with (root / "sparse").open("wb") as sparse:
        sparse.seek(16 << 20)
        sparse.write(b"end")


def sums(folder: str) -> str:
    return _CHECK.format(folder)


def on_host(*arguments: str) -> str:
    result = subprocess.run(arguments, capture_output=True, text=True, timeout=120, check=False)
    assert result.returncode == 0, f"{' '.join(arguments)}: {result.stdout}{result.stderr}"
    return result.stdout


def extracted(image: Path, into: Path) -> Path:
    """Take all files out of a file system without the host's kernel."""
    into.mkdir()
    on_host("debugfs", "-R", f"rdump / {into}", str(image))
    (into / "lost+found").rmdir()
    into.chmod(0o755)
    return into


def test_a_file_system_of_the_guest(bench: Bench, tmp_path: Path) -> None:
    make_files(tmp_path / "tree")
    bench.plug()
    assert "has_journal" in bench.run("sh", "-c", f"mkfs.ext4 -q {bench.disk} && tune2fs -l {bench.disk}")
    bench.run("mount", "-t", "ext4", bench.disk, "/mnt")
    # The guest's root is the host's: it copies what the test made there.
    bench.run("cp", "-a", f"{tmp_path}/tree/.", "/mnt")
    bench.run("sh", "-c", "sync; echo 3 > /proc/sys/vm/drop_caches")
    there = bench.run("sh", "-c", sums("/mnt"))
    bench.run("rm", "-r", "/mnt/large")
    bench.run("cp", "-a", f"{tmp_path}/tree/large", "/mnt/large")
    bench.run("fstrim", "/mnt")
    bench.run("umount", "/mnt")
    bench.unplug()
    assert there == on_host("sh", "-c", sums(f"{tmp_path}/tree"))
    on_host("e2fsck", "-fn", str(bench.image))
    assert on_host("sh", "-c", sums(str(extracted(bench.image, tmp_path / "out")))) == there
    assert bench.image.stat().st_blocks * 512 < SIZE * 3 // 4  # what was trimmed went back to the host


def test_a_file_system_of_the_host(bench: Bench, tmp_path: Path) -> None:
    make_files(tmp_path / "tree")
    on_host("mkfs.ext4", "-q", "-d", f"{tmp_path}/tree", str(bench.image))
    bench.plug()
    bench.run("mount", "-t", "ext4", "-o", "ro", bench.disk, "/mnt")
    assert bench.run("sh", "-c", sums("/mnt")) == on_host("sh", "-c", sums(f"{tmp_path}/tree"))
    bench.run("umount", "/mnt")
    # It goes on being used: a journal, and files in directories that the host made.
    bench.run("mount", "-t", "ext4", bench.disk, "/mnt")
    bench.run("sh", "-c", "cd /mnt && for i in $(seq 100); do echo $i > d0/new$i; done && rm f* && sync")
    bench.run("umount", "/mnt")
    bench.unplug()
    on_host("e2fsck", "-fn", str(bench.image))
    out = extracted(bench.image, tmp_path / "out")
    assert [(out / "d0" / f"new{i}").read_text() for i in range(1, 101)] == [f"{i}\n" for i in range(1, 101)]
    assert not list(out.glob("f*"))
    large = [hashlib.sha256((path / "large").read_bytes()).digest() for path in (out, tmp_path / "tree")]
    assert large[0] == large[1]


def test_fio_verifies_what_it_wrote(bench: Bench) -> None:
    bench.plug()
    common = ("fio", f"--filename={bench.disk}", "--direct=1", "--ioengine=libaio", "--thread", "--verify=crc32c",
              "--verify_fatal=1", "--randseed=7", "--size=24m")
    for name, *options in (("random", "--rw=randwrite", "--bsrange=512-128k", "--iodepth=32"),
                           ("sequential", "--rw=write", "--bs=1m", "--iodepth=4", "--offset=32m"),
                           ("mixed", "--rw=randrw", "--bs=4k", "--iodepth=16", "--io_size=8m")):
        output = bench.run(*common, f"--name={name}", *options)
        assert "err= 0" in output
    bench.unplug()
    content = bench.image.read_bytes()
    assert any(content[:24 << 20])
    assert any(content[32 << 20:56 << 20])
    assert not any(content[56 << 20:])
