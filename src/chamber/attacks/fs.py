"""What a lying file server says: heads, numbers, kinds, sizes, names, offsets, and content of another time or place."""

from __future__ import annotations

import stat
import struct
from typing import TYPE_CHECKING, Final

from chamber.attacks.answer import Answer, Claim
from chamber.attacks.attack import Aim, Attack, AttackSpec, Surface
from chamber.wire import fuse
from chamber.wire.fuse import IN_HEADER, OUT_HEADER, InitFlag, Opcode
from chamber.wire.virtio import DeviceType

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from chamber.device.chain import Chain
    from chamber.device.queue import DeviceQueue

__all__ = ("fs_attacks",)

_MAX32: Final = 0xFFFFFFFF
_MAX64: Final = (1 << 64) - 1
_CACHE_DIR: Final = 8
"""Flag of OPENDIR's answer: what is listed may be kept."""
_MANY_NAMES: Final = 200
_ENTRIES: Final = frozenset({Opcode.LOOKUP, Opcode.CREATE, Opcode.MKDIR, Opcode.SYMLINK, Opcode.LINK})
_ATTRIBUTES: Final = frozenset({Opcode.GETATTR, Opcode.SETATTR})
_LISTS: Final = frozenset({Opcode.READDIR, Opcode.READDIRPLUS})
_SIZES: Final = frozenset({Opcode.GETXATTR, Opcode.LISTXATTR})
_ANY: Final = frozenset(Opcode) - {Opcode.INIT}
_ATTR_AT: Final = fuse.ENTRY.size


def _opcode(request: bytes) -> int:
    return int.from_bytes(request[4:8], "little") if len(request) >= IN_HEADER.size else -1


def _head(change: Callable[[int, int, int], tuple[int, int, int]], operations: frozenset[Opcode] = _ANY,
          ) -> Callable[[], Attack]:
    """Change length, error and unique of replies."""
    def answer(request: bytes, honest: bytes) -> bytes | None:
        if _opcode(request) not in operations:
            return None
        length, error, unique = change(*OUT_HEADER.unpack_from(honest))
        return OUT_HEADER.pack(length & _MAX32, error, unique & _MAX64) + honest[OUT_HEADER.size:]

    return lambda: Answer("requests", answer, after=2)


def _body(operations: frozenset[Opcode], change: Callable[[bytes], bytes], *, after: int = 0,
          ) -> Callable[[], Attack]:
    """Change the body of successful replies; the head says the length that there is."""
    def answer(request: bytes, honest: bytes) -> bytes | None:
        _, error, unique = OUT_HEADER.unpack_from(honest)
        if _opcode(request) not in operations or error:
            return None
        body = change(honest[OUT_HEADER.size:])
        return OUT_HEADER.pack(OUT_HEADER.size + len(body), 0, unique) + body

    return lambda: Answer("requests", answer, after=after)


def _put(at: int, value: int, width: int) -> Callable[[bytes], bytes]:
    """Overwrite a number."""
    raw = (value & (1 << 8 * width) - 1).to_bytes(width, "little")
    return lambda body: body[:at] + raw + body[at + width:] if len(body) >= at + width else body


def _pages(count: int) -> Callable[[bytes], bytes]:
    """Agree to requests of so many pages, in writes of any length."""
    def change(body: bytes) -> bytes:
        flags = int.from_bytes(body[12:16], "little") | InitFlag.MAX_PAGES
        for change in (_put(12, flags, 4), _put(20, _MAX32, 4), _put(28, count, 2)):
            body = change(body)
        return body
    return change


def _mode(base: int, kind: int) -> Callable[[bytes], bytes]:
    """Change the type of file in attributes that start at `base`."""
    at = base + 60  # six times 8 bytes and three times 4 before it
    def change(body: bytes) -> bytes:
        if len(body) < at + 4:
            return body
        mode = int.from_bytes(body[at:at + 4], "little")
        return body[:at] + (mode & 0o7777 | kind).to_bytes(4, "little") + body[at + 4:]

    return change


def _name(name: bytes) -> Callable[[bytes], bytes]:
    """Give the first entry of a list another name; READDIRPLUS is left alone."""
    def change(body: bytes) -> bytes:
        if len(body) < fuse.DIRENT.size:
            return body
        ino, offset, _, kind = fuse.DIRENT.unpack_from(body)
        entry = fuse.DIRENT.pack(ino, offset, len(name), kind) + name
        return entry.ljust(len(entry) + 7 & ~7, b"\0")

    return change


