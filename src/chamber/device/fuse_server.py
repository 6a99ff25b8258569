"""A FUSE server for one directory tree: requests in, replies out, no queues.

The client is not trusted. What it names by number was given to it and is counted; what it names by name is one
component of a directory that it holds (`chamber.device.p9_files`).
"""

from __future__ import annotations

import ctypes
import errno
import os
import stat
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from chamber.device.p9_files import Node
from chamber.wire import fuse
from chamber.wire.errors import WireError
from chamber.wire.fuse import Attributes, DirectoryEntry, Entry, InHeader, InitFlag, Opcode, OpenOut, SetattrValid

if TYPE_CHECKING:
    import struct
    from collections.abc import Callable
    from pathlib import Path

__all__ = ("MAX_WRITE", "FuseServer", "ReadInPlace")

MAX_WRITE: Final = 1 << 20
_PAGE: Final = 4096
_NODES: Final = 1 << 16
_HANDLES: Final = 4096
_LOOKUPS: Final = 1 << 48
_DIRECTORY_LIMIT: Final = 1 << 17
_XATTR_LIMIT: Final = 1 << 16
_RENAME_FLAGS: Final = 1 | 2
"""RENAME_NOREPLACE and RENAME_EXCHANGE."""
_FALLOCATE_FLAGS: Final = 1 | 2 | 16
"""KEEP_SIZE, PUNCH_HOLE, ZERO_RANGE."""
_FLAGS: Final = (InitFlag.ASYNC_READ | InitFlag.BIG_WRITES | InitFlag.DO_READDIRPLUS | InitFlag.READDIRPLUS_AUTO
                 | InitFlag.PARALLEL_DIROPS | InitFlag.MAX_PAGES | InitFlag.ATOMIC_O_TRUNC)


@dataclass(slots=True)
class _Known:
    """A file that the client holds a number of."""

    node: Node
    key: tuple[int, int]
    lookups: int = 0


@dataclass(slots=True)
class _Handle:
    """An open file or directory."""

    fd: int
    nodeid: int
    entries: list[tuple[bytes, int, int]] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class ReadInPlace:
    """A read that whoever has the reader's memory had better do himself.

    Attributes:
        fd: the file; valid until the next request.
        offset: where in it.
        size: bytes at most.

    """

    fd: int
    offset: int
    size: int


