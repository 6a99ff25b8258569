"""Lies in the disk's own protocol: status, data, identity, size and cache."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Final

from chamber.attacks.attack import EVERYWHERE, MODEL, Aim, Attack, AttackSpec, Surface
from chamber.device.blk import BlkDevice
from chamber.wire.blk import CONFIG, REQUEST_STRUCT, SECTOR_SIZE, BlkStatus, RequestType
from chamber.wire.errors import DmaFault
from chamber.wire.virtio import DeviceType, bit

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from chamber.device.chain import Chain
    from chamber.device.queue import DeviceQueue

__all__ = ("blk_attacks",)

_ANY: Final = frozenset(RequestType)
_SNAPSHOT: Final = 16 << 20
_REQUESTS: Final = 3
"""Requests to serve before a lie, so that the guest gets past its probe."""


def _request(chain: Chain) -> tuple[int, int]:
    """Type and sector of a request; type -1 for none."""
    raw = chain.read(0, REQUEST_STRUCT.size)
    if len(raw) < REQUEST_STRUCT.size or not chain.writable_size:
        return -1, 0
    kind, _, sector = REQUEST_STRUCT.unpack(raw)
    return kind, sector


class Reply(Attack):
    """Changes the answers to requests of some types.

    Args:
        kinds: request types.
        change: makes the answer, data and status byte, from the honest one.
        after: answers to leave as they are.
        times: answers to change.

    """

    def __init__(self, kinds: frozenset[RequestType], change: Callable[[bytes], bytes], *, after: int = 0,
                 times: int = 50) -> None:
        super().__init__()
        self._kinds = kinds
        self._change = change
        self._after = after
        self._left = times

    def response(self, queue: DeviceQueue, chain: Chain, data: bytes) -> bytes:  # noqa: ARG002 - the hook's signature
        """Answer otherwise."""
        kind, sector = _request(chain)
        if kind not in self._kinds or not self._left:
            return data
        if self._after:
            self._after -= 1
            return data
        self._left -= 1
        changed = self._change(data)
        self.strike(f"{RequestType(kind).name} of sector {sector}: {len(changed)} bytes for {len(data)}, "
                    f"status {changed[-1] if changed else None}")
        return changed


class ShortRead(Attack):
    """Leaves the second half of what it should have read unwritten, and says that all is well."""

    def __init__(self) -> None:
        super().__init__()
        self._left = 50

    def response(self, queue: DeviceQueue, chain: Chain, data: bytes) -> bytes:  # noqa: ARG002 - the hook's signature
        """Write the first half and the status byte; what lies between is what the guest's memory held before."""
        kind, _ = _request(chain)
        half = len(data) // 2
        if kind != RequestType.IN or not self._left or not half:
            return data
        self._left -= 1
        chain.write(data[-1:], chain.writable_size - 1)
        self.strike(f"read of {len(data) - 1} bytes: {half} written")
        return data[:half]

    def used(self, queue: DeviceQueue, chain: Chain, length: int) -> Iterable[tuple[int, int]]:  # noqa: ARG002
        """Claim the whole, as an honest device would."""
        return ((chain.head, chain.writable_size),)


class Drop(Attack):
    """Says that requests succeeded, and does not do them.

    Args:
        kinds: request types.

    """

    def __init__(self, *kinds: RequestType) -> None:
        super().__init__()
        self._kinds = kinds
        self._left = 200

    def popped(self, queue: DeviceQueue, chain: Chain) -> bool:
        """Answer with success."""
        kind, sector = _request(chain)
        if kind not in self._kinds or not self._left:
            return True
        self._left -= 1
        chain.write(bytes((BlkStatus.OK,)), chain.writable_size - 1)
        queue.push(chain.head, 1)
        self.strike(f"{RequestType(kind).name} of sector {sector} acknowledged and dropped")
        return False


class Rollback(Attack):
    """Answers reads with what the disk held when the guest first used it."""

    def __init__(self) -> None:
        super().__init__()
        self._snapshot: bytes | None = None

    def popped(self, queue: DeviceQueue, chain: Chain) -> bool:  # noqa: ARG002 - the hook's signature
        """Keep the past."""
        if self._snapshot is None and isinstance(self.device, BlkDevice):
            disk = self.device.disk
            self._snapshot = bytes(disk.read(0, min(disk.size, _SNAPSHOT)))
        return True

    def response(self, queue: DeviceQueue, chain: Chain, data: bytes) -> bytes:  # noqa: ARG002 - the hook's signature
        """Answer with it."""
        kind, sector = _request(chain)
        if kind != RequestType.IN or self._snapshot is None:
            return data
        start = sector * SECTOR_SIZE
        old = self._snapshot[start:start + len(data) - 1]
        if len(old) < len(data) - 1 or old == data[:-1]:
            return data
        self.strike(f"sector {sector}: {len(old)} bytes of what it held before")
        return old + data[-1:]


