"""9P client over virtio: messages, tags and fids; every file operation of 9P2000.L."""

from __future__ import annotations

import errno
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from chamber.guest.driver import Refused
from chamber.guest.drivers.p9_channel import P9Channel, P9Error
from chamber.guest.drivers.p9_reply import NAME_MAX, SPEC, Reply
from chamber.wire.p9 import (
    CONTENT_OVERHEAD,
    MAX_NAMES,
    NO_FID,
    NO_UID,
    REQUEST_QUEUE,
    UNLINK_DIR,
    VERSION,
    GetattrMask,
    LockStatus,
    LockType,
    OpenFlag,
    Qid,
    QidType,
    SetattrMask,
)
from chamber.wire.p9_messages import QID, Dirent, MessageType

if TYPE_CHECKING:
    from collections.abc import Iterator

    from chamber.guest.machine import GuestMachine
    from chamber.platform.heap import Object
    from chamber.platform.transport import Transport
    from chamber.wire.p9_messages import Value

__all__ = ("Attributes", "Lock", "P9Driver", "P9Error", "P9Fid", "Statfs")

_M = MessageType
_MSIZE: Final = 8192 + CONTENT_OVERHEAD
_LEAST_MSIZE: Final = 4096
_LEAST_UNIT: Final = 512
_WINDOW: Final = 4
"""Reads that are under way at once."""
_PATH_MAX: Final = 4096
_XATTR_MAX: Final = 65536
_CLIENT_ID: Final = 64
_ENTRIES: Final = 1 << 16
_MAX_SIZE: Final = (1 << 63) - 1
_BLOCK_SIZES: Final = tuple(1 << n for n in range(9, 26))
_PAGE: Final = 4096
_KINDS: Final = {0o1: QidType.FILE, 0o2: QidType.FILE, 0o4: QidType.DIR, 0o6: QidType.FILE, 0o10: QidType.FILE,
                 0o12: QidType.SYMLINK, 0o14: QidType.FILE}
"""What a qid's type is, by the type of file in a mode."""
_NO_KIND: Final = 0xFF
_LOCK_ERRORS: Final = {LockStatus.SUCCESS: 0, LockStatus.BLOCKED: errno.EAGAIN, LockStatus.ERROR: errno.ENOLCK,
                       LockStatus.GRACE: errno.EAGAIN}


@dataclass(slots=True, eq=False)
class P9Fid:
    """A file that the guest holds at the server.

    Attributes:
        number: the fid.
        qid: what the server calls the file; it shall not become another while the fid lives.
        above: paths of the directories that lead to it, outermost first.
        chunk: bytes that one read or write moves, once it is open.

    """

    number: int
    qid: Qid
    above: tuple[int, ...] = ()
    chunk: int = 0

    @property
    def is_dir(self) -> bool:
        """Whether it is a directory."""
        return bool(self.qid.type & QidType.DIR)


@dataclass(frozen=True, slots=True)
class Attributes:
    """What stat(2) tells. Times are in nanoseconds."""

    mode: int
    uid: int
    gid: int
    nlink: int
    rdev: int
    size: int
    blocks: int
    atime: int
    mtime: int
    ctime: int


@dataclass(frozen=True, slots=True)
class Statfs:
    """What statfs(2) tells, in blocks of `bsize` bytes."""

    bsize: int
    blocks: int
    bfree: int
    bavail: int
    namelen: int


@dataclass(frozen=True, slots=True)
class Lock:
    """A range of a file that is locked, or to be locked; a `length` of 0 reaches to its end."""

    type: LockType
    start: int = 0
    length: int = 0
    owner: int = 1
    client: bytes = b"chamber"


