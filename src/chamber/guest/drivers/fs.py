"""File system driver (virtio 1.3, 5.11): a FUSE client that holds its server to what it asked.

What files hold is the server's word. That a reply belongs to its request, has the length that it has, names what can be
named, and does not turn a file into something else while the guest holds it, is checked.
"""

from __future__ import annotations

import errno
import stat
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from chamber.guest.driver import REQUEST_SECONDS, TRANSPORT_FEATURES, Refused, VirtioDriver
from chamber.wire import fuse
from chamber.wire.errors import WireError
from chamber.wire.fs import CONFIG, HIPRIO_QUEUE, REQUEST_QUEUE, TAG_SIZE
from chamber.wire.fuse import Attributes, Entry, InHeader, InitFlag, Opcode, SetattrValid
from chamber.wire.virtio import DeviceType

if TYPE_CHECKING:
    from chamber.guest.machine import GuestMachine
    from chamber.guest.virtqueue import Request
    from chamber.platform.transport import Transport

__all__ = ("FsDriver", "FsError", "FsNode", "Statfs")

_SPEC: Final = "5.11.6"
_CHUNK: Final = 16 << 10
"""Bytes that one READ or WRITE moves; what the bounce pool of a small guest bears."""
_LEAST_WRITE: Final = 4096
_NAME_MAX: Final = 255
_PATH_MAX: Final = 4096
_XATTR_MAX: Final = 4096
_ENTRIES: Final = 1 << 14
_FORGETS: Final = 4
"""Files that are given back by one message."""
_ERRNO_MAX: Final = 4095
_MAX_SIZE: Final = (1 << 63) - 1
_KINDS: Final = (stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK, stat.S_IFIFO, stat.S_IFSOCK, stat.S_IFCHR, stat.S_IFBLK)


def _name(text: str) -> bytes:
    """A name as `FsDriver.listdir` gave it, whatever bytes it is made of."""
    return text.encode(errors="surrogateescape") + b"\0"


class FsError(Refused):
    """The server refuses, with an error number.

    Attributes:
        number: errno.

    """

    def __init__(self, what: str, number: int) -> None:
        super().__init__(f"{what}: {errno.errorcode.get(number, number)}")
        self.number = number


@dataclass(slots=True, eq=False)
class FsNode:
    """A file that the guest holds a number of.

    Attributes:
        nodeid: what the server calls it.
        generation: which file of that number.
        kind: type of file; it does not change while the guest holds it.
        lookups: how often the number was given.

    """

    nodeid: int
    generation: int
    kind: int
    lookups: int = 1


@dataclass(frozen=True, slots=True)
class Statfs:
    """How full a file system is."""

    blocks: int
    bfree: int
    bsize: int
    namelen: int


