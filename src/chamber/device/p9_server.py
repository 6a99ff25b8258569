"""A 9P2000.L server for one client: bytes of a request in, bytes of its reply out.

It knows neither queues nor sockets. Requests are served one after the other, so none is under way when a Tflush comes
for it. The client is trusted with nothing: fids and what they hold are capped, sizes are capped before they allocate,
names are single components, and what it breaks is answered with an error.
"""

from __future__ import annotations

import errno
import os
import stat
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from chamber.device.p9_files import Node, lock_against, qid_of, read_at, take_lock
from chamber.wire.errors import WireError
from chamber.wire.p9 import (
    CONTENT_OVERHEAD,
    NO_FID,
    NO_TAG,
    NO_UID,
    READ_OVERHEAD,
    UNLINK_DIR,
    VERSION,
    GetattrMask,
    LockStatus,
    LockType,
    OpenFlag,
    Qid,
    SetattrMask,
)
from chamber.wire.p9_messages import HEADER, Dirent, Message, MessageType, decode, encode, pack_dirent

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from chamber.wire.p9_messages import Value

__all__ = ("LEAST_MSIZE", "MOST_MSIZE", "P9Server")

LEAST_MSIZE: Final = 4096
MOST_MSIZE: Final = 512 << 10
_MAGIC: Final = 0x01021997
"""What statfs(2) calls a 9p file system (V9FS_MAGIC)."""
_XATTR_MAX: Final = 64 << 10
_XATTRS: Final = 64
"""Fids that hold an extended attribute at once."""
_ENTRIES: Final = 1 << 20
"""Names of all open directories together: a listing is a snapshot, so that its offsets hold."""
_MAX_OFFSET: Final = (1 << 63) - 1
_CHANGES: Final = frozenset({
    MessageType.TLCREATE, MessageType.TSYMLINK, MessageType.TMKNOD, MessageType.TRENAME, MessageType.TSETATTR,
    MessageType.TXATTRCREATE, MessageType.TLINK, MessageType.TMKDIR, MessageType.TRENAMEAT, MessageType.TUNLINKAT,
    MessageType.TWRITE, MessageType.TREMOVE})
_M = MessageType
_Answer = dict[str, "Value"]


def _refuse(code: int) -> OSError:
    return OSError(code, os.strerror(code))


@dataclass(slots=True)
class _Xattr:
    """An extended attribute under way: to be read, or to be set when its fid is clunked."""

    value: bytearray
    name: bytes = b""
    size: int = -1
    flags: int = 0

    @property
    def writes(self) -> bool:
        return self.size >= 0