def _cached(length: int) -> Callable[[], Attack]:
    """Have lists kept in the page cache, and give their first entry a long name."""
    def answer(request: bytes, honest: bytes) -> bytes | None:
        operation, body = _opcode(request), honest[OUT_HEADER.size:]
        if operation == Opcode.OPENDIR and len(body) >= fuse.OPEN_OUT.size:
            handle, flags, padding = fuse.OPEN_OUT.unpack_from(body)
            return honest[:OUT_HEADER.size] + fuse.OPEN_OUT.pack(handle, flags | _CACHE_DIR, padding)
        entry = fuse.ENTRY_SIZE if operation == Opcode.READDIRPLUS else 0
        if operation not in _LISTS or len(body) < entry + fuse.DIRENT.size:
            return None
        ino, offset, _, kind = fuse.DIRENT.unpack_from(body, entry)
        listed = bytes(entry) + fuse.DIRENT.pack(ino, offset, length, kind) + b"n" * length
        listed = listed.ljust(len(listed) + 7 & ~7, b"\0")
        return OUT_HEADER.pack(OUT_HEADER.size + len(listed), *OUT_HEADER.unpack_from(honest)[1:]) + listed

    return lambda: Answer("requests", answer)


def _cached_many(length: int) -> Callable[[], Attack]:
    """Have lists kept in the page cache that are long, all of long names: each of them ends on a page of its own."""
    def answer(request: bytes, honest: bytes) -> bytes | None:
        operation, body = _opcode(request), honest[OUT_HEADER.size:]
        if operation == Opcode.OPENDIR and len(body) >= fuse.OPEN_OUT.size:
            handle, flags, padding = fuse.OPEN_OUT.unpack_from(body)
            return honest[:OUT_HEADER.size] + fuse.OPEN_OUT.pack(handle, flags | _CACHE_DIR, padding)
        if operation not in _LISTS or len(request) < IN_HEADER.size + 20:
            return None
        number, room = struct.unpack_from("<QI", request, IN_HEADER.size + 8)
        listed = b""
        while number < _MANY_NAMES:
            number += 1
            name = b"%d-" % number
            entry = bytes(fuse.ENTRY_SIZE if operation == Opcode.READDIRPLUS else 0) + fuse.DIRENT.pack(
                number, number, length, stat.S_IFREG >> 12) + name.ljust(length, b"n")
            entry = entry.ljust(len(entry) + 7 & ~7, b"\0")
            if len(listed) + len(entry) > room:
                break
            listed += entry
        return OUT_HEADER.pack(OUT_HEADER.size + len(listed), *OUT_HEADER.unpack_from(honest)[1:]) + listed

    return lambda: Answer("requests", answer)


def _offsets(body: bytes) -> bytes:
    """Have every entry lead back to the beginning."""
    out = bytearray(body)
    at = 0
    while at + fuse.DIRENT.size <= len(out):
        _, _, length, _ = fuse.DIRENT.unpack_from(out, at)
        out[at + 8:at + 16] = (1).to_bytes(8, "little")
        at += fuse.DIRENT.size + length + 7 & ~7
    return bytes(out)


class Replay(Attack):
    """Answers with the reply that an earlier request of the same kind got, number and all."""

    def __init__(self, operations: frozenset[Opcode], *, head: bool) -> None:
        super().__init__()
        self._operations = operations
        self._head = head
        self._first: dict[int, bytes] = {}
        self._left = 50

    def response(self, queue: DeviceQueue, chain: Chain, data: bytes) -> bytes:
        """Answer with the past."""
        operation = _opcode(chain.read(0, IN_HEADER.size))
        if operation not in self._operations or not self._left:
            return data
        earlier = self._first.setdefault(operation, bytes(data))
        if not self._head:
            body = earlier[OUT_HEADER.size:]
            earlier = OUT_HEADER.pack(OUT_HEADER.size + len(body), 0, OUT_HEADER.unpack_from(data)[2]) + body
        if earlier == data:
            return data
        self._left -= 1
        self.strike(f"queue {queue.index}: {Opcode(operation).name} answered with an earlier reply")
        return earlier


