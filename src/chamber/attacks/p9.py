"""Lies of a 9p server: sizes, types and tags of replies, counts, names, qids, attributes, contents, and their order."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Final

from chamber.attacks.attack import EVERYWHERE, MODEL, Aim, Attack, AttackSpec, Surface
from chamber.attacks.blk import Peek
from chamber.attacks.p9_replies import (
    ANY,
    OTHER_PATH,
    SESSION,
    WILD,
    Claimed,
    Drop,
    Endless,
    Growing,
    Long,
    Replay,
    Reply,
    Rollback,
    Withhold,
    data_as,
    error,
    full_list,
    last_entry,
    listed,
    name_length,
    named,
    put,
    resized,
    tagged,
    text,
    typed,
    version,
    walked,
    whole,
    with_qid,
)
from chamber.wire.p9 import NO_TAG, Qid, QidType
from chamber.wire.p9_messages import HEADER, Dirent, MessageType
from chamber.wire.virtio import DeviceType

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ("p9_attacks",)

_M = MessageType

_USE: Final = ("use",)
_ALL: Final = ("use", "inspect", "modify")
_LOOK: Final = ("inspect",)
_MODIFY: Final = ("modify",)

_Row = tuple[str, Surface, Aim, str, "Callable[[], Attack]", tuple[str, ...]]


def _reply(name: str, surface: Surface, aim: Aim, summary: str, kinds: MessageType | frozenset[MessageType],
           change: Callable[[bytes], bytes], stimuli: tuple[str, ...] = _USE, *, after: int = 0,
           times: int = 50) -> _Row:
    kinds = frozenset({kinds}) if isinstance(kinds, MessageType) else kinds
    return name, surface, aim, summary, lambda: Reply(kinds, change, after=after, times=times), stimuli


_LENGTH, _PAYLOAD, _CONTENT, _LIFECYCLE = Surface.LENGTH, Surface.PAYLOAD, Surface.CONTENT, Surface.LIFECYCLE
_MEMORY, _LEAK, _DECEIVE, _DENY = Aim.MEMORY, Aim.LEAK, Aim.DECEPTION, Aim.DENIAL

_HEADERS: Final[tuple[_Row, ...]] = (
    *(_reply(f"size-{name}", _LENGTH, _MEMORY, f"says in the header of replies that they are {what} long", ANY,
             resized(change), _ALL, after=SESSION)
      for name, what, change in (("zero", "0 bytes", lambda _n: 0), ("six", "6 bytes", lambda _n: 6),
                                 ("less", "a byte less than they are", lambda n: n - 1),
                                 ("more", "a byte more than they are", lambda n: n + 1),
                                 ("max", "2**32 - 1 bytes", lambda _n: WILD))),
    *(_reply(f"type-{name}", _PAYLOAD, _MEMORY, f"gives replies the type {what}", ANY, typed(kind), _ALL,
             after=SESSION)
      for name, what, kind in (("unknown", "255, which does not exist", 255), ("zero", "0", 0),
                               ("request", "of a request", _M.TREAD), ("getattr", "of a long one", _M.RGETATTR),
                               ("flush", "of an empty one", _M.RFLUSH), ("rerror", "of another dialect's error", 107))),
    *(_reply(f"tag-{name}", _PAYLOAD, _MEMORY, f"answers with {what}", ANY, tagged(change), _ALL, after=SESSION)
      for name, what, change in (("next", "the tag of another request", lambda tag: tag + 1),
                                 ("neighbour", "the tag of one that is under way", lambda tag: tag ^ 1),
                                 ("none", "the tag that means none", lambda _tag: NO_TAG),
                                 ("wild", "a tag that nobody has", lambda _tag: 0x7FFF))),
    _reply("header-cut", _LENGTH, _MEMORY, "sends five bytes of a reply", ANY, lambda data: data[:5], _ALL,
           after=SESSION),
    _reply("reply-empty", _LENGTH, _MEMORY, "sends a header without the fields of its type", ANY,
           lambda data: whole(data[:HEADER.size]), _ALL, after=SESSION),
    _reply("reply-longer", _LENGTH, _DECEIVE, "adds bytes to every reply", ANY, lambda data: whole(data + b"more"),
           _ALL, after=SESSION),
)

_ERRORS: Final[tuple[_Row, ...]] = (
    *(_reply(f"error-{name}", _PAYLOAD, aim, f"answers {what} with the error {code}", kinds,
             error(struct.pack("<I", code)), _ALL, after=after)
      for name, aim, what, kinds, code, after in (
          ("zero", _DECEIVE, "everything", ANY, 0, SESSION),
          ("huge", _MEMORY, "everything", ANY, WILD, SESSION),
          ("beyond", _MEMORY, "everything", ANY, 4096, SESSION),
          ("io", _DENY, "everything", ANY, 5, SESSION),
          ("version", _DENY, "the first request", frozenset({_M.RVERSION}), 5, 0),
          ("attach", _DENY, "the attach", frozenset({_M.RATTACH}), 13, 0),
          ("clunk", _DENY, "every clunk", frozenset({_M.RCLUNK}), 9, 0),
          ("write-zero", _DECEIVE, "writes", frozenset({_M.RWRITE}), 0, 0))),
    _reply("error-cut", _LENGTH, _MEMORY, "sends an error without its number", ANY, error(b""), _ALL, after=SESSION),
    _reply("error-text", _PAYLOAD, _MEMORY, "sends errors as text, as another dialect does", ANY,
           error(b"\xff\x7fno such file" + b"\0" * 8), _ALL, after=SESSION),
)


def _long(name: str, what: str, kind: MessageType, change: Callable[[bytes], bytes], stimuli: tuple[str, ...],
          length: int) -> _Row:
    return (f"long-{name}-{length}", _LENGTH, _MEMORY, f"{what}, and says twice that the reply has {length:,} bytes",
            lambda: Long({kind}, change, length), stimuli)


# Lengths about what a guest may have lent: the reply of a request that is not copied, a page, two, an msize and more.
_LONG: Final[tuple[_Row, ...]] = tuple(
    _long(name, what, kind, change, stimuli, length)
    for name, what, kind, change, stimuli in (
        ("walk", "returns 65,535 qids for a walk", _M.RWALK, put(_M.RWALK, "qids", 0xFFFF), _ALL),
        ("link", "answers readlink with 65,535 bytes", _M.RREADLINK, put(_M.RREADLINK, "target", 0xFFFF), _LOOK),
        ("read", "says that it read 2**20 bytes", _M.RREAD, put(_M.RREAD, "data", 1 << 20), _USE),
        ("list", "lists 2**20 bytes of a directory", _M.RREADDIR, put(_M.RREADDIR, "data", 1 << 20), _USE),
        ("list-full", "lists as many entries as there is room for, and more", _M.RREADDIR, full_list(1 << 20), _USE),
        ("read-error", "answers reads with an error of another dialect", _M.RREAD, typed(107), ("use", "modify")),
        ("write-error", "answers writes with an error of another dialect", _M.RWRITE, typed(107), ("use", "modify")),
        ("list-error", "answers lists with an error of another dialect", _M.RREADDIR, typed(107), _USE))
    for length in (4097, 8203, 66000, 1 << 20))

_SESSIONS: Final[tuple[_Row, ...]] = (
    *(_reply(f"msize-{name}", _LENGTH, _MEMORY, f"answers the version with msize {value}", _M.RVERSION,
             version(value))
      for name, value in (("zero", 0), ("tiny", 7), ("header", 23), ("unit", 24), ("small", 25), ("raised", 1 << 16),
                          ("max", WILD), ("sign", 1 << 31))),
    *(_reply(f"version-{name}", _PAYLOAD, aim, f"answers with the version '{text.decode()}'", _M.RVERSION,
             version(text=text))
      for name, aim, text in (("unknown", _DENY, b"unknown"), ("old", _DECEIVE, b"9P2000"), ("empty", _DECEIVE, b""),
                              ("more", _DECEIVE, b"9P2000.L.more"))),
    *(_reply(f"root-{name}", _PAYLOAD, _DECEIVE, f"attaches to {what}", _M.RATTACH, with_qid(_M.RATTACH, of_type=kind))
      for name, what, kind in (("file", "a file", 0), ("link", "a symbolic link", 2), ("wild", "no file", 255))),
)

_WALKS: Final[tuple[_Row, ...]] = (
    *(_reply(f"walk-{name}", surface, aim, summary, _M.RWALK, walked(change), _ALL)
    for name, surface, aim, summary, change in (
        ("more", _LENGTH, _MEMORY, "returns a qid more than names were asked for", lambda q: (*q, Qid(0, 0, 1))),
        ("many", _LENGTH, _MEMORY, "returns 200 qids for a walk", lambda q: (*q, *[Qid(0, 0, 1)] * 200)),
        ("less", _PAYLOAD, _DENY, "returns a qid less than it walked", lambda q: q[:-1]),
        ("none", _PAYLOAD, _DENY, "returns no qids for a walk", lambda _q: ()),
        ("file-above", _PAYLOAD, _DECEIVE, "says that what lies above a file is a file",
         lambda q: tuple(Qid(0, p.version, p.path) for p in q)),
        ("type-wild", _PAYLOAD, _MEMORY, "gives qids a type that does not exist",
         lambda q: tuple(Qid(0x55, p.version, p.path) for p in q)),
        ("all-directories", _PAYLOAD, _DECEIVE, "says that every file is a directory",
         lambda q: tuple(Qid(QidType.DIR, p.version, p.path) for p in q)),
        ("one-path", _PAYLOAD, _DECEIVE, "gives every file the same path",
         lambda q: tuple(Qid(p.type, p.version, OTHER_PATH) for p in q)),
        ("version", _PAYLOAD, _DECEIVE, "changes every version",
         lambda q: tuple(Qid(p.type, p.version ^ WILD, p.path) for p in q)),
    )),
    _reply("walk-count", _LENGTH, _MEMORY, "says that a walk returns 65,535 qids, and sends one", _M.RWALK,
           put(_M.RWALK, "qids", 0xFFFF), _ALL),
)

_READS: Final[tuple[_Row, ...]] = (
    *(_reply(f"{what}-count-{name}", _LENGTH, _MEMORY, f"says that {what} returned {value} bytes, and sends fewer",
             kind, put(kind, "data", value), _USE)
      for what, kind in (("read", _M.RREAD), ("readdir", _M.RREADDIR))
      for name, value in (("max", WILD), ("sign", 1 << 31), ("msize", 8192), ("one-more", 9000))),
    _reply("read-more", _LENGTH, _MEMORY, "returns more than was asked for", _M.RREAD,
           data_as(lambda data: data + b"M" * 64)),
    ("read-stale", _LENGTH, _LEAK, "says that it read all and sends the beginning of it",
     lambda: Claimed({_M.RREAD}, lambda data: data[:7] + struct.pack("<I", max(len(data) - 11, 8)) + b"x" * 8, 15),
     _USE),
    _reply("read-short", _PAYLOAD, _DECEIVE, "returns half of what was asked for", _M.RREAD,
           data_as(lambda data: data[:len(data) // 2])),
    _reply("read-dwindling", _PAYLOAD, _MEMORY,
           "returns half of what was asked for, in the end nothing, for as long as it is asked", _M.RREAD,
           data_as(lambda data: data[:len(data) // 2]), times=1 << 16),
    _reply("read-foreign", _CONTENT, _DECEIVE, "answers reads with bytes of its own choice", _M.RREAD,
           data_as(lambda data: b"\xdb" * len(data))),
    _reply("read-flipped", _CONTENT, _DECEIVE, "answers reads with one bit changed", _M.RREAD,
           data_as(lambda data: bytes((data[0] ^ 0x80,)) + data[1:] if data else data)),
    ("read-rolled-back", _CONTENT, _DECEIVE, "answers reads with what was there before a write", Rollback, _USE),
    *(_reply(f"write-count-{name}", _LENGTH, aim, f"says that it wrote {value} bytes", _M.RWRITE,
             put(_M.RWRITE, "count", value), ("use", "modify"))
      for name, aim, value in (("zero", _DECEIVE, 0), ("one", _DECEIVE, 1), ("max", _MEMORY, WILD),
                               ("more", _MEMORY, 1 << 20))),
    ("write-dropped", _CONTENT, _DECEIVE, "acknowledges writes and drops them", lambda: Drop(_M.TWRITE),
     ("use", "modify")),
    ("fsync-dropped", _CONTENT, _DECEIVE, "acknowledges fsync and does none", lambda: Drop(_M.TFSYNC), _USE),
    ("unlink-dropped", _CONTENT, _DECEIVE, "acknowledges removals and does none",
     lambda: Drop(_M.TUNLINKAT, _M.TREMOVE), ("use", "modify")),
    ("setattr-dropped", _CONTENT, _DECEIVE, "acknowledges new attributes and sets none",
     lambda: Drop(_M.TSETATTR, _M.TRENAME, _M.TRENAMEAT, _M.TLINK), _MODIFY),
)

_LISTS: Final[tuple[_Row, ...]] = (
    *(_reply(f"name-{name}", _PAYLOAD, _DECEIVE, f"lists a file named {what}", _M.RREADDIR, named(text), _USE)
      for name, what, text in (
          ("path", "by a path out of the directory", b"../../etc/passwd"), ("slash", "with a slash", b"a/b"),
          ("absolute", "by an absolute path", b"/etc/passwd"), ("nul", "with a NUL", b"a\0b"),
          ("empty", "nothing", b""),
          ("dots", "dot-dot that is no directory", b".."), ("control", "with control characters", b"\x1b[2J\n%n"),
          ("long", "by 256 bytes", b"L" * 256), ("longer", "by 4,000 bytes", b"L" * 4000))),
    _reply("name-length", _LENGTH, _MEMORY, "says that a name is 65,535 bytes long", _M.RREADDIR, name_length),
    _reply("entry-cut", _LENGTH, _MEMORY, "cuts the last entry of a list", _M.RREADDIR,
           data_as(lambda data: data[:-5])),
    _reply("entry-repeated", _PAYLOAD, _DECEIVE, "lists an entry twice", _M.RREADDIR,
           listed(lambda e: [*e, Dirent(e[-1].qid, e[-1].offset + 1000, e[-1].type, e[-1].name)])),
    _reply("entry-hidden", _CONTENT, _DECEIVE, "leaves an entry out", _M.RREADDIR, listed(lambda e: e[:-1])),
    _reply("entry-type-wild", _PAYLOAD, _MEMORY, "lists a file of type 255", _M.RREADDIR, listed(last_entry(type=255))),
    _reply("entry-type-other", _PAYLOAD, _DECEIVE, "lists a directory whose qid is a file's", _M.RREADDIR,
           listed(last_entry(type=4, qid=Qid(QidType.SYMLINK, 0, OTHER_PATH)))),
    _reply("entry-qid-wild", _PAYLOAD, _MEMORY, "lists a qid of a type that does not exist", _M.RREADDIR,
           listed(last_entry(qid=Qid(0x7F, 0, OTHER_PATH)))),
    *(_reply(f"offset-{name}", _PAYLOAD, _DENY, f"lists entries behind which the list goes on {what}", _M.RREADDIR,
             listed(last_entry(offset=value)), _USE, times=2000)
      for name, what, value in (("start", "at its start", 0), ("back", "at its first entry", 1))),
    ("readdir-endless", _PAYLOAD, _DENY, "lists directories that never end", Endless, _USE),
    ("readdir-replayed", _LIFECYCLE, _DENY, "answers each list with the one before",
     lambda: Replay(_M.RREADDIR, retag=True), _USE),
)

_ATTRIBUTES: Final[tuple[_Row, ...]] = (
    *(_reply(f"attr-{name}", _PAYLOAD, aim, f"says that a file has {what}", _M.RGETATTR,
             put(_M.RGETATTR, field, value), ("inspect", "modify"))
      for name, aim, what, field, value in (
          ("valid-none", _DECEIVE, "no attribute that was asked for", "valid", 0),
          ("mode-wild", _MEMORY, "a mode of all bits", "mode", WILD),
          ("mode-none", _DECEIVE, "a mode without a type", "mode", 0o644),
          ("mode-directory", _DECEIVE, "the mode of a directory", "mode", 0o40755),
          ("mode-device", _DECEIVE, "the mode of a device", "mode", 0o60666),
          ("size-max", _MEMORY, "2**64 - 1 bytes", "size", (1 << 64) - 1),
          ("size-sign", _MEMORY, "2**63 bytes", "size", 1 << 63),
          ("size-other", _DECEIVE, "another size", "size", 12345),
          ("block-zero", _DENY, "blocks of no bytes", "blksize", 0),
          ("block-odd", _MEMORY, "blocks of 3 bytes", "blksize", 3),
          ("blocks-max", _MEMORY, "2**64 - 1 blocks", "blocks", (1 << 64) - 1),
          ("links-max", _MEMORY, "2**64 - 1 links", "nlink", (1 << 64) - 1),
          ("nanoseconds", _MEMORY, "a time of 2**64 - 1 nanoseconds", "mtime_nsec", (1 << 64) - 1),
          ("seconds", _MEMORY, "a time of 2**64 - 1 seconds", "mtime_sec", (1 << 64) - 1))),
    *(_reply(f"{what}-qid-{name}", _PAYLOAD, _DECEIVE, f"answers {what} with a qid of {of}", kind,
             with_qid(kind, **change), _ALL)
      for what, kind in (("getattr", _M.RGETATTR), ("open", _M.RLOPEN), ("create", _M.RLCREATE), ("mkdir", _M.RMKDIR))
      for name, of, change in (("type", "another type", {"of_type": int(QidType.SYMLINK)}),
                               ("wild", "no type that exists", {"of_type": 0x1F}),
                               ("path", "another file", {"path": OTHER_PATH}))
      # What is new may have any path.
      if not (name == "path" and kind in {_M.RLCREATE, _M.RMKDIR})),
    _reply("open-qid-version", _PAYLOAD, _DECEIVE, "changes the version of a file at every open", _M.RLOPEN,
           with_qid(_M.RLOPEN, version=1), _ALL),
    *(_reply(f"iounit-{name}", _LENGTH, _MEMORY, f"opens files with an iounit of {value}", kind,
             put(kind, "iounit", value))
      for kind in (_M.RLOPEN,) for name, value in (("max", WILD), ("sign", 1 << 31), ("one", 1),
                                                   ("large", 1 << 17))),
    *(_reply(f"statfs-{name}", _PAYLOAD, aim, f"says that its file system has {what}", _M.RSTATFS,
             put(_M.RSTATFS, field, value), _LOOK)
      for name, aim, what, field, value in (
          ("block-zero", _DENY, "blocks of no bytes", "bsize", 0),
          ("block-odd", _MEMORY, "blocks of 1,000 bytes", "bsize", 1000),
          ("blocks-max", _MEMORY, "2**64 - 1 blocks", "blocks", (1 << 64) - 1),
          ("free-more", _DECEIVE, "more free blocks than blocks", "bfree", (1 << 64) - 1),
          ("name-zero", _DENY, "names of no bytes", "namelen", 0),
          ("name-max", _MEMORY, "names of 2**32 - 1 bytes", "namelen", WILD))),
    *(_reply(f"link-{name}", surface, aim, f"answers readlink with {what}", _M.RREADLINK, change, _LOOK)
      for name, surface, aim, what, change in (
          ("empty", _PAYLOAD, _DECEIVE, "nothing", text(b"")),
          ("nul", _PAYLOAD, _DECEIVE, "a target with a NUL", text(b"he\0lo")),
          ("long", _LENGTH, _MEMORY, "4,096 bytes", text(b"/a" * 2048)),
          ("length", _LENGTH, _MEMORY, "a length of 65,535 and five bytes", text(b"hello", 0xFFFF)),
          ("absolute", _CONTENT, _DECEIVE, "a path of the guest's own", text(b"/etc/shadow")))),
    *(_reply(f"xattr-size-{name}", _LENGTH, aim, f"says that an extended attribute has {value} bytes", _M.RXATTRWALK,
             put(_M.RXATTRWALK, "size", value), ("inspect", "modify"))
      for name, aim, value in (("max", _DENY, (1 << 64) - 1), ("sign", _DENY, 1 << 63), ("huge", _DENY, 1 << 40),
                               ("more", _DECEIVE, 5000), ("one", _DECEIVE, 1))),
    ("xattr-growing", _LENGTH, _MEMORY, "lets an extended attribute grow between asking and reading", Growing, _LOOK),
)

_LOCKS: Final[tuple[_Row, ...]] = (
    *(_reply(f"lock-status-{name}", _PAYLOAD, aim, f"answers lock requests with {what}", _M.RLOCK,
             put(_M.RLOCK, "status", value), _LOOK)
      for name, aim, what, value in (("success", _DECEIVE, "success, whoever has the lock", 0),
                                     ("error", _DENY, "an error", 2), ("unknown", _MEMORY, "status 4", 4),
                                     ("max", _MEMORY, "status 255", 255))),
    *(_reply(f"getlock-{name}", _PAYLOAD, _DECEIVE, f"answers who has a lock with {what}", _M.RGETLOCK,
             put(_M.RGETLOCK, field, value), _LOOK)
      for name, what, field, value in (("type", "a type that does not exist", "type", 7),
                                       ("start", "a range that is elsewhere", "start", 1 << 40),
                                       ("length", "a range beyond any file", "length", (1 << 64) - 1))),
    *((f"{name}", _LIFECYCLE, aim, summary, make, _USE)
      for name, aim, summary, make in (
          ("read-late", _MEMORY, "answers a read after the guest gave it up", lambda: Withhold(_M.TREAD, late=3.0)),
          ("read-flushed-first", _DECEIVE, "answers a read when it is flushed, before it says so",
           lambda: Withhold(_M.TREAD, first=True)),
          ("read-after-flush", _MEMORY, "says that a read is flushed, and answers it soon after",
           lambda: Withhold(_M.TREAD, late=2.05)),
          ("read-never", _DENY, "says that a read is flushed, and never gives its buffer back",
           lambda: Withhold(_M.TREAD)),
          ("flush-never", _DENY, "answers neither a read nor its flush", lambda: Withhold(_M.TREAD, flush=False)),
          ("walk-late", _MEMORY, "answers a walk after the guest gave it up", lambda: Withhold(_M.TWALK, late=2.5)),
          ("read-replayed", _DECEIVE, "answers each read with the reply to the one before",
           lambda: Replay(_M.RREAD, retag=False)),
          ("read-replayed-retagged", _DECEIVE, "answers each read with the data of the one before",
           lambda: Replay(_M.RREAD, retag=True)))),
    ("attr-replayed", _LIFECYCLE, _DECEIVE, "answers each getattr with the one before",
     lambda: Replay(_M.RGETATTR, retag=True), _LOOK),
    ("walk-replayed", _LIFECYCLE, _DECEIVE, "answers each walk with the one before",
     lambda: Replay(_M.RWALK, retag=True), _ALL),
    ("peek", _PAYLOAD, _LEAK, "reads what the buffers hold that it is to fill", Peek, _ALL),
)

_KNOWN: Final = {
    "error-text": "9p: virtio: fix unlikely null pointer deref in handle_rerror",
    "header-cut": "9p: prevent read overrun in protocol dump tracepoint",
}


def p9_attacks() -> Iterator[AttackSpec]:
    """Attacks on the 9p protocol, which has no chapter in virtio: what a device is for is listed in 5."""
    for rows in (_HEADERS, _ERRORS, _LONG, _SESSIONS, _WALKS, _READS, _LISTS, _ATTRIBUTES, _LOCKS):
        for what, surface, aim, summary, make, stimuli in rows:
            yield AttackSpec(f"9p-{what}", DeviceType.TRANSPORT_9P, surface, aim, "virtio 1.3, 5",
                             f"The device {summary}.", make, stimuli=stimuli,
                             targets=MODEL if what == "peek" else EVERYWHERE,
                             known=_KNOWN.get(what, ""))
