"""9P transport: feature bits, configuration space, and the numbers of the protocol that runs over it, 9P2000.L.

Virtio 1.3 gives the device its number (5) and no chapter; feature and configuration space are those of Linux's
include/uapi/linux/virtio_9p.h. The protocol is 9P2000 with the L extension, as Linux (include/net/9p/9p.h) and the
protocol description of the server diod give it. Messages are in `chamber.wire.p9_messages`.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Final

from chamber.wire.layout import Field, Layout, Role

__all__ = (
    "CONFIG",
    "CONTENT_OVERHEAD",
    "MAX_NAMES",
    "NO_FID",
    "NO_TAG",
    "NO_UID",
    "READ_OVERHEAD",
    "REQUEST_QUEUE",
    "TAG_SIZE",
    "UNLINK_DIR",
    "VERSION",
    "GetattrMask",
    "LockFlag",
    "LockStatus",
    "LockType",
    "OpenFlag",
    "P9Feature",
    "Qid",
    "QidType",
    "SetattrMask",
)

REQUEST_QUEUE: Final = 0
"""The only queue: each chain is a request to read and room for its reply."""
VERSION: Final = b"9P2000.L"
NO_TAG: Final = 0xFFFF
"""Tag of Tversion, and of nothing else."""
NO_FID: Final = 0xFFFFFFFF
NO_UID: Final = 0xFFFFFFFF
MAX_NAMES: Final = 16
"""Names that one Twalk may have (MAXWELEM)."""
READ_OVERHEAD: Final = 11
"""Bytes of an Rread or Rreaddir besides its data."""
CONTENT_OVERHEAD: Final = 24
"""Bytes that a read or write takes from msize, whichever it is (P9_IOHDRSZ)."""
TAG_SIZE: Final = 32
"""Bytes that the configuration space has for the tag."""
UNLINK_DIR: Final = 0x200
"""Tunlinkat, flags: what is removed is a directory (AT_REMOVEDIR)."""


class P9Feature(enum.IntEnum):
    """Feature bit numbers."""

    MOUNT_TAG = 0


CONFIG: Final = Layout(
    "virtio_9p_config", "virtio 1.3, 5",
    Field("tag_len", "le16", Role.LENGTH, P9Feature.MOUNT_TAG, range(1, TAG_SIZE + 1)),
    Field("tag", f"bytes:{TAG_SIZE}", Role.BYTES, P9Feature.MOUNT_TAG),
)
"""The tag's bytes follow its length and have no end of their own; here there is room for `TAG_SIZE` of them."""


class QidType(enum.IntFlag):
    """First byte of a qid: what kind of file it names."""

    FILE = 0
    SYMLINK = 0x02
    TMP = 0x04
    AUTH = 0x08
    MOUNT = 0x10
    EXCL = 0x20
    APPEND = 0x40
    DIR = 0x80


@dataclass(frozen=True, slots=True)
class Qid:
    """A server's own name for a file: equal paths are the same file.

    Attributes:
        type: `QidType`.
        version: another one for every change of the file.
        path: unique among all files of the server that exist.

    """

    type: int
    version: int
    path: int


class OpenFlag(enum.IntFlag):
    """Tlopen and Tlcreate, flags: those of open(2) on x86, given as such over the wire (P9_DOTL_*)."""

    RDONLY = 0
    WRONLY = 0o1
    RDWR = 0o2
    ACCMODE = 0o3
    CREATE = 0o100
    EXCL = 0o200
    NOCTTY = 0o400
    TRUNC = 0o1000
    APPEND = 0o2000
    NONBLOCK = 0o4000
    DSYNC = 0o10000
    FASYNC = 0o20000
    DIRECT = 0o40000
    LARGEFILE = 0o100000
    DIRECTORY = 0o200000
    NOFOLLOW = 0o400000
    NOATIME = 0o1000000
    CLOEXEC = 0o2000000
    SYNC = 0o4000000


class GetattrMask(enum.IntFlag):
    """Tgetattr, request_mask, and Rgetattr, valid."""

    MODE = 0x1
    NLINK = 0x2
    UID = 0x4
    GID = 0x8
    RDEV = 0x10
    ATIME = 0x20
    MTIME = 0x40
    CTIME = 0x80
    INO = 0x100
    SIZE = 0x200
    BLOCKS = 0x400
    BASIC = 0x7FF
    BTIME = 0x800
    GEN = 0x1000
    DATA_VERSION = 0x2000
    ALL = 0x3FFF


class SetattrMask(enum.IntFlag):
    """Tsetattr, valid. Without the SET bit beside it, a time becomes the server's now."""

    MODE = 0x1
    UID = 0x2
    GID = 0x4
    SIZE = 0x8
    ATIME = 0x10
    MTIME = 0x20
    CTIME = 0x40
    ATIME_SET = 0x80
    MTIME_SET = 0x100
    ALL = 0x1FF


class LockType(enum.IntEnum):
    """Tlock and Tgetlock, type."""

    RDLCK = 0
    WRLCK = 1
    UNLCK = 2


class LockFlag(enum.IntFlag):
    """Tlock, flags."""

    BLOCK = 1
    RECLAIM = 2


class LockStatus(enum.IntEnum):
    """Rlock, status."""

    SUCCESS = 0
    BLOCKED = 1
    ERROR = 2
    GRACE = 3
