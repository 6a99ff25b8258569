"""What a guest does with a shared directory, whatever brings it in."""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import random
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

from chamber.device.sample_content import LINK, MANY, SAMPLE, XATTR
from chamber.lab.agent import kernel
from chamber.lab.agent.patience import patient
from chamber.lab.agent.report import WrongData

if TYPE_CHECKING:
    from collections.abc import Callable

    from chamber.lab.agent.report import Report

__all__ = ("changed_by_the_host", "direct", "inspect", "many_files", "mounted", "use")

_TAG: Final = "chamber"
_WHERE: Final = Path("/mnt")
_MNT_DETACH: Final = 2
_EDITED: Final = b"second version of the notes\n"
_VALID_SECONDS: Final = 1.2
"""After this the kernel asks for attributes anew."""
_FILES: Final = 200
_LIMIT: Final = 1 << 20
_DIRECT: Final = 2 << 20
_PIECE: Final = 1 << 16


def _content(path: Path) -> bytes:
    """Read a file, piece by piece: the size that its server says is no measure for a buffer."""
    data = b""
    with path.open("rb", buffering=0) as file:
        while len(data) < _LIMIT and (part := file.read(_PIECE)):
            data += part
    return data


def _store(path: Path, data: bytes) -> None:
    """Write a file; how much the kernel says that it wrote can't be more than it was given."""
    with path.open("wb", buffering=0) as file:
        while data:
            count = file.write(data)
            if count > len(data):
                raise WrongData(f"{count} bytes written, of {len(data)}")
            if not count:
                raise OSError(errno.EIO, "nothing is written")
            data = data[count:]


def _compare(got: bytes, right: bytes, what: str) -> None:
    if got != right:
        at = next((i for i in range(min(len(got), len(right))) if got[i] != right[i]), min(len(got), len(right)))
        raise WrongData(f"{what}: {len(got)} bytes, not {len(right)}; differs at {at}: {got[at:at + 16].hex()}")


def mounted(kind: str, options: str, report: Report, *calls: Callable[[Path, Report], None]) -> None:
    """Mount the directory that the host calls ``chamber``, do things with it, and unmount it.

    Args:
        kind: type of file system.
        options: for mount(2).
        report: gets every step.
        calls: what to do.

    """
    report.attempt("mount", kernel.mount, _TAG, str(_WHERE), kind, options)
    if not report.fine:
        return
    try:
        for call in calls:
            call(_WHERE, report)
    finally:
        # Whatever still waits for the device must not keep the mount.
        with report.step("unmount"):
            if ctypes.CDLL(None, use_errno=True).umount2(str(_WHERE).encode(), _MNT_DETACH):
                raise OSError(ctypes.get_errno(), "umount2")


def use(top: Path, report: Report) -> None:
    """Read what is known, list, follow a link; make, write, rename and remove."""
    for name in ("hello", "empty", "big", "dir/inner", "dir/sub/deep"):
        with report.step(f"read {name}"):
            _compare(_content(top / name), SAMPLE[name], name)
    with report.step("list a directory"):
        found = sorted(os.listdir(top / "many"))
        if found != sorted(MANY):
            raise WrongData(f"{len(found)} names in a directory of {len(MANY)}, or others")
    with report.step("follow a link"):
        _compare(os.fsencode(os.readlink(top / LINK[0])), LINK[1].encode(), "target of a link")
        _compare(_content(top / LINK[0]), SAMPLE[LINK[1]], "what a link leads to")
    data = random.Random(5).randbytes(100_000)  # noqa: S311 - test data
    folder = top / "made"
    made = False  # what was refused can't be found again
    with report.step("make a directory and a file"):
        folder.mkdir()
        _store(folder / "file", data)
        _compare(_content(folder / "file"), data, "what was written")
        made = True
    with report.step("append, truncate, change permissions"):
        with (folder / "file").open("ab") as file:
            file.write(b"end")
            file.flush()
            os.fsync(file.fileno())
        os.truncate(folder / "file", 50)
        os.chmod(folder / "file", 0o640)
        status = os.stat(folder / "file")
        if (status.st_size, status.st_mode & 0o777) != (50, 0o640):
            raise WrongData(f"{status.st_size} bytes, mode {status.st_mode:o}")
    with report.step("link, rename, remove"):
        os.symlink("elsewhere", folder / "soft")
        os.link(folder / "file", folder / "hard")
        os.rename(folder / "file", folder / "renamed")
        if made:
            _compare(_content(folder / "hard"), data[:50], "a file by its other name")
        for name in ("soft", "hard", "renamed"):
            (folder / name).unlink()
        folder.rmdir()


def inspect(top: Path, report: Report) -> None:
    """Ask for everything that can be asked."""
    report.attempt("statfs", os.statvfs, top)
    with report.step("attributes of all files"):
        for folder, folders, files in os.walk(top):
            for name in (*folders, *files):
                os.lstat(Path(folder, name))
        for name, content in SAMPLE.items():
            if (top / name).stat().st_size != len(content):
                raise WrongData(f"{name} has {(top / name).stat().st_size} bytes")
    with report.step("extended attributes"):
        names = os.listxattr(top / "hello")
        if XATTR[0] in names:
            _compare(os.getxattr(top / "hello", XATTR[0]), XATTR[1], "an extended attribute")


def changed_by_the_host(top: Path, report: Report) -> None:
    """See a change that the host makes."""
    with report.step("a change of the host's"):
        _compare(_content(top / "notes"), SAMPLE["notes"], "notes")
        report.ask("edit")
        time.sleep(patient(_VALID_SECONDS))
        _compare(_content(top / "notes"), _EDITED, "notes that the host has changed")


def direct(top: Path, report: Report) -> None:
    """Write and read two megabytes with one call each, from and to memory that the device is lent."""
    path = top / "direct"
    data = random.Random(7).randbytes(_DIRECT)  # noqa: S311 - test data
    with report.step("a large write and a read of it"), mmap.mmap(-1, _DIRECT) as memory:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_DIRECT)
        try:
            memory[:] = data
            if os.pwritev(fd, [memory], 0) != _DIRECT:
                raise OSError(errno.EIO, "a short write")
            memory[:] = bytes(_DIRECT)
            got = os.preadv(fd, [memory], 0)
            _compare(memory[:got], data, "what was written")
        finally:
            os.close(fd)
    report.attempt("remove it", path.unlink)


def many_files(top: Path, report: Report) -> None:
    """Make many small files, read them in another order, remove them."""
    folder = top / "forest"
    with report.step("make many files"):
        folder.mkdir()
        for number in range(_FILES):
            (folder / f"{number}").write_bytes(number.to_bytes(4, "little") * number)
    with report.step("read them"):
        for entry in os.scandir(folder):
            number = int(entry.name)
            _compare(_content(Path(entry.path)), number.to_bytes(4, "little") * number, f"file {number}")
    with report.step("remove them"):
        for number in range(_FILES):
            (folder / f"{number}").unlink()
        folder.rmdir()
