"""Disks of the stock guest under ordinary use: file systems made, filled, checked and compared; writes verified."""

from __future__ import annotations

import os
import shutil
import subprocess
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from chamber.device.blk import BlkDevice
from chamber.device.catalogue import RINGS
from chamber.device.disk import FileDisk
from chamber.device.scsi import ScsiDevice
from chamber.device.scsi_lun import LogicalUnit
from chamber.lab.observation import TargetError
from chamber.lab.uml_guest import UmlGuest
from chamber.lab.uml_kernel import find_kernel
from chamber.lab.uml_program import connect, disconnect, run_program
from chamber.link.eventloop import EventLoop
from chamber.wire.scsi import Address
from chamber.wire.virtio import DeviceType
from tests.lab.file_tree import describe, make_tree

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from chamber.device.base import Device

try:
    KERNEL = find_kernel()
except TargetError as error:
    pytest.skip(str(error), allow_module_level=True)

MISSING = [program for program in ("mkfs.ext4", "e2fsck", "debugfs", "fio") if shutil.which(program) is None]
pytestmark = [pytest.mark.uml,
              pytest.mark.skipif(bool(MISSING), reason=f"needs {', '.join(MISSING)}"),
              pytest.mark.skipif(os.geteuid() != 0, reason="files of others need root")]

SIZE = 96 << 20
FILES = 300
DISKS = pytest.mark.parametrize(("kind", "ring"), [
    (DeviceType.BLOCK, "split"), (DeviceType.BLOCK, "packed"), (DeviceType.SCSI, "split")],
    ids=["blk-split", "blk-packed", "scsi-split"])


def _device(kind: DeviceType, ring: str, image: Path) -> Device:
    disk = FileDisk(image, read_only=False)
    device: Device = (BlkDevice(disk=disk) if kind is DeviceType.BLOCK
                      else ScsiDevice({Address(0, 0): LogicalUnit(disk, serial=b"chamber")}))
    device.offer(RINGS[ring])
    return device


@contextmanager
def _using(kind: DeviceType, ring: str, image: Path) -> Iterator[tuple[UmlGuest, str]]:
    """A guest and the name of its disk."""
    made: list[Device] = []

    def provide() -> Device:
        made.append(_device(kind, ring, image))
        return made[-1]

    with EventLoop(spin=0.0002) as loop:
        guest = UmlGuest(KERNEL, loop, {kind: provide}, memory_mb=384)
        try:
            connect(guest, kind)
            disk = "/dev/vda" if kind is DeviceType.BLOCK else "/dev/sda"
            # The SCSI host looks for its disks after it is there.
            _run(guest, "sh", "-c", f"for i in $(seq 100); do test -b {disk} && exit; sleep 0.05; done; exit 1")
            _run(guest, "mount", "-t", "tmpfs", "scratch", "/tmp")
            _run(guest, "mkdir", "/tmp/mnt")
            yield guest, disk
            disconnect(guest, kind)
        finally:
            guest.close()
            for device in made:
                device.close()
    assert not made[-1].violations


def _run(guest: UmlGuest, *arguments: str) -> str:
    result = run_program(guest, *arguments, seconds=90)
    assert result.status == 0, f"{' '.join(arguments)}: {result.output}"
    return result.output


def _host(*arguments: str) -> str:
    done = subprocess.run(arguments, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
    assert done.returncode == 0, f"{' '.join(arguments)}: {done.stdout}{done.stderr}"
    return done.stdout


@DISKS
def test_a_file_system_made_by_the_guest_is_sound_for_the_host(tmp_path: Path, kind: DeviceType, ring: str) -> None:
    image, tree = tmp_path / "image", tmp_path / "tree"
    image.write_bytes(b"")
    os.truncate(image, SIZE)
    make_tree(tree, xattrs=False, files=FILES)
    with _using(kind, ring, image) as (guest, disk):
        _run(guest, "mount", "-t", "hostfs", "-o", str(tree), "none", "/tmp/mnt")
        _run(guest, "mkdir", "/tmp/disk")
        _run(guest, "mkfs.ext4", "-q", disk)
        _run(guest, "mount", disk, "/tmp/disk")
        _run(guest, "cp", "-a", "/tmp/mnt", "/tmp/disk/tree")
        _run(guest, "umount", "/tmp/disk")
        _run(guest, "umount", "/tmp/mnt")
    _host("e2fsck", "-fn", str(image))
    (tmp_path / "out").mkdir()
    _host("debugfs", "-R", f"rdump /tree {tmp_path / 'out'}", str(image))
    # debugfs keeps neither names of one file, nor fractions of seconds, nor sticky bits.
    assert _essence(tmp_path / "out" / "tree") == _essence(tree)


@DISKS
def test_a_file_system_made_by_the_host_is_read_by_the_guest(tmp_path: Path, kind: DeviceType, ring: str) -> None:
    image, tree = tmp_path / "image", tmp_path / "tree"
    image.write_bytes(b"")
    os.truncate(image, SIZE)
    make_tree(tree, xattrs=False, files=FILES)
    _host("mkfs.ext4", "-q", "-d", str(tree), str(image))
    with _using(kind, ring, image) as (guest, disk):
        _run(guest, "mkdir", "/tmp/disk")
        _run(guest, "mount", "-t", "hostfs", "-o", str(tree), "none", "/tmp/mnt")
        _run(guest, "mount", "-o", "ro", disk, "/tmp/disk")
        _run(guest, "diff", "-r", "--no-dereference", "-x", "lost+found", "/tmp/mnt", "/tmp/disk")
        _run(guest, "umount", "/tmp/disk")
        _run(guest, "umount", "/tmp/mnt")


@DISKS
def test_fio_verifies_what_it_writes(tmp_path: Path, kind: DeviceType, ring: str) -> None:
    image = tmp_path / "image"
    image.write_bytes(b"")
    os.truncate(image, SIZE)
    with _using(kind, ring, image) as (guest, disk):
        said = _run(guest, "fio", "--name=verify", f"--filename={disk}", "--rw=randwrite", "--bsrange=512-128k",
                    "--size=24m", "--direct=1", "--ioengine=libaio", "--iodepth=16", "--verify=crc32c",
                    "--do_verify=1", "--verify_fatal=1", "--thread")
        assert "err= 0" in said
        _run(guest, "blkdiscard", disk)
    assert image.stat().st_blocks * 512 < SIZE // 8  # what was discarded takes no room


def _essence(root: Path) -> dict[str, tuple[object, ...]]:
    """Type and permissions, owners, content."""
    return {name: (int(str(entry[0]), 8) & ~0o7000, *entry[1:4])
            for name, entry in describe(root, xattrs=False).items()}
