"""FUSE, the protocol inside of virtio-fs requests: numbers and structures of 7.38 (Linux, uapi/linux/fuse.h)."""

from __future__ import annotations

import enum
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from chamber.wire.errors import WireError

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = (
    "ATTR",
    "ATTR_OUT",
    "BATCH_FORGET",
    "COPY",
    "CREATE",
    "DIRENT",
    "ENTRY",
    "ENTRY_SIZE",
    "FALLOCATE",
    "FORGET",
    "FORGET_ONE",
    "FSYNC",
    "GETATTR",
    "INIT_IN",
    "INIT_OUT",
    "IN_HEADER",
    "LINK",
    "LSEEK",
    "MAJOR",
    "MINOR",
    "MKDIR",
    "MKNOD",
    "NAMES",
    "NO_REPLY",
    "OFFSET_OUT",
    "OPEN_IN",
    "OPEN_OUT",
    "OUT_HEADER",
    "READ",
    "RELEASE",
    "RENAME",
    "RENAME2",
    "ROOT_ID",
    "SETATTR",
    "SIZE_OUT",
    "STATFS",
    "WRITE",
    "XATTR",
    "Attributes",
    "DirectoryEntry",
    "Entry",
    "InHeader",
    "InitFlag",
    "Opcode",
    "OpenOut",
    "SetattrValid",
    "parse_directory",
    "split_names",
)

SPEC: Final = "FUSE 7.38"
MAJOR: Final = 7
MINOR: Final = 38
ROOT_ID: Final = 1
_NAME_MAX: Final = 1024
"""FUSE_NAME_MAX."""


class Opcode(enum.IntEnum):
    """Operations."""

    LOOKUP = 1
    FORGET = 2
    GETATTR = 3
    SETATTR = 4
    READLINK = 5
    SYMLINK = 6
    MKNOD = 8
    MKDIR = 9
    UNLINK = 10
    RMDIR = 11
    RENAME = 12
    LINK = 13
    OPEN = 14
    READ = 15
    WRITE = 16
    STATFS = 17
    RELEASE = 18
    FSYNC = 20
    SETXATTR = 21
    GETXATTR = 22
    LISTXATTR = 23
    REMOVEXATTR = 24
    FLUSH = 25
    INIT = 26
    OPENDIR = 27
    READDIR = 28
    RELEASEDIR = 29
    FSYNCDIR = 30
    GETLK = 31
    SETLK = 32
    SETLKW = 33
    ACCESS = 34
    CREATE = 35
    INTERRUPT = 36
    DESTROY = 38
    BATCH_FORGET = 42
    FALLOCATE = 43
    READDIRPLUS = 44
    RENAME2 = 45
    LSEEK = 46
    COPY_FILE_RANGE = 47
    SYNCFS = 50


NAMES: Final = {int(operation): operation.name for operation in Opcode}
"""What operations are called, by number."""
NO_REPLY: Final = frozenset({Opcode.FORGET, Opcode.BATCH_FORGET, Opcode.INTERRUPT})
"""Operations that are never answered."""


class InitFlag(enum.IntFlag):
    """Flags of INIT that are used here."""

    ASYNC_READ = 1 << 0
    ATOMIC_O_TRUNC = 1 << 3
    EXPORT_SUPPORT = 1 << 4
    BIG_WRITES = 1 << 5
    DO_READDIRPLUS = 1 << 13
    READDIRPLUS_AUTO = 1 << 14
    PARALLEL_DIROPS = 1 << 18
    MAX_PAGES = 1 << 22
    INIT_EXT = 1 << 30


class SetattrValid(enum.IntFlag):
    """Which fields SETATTR changes."""

    MODE = 1 << 0
    UID = 1 << 1
    GID = 1 << 2
    SIZE = 1 << 3
    ATIME = 1 << 4
    MTIME = 1 << 5
    FH = 1 << 6
    ATIME_NOW = 1 << 7
    MTIME_NOW = 1 << 8


