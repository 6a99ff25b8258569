"""Lies in packed rings, and in the order that a device promised to keep."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from chamber.attacks.attack import MODEL, Aim, AttackSpec, Surface
from chamber.attacks.ring import lies_in_any_ring
from chamber.attacks.roles import PLACES, AtRole
from chamber.device.packed import PackedRing
from chamber.wire.packed import DESC_F_AVAIL, DESC_F_USED, EVENT_FLAGS_DESC
from chamber.wire.split import DESC_F_INDIRECT, DESC_F_NEXT, DESC_F_WRITE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from chamber.attacks.attack import Attack
    from chamber.device.chain import Chain
    from chamber.device.queue import DeviceQueue

__all__ = ("packed_attacks",)

_MAX32: Final = 0xFFFFFFFF
_WILD: Final = 0xFFFFFFFFFFFFF000


def _packed(queue: DeviceQueue) -> PackedRing | None:
    """The ring, if it is one whose parts these attacks know: a driver may have turned RING_PACKED down."""
    return queue.ring if isinstance(queue.ring, PackedRing) else None


class Claim(AtRole):
    """Marks places as used that it never used.

    Args:
        role: as `Device.queue_role` names it.
        count: how many, of a ring's size.
        after: opportunities to let pass first.

    """

    def __init__(self, role: str, count: Callable[[int], int], *, after: int) -> None:
        super().__init__(role, after=after)
        self._count = count

    def published(self, queue: DeviceQueue) -> None:
        """Mark them."""
        ring = _packed(queue)
        if ring is None or not self.due(queue):
            return
        count = self._count(ring.size)
        ring.raw_claim(count)
        self.strike(f"queue {queue.index}: {count} places from {ring.used_place} on marked used")
        queue.interrupt()


class Hole(AtRole):
    """Writes a used descriptor one place further than it belongs."""

    def used(self, queue: DeviceQueue, chain: Chain, length: int) -> Iterable[tuple[int, int]]:
        """Write it there, and leave the place where the driver looks as it is."""
        ring = _packed(queue)
        if ring is None or not self.due(queue):
            return ((chain.head, length),)
        ring.raw_used(1, chain.head, length)
        self.strike(f"queue {queue.index}: chain {chain.head} used at place {(ring.used_place + 1) % ring.size}, "
                    f"not {ring.used_place}")
        queue.interrupt()
        return ()


class WrongLap(AtRole):
    """Turns the marks of a used descriptor to those of the other lap."""

    def published(self, queue: DeviceQueue) -> None:
        """Turn the marks of the place before the next."""
        ring = _packed(queue)
        if ring is None or not self.due(queue):
            return
        place = (ring.used_place - 1) % ring.size
        ring.raw_marks(place, not ring.used_wrap, not ring.used_wrap)
        self.strike(f"queue {queue.index}: place {place} marked as used in the other lap")
        queue.interrupt()


class Rewrite(AtRole):
    """Rewrites the ring while it owns what stands there: all that a driver could read back."""

    def __init__(self, role: str, change: Callable[[tuple[int, int, int, int]], tuple[int, int, int, int]], *,
                 after: int) -> None:
        super().__init__(role, after=after, times=8)
        self._change = change

    def popped(self, queue: DeviceQueue, chain: Chain) -> bool:
        """Rewrite every descriptor that is marked available, those of this chain among them."""
        ring = _packed(queue)
        if ring is None or not self.due(queue):
            return True
        for place in range(ring.size):
            old = ring.raw_desc(place)
            if old[2] == chain.head and old[3]:
                new = self._change(old)
                ring.raw_write_desc(place, *new)
                self.strike(f"queue {queue.index}: descriptor {place} rewritten from {old} to {new}")
        return True


class TableRewrite(AtRole):
    """Rewrites the indirect table of a chain while it owns it."""

    def popped(self, queue: DeviceQueue, chain: Chain) -> bool:
        """Rewrite every entry."""
        ring = _packed(queue)
        if ring is None or not self.mine(queue):
            return True
        for place in range(ring.size):
            addr, length, number, flags = ring.raw_desc(place)
            if number == chain.head and flags & DESC_F_INDIRECT and self.due(queue):
                count = min(length // 16, ring.size)
                chain.dma.write(addr, (_WILD.to_bytes(8, "little") + b"\xff" * 8) * count)
                self.strike(f"queue {queue.index}: {count} entries of the indirect table of {chain.head} rewritten")
                break
        return True


class Race(AtRole):
    """Rewrites a used descriptor between the driver's reads of it."""

    def __init__(self, role: str, *, after: int) -> None:
        super().__init__(role, after=after, times=8)
        self._truth = (0, 0)
        self._window: tuple[PackedRing, int] | None = None
        self._reads = 0

    def used(self, queue: DeviceQueue, chain: Chain, length: int) -> Iterable[tuple[int, int]]:
        """Remember what is true, and where it will stand."""
        ring = _packed(queue)
        if ring is not None and self.due(queue):
            self._truth = (chain.head, length)
            self._window = (ring, ring.used_place)
            self._reads = 0
            self.strike(f"queue {queue.index}: used descriptor {self._truth} alternates with lies")
        return ((chain.head, length),)

    def guest_read(self, address: int, length: int) -> None:  # noqa: ARG002 - the hook's signature
        """Change length and id between two reads of the guest."""
        if self._window is None:
            return
        ring, place = self._window
        self._reads += 1
        addr, _, _, flags = ring.raw_desc(place)
        marks = flags & (DESC_F_AVAIL | DESC_F_USED)
        if self._reads > 64 or marks not in {0, DESC_F_AVAIL | DESC_F_USED}:
            self._window = None  # the driver has lent it anew
            return
        number, written = (self._truth[0], _MAX32) if self._reads % 2 else self._truth
        ring.raw_write_desc(place, addr, written, number, flags)

    def queue_stopping(self, queue: DeviceQueue) -> None:
        """The ring goes away."""
        if self._window is not None and self._window[0] is queue.ring:
            self._window = None


