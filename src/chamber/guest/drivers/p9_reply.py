"""Replies of a 9P server, read out of the buffer that they were written into."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from chamber.wire.p9 import Qid, QidType
from chamber.wire.p9_messages import DIRENT, FIELDS, HEADER, QID, Dirent, Kind, MessageType

if TYPE_CHECKING:
    from collections.abc import Iterator

    from chamber.guest.untrusted import Checks, Untrusted
    from chamber.platform.heap import Object

__all__ = ("NAME_MAX", "QID_TYPES", "SPEC", "Reply", "require_name")

SPEC: Final = "5, device 9: 9P2000.L"
"""Virtio gives the device its number; the rules are those of the protocol."""
NAME_MAX: Final = 255
"""Bytes of a name that the guest has room for."""
QID_TYPES: Final = (QidType.FILE, QidType.SYMLINK, QidType.DIR)
"""What files of 9P2000.L are; the other bits are for servers of another kind."""
_READDIR_TYPES: Final = (0, 1, 2, 4, 6, 8, 10, 12)
_QID_OF_READDIR_TYPE: Final = {4: QidType.DIR, 10: QidType.SYMLINK}


def require_name(checks: Checks, name: bytes) -> None:
    """Check that a name from the server is one, and not a path: whoever uses it as one would leave the directory.

    Raises:
        DeviceViolation: it is none.

    """
    checks.require(0 < len(name) <= NAME_MAX and b"/" not in name and b"\0" not in name,
                   "a name is 1 to 255 bytes, without a slash or a NUL", SPEC, repr(name[:40]))


class Reply:
    """The fields of a reply.

    The reply lies in the driver's own memory, each byte was fetched from the device once. Where the checks are left
    out, a count that is too large leads beyond the buffer, as it does in C.

    Args:
        memory: the buffer.
        kind: which reply it is.
        end: bytes that the device says it wrote, header included.
        checks: whether what it says is checked.

    Raises:
        DeviceViolation: it is shorter or longer than its fields.

    """

    def __init__(self, memory: Object, kind: MessageType, end: int, checks: Checks) -> None:
        self.kind = kind
        self._memory = memory
        self._checks = checks
        self._end = end
        self._at: dict[str, tuple[int, int]] = {}
        at = HEADER.size
        for member in FIELDS[kind]:
            self._require_room(at, member.kind.width)
            where, size = at, member.kind.width
            if member.kind is Kind.QIDS:
                where, size = at + 2, QID.size * memory.get(at, 2)
            elif member.kind in {Kind.STRING, Kind.DATA}:
                where, size = at + member.kind.width, memory.get(at, member.kind.width)
            self._require_room(where, size)
            self._at[member.name] = (where, size)
            at = where + size
        checks.require(at == end, "a reply ends with its last field", SPEC, f"{kind.name}: {at} of {end} bytes")

    def _require_room(self, at: int, size: int) -> None:
        self._checks.require(at + size <= self._end, "a reply holds all of its fields", SPEC,
                             f"{self.kind.name}: {size} bytes at {at} of {self._end}")

    def number(self, name: str) -> Untrusted[int]:
        """Return a number, unchecked."""
        return self._checks.number(self._memory.get(*self._at[name]))

    def length(self, name: str) -> Untrusted[int]:
        """Return how many bytes a string or data has."""
        return self._checks.number(self._at[name][1])

    def content(self, name: str, length: int) -> bytes:
        """Return the first `length` bytes of a string or data; what they say is for the caller to judge."""
        return self._memory.read(self._at[name][0], length)

    def _qid(self, at: int) -> Qid:
        kind, version, path = QID.unpack(self._memory.read(at, QID.size))
        # Paths and versions are names of the server's own: any will do, as long as it keeps to them.
        return Qid(self._checks.number(kind).one_of(QID_TYPES, "a qid is of a file, a link or a directory", SPEC),
                   version, path)

    def qid(self) -> Qid:
        """Return the qid of a reply that has one.

        Raises:
            DeviceViolation: it is of no type that there is.

        """
        return self._qid(self._at["qid"][0])

    def qids(self, into: Object) -> list[Qid]:
        """Copy the qids of a walk into memory that has room for as many as were asked for, and return them.

        Raises:
            DeviceViolation: there are more, or one is of no type that there is.

        """
        start, size = self._at["qids"]
        size = self._checks.number(size).at_most(into.size, "a walk returns no more qids than names were asked for",
                                                 SPEC)
        into.write(self._memory.read(start, size))
        return [self._qid(start + i) for i in range(0, size, QID.size)]

    def entries(self, asked: int) -> Iterator[tuple[Dirent, int]]:
        """Read the entries of a directory one by one; with each comes the bytes that are left.

        Raises:
            DeviceViolation: an entry is cut, not named as a file can be, or of contradictory types.

        """
        checks, memory = self._checks, self._memory
        at, size = self._at["data"]
        end = at + checks.number(size).at_most(asked, "a server returns no more than was asked for", SPEC)
        while at < end:
            checks.require(at + DIRENT.size <= end, "an entry of a directory is whole", SPEC)
            *qid, offset, kind, length = DIRENT.unpack(memory.read(at, DIRENT.size))
            at += DIRENT.size
            checks.require(at + length <= end, "an entry of a directory is whole", SPEC, f"a name of {length} bytes")
            name = memory.read(at, length)
            require_name(checks, name)
            at += length
            kind = checks.number(kind).one_of(_READDIR_TYPES, "an entry is of a type that readdir(3) has", SPEC)
            qid_type = checks.number(qid[0]).one_of(QID_TYPES, "a qid is of a file, a link or a directory", SPEC)
            # Some servers leave the qid's type empty here; where both are given they say the same.
            checks.require(not kind or not qid_type or qid_type == _QID_OF_READDIR_TYPE.get(kind, QidType.FILE),
                           "type and qid of an entry agree", SPEC, f"{name!r}: {kind} and {qid_type}")
            yield Dirent(Qid(qid_type, qid[1], qid[2]), offset, kind, name), end - at
