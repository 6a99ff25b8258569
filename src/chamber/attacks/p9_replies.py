"""Replies of a 9p server that are not what they should be: what lies are made of."""

from __future__ import annotations

import struct
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from chamber.attacks.attack import Attack
from chamber.device.p9 import P9Device
from chamber.wire.errors import DmaFault, WireError
from chamber.wire.p9 import NO_TAG, VERSION, Qid
from chamber.wire.p9_messages import (
    DIRENT,
    FIELDS,
    HEADER,
    QID,
    Dirent,
    MessageType,
    decode,
    dirents,
    encode,
    offset_of,
    pack_dirent,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from chamber.device.chain import Chain
    from chamber.device.queue import DeviceQueue

__all__ = (
    "ANY",
    "OTHER_PATH",
    "SESSION",
    "WILD",
    "Claimed",
    "Drop",
    "Endless",
    "Growing",
    "Long",
    "Replay",
    "Reply",
    "Rollback",
    "Withhold",
    "data_as",
    "error",
    "full_list",
    "last_entry",
    "listed",
    "name_length",
    "named",
    "put",
    "resized",
    "tagged",
    "text",
    "typed",
    "version",
    "walked",
    "whole",
    "with_qid",
)

_M = MessageType
ANY: Final = frozenset(kind for kind in _M if not kind.is_request)
SESSION: Final = 2
"""Replies by which a guest mounts: version and attach."""
WILD: Final = 0xFFFFFFFF
_ROOM: Final = 1 << 17
"""More than a guest has for a reply."""
OTHER_PATH: Final = 0x6368616D62657200
"""Path of a file that no server has."""

def _kind(data: bytes) -> int:
    return data[4] if len(data) >= HEADER.size else -1


def _name(kind: int) -> str:
    return _M(kind).name if kind in set(_M) else f"type {kind}"


class Reply(Attack):
    """Changes replies of some types.

    Args:
        kinds: types of replies.
        change: makes the reply from the honest one.
        after: replies of these types to leave as they are.
        times: replies to change.

    """

    def __init__(self, kinds: Iterable[MessageType], change: Callable[[bytes], bytes], *, after: int = 0,
                 times: int = 50) -> None:
        super().__init__()
        self._kinds = frozenset(kinds)
        self._change = change
        self._after = after
        self._left = times

    def response(self, queue: DeviceQueue, chain: Chain, data: bytes) -> bytes:  # noqa: ARG002 - the hook's signature
        """Answer otherwise."""
        if _kind(data) not in self._kinds or not self._left:
            return data
        if self._after:
            self._after -= 1
            return data
        changed = self._change(data)
        if changed == data:
            return data
        self._left -= 1
        self.strike(f"{_name(_kind(data))} changed")
        return changed


class Claimed(Reply):
    """Changes replies, writes the beginning of them and claims all: what follows is what the guest's memory held."""

    def __init__(self, kinds: Iterable[MessageType], change: Callable[[bytes], bytes], keep: int) -> None:
        super().__init__(kinds, change)
        self._keep = keep
        self._cut: set[int] = set()

    def response(self, queue: DeviceQueue, chain: Chain, data: bytes) -> bytes:
        """Write the beginning."""
        changed = super().response(queue, chain, data)
        if changed == data:
            return data
        self._cut.add(chain.head)
        return changed[:self._keep]

    def used(self, queue: DeviceQueue, chain: Chain, length: int) -> Iterable[tuple[int, int]]:  # noqa: ARG002
        """Claim all."""
        if chain.head not in self._cut:
            return ((chain.head, length),)
        self._cut.discard(chain.head)
        return ((chain.head, chain.writable_size),)


class Long(Reply):
    """Changes replies, and says of them in header and used length alike that they are longer than what was written.

    A guest that compares the two with each other alone believes it.

    Args:
        kinds: types of replies.
        change: makes the reply from the honest one.
        length: what to say.

    """

    def __init__(self, kinds: Iterable[MessageType], change: Callable[[bytes], bytes], length: int) -> None:
        super().__init__(kinds, lambda data: resized(lambda _true: length)(change(data)))
        self._length = length
        self._long: set[int] = set()

    def response(self, queue: DeviceQueue, chain: Chain, data: bytes) -> bytes:
        """Change the reply, and its header."""
        changed = super().response(queue, chain, data)
        if changed != data:
            self._long.add(chain.head)
        return changed

    def used(self, queue: DeviceQueue, chain: Chain, length: int) -> Iterable[tuple[int, int]]:  # noqa: ARG002
        """Say the same again."""
        if chain.head not in self._long:
            return ((chain.head, length),)
        self._long.discard(chain.head)
        return ((chain.head, self._length),)


def full_list(count: int) -> Callable[[bytes], bytes]:
    """Fill the room for a list with entries, and say that there are `count` bytes, so that what follows is believed."""
    def change(data: bytes) -> bytes:
        at = offset_of(MessageType.RREADDIR, "data")
        entries = data[at + 4:]
        if not entries:
            return data
        return data[:at] + count.to_bytes(4, "little") + entries * (_ROOM // len(entries) + 1)
    return change


class Replay(Attack):
    """Answers requests of a type with the reply to the one before.

    Args:
        kind: type of the replies.
        retag: make it look like the reply to this one.

    """

    def __init__(self, kind: MessageType, *, retag: bool) -> None:
        super().__init__()
        self._kind = kind
        self._retag = retag
        self._last = b""
        self._left = 50

    def response(self, queue: DeviceQueue, chain: Chain, data: bytes) -> bytes:  # noqa: ARG002 - the hook's signature
        """Answer with the past."""
        if _kind(data) != self._kind:
            return data
        last, self._last = self._last, data
        if self._retag and last:
            last = last[:5] + data[5:7] + last[7:]
        if not last or last == data or not self._left:
            return data
        self._left -= 1
        self.strike(f"{self._kind.name} of the request before")
        return last


class Rollback(Attack):
    """Answers reads of a place with what the first read of it returned."""

    def __init__(self) -> None:
        super().__init__()
        self._first: dict[bytes, bytes] = {}

    def response(self, queue: DeviceQueue, chain: Chain, data: bytes) -> bytes:  # noqa: ARG002 - the hook's signature
        """Answer with the past."""
        if _kind(data) != _M.RREAD:
            return data
        first = self._first.setdefault(chain.read(HEADER.size + 4, 12), data[HEADER.size:])
        if first == data[HEADER.size:]:
            return data
        self.strike("a read answered with what its place held first")
        return HEADER.pack(HEADER.size + len(first), _M.RREAD, HEADER.unpack_from(data)[2]) + first


class Drop(Attack):
    """Says that requests were served, and does not serve them.

    Args:
        kinds: types of requests.

    """

    def __init__(self, *kinds: MessageType) -> None:
        super().__init__()
        self._kinds = frozenset(kinds)
        self._left = 100

    def popped(self, queue: DeviceQueue, chain: Chain) -> bool:
        """Answer with success."""
        request = chain.read(0, HEADER.size + 16)
        kind = _kind(request)
        if kind not in self._kinds or not self._left:
            return True
        self._left -= 1
        tag = HEADER.unpack_from(request)[2]
        # A write ends its fixed part with the count, which is all that its reply says.
        count = {"count": int.from_bytes(chain.read(HEADER.size + 12, 4), "little")} if kind == _M.TWRITE else {}
        queue.push(chain.head, chain.write(encode(_M(kind + 1), tag, **count)))
        self.strike(f"{_name(kind)} acknowledged and dropped")
        return False


class Withhold(Attack):
    """Keeps a reply back for longer than the guest waits.

    Args:
        kind: type of the requests.
        late: seconds after which it comes; None for never.
        first: send it when the Tflush comes, before the answer to that.
        flush: answer Tflush at all.

    """

    def __init__(self, kind: MessageType, *, late: float | None = None, first: bool = False,
                 flush: bool = True) -> None:
        super().__init__()
        self._kind = kind
        self._late = late
        self._first = first
        self._flush = flush
        self._kept: tuple[DeviceQueue, Chain] | None = None
        self._left = 1

    def popped(self, queue: DeviceQueue, chain: Chain) -> bool:
        """Keep the request."""
        kind = _kind(chain.read(0, HEADER.size))
        if kind == self._kind and self._left:
            self._left -= 1
            self._kept = (queue, chain)
            self.strike(f"{self._kind.name} kept")
            if self._late is not None:
                self.device.schedule(self._late, self._send)
            return False
        if kind == _M.TFLUSH:
            if self._first:
                self._send()
            return self._flush
        return True

    def queue_stopping(self, queue: DeviceQueue) -> None:  # noqa: ARG002 - there is one
        """Forget what must not be touched any more."""
        self._kept = None

    def _send(self) -> None:
        kept, self._kept = self._kept, None
        if kept is None:
            return
        queue, chain = kept
        with suppress(DmaFault, WireError):
            assert isinstance(self.device, P9Device)
            reply = self.device.answer(chain.read(0, 1 << 16), chain.writable_size)
            queue.push(chain.head, chain.write(reply))
            self.strike(f"{self._kind.name} answered late")
            self.device.flush(queue)


class Endless(Attack):
    """Lists directories that never end: every reply goes on where the last one stopped."""

    def __init__(self) -> None:
        super().__init__()
        self._next = 1000
        self._left = 2000

    def response(self, queue: DeviceQueue, chain: Chain, data: bytes) -> bytes:  # noqa: ARG002 - the hook's signature
        """Answer with entries that are new each time."""
        if _kind(data) != _M.RREADDIR or not self._left:
            return data
        self._left -= 1
        entries = bytearray()
        while len(entries) < 4000:
            self._next += 1
            entries += pack_dirent(Dirent(Qid(0, 0, self._next), self._next, 8, b"f%d" % self._next))
        self.strike("a directory goes on")
        return encode(_M.RREADDIR, HEADER.unpack_from(data)[2], data=bytes(entries))


class Growing(Attack):
    """Says that an extended attribute is short, then that it is long, and has as many bytes."""

    def __init__(self) -> None:
        super().__init__()
        self._walks = 0

    def response(self, queue: DeviceQueue, chain: Chain, data: bytes) -> bytes:  # noqa: ARG002 - the hook's signature
        """Change the size with every second walk, and fill what is read of it."""
        if _kind(data) == _M.RXATTRWALK:
            self._walks += 1
            size = 4 if self._walks % 2 else 600
            self.strike(f"an extended attribute has {size} bytes")
            return encode(_M.RXATTRWALK, HEADER.unpack_from(data)[2], size=size)
        count = int.from_bytes(chain.read(HEADER.size + 12, 4), "little")
        if _kind(data) == _M.RREAD and self._walks and count == 600:
            return encode(_M.RREAD, HEADER.unpack_from(data)[2], data=b"A" * 600)
        return data


def resized(change: Callable[[int], int]) -> Callable[[bytes], bytes]:
    """Change the size that the header says, from the true one."""
    return lambda data: struct.pack("<I", change(len(data)) & WILD) + data[4:]


def typed(kind: int) -> Callable[[bytes], bytes]:
    """Change the type."""
    return lambda data: data[:4] + bytes((kind,)) + data[5:]


def tagged(change: Callable[[int], int]) -> Callable[[bytes], bytes]:
    """Change the tag, from the true one."""
    def changed(data: bytes) -> bytes:
        size, kind, tag = HEADER.unpack_from(data)
        return HEADER.pack(size, kind, change(tag) & 0xFFFF) + data[HEADER.size:]

    return changed


def whole(data: bytes) -> bytes:
    """Make the header's size right again."""
    return struct.pack("<I", len(data)) + data[4:]


def error(body: bytes) -> Callable[[bytes], bytes]:
    """Answer with an error of other fields."""
    return lambda data: whole(data[:4] + bytes((_M.RLERROR,)) + data[5:7] + body)


def put(kind: MessageType, name: str, value: int) -> Callable[[bytes], bytes]:
    """Put a number into a field, or into the count that a field of no fixed size begins with."""
    at = offset_of(kind, name)
    width = next(member.kind.width for member in FIELDS[kind] if member.name == name)
    return lambda data: data[:at] + (value & (1 << 8 * width) - 1).to_bytes(width, "little") + data[at + width:]


def with_qid(kind: MessageType, *, of_type: int | None = None, path: int | None = None,
         version: int = 0) -> Callable[[bytes], bytes]:
    """Change the qid of a reply; a version is added."""
    at = offset_of(kind, "qid")

    def changed(data: bytes) -> bytes:
        true = Qid(*QID.unpack_from(data, at))
        lie = QID.pack(true.type if of_type is None else of_type, (true.version + version) & WILD,
                       true.path if path is None else path)
        return data[:at] + lie + data[at + QID.size:]

    return changed


def walked(change: Callable[[tuple[Qid, ...]], tuple[Qid, ...]]) -> Callable[[bytes], bytes]:
    """Change the qids of a walk; there may be more of them than the codec takes."""
    def changed(data: bytes) -> bytes:
        qids = change(decode(data).qids())
        body = b"".join(QID.pack(q.type, q.version, q.path) for q in qids)
        return whole(data[:HEADER.size] + struct.pack("<H", len(qids)) + body)

    return changed


def listed(change: Callable[[list[Dirent]], list[Dirent]]) -> Callable[[bytes], bytes]:
    """Change the entries of a directory, where there are any."""
    def changed(data: bytes) -> bytes:
        entries = list(dirents(decode(data).text("data")))
        if not entries:
            return data
        body = b"".join(map(pack_dirent, change(entries)))
        return whole(data[:HEADER.size] + struct.pack("<I", len(body)) + body)

    return changed


def last_entry(**values: object) -> Callable[[list[Dirent]], list[Dirent]]:
    """Change the last entry of a list; what comes before it may be dots."""
    def changed(entries: list[Dirent]) -> list[Dirent]:
        last = entries[-1]
        fields = {"qid": last.qid, "offset": last.offset, "type": last.type, "name": last.name, **values}
        return [*entries[:-1], Dirent(**fields)]  # type: ignore[arg-type]

    return changed


def named(name: bytes) -> Callable[[bytes], bytes]:
    """Change the name of the last entry of a list."""
    return listed(last_entry(name=name))


def text(text: bytes, length: int | None = None) -> Callable[[bytes], bytes]:
    """Answer with another string, and claim another length for it."""
    return lambda data: whole(data[:HEADER.size] + struct.pack("<H", len(text) if length is None else length) + text)


def version(msize: int | None = None, text: bytes = VERSION) -> Callable[[bytes], bytes]:
    """Answer with another msize or version."""
    return lambda data: encode(_M.RVERSION, NO_TAG, version=text,
                               msize=decode(data).number("msize") if msize is None else msize)


def data_as(change: Callable[[bytes], bytes]) -> Callable[[bytes], bytes]:
    """Change what was read."""
    def changed(data: bytes) -> bytes:
        message = decode(data)
        return encode(message.type, message.tag, data=change(message.text("data")))

    return changed


def name_length(data: bytes) -> bytes:
    """Say that the first name of a list is longer than any reply."""
    at = HEADER.size + 4 + DIRENT.size - 2
    return data[:at] + b"\xff\xff" + data[at + 2:] if len(data) > at + 2 else data


