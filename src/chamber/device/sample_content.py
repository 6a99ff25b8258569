"""What a guest finds on honest devices: apart from the devices, so that a guest which compares need not load them."""

from __future__ import annotations

import struct
from typing import Final

__all__ = ("BIG", "LINK", "MANY", "RECORDED", "SAMPLE", "XATTR")

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
RECORDED: Final = b"".join(struct.pack("<hh", (i * 37) % 30000, -(i * 53) % 30000) for i in range(4800))
"""What the default sound device has to be recorded: 0.1 s of two channels of 16 bits at 48 kHz."""
