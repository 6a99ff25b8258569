"""A tree of some thousand files, copied in and out by the stock guest over virtiofs."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from chamber.device.fs import FsDevice
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

pytestmark = [pytest.mark.uml, pytest.mark.skipif(os.geteuid() != 0, reason="files of others need root")]


def _run(guest: UmlGuest, *arguments: str) -> str:
    result = run_program(guest, *arguments, seconds=120)
    assert result.status == 0, f"{' '.join(arguments)}: {result.output}"
    return result.output


@pytest.fixture
def shared(tmp_path: Path) -> Iterator[tuple[UmlGuest, Path]]:
    """A guest that has mounted a directory of the host."""
    path = tmp_path / "shared"
    path.mkdir()
    loop = EventLoop()
    guest = UmlGuest(KERNEL, loop, {DeviceType.FS: lambda: FsDevice(path)}, memory_mb=256)
    try:
        connect(guest, DeviceType.FS)
        _run(guest, "mount", "-t", "tmpfs", "scratch", "/tmp")
        _run(guest, "mkdir", "/tmp/mnt")
        _run(guest, "mount", "-t", "virtiofs", "chamber", "/tmp/mnt")
        yield guest, path
        _run(guest, "umount", "/tmp/mnt")
        disconnect(guest, DeviceType.FS)
    finally:
        guest.close()
        loop.close()


def _has_xattrs(path: Path) -> bool:
    try:
        os.setxattr(path, "user.probe", b"")
    except OSError:
        return False
    os.removexattr(path, "user.probe")
    return True


def test_a_tree_goes_out_and_comes_back(shared: tuple[UmlGuest, Path]) -> None:
    guest, path = shared
    xattrs = _has_xattrs(path)
    make_tree(path / "in", xattrs=xattrs)
    _run(guest, "cp", "-a", "/tmp/mnt/in", "/tmp/copy")
    # What is in the guest's memory is compared there, by the guest's own tools, with what it reads again.
    _run(guest, "sh", "-c", "echo 2 > /proc/sys/vm/drop_caches; diff -r --no-dereference /tmp/mnt/in /tmp/copy")
    _run(guest, "cp", "-a", "/tmp/copy", "/tmp/mnt/back")
    _run(guest, "cp", "-a", "/tmp/mnt/in", "/tmp/mnt/beside")
    _run(guest, "sync")
    before = describe(path / "in", xattrs=False)
    assert len(before) > FILES
    assert describe(path / "back", xattrs=False) == before  # through a tmpfs, which has no attributes of users here
    assert (path / "back" / "sparse").stat().st_blocks * 512 < HOLE // 4
    assert describe(path / "beside", xattrs=xattrs) == describe(path / "in", xattrs=xattrs)
    _run(guest, "rm", "-r", "/tmp/mnt/in", "/tmp/mnt/back")
    assert [entry.name for entry in path.iterdir()] == ["beside"]


def test_no_path_of_the_guest_leads_out(shared: tuple[UmlGuest, Path]) -> None:
    guest, path = shared
    (path.parent / "secret").write_text("outside")
    (path / "link").symlink_to("../secret")
    (path / "dir").mkdir()
    _run(guest, "ln", "-s", "../../secret", "/tmp/mnt/dir/away")
    for name in ("/tmp/mnt/../mnt/link", "/tmp/mnt/dir/away", "/tmp/mnt/../secret"):
        assert "outside" not in run_program(guest, "cat", name).output
    # The links lead about in the guest's own tree, not in the host's.
    assert (path.parent / "secret").read_text() == "outside"
    assert run_program(guest, "mknod", "/tmp/mnt/null", "c", "1", "3").status == 1
    assert run_program(guest, "cat", "/tmp/mnt/dir/../../../etc/hostname").status is not None
    assert sorted(os.listdir(path)) == ["dir", "link"]