IN_HEADER: Final = struct.Struct("<IIQQIIIHH")
"""len, opcode, unique, nodeid, uid, gid, pid, total_extlen, padding."""
OUT_HEADER: Final = struct.Struct("<IiQ")
"""len, error, unique."""
ATTR: Final = struct.Struct("<6Q3I7I")
"""ino, size, blocks, atime, mtime, ctime, three times' nanoseconds, mode, nlink, uid, gid, rdev, blksize, flags."""
ENTRY: Final = struct.Struct("<4Q2I")
"""nodeid, generation, entry_valid, attr_valid, their nanoseconds; an ATTR follows."""
ATTR_OUT: Final = struct.Struct("<QII")
"""attr_valid, its nanoseconds, dummy; an ATTR follows."""
INIT_IN: Final = struct.Struct("<4I")
"""major, minor, max_readahead, flags."""
INIT_OUT: Final = struct.Struct("<4I2H2I2HI28x")
"""major, minor, max_readahead, flags, max_background, congestion_threshold, max_write, time_gran, max_pages,
map_alignment, flags2."""
GETATTR: Final = struct.Struct("<IIQ")
"""getattr_flags, dummy, fh."""
SETATTR: Final = struct.Struct("<II6Q8I")
"""valid, padding, fh, size, lock_owner, atime, mtime, ctime, their nanoseconds, mode, unused, uid, gid, unused."""
OPEN_IN: Final = struct.Struct("<II")
OPEN_OUT: Final = struct.Struct("<QII")
"""fh, open_flags, padding."""
CREATE: Final = struct.Struct("<4I")
"""flags, mode, umask, open_flags; a name follows."""
MKNOD: Final = struct.Struct("<4I")
"""mode, rdev, umask, padding; a name follows."""
MKDIR: Final = struct.Struct("<II")
"""mode, umask; a name follows."""
RENAME: Final = struct.Struct("<Q")
"""newdir; two names follow."""
RENAME2: Final = struct.Struct("<QII")
"""newdir, flags, padding; two names follow."""
LINK: Final = struct.Struct("<Q")
"""oldnodeid; a name follows."""
READ: Final = struct.Struct("<QQIIQII")
"""fh, offset, size, read_flags, lock_owner, flags, padding."""
WRITE: Final = struct.Struct("<QQIIQII")
"""fh, offset, size, write_flags, lock_owner, flags, padding; data follow."""
SIZE_OUT: Final = struct.Struct("<II")
"""size, padding: the answer to WRITE and to questions for the size of attributes."""
RELEASE: Final = struct.Struct("<QIIQ")
"""fh, flags, release_flags, lock_owner; FLUSH has the same size."""
FSYNC: Final = struct.Struct("<QII")
"""fh, fsync_flags, padding."""
STATFS: Final = struct.Struct("<5Q4I24x")
"""blocks, bfree, bavail, files, ffree, bsize, namelen, frsize, padding."""
XATTR: Final = struct.Struct("<II")
"""size, flags; a name follows, and for SETXATTR a value."""
FORGET: Final = struct.Struct("<Q")
BATCH_FORGET: Final = struct.Struct("<II")
"""count, dummy; as many FORGET_ONE follow."""
FORGET_ONE: Final = struct.Struct("<QQ")
FALLOCATE: Final = struct.Struct("<3QII")
"""fh, offset, length, mode, padding."""
LSEEK: Final = struct.Struct("<QQII")
"""fh, offset, whence, padding."""
OFFSET_OUT: Final = struct.Struct("<Q")
COPY: Final = struct.Struct("<7Q")
"""fh_in, off_in, nodeid_out, fh_out, off_out, len, flags."""
DIRENT: Final = struct.Struct("<QQII")
"""ino, off, namelen, type; the name follows, padded to 8 bytes."""


@dataclass(frozen=True, slots=True)
class InHeader:
    """Head of a request.

    Attributes:
        length: bytes of the whole request.
        opcode: the operation's number, known or not.
        unique: what the answer is to be called.
        nodeid: the file that it is about.
        uid: user of the process that asks.
        gid: its group.

    """

    length: int
    opcode: int
    unique: int
    nodeid: int
    uid: int = 0
    gid: int = 0

    def build(self) -> bytes:
        """Return the bytes."""
        return IN_HEADER.pack(self.length, self.opcode, self.unique, self.nodeid, self.uid, self.gid, 0, 0, 0)

    @classmethod
    def parse(cls, data: bytes) -> InHeader:
        """Read a head.

        Raises:
            WireError: the bytes end before it does.

        """
        if len(data) < IN_HEADER.size:
            raise WireError("a request starts with 40 bytes", spec=SPEC, detail=f"{len(data)} bytes")
        return cls(*IN_HEADER.unpack_from(data)[:6])