class P9Driver(P9Channel):
    """Mounts what the device serves, and uses it.

    What a file holds and which files there are is the host's word. That replies belong to their requests, fit into
    their buffers, name files and not paths, and agree with each other is checked.

    Attributes:
        root: fid of the root directory.
        msize: bytes of a message at most.

    """

    def __init__(self, machine: GuestMachine, transport: Transport) -> None:
        super().__init__(machine, transport)
        self.msize = _MSIZE
        self._fids: dict[int, P9Fid] = {}
        self._next_fid = 0

    # The life of the driver.

    def initialise(self) -> None:
        """Make the tables."""
        super().initialise()
        self._fids.clear()
        self.msize = _MSIZE
        self._page = self.table(_MSIZE - CONTENT_OVERHEAD, "page of a file")
        self._name = self.table(NAME_MAX + 1, "name of a file")
        self._link = self.table(_PATH_MAX, "target of a link")
        self._kinds = self.table(16, "types of files")
        self._kinds.write(bytes(_KINDS.get(i, _NO_KIND) for i in range(16)))
        self._lock_errors = self.table(len(_LOCK_ERRORS), "errors of locks")
        self._lock_errors.write(bytes(_LOCK_ERRORS[status] for status in LockStatus))

    def started(self) -> None:
        """Agree on the protocol, and attach to the root."""
        with self.call(_M.TVERSION, 64, msize=_MSIZE, version=VERSION) as reply:
            length = reply.length("version").at_most(64, "a version is short", SPEC)
            version = reply.content("version", length)
            if version != VERSION:
                raise Refused("the server does not speak 9P2000.L")
            self.msize = reply.number("msize").between(
                _LEAST_MSIZE, _MSIZE, "msize is no larger than the client's, and has room for a message", SPEC)
        number = self._new_fid()
        with self.call(_M.TATTACH, fid=number, afid=NO_FID, uname=b"root", aname=b"", n_uname=0) as reply:
            qid = reply.qid()
            self.checks.require(qid.type == QidType.DIR, "the root is a directory", SPEC)
        self.root = self._know(P9Fid(number, qid))

    # Fids.

    def _new_fid(self) -> int:
        self._next_fid = (self._next_fid + 1) % NO_FID
        while self._next_fid in self._fids:
            self._next_fid += 1
        return self._next_fid

    def _know(self, fid: P9Fid) -> P9Fid:
        """Take a new fid in, if it does not contradict those that there are.

        Raises:
            DeviceViolation: it does; the fid is lost at the server, which can't be relied on anyway.

        """
        qid = fid.qid
        # Directories have no second names, so one that stands above itself is a lie, and a loop to who follows it.
        self.checks.require(not fid.is_dir or qid.path not in fid.above, "no directory lies within itself", SPEC)
        self.checks.require(all(other.qid.type == qid.type for other in self._fids.values()
                                if other.qid.path == qid.path), "a qid's path is one file's", SPEC)
        self._fids[fid.number] = fid
        return fid

    def _same(self, fid: P9Fid, qid: Qid) -> None:
        self.checks.require((qid.type, qid.path) == (fid.qid.type, fid.qid.path),
                            "a fid stays the file that it was", SPEC, f"{fid.qid} became {qid}")

    def walk(self, start: P9Fid, *names: bytes) -> P9Fid:
        """Return a new fid for what is reached by `names`, or for the same file without any.

        Raises:
            P9Error: there is no such file.
            DeviceViolation: the device broke a rule.

        """
        fid = self._walk(start, names[:MAX_NAMES])
        for at in range(MAX_NAMES, len(names), MAX_NAMES):
            further = names[at:at + MAX_NAMES]
            try:
                longer = self._walk(fid, further)
            finally:
                self.clunk(fid)
            fid = longer
        return fid

    def _walk(self, start: P9Fid, names: tuple[bytes, ...]) -> P9Fid:
        number = self._new_fid()
        found = self.machine.heap.alloc(QID.size * len(names), "qids of a walk")
        try:
            with self.call(_M.TWALK, QID.size * len(names), fid=start.number, newfid=number, names=names) as reply:
                qids = reply.qids(found)
        finally:
            self.machine.heap.free(found)
        self.checks.require(all(qid.type == QidType.DIR for qid in qids[:-1]), "a walk leads through directories", SPEC)
        if len(qids) < len(names):
            self.checks.require(bool(qids), "a walk that does not begin is an error", SPEC)
            raise P9Error(errno.ENOENT, "walk")
        if not names:
            return self._know(P9Fid(number, start.qid, start.above))
        return self._know(P9Fid(number, qids[-1],
                                (*start.above, start.qid.path, *(qid.path for qid in qids[:len(names) - 1]))))

    def clunk(self, fid: P9Fid) -> None:
        """Give a fid back; it is gone even if the server says no."""
        self._fids.pop(fid.number, None)
        self.ask(_M.TCLUNK, fid=fid.number)

    @contextmanager
    def at(self, *names: bytes) -> Iterator[P9Fid]:
        """Walk from the root, and clunk the fid in the end."""
        fid = self.walk(self.root, *names)
        try:
            yield fid
        finally:
            if self._fids.get(fid.number) is fid:
                self.clunk(fid)

    # Files.

    def open(self, fid: P9Fid, flags: int = OpenFlag.RDONLY) -> None:
        """Open a file or a directory for reading or writing."""
        with self.call(_M.TLOPEN, fid=fid.number, flags=flags) as reply:
            self._same(fid, reply.qid())
            fid.chunk = self._chunk(reply)

    def create(self, fid: P9Fid, name: bytes, flags: int, mode: int) -> None:
        """Make a file in a directory and open it; the fid becomes the file's."""
        with self.call(_M.TLCREATE, fid=fid.number, name=name, flags=flags, mode=mode, gid=NO_UID) as reply:
            qid = reply.qid()
            self.checks.require(qid.type == QidType.FILE, "what was created is a file", SPEC)
            chunk = self._chunk(reply)
        self._fids.pop(fid.number)
        fid.above, fid.qid, fid.chunk = (*fid.above, fid.qid.path), qid, chunk
        self._know(fid)

    def _chunk(self, reply: Reply) -> int:
        # Where the device names no unit, a message is the unit.
        most = self.checks.number(self.msize).minus(CONTENT_OVERHEAD, _MSIZE, "a message has room for data", SPEC)
        unit = reply.number("iounit").at_most(most, "what is moved at once fits a message", SPEC)
        # Byte by byte is legal and useless: a file would take more requests than the guest has time for.
        self.checks.require(not unit or unit >= _LEAST_UNIT, "what is moved at once is worth a message", SPEC,
                            str(unit))
        return unit or most

    def read(self, fid: P9Fid, offset: int, count: int) -> bytes:
        """Read up to `count` bytes, several requests at a time; fewer than asked for at the end of the file."""
        data = bytearray()
        while len(data) < count:
            part, more = self._read_some(fid, offset + len(data), count - len(data))
            data += part
            if not more:
                break
        return bytes(data)

    def _read_some(self, fid: P9Fid, offset: int, count: int) -> tuple[bytes, bool]:
        """Read the next chunks; return the data, and whether there may be more of it."""
        sizes = [min(fid.chunk, count - at) for at in range(0, min(count, _WINDOW * fid.chunk), fid.chunk)]
        data = bytearray()
        with ExitStack() as stack:
            under_way = []
            for i, size in enumerate(sizes):
                pending = self.begin(_M.TREAD, size, {"fid": fid.number, "offset": offset + i * fid.chunk,
                                                       "count": size})
                stack.callback(self.end, pending)
                under_way.append((pending, size))
            self.kick(self.queues[REQUEST_QUEUE])
            more = True
            # All are waited for, also behind a short one: their buffers are the device's until it answers.
            for pending, size in under_way:
                reply = self.finish(pending)
                got = reply.length("data").at_most(size, "a server returns no more than was asked for", SPEC)
                self._page.write(reply.content("data", got))
                if more:
                    data += self._page.read(0, got)
                more = more and got == size
        return bytes(data), more

    def write(self, fid: P9Fid, offset: int, data: bytes) -> int:
        """Store bytes; fewer may be taken than given, as in a system call.

        Returns how many were.
        """
        done = 0
        while done < len(data):
            part = data[done:done + fid.chunk]
            with self.call(_M.TWRITE, fid=fid.number, offset=offset + done, data=part) as reply:
                taken = reply.number("count").at_most(len(part), "a server takes no more than it was given", SPEC)
            done += taken
            if taken < len(part):
                break
        return done

    def readdir(self, fid: P9Fid) -> list[Dirent]:
        """List a directory that is open, without ``.`` and ``..``.

        Raises:
            DeviceViolation: an entry is none, names come twice, or the list leads back to where it has been.

        """
        entries: dict[bytes, Dirent] = {}
        places = {0}
        offset = 0
        while True:
            with self.call(_M.TREADDIR, fid.chunk, fid=fid.number, offset=offset, count=fid.chunk) as reply:
                before = offset
                for entry, _ in reply.entries(fid.chunk):
                    self.machine.scheduler.step()
                    self.checks.require(entry.offset not in places, "a list goes on and not back", SPEC,
                                        str(entry.offset))
                    places.add(entry.offset)
                    offset = entry.offset
                    self._list(fid, entry, entries)
            if offset == before:
                return list(entries.values())

    def _list(self, fid: P9Fid, entry: Dirent, entries: dict[bytes, Dirent]) -> None:
        self._name.write(entry.name + b"\0")
        name = self._name.read(0, len(entry.name))
        self._kinds.read(entry.type, 1)
        if name in {b".", b".."}:
            self.checks.require(entry.qid.type in {QidType.DIR, QidType.FILE} and entry.type in {0, 4},
                                "dot and dot-dot are directories", SPEC)
            return
        self.checks.require(name not in entries, "a name is in a directory once", SPEC, repr(name))
        self.checks.require(entry.qid.path not in (*fid.above, fid.qid.path) or entry.type not in {0, 4},
                            "no directory lies within itself", SPEC, repr(name))
        self.checks.require(len(entries) < _ENTRIES, "a directory has no more entries than the guest takes", SPEC)
        entries[name] = entry

    def fsync(self, fid: P9Fid, *, data_only: bool = False) -> None:
        """Have what was written reach the medium."""
        self.ask(_M.TFSYNC, fid=fid.number, datasync=int(data_only))

    # Attributes.

    def getattr(self, fid: P9Fid) -> Attributes:
        """Return what the server tells about a file."""
        with self.call(_M.TGETATTR, fid=fid.number, request_mask=GetattrMask.BASIC) as reply:
            valid = reply.number("valid").masked((1 << 64) - 1)
            self.checks.require(valid & GetattrMask.BASIC == GetattrMask.BASIC, "what was asked for is answered", SPEC,
                                f"{valid:#x}")
            self._same(fid, reply.qid())
            mode = reply.number("mode").masked(0xFFFFFFFF)
            kind = self._kinds.get(self.checks.number(mode >> 12).index(16, "a mode has a type and bits", SPEC), 1)
            self.checks.require(kind == fid.qid.type, "mode and qid of a file agree", SPEC, f"{mode:#o}")
            size = reply.number("size").at_most(_MAX_SIZE, "a size can be an offset", SPEC)
            block = reply.number("blksize").one_of(_BLOCK_SIZES, "a block is a power of two from 512 bytes on", SPEC)
            blocks = reply.number("blocks").at_most(_MAX_SIZE // 512, "a file's blocks can be counted", SPEC)
            self._blocks = -(-size // block)
            times = [self._time(reply, name) for name in ("atime", "mtime", "ctime")]
            uid, gid = (reply.number(name).opaque("any number is somebody's") for name in ("uid", "gid"))
            return Attributes(
                mode, uid, gid, reply.number("nlink").between(0, 0xFFFFFFFF, "links can be counted", SPEC),
                reply.number("rdev").opaque("it means something to whoever opens the device file"),
                size, blocks, *times)

    def _time(self, reply: Reply, name: str) -> int:
        seconds = reply.number(f"{name}_sec").at_most(_MAX_SIZE // 10**9, "a time can be told", SPEC)
        return seconds * 10**9 + reply.number(f"{name}_nsec").at_most(10**9 - 1, "a second ends", SPEC)

    def setattr(self, fid: P9Fid, *, mode: int | None = None, size: int | None = None, uid: int | None = None,
                gid: int | None = None, atime: int | None = None, mtime: int | None = None) -> None:
        """Change what is given; times are in nanoseconds."""
        given = {SetattrMask.MODE: mode, SetattrMask.SIZE: size, SetattrMask.UID: uid, SetattrMask.GID: gid,
                 SetattrMask.ATIME | SetattrMask.ATIME_SET: atime, SetattrMask.MTIME | SetattrMask.MTIME_SET: mtime}
        valid = sum(mask for mask, value in given.items() if value is not None)
        (a_sec, a_nsec), (m_sec, m_nsec) = (divmod(time or 0, 10**9) for time in (atime, mtime))
        self.ask(_M.TSETATTR, fid=fid.number, valid=valid, mode=mode or 0, uid=uid or 0, gid=gid or 0, size=size or 0,
                  atime_sec=a_sec, atime_nsec=a_nsec, mtime_sec=m_sec, mtime_nsec=m_nsec)

    def statfs(self) -> Statfs:
        """Return how full the file system is."""
        with self.call(_M.TSTATFS, fid=self.root.number) as reply:
            bsize = reply.number("bsize").one_of(_BLOCK_SIZES, "a block is a power of two from 512 bytes on", SPEC)
            self._blocks_per_page = _PAGE // bsize
            blocks = reply.number("blocks").at_most(_MAX_SIZE // bsize, "a file system's size can be told", SPEC)
            free = reply.number("bfree").at_most(blocks, "no more is free than there is", SPEC)
            available = reply.number("bavail").at_most(free, "no more is available than is free", SPEC)
            files = reply.number("files").masked((1 << 64) - 1)
            reply.number("ffree").at_most(files, "no more is free than there is", SPEC)
            return Statfs(bsize, blocks, free, available,
                          reply.number("namelen").between(1, _PATH_MAX, "files have names", SPEC))

    def xattr(self, fid: P9Fid, name: bytes = b"") -> bytes:
        """Return an extended attribute, or without a name the list of all, each ended by a NUL.

        The size is asked for first, then what fits it is read, as getxattr(2) is used.
        """
        size = self._xattr_walk(fid, name, None)
        buffer = self.machine.heap.alloc(size, "extended attribute")
        try:
            size = self._xattr_walk(fid, name, buffer)
            return buffer.read(0, size)
        finally:
            self.machine.heap.free(buffer)

    def _xattr_walk(self, fid: P9Fid, name: bytes, into: Object | None) -> int:
        """Ask for the size of an extended attribute, and read it into a buffer if there is one."""
        number = self._new_fid()
        with self.call(_M.TXATTRWALK, fid=fid.number, newfid=number, name=name) as reply:
            size = reply.number("size").at_most(_XATTR_MAX, "an extended attribute is 64 KiB at most", SPEC)
        chunk = self.msize - CONTENT_OVERHEAD
        holder = P9Fid(number, fid.qid, fid.above, chunk)
        self._fids[number] = holder
        try:
            if into is not None:
                size = self.checks.number(size).at_most(into.size, "an attribute is no longer than it was", SPEC)
                data = self.read(holder, 0, size)
                self.checks.require(len(data) == size, "an attribute is as long as it was said to be", SPEC)
                into.write(data)
        finally:
            self.clunk(holder)
        return size

    def set_xattr(self, fid: P9Fid, name: bytes, value: bytes, flags: int = 0) -> None:
        """Set an extended attribute; an empty value removes it, as the protocol has no other way."""
        holder = self.walk(fid)
        try:
            self.ask(_M.TXATTRCREATE, fid=holder.number, name=name, attr_size=len(value), flags=flags)
            holder.chunk = self.msize - CONTENT_OVERHEAD
            if self.write(holder, 0, value) != len(value):
                raise P9Error(errno.EIO, "write of an extended attribute")
        finally:
            self.clunk(holder)  # it is set now: the error, if there is one, comes here

    # Locks.

    def lock(self, fid: P9Fid, lock: Lock) -> None:
        """Take or give back a lock; does not wait.

        Raises:
            P9Error: EAGAIN, somebody else has it.

        """
        with self.call(_M.TLOCK, fid=fid.number, type=lock.type, flags=0, start=lock.start, length=lock.length,
                        proc_id=lock.owner, client_id=lock.client) as reply:
            status = reply.number("status").index(len(_LOCK_ERRORS), "a lock is had, blocked or refused", SPEC)
            code = self._lock_errors.get(status, 1)
        if code:
            raise P9Error(code, "lock")

    def getlock(self, fid: P9Fid, lock: Lock) -> Lock | None:
        """Return a lock that stands against this one, if there is one."""
        with self.call(_M.TGETLOCK, _CLIENT_ID, fid=fid.number, type=lock.type, start=lock.start, length=lock.length,
                        proc_id=lock.owner, client_id=lock.client) as reply:
            kind = reply.number("type").one_of(tuple(LockType), "a lock is for reading, for writing, or none", SPEC)
            if kind == LockType.UNLCK:
                return None
            start = reply.number("start").at_most(_MAX_SIZE, "a lock starts within a file", SPEC)
            length = reply.number("length").at_most(_MAX_SIZE - start, "a lock ends within a file", SPEC)
            self.checks.require((not length or start + length > lock.start)
                                and (not lock.length or lock.start + lock.length > start),
                                "a lock that stands against another overlaps it", SPEC)
            name = reply.content("client_id", reply.length("client_id").at_most(_CLIENT_ID, "an id is short", SPEC))
            owner = reply.number("proc_id").opaque("any number is somebody's")
        return Lock(LockType(kind) if kind in tuple(LockType) else LockType.WRLCK, start, length, owner, name)

    # Names.

    def mkdir(self, fid: P9Fid, name: bytes, mode: int) -> None:
        """Make a directory."""
        self._make(_M.TMKDIR, QidType.DIR, fid, dfid=fid.number, name=name, mode=mode, gid=NO_UID)

    def symlink(self, fid: P9Fid, name: bytes, target: bytes) -> None:
        """Make a symbolic link."""
        self._make(_M.TSYMLINK, QidType.SYMLINK, fid, dfid=fid.number, name=name, target=target, gid=NO_UID)

    def mknod(self, fid: P9Fid, name: bytes, mode: int) -> None:
        """Make a FIFO, a socket or an empty file."""
        self._make(_M.TMKNOD, QidType.FILE, fid, dfid=fid.number, name=name, mode=mode, major=0, minor=0, gid=NO_UID)

    def _make(self, kind: MessageType, expected: QidType, fid: P9Fid, /, **values: Value) -> None:
        with self.call(kind, **values) as reply:
            qid = reply.qid()
        self.checks.require(qid.type == expected, "what was made is of the type asked for", SPEC, str(qid))
        self.checks.require(qid.path not in (*fid.above, fid.qid.path), "what was made is new", SPEC, str(qid))

    def readlink(self, fid: P9Fid) -> bytes:
        """Return where a symbolic link leads; following it is the guest's own affair, in the guest's own tree."""
        with self.call(_M.TREADLINK, _PATH_MAX, fid=fid.number) as reply:
            length = reply.length("target").between(1, _PATH_MAX - 1, "a target is 1 to 4095 bytes", SPEC)
            self._link.write(reply.content("target", length))
        target = self._link.read(0, length)
        self.checks.require(b"\0" not in target, "a target has no NUL", SPEC)
        return target

    def link(self, directory: P9Fid, fid: P9Fid, name: bytes) -> None:
        """Give a file a further name."""
        self.ask(_M.TLINK, dfid=directory.number, fid=fid.number, name=name)

    def rename(self, fid: P9Fid, directory: P9Fid, name: bytes) -> None:
        """Move a file that is held."""
        self.ask(_M.TRENAME, fid=fid.number, dfid=directory.number, name=name)

    def rename_at(self, old: P9Fid, old_name: bytes, new: P9Fid, new_name: bytes) -> None:
        """Move a file by its names."""
        self.ask(_M.TRENAMEAT, olddirfid=old.number, oldname=old_name, newdirfid=new.number, newname=new_name)

    def unlink(self, directory: P9Fid, name: bytes, *, is_dir: bool = False) -> None:
        """Remove a name, or an empty directory."""
        self.ask(_M.TUNLINKAT, dirfid=directory.number, name=name, flags=UNLINK_DIR if is_dir else 0)

    def delete(self, fid: P9Fid) -> None:
        """Remove the file that a fid holds; the fid is gone even if the server says no."""
        self._fids.pop(fid.number, None)
        self.ask(_M.TREMOVE, fid=fid.number)