class Peek(Attack):
    """Reads the buffers that it is to fill, before it fills them: what the guest left there."""

    def __init__(self) -> None:
        super().__init__()
        self._left = 100

    def popped(self, queue: DeviceQueue, chain: Chain) -> bool:
        """Look at device-writable memory."""
        if self._left:
            self._left -= 1
            with suppress(DmaFault):
                found = b"".join(chain.dma.read(a, min(n, 4096)) for a, n in chain.writable[:16])
                self.capture(found)
                self.strike(f"queue {queue.index}: {len(found)} bytes to be written hold {len(found) - found.count(0)} "
                            f"that are not zero")
        return True


class Runtime(Attack):
    """Changes configuration while requests are under way, and says so.

    Args:
        rounds: values by field, one set after the other, and round again.
        count: how many changes.

    """

    def __init__(self, rounds: tuple[Mapping[str, int], ...], *, count: int) -> None:
        super().__init__()
        self._rounds = rounds
        self._count = count
        self._done = 0
        self._requests = 0

    def features(self, offered: int) -> int:
        """Offer what exposes the fields."""
        return offered | bit(*(f for values in self._rounds for name in values
                               if (f := CONFIG[name].feature) is not None))

    def config(self, config: bytearray, offset: int, size: int) -> bytearray:  # noqa: ARG002 - the hook's signature
        """Serve the round's values."""
        if self._done:
            for name, value in self._rounds[(self._done - 1) % len(self._rounds)].items():
                CONFIG.put(config, name, value)
        return config

    def generation(self, generation: int) -> int:
        """Change with each round."""
        return generation + self._done & 0xFF

    def popped(self, queue: DeviceQueue, chain: Chain) -> bool:  # noqa: ARG002 - the hook's signature
        """Change when the guest is at work, a little later each time."""
        self._requests += 1
        if self._requests > _REQUESTS and self._done < self._count:
            self._done += 1
            values = self._rounds[(self._done - 1) % len(self._rounds)]
            self.strike(f"configuration becomes {dict(values)} while a request is under way")
            self.device.config_interrupt()
        return True


def _status(value: int) -> Callable[[bytes], bytes]:
    return lambda data: data[:-1] + bytes((value,))


def _flip(data: bytes) -> bytes:
    return bytes((data[0] ^ 0x80,)) + data[1:] if len(data) > 1 else data


_IN: Final = frozenset({RequestType.IN})
_OUT: Final = frozenset({RequestType.OUT})
_ID: Final = frozenset({RequestType.GET_ID})
_RANGES: Final = frozenset({RequestType.DISCARD, RequestType.WRITE_ZEROES})

_Row = tuple[str, Surface, Aim, str, str, "Callable[[], Attack]", tuple[str, ...]]