class Stale(Attack):
    """Answers reads with what the same place of a file held when it was first read."""

    def __init__(self) -> None:
        super().__init__()
        self._past: dict[tuple[int, int], bytes] = {}

    def response(self, queue: DeviceQueue, chain: Chain, data: bytes) -> bytes:  # noqa: ARG002 - the hook's signature
        """Answer with the past."""
        request = chain.read(0, IN_HEADER.size + fuse.READ.size)
        if _opcode(request) != Opcode.READ or len(request) < IN_HEADER.size + fuse.READ.size:
            return data
        node = int.from_bytes(request[16:24], "little")
        offset = fuse.READ.unpack_from(request, IN_HEADER.size)[1]
        body = bytes(data[OUT_HEADER.size:])
        past = self._past.setdefault((node, offset), body)
        if past == body:
            return data
        self.strike(f"node {node} at {offset}: {len(past)} bytes of what it held before")
        return OUT_HEADER.pack(OUT_HEADER.size + len(past), 0, OUT_HEADER.unpack_from(data)[2]) + past


class Dropped(Attack):
    """Says that operations succeeded, and does not do them."""

    def __init__(self, operation: Opcode, reply: Callable[[bytes], bytes]) -> None:
        super().__init__()
        self._operation = operation
        self._reply = reply
        self._left = 50

    def popped(self, queue: DeviceQueue, chain: Chain) -> bool:
        """Answer with success."""
        request = chain.read(0, IN_HEADER.size + fuse.WRITE.size)
        if _opcode(request) != self._operation or not self._left:
            return True
        self._left -= 1
        body = self._reply(request[IN_HEADER.size:])
        unique = int.from_bytes(request[8:16], "little")
        queue.push(chain.head, chain.write(OUT_HEADER.pack(OUT_HEADER.size + len(body), 0, unique) + body))
        self.strike(f"{self._operation.name} acknowledged and dropped")
        return False


def _written(body: bytes) -> bytes:
    return fuse.SIZE_OUT.pack(fuse.WRITE.unpack_from(body)[2], 0) if len(body) >= fuse.WRITE.size else b""


_READ: Final = frozenset({Opcode.READ})
_LOOKUP: Final = frozenset({Opcode.LOOKUP})
_INIT: Final = frozenset({Opcode.INIT})
_LINK: Final = frozenset({Opcode.READLINK})
_WRITE: Final = frozenset({Opcode.WRITE})
_STATFS: Final = frozenset({Opcode.STATFS})
_OPENS: Final = frozenset({Opcode.OPEN, Opcode.OPENDIR})

Row = tuple[str, Surface, Aim, str, "Callable[[], Attack]"]
_L, _P, _C, _R = Surface.LENGTH, Surface.PAYLOAD, Surface.CONTENT, Surface.RING
_M, _D, _N, _K = Aim.MEMORY, Aim.DECEPTION, Aim.DENIAL, Aim.LEAK

