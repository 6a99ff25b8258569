"""What the model guest does with a 9p file system."""

from __future__ import annotations

import errno
import stat
from typing import TYPE_CHECKING, Final

from chamber.device.sample_content import LINK, SAMPLE, XATTR
from chamber.guest.drivers.p9 import Lock, P9Error
from chamber.lab.model_use.right_data import PAUSE, WrongData, compare
from chamber.wire.p9 import LockType, OpenFlag

if TYPE_CHECKING:
    from collections.abc import Callable

    from chamber.guest.drivers.p9 import P9Driver, P9Fid
    from chamber.guest.machine import GuestMachine

__all__ = ("STIMULI",)

_LIMIT: Final = 1 << 16
_READ: Final = ("hello", "empty", "dir/inner", "dir/sub/deep", "big")
_NEW: Final = b"second version of the notes"


def _right(value: object, right: object, what: str) -> None:
    if value != right:
        raise WrongData(what)


def _names(path: str) -> tuple[bytes, ...]:
    return tuple(path.encode().split(b"/"))


def _read(driver: P9Driver, path: str) -> bytes:
    with driver.at(*_names(path)) as fid:
        driver.open(fid)
        return driver.read(fid, 0, _LIMIT)


def _write(driver: P9Driver, fid: P9Fid, data: bytes) -> None:
    _right(driver.write(fid, 0, data), len(data), "bytes written")


def _list(driver: P9Driver, *path: bytes) -> list[bytes]:
    with driver.at(*path) as fid:
        driver.open(fid, OpenFlag.DIRECTORY)
        return sorted(entry.name for entry in driver.readdir(fid))


def _children(path: str) -> list[bytes]:
    found = {name.removeprefix(path).split("/")[0] for name in (*SAMPLE, LINK[0]) if name.startswith(path)}
    return sorted(name.encode() for name in found)


def _gone(driver: P9Driver, *path: bytes) -> None:
    try:
        driver.clunk(driver.walk(driver.root, *path))
    except P9Error as error:
        _right(error.errno, errno.ENOENT, "why there is no such file")
    else:
        raise WrongData("a file that was removed")


def use(driver: P9Driver, machine: GuestMachine, ask: Callable[[str], None]) -> None:  # noqa: ARG001
    for path in _READ:
        compare(_read(driver, path), SAMPLE[path], f"content of {path}")
        machine.settle(PAUSE)
    _right(_list(driver), _children(""), "list of the root")
    _right(_list(driver, b"many"), _children("many/"), "list of a directory")
    with driver.at(b"notes") as fid:
        driver.open(fid, OpenFlag.RDWR)
        compare(driver.read(fid, 0, len(_NEW)), SAMPLE["notes"], "content of notes")
        _write(driver, fid, _NEW)
        driver.fsync(fid)
        compare(driver.read(fid, 0, len(_NEW)), _NEW, "read back what was written")
    # What was read is passed on, as a program that copies files does.
    data = _read(driver, "big")
    with driver.at() as fid:
        driver.create(fid, b"copy", OpenFlag.WRONLY | OpenFlag.EXCL, 0o600)
        _write(driver, fid, data)
    compare(_read(driver, "copy"), SAMPLE["big"], "content of a copy")
    driver.unlink(driver.root, b"copy")
    _gone(driver, b"copy")
    with driver.at(b"notes") as fid:
        driver.open(fid, OpenFlag.WRONLY | OpenFlag.TRUNC)
        _write(driver, fid, SAMPLE["notes"])


