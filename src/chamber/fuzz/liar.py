"""The device that lies as an input tells it to, and is honest otherwise."""

from __future__ import annotations

from collections import defaultdict
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Final

from chamber.attacks.attack import Attack
from chamber.device.errors import DriverError
from chamber.device.split import SplitRing
from chamber.fuzz.lies import ANY_QUEUE, NOTHING_ASKED, Change, Moment, Point
from chamber.fuzz.messages import ACTIONS, TEMPLATES
from chamber.fuzz.words import message_name
from chamber.wire.errors import DmaFault
from chamber.wire.split import DESC_F_INDIRECT
from chamber.wire.virtio import Feature, bit

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from chamber.device.chain import Chain
    from chamber.device.queue import DeviceQueue
    from chamber.device.ring import Ring
    from chamber.device.virtio_pci import VirtioPci
    from chamber.fuzz.lies import Lie
    from chamber.fuzz.occasions import Occasions

__all__ = ("Liar",)

_KEPT_FEATURES: Final = bit(Feature.ACCESS_PLATFORM)
"""Left as it is. Where the platform has no such translation, descriptors would hold what the device can't follow; where
all DMA is bounced, a guest that is not offered it bounces nothing, which is known."""
_BARS: Final = 3
_ACTS: Final = 60
"""Lies told in one execution at most: a device that lies for ever tells nothing new, and takes time."""
_VECTORS: Final = 0x7FF
"""MSI-X has no more."""
_UNTIL_STOP, _UNTIL_END, _FOR_A_WHILE, _UNTIL_OTHERS = range(4)
_REQUEST: Final = 64
_BEYOND: Final = 64
"""Bytes behind an honest answer that may be written, too."""
_MOMENTS: Final = {
    Moment.STARTED: "before the driver is ready", Moment.READY: "as soon as the driver is ready",
    Moment.NOTIFIED: "when the driver notifies", Moment.TAKEN: "when a buffer was taken",
    Moment.PUBLISHED: "when a completion was shown", Moment.STOPPING: "while the driver takes a queue back",
    Moment.CONFIG: "while the driver reads configuration",
}