class FsDriver(VirtioDriver):
    """Uses the files of a shared directory, by paths below its root.

    Attributes:
        tag: what the directory is called.
        max_write: bytes that the server takes at once.

    """

    type = DeviceType.FS
    known = allowed = TRANSPORT_FEATURES
    config_layout = CONFIG

    def __init__(self, machine: GuestMachine, transport: Transport) -> None:
        super().__init__(machine, transport)
        self.nodes: dict[int, FsNode] = {}
        self._unique = 0
        self._forgets: list[Request] = []
        self.max_write = _CHUNK

    def queue_indexes(self) -> list[int]:
        """Return the high priority queue and the first request queue: the guest has one processor."""
        self.read_config("num_request_queues").between(1, 0xFFFF, "there is a request queue", "5.11.4")
        return [HIPRIO_QUEUE, REQUEST_QUEUE]

    def initialise(self) -> None:
        """Read the tag."""
        raw = self.read_config_bytes("tag").opaque("a name, which is only shown")
        self.tag = raw.split(b"\0")[0].decode(errors="replace")
        self._name = self.machine.heap.alloc(TAG_SIZE, "tag")
        self._name.write(raw[:TAG_SIZE])

    def free_buffers(self) -> None:
        """Free what was lent for requests that nobody answers."""
        for request in self._forgets:
            for memory in (request.record, *(buffer.memory for buffer in request.readable)):
                if memory.live:
                    self.machine.heap.free(memory)
        self._forgets = []
        name = getattr(self, "_name", None)
        if name is not None and name.live:
            self.machine.heap.free(name)

    # Requests.

    def _ask(self, operation: Opcode, nodeid: int, body: bytes = b"", *, room: int = 0, exact: bool = True) -> bytes:
        """Send a request; return the body of the reply, `room` bytes, or at most so many.

        Raises:
            FsError: the server refuses.
            DeviceViolation: the reply is none to this request.

        """
        heap = self.machine.heap
        # Never the same twice, so that no reply to an earlier request can pass for this one's.
        self._unique += 2
        unique = self._unique
        request = heap.alloc(fuse.IN_HEADER.size + len(body), "FUSE request")
        request.write(InHeader(request.size, operation, unique, nodeid).build() + body)
        reply = heap.alloc(fuse.OUT_HEADER.size + room, "FUSE reply")
        try:
            written = self.transact(self.queue(REQUEST_QUEUE), [request], [reply])
            self.checks.number(written).between(fuse.OUT_HEADER.size, reply.size, "a reply has a head", _SPEC)
            length, error, echoed = fuse.OUT_HEADER.unpack(reply.read(0, fuse.OUT_HEADER.size))
            self.checks.number(echoed).equals(unique, "a reply is to the request that was sent", _SPEC)
            length = self.checks.number(length).equals(written, "a reply is as long as it says", _SPEC)
            number = -self.checks.number(error).between(-_ERRNO_MAX, 0, "an error is a negative errno", _SPEC)
            if number:
                self.checks.number(length).equals(fuse.OUT_HEADER.size, "a refusal has no body", _SPEC)
                raise FsError(operation.name, number)
            size = self.checks.number(length).minus(fuse.OUT_HEADER.size, reply.size, "a reply has a head", _SPEC)
            if exact:
                self.checks.number(size).equals(room, "a reply has its operation's length", _SPEC)
                size = room
            return reply.read(fuse.OUT_HEADER.size, size)
        finally:
            self.release(request, reply)

    def _tell(self, body: bytes, operation: Opcode, nodeid: int) -> None:
        """Queue what is never answered."""
        queue = self.queue(HIPRIO_QUEUE)
        if not queue.free:
            self.kick(queue)
            self.machine.wait(lambda: queue.free > 0 or queue.broken is not None, REQUEST_SECONDS)
        self._unique += 2
        request = self.machine.heap.alloc(fuse.IN_HEADER.size + len(body), "FUSE notice")
        request.write(InHeader(request.size, operation, self._unique, nodeid).build() + body)
        self._forgets.append(self.lend(queue, [request], []))

    def used(self, queue: object) -> None:
        """Take requests back; notices are freed here."""
        if queue is not self.queues.get(HIPRIO_QUEUE):
            super().used(self.queues[REQUEST_QUEUE])
            return
        while (request := self.queues[HIPRIO_QUEUE].get()) is not None:
            if request in self._forgets:
                self._forgets.remove(request)
            for memory in (request.record, *(buffer.memory for buffer in request.readable)):
                self.machine.heap.free(memory)

    # The session.

    def mount(self) -> None:
        """Agree on a version and on sizes."""
        flags = InitFlag.BIG_WRITES | InitFlag.ASYNC_READ
        body = self._ask(Opcode.INIT, 0, fuse.INIT_IN.pack(fuse.MAJOR, fuse.MINOR, 0, flags), room=fuse.INIT_OUT.size)
        major, minor, _, agreed, _, _, max_write, _, _, _, _ = fuse.INIT_OUT.unpack(body)
        self.checks.number(major).equals(fuse.MAJOR, "both speak the same version", "5.11.6")
        self.checks.number(minor).between(23, 1000, "the server is not older than 7.23", "5.11.6")
        self.checks.number(agreed).masked(flags)
        limit = self.checks.number(max_write).between(_LEAST_WRITE, 0xFFFFFFFF, "a page at least can be written",
                                                      "5.11.6")
        self.max_write = min(limit, _CHUNK)
        if not self.max_write:
            raise Refused("nothing can be written")
        self.nodes = {fuse.ROOT_ID: FsNode(fuse.ROOT_ID, 0, stat.S_IFDIR)}

    def unmount(self) -> None:
        """Forget all files, and say so."""
        held = [node for node in self.nodes.values() if node.nodeid != fuse.ROOT_ID]
        for start in range(0, len(held), _FORGETS):
            part = held[start:start + _FORGETS]
            self._tell(fuse.BATCH_FORGET.pack(len(part), 0)
                       + b"".join(fuse.FORGET_ONE.pack(node.nodeid, node.lookups) for node in part),
                       Opcode.BATCH_FORGET, 0)
        self.kick(self.queue(HIPRIO_QUEUE))
        self.nodes = {}
        self._ask(Opcode.DESTROY, 0)

    # Names. Like Linux, the guest looks up what it removes or moves: virtiofsd knows no other names (EIO).

    def _accept(self, entry: Entry) -> FsNode:
        """Take a file that the server names."""
        nodeid = self.checks.number(entry.nodeid).between(2, (1 << 64) - 1, "a file has a number of its own", _SPEC)
        kind = self._kind(entry.attributes)
        node = self.nodes.get(nodeid)
        if node is None:
            node = self.nodes[nodeid] = FsNode(nodeid, entry.generation, kind)
            return node
        # The guest keeps what it knows of a number: another file under it would be taken for the first.
        self.checks.number(entry.generation).equals(node.generation, "a number is one file while it is held", _SPEC)
        self.checks.number(kind).equals(node.kind, "a file stays of its kind", _SPEC)
        node.lookups += 1
        return node

    def _kind(self, attributes: Attributes) -> int:
        self.checks.number(attributes.size).at_most(_MAX_SIZE, "a size is no negative number", _SPEC)
        return self.checks.number(stat.S_IFMT(attributes.mode)).one_of(_KINDS, "a mode has a type of file", _SPEC)

    def _entry(self, operation: Opcode, nodeid: int, body: bytes, more: int = 0) -> tuple[FsNode, bytes]:
        reply = self._ask(operation, nodeid, body, room=fuse.ENTRY_SIZE + more)
        return self._accept(Entry.parse(reply)), reply[fuse.ENTRY_SIZE:]

    def lookup(self, path: str) -> FsNode:
        """Find a file; links are not followed.

        Raises:
            FsError: there is none.
            Refused: nothing is mounted.

        """
        if not self.nodes:
            raise Refused("nothing is mounted")
        node = self.nodes[fuse.ROOT_ID]
        for name in filter(None, path.split("/")):
            node, _ = self._entry(Opcode.LOOKUP, node.nodeid, _name(name))
        return node

    def _parent(self, path: str) -> tuple[FsNode, bytes]:
        folder, _, name = path.rpartition("/")
        return self.lookup(folder), _name(name)

    def mkdir(self, path: str, mode: int = 0o755) -> None:
        """Make a directory."""
        parent, name = self._parent(path)
        node, _ = self._entry(Opcode.MKDIR, parent.nodeid, fuse.MKDIR.pack(mode, 0) + name)
        self.checks.number(node.kind).equals(stat.S_IFDIR, "what was made is what was asked for", _SPEC)

    def symlink(self, path: str, target: str) -> None:
        """Make a symbolic link."""
        parent, name = self._parent(path)
        node, _ = self._entry(Opcode.SYMLINK, parent.nodeid, name + target.encode() + b"\0")
        self.checks.number(node.kind).equals(stat.S_IFLNK, "what was made is what was asked for", _SPEC)

    def link(self, path: str, new: str) -> None:
        """Give a file another name."""
        node = self.lookup(path)
        parent, name = self._parent(new)
        same, _ = self._entry(Opcode.LINK, parent.nodeid, fuse.LINK.pack(node.nodeid) + name)
        self.checks.number(same.nodeid).equals(node.nodeid, "another name is not another file", _SPEC)

    def rename(self, path: str, new: str) -> None:
        """Move a file."""
        self.lookup(path)
        source, old = self._parent(path)
        target, name = self._parent(new)
        self._ask(Opcode.RENAME, source.nodeid, fuse.RENAME.pack(target.nodeid) + old + name)

    def unlink(self, path: str) -> None:
        """Remove a file's name."""
        self.lookup(path)
        parent, name = self._parent(path)
        self._ask(Opcode.UNLINK, parent.nodeid, name)

    def rmdir(self, path: str) -> None:
        """Remove an empty directory."""
        self.lookup(path)
        parent, name = self._parent(path)
        self._ask(Opcode.RMDIR, parent.nodeid, name)

    def readlink(self, path: str) -> str:
        """Where a link leads; the text is the server's."""
        target = self._ask(Opcode.READLINK, self.lookup(path).nodeid, room=_PATH_MAX, exact=False)
        self.checks.require(0 < len(target) < _PATH_MAX and b"\0" not in target, "a target is a path", _SPEC)
        return target.decode(errors="surrogateescape")

    def listdir(self, path: str) -> list[str]:
        """Names in a directory, without dot and dot-dot."""
        node = self.lookup(path)
        fh = self._open(Opcode.OPENDIR, node)
        try:
            return self._entries(node, fh)
        finally:
            self._ask(Opcode.RELEASEDIR, node.nodeid, fuse.RELEASE.pack(fh, 0, 0, 0))

    def _entries(self, node: FsNode, fh: int) -> list[str]:
        names: list[str] = []
        seen: set[int] = set()
        offset = 0
        name_buffer = self.machine.heap.alloc(_NAME_MAX, "name")
        try:
            while True:
                self.machine.scheduler.step()
                data = self._ask(Opcode.READDIR, node.nodeid, fuse.READ.pack(fh, offset, _CHUNK // 4, 0, 0, 0, 0),
                                 room=_CHUNK // 4, exact=False)
                if not data:
                    return names
                try:
                    found = list(fuse.parse_directory(data, plus=False))
                except WireError as error:
                    self.checks.require(False, error.rule, _SPEC, error.detail)
                    raise IndexError(str(error)) from None
                for entry in found:
                    self.checks.require(len(entry.name) <= _NAME_MAX and not {0, 47} & set(entry.name),
                                        "a name has 255 bytes at most, no slash and no NUL", _SPEC)
                    name_buffer.write(entry.name)
                    # An offset that was there before leads round in circles, without end.
                    self.checks.require(entry.offset not in seen, "a directory ends", _SPEC, str(entry.offset))
                    seen.add(entry.offset)
                    offset = entry.offset
                    if entry.name not in {b".", b".."}:
                        names.append(entry.name.decode(errors="surrogateescape"))
                self.checks.require(len(names) <= _ENTRIES, "a directory ends", _SPEC)
        finally:
            self.machine.heap.free(name_buffer)

    # Attributes.

    def getattr(self, path: str) -> Attributes:
        """Attributes of a file."""
        return self._attributes(self.lookup(path), Opcode.GETATTR, fuse.GETATTR.pack(0, 0, 0))

    def _attributes(self, node: FsNode, operation: Opcode, body: bytes) -> Attributes:
        reply = self._ask(operation, node.nodeid, body, room=fuse.ATTR_OUT.size + fuse.ATTR.size)
        attributes = Attributes.parse(reply, fuse.ATTR_OUT.size)
        self.checks.number(self._kind(attributes)).equals(node.kind, "a file stays of its kind", _SPEC)
        return attributes

    def setattr(self, path: str, *, mode: int | None = None, size: int | None = None) -> Attributes:
        """Change permissions or the size."""
        valid = (SetattrValid.MODE if mode is not None else 0) | (SetattrValid.SIZE if size is not None else 0)
        body = fuse.SETATTR.pack(valid, 0, 0, size or 0, 0, 0, 0, 0, 0, 0, 0, mode or 0, 0, 0, 0, 0)
        attributes = self._attributes(self.lookup(path), Opcode.SETATTR, body)
        if size is not None:
            self.checks.number(attributes.size).equals(size, "what was set is what was asked for", _SPEC)
        return attributes

    def statfs(self) -> Statfs:
        """How full the file system is."""
        reply = self._ask(Opcode.STATFS, fuse.ROOT_ID, room=fuse.STATFS.size)
        blocks, bfree, _, _, _, bsize, namelen, _, _ = fuse.STATFS.unpack(reply)
        bsize = self.checks.number(bsize).between(512, 1 << 24, "a block has a size", _SPEC)
        self.checks.number(bfree).at_most(blocks, "no more blocks are free than there are", _SPEC)
        _ = blocks * bsize // bsize
        return Statfs(blocks, bfree, bsize, self.checks.number(namelen).between(1, 4096, "names have a length", _SPEC))

    # Content.

    def _open(self, operation: Opcode, node: FsNode) -> int:
        reply = self._ask(operation, node.nodeid, fuse.OPEN_IN.pack(0, 0), room=fuse.OPEN_OUT.size)
        return fuse.OpenOut.parse(reply).fh

    def read_file(self, path: str) -> bytes:
        """Read all of a file."""
        node = self.lookup(path)
        size = self._attributes(node, Opcode.GETATTR, fuse.GETATTR.pack(0, 0, 0)).size
        fh = self._open(Opcode.OPEN, node)
        data = bytearray()
        try:
            while len(data) < size:
                self.machine.scheduler.step()
                wanted = min(size - len(data), _CHUNK)
                part = self._ask(Opcode.READ, node.nodeid, fuse.READ.pack(fh, len(data), wanted, 0, 0, 0, 0),
                                 room=wanted, exact=False)
                data += part
                if len(part) < wanted:
                    # The host may have cut the file in the meantime; then it says so.
                    size = self._attributes(node, Opcode.GETATTR, fuse.GETATTR.pack(0, 0, 0)).size
                    self.checks.require(len(data) >= size, "a read is short at the end of a file alone", _SPEC)
                    break
        finally:
            self._ask(Opcode.RELEASE, node.nodeid, fuse.RELEASE.pack(fh, 0, 0, 0))
        return bytes(data)

    def write_file(self, path: str, data: bytes, mode: int = 0o644) -> None:
        """Make a file of that content; it must not be there yet."""
        parent, name = self._parent(path)
        node, rest = self._entry(Opcode.CREATE, parent.nodeid, fuse.CREATE.pack(0o102, mode, 0, 0) + name,
                                 fuse.OPEN_OUT.size)
        self.checks.number(node.kind).equals(stat.S_IFREG, "what was made is what was asked for", _SPEC)
        fh = fuse.OpenOut.parse(rest).fh
        try:
            done = 0
            while done < len(data):
                part = data[done:done + self.max_write]
                body = fuse.WRITE.pack(fh, done, len(part), 0, 0, 0, 0) + part
                size, _ = fuse.SIZE_OUT.unpack(self._ask(Opcode.WRITE, node.nodeid, body, room=fuse.SIZE_OUT.size))
                done += self.checks.number(size).between(1, len(part), "no more is written than was sent", _SPEC)
            self._ask(Opcode.FSYNC, node.nodeid, fuse.FSYNC.pack(fh, 0, 0))
        finally:
            self._ask(Opcode.RELEASE, node.nodeid, fuse.RELEASE.pack(fh, 0, 0, 0))

    # Extended attributes.

    def getxattr(self, path: str, name: str) -> bytes:
        """Value of an extended attribute: its size is asked for first."""
        return self._sized(Opcode.GETXATTR, self.lookup(path).nodeid, name.encode() + b"\0")

    def listxattr(self, path: str) -> list[str]:
        """Names of the extended attributes."""
        data = self._sized(Opcode.LISTXATTR, self.lookup(path).nodeid, b"")
        self.checks.require(not data or data.endswith(b"\0"), "names end with a NUL", _SPEC)
        return [name.decode(errors="surrogateescape") for name in data.split(b"\0") if name]

    def _sized(self, operation: Opcode, nodeid: int, name: bytes) -> bytes:
        reply = self._ask(operation, nodeid, fuse.XATTR.pack(0, 0) + name, room=fuse.SIZE_OUT.size)
        size = self.checks.number(fuse.SIZE_OUT.unpack(reply)[0]).at_most(
            _XATTR_MAX, "attributes fit into a page", _SPEC)
        buffer = self.machine.heap.alloc(size, "attribute")
        try:
            value = b""
            if size:
                value = self._ask(operation, nodeid, fuse.XATTR.pack(size, 0) + name, room=size, exact=False)
            buffer.write(value)
            return value
        finally:
            self.machine.heap.free(buffer)

    def setxattr(self, path: str, name: str, value: bytes) -> None:
        """Set an extended attribute."""
        body = fuse.XATTR.pack(len(value), 0) + name.encode() + b"\0" + value
        self._ask(Opcode.SETXATTR, self.lookup(path).nodeid, body)