def inspect(driver: P9Driver, machine: GuestMachine, ask: Callable[[str], None]) -> None:  # noqa: ARG001
    for path in ("hello", "dir/inner", "big", "empty"):
        with driver.at(*_names(path)) as fid:
            attributes = driver.getattr(fid)
            _right(attributes.size, len(SAMPLE[path]), "size of a file")
            _right(stat.S_IFMT(attributes.mode), stat.S_IFREG, "type of a file")
            _right(attributes.nlink, 1, "links of a file")
        machine.settle(PAUSE)
    with driver.at(b"dir") as fid:
        _right(stat.S_IFMT(driver.getattr(fid).mode), stat.S_IFDIR, "type of a directory")
    with driver.at(LINK[0].encode()) as fid:
        compare(driver.readlink(fid), LINK[1].encode(), "target of a link")
        _right(driver.getattr(fid).size, len(LINK[1]), "size of a link")
    with driver.at(b"hello") as fid:
        if driver.xattr(fid):
            compare(driver.xattr(fid), XATTR[0].encode() + b"\0", "list of extended attributes")
            compare(driver.xattr(fid, XATTR[0].encode()), XATTR[1], "extended attribute")
    statfs = driver.statfs()
    _right(statfs.namelen, 255, "length of names")
    _locks(driver)


def _locks(driver: P9Driver) -> None:
    with driver.at(b"hello") as fid, driver.at(b"hello") as other:
        for holder in (fid, other):
            driver.open(holder, OpenFlag.RDWR)
        mine = Lock(LockType.WRLCK, 0, 10)
        _right(driver.getlock(fid, mine), None, "a lock that nobody has")
        driver.lock(fid, mine)
        against = driver.getlock(other, Lock(LockType.WRLCK, 5, 10))
        _right(against and (against.type, against.start, against.length), (LockType.WRLCK, 0, 10), "who has a lock")
        try:
            driver.lock(other, mine)
        except P9Error as error:
            _right(error.errno, errno.EAGAIN, "why a lock is not had")
        else:
            raise WrongData("a lock that is taken")
        driver.lock(fid, Lock(LockType.UNLCK, 0, 10))
        driver.lock(other, mine)


def modify(driver: P9Driver, machine: GuestMachine, ask: Callable[[str], None]) -> None:  # noqa: ARG001
    driver.mkdir(driver.root, b"made", 0o750)
    with driver.at(b"made") as made:
        with driver.at(b"made") as fid:
            driver.create(fid, b"one", OpenFlag.RDWR | OpenFlag.EXCL, 0o640)
            _write(driver, fid, b"some content")
            driver.setattr(fid, mode=0o604, size=4, mtime=1_600_000_000_123_456_789)
            attributes = driver.getattr(fid)
            _right((attributes.mode & 0o7777, attributes.size, attributes.mtime),
                   (0o604, 4, 1_600_000_000_123_456_789), "attributes that were set")
        machine.settle(PAUSE)
        driver.symlink(made, b"soft", b"one")
        with driver.at(b"made", b"one") as fid:
            driver.link(made, fid, b"two")
            _right(driver.getattr(fid).nlink, 2, "links of a file")
            driver.rename(fid, made, b"three")
        driver.rename_at(made, b"two", made, b"four")
        driver.mknod(made, b"pipe", stat.S_IFIFO | 0o600)
        _right(_list(driver, b"made"), [b"four", b"pipe", b"soft", b"three"], "names of what was made")
        compare(_read(driver, "made/four"), b"some", "content of what was made")
        with driver.at(b"made", b"three") as fid:
            _set_xattr(driver, fid)
        machine.settle(PAUSE)
        for name in (b"four", b"pipe", b"soft"):
            driver.unlink(made, name)
        driver.delete(driver.walk(made, b"three"))
        _right(_list(driver, b"made"), [], "an empty directory")
    driver.unlink(driver.root, b"made", is_dir=True)
    _gone(driver, b"made")


def _set_xattr(driver: P9Driver, fid: P9Fid) -> None:
    try:
        driver.set_xattr(fid, b"user.one", b"value")
    except P9Error as error:
        if error.errno == errno.EOPNOTSUPP:
            return  # the host's file system has none
        raise
    compare(driver.xattr(fid, b"user.one"), b"value", "extended attribute that was set")
    driver.set_xattr(fid, b"user.one", b"")
    compare(driver.xattr(fid), b"", "list of extended attributes")


STIMULI: Final[dict[str, Callable[..., None]]] = {"use": use, "inspect": inspect, "modify": modify}