_ROWS: Final[tuple[Row, ...]] = (
    ("len-zero", _L, _M, "says that replies have length 0", _head(lambda _l, e, u: (0, e, u))),
    ("len-short", _L, _M, "says that replies are one byte shorter than they are", _head(lambda n, e, u: (n - 1, e, u))),
    ("len-beyond", _L, _M, "says that replies are 4096 bytes longer than they are",
     _head(lambda n, e, u: (n + 4096, e, u))),
    ("len-max", _L, _M, "says that replies are 2**32 - 1 bytes long", _head(lambda _n, e, u: (_MAX32, e, u))),
    ("error-positive", _P, _M, "answers with error 5 where errors are negative", _head(lambda n, _e, u: (n, 5, u))),
    ("error-beyond", _P, _M, "answers with an error beyond the last errno", _head(lambda n, _e, u: (n, -5000, u))),
    ("error-restart", _P, _N, "answers with ERESTARTSYS, which is the kernel's own",
     _head(lambda _n, _e, u: (OUT_HEADER.size, -512, u))),
    ("error-every", _P, _N, "answers every request with EIO", _head(lambda _n, _e, u: (OUT_HEADER.size, -5, u))),
    ("error-with-body", _P, _M, "answers with an error and a body", _head(lambda n, _e, u: (n, -2, u))),
    ("unique-other", _P, _D, "answers to another request than was sent", _head(lambda n, e, u: (n, e, u + 2))),
    ("unique-earlier", _P, _D, "answers to the request before", _head(lambda n, e, u: (n, e, u - 2))),
    ("unique-zero", _P, _D, "sends notifications where replies are due", _head(lambda n, _e, _u: (n, 1, 0))),
    ("reply-empty", _L, _K, "answers requests with a head alone", _body(_ENTRIES | _ATTRIBUTES, lambda _b: b"")),
    ("reply-half", _L, _M, "cuts entries and attributes in half",
     _body(_ENTRIES | _ATTRIBUTES, lambda b: b[:len(b) // 2])),
    ("reply-unwritten", _L, _K, "claims replies that it did not write",
     lambda: Claim("requests", lambda true, _room: true, keep=lambda _n: OUT_HEADER.size, after=2)),
    ("reply-replayed", _R, _D, "answers with earlier replies, head and all", lambda: Replay(_ANY, head=True)),
    ("lookup-replayed", _C, _D, "answers lookups with the file that was looked up first",
     lambda: Replay(_LOOKUP, head=False)),
    ("nodeid-zero", _P, _M, "names files by number 0", _body(_ENTRIES, _put(0, 0, 8))),
    ("nodeid-root", _P, _D, "names files by the number of the root", _body(_ENTRIES, _put(0, 1, 8))),
    ("nodeid-same", _P, _D, "names all files by one number", _body(_ENTRIES, _put(0, 77, 8))),
    ("nodeid-max", _P, _M, "names files by number 2**64 - 1", _body(_ENTRIES, _put(0, _MAX64, 8))),
    ("generation-changing", _P, _D, "says another generation of files that are held",
     _body(_LOOKUP, _put(8, 99, 8), after=4)),
    ("valid-for-ever", _P, _D, "says that entries are valid for 2**64 - 1 seconds",
     _body(_ENTRIES, _put(16, _MAX64, 8))),
    ("kind-directory", _P, _M, "says that files are directories", _body(_ENTRIES, _mode(_ATTR_AT, stat.S_IFDIR))),
    ("kind-file", _P, _M, "says that directories are files", _body(_ENTRIES, _mode(_ATTR_AT, stat.S_IFREG))),
    ("kind-none", _P, _M, "says that files have no type", _body(_ENTRIES, _mode(_ATTR_AT, 0))),
    ("kind-device", _P, _D, "says that files are device nodes", _body(_ENTRIES, _mode(_ATTR_AT, stat.S_IFBLK))),
    ("kind-changing", _P, _M, "turns files into directories while they are held",
     _body(_ATTRIBUTES, _mode(fuse.ATTR_OUT.size, stat.S_IFDIR))),
    ("size-negative", _P, _M, "says that files have 2**64 - 1 bytes",
     _body(_ENTRIES | _ATTRIBUTES, lambda b: _put(_ATTR_AT + 8, _MAX64, 8)(b) if len(b) >= fuse.ENTRY_SIZE
           else _put(fuse.ATTR_OUT.size + 8, _MAX64, 8)(b))),
    ("size-huge", _P, _N, "says that files have 2**62 bytes",
     _body(_ATTRIBUTES, _put(fuse.ATTR_OUT.size + 8, 1 << 62, 8))),
    ("size-zero", _P, _D, "says that files are empty", _body(_ATTRIBUTES, _put(fuse.ATTR_OUT.size + 8, 0, 8))),
    ("init-version", _P, _N, "speaks version 6", _body(_INIT, _put(0, 6, 4))),
    ("init-old", _P, _M, "speaks version 7.0", _body(_INIT, _put(4, 0, 4))),
    ("init-max-write-zero", _P, _M, "takes writes of no byte", _body(_INIT, _put(20, 0, 4))),
    ("init-max-write-max", _P, _M, "takes writes of 2**32 - 1 bytes", _body(_INIT, _put(20, _MAX32, 4))),
    *((f"init-max-pages-{name}", _P, _M, f"takes requests of {pages:,} pages", _body(_INIT, _pages(pages)))
      for name, pages in (("zero", 0), ("max", 0xFFFF))),
    ("init-flags", _P, _M, "agrees to every flag, asked for or not", _body(_INIT, _put(12, _MAX32, 4))),
    ("init-short", _L, _M, "answers INIT with 8 bytes", _body(_INIT, lambda b: b[:8])),
    ("init-empty", _L, _M, "answers INIT with nothing", _body(_INIT, lambda _b: b"")),
    ("link-empty", _P, _M, "says that links lead nowhere", _body(_LINK, lambda _b: b"")),
    ("link-nul", _P, _D, "puts a NUL into the target of links", _body(_LINK, lambda b: b[:2] + b"\0" + b)),
    ("link-away", _C, _D, "says that links lead to /etc/passwd", _body(_LINK, lambda _b: b"/etc/passwd")),
    ("link-long", _L, _M, "fills the target of links", _body(_LINK, lambda _b: b"x" * 4096)),
    ("name-slash", _P, _M, "lists names with a slash", _body(_LISTS, _name(b"../../etc"))),
    ("name-empty", _P, _M, "lists an empty name", _body(_LISTS, _name(b""))),
    ("name-nul", _P, _M, "lists names with a NUL", _body(_LISTS, _name(b"a\0b"))),
    ("name-long", _L, _M, "lists a name of 1000 bytes", _body(_LISTS, _name(b"n" * 1000))),
    ("name-length-max", _L, _M, "lists a name of 2**32 - 1 bytes", _body(_LISTS, _put(16, _MAX32, 4))),
    *((f"list-cached-{n}", _L, _M, f"lists a name of {n:,} bytes, and has it cached", _cached(n))
      for n in (1, 1024, 4072, 4095)),
    *((f"list-many-cached-{n}", _L, _M, f"lists many names of {n:,} bytes, and has them cached", _cached_many(n))
      for n in (1000, 4095)),
    ("list-circle", _P, _N, "has directories lead back to their beginning", _body(_LISTS, _offsets)),
    ("list-offset-max", _P, _M, "says that a list goes on at 2**64 - 1", _body(_LISTS, _put(8, _MAX64, 8))),
    ("list-cut", _L, _M, "ends lists in the middle of an entry", _body(_LISTS, lambda b: b[:-5])),
    ("list-empty", _C, _D, "says that directories are empty", _body(_LISTS, lambda _b: b"")),
    ("read-more", _L, _M, "answers reads with more than was asked for", _body(_READ, lambda b: b + bytes(4096))),
    ("read-short", _C, _D, "ends reads half way", _body(_READ, lambda b: b[:len(b) // 2])),
    ("read-zero", _C, _D, "answers reads with zeroes", _body(_READ, lambda b: bytes(len(b)))),
    ("read-stale", _C, _D, "answers reads with what the file held before", Stale),
    ("read-swapped", _C, _D, "answers reads with what another file holds", lambda: Replay(_READ, head=False)),
    ("write-zero", _P, _N, "says that nothing was written", _body(_WRITE, _put(0, 0, 4))),
    ("write-more", _P, _M, "says that more was written than was sent", _body(_WRITE, _put(0, 1 << 20, 4))),
    ("write-dropped", _C, _D, "acknowledges writes and drops them", lambda: Dropped(Opcode.WRITE, _written)),
    ("unlink-dropped", _C, _D, "acknowledges removals and does not do them",
     lambda: Dropped(Opcode.RMDIR, lambda _body: b"")),
    ("statfs-block-zero", _P, _M, "says that blocks have no byte", _body(_STATFS, _put(40, 0, 4))),
    ("statfs-free-beyond", _P, _M, "says that more is free than there is", _body(_STATFS, _put(8, _MAX64, 8))),
    ("xattr-size-max", _P, _M, "says that attributes have 2**32 - 1 bytes", _body(_SIZES, _put(0, _MAX32, 4))),
    ("xattr-size-zero", _P, _D, "says that attributes are empty", _body(_SIZES, _put(0, 0, 4))),
    ("xattr-grown", _L, _M, "sends attributes longer than it said",
     _body(_SIZES, lambda b: b if len(b) == fuse.SIZE_OUT.size else b + bytes(64))),
    ("open-flags", _P, _M, "answers OPEN with every flag set", _body(_OPENS, _put(8, _MAX32, 4))),
    ("open-cut", _L, _M, "cuts the answer to OPEN", _body(_OPENS, lambda b: b[:4])),
)


def fs_attacks() -> Iterator[AttackSpec]:
    """Attacks on FUSE."""
    for what, surface, aim, summary, make in _ROWS:
        yield AttackSpec(f"fs-{what}", DeviceType.FS, surface, aim, "virtio 1.3, 5.11.6", f"The device {summary}.",
                         make, stimuli=("use", "direct") if "max-pages" in what else ("use", "inspect"))
