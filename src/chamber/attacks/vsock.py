"""Lies in the socket device's protocol: lengths, names, states, credit, messages, events, and whose data it is."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from chamber.attacks.attack import LINUX, Aim, Attack, AttackSpec, Surface
from chamber.attacks.lifecycle import RemovalCompletion, RemovalGarbage
from chamber.attacks.notification import EarlyInterrupt, RemovalInterrupt
from chamber.attacks.vsock_packet import FILL, Events, Hoard, Inject, Packet, Pieces, Rewrite, Silence, answer
from chamber.wire.virtio import DeviceType
from chamber.wire.vsock import HDR_SIZE, HOST_CID, Header, SeqFlag, ShutdownFlag, VsockOp, VsockType

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ("vsock_attacks",)

_WILD: Final = 0xFFFFFFFF
_SEQ: Final = VsockType.SEQPACKET
_OP: Final = VsockOp
_DATA: Final = (VsockOp.RW,)
_MARK: Final = b"\xC5" * 64
_FOREIGN: Final = 77
_RESERVED: Final = (0, 1, HOST_CID, _WILD, 1 << 32 | 3, (1 << 64) - 1)


def _headers(ops: tuple[int, ...] = tuple(VsockOp), *, skip: int = 0, claim: int | None = None,
             kind: VsockType | None = None, **fields: int) -> Callable[[], Attack]:
    """Fields of the header that are changed."""
    return lambda: Rewrite(lambda header, data: Packet(header._replace(**fields), data, claim), ops=ops, skip=skip,
                           kind=kind)


def _on(op: VsockOp, *packets: tuple[int, bytes, dict[str, int]], repeat: int = 1, delay: float = 0.0, skip: int = 0,
        kind: VsockType | None = None) -> Callable[[], Attack]:
    """Packets on the connection that the guest's packet belongs to."""
    def make(heard: Header) -> list[Packet]:
        return [answer(heard, what, data, **fields) for what, data, fields in packets] * repeat

    return lambda: Inject(op, make, delay=delay, skip=skip, kind=kind)


def _many(op: VsockOp, count: int, one: Callable[[Header, int], Packet]) -> Callable[[], Attack]:
    """Numbered packets."""
    return lambda: Inject(op, lambda heard: [one(heard, i) for i in range(count)], times=1)


class _Swap:
    """Gives each connection what was another's, as long as it was itself."""

    def __init__(self) -> None:
        self._latest: dict[int, bytes] = {}

    def __call__(self, header: Header, data: bytes) -> Packet:
        others = [other for port, other in self._latest.items() if port != header.dst_port]
        self._latest[header.dst_port] = data
        return Packet(header, (others[-1] * len(data))[:len(data)] if others else data)


class _Replay:
    """Gives each connection what it was given before."""

    def __init__(self) -> None:
        self._first: dict[int, bytes] = {}

    def __call__(self, header: Header, data: bytes) -> Packet:
        first = self._first.setdefault(header.dst_port, data)
        return Packet(header, (first * len(data))[:len(data)])


class _Creep:
    """Counts forwarded bytes wrongly, by a little more each time."""

    def __init__(self, step: int) -> None:
        self._step = step
        self._turn = 0

    def __call__(self, header: Header, data: bytes) -> Packet:
        self._turn += 1
        return Packet(header._replace(fwd_cnt=header.fwd_cnt + self._turn * self._step & _WILD), data)


