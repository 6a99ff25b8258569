"""Files of one directory tree, for a client that must never get out of it.

Every file is held by an O_PATH descriptor, and reached from the descriptor of its directory by one component at a time
that is never followed if it is a link. So there is no path to be resolved, no race with one who swaps a directory for a
link, and no file number is used again while somebody holds the file. Regular files and directories are opened, nothing
else: no device, no FIFO that would block.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import struct
from typing import TYPE_CHECKING, Final

from chamber.wire.p9 import LockType, OpenFlag, Qid, QidType

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ("Node", "lock_against", "qid_of", "read_at", "take_lock")

_NAME_MAX: Final = 255
_OPEN: Final = OpenFlag.ACCMODE | OpenFlag.TRUNC | OpenFlag.DSYNC | OpenFlag.SYNC
"""Flags that are passed on: what decides about offsets or blocking is the client's own affair."""
_MODE: Final = 0o1777
"""Bits of a mode that a client may set: a set-id file would lend the server's own rights to who runs it on the host."""
_FLOCK: Final = struct.Struct("hhqqi4x")
_LOCK_KINDS: Final = {LockType.RDLCK: fcntl.F_RDLCK, LockType.WRLCK: fcntl.F_WRLCK, LockType.UNLCK: fcntl.F_UNLCK}
_USER: Final = b"user."


def _check_name(name: bytes) -> None:
    """Check one component of a path.

    Raises:
        OSError: it is none, or leads elsewhere than down.

    """
    if not name or b"/" in name or b"\0" in name:
        raise OSError(errno.EINVAL, "a name is not empty and has no slash and no NUL")
    if name in {b".", b".."}:
        raise OSError(errno.EACCES, "dot and dot-dot are not walked")
    if len(name) > _NAME_MAX:
        raise OSError(errno.ENAMETOOLONG, "a name has at most 255 bytes")


