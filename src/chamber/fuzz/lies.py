"""What a fuzzer's input says: how the guest uses a device, and which lies the device tells meanwhile.

Any bytes are an input: four that say how the device is used, then sixteen for each lie. Where the bytes end the device
is honest, so an empty input is an honest run.
"""

from __future__ import annotations

import enum
import struct
from dataclasses import dataclass
from typing import Final, NamedTuple

__all__ = ("ANY_QUEUE", "HEADER", "LIMIT", "NOTHING_ASKED", "OVER_PCI", "READ_WHEN_PLUGGED_IN", "RECORD", "Change",
           "Lie", "Moment", "Point", "Program", "Start")

HEADER: Final = struct.Struct("<BBBB")
"""Start, use, ring, nothing."""
RECORD: Final = struct.Struct("<BBBBHBBQ")
"""Point, queue, when, times, offset, change, width, value."""
ANY_QUEUE: Final = 0xFF
"""What stands for any queue in a lie."""
LIMIT: Final = 64
"""Lies of one input; what goes beyond is not read."""


class Point(enum.IntEnum):
    """What a lie is about."""

    FEATURES = 0
    """A bit of the features offered: `value`."""
    CONFIG = 1
    """Configuration space, at `offset`, as the driver reads it."""
    RESPONSE = 2
    """What is written into a buffer, at `offset`."""
    SIZE = 3
    """How much of it is written: cut off, or filled up."""
    USED_LENGTH = 4
    """The length that a completion claims."""
    USED_ID = 5
    """The descriptor that a completion names."""
    USED_AGAIN = 6
    """A completion that stands in the ring once more."""
    USED_AHEAD = 7
    """More completions than were written, or fewer."""
    DESCRIPTOR = 8
    """The driver's own descriptor, while the device has it: address, length, flags or next by `offset`."""
    WITHHELD = 9
    """A buffer that is kept; `change` says for how long."""
    MESSAGE = 10
    """A message that nobody asked for: the last one of its queue once more, changed at `offset`."""
    INTERRUPT = 11
    """An interrupt of the queue with nothing in it."""
    CONFIG_INTERRUPT = 12
    """The word that configuration changed."""
    SILENCE = 13
    """No interrupt although there should be one."""
    ACTION = 14
    """Something that an honest host may do as well, at a moment of the attacker's choice."""
    # Over PCI alone.
    CONFIG_SPACE = 15
    """PCI configuration space, at `offset`, as the guest reads it."""
    REGISTER = 16
    """A BAR, at `offset`, as the guest reads it; `queue` says which, modulo what there are."""
    WRITE_LOST = 17
    """A write to a BAR, at `offset`, that does not arrive; `queue` as above."""
    VECTOR = 18
    """The MSI-X vector that is raised."""


class Change(enum.IntEnum):
    """How a number becomes another."""

    SET = 0
    ADD = 1
    XOR = 2
    ROOM = 3
    """The room that there is, plus the value."""
    FILL = 4
    """All bytes from there on, `width` at a time."""
    NEAR = 5
    """The value beside a power of two, by the value's bits: exponent and distance."""


class Moment(enum.IntEnum):
    """When something happens that answers nothing."""

    STARTED = 0
    """A queue was set up; the driver is not ready."""
    READY = 1
    """The driver is ready."""
    NOTIFIED = 2
    """The driver notified a queue."""
    TAKEN = 3
    """A buffer was taken from a queue."""
    PUBLISHED = 4
    """A completion was shown."""
    STOPPING = 5
    """The driver takes a queue back."""
    CONFIG = 6
    """The driver reads configuration space."""
    LATER = 7
    """Some milliseconds after the beginning, by the high byte of `offset`."""


class Start(enum.IntEnum):
    """Where an execution begins, and so what it sees of the driver."""

    SESSION = 0
    """The driver has the device already."""
    PROBE = 1
    """The driver probes the device, and is removed from it in the end."""
    CONNECT = 2
    """The device is plugged in, with features and rings read anew, and unplugged in the end."""


_POINTS, _CHANGES, _MOMENTS = tuple(Point), tuple(Change), tuple(Moment)

READ_WHEN_PLUGGED_IN: Final = frozenset({Point.FEATURES, Point.CONFIG_SPACE})
"""Lies about what is read when a device is plugged in, and seldom later."""
OVER_PCI: Final = frozenset({Point.CONFIG_SPACE, Point.REGISTER, Point.WRITE_LOST, Point.VECTOR})
"""Lies that only a PCI function can tell."""
NOTHING_ASKED: Final = frozenset({Point.MESSAGE, Point.INTERRUPT, Point.CONFIG_INTERRUPT, Point.ACTION})
"""Lies that answer nothing: they are told at a `Moment`."""


