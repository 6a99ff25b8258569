"""A directory tree with all that a file system can lose, and what is there to be compared."""

from __future__ import annotations

import hashlib
import os
import random
import stat
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ("FILES", "HOLE", "describe", "make_tree")

FILES: Final = 3000
HOLE: Final = 32 << 20
"""Bytes of a file that has three small pieces of content."""
_LARGE: Final = 20 << 20


def make_tree(root: Path, *, xattrs: bool, files: int = FILES, seed: int = 9) -> None:
    """Make some thousands of small files in nested directories; then permissions, links, attributes, holes."""
    dice = random.Random(seed)
    folders = [root]
    root.mkdir()
    for i in range(120):
        folder = dice.choice(folders) / f"d{i}"
        folder.mkdir()
        folders.append(folder)
    plain = []
    for i in range(files):
        file = dice.choice(folders) / f"f{i} {'é' * (i % 40)}"
        file.write_bytes(dice.randbytes(dice.choice((0, 1, 100, 4095, 4096, 4097, 20_000))))
        file.chmod(dice.choice((0o644, 0o600, 0o755, 0o400, 0o000, 0o1777)))
        os.utime(file, ns=(10**18 + i, 10**18 + 7 * i))
        plain.append(file)
    for i in range(200):
        (dice.choice(folders) / f"l{i}").symlink_to(dice.choice(("f1", "../nowhere", "/etc/hosts", "x" * 1000)))
    (root / "linked").write_bytes(b"many names")
    for i in range(50):
        os.link(root / "linked", root / f"same{i}")
    (root / "large").write_bytes(dice.randbytes(_LARGE))
    with (root / "sparse").open("wb") as sparse:
        for at in (0, HOLE // 2 + 5, HOLE - 3):
            sparse.seek(at)
            sparse.write(b"abc")
    if xattrs:
        for i, file in enumerate(dice.sample(plain, 50)):
            os.setxattr(file, f"user.n{i}", dice.randbytes(1 + i * 10))  # 9p has no empty ones
    for folder in folders[5:40]:
        folder.chmod(dice.choice((0o755, 0o700, 0o500, 0o1777)))


def describe(root: Path, *, xattrs: bool) -> dict[str, tuple[object, ...]]:
    """What each file below a directory is: mode, owner, content, attributes, links, times, whether it has holes."""
    found: dict[str, tuple[object, ...]] = {}
    for folder, names, files in os.walk(root):
        for name in (*names, *files):
            path = os.path.join(folder, name)
            status = os.lstat(path)
            kind = stat.S_IFMT(status.st_mode)
            content: object = None
            if kind == stat.S_IFLNK:
                content = os.readlink(path)
            elif kind == stat.S_IFREG:
                with open(path, "rb") as file:
                    content = hashlib.file_digest(file, "sha256").hexdigest()
            more = tuple(sorted((key, os.getxattr(path, key)) for key in os.listxattr(path))) \
                if xattrs and kind == stat.S_IFREG else ()
            found[os.path.relpath(path, root)] = (
                oct(status.st_mode), status.st_uid, status.st_gid, content, more,
                status.st_nlink if kind == stat.S_IFREG else 0, kind == stat.S_IFREG and status.st_mtime_ns,
                kind == stat.S_IFREG and status.st_blocks * 512 < status.st_size // 2)
    return found
