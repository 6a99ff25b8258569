"""A small directory tree of known content, for devices that serve files."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
import weakref
from pathlib import Path

from chamber.device.sample_content import LINK, SAMPLE, XATTR

__all__ = ("SampleTree",)


class SampleTree:
    """The tree in a temporary directory of its own, until `close`, or until nobody has it any more.

    Attributes:
        path: its root.

    """

    def __init__(self) -> None:
        self.path = Path(tempfile.mkdtemp(prefix="chamber-tree-"))
        self._remove = weakref.finalize(self, shutil.rmtree, self.path, ignore_errors=True)
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
        self._remove()