class Events(AtRole):
    """Overwrites the event suppression structures.

    Args:
        role: as `Device.queue_role` names it.
        own: its own structure; otherwise the driver's.
        after: opportunities to let pass first.

    """

    def __init__(self, role: str, *, own: bool, after: int) -> None:
        super().__init__(role, after=after, times=16)
        self._own = own

    def published(self, queue: DeviceQueue) -> None:
        """Name a place that the ring does not have."""
        ring = _packed(queue)
        if ring is None or not self.due(queue):
            return
        if self._own:
            ring.raw_device_event(0xFFFF, EVENT_FLAGS_DESC)
        else:
            ring.raw_driver_event(0xFFFF, 0xFFFF)
        self.strike(f"queue {queue.index}: {'device' if self._own else 'driver'} event suppression overwritten")


class Newest(AtRole):
    """Completes the newest of the chains that it has, so that all before it count as used completely."""

    def used(self, queue: DeviceQueue, chain: Chain, length: int) -> Iterable[tuple[int, int]]:
        """Take what else is there, and complete its last without having served any of it."""
        ring = queue.ring
        if ring is None or not self.due(queue):
            return ((chain.head, length),)
        skipped = [chain.head]
        while len(skipped) < ring.size and (more := queue.pop()) is not None:
            skipped.append(more.head)
        last = skipped.pop()
        ring.push(last, length, tuple(skipped))
        self.strike(f"queue {queue.index}: chain {last} completed for {len(skipped)} before it, none of them served")
        return ()


class OutOfOrder(AtRole):
    """Completes a chain before one that it took earlier, after it promised not to."""

    def __init__(self, role: str, *, after: int) -> None:
        super().__init__(role, after=after, times=8)
        self._held: tuple[int, int] | None = None

    def used(self, queue: DeviceQueue, chain: Chain, length: int) -> Iterable[tuple[int, int]]:
        """Exchange two completions; where there is only one, complete an id that the driver never lent."""
        ring = queue.ring
        if ring is None or not self.due(queue):
            return ((chain.head, length),)
        later = queue.pop()
        if later is None:
            ring.push((chain.head + 1) % ring.size, length)
            self.strike(f"queue {queue.index}: id {(chain.head + 1) % ring.size} completed where {chain.head} is due")
        else:
            for head in (later.head, chain.head):
                ring.push(head, length)
            self.strike(f"queue {queue.index}: chain {later.head} completed before {chain.head}")
        return ()