class FuseServer:
    """Serves the files below a directory.

    Args:
        root: the directory.
        read_only: refuse whatever changes something.
        valid: seconds for which a client may keep what it was told.

    """

    def __init__(self, root: Path, *, read_only: bool = False, valid: int = 1) -> None:
        self._root = root
        self._read_only = read_only
        self._valid = valid
        self._as_root = os.geteuid() == 0
        self._nodes: dict[int, _Known] = {}
        self._by_key: dict[tuple[int, int], int] = {}
        self._handles: dict[int, _Handle] = {}
        self._next_node = fuse.ROOT_ID
        self._next_handle = 1
        self._initialised = False
        libc = ctypes.CDLL(None, use_errno=True)
        self._renameat2 = libc.renameat2
        self._fallocate = libc.fallocate
        self._fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)
        self._serve: dict[int, Callable[[InHeader, bytes], bytes | ReadInPlace]] = {
            Opcode.LOOKUP: self._lookup, Opcode.GETATTR: self._getattr, Opcode.SETATTR: self._setattr,
            Opcode.READLINK: self._readlink, Opcode.SYMLINK: self._symlink, Opcode.MKNOD: self._mknod,
            Opcode.MKDIR: self._mkdir, Opcode.UNLINK: self._unlink, Opcode.RMDIR: self._rmdir,
            Opcode.RENAME: self._rename, Opcode.RENAME2: self._rename2, Opcode.LINK: self._link,
            Opcode.OPEN: self._open, Opcode.OPENDIR: self._opendir, Opcode.CREATE: self._create,
            Opcode.READ: self._read, Opcode.WRITE: self._write, Opcode.RELEASE: self._release,
            Opcode.RELEASEDIR: self._release, Opcode.READDIR: self._readdir, Opcode.READDIRPLUS: self._readdirplus,
            Opcode.STATFS: self._statfs, Opcode.FSYNC: self._fsync, Opcode.FSYNCDIR: self._fsync,
            Opcode.FLUSH: self._flush, Opcode.SETXATTR: self._setxattr, Opcode.GETXATTR: self._getxattr,
            Opcode.LISTXATTR: self._listxattr, Opcode.REMOVEXATTR: self._removexattr, Opcode.ACCESS: self._access,
            Opcode.FALLOCATE: self._allocate, Opcode.LSEEK: self._lseek, Opcode.COPY_FILE_RANGE: self._copy,
            Opcode.SYNCFS: self._syncfs, Opcode.INIT: self._init, Opcode.DESTROY: self._destroy,
        }

    def close(self) -> None:
        """Give back all files."""
        for handle in self._handles.values():
            os.close(handle.fd)
        for known in self._nodes.values():
            known.node.release()
        self._handles.clear()
        self._nodes.clear()
        self._by_key.clear()
        self._initialised = False

    def handle(self, header: InHeader, body: bytes) -> bytes | ReadInPlace | int | None:
        """Serve a request; return the reply's body, an errno, or None where there is no reply."""
        if header.opcode in {Opcode.FORGET, Opcode.BATCH_FORGET}:
            self._forget(header, body)
            return None
        if header.opcode == Opcode.INTERRUPT:
            return None  # requests are served at once: there is nothing to interrupt
        serve = self._serve.get(header.opcode)
        if serve is None:
            return errno.ENOSYS
        if not self._initialised and header.opcode != Opcode.INIT:
            return errno.EIO
        try:
            return serve(header, body)
        except WireError:
            return errno.EINVAL
        except OSError as error:
            return error.errno or errno.EIO
        except (ValueError, OverflowError):
            return errno.EINVAL

    # Numbers.

    def _known(self, nodeid: int) -> _Known:
        try:
            return self._nodes[nodeid]
        except KeyError:
            raise OSError(errno.ESTALE, "a number that was never given, or was forgotten") from None

    def _node(self, nodeid: int) -> Node:
        return self._known(nodeid).node

    def _directory(self, nodeid: int) -> Node:
        node = self._node(nodeid)
        if not node.is_dir:
            raise OSError(errno.ENOTDIR, "not a directory")
        return node

    def _handle(self, number: int) -> _Handle:
        try:
            return self._handles[number]
        except KeyError:
            raise OSError(errno.EBADF, "no such open file") from None

    def _remember(self, node: Node) -> Entry:
        """Give a file's number to the client once more; takes the hold over."""
        status = node.stat()
        key = (status.st_dev, status.st_ino)
        number = self._by_key.get(key)
        if number is None:
            if len(self._nodes) >= _NODES:
                node.release()
                raise OSError(errno.ENFILE, "the client holds too many files")
            self._next_node += 1
            number = self._next_node
            self._nodes[number] = _Known(node, key)
            self._by_key[key] = number
        else:
            node.release()
        known = self._nodes[number]
        known.lookups = min(known.lookups + 1, _LOOKUPS)
        # Numbers are never used again, so that there is one generation.
        return Entry(number, 0, _attributes(status), self._valid)

    def _forget(self, header: InHeader, body: bytes) -> None:
        if header.opcode == Opcode.FORGET:
            if len(body) >= fuse.FORGET.size:
                self._drop(header.nodeid, fuse.FORGET.unpack_from(body)[0])
            return
        if len(body) < fuse.BATCH_FORGET.size:
            return
        count, _ = fuse.BATCH_FORGET.unpack_from(body)
        end = min(fuse.BATCH_FORGET.size + count * fuse.FORGET_ONE.size, len(body))
        for at in range(fuse.BATCH_FORGET.size, end - fuse.FORGET_ONE.size + 1, fuse.FORGET_ONE.size):
            self._drop(*fuse.FORGET_ONE.unpack_from(body, at))

    def _drop(self, nodeid: int, count: int) -> None:
        known = self._nodes.get(nodeid)
        if known is None or nodeid == fuse.ROOT_ID:
            return
        known.lookups -= min(count, known.lookups)
        if not known.lookups:
            del self._nodes[nodeid]
            del self._by_key[known.key]
            known.node.release()

    def _writable(self) -> None:
        if self._read_only:
            raise OSError(errno.EROFS, "read-only")

    # The session.

    def _init(self, _header: InHeader, body: bytes) -> bytes:
        major, minor, readahead, flags = _unpack(fuse.INIT_IN, body)
        if major < fuse.MAJOR or (major == fuse.MAJOR and minor < 31):
            raise OSError(errno.EPROTO, "too old a client")
        self.close()
        root = Node.root(self._root)
        status = root.stat()
        key = (status.st_dev, status.st_ino)
        self._nodes[fuse.ROOT_ID] = _Known(root, key, 1)
        self._by_key[key] = fuse.ROOT_ID
        self._initialised = True
        return fuse.INIT_OUT.pack(fuse.MAJOR, fuse.MINOR, readahead, flags & _FLAGS, 64, 48, MAX_WRITE, 1,
                                  MAX_WRITE // _PAGE, 0, 0)

    def _destroy(self, _header: InHeader, _body: bytes) -> bytes:
        self.close()
        return b""

    # Names.

    def _lookup(self, header: InHeader, body: bytes) -> bytes:
        (name,) = fuse.split_names(body, 1)
        return self._remember(self._directory(header.nodeid).child(name)).build()

    def _made(self, header: InHeader, directory: Node, name: bytes) -> Entry:
        """Give what was just made to the user who asked, if this process may."""
        node = directory.child(name)
        if self._as_root:
            node.chown(header.uid, header.gid)
        return self._remember(node)

    def _symlink(self, header: InHeader, body: bytes) -> bytes:
        self._writable()
        name, target = fuse.split_names(body, 2)
        directory = self._directory(header.nodeid)
        directory.symlink(name, target)
        return self._made(header, directory, name).build()

    def _mknod(self, header: InHeader, body: bytes) -> bytes:
        self._writable()
        mode, _, umask, _ = _unpack(fuse.MKNOD, body)
        (name,) = fuse.split_names(body[fuse.MKNOD.size:], 1)
        directory = self._directory(header.nodeid)
        directory.mknod(name, mode & ~(umask & 0o777))
        return self._made(header, directory, name).build()

    def _mkdir(self, header: InHeader, body: bytes) -> bytes:
        self._writable()
        mode, umask = _unpack(fuse.MKDIR, body)
        (name,) = fuse.split_names(body[fuse.MKDIR.size:], 1)
        directory = self._directory(header.nodeid)
        directory.mkdir(name, mode & ~umask)
        return self._made(header, directory, name).build()

    def _unlink(self, header: InHeader, body: bytes) -> bytes:
        return self._remove(header, body, is_dir=False)

    def _rmdir(self, header: InHeader, body: bytes) -> bytes:
        return self._remove(header, body, is_dir=True)

    def _remove(self, header: InHeader, body: bytes, *, is_dir: bool) -> bytes:
        self._writable()
        (name,) = fuse.split_names(body, 1)
        self._directory(header.nodeid).unlink(name, is_dir=is_dir)
        return b""

    def _rename(self, header: InHeader, body: bytes) -> bytes:
        (target,) = _unpack(fuse.RENAME, body)
        return self._move(header, target, body[fuse.RENAME.size:], 0)

    def _rename2(self, header: InHeader, body: bytes) -> bytes:
        target, flags, _ = _unpack(fuse.RENAME2, body)
        return self._move(header, target, body[fuse.RENAME2.size:], flags)

    def _move(self, header: InHeader, target: int, names: bytes, flags: int) -> bytes:
        self._writable()
        old, new = fuse.split_names(names, 2)
        source, directory = self._directory(header.nodeid), self._directory(target)
        if flags & ~_RENAME_FLAGS:
            raise OSError(errno.EINVAL, "unknown flags")
        if not flags:
            source.rename(old, directory, new)
            return b""
        source.child(old).release()  # names are checked there
        if flags & 2:
            directory.child(new).release()
        elif b"/" in new or new in {b".", b".."}:
            raise OSError(errno.EINVAL, "not a name")
        if self._renameat2(source.fd, old, directory.fd, new, flags):
            raise OSError(ctypes.get_errno(), "renameat2")
        return b""

    def _link(self, header: InHeader, body: bytes) -> bytes:
        self._writable()
        (old,) = _unpack(fuse.LINK, body)
        (name,) = fuse.split_names(body[fuse.LINK.size:], 1)
        directory = self._directory(header.nodeid)
        directory.link(self._node(old), name)
        return self._remember(directory.child(name)).build()

    def _readlink(self, header: InHeader, _body: bytes) -> bytes:
        return self._node(header.nodeid).readlink()

    # Attributes.

    def _attributes(self, node: Node) -> bytes:
        return fuse.ATTR_OUT.pack(self._valid, 0, 0) + _attributes(node.stat()).build()

    def _getattr(self, header: InHeader, _body: bytes) -> bytes:
        return self._attributes(self._node(header.nodeid))

    def _setattr(self, header: InHeader, body: bytes) -> bytes:
        self._writable()
        (valid, _, fh, size, _, atime, mtime, _, atime_ns, mtime_ns, _, mode, _, uid, gid, _) = _unpack(
            fuse.SETATTR, body)
        node = self._node(header.nodeid)
        wanted = SetattrValid(valid & sum(SetattrValid))
        if SetattrValid.MODE in wanted:
            node.chmod(mode)
        if wanted & (SetattrValid.UID | SetattrValid.GID):
            node.chown(uid if SetattrValid.UID in wanted else -1, gid if SetattrValid.GID in wanted else -1)
        if SetattrValid.SIZE in wanted:
            if SetattrValid.FH in wanted:
                os.ftruncate(self._handle(fh).fd, size)
            else:
                node.truncate(size)
        if wanted & (SetattrValid.ATIME | SetattrValid.MTIME):
            before = node.stat()
            now = time.time_ns()
            times = []
            for bit, at_once, seconds, rest, old in (
                    (SetattrValid.ATIME, SetattrValid.ATIME_NOW, atime, atime_ns, before.st_atime_ns),
                    (SetattrValid.MTIME, SetattrValid.MTIME_NOW, mtime, mtime_ns, before.st_mtime_ns)):
                given = now if at_once in wanted else seconds * 10**9 + rest
                times.append(given if bit in wanted else old)
            node.utime(*times)
        return self._attributes(node)

    def _access(self, header: InHeader, _body: bytes) -> bytes:
        self._node(header.nodeid)
        return b""  # the client checks permissions itself: it knows who asks

    def _statfs(self, header: InHeader, _body: bytes) -> bytes:
        found = self._node(header.nodeid).statvfs()
        return fuse.STATFS.pack(found.f_blocks, found.f_bfree, found.f_bavail, found.f_files, found.f_ffree,
                                found.f_bsize, found.f_namemax, found.f_frsize, 0)

    # Open files.

    def _keep(self, fd: int, nodeid: int) -> OpenOut:
        if len(self._handles) >= _HANDLES:
            os.close(fd)
            raise OSError(errno.ENFILE, "the client has too many open files")
        number = self._next_handle
        self._next_handle += 1
        self._handles[number] = _Handle(fd, nodeid)
        return OpenOut(number)

    def _open(self, header: InHeader, body: bytes) -> bytes:
        flags, _ = _unpack(fuse.OPEN_IN, body)
        if flags & (os.O_WRONLY | os.O_RDWR | os.O_TRUNC):
            self._writable()
        node = self._node(header.nodeid)
        if node.is_dir:
            raise OSError(errno.EISDIR, "a directory")
        return self._keep(node.open(_readable(flags)), header.nodeid).build()

    def _opendir(self, header: InHeader, _body: bytes) -> bytes:
        node = self._directory(header.nodeid)
        return self._keep(node.open(os.O_RDONLY), header.nodeid).build()

    def _create(self, header: InHeader, body: bytes) -> bytes:
        self._writable()
        flags, mode, umask, _ = _unpack(fuse.CREATE, body)
        (name,) = fuse.split_names(body[fuse.CREATE.size:], 1)
        node, fd = self._directory(header.nodeid).create(name, _readable(flags), mode & ~umask)
        try:
            if self._as_root:
                node.chown(header.uid, header.gid)
            entry = self._remember(node)
        except OSError:
            os.close(fd)
            raise
        return entry.build() + self._keep(fd, entry.nodeid).build()

    def _release(self, _header: InHeader, body: bytes) -> bytes:
        fh, *_ = _unpack(fuse.RELEASE, body)
        os.close(self._handle(fh).fd)
        del self._handles[fh]
        return b""

    def _read(self, _header: InHeader, body: bytes) -> ReadInPlace:
        fh, offset, size, *_ = _unpack(fuse.READ, body)
        return ReadInPlace(self._handle(fh).fd, offset, min(size, MAX_WRITE))

    def _write(self, _header: InHeader, body: bytes) -> bytes:
        self._writable()
        fh, offset, size, *_ = _unpack(fuse.WRITE, body)
        data = memoryview(body)[fuse.WRITE.size:]
        if len(data) < size or size > MAX_WRITE:
            raise OSError(errno.EINVAL, "fewer bytes than it says")
        return fuse.SIZE_OUT.pack(os.pwrite(self._handle(fh).fd, data[:size], offset), 0)

    def _fsync(self, _header: InHeader, body: bytes) -> bytes:
        fh, flags, _ = _unpack(fuse.FSYNC, body)
        (os.fdatasync if flags & 1 else os.fsync)(self._handle(fh).fd)
        return b""

    def _flush(self, _header: InHeader, body: bytes) -> bytes:
        fh, *_ = _unpack(fuse.RELEASE, body)
        os.close(os.dup(self._handle(fh).fd))  # where closing a file tells of errors, it tells now
        return b""

    def _allocate(self, _header: InHeader, body: bytes) -> bytes:
        self._writable()
        fh, offset, length, mode, _ = _unpack(fuse.FALLOCATE, body)
        if mode & ~_FALLOCATE_FLAGS:
            raise OSError(errno.EOPNOTSUPP, "unknown mode")
        if max(offset, length) >= 1 << 63 or self._fallocate(self._handle(fh).fd, mode, offset, length):
            raise OSError(ctypes.get_errno() or errno.EFBIG, "fallocate")
        return b""

    def _lseek(self, _header: InHeader, body: bytes) -> bytes:
        fh, offset, whence, _ = _unpack(fuse.LSEEK, body)
        if whence not in {os.SEEK_DATA, os.SEEK_HOLE}:
            raise OSError(errno.EINVAL, "the client seeks by itself")
        return fuse.OFFSET_OUT.pack(os.lseek(self._handle(fh).fd, offset, whence))

    def _copy(self, _header: InHeader, body: bytes) -> bytes:
        self._writable()
        source, at, _, target, to, length, flags = _unpack(fuse.COPY, body)
        if flags:
            raise OSError(errno.EINVAL, "unknown flags")
        done = os.copy_file_range(self._handle(source).fd, self._handle(target).fd, min(length, MAX_WRITE), at, to)
        return fuse.SIZE_OUT.pack(done, 0)

    def _syncfs(self, header: InHeader, _body: bytes) -> bytes:
        self._node(header.nodeid)
        os.sync()
        return b""

    # Directories.

    def _readdir(self, header: InHeader, body: bytes) -> bytes:
        return self._list(header, body, plus=False)

    def _readdirplus(self, header: InHeader, body: bytes) -> bytes:
        return self._list(header, body, plus=True)

    def _list(self, header: InHeader, body: bytes, *, plus: bool) -> bytes:
        fh, offset, size, *_ = _unpack(fuse.READ, body)
        handle = self._handle(fh)
        if not offset:
            with os.scandir(handle.fd) as found:
                handle.entries = [(os.fsencode(e.name), e.inode(), _kind(e)) for e, _ in
                                  zip(found, range(_DIRECTORY_LIMIT), strict=False)]
            handle.entries[:0] = [(b".", 0, stat.S_IFDIR >> 12), (b"..", 0, stat.S_IFDIR >> 12)]
        room = min(size, MAX_WRITE)
        out = bytearray()
        directory = self._directory(header.nodeid)
        for place in range(offset, len(handle.entries)):
            name, ino, kind = handle.entries[place]
            length = fuse.DIRENT.size + len(name) + 7 & ~7
            if len(out) + length + (fuse.ENTRY_SIZE if plus else 0) > room:
                break
            entry = None
            if plus:
                entry = self._entry(directory, name)
                if entry is None:
                    continue
            out += DirectoryEntry(ino, place + 1, kind, name, entry).build()
        return bytes(out)

    def _entry(self, directory: Node, name: bytes) -> Entry | None:
        """What READDIRPLUS says of a name; number 0 for those that are not counted, None for one that is gone."""
        if name in {b".", b".."}:
            return Entry(0, 0, Attributes(0, 0, 0, 0, 0, 0, stat.S_IFDIR, 1, 0, 0), 0)
        try:
            return self._remember(directory.child(name))
        except OSError:
            return None

    # Extended attributes.

    def _setxattr(self, header: InHeader, body: bytes) -> bytes:
        self._writable()
        size, flags = _unpack(fuse.XATTR, body)
        (name,) = fuse.split_names(body[fuse.XATTR.size:], 1)
        value = body[fuse.XATTR.size + len(name) + 1:][:size]
        if len(value) < size:
            raise OSError(errno.EINVAL, "fewer bytes than it says")
        self._node(header.nodeid).set_xattr(name, value, flags)
        return b""

    def _getxattr(self, header: InHeader, body: bytes) -> bytes:
        size, _ = _unpack(fuse.XATTR, body)
        (name,) = fuse.split_names(body[fuse.XATTR.size:], 1)
        return self._sized(self._node(header.nodeid).xattr(name), size)

    def _listxattr(self, header: InHeader, body: bytes) -> bytes:
        size, _ = _unpack(fuse.XATTR, body)
        return self._sized(self._node(header.nodeid).xattr(b""), size)

    @staticmethod
    def _sized(value: bytes, size: int) -> bytes:
        if not size:
            return fuse.SIZE_OUT.pack(len(value), 0)
        if len(value) > min(size, _XATTR_LIMIT):
            raise OSError(errno.ERANGE, "larger than there is room for")
        return value

    def _removexattr(self, header: InHeader, body: bytes) -> bytes:
        self._writable()
        (name,) = fuse.split_names(body, 1)
        self._node(header.nodeid).remove_xattr(name)
        return b""


def _unpack(layout: struct.Struct, body: bytes) -> tuple[int, ...]:
    if len(body) < layout.size:
        raise OSError(errno.EINVAL, "too short a request")
    return layout.unpack_from(body)


def _readable(flags: int) -> int:
    """Open for reading as well: a client with a page cache reads what it writes parts of."""
    return flags & ~os.O_ACCMODE | os.O_RDWR if flags & os.O_ACCMODE == os.O_WRONLY else flags


def _attributes(status: os.stat_result) -> Attributes:
    return Attributes(status.st_ino, status.st_size, status.st_blocks, status.st_atime_ns, status.st_mtime_ns,
                      status.st_ctime_ns, status.st_mode, status.st_nlink, status.st_uid, status.st_gid, 0,
                      status.st_blksize)


def _kind(entry: os.DirEntry[str]) -> int:
    if entry.is_symlink():
        return stat.S_IFLNK >> 12
    if entry.is_dir(follow_symlinks=False):
        return stat.S_IFDIR >> 12
    return stat.S_IFREG >> 12 if entry.is_file(follow_symlinks=False) else 0
