"""Messages of 9P2000.L: one table of their fields, and a codec that reads it.

A message is ``size[4] type[1] tag[2]`` and the fields of its type. A type's request is even and its reply one more.
What a field is used for is declared beside it, so that attacks can be made from the same table.
"""

from __future__ import annotations

import enum
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from chamber.wire.errors import WireError
from chamber.wire.layout import Role
from chamber.wire.p9 import MAX_NAMES, Qid

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

__all__ = (
    "DIRENT",
    "FIELDS",
    "HEADER",
    "QID",
    "Dirent",
    "Kind",
    "Member",
    "Message",
    "MessageType",
    "Value",
    "decode",
    "dirents",
    "encode",
    "fixed_size",
    "offset_of",
    "pack_dirent",
)

HEADER: Final = struct.Struct("<IBH")
"""size, type, tag."""
QID: Final = struct.Struct("<BIQ")
"""type, version, path."""
DIRENT: Final = struct.Struct("<BIQQBH")
"""An entry of Rreaddir up to its name: qid, offset of the next entry, type as in readdir(3), length of the name."""
_SPEC: Final = "9P2000.L"
_MAX_STRING: Final = 0xFFFF


class MessageType(enum.IntEnum):
    """``type`` of a message."""

    RLERROR = 7
    TSTATFS, RSTATFS = 8, 9
    TLOPEN, RLOPEN = 12, 13
    TLCREATE, RLCREATE = 14, 15
    TSYMLINK, RSYMLINK = 16, 17
    TMKNOD, RMKNOD = 18, 19
    TRENAME, RRENAME = 20, 21
    TREADLINK, RREADLINK = 22, 23
    TGETATTR, RGETATTR = 24, 25
    TSETATTR, RSETATTR = 26, 27
    TXATTRWALK, RXATTRWALK = 30, 31
    TXATTRCREATE, RXATTRCREATE = 32, 33
    TREADDIR, RREADDIR = 40, 41
    TFSYNC, RFSYNC = 50, 51
    TLOCK, RLOCK = 52, 53
    TGETLOCK, RGETLOCK = 54, 55
    TLINK, RLINK = 70, 71
    TMKDIR, RMKDIR = 72, 73
    TRENAMEAT, RRENAMEAT = 74, 75
    TUNLINKAT, RUNLINKAT = 76, 77
    TVERSION, RVERSION = 100, 101
    TAUTH, RAUTH = 102, 103
    TATTACH, RATTACH = 104, 105
    TFLUSH, RFLUSH = 108, 109
    TWALK, RWALK = 110, 111
    TREAD, RREAD = 116, 117
    TWRITE, RWRITE = 118, 119
    TCLUNK, RCLUNK = 120, 121
    TREMOVE, RREMOVE = 122, 123

    @property
    def is_request(self) -> bool:
        """Whether a client sends it."""
        return not self & 1


class Kind(enum.Enum):
    """How a field is written: a number of so many bytes, or one of the others."""

    U8 = 1
    U16 = 2
    U32 = 4
    U64 = 8
    STRING = "length[2] and so many bytes"
    QID = "type[1] version[4] path[8]"
    DATA = "count[4] and so many bytes"
    STRINGS = "count[2] and so many strings"
    QIDS = "count[2] and so many qids"

    @property
    def width(self) -> int:
        """Bytes of a number, or of the count that something of no fixed size begins with; 13 of a qid."""
        if isinstance(self.value, int):
            return self.value
        return {Kind.QID: QID.size, Kind.DATA: 4}.get(self, 2)


Value = int | bytes | Qid | tuple[bytes, ...] | tuple[Qid, ...]


@dataclass(frozen=True, slots=True)
class Member:
    """One field of a message.

    Attributes:
        name: the protocol's own name.
        kind: how it is written.
        role: what its number, or its count, is used for.
        optional: may be missing, as the last of its message; it is zero then.

    """

    name: str
    kind: Kind
    role: Role = Role.VALUE
    optional: bool = False


_KINDS: Final = {"u8": Kind.U8, "u16": Kind.U16, "u32": Kind.U32, "u64": Kind.U64, "s": Kind.STRING, "qid": Kind.QID,
                 "data": Kind.DATA, "s*": Kind.STRINGS, "qid*": Kind.QIDS}