_PACKED: Final[dict[str, tuple[Surface, Aim, str, str, Callable[[str, int], Attack]]]] = {
    "claimed-one": (
        Surface.RING, Aim.MEMORY, "2.8.8", "marks one place as used that it did not use",
        lambda role, after: Claim(role, lambda _: 1, after=after)),
    "claimed-ring": (
        Surface.RING, Aim.MEMORY, "2.8.8", "marks the whole ring as used",
        lambda role, after: Claim(role, lambda size: size, after=after)),
    "hole": (
        Surface.RING, Aim.DENIAL, "2.8.8", "writes a used descriptor one place too far",
        lambda role, after: Hole(role, after=after)),
    "wrong-lap": (
        Surface.RING, Aim.DENIAL, "2.8.1", "turns the marks of a used descriptor to those of the other lap",
        lambda role, after: WrongLap(role, after=after)),
    "addr-rewritten": (
        Surface.RING, Aim.MEMORY, "2.8.8", "rewrites address and length of descriptors while it owns them",
        lambda role, after: Rewrite(role, lambda d: (_WILD, _MAX32, d[2], d[3]), after=after)),
    "id-rewritten": (
        Surface.RING, Aim.MEMORY, "2.8.6", "rewrites the ids of descriptors while it owns them",
        lambda role, after: Rewrite(role, lambda d: (d[0], d[1], d[2] ^ 0xFFFF, d[3]), after=after)),
    "flags-rewritten": (
        Surface.RING, Aim.MEMORY, "2.8.6", "rewrites NEXT, WRITE and INDIRECT of descriptors while it owns them",
        lambda role, after: Rewrite(
            role, lambda d: (d[0], d[1], d[2], d[3] ^ (DESC_F_NEXT | DESC_F_WRITE | DESC_F_INDIRECT)), after=after)),
    "table-rewritten": (
        Surface.RING, Aim.MEMORY, "2.8.7", "rewrites an indirect table while it owns the chain",
        lambda role, after: TableRewrite(role, after=after, times=8)),
    "used-race": (
        Surface.RING, Aim.MEMORY, "2.8.8", "rewrites a used descriptor between the driver's reads of it",
        lambda role, after: Race(role, after=after)),
    "device-event-garbage": (
        Surface.RING, Aim.DENIAL, "2.8.10", "asks to be notified at a place that the ring does not have",
        lambda role, after: Events(role, own=True, after=after)),
    "driver-event-rewritten": (
        Surface.RING, Aim.MEMORY, "2.8.10", "overwrites the driver's event suppression structure",
        lambda role, after: Events(role, own=False, after=after)),
}

_ORDER: Final[dict[str, tuple[Surface, Aim, str, str, Callable[[str, int], Attack]]]] = {
    "newest": (
        Surface.RING, Aim.DECEPTION, "2.7.9", "completes its newest chain for all before it, none of them served",
        lambda role, after: Newest(role, after=after, times=4)),
    "broken": (
        Surface.RING, Aim.MEMORY, "2.7.9", "completes chains in another order than it took them in",
        lambda role, after: OutOfOrder(role, after=after)),
}

_EVERYWHERE: Final = ("claimed-one", "claimed-ring", "used-race")
"""What is tried on every queue; blk, whose requests are the plainest, tries all of it."""
_REAL_EVERYWHERE: Final = ("packed-claimed-ring", "packed-used-id-size", "packed-used-len-max")
"""What real guests are shown on every queue; the code behind the others is one for all queues."""
_USED_EVERYWHERE: Final = ("used-id-size", "used-id-repeated", "used-len-beyond", "used-len-max", "completed-twice")


def packed_attacks() -> Iterator[AttackSpec]:
    """Attacks on packed rings and on order, for each device and queue role."""
    plain = lies_in_any_ring()
    for prefix, place in PLACES.items():
        whole = prefix == "blk"
        kinds = {f"packed-{name}": ("packed", *kind) for name, kind in _PACKED.items() if whole or name in _EVERYWHERE}
        kinds |= {f"packed-{name}": ("packed", *kind) for name, kind in plain.items()
                  if whole or name in _USED_EVERYWHERE}
        for ring in ("split", "packed"):
            kinds |= {f"{ring}-order-{name}": (f"{ring}-in-order", *kind) for name, kind in _ORDER.items()}
        for what, (ring, surface, aim, spec, summary, make) in kinds.items():
            yield AttackSpec(
                f"{prefix}-{what}", place.device, surface, aim, f"virtio 1.3, {spec}", f"The device {summary}.",
                make=lambda make=make, place=place: make(place.role, place.after),  # type: ignore[misc]
                # Linux has no use for IN_ORDER before 7.0, so that nothing was promised to it.
                targets=place.targets if "order" not in what and (whole or what in _REAL_EVERYWHERE) else MODEL,
                ring=ring)
