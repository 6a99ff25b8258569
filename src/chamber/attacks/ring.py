"""Lies in the ring itself: used elements, indices, flags, and descriptors that belong to the driver."""

from __future__ import annotations

import itertools
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from chamber.attacks.attack import Aim, AttackSpec, Surface
from chamber.attacks.roles import PLACES, AtRole
from chamber.device.errors import DriverError
from chamber.device.split import SplitRing
from chamber.wire.errors import DmaFault
from chamber.wire.split import DESC, DESC_F_INDIRECT, DESC_F_NEXT, DESC_F_WRITE, DESC_SIZE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from chamber.attacks.attack import Attack
    from chamber.device.chain import Chain
    from chamber.device.queue import DeviceQueue
    from chamber.device.ring import Ring

__all__ = ("UsedLie", "lies_in_any_ring", "ring_attacks", "used_lie")

_MAX32: Final = 0xFFFFFFFF
_TOGGLES: Final = 400
_SOON, _LATER = 0.001, 0.02
"""Seconds until a chain is completed again: where a guest is fast, and where it takes its time."""


@dataclass(frozen=True, slots=True)
class Done:
    """What a lie about a completion starts from.

    Attributes:
        ring: the ring.
        head: the chain's true id.
        length: the bytes truly written.
        writable: the bytes that could have been written.
        previous: the id completed before this one, the driver's again since then.

    """

    ring: Ring
    head: int
    length: int
    writable: int
    previous: int


def _split(queue: DeviceQueue) -> SplitRing | None:
    """The ring, if it is one whose parts these attacks know."""
    return queue.ring if isinstance(queue.ring, SplitRing) else None


def _inner(ring: Ring, head: int) -> int:
    """A descriptor of the chain that is not its head; of an indirect chain, the next one of the table."""
    if not isinstance(ring, SplitRing):
        return (head + 1) % ring.size
    _, _, flags, follow = ring.raw_desc(head)
    return follow if flags & DESC_F_NEXT else (head + 1) % ring.size


Used = tuple[tuple[int, int], ...]