_ROWS: Final[tuple[_Row, ...]] = (
    *((f"status-{name}", Surface.PAYLOAD, aim, "5.2.6", f"answers requests with status {value}",
       lambda value=value: Reply(_ANY, _status(value), after=_REQUESTS),
       ("use", "discard"))
      for name, value, aim in (("ioerr", 1, Aim.DENIAL), ("unsupp", 2, Aim.DENIAL), ("zone", 3, Aim.MEMORY),
                               ("unknown", 0x7F, Aim.DECEPTION), ("max", 0xFF, Aim.DECEPTION))),
    ("status-missing", Surface.PAYLOAD, Aim.DECEPTION, "5.2.6", "writes the data and no status byte",
     lambda: Reply(_ANY, lambda data: data[:-1], after=_REQUESTS), ("use",)),
    ("probe-ioerr", Surface.PAYLOAD, Aim.DENIAL, "5.2.6", "answers every request from the first on with an error",
     lambda: Reply(_ANY, _status(BlkStatus.IOERR), times=200), ("use", "rebind")),
    ("read-short", Surface.PAYLOAD, Aim.LEAK, "5.2.6", "fills half of a read, so that old memory is the rest",
     ShortRead, ("use",)),
    ("read-foreign", Surface.CONTENT, Aim.DECEPTION, "5.2.6", "answers reads with bytes of its own choice",
     lambda: Reply(_IN, lambda data: b"\xDB" * (len(data) - 1) + data[-1:], after=_REQUESTS), ("use",)),
    ("read-flipped", Surface.CONTENT, Aim.DECEPTION, "5.2.6", "answers reads with one bit changed",
     lambda: Reply(_IN, _flip, after=_REQUESTS), ("use",)),
    ("read-rolled-back", Surface.CONTENT, Aim.DECEPTION, "5.2.6", "answers reads with what was there before a write",
     Rollback, ("use",)),
    ("write-dropped", Surface.CONTENT, Aim.DECEPTION, "5.2.6", "acknowledges writes and drops them",
     lambda: Drop(RequestType.OUT), ("use",)),
    ("flush-dropped", Surface.CONTENT, Aim.DECEPTION, "5.2.6", "acknowledges flushes and does none",
     lambda: Drop(RequestType.FLUSH), ("use",)),
    ("discard-dropped", Surface.CONTENT, Aim.DECEPTION, "5.2.6", "acknowledges discards and zeroing and does none",
     lambda: Drop(RequestType.DISCARD, RequestType.WRITE_ZEROES), ("use", "discard")),
    ("discard-status", Surface.PAYLOAD, Aim.DENIAL, "5.2.6", "answers discards and zeroing with an unknown status",
     lambda: Reply(_RANGES, _status(0x55)), ("use", "discard")),
    ("write-status", Surface.PAYLOAD, Aim.DECEPTION, "5.2.6", "stores what is written and answers with a wrong status",
     lambda: Reply(_OUT, _status(0x80)), ("use",)),
    ("id-unterminated", Surface.PAYLOAD, Aim.MEMORY, "5.2.6", "returns an identity of 20 bytes without an end",
     lambda: Reply(_ID, lambda data: b"S" * (len(data) - 1) + data[-1:]), ("use", "inspect")),
    ("id-binary", Surface.PAYLOAD, Aim.DECEPTION, "5.2.6", "returns an identity of control characters and bad UTF-8",
     lambda: Reply(_ID, lambda data: b"\xff\n%s%n/../\x1b[2J\x80\xc0"[:len(data) - 1].ljust(len(data) - 1, b"\xff")
                   + data[-1:]), ("use", "inspect")),
    ("id-stale", Surface.PAYLOAD, Aim.LEAK, "5.2.6", "says that it returned an identity, and writes none",
     lambda: Drop(RequestType.GET_ID), ("use", "inspect")),
    ("peek", Surface.PAYLOAD, Aim.LEAK, "2.7.5.1", "reads what the buffers hold that it is to fill",
     Peek, ("use", "inspect")),
    ("capacity-zero", Surface.CONFIG, Aim.MEMORY, "5.2.5", "shrinks to nothing while requests are under way",
     lambda: Runtime(({"capacity": 0},), count=1), ("use", "inspect")),
    ("capacity-shrink", Surface.CONFIG, Aim.MEMORY, "5.2.5", "shrinks to 8 sectors while requests are under way",
     lambda: Runtime(({"capacity": 8},), count=1), ("use", "inspect")),
    ("capacity-grow", Surface.CONFIG, Aim.MEMORY, "5.2.5", "grows to 2**63 sectors while requests are under way",
     lambda: Runtime(({"capacity": 1 << 63},), count=1), ("use", "inspect")),
    ("capacity-storm", Surface.CONFIG, Aim.MEMORY, "5.2.5", "changes its size with every request",
     lambda: Runtime(({"capacity": 0}, {"capacity": (1 << 64) - 1}, {"capacity": 1}, {"capacity": 1 << 55}), count=200),
     ("use", "inspect")),
    ("block-size-change", Surface.CONFIG, Aim.MEMORY, "5.2.5", "changes its block size and its size at run time",
     lambda: Runtime(({"blk_size": 4096, "capacity": 7}, {"blk_size": 0, "capacity": 9}), count=20),
     ("use", "inspect")),
    ("writeback-change", Surface.CONFIG, Aim.DENIAL, "5.2.5.2", "changes its cache mode to values that are none",
     lambda: Runtime(({"writeback": 0}, {"writeback": 2}, {"writeback": 255}), count=20), ("use", "inspect")),
)

_KNOWN: Final = {
    "writeback-change": "BUG_ON in cache_type_show of virtio_blk, open in Linux 6.12.117",
}


def blk_attacks() -> Iterator[AttackSpec]:
    """Attacks on the disk's protocol."""
    for what, surface, aim, spec, summary, make, stimuli in _ROWS:
        # A driver that bounces nothing shows the device whatever its buffers held: that says nothing about the driver.
        targets = MODEL if what == "peek" else EVERYWHERE
        yield AttackSpec(f"blk-{what}", DeviceType.BLOCK, surface, aim, f"virtio 1.3, {spec}", f"The device {summary}.",
                         make, stimuli=stimuli, targets=targets, known=_KNOWN.get(what, ""))