class Liar(Attack):
    """Tells lies.

    Every lie counts its own opportunities. What is kept back is given by `honest` at the latest, so that a guest that
    waits for it gets on. What a driver was told it has back may be freed, and a device behind a bounce buffer could not
    reach it: once a queue's completions have named what they should not, nothing is written through it any more, and
    its buffers are completed as they are.

    Args:
        lies: what to tell.
        occasions: where to count what could be lied about, if that is wanted.

    Attributes:
        numbered: the lies, each with its place in the list.
        told: by that place, how often it was told.

    """

    def __init__(self, lies: Sequence[Lie], occasions: Occasions | None = None) -> None:
        super().__init__()
        self._occasions = occasions
        self.told: dict[int, int] = defaultdict(int)
        self.numbered = tuple(enumerate(lies))
        self._seen: dict[int, int] = defaultdict(int)
        self._by_point: dict[Point, list[tuple[int, Lie]]] = defaultdict(list)
        self._by_moment: dict[Moment, list[tuple[int, Lie]]] = defaultdict(list)
        for number, lie in self.numbered:
            if lie.point in NOTHING_ASKED:
                self._by_moment[lie.moment].append((number, lie))
            else:
                self._by_point[lie.point].append((number, lie))
        self._left = _ACTS
        self._begun = False
        self._depth = 0
        self._held: list[tuple[int, DeviceQueue, Ring, Chain, int]] = []
        self._last: dict[int, bytes] = {}
        self._lent: dict[tuple[int, int], tuple[Chain, bytes]] = {}
        self._previous: dict[int, int] = {}
        self._untouchable: set[int] = set()
        self._silent = False
        self._lost: list[tuple[DeviceQueue, Ring | None, Chain, int]] = []

    @property
    def owes(self) -> bool:
        """Whether a guest that waits may wait for this device: for what is kept, or for what it was told wrongly."""
        return bool(self._held or self._untouchable or self._silent)

    # Whose turn it is.

    def _due(self, number: int, lie: Lie, queue: DeviceQueue | None) -> bool:
        """Count an opportunity of a lie; whether it is to be told now."""
        if queue is not None and lie.queue != ANY_QUEUE and lie.queue % len(self.device.queues) != queue.index:
            return False
        turn = self._seen[number]
        self._seen[number] = turn + 1
        return turn >= lie.when and (lie.times == 0xFF or turn < lie.when + lie.times) and self._left > 0

    def _tell(self, number: int, what: str) -> None:
        self._left -= 1
        self.told[number] += 1
        self.strike(what)

    def begin(self) -> None:
        """The execution begins, if it does not begin with the driver being ready: what is told later waits from now."""
        if self._begun:
            return
        self._begun = True
        for number, lie in self._by_moment[Moment.LATER]:
            call = partial(self._late, number, lie)
            for turn in range(min(lie.times, 8)):
                self.device.schedule((lie.offset >> 8) / 1000 * (turn + 1), call)

    def _act(self, action: str) -> None:
        if self.device.hooks is self:
            self.device.host_action(action)

    def _late(self, number: int, lie: Lie) -> None:
        if self._left > 0 and self.device.hooks is self:
            self._do(number, lie, self._queue(lie))

    def honest(self) -> None:
        """Lie no more, give back what is kept, name what was not named, and interrupt where that was left out."""
        self._left = 0
        self._release(lambda _how: True)
        lost, self._lost = self._lost, []
        for queue, ring, chain, length in lost:
            if queue.ring is ring and queue.broken is None:
                with suppress(DriverError, DmaFault):
                    self.device.complete(queue, chain, length)
                self.device.flush(queue)
        if self._silent:
            for queue in self.device.queues:
                if queue.started:
                    queue.interrupt()

    def _queue(self, lie: Lie) -> DeviceQueue:
        return self.device.queues[lie.queue % len(self.device.queues)]

    # Features and configuration.

    def features(self, offered: int) -> int:
        """Offer other features."""
        shown = offered
        for number, lie in self._by_point[Point.FEATURES]:
            if not self._due(number, lie, None):
                continue
            bits = 1 << lie.value % 64
            before = shown
            match lie.change:
                case Change.SET:
                    shown |= bits
                case Change.XOR:
                    shown ^= bits
                case Change.FILL:
                    shown |= lie.value
                case _:
                    shown &= ~bits
            shown = shown & ~_KEPT_FEATURES | offered & _KEPT_FEATURES
            if shown != before:
                self._tell(number, f"features {shown:#x} offered where the device has {offered:#x}")
        return shown

    def config(self, config: bytearray, offset: int, size: int) -> bytearray:
        """Show another configuration."""
        if self._occasions is not None:
            self._occasions.config.add((offset, size))
        self._moment(Moment.CONFIG, None)
        shown = bytes(config)
        for number, lie in self._by_point[Point.CONFIG]:
            if lie.offset + lie.width <= offset or lie.offset >= offset + size or not self._due(number, lie, None):
                continue
            changed = lie.rewrite(shown, len(shown))
            if changed != shown:
                shown = changed
                part = bytes(shown[lie.offset:lie.offset + lie.width])
                self._tell(number, f"configuration at byte {lie.offset}: {part.hex(' ')} where "
                                   f"{bytes(config[lie.offset:lie.offset + lie.width]).hex(' ')} is true")
        return bytearray(shown)

    # What a PCI function shows.

    def _read(self, point: Point, offset: int, data: bytes, where: str, bar: int = 0) -> bytes:
        """Show something else to a read; `offset` of a lie is a place in the whole of what is read."""
        shown = bytes(data)
        for number, lie in self._by_point[point]:
            at = lie.offset - offset
            if lie.queue % _BARS != bar or not 0 <= at < len(data) or not self._due(number, lie, None):
                continue
            changed = lie._replace(offset=at, width=min(lie.width, _power(len(data) - at))).rewrite(shown, len(shown))
            if changed != shown:
                self._tell(number, f"{where} at {offset:#x}: {changed.hex(' ')} where {data.hex(' ')} is true")
                shown = changed
        return shown

    def config_space(self, function: VirtioPci, offset: int, data: bytes) -> bytes:  # noqa: ARG002 - the hook's
        """Show another configuration space."""
        if not self._by_point[Point.CONFIG_SPACE]:
            return data
        return self._read(Point.CONFIG_SPACE, offset, data, "configuration space")

    def register(self, function: VirtioPci, bar: int, offset: int, data: bytes) -> bytes:  # noqa: ARG002 - the hook's
        """Show another register."""
        if not self._by_point[Point.REGISTER]:
            return data
        return self._read(Point.REGISTER, offset, data, f"BAR {bar}", bar)

    def register_written(self, function: VirtioPci, bar: int, offset: int, data: bytes) -> bool:  # noqa: ARG002
        """Lose a write."""
        for number, lie in self._by_point[Point.WRITE_LOST]:
            if (lie.queue % _BARS == bar and offset <= lie.offset < offset + len(data)
                    and self._due(number, lie, None)):
                self._tell(number, f"BAR {bar} at {offset:#x}: {data.hex(' ')} written, and lost")
                self._silent = True
                return False
        return True

    def vectors(self, function: VirtioPci, vector: int) -> Iterable[int]:  # noqa: ARG002 - the hook's
        """Raise another vector."""
        raised = [vector]
        for number, lie in self._by_point[Point.VECTOR]:
            if self._due(number, lie, None):
                raised = [*raised, lie.apply(vector)] if lie.change is Change.FILL else [lie.apply(vector)]
                raised = [other & _VECTORS for other in raised]
                self._tell(number, f"vector {raised} raised for {vector}")
                self._silent = True
        return raised

    # What happens to a queue.

    def queue_started(self, queue: DeviceQueue) -> None:
        """A moment."""
        self._untouchable.discard(queue.index)
        self._moment(Moment.STARTED, queue)

    def driver_ok(self) -> None:
        """A moment, and the beginning of time for what is told later."""
        self.begin()
        self._moment(Moment.READY, None)

    def notified(self, queue: DeviceQueue) -> None:
        """A moment."""
        self._moment(Moment.NOTIFIED, queue)

    def queue_stopping(self, queue: DeviceQueue) -> None:
        """A moment, and the last one at which what is kept of the queue can be given back."""
        self._moment(Moment.STOPPING, queue)
        self._release(lambda how: how == _UNTIL_STOP, queue)
        self._held = [held for held in self._held if held[1] is not queue]

    def popped(self, queue: DeviceQueue, chain: Chain) -> bool:
        """Rewrite the driver's descriptors, or keep the buffer."""
        if self._occasions is not None:
            self._occasions.taken[queue.index] += 1
        self._name(queue, chain, b"")
        if queue.index in self._untouchable:
            self.device.complete(queue, chain, 0)
            return False
        self._moment(Moment.TAKEN, queue)
        for number, lie in self._by_point[Point.DESCRIPTOR]:
            if self._due(number, lie, queue):
                self._rewrite(number, lie, queue, chain)
        for number, lie in self._by_point[Point.WITHHELD]:
            ring = queue.ring
            if self._due(number, lie, queue) and ring is not None:
                self._keep(number, lie, queue, ring, chain)
                return False
        if self._held:
            self._release(lambda how: how == _UNTIL_OTHERS, queue)
        return True

    def _keep(self, number: int, lie: Lie, queue: DeviceQueue, ring: Ring, chain: Chain) -> None:
        how = lie.change % 4
        self._held.append((how, queue, ring, chain, lie.value % 8))
        self._tell(number, f"queue {queue.index}: the buffer for {self._called(queue, chain.head)} kept " + (
            "until the queue is stopped", "until the end", f"for {lie.value % 50} ms", "until others were taken")[how])
        if how == _FOR_A_WHILE:
            self.device.schedule(lie.value % 50 / 1000, lambda: self._release(lambda h: h == _FOR_A_WHILE, queue))

    def _release(self, which: Callable[[int], bool], queue: DeviceQueue | None = None) -> None:
        """Serve what was kept after all; what becomes of it is the honest device's affair, and other lies'."""
        now = [held for held in self._held if which(held[0]) and queue in {None, held[1]}]
        self._held = [held for held in self._held if held not in now]
        for _, its, ring, chain, _ in now:
            if its.ring is not ring or its.broken is not None:
                continue
            with suppress(DriverError, DmaFault):
                if its.index in self._untouchable:
                    self.device.complete(its, chain, 0)
                else:
                    self.device.handle(its, chain)
            self.device.flush(its)

    def response(self, queue: DeviceQueue, chain: Chain, data: bytes) -> bytes:
        """Write something else."""
        if queue.index in self._untouchable:
            return b""
        honest = bytes(data)
        self._last[queue.index] = honest[:4096]
        self._name(queue, chain, honest)
        room = chain.writable_size
        if self._occasions is not None:
            self._occasions.answered(queue.index, min(room, len(honest) + _BEYOND))
        if not self._by_point[Point.RESPONSE] and not self._by_point[Point.SIZE]:
            return data
        shown = honest
        for number, lie in self._by_point[Point.RESPONSE]:
            if not self._due(number, lie, queue):
                continue
            changed = lie.rewrite(shown, min(room, len(honest) + _BEYOND))
            if changed != shown:
                part = slice(lie.offset, lie.offset + lie.width)
                self._tell(number, f"queue {queue.index}: {self._called(queue, chain.head)} with "
                                   f"{changed[part].hex(' ')} at byte {lie.offset} where "
                                   f"{honest[part].hex(' ') or 'nothing'} is true")
                shown = changed
        for number, lie in self._by_point[Point.SIZE]:
            if not self._due(number, lie, queue):
                continue
            size = min(lie.apply(len(honest), room), room, 1 << 16)
            if size != len(shown):
                self._tell(number, f"queue {queue.index}: {size} bytes of {self._called(queue, chain.head)} written "
                                   f"where {len(honest)} is true")
                shown = shown[:size].ljust(size, shown[-1:] or b"\0")
        return shown

    def used(self, queue: DeviceQueue, chain: Chain, length: int) -> Iterable[tuple[int, int]]:
        """Complete otherwise."""
        head = chain.head
        room = chain.writable_size
        out = [(head, length)]
        for number, lie in self._by_point[Point.USED_LENGTH]:
            if self._due(number, lie, queue):
                claimed = lie.apply(length, room)
                out = [(head, claimed)]
                self._tell(number, f"queue {queue.index}: used length {claimed} where {length} is true, for "
                                   f"{self._called(queue, head)}")
        for number, lie in self._by_point[Point.USED_ID]:
            if self._due(number, lie, queue):
                other = self._previous.get(queue.index, 0) if lie.change is Change.FILL else lie.apply(
                    head, queue.ring.size if queue.ring else 0)
                if other != head:
                    self._lost.append((queue, queue.ring, chain, length))
                out = [(other, out[0][1])]
                self._untouchable.add(queue.index)
                self._tell(number, f"queue {queue.index}: used id {other} where {head} is true, for "
                                   f"{self._called(queue, head)}")
        for number, lie in self._by_point[Point.USED_AGAIN]:
            if self._due(number, lie, queue):
                out += [(head, length)] * (1 + lie.value % 3)
                self._untouchable.add(queue.index)
                self._tell(number, f"queue {queue.index}: {self._called(queue, head)} completed {len(out)} times")
        self._previous[queue.index] = head
        self._lent.pop((queue.index, head), None)
        return out

    def published(self, queue: DeviceQueue) -> None:
        """Claim more completions than there are; a moment besides."""
        for number, lie in self._by_point[Point.USED_AHEAD]:
            ring = queue.ring
            if ring is not None and self._due(number, lie, queue):
                count = self._signed(lie, ring.size)
                ring.raw_claim(count)
                self._untouchable.add(queue.index)
                self._tell(number, f"queue {queue.index}: {count} completions more than there are")
                queue.interrupt()
        self._moment(Moment.PUBLISHED, queue)

    @staticmethod
    def _signed(lie: Lie, size: int) -> int:
        count = lie.apply(0, size) & 0xFFFF
        return count - 0x10000 if count & 0x8000 else count

    def interrupt(self, queue: DeviceQueue, wanted: bool) -> bool:
        """Stay silent."""
        for number, lie in self._by_point[Point.SILENCE]:
            if wanted and self._due(number, lie, queue):
                self._tell(number, f"queue {queue.index}: no interrupt although the driver wants it")
                self._silent = True
                wanted = False
        return wanted

    def _rewrite(self, number: int, lie: Lie, queue: DeviceQueue, chain: Chain) -> None:
        """Rewrite one field of the driver's descriptor; its memory is the device's while the ring is started."""
        ring = queue.ring
        if not isinstance(ring, SplitRing):
            return
        fields = list(ring.raw_desc(chain.head))
        if fields[2] & DESC_F_INDIRECT and lie.offset & 4:
            # The table itself, where the driver could read it back.
            with suppress(DmaFault):
                chain.dma.write(fields[0] + lie.offset % 16, lie.apply(0, fields[1]).to_bytes(lie.width, "little"))
                self._tell(number, f"queue {queue.index}: the indirect table of {chain.head} rewritten")
            return
        at = lie.offset % 4
        true = fields[at]
        fields[at] = lie.apply(true, ring.size)
        ring.raw_write_desc(chain.head, fields[0], fields[1], fields[2], fields[3])
        name = ("address", "length", "flags", "next")[at]
        self._tell(number, f"queue {queue.index}: {name} of descriptor {chain.head} {fields[at]:#x} where {true:#x} "
                           "is true")

    # What answers nothing.

    def _moment(self, moment: Moment, queue: DeviceQueue | None) -> None:
        if self._depth:
            return
        if self._occasions is not None:
            self._occasions.moments[moment, ANY_QUEUE if queue is None else queue.index] += 1
            self._occasions.unasked |= self._unasked()
        if not self._by_moment[moment]:
            return
        self._depth += 1  # what is done now makes moments of its own, which would go on for ever
        try:
            for number, lie in self._by_moment[moment]:
                if self._due(number, lie, queue):
                    self._do(number, lie, queue if queue is not None else self._queue(lie))
        finally:
            self._depth -= 1

    def _do(self, number: int, lie: Lie, queue: DeviceQueue) -> None:
        match lie.point:
            case Point.INTERRUPT:
                if queue.started:
                    self._tell(number, f"queue {queue.index}: an interrupt with nothing in it, {self._at(lie)}")
                    queue.interrupt()
            case Point.CONFIG_INTERRUPT:
                self._tell(number, f"an interrupt for configuration, {self._at(lie)}")
                self.device.config_interrupt()
            case Point.ACTION:
                actions = ACTIONS.get(self.device.type, ())
                if actions:
                    action = actions[lie.value % len(actions)]
                    self._tell(number, f"{action}, {self._at(lie)}")
                    # Between two things that the device does: in the middle of one no honest host acts.
                    self.device.schedule(0.0, partial(self._act, action))
            case _:
                self._send(number, lie, self._inbound(lie, queue))

    @staticmethod
    def _at(lie: Lie) -> str:
        return _MOMENTS.get(lie.moment) or f"after {lie.offset >> 8} ms"

    def _unasked(self) -> set[Point]:
        """Return which lies that answer nothing can be told now."""
        told = {Point.INTERRUPT, Point.CONFIG_INTERRUPT}
        if self._waiting():
            told.add(Point.MESSAGE)
        if ACTIONS.get(self.device.type):
            told.add(Point.ACTION)
        return told

    def _waiting(self) -> list[DeviceQueue]:
        """The queues that messages go through which nobody asked for."""
        templates = TEMPLATES.get(self.device.type, {})
        return [q for q in self.device.queues if q.started and self.device.queue_role(q.index) in templates]

    def _inbound(self, lie: Lie, queue: DeviceQueue) -> DeviceQueue:
        """The queue that a made-up message goes through: one whose buffers wait for the device."""
        waiting = self._waiting()
        return waiting[(lie.value >> 56) % len(waiting)] if waiting else queue

    def _send(self, number: int, lie: Lie, queue: DeviceQueue) -> None:
        if not queue.started or queue.broken is not None or queue.index in self._untouchable:
            return
        templates = TEMPLATES.get(self.device.type, {}).get(self.device.queue_role(queue.index), ())
        known = [self._last[queue.index]] if queue.index in self._last else []
        choice = [*known, *templates]
        if not choice:
            return
        data = choice[(lie.value >> 48 & 0xFF) % len(choice)]
        with suppress(DriverError, DmaFault):
            chain = queue.pop()
            if chain is None:
                return
            room = chain.writable_size
            self._name(queue, chain, data)
            # The low byte of `offset` is the moment, so the place is the width's multiple in its high byte.
            at = (lie.offset >> 8) * min(lie.width, 2) if lie.moment is not Moment.LATER else 0
            changed = _put(data, at, lie, room)
            self._tell(number, f"queue {queue.index}: {self._called(queue, chain.head)} unasked, "
                               f"{changed[:32].hex(' ')} ({len(changed)} bytes), {self._at(lie)}")
            data = self.response(queue, chain, changed) if self._by_point[Point.RESPONSE] else changed
            self.device.complete(queue, chain, chain.write(data))
        self.device.flush(queue)

    # Words.

    def _name(self, queue: DeviceQueue, chain: Chain, data: bytes) -> None:
        """Remember what a buffer is for, to be able to say it if a lie is about it."""
        self._lent[queue.index, chain.head] = chain, data

    def _called(self, queue: DeviceQueue, head: int) -> str:
        """Say what a buffer is for: by what goes into it, or else by what the driver asks for."""
        role = self.device.queue_role(queue.index)
        chain, data = self._lent.get((queue.index, head), (None, b""))
        name = message_name(self.device.type, role, b"", data) if data else ""
        if not name and chain is not None and chain.readable:
            with suppress(DmaFault):
                name = message_name(self.device.type, role, chain.read(0, _REQUEST), b"")
        return f"{name} ({role})" if name else f"a buffer of {role}"


def _power(room: int) -> int:
    """Return the widest number that fits."""
    return 1 << room.bit_length() - 1


def _put(data: bytes, at: int, lie: Lie, room: int) -> bytes:
    """Change one number of a made-up message: 4 bytes of the value, whose upper half chose the message."""
    width = min(lie.width, 4)
    if lie.change is Change.FILL or at + width > room:
        return data[:room]
    padded = data.ljust(at + width, b"\0")
    true = int.from_bytes(padded[at:at + width], "little")
    number = {Change.ADD: true + lie.value, Change.XOR: true ^ lie.value}.get(lie.change, lie.value)
    return (padded[:at] + (number & (1 << 8 * width) - 1).to_bytes(width, "little") + padded[at + width:])[:room]
