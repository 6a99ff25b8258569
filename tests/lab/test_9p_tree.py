"""A tree of some thousand files, copied out of a 9p device and in again by the hardened client on the model."""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING

import pytest

from chamber.device.p9 import P9Device
from chamber.guest.drivers.p9 import P9Driver
from chamber.guest.machine import GuestMachine
from chamber.guest.profile import PROFILES
from chamber.lab.model_transport import ModelTransport
from chamber.wire.p9 import OpenFlag
from tests.lab.file_tree import FILES, describe, make_tree

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from chamber.guest.drivers.p9 import Attributes, P9Fid

_PIECE = 4096


class Copier:
    """Copies as ``cp -a`` does: contents without their holes, links, names of one file, attributes, times.

    The guest keeps what it read, and writes it only when all is read.
    """

    def __init__(self, driver: P9Driver) -> None:
        self.driver = driver
        self._copied: dict[int, tuple[bytes, ...]] = {}

    def copy(self, source: tuple[bytes, ...], target: tuple[bytes, ...]) -> None:
        driver = self.driver
        with driver.at(*source) as fid:
            attributes = driver.getattr(fid)
            kind = stat.S_IFMT(attributes.mode)
            if kind == stat.S_IFDIR:
                self._folder(source, target)
            elif kind == stat.S_IFLNK:
                text = driver.readlink(fid)
                with driver.at(*target[:-1]) as folder:
                    driver.symlink(folder, target[-1], text)
            elif fid.qid.path in self._copied:
                with driver.at(*self._copied[fid.qid.path]) as same, driver.at(*target[:-1]) as folder:
                    driver.link(folder, same, target[-1])
            else:
                self._copied[fid.qid.path] = target
                self._file(source, target, attributes)
            if kind != stat.S_IFLNK:
                with driver.at(*target) as made:
                    for name in filter(None, driver.xattr(fid).split(b"\0")):
                        driver.set_xattr(made, name, driver.xattr(fid, name))
        if kind != stat.S_IFLNK:
            with driver.at(*target) as made:
                driver.setattr(made, mode=stat.S_IMODE(attributes.mode), uid=attributes.uid, gid=attributes.gid,
                               atime=attributes.atime, mtime=attributes.mtime)

    def _folder(self, source: tuple[bytes, ...], target: tuple[bytes, ...]) -> None:
        with self.driver.at(*target[:-1]) as above:
            self.driver.mkdir(above, target[-1], 0o700)
        with self.driver.at(*source) as fid:
            self.driver.open(fid)
            names = [entry.name for entry in self.driver.readdir(fid)]
        for name in names:
            if name not in {b".", b".."}:
                self.copy((*source, name), (*target, name))

    def _file(self, source: tuple[bytes, ...], target: tuple[bytes, ...], attributes: Attributes) -> None:
        with self.driver.at(*source) as old, self.driver.at(*target[:-1]) as new:
            self.driver.open(old)
            self.driver.create(new, target[-1], OpenFlag.RDWR, 0o600)
            for at in range(0, attributes.size, 1 << 16):
                data = self.driver.read(old, at, 1 << 16)
                self._write(new, at, data)
            self.driver.setattr(new, size=attributes.size)

    def _write(self, fid: P9Fid, at: int, data: bytes) -> None:
        """Leave holes where there are only zeroes."""
        if any(data):
            assert self.driver.write(fid, at, data) == len(data)


@pytest.fixture
def shared(tmp_path: Path) -> Iterator[tuple[P9Driver, Path]]:
    path = tmp_path / "shared"
    path.mkdir()
    machine = GuestMachine(PROFILES["hardened"], 1, steps=1 << 24)
    device = P9Device(path)
    driver = P9Driver(machine, ModelTransport(machine, device))
    driver.probe()
    yield driver, path
    driver.remove()
    machine.settle(1)
    assert not device.violations
    device.close()
    machine.close()


@pytest.mark.skipif(os.geteuid() != 0, reason="files of others need root")
def test_a_tree_goes_out_and_comes_back(shared: tuple[P9Driver, Path]) -> None:
    driver, path = shared
    try:
        os.setxattr(path, "user.probe", b"")
    except OSError:
        xattrs = False
    else:
        xattrs = True
    make_tree(path / "in", xattrs=xattrs)
    before = describe(path / "in", xattrs=xattrs)
    assert len(before) > FILES
    Copier(driver).copy((b"in",), (b"back",))
    assert describe(path / "back", xattrs=xattrs) == before