class Node:
    """A file that is held, whatever it is. All methods raise OSError as the system does.

    Attributes:
        fd: an O_PATH descriptor.
        kind: type of file, as `stat.S_IFMT` gives it.

    """

    __slots__ = ("_dev", "_users", "fd", "kind")

    def __init__(self, fd: int, dev: int | None = None) -> None:
        self.fd = fd
        self._users = 1
        try:
            status = os.fstat(fd)
            if dev is not None and status.st_dev != dev:
                raise OSError(errno.EXDEV, "another file system is mounted there")
        except OSError:
            os.close(fd)
            raise
        self._dev = status.st_dev
        self.kind = stat.S_IFMT(status.st_mode)

    @classmethod
    def root(cls, path: Path) -> Node:
        """Hold a directory of the host, as the root of a tree."""
        return cls(os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC))

    def hold(self) -> Node:
        """Hold it once more; each hold is given back by `release`."""
        self._users += 1
        return self

    def release(self) -> None:
        """Give one hold back; the last one closes it."""
        self._users -= 1
        if not self._users:
            os.close(self.fd)

    @property
    def path(self) -> str:
        """A name that leads to this file, whatever happens to its other names."""
        # The kernel's link to what the descriptor holds: it leads nowhere else, and not through a link if that is one.
        return f"/proc/self/fd/{self.fd}"

    @property
    def is_dir(self) -> bool:
        """Whether it is a directory."""
        return self.kind == stat.S_IFDIR

    def child(self, name: bytes) -> Node:
        """Hold the file of that name in this directory."""
        _check_name(name)
        fd = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=self.fd)
        return Node(fd, self._dev)

    def names(self, name: bytes, node: Node) -> bool:
        """Whether a file is found in this directory by that name, still."""
        found = os.stat(name, dir_fd=self.fd, follow_symlinks=False)
        own = os.fstat(node.fd)
        return (found.st_dev, found.st_ino) == (own.st_dev, own.st_ino)

    # What it is.

    def stat(self) -> os.stat_result:
        """Return its attributes, as the system knows them."""
        return os.fstat(self.fd)

    def qid(self) -> Qid:
        """Return what the protocol calls it."""
        return qid_of(self.stat())

    def statvfs(self) -> os.statvfs_result:
        """Return how full its file system is."""
        return os.fstatvfs(self.fd)

    def readlink(self) -> bytes:
        """Where a symbolic link leads; nobody goes there."""
        return os.readlink(b"", dir_fd=self.fd)

    # Opening, and what is made of nothing.

    def open(self, flags: int) -> int:
        """Open a regular file or a directory; return a descriptor."""
        if self.kind not in {stat.S_IFREG, stat.S_IFDIR}:
            raise OSError(errno.EACCES, "neither a file nor a directory")
        return os.open(self.path, flags & _OPEN | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)

    def create(self, name: bytes, flags: int, mode: int) -> tuple[Node, int]:
        """Make a file and open it, or open the one that is there; return it held, and a descriptor."""
        _check_name(name)
        try:
            fd = os.open(name, flags & _OPEN | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, mode & _MODE,
                         dir_fd=self.fd)
        except FileExistsError:
            if flags & OpenFlag.EXCL:
                raise
            node = self.child(name)
            try:
                return node, node.open(flags)
            except OSError:
                node.release()
                raise
        try:
            os.fchmod(fd, mode & _MODE)
            held = os.open(f"/proc/self/fd/{fd}", os.O_PATH | os.O_CLOEXEC)
            return Node(held, self._dev), fd
        except OSError:
            os.close(fd)
            raise

    def mkdir(self, name: bytes, mode: int) -> None:
        """Make a directory."""
        _check_name(name)
        os.mkdir(name, mode & _MODE, dir_fd=self.fd)
        self._mode_of_new(name, mode)

    def symlink(self, name: bytes, target: bytes) -> None:
        """Make a symbolic link; the target is text."""
        _check_name(name)
        if not target or b"\0" in target:
            raise OSError(errno.EINVAL, "a target is not empty and has no NUL")
        os.symlink(target, name, dir_fd=self.fd)

    def mknod(self, name: bytes, mode: int) -> None:
        """Make a FIFO, a socket or a file; device nodes are the host's own."""
        _check_name(name)
        if stat.S_IFMT(mode) not in {0, stat.S_IFREG, stat.S_IFIFO, stat.S_IFSOCK}:
            raise OSError(errno.EPERM, "no device nodes")
        os.mknod(name, stat.S_IFMT(mode) | mode & _MODE, dir_fd=self.fd)
        self._mode_of_new(name, mode)

    def _mode_of_new(self, name: bytes, mode: int) -> None:
        """Give what was just made the mode that was asked for, whatever this process's umask is."""
        node = self.child(name)
        try:
            if node.kind != stat.S_IFLNK:
                os.chmod(node.path, mode & _MODE)
        finally:
            node.release()

    def link(self, node: Node, name: bytes) -> None:
        """Give a file a name in this directory."""
        _check_name(name)
        os.link(node.path, name, dst_dir_fd=self.fd)

    def rename(self, name: bytes, directory: Node, new: bytes) -> None:
        """Move what is in this directory."""
        _check_name(name)
        _check_name(new)
        os.rename(name, new, src_dir_fd=self.fd, dst_dir_fd=directory.fd)

    def unlink(self, name: bytes, *, is_dir: bool) -> None:
        """Remove a name from this directory."""
        _check_name(name)
        (os.rmdir if is_dir else os.unlink)(name, dir_fd=self.fd)

    # Attributes.

    def chmod(self, mode: int) -> None:
        """Change permissions."""
        if self.kind == stat.S_IFLNK:
            raise OSError(errno.EOPNOTSUPP, "links have no mode")
        os.chmod(self.path, mode & _MODE)

    def chown(self, uid: int, gid: int) -> None:
        """Change the owner; -1 leaves it."""
        os.chown(self.path, uid, gid)

    def truncate(self, size: int) -> None:
        """Change the size."""
        if self.kind != stat.S_IFREG:
            raise OSError(errno.EINVAL, "no regular file")
        os.truncate(self.path, size)

    def utime(self, atime: int, mtime: int) -> None:
        """Change the times, in nanoseconds."""
        os.utime(self.path, ns=(atime, mtime))

    def xattr(self, name: bytes) -> bytes:
        """Return an extended attribute of the users' own, or without a name the list of them."""
        if name:
            return os.getxattr(self.path, self._user(name))
        names = (n.encode(errors="surrogateescape") for n in os.listxattr(self.path))
        return b"".join(n + b"\0" for n in names if n.startswith(_USER))

    def set_xattr(self, name: bytes, value: bytes, flags: int) -> None:
        """Set an extended attribute."""
        os.setxattr(self.path, self._user(name), value, flags & (os.XATTR_CREATE | os.XATTR_REPLACE))

    def remove_xattr(self, name: bytes) -> None:
        """Remove an extended attribute."""
        os.removexattr(self.path, self._user(name))

    @staticmethod
    def _user(name: bytes) -> bytes:
        if not name.startswith(_USER) or b"\0" in name:
            raise OSError(errno.EOPNOTSUPP, "attributes of other name spaces are the host's own")
        return name


def qid_of(status: os.stat_result) -> Qid:
    """Name a file as the protocol does: by its inode, and a number that differs when it was changed."""
    kind = {stat.S_IFDIR: QidType.DIR, stat.S_IFLNK: QidType.SYMLINK}.get(stat.S_IFMT(status.st_mode), QidType.FILE)
    return Qid(kind, (status.st_mtime_ns ^ status.st_size << 8) & 0xFFFFFFFF, status.st_ino)


def read_at(fd: int, offset: int, count: int) -> bytes:
    """Read so many bytes, fewer at the end of the file only."""
    parts = bytearray()
    while len(parts) < count:
        part = os.pread(fd, count - len(parts), offset + len(parts))
        if not part:
            break
        parts += part
    return bytes(parts)


def take_lock(fd: int, kind: LockType, start: int, length: int) -> bool:
    """Take or give back a lock of this descriptor's own; False if somebody else has it."""
    try:
        fcntl.fcntl(fd, fcntl.F_OFD_SETLK, _FLOCK.pack(_LOCK_KINDS[kind], os.SEEK_SET, start, length, 0))
    except BlockingIOError:
        return False
    return True


def lock_against(fd: int, kind: LockType, start: int, length: int) -> tuple[LockType, int, int]:
    """Return a lock that stands against this one: kind, start, length; UNLCK if there is none."""
    answer = fcntl.fcntl(fd, fcntl.F_OFD_GETLK, _FLOCK.pack(_LOCK_KINDS[kind], os.SEEK_SET, start, length, 0))
    found, _, start, length, _ = _FLOCK.unpack(answer)
    return {number: ours for ours, number in _LOCK_KINDS.items()}[found], start, length