_USED: Final[dict[str, tuple[Surface, Aim, str, str, Callable[[Done], Used]]]] = {
    "used-id-unknown": (
        Surface.RING, Aim.MEMORY, "2.7.8.2", "completes a descriptor that is not in use, far from those that are",
        lambda d: (((d.head + d.ring.size // 2) % d.ring.size, d.length), (d.head, d.length))),
    "used-id-size": (
        Surface.RING, Aim.MEMORY, "2.7.8.2", "completes id = queue size, the first one beyond the table",
        lambda d: ((d.ring.size, d.length), (d.head, d.length))),
    "used-id-truncated": (
        Surface.RING, Aim.DECEPTION, "2.7.8", "completes 0x10000 + a valid id, right only for who reads 16 bits of it",
        lambda d: ((0x10000 + d.head, d.length),)),
    "used-id-wide": (
        Surface.RING, Aim.MEMORY, "2.7.8.2", "completes id 0x8000, a negative number to who reads 16 signed bits",
        lambda d: ((0x8000, d.length), (d.head, d.length))),
    "used-id-max": (
        Surface.RING, Aim.MEMORY, "2.7.8.2", "completes id 2**32 - 1",
        lambda d: ((_MAX32, d.length), (d.head, d.length))),
    "used-id-repeated": (
        Surface.RING, Aim.MEMORY, "2.7.8.2", "completes the same chain twice in one batch",
        lambda d: ((d.head, d.length), (d.head, d.length))),
    "used-id-freed": (
        Surface.RING, Aim.MEMORY, "2.7.8.2", "completes again the chain that was completed before",
        lambda d: ((d.previous, d.length), (d.head, d.length))),
    "used-id-inner": (
        Surface.RING, Aim.MEMORY, "2.7.8.2", "completes a descriptor from the middle of a chain",
        lambda d: ((_inner(d.ring, d.head), d.length), (d.head, d.length))),
    "used-len-zero": (
        Surface.LENGTH, Aim.LEAK, "2.7.8.2", "says that nothing was written although it was",
        lambda d: ((d.head, 0),)),
    "used-len-one": (
        Surface.LENGTH, Aim.MEMORY, "2.7.8.2", "says that one byte was written, less than any header",
        lambda d: ((d.head, 1),)),
    "used-len-short": (
        Surface.LENGTH, Aim.LEAK, "2.7.8.2", "claims one byte less than was written",
        lambda d: ((d.head, max(d.length - 1, 0)),)),
    "used-len-full": (
        Surface.LENGTH, Aim.LEAK, "2.7.8.2", "claims the whole buffer although only part of it was written",
        lambda d: ((d.head, d.writable),)),
    "used-len-beyond": (
        Surface.LENGTH, Aim.MEMORY, "2.7.8.2", "claims one byte more than the buffer holds",
        lambda d: ((d.head, d.writable + 1),)),
    "used-len-page-beyond": (
        Surface.LENGTH, Aim.LEAK, "2.7.8.2", "claims a page more than the buffer holds",
        lambda d: ((d.head, d.writable + 4096),)),
    "used-len-16-bit": (
        Surface.LENGTH, Aim.MEMORY, "2.7.8.2", "claims 0x10000 bytes plus what was written",
        lambda d: ((d.head, 0x10000 + d.length),)),
    "used-len-sign": (
        Surface.LENGTH, Aim.MEMORY, "2.7.8.2", "claims 2**31 bytes, negative to who keeps it in an int",
        lambda d: ((d.head, 1 << 31),)),
    "used-len-max": (
        Surface.LENGTH, Aim.MEMORY, "2.7.8.2", "claims 2**32 - 1 bytes",
        lambda d: ((d.head, _MAX32),)),
}


class UsedLie(AtRole):
    """Puts other used elements into the ring than the ones that are true."""

    def __init__(self, role: str, lie: Callable[[Done], Used], *, after: int, times: int) -> None:
        super().__init__(role, after=after, times=times)
        self._lie = lie
        self._previous = 0

    def used(self, queue: DeviceQueue, chain: Chain, length: int) -> Iterable[tuple[int, int]]:
        """Lie about this completion."""
        if queue.ring is None or not self.due(queue):
            if self.mine(queue):
                self._previous = chain.head
            return ((chain.head, length),)
        out = self._lie(Done(queue.ring, chain.head, length, chain.writable_size, self._previous))
        self.strike(f"queue {queue.index}: used (id, len) {out} where ({chain.head}, {length}) is true")
        self._previous = chain.head
        return out


def used_lie(name: str) -> Callable[[Done], Used]:
    """A lie about a completion by its name, such as ``"used-len-beyond"``."""
    return _USED[name][4]


_JUMPS: Final[dict[str, tuple[str, Callable[[int], int]]]] = {
    "used-idx-one-ahead": ("one element further than it wrote", lambda _: 1),
    "used-idx-ring-ahead": ("a whole ring further", lambda size: size),
    "used-idx-beyond-ring": ("more than a whole ring further", lambda size: size + 1),
    "used-idx-half": ("0x8000 further", lambda _: 0x8000),
    "used-idx-back": ("one element back", lambda _: -1),
    "used-idx-ring-back": ("a whole ring back", lambda size: -size),
}


class IndexJump(AtRole):
    """Moves the used index to where it has no business to be."""

    def __init__(self, role: str, delta: Callable[[int], int], *, after: int) -> None:
        super().__init__(role, after=after)
        self._delta = delta

    def published(self, queue: DeviceQueue) -> None:
        """Jump."""
        ring = _split(queue)
        if ring is None or not self.due(queue):
            return
        lie = (ring.used_idx + self._delta(ring.size)) & 0xFFFF
        ring.raw_used_idx(lie)
        self.strike(f"queue {queue.index}: used index {lie} where {ring.used_idx} is true")
        queue.interrupt()


class ElementRace(AtRole):
    """Rewrites a used element after it was published, while the driver reads it."""

    def __init__(self, role: str, *, after: int) -> None:
        super().__init__(role, after=after, times=8)
        self._last = (0, 0)
        self._window: tuple[SplitRing, DeviceQueue, int, tuple[int, int], tuple[int, int]] | None = None
        self._reads = 0

    def used(self, queue: DeviceQueue, chain: Chain, length: int) -> Iterable[tuple[int, int]]:
        """Remember what is true."""
        if self.mine(queue):
            self._last = (chain.head, length)
        return ((chain.head, length),)

    def interrupt(self, queue: DeviceQueue, wanted: bool) -> bool:
        """Interrupt first, and rewrite while the handler may be at work."""
        ring = _split(queue)
        if ring is None or not self.due(queue):
            return wanted
        slot = ring.used_idx - 1
        truth = self._last
        lie = (truth[0], _MAX32)
        self._window = (ring, queue, slot, lie, truth)
        self._reads = 0
        self.strike(f"queue {queue.index}: used element {truth} alternates with {lie} after publication")
        queue.interrupt()
        for _ in range(_TOGGLES):
            ring.raw_used_elem(slot, *lie)
            ring.raw_used_elem(slot, *truth)
        return False

    def guest_read(self, address: int, length: int) -> None:  # noqa: ARG002 - the hook's signature
        """Change the element between two reads of the guest."""
        if self._window is None:
            return
        ring, queue, slot, lie, truth = self._window
        self._reads += 1
        if queue.ring is not ring or self._reads > 64 or ring.used_idx != (slot + 1) & 0xFFFF:
            self._window = None
            return
        ring.raw_used_elem(slot, *(lie if self._reads % 2 else truth))

    def queue_stopping(self, queue: DeviceQueue) -> None:
        """The ring goes away."""
        if self._window is not None and self._window[1] is queue:
            self._window = None


Desc = tuple[int, int, int, int]

_DESCRIPTORS: Final[dict[str, tuple[Aim, str, Callable[[int, int, Desc], Desc]]]] = {
    "desc-addr-rewritten": (
        Aim.MEMORY, "the address of a descriptor",
        lambda _i, _size, d: ((d[0] ^ 0x1000), d[1], d[2], d[3])),
    "desc-addr-wild": (
        Aim.MEMORY, "the address of a descriptor, to one that cannot exist",
        lambda _i, _size, d: (0xFFFFFFFFFFFFF000, d[1], d[2], d[3])),
    "desc-len-rewritten": (
        Aim.MEMORY, "the length of a descriptor",
        lambda _i, _size, d: (d[0], _MAX32, d[2], d[3])),
    "desc-flags-rewritten": (
        Aim.MEMORY, "NEXT and WRITE of a descriptor",
        lambda _i, _size, d: (d[0], d[1], d[2] ^ (DESC_F_NEXT | DESC_F_WRITE), d[3])),
    "desc-indirect-forged": (
        Aim.MEMORY, "INDIRECT of a descriptor, so that the driver frees a table that it never made",
        lambda _i, _size, d: (d[0], d[1], d[2] ^ DESC_F_INDIRECT, d[3])),
    "desc-next-loop": (
        Aim.MEMORY, "next of a descriptor, to itself",
        lambda i, _size, d: (d[0], d[1], d[2] | DESC_F_NEXT, i)),
    "desc-next-beyond": (
        Aim.MEMORY, "next of a descriptor, to one beyond the table",
        lambda _i, _size, d: (d[0], d[1], d[2] | DESC_F_NEXT, 0xFFFF)),
}


def _direct(ring: SplitRing, head: int) -> Iterator[int]:
    """Descriptors of a chain in the table proper, each once."""
    seen: set[int] = set()
    index = head
    while index < ring.size and index not in seen:
        seen.add(index)
        _, _, flags, follow = ring.raw_desc(index)
        yield index
        if not flags & DESC_F_NEXT:
            return
        index = follow


class DescriptorRewrite(AtRole):
    """Rewrites the descriptors of a chain while the device owns it, before a driver could read them back."""

    def __init__(self, role: str, change: Callable[[int, int, Desc], Desc], *, after: int) -> None:
        super().__init__(role, after=after, times=8)
        self._change = change

    def popped(self, queue: DeviceQueue, chain: Chain) -> bool:
        """Rewrite what was just copied out of the table."""
        ring = _split(queue)
        if ring is not None and self.due(queue):
            for index in list(_direct(ring, chain.head)):
                old = ring.raw_desc(index)
                new = self._change(index, ring.size, old)
                ring.raw_write_desc(index, *new)
                self.strike(f"queue {queue.index}: descriptor {index} rewritten from {old} to {new}")
        return True


class IndirectRewrite(AtRole):
    """Rewrites an indirect table while the device owns the chain."""

    def popped(self, queue: DeviceQueue, chain: Chain) -> bool:
        """Rewrite every entry of the table."""
        ring = _split(queue)
        if ring is None or not self.mine(queue):
            return True
        addr, length, flags, _ = ring.raw_desc(chain.head)
        if flags & DESC_F_INDIRECT and self.due(queue):
            count = min(length // DESC_SIZE, ring.size)
            chain.dma.write(addr, DESC.pack(0xFFFFFFFFFFFFF000, _MAX32, DESC_F_NEXT, 0xFFFF) * count)
            self.strike(f"queue {queue.index}: {count} entries of the indirect table of {chain.head} rewritten")
        return True


class AvailRewrite(AtRole):
    """Rewrites the driver area: flags, the used_event word, and the slots of chains already taken."""

    def popped(self, queue: DeviceQueue, chain: Chain) -> bool:
        """Rewrite; slots that the device has yet to read stay, so that it serves on."""
        ring = _split(queue)
        if ring is not None and self.due(queue):
            slot = (ring.next_avail - 1) % ring.size
            ring.raw_write_avail(2 + slot, 0xFFFF)
            ring.raw_write_avail(0, 0xFFFF)
            ring.raw_write_avail(2 + ring.size, ring.next_avail + 0x7FFF)
            self.strike(f"queue {queue.index}: driver area rewritten: flags, used_event, slot {slot} of {chain.head}")
        return True


class WordsLie(AtRole):
    """Sets the used ring's flags or the avail_event word to what they must not be."""

    def __init__(self, role: str, *, event: bool, after: int) -> None:
        super().__init__(role, after=after, times=16)
        self._event = event

    def published(self, queue: DeviceQueue) -> None:
        """Write garbage."""
        ring = _split(queue)
        if ring is None or not self.due(queue):
            return
        if self._event:
            ring.raw_avail_event(ring.next_avail + 0x7FFF)
            self.strike(f"queue {queue.index}: avail_event far ahead")
        else:
            ring.raw_used_flags(0xFFFE)
            self.strike(f"queue {queue.index}: used flags 0xfffe, all reserved")


class Withheld(AtRole):
    """Keeps a chain, for good or until later.

    Args:
        role: as `Device.queue_role` names it.
        after: chains to serve first.
        delay: seconds until it is served after all; None for never.

    """

    def __init__(self, role: str, *, after: int, delay: float | None) -> None:
        super().__init__(role, after=after)
        self._delay = delay

    def popped(self, queue: DeviceQueue, chain: Chain) -> bool:
        """Keep the chain."""
        if not self.due(queue):
            return True
        self.strike(f"queue {queue.index}: chain {chain.head} kept {self._delay or 'for good'}")
        if self._delay is not None:
            ring = queue.ring

            def serve() -> None:
                if queue.ring is ring and queue.broken is None:
                    with suppress(DriverError, DmaFault):
                        self.device.handle(queue, chain)
                    self.device.flush(queue)

            self.device.schedule(self._delay, serve)
        return False


class Unserved(AtRole):
    """Completes a chain without writing a byte of it, and says that it filled it."""

    def popped(self, queue: DeviceQueue, chain: Chain) -> bool:
        """Complete at once."""
        if not self.due(queue):
            return True
        queue.push(chain.head, chain.writable_size)
        self.strike(f"queue {queue.index}: chain {chain.head} completed unwritten, {chain.writable_size} bytes claimed")
        return False


class TwiceLater(AtRole):
    """Completes a chain, and once more when the driver may have lent the descriptor anew."""

    def __init__(self, role: str, *, after: int, times: int) -> None:
        super().__init__(role, after=after, times=times)
        self._delays = itertools.cycle((_SOON, _LATER))

    def used(self, queue: DeviceQueue, chain: Chain, length: int) -> Iterable[tuple[int, int]]:
        """Complete honestly and plan the second time."""
        if self.due(queue):
            ring = queue.ring

            def again() -> None:
                if ring is not None and queue.ring is ring:
                    queue.push(chain.head, length)
                    queue.publish()
                    self.strike(f"queue {queue.index}: chain {chain.head} completed a second time")
                    queue.interrupt()

            self.device.schedule(next(self._delays), again)
        return ((chain.head, length),)


class Reversed(AtRole):
    """Collects completions and shows them in reverse order with one another's length."""

    def __init__(self, role: str, *, after: int) -> None:
        super().__init__(role, after=after, times=64)
        self._held: list[tuple[int, int]] = []

    def used(self, queue: DeviceQueue, chain: Chain, length: int) -> Iterable[tuple[int, int]]:
        """Hold the completion back for a moment."""
        if not self.due(queue):
            return ((chain.head, length),)
        ring = queue.ring
        held = self._held
        held.append((chain.head, length))

        def release() -> None:
            if ring is not None and queue.ring is ring and held:
                lengths = [n for _, n in held]
                for (head, _), claimed in zip(reversed(held), lengths, strict=True):
                    queue.push(head, claimed)
                self.strike(f"queue {queue.index}: {len(held)} completions in reverse, lengths exchanged")
                queue.publish()
                queue.interrupt()
            held.clear()

        if len(held) == 1:
            self.device.schedule(0.01, release)
        return ()


_IDS: Final = tuple(name for name in _USED if "-id-" in name)
_LENGTHS: Final = tuple(name for name in _USED if "-len-" in name)

# The core of the rings is one piece of code for all drivers, so blk, whose requests are the plainest, tries all of it;
# the other queues have what their own drivers make something of.
_CHOICE: Final[dict[str, tuple[str, ...]]] = {
    "blk": (*_IDS, "used-len-zero", "used-len-one", "used-len-beyond", "used-len-max", *_JUMPS, *_DESCRIPTORS,
            "used-elem-race", "indirect-rewritten", "avail-rewritten", "used-flags-garbage", "avail-event-garbage",
            "withheld", "late", "unserved", "completed-twice", "reversed"),
    "net-rx": ("used-id-unknown", "used-id-repeated", *_LENGTHS, "used-idx-one-ahead", "used-idx-half",
               "desc-len-rewritten", "used-elem-race", "unserved", "completed-twice", "reversed"),
    "net-tx": ("used-id-repeated", "used-len-max", "used-idx-beyond-ring", "avail-event-garbage", "withheld",
               "completed-twice"),
    "net-ctrl": ("used-id-size", "used-id-repeated", "used-len-zero", "used-len-max", "withheld", "late", "unserved"),
    "console-control": ("used-id-repeated", *_LENGTHS, "used-idx-half", "unserved", "completed-twice"),
    "console-control-tx": ("used-id-repeated", "used-idx-one-ahead", "withheld"),
    "console-rx": ("used-id-repeated", "used-len-zero", "used-len-full", "used-len-beyond", "used-len-page-beyond",
                   "used-len-sign", "used-len-max", "used-idx-half", "completed-twice"),
    "console-tx": ("used-id-repeated", "used-idx-one-ahead", "withheld", "late", "completed-twice"),
    "scsi": (*_IDS, "used-len-zero", "used-len-one", "used-len-beyond", "used-len-max", *_JUMPS, *_DESCRIPTORS,
             "used-elem-race", "indirect-rewritten", "avail-rewritten", "withheld", "late", "unserved",
             "completed-twice", "reversed"),
    "scsi-control": ("used-id-size", "used-id-repeated", "used-len-zero", "used-len-max", "withheld", "late"),
    "scsi-events": ("used-id-repeated", *_LENGTHS, "used-idx-half", "completed-twice"),
    "rng": ("used-id-size", "used-id-repeated", *_LENGTHS, "used-idx-one-ahead", "withheld", "late", "unserved",
            "completed-twice"),
}

_USUAL: Final = ("used-id-size", "used-id-repeated", "used-len-zero", "used-len-one", "used-len-beyond", "used-len-max",
                 "used-idx-one-ahead", "used-idx-half", "withheld", "late", "unserved", "completed-twice", "reversed")
"""What is tried on queues that nothing special is known of."""
_FORMAT_NEUTRAL: Final = (*_USED, "withheld", "late", "unserved", "completed-twice", "reversed")

_KNOWN: Final = {
    "blk-desc-addr-rewritten": "private descriptor state of virtio_ring, Linux 5.14",
    "blk-desc-len-rewritten": "private descriptor state of virtio_ring, Linux 5.14",
    "console-control-used-len-max": "CVE-2021-38160",
    "console-rx-used-len-max": "CVE-2021-38160",
    "net-rx-used-len-zero": "virtio-net: add validation for used length, Linux 5.16",
    "net-rx-used-len-one": "virtio-net: add validation for used length, Linux 5.16",
    "net-rx-used-len-beyond": "virtio-net: received length checks, Linux 6.1.144 and 6.1.159",
    "net-rx-used-len-page-beyond": "virtio-net: received length checks, Linux 6.1.144 and 6.1.159",
    "net-rx-used-len-max": "CVE-2025-38375",
    "net-tx-used-idx-beyond-ring": "endless loop in virtnet_poll_cleantx on a broken queue",
    "net-ctrl-withheld": "virtnet_send_command busy-waits under RTNL",
    "blk-desc-next-loop": "Asterinas 3160: free list kept in shared memory",
    "blk-used-id-size": "svsm 1072, OSv 1450, RT-Thread 11326",
}


@dataclass(frozen=True, slots=True)
class _Kind:
    """One way to lie in a ring, wherever it is tried."""

    surface: Surface
    aim: Aim
    spec: str
    summary: str
    make: Callable[[str, int], Attack]


def _kinds() -> dict[str, _Kind]:
    kinds: dict[str, _Kind] = {}
    for name, (surface, aim, spec, summary, lie) in _USED.items():
        times = 1 if surface is Surface.RING else 6
        kinds[name] = _Kind(surface, aim, spec, summary,
                            lambda role, after, lie=lie, times=times:  # type: ignore[misc]
                            UsedLie(role, lie, after=after, times=times))
    for name, (where, delta) in _JUMPS.items():
        kinds[name] = _Kind(Surface.RING, Aim.MEMORY, "2.7.8.2", f"moves the used index {where}",
                            lambda role, after, delta=delta:  # type: ignore[misc]
                            IndexJump(role, delta, after=after))
    for name, (aim, what, change) in _DESCRIPTORS.items():
        kinds[name] = _Kind(Surface.RING, aim, "2.7.5.1", f"rewrites {what} while it owns the chain",
                            lambda role, after, change=change:  # type: ignore[misc]
                            DescriptorRewrite(role, change, after=after))
    kinds["used-elem-race"] = _Kind(
        Surface.RING, Aim.MEMORY, "2.7.8.2", "rewrites a used element between the driver's reads of it",
        lambda role, after: ElementRace(role, after=after))
    kinds["indirect-rewritten"] = _Kind(
        Surface.RING, Aim.MEMORY, "2.7.5.3.2", "rewrites an indirect table while it owns the chain",
        lambda role, after: IndirectRewrite(role, after=after, times=8))
    kinds["avail-rewritten"] = _Kind(
        Surface.RING, Aim.MEMORY, "2.7.6.1", "rewrites the driver area",
        lambda role, after: AvailRewrite(role, after=after, times=16))
    kinds["used-flags-garbage"] = _Kind(
        Surface.RING, Aim.DENIAL, "2.7.10.2", "sets every reserved flag of the used ring",
        lambda role, after: WordsLie(role, event=False, after=after))
    kinds["avail-event-garbage"] = _Kind(
        Surface.RING, Aim.DENIAL, "2.7.10.2", "sets avail_event far ahead, so that the driver never notifies",
        lambda role, after: WordsLie(role, event=True, after=after))
    kinds["withheld"] = _Kind(
        Surface.RING, Aim.DENIAL, "2.7.8.2", "never completes a chain",
        lambda role, after: Withheld(role, after=after, delay=None))
    kinds["late"] = _Kind(
        Surface.RING, Aim.DENIAL, "2.7.8.2", "completes a chain a second late",
        lambda role, after: Withheld(role, after=after, delay=1.0))
    kinds["unserved"] = _Kind(
        Surface.PAYLOAD, Aim.DECEPTION, "2.7.8.2",
        "completes chains as full without writing them, so that stale memory is the data",
        lambda role, after: Unserved(role, after=after, times=4))
    kinds["completed-twice"] = _Kind(
        Surface.RING, Aim.MEMORY, "2.7.8.2", "completes a chain again a moment after its completion",
        lambda role, after: TwiceLater(role, after=after, times=4))
    kinds["reversed"] = _Kind(
        Surface.RING, Aim.DECEPTION, "2.7.8.2", "completes in reverse order and exchanges the lengths",
        lambda role, after: Reversed(role, after=after))
    return kinds


def lies_in_any_ring() -> dict[str, tuple[Surface, Aim, str, str, Callable[[str, int], Attack]]]:
    """Lies about completions that need nothing of a format, by name: surface, aim, clause, summary, maker."""
    return {name: (kind.surface, kind.aim, kind.spec, kind.summary, kind.make) for name, kind in _kinds().items()
            if name in _FORMAT_NEUTRAL}


def ring_attacks() -> Iterator[AttackSpec]:
    """Attacks on split rings, for each device and queue role that they make sense on."""
    kinds = _kinds()
    for prefix, place in PLACES.items():
        for what in _CHOICE.get(prefix, _USUAL):
            kind = kinds[what]
            name = f"{prefix}-{what}"
            yield AttackSpec(
                name, place.device, kind.surface, kind.aim, f"virtio 1.3, {kind.spec}", f"The device {kind.summary}.",
                make=lambda kind=kind, place=place: kind.make(place.role, place.after),  # type: ignore[misc]
                targets=place.targets, known=_KNOWN.get(name, ""))