_ROLES: Final = {
    "fid": Role.ID, "afid": Role.ID, "newfid": Role.ID, "dfid": Role.ID, "olddirfid": Role.ID, "newdirfid": Role.ID,
    "dirfid": Role.ID, "oldtag": Role.ID, "uid": Role.ID, "gid": Role.ID, "n_uname": Role.ID, "proc_id": Role.ID,
    "fsid": Role.ID, "ecode": Role.ENUM, "status": Role.ENUM, "type": Role.ENUM, "msize": Role.SIZE,
    "iounit": Role.SIZE, "size": Role.SIZE, "attr_size": Role.SIZE, "bsize": Role.SIZE, "blksize": Role.SIZE,
    "count": Role.COUNT, "data": Role.COUNT, "names": Role.COUNT, "qids": Role.COUNT, "blocks": Role.COUNT,
    "bfree": Role.COUNT, "bavail": Role.COUNT, "files": Role.COUNT, "ffree": Role.COUNT, "nlink": Role.COUNT,
    "offset": Role.OFFSET, "start": Role.OFFSET, "length": Role.LENGTH, "namelen": Role.LENGTH,
    "flags": Role.FLAGS, "valid": Role.FLAGS, "request_mask": Role.FLAGS, "mode": Role.FLAGS,
}


def _fields(text: str) -> tuple[Member, ...]:
    """Read ``name:kind`` words; a ``?`` behind one marks it as optional."""
    members = []
    for word in text.split():
        name, _, kind = word.rstrip("?").partition(":")
        members.append(Member(name, _KINDS[kind], _ROLES.get(name, Role.VALUE), word.endswith("?")))
    return tuple(members)


_TIMES: Final = " ".join(f"{t}time_{unit}:u64" for t in "amcb" for unit in ("sec", "nsec"))
_M = MessageType

FIELDS: Final[dict[MessageType, tuple[Member, ...]]] = {kind: _fields(text) for kind, text in {
    _M.RLERROR: "ecode:u32",
    _M.TSTATFS: "fid:u32",
    _M.RSTATFS: "type:u32 bsize:u32 blocks:u64 bfree:u64 bavail:u64 files:u64 ffree:u64 fsid:u64 namelen:u32",
    _M.TLOPEN: "fid:u32 flags:u32",
    _M.RLOPEN: "qid:qid iounit:u32",
    _M.TLCREATE: "fid:u32 name:s flags:u32 mode:u32 gid:u32",
    _M.RLCREATE: "qid:qid iounit:u32",
    _M.TSYMLINK: "dfid:u32 name:s target:s gid:u32",
    _M.RSYMLINK: "qid:qid",
    _M.TMKNOD: "dfid:u32 name:s mode:u32 major:u32 minor:u32 gid:u32",
    _M.RMKNOD: "qid:qid",
    _M.TRENAME: "fid:u32 dfid:u32 name:s",
    _M.RRENAME: "",
    _M.TREADLINK: "fid:u32",
    _M.RREADLINK: "target:s",
    _M.TGETATTR: "fid:u32 request_mask:u64",
    _M.RGETATTR: "valid:u64 qid:qid mode:u32 uid:u32 gid:u32 nlink:u64 rdev:u64 size:u64 blksize:u64 blocks:u64 "
                 f"{_TIMES} gen:u64 data_version:u64",
    _M.TSETATTR: "fid:u32 valid:u32 mode:u32 uid:u32 gid:u32 size:u64 atime_sec:u64 atime_nsec:u64 mtime_sec:u64 "
                 "mtime_nsec:u64",
    _M.RSETATTR: "",
    _M.TXATTRWALK: "fid:u32 newfid:u32 name:s",
    _M.RXATTRWALK: "size:u64",
    _M.TXATTRCREATE: "fid:u32 name:s attr_size:u64 flags:u32",
    _M.RXATTRCREATE: "",
    _M.TREADDIR: "fid:u32 offset:u64 count:u32",
    _M.RREADDIR: "data:data",
    # Older clients send no datasync.
    _M.TFSYNC: "fid:u32 datasync:u32?",
    _M.RFSYNC: "",
    _M.TLOCK: "fid:u32 type:u8 flags:u32 start:u64 length:u64 proc_id:u32 client_id:s",
    _M.RLOCK: "status:u8",
    _M.TGETLOCK: "fid:u32 type:u8 start:u64 length:u64 proc_id:u32 client_id:s",
    _M.RGETLOCK: "type:u8 start:u64 length:u64 proc_id:u32 client_id:s",
    _M.TLINK: "dfid:u32 fid:u32 name:s",
    _M.RLINK: "",
    _M.TMKDIR: "dfid:u32 name:s mode:u32 gid:u32",
    _M.RMKDIR: "qid:qid",
    _M.TRENAMEAT: "olddirfid:u32 oldname:s newdirfid:u32 newname:s",
    _M.RRENAMEAT: "",
    _M.TUNLINKAT: "dirfid:u32 name:s flags:u32",
    _M.RUNLINKAT: "",
    _M.TVERSION: "msize:u32 version:s",
    _M.RVERSION: "msize:u32 version:s",
    _M.TAUTH: "afid:u32 uname:s aname:s n_uname:u32",
    _M.RAUTH: "aqid:qid",
    _M.TATTACH: "fid:u32 afid:u32 uname:s aname:s n_uname:u32",
    _M.RATTACH: "qid:qid",
    _M.TFLUSH: "oldtag:u16",
    _M.RFLUSH: "",
    _M.TWALK: "fid:u32 newfid:u32 names:s*",
    _M.RWALK: "qids:qid*",
    _M.TREAD: "fid:u32 offset:u64 count:u32",
    _M.RREAD: "data:data",
    _M.TWRITE: "fid:u32 offset:u64 data:data",
    _M.RWRITE: "count:u32",
    _M.TCLUNK: "fid:u32",
    _M.RCLUNK: "",
    _M.TREMOVE: "fid:u32",
    _M.RREMOVE: "",
}.items()}
"""The fields of each type of message, in order."""