def _halved(header: Header, data: bytes) -> Packet:
    half = data[:len(data) // 2]
    return Packet(header._replace(len=len(half)), half)


def _in_pieces(heard: Header) -> list[Packet]:
    """A message in small pieces."""
    return [answer(heard, _OP.RW, b"p" * 100, flags=SeqFlag.EOM if i == 4 else 0) for i in range(5)]


_STRANGERS: Final = (("cid", {"src_cid": _FOREIGN}), ("port", {"src_port": 4242}))
"""Whom a connection is not with."""


def _bytes() -> Callable[[], Attack]:
    """More messages than the guest has memory for, and of fewer bytes than it has space for."""
    return lambda: Inject(_OP.RW, lambda h: [answer(h, _OP.RW, b"1", flags=SeqFlag.EOM)] * 60000, times=1, retries=1500)


_Row = tuple[str, Surface, Aim, str, str, "Callable[[], Attack]", tuple[str, ...]]

_LENGTHS: Final[tuple[_Row, ...]] = (
    ("len-wild", Surface.LENGTH, Aim.MEMORY, "5.10.6", "says that a packet has 2**32 - 1 bytes of data",
     _headers(_DATA, len=_WILD), ("use", "many")),
    ("len-wraps", Surface.LENGTH, Aim.MEMORY, "5.10.6", "says a length that is 0 with the header added",
     _headers(_DATA, len=(1 << 32) - HDR_SIZE), ("use", "many")),
    ("len-beyond-buffer", Surface.LENGTH, Aim.MEMORY, "5.10.6", "says a length beyond every receive buffer",
     _headers(_DATA, len=65536), ("use", "many")),
    ("len-beyond-written", Surface.LENGTH, Aim.LEAK, "5.10.6", "says 500 bytes more than it wrote",
     lambda: Rewrite(lambda h, d: Packet(h._replace(len=h.len + 500), d), ops=_DATA), ("use", "many")),
    ("len-stale", Surface.LENGTH, Aim.LEAK, "2.7.8.2", "writes 8 bytes of data and claims 900, in used.len as well",
     lambda: Rewrite(lambda h, d: Packet(h._replace(len=900), d[:8], HDR_SIZE + 900), ops=_DATA), ("use", "many")),
    ("len-fill", Surface.LENGTH, Aim.LEAK, "2.7.8.2", "claims the whole buffer in used.len",
     _headers(claim=FILL), ("use", "many")),
    ("len-zero", Surface.LENGTH, Aim.DENIAL, "5.10.6", "says that packets with data have none",
     _headers(_DATA, len=0), ("use",)),
    ("len-one", Surface.LENGTH, Aim.DENIAL, "5.10.6", "says that packets with data have one byte",
     _headers(_DATA, len=1), ("use",)),
    ("len-of-control", Surface.LENGTH, Aim.MEMORY, "5.10.6", "says that packets without data have 4,000 bytes",
     _headers((_OP.RESPONSE, _OP.CREDIT_UPDATE, _OP.RST, _OP.SHUTDOWN), len=4000), ("use", "listen")),
    *((f"header-cut-{n}", Surface.LENGTH, Aim.MEMORY, "5.10.6", f"returns packets with used.len {n}",
       _headers(skip=1, claim=n), ("use", "listen")) for n in (0, 1, 28, HDR_SIZE - 1)),
)

_NAMES: Final[tuple[_Row, ...]] = (
    *((f"type-{t}", Surface.PAYLOAD, Aim.MEMORY, "5.10.6.4", f"sends packets of type {t}, which does not exist",
       _headers(_DATA, type=t), ("use", "many")) for t in (0, 3, 0xFFFF)),
    ("type-other", Surface.PAYLOAD, Aim.MEMORY, "5.10.6.4", "sends data of streams as that of seqpacket sockets",
     _headers(_DATA, kind=VsockType.STREAM, type=_SEQ), ("use", "many")),
    ("type-response", Surface.PAYLOAD, Aim.MEMORY, "5.10.6.4", "answers requests for streams as seqpacket sockets",
     _headers((_OP.RESPONSE,), kind=VsockType.STREAM, type=_SEQ), ("use", "many")),
    *((f"op-{o}", Surface.PAYLOAD, Aim.MEMORY, "5.10.6", f"sends packets with operation {o}, which does not exist",
       _headers(_DATA, op=o), ("use", "many")) for o in (0, 8, 0xFFFF)),
    ("src-cid-foreign", Surface.PAYLOAD, Aim.DECEPTION, "5.10.6.2", "sends packets that are not from the host",
     _headers(skip=1, src_cid=_FOREIGN), ("use", "listen")),
    ("src-cid-wide", Surface.PAYLOAD, Aim.DECEPTION, "5.10.6.2", "sends packets from a context id with 33 bits",
     _headers(skip=1, src_cid=1 << 32 | HOST_CID), ("use", "listen")),
    ("dst-cid-foreign", Surface.PAYLOAD, Aim.DECEPTION, "5.10.6.2", "sends packets that are for another guest",
     _headers(skip=1, dst_cid=_FOREIGN), ("use", "listen")),
    *((f"cid-reserved-{i}", Surface.PAYLOAD, Aim.MEMORY, "5.10.4", f"sends packets from and to context id {cid:#x}",
       _headers(skip=1, src_cid=cid, dst_cid=cid), ("use", "listen"))
      for i, cid in enumerate(_RESERVED)),
    ("port-unknown", Surface.PAYLOAD, Aim.MEMORY, "5.10.6.4", "sends every operation to ports that nobody has",
     _on(_OP.RW, *((op, b"", {"dst_port": 60000 + op}) for op in range(9))), ("use", "listen")),
    ("port-of-listener", Surface.PAYLOAD, Aim.MEMORY, "5.10.6.5", "sends every operation to a port that listens",
     _on(_OP.RESPONSE, *((op, b"", {"src_port": 70000 + op}) for op in (0, 2, 3, 4, 5, 6, 7, 8))), ("listen",)),
    ("port-any", Surface.PAYLOAD, Aim.MEMORY, "5.10.6.4", "sends packets from and to the port 2**32 - 1",
     _on(_OP.RW, *((op, b"", {"src_port": _WILD, "dst_port": _WILD}) for op in range(1, 8))), ("use", "listen")),
)

_STATES: Final[tuple[_Row, ...]] = (
    ("response-twice", Surface.LIFECYCLE, Aim.MEMORY, "5.10.6.5", "answers a request twice",
     _on(_OP.REQUEST, (_OP.RESPONSE, b"", {}), repeat=2), ("use", "many")),
    ("response-late", Surface.LIFECYCLE, Aim.MEMORY, "5.10.6.5", "answers a request again when data was sent",
     _on(_OP.RW, (_OP.RESPONSE, b"", {}), repeat=4), ("use", "many")),
    ("response-unasked", Surface.LIFECYCLE, Aim.MEMORY, "5.10.6.5", "answers what the guest never asked for",
     _on(_OP.REQUEST, *((_OP.RESPONSE, b"", {"dst_port": p}) for p in (0, 1, 5000, 60000))), ("use", "listen")),
    ("request-connected", Surface.LIFECYCLE, Aim.MEMORY, "5.10.6.5", "asks for a connection that there is",
     _on(_OP.RW, (_OP.REQUEST, b"", {}), repeat=4), ("use", "many")),
    ("request-repeated", Surface.LIFECYCLE, Aim.MEMORY, "5.10.6.5", "asks for the connection that the guest accepted",
     _on(_OP.RESPONSE, (_OP.REQUEST, b"", {}), repeat=20), ("listen",)),
    ("request-flood", Surface.LIFECYCLE, Aim.MEMORY, "5.10.6.5", "asks for 300 connections that nobody accepts",
     _many(_OP.RESPONSE, 300, lambda h, i: answer(h, _OP.REQUEST, src_port=100000 + i)), ("listen",)),
    ("request-flood-foreign", Surface.LIFECYCLE, Aim.DENIAL, "5.10.6.2",
     "asks for 300 connections in the name of other context ids",
     _many(_OP.RESPONSE, 300, lambda h, i: answer(h, _OP.REQUEST, src_port=200000 + i, src_cid=3 + i)), ("listen",)),
    ("request-flood-local", Surface.LIFECYCLE, Aim.DENIAL, "5.10.4",
     "asks for 300 connections in the name of the guest itself",
     _many(_OP.RESPONSE, 300, lambda h, i: answer(h, _OP.REQUEST, src_port=200000 + i, src_cid=1)), ("listen",)),
    ("request-and-rst", Surface.LIFECYCLE, Aim.MEMORY, "5.10.6.5", "asks for 50 connections and ends them at once",
     _many(_OP.RESPONSE, 100, lambda h, i: answer(h, _OP.RST if i % 2 else _OP.REQUEST, src_port=300000 + i // 2)),
     ("listen",)),
    ("rst-and-response", Surface.LIFECYCLE, Aim.MEMORY, "5.10.6.5", "refuses a connection, then accepts it",
     _on(_OP.REQUEST, (_OP.RST, b"", {}), (_OP.RESPONSE, b"", {}), (_OP.RW, b"data", {})), ("use", "many")),
    ("rst-in-use", Surface.LIFECYCLE, Aim.MEMORY, "5.10.6.5", "ends connections while data is on its way, twice each",
     _on(_OP.RW, (_OP.RST, b"", {}), (_OP.RST, b"", {}), skip=1), ("use", "many")),
    ("rst-and-data", Surface.LIFECYCLE, Aim.MEMORY, "5.10.6.5", "ends connections and goes on to send on them",
     _on(_OP.RW, (_OP.RST, b"", {}), (_OP.RW, b"data", {}), (_OP.SHUTDOWN, b"", {"flags": 3}),
         (_OP.CREDIT_REQUEST, b"", {}), skip=1), ("use", "many")),
    ("rst-at-close", Surface.LIFECYCLE, Aim.MEMORY, "5.10.6.5", "ends a connection 20 times when the guest closes it",
     _on(_OP.SHUTDOWN, (_OP.RST, b"", {}), repeat=20), ("use", "many")),
    ("rst-after-close", Surface.LIFECYCLE, Aim.MEMORY, "5.10.6.5",
     "sends every operation a moment after a connection ended",
     _on(_OP.SHUTDOWN, *((op, b"", {"flags": 3}) for op in (5, 4, 6, 7, 2, 1, 3)), delay=0.02), ("use", "many")),
    ("data-at-close", Surface.LIFECYCLE, Aim.MEMORY, "5.10.6.5", "sends data and credit when the guest closes",
     _on(_OP.SHUTDOWN, (_OP.RW, _MARK, {}), (_OP.CREDIT_REQUEST, b"", {}), (_OP.SHUTDOWN, b"", {"flags": 3}),
         repeat=4), ("use", "many")),
    ("data-early", Surface.LIFECYCLE, Aim.MEMORY, "5.10.6.5", "sends data on a connection before it accepts it",
     _on(_OP.REQUEST, (_OP.RW, b"early", {})), ("use", "many")),
    *((f"{what}-of-stranger-{whose}", Surface.LIFECYCLE, Aim.DENIAL, "5.10.6.2",
       f"sends {what.upper()} on connections from another {whose} than they are with",
       _on(_OP.RW, (op, b"", {**fields, "flags": 3}), repeat=2), ("use", "many"))
      for what, op in (("rst", _OP.RST), ("shutdown", _OP.SHUTDOWN)) for whose, fields in _STRANGERS),
    ("shutdown-early", Surface.LIFECYCLE, Aim.MEMORY, "5.10.6.5", "shuts a connection down before it accepts it",
     _on(_OP.REQUEST, (_OP.SHUTDOWN, b"", {"flags": 3})), ("use", "many")),
    ("shutdown-and-data", Surface.LIFECYCLE, Aim.DECEPTION, "5.10.6.5", "says that it sends no more, and sends",
     _on(_OP.RW, (_OP.SHUTDOWN, b"", {"flags": ShutdownFlag.SEND}), (_OP.RW, _MARK, {}), skip=1), ("use", "many")),
    ("shutdown-both-and-data", Surface.LIFECYCLE, Aim.MEMORY, "5.10.6.5", "ends a connection in order, and sends on it",
     _on(_OP.RW, (_OP.RW, _MARK, {}), (_OP.SHUTDOWN, b"", {"flags": 3}), (_OP.RW, _MARK, {}), (_OP.RST, b"", {}),
         (_OP.RW, _MARK, {}), skip=1), ("use", "many")),
    ("shutdown-flags", Surface.PAYLOAD, Aim.MEMORY, "5.10.6.5", "shuts down with flags that do not exist",
     _on(_OP.RW, *((_OP.SHUTDOWN, b"", {"flags": f}) for f in (0, 4, 0x80000000, 0xFFFFFFFC)), skip=1),
     ("use", "many")),
    ("shutdown-storm", Surface.LIFECYCLE, Aim.MEMORY, "5.10.6.5", "says 100 times that it receives no more",
     _on(_OP.RW, (_OP.SHUTDOWN, b"", {"flags": ShutdownFlag.RECEIVE}), repeat=100), ("use", "many")),
    ("close-ignored", Surface.LIFECYCLE, Aim.DENIAL, "5.10.6.5", "does not answer when the guest closes",
     lambda: Silence(_OP.SHUTDOWN), ("use", "many")),
    ("request-ignored", Surface.LIFECYCLE, Aim.DENIAL, "5.10.6.5", "does not answer when the guest connects",
     lambda: Silence(_OP.REQUEST), ("use",)),
)

_CREDIT: Final[tuple[_Row, ...]] = (
    ("credit-exceeded", Surface.PAYLOAD, Aim.MEMORY, "5.10.6.3", "sends far more than the guest has space for",
     _many(_OP.RW, 400, lambda h, _i: answer(h, _OP.RW, b"\xC5" * 900)), ("use", "many")),
    ("credit-exceeded-by-one", Surface.PAYLOAD, Aim.MEMORY, "5.10.6.3",
     "sends one byte more than the guest has space for",
     lambda: Inject(_OP.RW, lambda h: [answer(h, _OP.RW, b"\xC5" * min(900, left))
                                       for left in range(h.buf_alloc + 1, 0, -900)], times=1), ("use",)),
    ("data-of-one-byte", Surface.PAYLOAD, Aim.DENIAL, "5.10.6.3",
     "sends 60,000 messages of one byte, which take a buffer each", _bytes(), ("use",)),
    ("data-of-nothing", Surface.PAYLOAD, Aim.DENIAL, "5.10.6", "sends 400 packets of data without data",
     _on(_OP.RW, (_OP.RW, b"", {}), repeat=200), ("use", "many")),
    ("buf-alloc-zero", Surface.PAYLOAD, Aim.DENIAL, "5.10.6.3", "says that it has no space",
     _headers(buf_alloc=0), ("use", "listen")),
    ("buf-alloc-max", Surface.PAYLOAD, Aim.MEMORY, "5.10.6.3", "says that it has 2**32 - 1 bytes of space",
     _headers(buf_alloc=_WILD), ("use", "listen")),
    ("buf-alloc-shrinks", Surface.PAYLOAD, Aim.MEMORY, "5.10.6.3",
     "makes its space smaller than what is on its way, and forwards nothing",
     _headers(skip=1, buf_alloc=1, fwd_cnt=0), ("use", "many")),
    ("fwd-beyond", Surface.PAYLOAD, Aim.MEMORY, "5.10.6.3", "forwards 100,000 bytes more than the guest sent",
     lambda: Rewrite(lambda h, d: Packet(h._replace(fwd_cnt=h.fwd_cnt + 100000), d)), ("use", "many")),
    ("fwd-beyond-by-one", Surface.PAYLOAD, Aim.MEMORY, "5.10.6.3", "forwards a byte more than the guest sent each time",
     lambda: Rewrite(_Creep(1)), ("use", "many")),
    ("fwd-backwards", Surface.PAYLOAD, Aim.DENIAL, "5.10.6.3", "takes back, more each time, what it forwarded",
     lambda: Rewrite(_Creep(-50)), ("use", "many")),
    ("fwd-opposite", Surface.PAYLOAD, Aim.MEMORY, "5.10.6.3", "forwards 2**31 bytes more than it did",
     lambda: Rewrite(lambda h, d: Packet(h._replace(fwd_cnt=h.fwd_cnt ^ 1 << 31), d)), ("use", "many")),
    ("credit-requests", Surface.PAYLOAD, Aim.DENIAL, "5.10.6.3", "asks for credit 400 times",
     _on(_OP.RW, (_OP.CREDIT_REQUEST, b"", {}), repeat=200), ("use", "many")),
    ("credit-requests-elsewhere", Surface.PAYLOAD, Aim.DENIAL, "5.10.6.1",
     "sends 400 packets that each need an answer, on no connection",
     _many(_OP.RW, 400, lambda h, i: answer(h, _OP.CREDIT_REQUEST, dst_port=50000 + i)), ("use", "many")),
    ("credit-updates-ignored", Surface.PAYLOAD, Aim.DENIAL, "5.10.6.3", "does not hear what space the guest has",
     lambda: Silence(_OP.CREDIT_UPDATE), ("use", "many")),
)

_MESSAGES: Final[tuple[_Row, ...]] = (
    ("message-endless", Surface.PAYLOAD, Aim.DENIAL, "5.10.6.6.1", "never says that a message ends",
     _headers(_DATA, kind=_SEQ, flags=0), ("use", "listen")),
    ("message-endless-flood", Surface.PAYLOAD, Aim.MEMORY, "5.10.6.6.1", "sends parts of a message without end",
     lambda: Inject(_OP.RW, lambda h: [answer(h, _OP.RW, b"\xC5" * 900)] * 400, kind=_SEQ, times=1),
     ("use",)),
    ("message-cut", Surface.PAYLOAD, Aim.DECEPTION, "5.10.6.6.1", "ends every message in its middle",
     lambda: Rewrite(lambda h, d: Packet(h._replace(len=len(d) // 2, flags=1), d[:len(d) // 2]), ops=_DATA, kind=_SEQ),
     ("use", "listen")),
    ("message-end-everywhere", Surface.PAYLOAD, Aim.DECEPTION, "5.10.6.6.1", "ends a message with every packet",
     _headers(flags=SeqFlag.EOM | SeqFlag.EOR), ("use", "listen")),
    ("message-flags", Surface.PAYLOAD, Aim.MEMORY, "5.10.6.6.1", "sends messages with flags that do not exist",
     _headers(_DATA, flags=_WILD), ("use", "listen")),
    ("message-empty", Surface.PAYLOAD, Aim.MEMORY, "5.10.6.6.1", "sends 400 messages of nothing",
     _on(_OP.RW, (_OP.RW, b"", {"flags": SeqFlag.EOM}), repeat=200, kind=_SEQ), ("use",)),
    ("message-pieces", Surface.PAYLOAD, Aim.DECEPTION, "5.10.6.6.1", "cuts what it sends in pieces of 100 bytes",
     lambda: Pieces(100), ("use", "listen")),
    ("message-unasked", Surface.CONTENT, Aim.DECEPTION, "5.10.6.6", "sends a message of its own in five small pieces",
     lambda: Inject(_OP.RW, _in_pieces, kind=_SEQ), ("use",)),
    ("message-end-after-shutdown", Surface.LIFECYCLE, Aim.MEMORY, "5.10.6.6.1",
     "begins a message, says that it sends no more, and ends the message",
     _on(_OP.RW, (_OP.RW, b"begin", {}), (_OP.SHUTDOWN, b"", {"flags": 2}), (_OP.RW, b"end", {"flags": 1}),
         kind=_SEQ), ("use",)),
)

_CONTENT: Final[tuple[_Row, ...]] = (
    ("data-of-another", Surface.CONTENT, Aim.DECEPTION, "5.10.6.2", "gives each connection the data of another",
     lambda: Rewrite(_Swap(), ops=_DATA), ("many",)),
    ("data-replayed", Surface.CONTENT, Aim.DECEPTION, "5.10.6.5", "gives each connection its first data again",
     lambda: Rewrite(_Replay(), ops=_DATA), ("use", "many")),
    ("data-twice", Surface.CONTENT, Aim.DECEPTION, "5.10.6.5", "sends data that nobody sent, before the data",
     _on(_OP.RW, (_OP.RW, _MARK, {})), ("use", "many")),
    *((f"data-of-stranger-{what}", Surface.CONTENT, Aim.DECEPTION, "5.10.6.2",
       f"sends data on connections from another {what} than they are with", _on(_OP.RW, (_OP.RW, _MARK, fields)),
       ("use", "many")) for what, fields in _STRANGERS),
    ("data-halved", Surface.CONTENT, Aim.DENIAL, "5.10.6.5", "loses half of each packet's data",
     lambda: Rewrite(_halved, ops=_DATA), ("use",)),
    ("data-inverted", Surface.CONTENT, Aim.DECEPTION, "5.10.6.5", "changes the data",
     lambda: Rewrite(lambda h, d: Packet(h, bytes(b ^ 0xFF for b in d)), ops=_DATA), ("use", "listen")),
    ("port-swapped", Surface.CONTENT, Aim.DECEPTION, "5.10.6.2", "delivers data to the connection that was made next",
     lambda: Rewrite(lambda h, d: Packet(h._replace(dst_port=h.dst_port + 1), d), ops=_DATA), ("many",)),
)

_RESET: Final = ((0, None),)

_EVENTS: Final[tuple[_Row, ...]] = (
    *((f"event-{i:x}", Surface.PAYLOAD, Aim.MEMORY, "5.10.6.7", f"sends the event {i:#x}, which does not exist",
       lambda i=i: Events(((i, None),) * 4), ("use", "inspect")) for i in (1, 0x80000000, _WILD)),
    *((f"event-len-{n}", Surface.LENGTH, Aim.MEMORY, "5.10.6.7", f"sends events with used.len {n}",
       lambda n=n: Events(((0, n),) * 4), ("use", "inspect")) for n in (0, 1, 3)),
    ("event-reset", Surface.LIFECYCLE, Aim.MEMORY, "5.10.6.7", "says that the transport was reset, and goes on",
     lambda: Events(_RESET), ("use", "many")),
    ("event-reset-connecting", Surface.LIFECYCLE, Aim.MEMORY, "5.10.6.7", "resets the transport at a request",
     lambda: Events(_RESET, op=_OP.REQUEST), ("use", "many")),
    ("event-reset-storm", Surface.LIFECYCLE, Aim.MEMORY, "5.10.6.7", "resets the transport 100 times, to another cid",
     lambda: Events(_RESET * 100, cids=tuple(range(100, 200)), pause=0.005), ("use", "many")),
    ("event-cid-changes", Surface.LIFECYCLE, Aim.DENIAL, "5.10.6.7", "calls the guest otherwise after a reset",
     lambda: Events(_RESET, cids=(_FOREIGN,)), ("use", "inspect")),
    *((f"event-cid-reserved-{i}", Surface.CONFIG, Aim.MEMORY, "5.10.4", f"calls the guest {cid:#x} after a reset",
       lambda cid=cid: Events(_RESET * 2, cids=(cid, cid)), ("use", "inspect")) for i, cid in enumerate(_RESERVED)),
)

_SUSPEND: Final = (
    ("suspend-interrupt", Surface.NOTIFICATION, "2.4.1",
     "interrupts while a driver takes its queues back to sleep", RemovalInterrupt),
    ("suspend-completion", Surface.LIFECYCLE, "2.4.1",
     "completes all that is outstanding while a driver takes its queues back to sleep", RemovalCompletion),
    ("suspend-garbage", Surface.LIFECYCLE, "2.4.1",
     "fills the used rings while a driver takes them back to sleep", RemovalGarbage),
    ("resume-interrupt", Surface.NOTIFICATION, "3.1.1",
     "interrupts the queues of a driver that starts, or wakes up, before DRIVER_OK", EarlyInterrupt),
)
"""The model does not sleep."""

_KNOWN: Final = {
    "suspend-interrupt": "vsock/virtio: read virtqueues under worker locks, Linux 6.1.183",
    "suspend-completion": "CVE-2026-80932, vsock/virtio: flush works in dependency order",
    "len-wild": "CVE-2025-39718, vsock/virtio: Validate length in packet header before skb_put()",
    "buf-alloc-shrinks": "vsock/virtio: Fix unsigned integer wrap around in virtio_transport_has_space()",
    "data-of-stranger-cid": "CVE-2026-99123",
    "data-of-stranger-port": "CVE-2026-99123",
    "data-of-one-byte": "vsock/virtio: fix potential unbounded skb queue, Linux 6.12.94",
    "request-flood-foreign": "CVE-2026-46214, vsock/virtio: fix accept queue count leak on transport mismatch",
    "rst-after-close": "CVE-2025-21669, vsock/virtio: discard packets if the transport changes",
}

# What only a guest meets that sends as fast as it may, or reads nothing.
_FLOOD: Final = (
    ("hoard-wild", "5.10.6.3", "says that it has 2**32 - 1 bytes of space, and keeps all buffers",
     lambda: Hoard(_WILD), "flood"),
    ("hoard-shrinks", "5.10.6.3", "has less space than what is on its way, and keeps all buffers",
     lambda: Hoard(1), "flood"),
    ("unread-bytes", "5.10.6.3", "sends 60,000 messages of one byte that nobody reads", _bytes(), "hold"),
    ("unread-nothing", "5.10.6", "sends 60,000 messages of no bytes that nobody reads",
     lambda: Inject(_OP.RW, lambda h: [answer(h, _OP.RW, flags=SeqFlag.EOM)] * 60000, times=1, retries=1500), "hold"),
)

# What only a guest meets that has connections to itself, by ports that a host can guess.
_LOCAL: Final = tuple(
    (f"local-{name}", Surface.CONTENT, "5.10.4", f"{what} in the name of the guest itself",
     _on(_OP.REQUEST, *((op, data, {"src_cid": 1, "src_port": there, "dst_port": here, "flags": flags})
                        for there, here in ((5000, 1100), (1100, 5000)))))
    for name, what, op, data, flags in (
        ("data", "sends data", _OP.RW, b"data of the host's", 0),
        ("shutdown", "ends connections", _OP.SHUTDOWN, b"", 3),
        ("reset", "resets connections", _OP.RST, b"", 0)))


def vsock_attacks() -> Iterator[AttackSpec]:
    """Attacks on the socket device's protocol."""
    for what, surface, aim, spec, summary, make, stimuli in (
            *_LENGTHS, *_NAMES, *_STATES, *_CREDIT, *_MESSAGES, *_CONTENT, *_EVENTS):
        yield AttackSpec(f"vsock-{what}", DeviceType.VSOCK, surface, aim, f"virtio 1.3, {spec}",
                         f"The device {summary}.", make, stimuli=stimuli, known=_KNOWN.get(what, ""))
    for what, surface, spec, summary, make in _LOCAL:
        yield AttackSpec(f"vsock-{what}", DeviceType.VSOCK, surface, Aim.DECEPTION, f"virtio 1.3, {spec}",
                         f"The device {summary}.", make, stimuli=("local",), targets=LINUX)
    for what, spec, summary, make, stimulus in _FLOOD:
        yield AttackSpec(f"vsock-{what}", DeviceType.VSOCK, Surface.PAYLOAD, Aim.DENIAL, f"virtio 1.3, {spec}",
                         f"The device {summary}.", make, stimuli=(stimulus,), targets=LINUX)
    for what, surface, spec, summary, make in _SUSPEND:
        yield AttackSpec(f"vsock-{what}", DeviceType.VSOCK, surface, Aim.MEMORY, f"virtio 1.3, {spec}",
                         f"The device {summary}.", make, stimuli=("use", "suspend", "many"),
                         targets=LINUX, known=_KNOWN.get(what, ""))
