"""A small directory tree of known content, for devices that serve files."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from pathlib import Path
from typing import Final

__all__ = ("BIG", "LINK", "MANY", "SAMPLE", "XATTR", "SampleTree")

BIG: Final = b"".join(i.to_bytes(8, "little") for i in range(4001)) + b"end"
"""Content of ``big``: no two of its words are the same, and it ends within one."""
MANY: Final = tuple(f"{i:02}-{'n' * 200}" for i in range(44))
"""Names of the empty files in ``many``: more than one reply of a few kilobytes holds."""
SAMPLE: Final = {
    "hello": b"hello from the host\n",
    "notes": b"first version of the notes\n",
    "empty": b"",
    "big": BIG,
    "dir/inner": b"inside of a directory\n",
    "dir/sub/deep": b"two directories down\n",
    **{f"many/{name}": b"" for name in MANY},
}
"""Content of every file, by its path."""
LINK: Final = ("link", "hello")
"""A symbolic link and its target."""
XATTR: Final = ("user.chamber", b"attribute of hello")
"""An extended attribute of ``hello``, where the host's file system has them."""


class SampleTree:
    """The tree in a temporary directory of its own, until `close`.

    Attributes:
        path: its root.

    """

    def __init__(self) -> None:
        self.path = Path(tempfile.mkdtemp(prefix="chamber-tree-"))
        try:
            for name, content in SAMPLE.items():
                file = self.path / name
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_bytes(content)
            (self.path / LINK[0]).symlink_to(LINK[1])
            try:
                os.setxattr(self.path / "hello", *XATTR)
            except OSError as error:
                if error.errno != errno.EOPNOTSUPP:
                    raise
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Remove it, with all that a guest has made in it."""
        shutil.rmtree(self.path, ignore_errors=True)