def fixed_size(kind: MessageType) -> int:
    """Bytes of a message in which all that has no fixed size is empty, header included."""
    return HEADER.size + sum(member.kind.width for member in FIELDS[kind])


def offset_of(kind: MessageType, name: str) -> int:
    """Where a field starts, if nothing before it is of no fixed size.

    Raises:
        KeyError: the message has no such field, or it has no fixed place.

    """
    at = HEADER.size
    for member in FIELDS[kind]:
        if member.name == name:
            return at
        if member.kind in {Kind.STRING, Kind.DATA, Kind.STRINGS, Kind.QIDS}:
            break
        at += member.kind.width
    raise KeyError(name)


@dataclass(frozen=True, slots=True)
class Message:
    """A message as it was decoded.

    Attributes:
        type: what it is.
        tag: which request it is, or answers.
        values: its fields by name.

    """

    type: MessageType
    tag: int
    values: Mapping[str, Value]

    def number(self, name: str) -> int:
        """Return a field that is a number."""
        value = self.values[name]
        assert isinstance(value, int)
        return value

    def text(self, name: str) -> bytes:
        """Return a field that is a string, or data."""
        value = self.values[name]
        assert isinstance(value, bytes)
        return value

    def texts(self, name: str) -> tuple[bytes, ...]:
        """Return a field of several strings."""
        value = self.values[name]
        assert isinstance(value, tuple)
        return tuple(v for v in value if isinstance(v, bytes))

    def qid(self, name: str = "qid") -> Qid:
        """Return a field that is a qid."""
        value = self.values[name]
        assert isinstance(value, Qid)
        return value

    def qids(self, name: str = "qids") -> tuple[Qid, ...]:
        """Return a field of several qids."""
        value = self.values[name]
        assert isinstance(value, tuple)
        return tuple(v for v in value if isinstance(v, Qid))


def _pack(kind: Kind, value: Value) -> bytes:
    if isinstance(value, int):
        return value.to_bytes(kind.width, "little")
    if isinstance(value, Qid):
        return QID.pack(value.type, value.version, value.path)
    if isinstance(value, bytes):
        if kind is Kind.STRING and len(value) > _MAX_STRING:
            raise WireError("a string has at most 65,535 bytes", spec=_SPEC, detail=f"{len(value)} bytes")
        return len(value).to_bytes(kind.width, "little") + value
    if len(value) > MAX_NAMES:
        raise WireError("a walk has at most 16 names", spec=_SPEC, detail=str(len(value)))
    single = Kind.STRING if kind is Kind.STRINGS else Kind.QID
    return len(value).to_bytes(kind.width, "little") + b"".join(_pack(single, v) for v in value)