@dataclass(frozen=True, slots=True)
class Attributes:
    """Attributes of a file; times in nanoseconds."""

    ino: int
    size: int
    blocks: int
    atime: int
    mtime: int
    ctime: int
    mode: int
    nlink: int
    uid: int
    gid: int
    rdev: int = 0
    blksize: int = 4096

    def build(self) -> bytes:
        """Return the bytes."""
        times = [divmod(time, 10**9) for time in (self.atime, self.mtime, self.ctime)]
        return ATTR.pack(self.ino, self.size, self.blocks, *(seconds & (1 << 64) - 1 for seconds, _ in times),
                         *(rest for _, rest in times), self.mode, self.nlink, self.uid, self.gid, self.rdev,
                         self.blksize, 0)

    @classmethod
    def parse(cls, data: bytes, at: int = 0) -> Attributes:
        """Read attributes; whether they make sense is for the reader to say.

        Raises:
            WireError: the bytes end before they do.

        """
        if at + ATTR.size > len(data):
            raise WireError("attributes are 88 bytes", spec=SPEC, detail=f"{len(data) - at} bytes")
        (ino, size, blocks, atime, mtime, ctime, a, m, c, mode, nlink, uid, gid, rdev, blksize,
         _) = ATTR.unpack_from(data, at)
        return cls(ino, size, blocks, atime * 10**9 + a, mtime * 10**9 + m, ctime * 10**9 + c, mode, nlink, uid, gid,
                   rdev, blksize)


@dataclass(frozen=True, slots=True)
class Entry:
    """Answer to LOOKUP and to whatever makes a file: its number, for how long it may be kept, its attributes."""

    nodeid: int
    generation: int
    attributes: Attributes
    valid: int = 1

    def build(self) -> bytes:
        """Return the bytes."""
        return ENTRY.pack(self.nodeid, self.generation, self.valid, self.valid, 0, 0) + self.attributes.build()

    @classmethod
    def parse(cls, data: bytes, at: int = 0) -> Entry:
        """Read an entry.

        Raises:
            WireError: the bytes end before it does.

        """
        if at + ENTRY.size > len(data):
            raise WireError("an entry is 128 bytes", spec=SPEC, detail=f"{len(data) - at} bytes")
        nodeid, generation, valid, _, _, _ = ENTRY.unpack_from(data, at)
        return cls(nodeid, generation, Attributes.parse(data, at + ENTRY.size), valid)


ENTRY_SIZE: Final = ENTRY.size + ATTR.size


@dataclass(frozen=True, slots=True)
class OpenOut:
    """Answer to OPEN: what the open file is called."""

    fh: int

    def build(self) -> bytes:
        """Return the bytes."""
        return OPEN_OUT.pack(self.fh, 0, 0)

    @classmethod
    def parse(cls, data: bytes, at: int = 0) -> OpenOut:
        """Read it.

        Raises:
            WireError: the bytes end before it does.

        """
        if at + OPEN_OUT.size > len(data):
            raise WireError("an answer to OPEN has 16 bytes", spec=SPEC, detail=f"{len(data) - at} bytes")
        return cls(OPEN_OUT.unpack_from(data, at)[0])


@dataclass(frozen=True, slots=True)
class DirectoryEntry:
    """One entry of a directory.

    Attributes:
        ino: its inode.
        offset: where to go on behind it.
        kind: type of file, as `stat.S_IFMT` shifted right by 12.
        name: its name, unchecked.
        entry: what READDIRPLUS says besides.

    """

    ino: int
    offset: int
    kind: int
    name: bytes
    entry: Entry | None = None

    def build(self) -> bytes:
        """Return the bytes, padded."""
        data = DIRENT.pack(self.ino, self.offset, len(self.name), self.kind) + self.name
        head = b"" if self.entry is None else self.entry.build()
        return head + data.ljust(len(data) + 7 & ~7, b"\0")


def parse_directory(data: bytes, *, plus: bool) -> Iterator[DirectoryEntry]:
    """Read the entries of an answer to READDIR or READDIRPLUS, one at a time.

    Raises:
        WireError: an entry ends beyond the bytes, or has no name.

    """
    at = 0
    while at < len(data):
        entry = None
        if plus:
            entry = Entry.parse(data, at)
            at += ENTRY_SIZE
        if at + DIRENT.size > len(data):
            raise WireError("a directory entry starts with 24 bytes", spec=SPEC, detail=f"{len(data) - at} bytes")
        ino, offset, length, kind = DIRENT.unpack_from(data, at)
        start = at + DIRENT.size
        if not 0 < length <= _NAME_MAX or start + length > len(data):
            raise WireError("a name has 1 to 1024 bytes, all of them there", spec=SPEC, detail=f"{length} bytes")
        yield DirectoryEntry(ino, offset, kind, data[start:start + length], entry)
        at = start + (length + 7 & ~7)


def split_names(data: bytes, count: int) -> list[bytes]:
    """Read `count` names, each ended by a NUL.

    Raises:
        WireError: there are fewer, or one is empty.

    """
    names = data.split(b"\0", count)
    if len(names) <= count or not all(names[:count]):
        raise WireError("a name is not empty and ends with a NUL", spec=SPEC, detail=f"{count} names in {data[:64]!r}")
    return names[:count]
