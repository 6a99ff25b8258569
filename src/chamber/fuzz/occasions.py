"""What a device has to lie about in an execution: told by who executes inputs to who varies them.

Most numbers that chance gives a lie are about what never comes up: a queue that the guest leaves alone, a byte that no
answer has, a fifth request where there are two. Such an input is an honest run, and teaches nothing.
"""

from __future__ import annotations

from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from chamber.fuzz.lies import ANY_QUEUE, NOTHING_ASKED, OVER_PCI, READ_WHEN_PLUGGED_IN, Change, Moment, Point
from chamber.fuzz.live_json import LiveJson

if TYPE_CHECKING:
    import random
    from collections.abc import Mapping
    from pathlib import Path

    from chamber.fuzz.lies import Lie, Start

__all__ = ("KnownOccasions", "LearntOccasions", "Occasions")

_ENOUGH: Final = 100
"""Executions that begin alike and use the device alike, after which it is known what comes up in them."""
_ANSWERS: Final = frozenset({Point.RESPONSE, Point.SIZE})
"""Lies about what is written into a buffer."""


@dataclass(slots=True)
class Occasions:
    """What came up in executions that begin alike and use the device alike: the most of any.

    Attributes:
        executions: how many they were.
        taken: buffers taken, by queue.
        room: bytes that an answer may be changed in, by queue.
        unasked: lies that answer nothing which the device could have told at some moment.
        moments: how often each came, by moment and queue; `ANY_QUEUE` where it is none's.
        config: offset and size of what was read of configuration space.

    """

    executions: int = 0
    taken: Counter[int] = field(default_factory=Counter)
    room: Counter[int] = field(default_factory=Counter)
    unasked: set[Point] = field(default_factory=set)
    moments: Counter[tuple[int, int]] = field(default_factory=Counter)
    config: set[tuple[int, int]] = field(default_factory=set)

    def answered(self, queue: int, room: int) -> None:
        """Count an answer."""
        self.room[queue] = max(self.room[queue], room)

    def add(self, other: Occasions) -> None:
        """Remember what another execution had, where that is more."""
        self.executions += 1
        self.taken |= other.taken
        self.room |= other.room
        self.unasked |= other.unasked
        self.moments |= other.moments
        self.config |= other.config

    def to_json(self) -> dict[str, list[tuple[int, ...]]]:
        """As `from_json` reads it."""
        return {"taken": list(self.taken.items()), "room": list(self.room.items()),
                "unasked": [(point,) for point in self.unasked],
                "moments": [(*key, times) for key, times in self.moments.items()], "config": list(self.config)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Occasions:
        """Read what `to_json` gave."""
        return cls(0, Counter(dict(data["taken"])), Counter(dict(data["room"])),
                   {Point(point) for point, in data["unasked"]},
                   Counter({(moment, queue): times for moment, queue, times in data["moments"]}),
                   {(offset, size) for offset, size in data["config"]})

    def fit(self, lie: Lie, dice: random.Random) -> Lie | None:
        """Return the lie as it can come up, changed where it could not; None if there is nothing for it."""
        if lie.point in OVER_PCI or lie.point in READ_WHEN_PLUGGED_IN:
            return lie
        if lie.point is Point.CONFIG:
            return self._fit_config(lie, dice)
        if lie.point not in NOTHING_ASKED:
            return self._fit_queue(lie, dice)
        return self._fit_moment(lie, dice) if lie.point in self.unasked else None

    def _fit_config(self, lie: Lie, dice: random.Random) -> Lie | None:
        if not self.config:
            return None
        if any(offset - lie.width < lie.offset < offset + size for offset, size in self.config):
            return lie
        offset, size = dice.choice(sorted(self.config))
        return lie._replace(offset=offset + dice.randrange(size))

    def _fit_moment(self, lie: Lie, dice: random.Random) -> Lie | None:
        if lie.moment is Moment.LATER:
            return lie
        moments = {key: times for key, times in self.moments.items()
                   if key[0] == lie.moment and (lie.queue == ANY_QUEUE or key[1] in {lie.queue, ANY_QUEUE})}
        if moments:
            return _soon(lie, sum(moments.values()), dice)
        if not self.moments:
            return None
        (moment, queue), times = dice.choice(sorted(self.moments.items()))
        return _soon(lie._replace(offset=lie.offset & 0xFF00 | moment, queue=queue), times, dice)

    def _fit_queue(self, lie: Lie, dice: random.Random) -> Lie | None:
        queues = self.room if lie.point in _ANSWERS else self.taken
        if not queues:
            return None
        if lie.queue != ANY_QUEUE and lie.queue not in queues:
            lie = lie._replace(queue=dice.choice(sorted(queues)))
        every = lie.queue == ANY_QUEUE
        if lie.point is Point.RESPONSE:
            room = max(self.room.values()) if every else self.room[lie.queue]
            width = 1 if lie.change is Change.FILL else lie.width
            if lie.offset + width > room:
                lie = lie._replace(offset=dice.randrange(max(room - width, 0) + 1))
        return _soon(lie, self.taken.total() if every else self.taken[lie.queue], dice)


def _soon(lie: Lie, times: int, dice: random.Random) -> Lie:
    """Have no more opportunities passed than there are."""
    return lie if lie.when < times else lie._replace(when=dice.randrange(max(times, 1)))


class LearntOccasions:
    """What came up, for who executes inputs: by where they begin and the number of what the guest does."""

    def __init__(self) -> None:
        self._learnt: dict[tuple[Start, int], Occasions] = {}

    def look(self, start: Start, use: int) -> Occasions | None:
        """Return where to count what comes up in such an execution; None when enough is known of them."""
        learnt = self._learnt.get((start, use))
        return None if learnt is not None and learnt.executions >= _ENOUGH else Occasions()

    def add(self, start: Start, use: int, seen: Occasions) -> None:
        """Remember what was counted."""
        self._learnt.setdefault((start, use), Occasions()).add(seen)

    def to_json(self) -> list[tuple[int, int, dict[str, list[tuple[int, ...]]]]]:
        """As `KnownOccasions` reads it."""
        return [(start, use, occasions.to_json()) for (start, use), occasions in self._learnt.items()]


class KnownOccasions:
    """What came up, for who varies inputs.

    Args:
        path: a `LiveJson` of `LearntOccasions`.

    """

    def __init__(self, path: Path) -> None:
        self._file = LiveJson(path)
        self._known: dict[tuple[int, int], Occasions] = {}
        self._uses = 1

    def of(self, start: Start, use: int) -> Occasions | None:
        """Return what came up in such executions; None where that is not known yet."""
        entries = self._file.read()
        if entries is not None:
            with suppress(ValueError, TypeError, KeyError):
                self._known = {(start, use): Occasions.from_json(data) for start, use, data in entries}
                self._uses = 1 + max((use for _, use in self._known), default=0)
        return self._known.get((start, use % self._uses))