def encode(kind: MessageType, tag: int, /, **values: Value) -> bytes:
    """Build a message.

    Raises:
        WireError: a string or a list is longer than the format has room for.
        KeyError: a field is missing.
        OverflowError: a number does not fit its field.

    """
    body = b"".join(_pack(member.kind, values[member.name]) for member in FIELDS[kind])
    return HEADER.pack(HEADER.size + len(body), kind, tag) + body


class _Reader:
    """Bytes of a message from which fields are taken one by one."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.at = HEADER.size

    def take(self, length: int) -> bytes:
        end = self.at + length
        if end > len(self.data):
            raise WireError("a message holds all of its fields", spec=_SPEC,
                            detail=f"{length} bytes at {self.at} of {len(self.data)}")
        part = self.data[self.at:end]
        self.at = end
        return part

    def number(self, width: int) -> int:
        return int.from_bytes(self.take(width), "little")

    def value(self, kind: Kind) -> Value:
        match kind:
            case Kind.QID:
                return Qid(*QID.unpack(self.take(QID.size)))
            case Kind.STRING | Kind.DATA:
                return self.take(self.number(kind.width))
            case Kind.STRINGS:
                return tuple(self.take(self.number(2)) for _ in range(self._count()))
            case Kind.QIDS:
                return tuple(Qid(*QID.unpack(self.take(QID.size))) for _ in range(self._count()))
            case _:
                return self.number(kind.width)

    def _count(self) -> int:
        count = self.number(2)
        if count > MAX_NAMES:
            raise WireError("a walk has at most 16 names", spec=_SPEC, detail=str(count))
        return count


def decode(data: bytes) -> Message:
    """Read one message, which is all of `data`.

    Raises:
        WireError: it is too short, of a type that does not exist, or not as long as its fields or it says.

    """
    if len(data) < HEADER.size:
        raise WireError("a message has a header of 7 bytes", spec=_SPEC, detail=f"{len(data)} bytes")
    size, number, tag = HEADER.unpack_from(data)
    if size != len(data):
        raise WireError("a message is as long as it says", spec=_SPEC, detail=f"{len(data)} bytes, size {size}")
    try:
        kind = MessageType(number)
    except ValueError:
        raise WireError("a message is of a type that exists", spec=_SPEC, detail=str(number)) from None
    reader = _Reader(data)
    values: dict[str, Value] = {}
    for member in FIELDS[kind]:
        missing = member.optional and reader.at == len(data)
        values[member.name] = 0 if missing else reader.value(member.kind)
    if reader.at != len(data):
        raise WireError("a message ends with its last field", spec=_SPEC,
                        detail=f"{kind.name}: {len(data) - reader.at} bytes more")
    return Message(kind, tag, values)


@dataclass(frozen=True, slots=True)
class Dirent:
    """An entry of a directory, as Rreaddir lists it.

    Attributes:
        qid: the file.
        offset: where reading goes on behind this entry; means something to the server only.
        type: kind of file, as in readdir(3).
        name: without any path.

    """

    qid: Qid
    offset: int
    type: int
    name: bytes


def pack_dirent(entry: Dirent) -> bytes:
    """Build one entry."""
    qid = entry.qid
    return DIRENT.pack(qid.type, qid.version, qid.path, entry.offset, entry.type, len(entry.name)) + entry.name


def dirents(data: bytes) -> Iterator[Dirent]:
    """Read the entries of an Rreaddir.

    Raises:
        WireError: the last one is cut.

    """
    at = 0
    while at < len(data):
        if at + DIRENT.size > len(data):
            raise WireError("an entry of a directory is whole", spec=_SPEC, detail=f"{len(data) - at} bytes are left")
        kind, version, path, offset, file_type, length = DIRENT.unpack_from(data, at)
        at += DIRENT.size
        if at + length > len(data):
            raise WireError("an entry of a directory is whole", spec=_SPEC, detail=f"a name of {length} bytes")
        yield Dirent(Qid(kind, version, path), offset, file_type, data[at:at + length])
        at += length