@dataclass(slots=True, eq=False)
class _Fid:
    """A file that the client holds.

    Attributes:
        node: the file.
        parent: the directory in which it was found, None for the root.
        name: by which it was found there.
        fd: descriptor, -1 while it is not open.
        listing: names of an open directory.
        xattr: what reads and writes mean, instead of the file.

    """

    node: Node
    parent: Node | None = None
    name: bytes = b""
    fd: int = -1
    listing: list[bytes] = field(default_factory=list)
    xattr: _Xattr | None = None

    def close(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1
        self.listing = []
        self.node.release()
        if self.parent is not None:
            self.parent.release()
            self.parent = None


class P9Server:
    """Serves a directory.

    Args:
        root: the directory; nothing outside of it is ever reached.
        read_only: refuse whatever would change it.
        max_fids: files that the client may hold at once; each takes three descriptors at most.

    Attributes:
        msize: bytes of a message at most, 0 before the client asked for a session.

    Raises:
        OSError: the directory can't be opened.

    """

    def __init__(self, root: Path, *, read_only: bool = False, max_fids: int = 256) -> None:
        self.msize = 0
        self._root = Node.root(root)
        self._read_only = read_only
        self._max_fids = max_fids
        self._fids: dict[int, _Fid] = {}
        self._room = 0
        self._serve: Mapping[MessageType, Callable[[Message], _Answer]] = {
            _M.TVERSION: self._version, _M.TAUTH: self._auth, _M.TATTACH: self._attach, _M.TFLUSH: self._flush,
            _M.TWALK: self._walk, _M.TLOPEN: self._lopen, _M.TLCREATE: self._lcreate, _M.TREAD: self._read,
            _M.TWRITE: self._write, _M.TREADDIR: self._readdir, _M.TGETATTR: self._getattr,
            _M.TSETATTR: self._setattr, _M.TSTATFS: self._statfs, _M.TSYMLINK: self._symlink,
            _M.TREADLINK: self._readlink, _M.TMKNOD: self._mknod, _M.TMKDIR: self._mkdir, _M.TRENAME: self._rename,
            _M.TRENAMEAT: self._renameat, _M.TLINK: self._link, _M.TUNLINKAT: self._unlinkat,
            _M.TREMOVE: self._remove, _M.TLOCK: self._lock, _M.TGETLOCK: self._getlock,
            _M.TXATTRWALK: self._xattrwalk, _M.TXATTRCREATE: self._xattrcreate, _M.TFSYNC: self._fsync,
            _M.TCLUNK: self._clunk,
        }

    def reset(self) -> None:
        """Forget the client."""
        for fid in self._fids.values():
            fid.close()
        self._fids.clear()
        self.msize = 0

    def close(self) -> None:
        """Forget the client, and let go of the directory."""
        self.reset()
        self._root.release()

    @property
    def held(self) -> int:
        """How many fids the client holds."""
        return len(self._fids)

    def handle(self, data: bytes, room: int) -> bytes:
        """Serve one request.

        Args:
            data: the message, all of it.
            room: bytes that the client has for the reply.

        Returns:
            the reply, no longer than `room` and msize.

        Raises:
            WireError: there is no message, or no room for even an error; there is no reply.

        """
        if len(data) < HEADER.size or room < HEADER.size + 4:
            raise WireError("a request has a header, and room for an error", spec="9P2000.L")
        tag = HEADER.unpack_from(data)[2]
        self._room = min(room, self.msize or LEAST_MSIZE)
        try:
            message = decode(data)
            kind = message.type
            serve = self._serve.get(kind)
            if serve is None or (tag == NO_TAG) != (kind is _M.TVERSION) or (not self.msize
                                                                            and kind is not _M.TVERSION):
                raise _refuse(errno.EPROTO)
            if self._read_only and kind in _CHANGES:
                raise _refuse(errno.EROFS)
            reply = encode(MessageType(kind + 1), tag, **serve(message))
        except WireError:
            return encode(_M.RLERROR, tag, ecode=errno.EPROTO)
        except (OverflowError, ValueError):
            # A number that the system has no room for, such as a time beyond its calendar.
            return encode(_M.RLERROR, tag, ecode=errno.EINVAL)
        except OSError as error:
            return encode(_M.RLERROR, tag, ecode=error.errno or errno.EIO)
        if len(reply) > self._room:
            return encode(_M.RLERROR, tag, ecode=errno.EMSGSIZE)
        return reply

    # Fids.

    def _fid(self, message: Message, name: str = "fid") -> _Fid:
        fid = self._fids.get(message.number(name))
        if fid is None:
            raise _refuse(errno.EBADF)
        return fid

    def _directory(self, message: Message, name: str) -> Node:
        node = self._fid(message, name).node
        if not node.is_dir:
            raise _refuse(errno.ENOTDIR)
        return node

    def _require_new(self, number: int) -> None:
        if number == NO_FID or number in self._fids:
            raise _refuse(errno.EBADF)
        if len(self._fids) >= self._max_fids:
            raise _refuse(errno.EMFILE)

    # The session.

    def _version(self, message: Message) -> _Answer:
        self.reset()
        msize = min(message.number("msize"), MOST_MSIZE)
        if msize < LEAST_MSIZE or message.text("version") != VERSION:
            return {"msize": msize, "version": b"unknown"}
        self.msize = msize
        return {"msize": msize, "version": VERSION}

    def _auth(self, _message: Message) -> _Answer:
        raise _refuse(errno.EOPNOTSUPP)

    def _attach(self, message: Message) -> _Answer:
        number = message.number("fid")
        self._require_new(number)
        if message.number("afid") != NO_FID:
            raise _refuse(errno.EBADF)
        self._fids[number] = _Fid(self._root.hold())
        return {"qid": self._root.qid()}

    def _flush(self, _message: Message) -> _Answer:
        return {}

    def _walk(self, message: Message) -> _Answer:
        start, target = self._fid(message), message.number("newfid")
        if start.fd >= 0 or start.xattr is not None:
            raise _refuse(errno.EBUSY)
        if target != message.number("fid"):
            self._require_new(target)
        node, parent, name = start.node.hold(), start.parent and start.parent.hold(), start.name
        qids: list[Qid] = []
        names = message.texts("names")
        try:
            for step in names:
                child = node.child(step)
                if parent is not None:
                    parent.release()
                parent, node, name = node, child, step
                qids.append(node.qid())
        except OSError:
            node.release()
            if parent is not None:
                parent.release()
            if not qids:
                raise
            return {"qids": tuple(qids)}
        if target in self._fids:
            self._fids.pop(target).close()
        self._fids[target] = _Fid(node, parent, name)
        return {"qids": tuple(qids)}

    def _clunk(self, message: Message) -> _Answer:
        fid = self._fid(message)
        del self._fids[message.number("fid")]
        try:
            if fid.xattr is not None and fid.xattr.writes:
                self._set_xattr(fid.node, fid.xattr)
        finally:
            fid.close()
        return {}

    # Contents.

    def _unit(self) -> int:
        return self.msize - CONTENT_OVERHEAD

    def _lopen(self, message: Message) -> _Answer:
        fid, flags = self._fid(message), message.number("flags")
        if fid.fd >= 0 or fid.xattr is not None:
            raise _refuse(errno.EBUSY)
        if self._read_only and flags & (OpenFlag.ACCMODE | OpenFlag.TRUNC):
            raise _refuse(errno.EROFS)
        fid.fd = fid.node.open(flags)
        return {"qid": fid.node.qid(), "iounit": self._unit()}

    def _lcreate(self, message: Message) -> _Answer:
        fid, name = self._fid(message), message.text("name")
        if fid.fd >= 0 or fid.xattr is not None:
            raise _refuse(errno.EBUSY)
        directory = self._directory(message, "fid")
        node, fd = directory.create(name, message.number("flags"), message.number("mode"))
        if fid.parent is not None:
            fid.parent.release()
        fid.parent, fid.node, fid.name, fid.fd = directory, node, name, fd
        return {"qid": node.qid(), "iounit": self._unit()}

    def _opened(self, message: Message) -> int:
        fd = self._fid(message).fd
        if fd < 0:
            raise _refuse(errno.EBADF)
        return fd

    def _read(self, message: Message) -> _Answer:
        offset, fid = message.number("offset"), self._fid(message)
        count = min(message.number("count"), self._room - READ_OVERHEAD)
        if fid.xattr is not None:
            return {"data": bytes(fid.xattr.value[offset:offset + count])}
        return {"data": read_at(self._opened(message), offset, count)}

    def _write(self, message: Message) -> _Answer:
        fid, offset, data = self._fid(message), message.number("offset"), message.text("data")
        if fid.xattr is not None:
            # In order and no more than was announced: what is kept until the fid is clunked does not grow beyond it.
            if not fid.xattr.writes or offset != len(fid.xattr.value) or offset + len(data) > fid.xattr.size:
                raise _refuse(errno.EINVAL)
            fid.xattr.value += data
            return {"count": len(data)}
        if offset + len(data) > _MAX_OFFSET:
            raise _refuse(errno.EFBIG)
        return {"count": os.pwrite(self._opened(message), data, offset)}

    def _fsync(self, message: Message) -> _Answer:
        (os.fdatasync if message.number("datasync") else os.fsync)(self._opened(message))
        return {}

    def _readdir(self, message: Message) -> _Answer:
        fid, start = self._fid(message), message.number("offset")
        fd = self._opened(message)
        if not fid.node.is_dir:
            raise _refuse(errno.ENOTDIR)
        if not start:
            fid.listing = []
            names = [os.fsencode(name) for name in os.listdir(fd)]
            if len(names) + sum(len(other.listing) for other in self._fids.values()) > _ENTRIES:
                raise _refuse(errno.ENFILE)
            fid.listing = [b".", b"..", *sorted(names)]
        room = min(message.number("count"), self._room - READ_OVERHEAD)
        data = bytearray()
        for number, name in enumerate(fid.listing[start:], start + 1):
            entry = self._entry(fid, name, number)
            if entry is None:
                continue
            if len(data) + len(entry) > room:
                if not data:
                    raise _refuse(errno.EINVAL)
                break
            data += entry
        return {"data": bytes(data)}

    def _entry(self, fid: _Fid, name: bytes, number: int) -> bytes | None:
        """One entry of a listing; None if its file is gone."""
        if name == b".":
            status = fid.node.stat()
        elif name == b"..":
            status = (fid.parent or fid.node).stat()
        else:
            try:
                status = os.stat(name, dir_fd=fid.node.fd, follow_symlinks=False)
            except FileNotFoundError:
                return None
        return pack_dirent(Dirent(qid_of(status), number, stat.S_IFMT(status.st_mode) >> 12, name))

    # Attributes.

    def _getattr(self, message: Message) -> _Answer:
        status = self._fid(message).node.stat()
        answer: _Answer = {
            "valid": int(GetattrMask.BASIC), "qid": qid_of(status), "mode": status.st_mode, "uid": status.st_uid,
            "gid": status.st_gid, "nlink": status.st_nlink, "rdev": status.st_rdev, "size": status.st_size,
            "blksize": status.st_blksize, "blocks": status.st_blocks, "btime_sec": 0, "btime_nsec": 0, "gen": 0,
            "data_version": 0}
        for name, moment in (("a", status.st_atime_ns), ("m", status.st_mtime_ns), ("c", status.st_ctime_ns)):
            seconds, answer[f"{name}time_nsec"] = divmod(max(moment, 0), 10**9)
            answer[f"{name}time_sec"] = seconds
        return answer

    def _setattr(self, message: Message) -> _Answer:
        node, valid = self._fid(message).node, message.number("valid")
        if valid & ~int(SetattrMask.ALL):
            raise _refuse(errno.EINVAL)
        if valid & (SetattrMask.UID | SetattrMask.GID):
            node.chown(*(message.number(name) if valid & bit else -1
                         for name, bit in (("uid", SetattrMask.UID), ("gid", SetattrMask.GID))))
        if valid & SetattrMask.MODE:
            node.chmod(message.number("mode"))
        if valid & SetattrMask.SIZE:
            node.truncate(message.number("size"))
        if valid & (SetattrMask.ATIME | SetattrMask.MTIME):
            status = node.stat()
            times = [message.number(f"{name}_sec") * 10**9 + message.number(f"{name}_nsec") if valid & given
                     else time.time_ns() if valid & wanted else before
                     for name, wanted, given, before in (
                         ("atime", SetattrMask.ATIME, SetattrMask.ATIME_SET, status.st_atime_ns),
                         ("mtime", SetattrMask.MTIME, SetattrMask.MTIME_SET, status.st_mtime_ns))]
            node.utime(*times)
        return {}

    def _statfs(self, message: Message) -> _Answer:
        status = self._fid(message).node.statvfs()
        return {"type": _MAGIC, "bsize": status.f_bsize, "blocks": status.f_blocks * status.f_frsize // status.f_bsize,
                "bfree": status.f_bfree * status.f_frsize // status.f_bsize,
                "bavail": status.f_bavail * status.f_frsize // status.f_bsize, "files": status.f_files,
                "ffree": status.f_ffree, "fsid": status.f_fsid & (1 << 64) - 1, "namelen": status.f_namemax}

    def _holder(self, number: int, xattr: _Xattr) -> None:
        if sum(fid.xattr is not None for fid in self._fids.values()) > _XATTRS:
            raise _refuse(errno.EMFILE)
        self._fids[number].xattr = xattr

    def _xattrwalk(self, message: Message) -> _Answer:
        node, number = self._fid(message).node, message.number("newfid")
        self._require_new(number)
        value = node.xattr(message.text("name"))
        self._fids[number] = _Fid(node.hold())
        try:
            self._holder(number, _Xattr(bytearray(value)))
        except OSError:
            self._fids.pop(number).close()
            raise
        return {"size": len(value)}

    def _xattrcreate(self, message: Message) -> _Answer:
        fid, size = self._fid(message), message.number("attr_size")
        if fid.fd >= 0 or fid.xattr is not None:
            raise _refuse(errno.EBUSY)
        if size > _XATTR_MAX:
            raise _refuse(errno.E2BIG)
        self._holder(message.number("fid"), _Xattr(bytearray(), message.text("name"), size, message.number("flags")))
        return {}

    @staticmethod
    def _set_xattr(node: Node, xattr: _Xattr) -> None:
        if len(xattr.value) != xattr.size:
            raise _refuse(errno.EIO)
        if xattr.size:
            node.set_xattr(xattr.name, bytes(xattr.value), xattr.flags)
        else:
            node.remove_xattr(xattr.name)

    # Locks.

    def _lock_of(self, message: Message) -> tuple[LockType, int, int]:
        start, length = message.number("start"), message.number("length")
        if start + length > _MAX_OFFSET or message.number("type") not in tuple(LockType):
            raise _refuse(errno.EINVAL)
        return LockType(message.number("type")), start, length

    def _lock(self, message: Message) -> _Answer:
        had = take_lock(self._opened(message), *self._lock_of(message))
        return {"status": LockStatus.SUCCESS if had else LockStatus.BLOCKED}

    def _getlock(self, message: Message) -> _Answer:
        kind, start, length = lock_against(self._opened(message), *self._lock_of(message))
        return {"type": kind, "start": start, "length": length, "proc_id": message.number("proc_id"),
                "client_id": message.text("client_id")}

    # Names.

    def _symlink(self, message: Message) -> _Answer:
        node = self._directory(message, "dfid")
        node.symlink(message.text("name"), message.text("target"))
        return self._made(node, message)

    def _readlink(self, message: Message) -> _Answer:
        return {"target": self._fid(message).node.readlink()}

    def _mknod(self, message: Message) -> _Answer:
        node = self._directory(message, "dfid")
        node.mknod(message.text("name"), message.number("mode"))
        return self._made(node, message)

    def _mkdir(self, message: Message) -> _Answer:
        node = self._directory(message, "dfid")
        node.mkdir(message.text("name"), message.number("mode"))
        return self._made(node, message)

    def _made(self, directory: Node, message: Message) -> _Answer:
        """Name what was just made, and give it to the group that was asked for, where the server may."""
        node = directory.child(message.text("name"))
        try:
            if message.number("gid") != NO_UID:
                node.chown(-1, message.number("gid"))
            return {"qid": node.qid()}
        finally:
            node.release()

    def _named(self, fid: _Fid) -> Node:
        """Return the directory in which a fid's file still has its name."""
        if fid.parent is None:
            raise _refuse(errno.EBUSY)
        if not fid.parent.names(fid.name, fid.node):
            raise _refuse(errno.ESTALE)
        return fid.parent

    def _rename(self, message: Message) -> _Answer:
        fid, directory, name = self._fid(message), self._directory(message, "dfid"), message.text("name")
        parent = self._named(fid)
        parent.rename(fid.name, directory, name)
        fid.parent, fid.name = directory.hold(), name
        parent.release()
        return {}

    def _renameat(self, message: Message) -> _Answer:
        old, new = self._directory(message, "olddirfid"), self._directory(message, "newdirfid")
        old.rename(message.text("oldname"), new, message.text("newname"))
        return {}

    def _link(self, message: Message) -> _Answer:
        self._directory(message, "dfid").link(self._fid(message).node, message.text("name"))
        return {}

    def _unlinkat(self, message: Message) -> _Answer:
        flags = message.number("flags")
        if flags & ~UNLINK_DIR:
            raise _refuse(errno.EINVAL)
        self._directory(message, "dirfid").unlink(message.text("name"), is_dir=bool(flags))
        return {}

    def _remove(self, message: Message) -> _Answer:
        fid = self._fid(message)
        del self._fids[message.number("fid")]
        try:
            self._named(fid).unlink(fid.name, is_dir=fid.node.is_dir)
        finally:
            fid.close()
        return {}