class Lie(NamedTuple):
    """One lie.

    Attributes:
        point: what it is about.
        queue: on which queue, modulo their number; `ANY_QUEUE` for any.
        when: opportunities to let pass.
        times: on how many opportunities; 255 for all that follow.
        offset: where in what is changed; for what answers nothing, the `Moment`, in the low byte.
        change: how the value takes effect.
        width: bytes of the number that is changed: 1, 2, 4 or 8.
        value: the number.

    """

    point: Point
    queue: int = 0
    when: int = 0
    times: int = 1
    offset: int = 0
    change: Change = Change.SET
    width: int = 4
    value: int = 0

    @property
    def moment(self) -> Moment:
        """When, for what answers nothing."""
        return _MOMENTS[(self.offset & 0xFF) % len(_MOMENTS)]

    @classmethod
    def parse(cls, record: bytes) -> Lie:
        """Read 16 bytes; any of them are a lie."""
        point, queue, when, times, offset, change, width, value = RECORD.unpack(record)
        return cls(_POINTS[point % len(_POINTS)], queue, when, max(times, 1), offset, _CHANGES[change % len(_CHANGES)],
                   1 << width % 4, value)

    def build(self) -> bytes:
        """Return the 16 bytes that `parse` reads."""
        return RECORD.pack(self.point, self.queue, self.when, self.times, self.offset, self.change,
                           self.width.bit_length() - 1, self.value)

    def apply(self, true: int, room: int = 0) -> int:
        """Return what becomes of a number; as wide as `width` says."""
        match self.change:
            case Change.ADD:
                number = true + self.value
            case Change.XOR:
                number = true ^ self.value
            case Change.ROOM:
                number = room + self.value
            case Change.NEAR:
                # Four bits of distance around a power of two, or around the room that there is.
                exponent, distance = (self.value >> 4) % (8 * self.width + 2), (self.value & 15) - 8
                number = room + distance if exponent > 8 * self.width else (1 << exponent) + distance
            case _:
                number = self.value
        return number & (1 << 8 * self.width) - 1

    def rewrite(self, data: bytes, room: int) -> bytes:
        """Return bytes with the number at `offset` changed; beyond their end they grow, to `room` at most."""
        end = self.offset + self.width
        if self.change is Change.FILL:
            if self.offset >= len(data):
                return data
            piece = (self.value & (1 << 8 * self.width) - 1).to_bytes(self.width, "little")
            rest = len(data) - self.offset
            return data[:self.offset] + (piece * (rest // self.width + 1))[:rest]
        if end > max(room, len(data)):
            return data
        padded = data.ljust(end, b"\0")
        number = self.apply(int.from_bytes(padded[self.offset:end], "little"), room)
        return padded[:self.offset] + number.to_bytes(self.width, "little") + padded[end:]


@dataclass(frozen=True, slots=True)
class Program:
    """One input.

    Attributes:
        start: where it begins.
        use: what the guest does with the device, by number, modulo what there is.
        ring: kind of queue that is offered, by number; it counts when the device is plugged in.
        lies: what the device does.

    """

    start: Start = Start.SESSION
    use: int = 0
    ring: int = 0
    lies: tuple[Lie, ...] = ()

    @classmethod
    def parse(cls, data: bytes) -> Program:
        """Read an input; any bytes are one."""
        start, use, ring, _ = HEADER.unpack(data[:HEADER.size].ljust(HEADER.size, b"\0"))
        end = min(len(data) - RECORD.size + 1, HEADER.size + LIMIT * RECORD.size)
        lies = tuple(Lie.parse(data[at:at + RECORD.size]) for at in range(HEADER.size, end, RECORD.size))
        return cls(Start(start % len(Start)), use, ring, lies)

    def build(self) -> bytes:
        """Return the bytes that `parse` reads."""
        return HEADER.pack(self.start, self.use, self.ring, 0) + b"".join(lie.build() for lie in self.lies)

    @property
    def least_start(self) -> Start:
        """The latest start at which all of its lies can be told: features are read when the device is plugged in."""
        return Start.CONNECT if any(lie.point in READ_WHEN_PLUGGED_IN for lie in self.lies) else self.start
