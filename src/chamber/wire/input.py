"""Input device (virtio 1.3, 5.8): configuration by selection, events, and what both mean to Linux's evdev."""

from __future__ import annotations

import enum
import struct
from typing import TYPE_CHECKING, Final, NamedTuple

from chamber.wire.errors import WireError
from chamber.wire.layout import Field, Layout, Role

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

__all__ = (
    "CODES",
    "CONFIG",
    "DEVIDS",
    "EVENT",
    "EVENT_QUEUE",
    "SELECTED_SIZE",
    "STATUS_QUEUE",
    "SYN_REPORT",
    "Abs",
    "AbsInfo",
    "EventType",
    "InputEvent",
    "Select",
    "bitmap",
    "codes_of",
    "parse_recording",
    "parse_script",
)

_SPEC: Final = "virtio 1.3, 5.8"
EVENT_QUEUE: Final = 0
STATUS_QUEUE: Final = 1
SELECTED_SIZE: Final = 128
"""Bytes that a selection can show at most."""
SYN_REPORT: Final = 0
"""Code of the SYN event that ends a sequence which belongs together."""

CONFIG: Final = Layout(
    "virtio_input_config", "virtio 1.3, 5.8.4",
    # The driver writes these two and reads the others, so that there is nothing to lie about.
    Field("select", "bytes:1", Role.BYTES),
    Field("subsel", "bytes:1", Role.BYTES),
    Field("size", "u8", Role.LENGTH, None, range(SELECTED_SIZE + 1)),
    Field("reserved", "bytes:5", Role.BYTES),
    Field("u", f"bytes:{SELECTED_SIZE}", Role.BYTES),
)


class Select(enum.IntEnum):
    """What `size` and `u` show (5.8.4)."""

    UNSET = 0x00
    ID_NAME = 0x01
    ID_SERIAL = 0x02
    ID_DEVIDS = 0x03
    PROP_BITS = 0x10
    EV_BITS = 0x11
    ABS_INFO = 0x12


class EventType(enum.IntEnum):
    """Types of events (input-event-codes.h)."""

    SYN = 0x00
    KEY = 0x01
    REL = 0x02
    ABS = 0x03
    MSC = 0x04
    SW = 0x05
    LED = 0x11
    SND = 0x12
    REP = 0x14


CODES: Final = {
    EventType.SYN: 0x10, EventType.KEY: 0x300, EventType.REL: 0x10, EventType.ABS: 0x40, EventType.MSC: 0x08,
    EventType.SW: 0x11, EventType.LED: 0x10, EventType.SND: 0x08, EventType.REP: 0x02,
}
"""How many codes each type has."""


class Abs(enum.IntEnum):
    """Absolute axes that are used here."""

    X = 0x00
    Y = 0x01
    MT_SLOT = 0x2F
    MT_POSITION_X = 0x35
    MT_POSITION_Y = 0x36
    MT_TRACKING_ID = 0x39


EVENT: Final = struct.Struct("<HHi")
"""type, code, value (5.8.6); the value is written as le32 and means a signed number."""
DEVIDS: Final = struct.Struct("<4H")
"""bustype, vendor, product, version."""
_ABS_INFO: Final = struct.Struct("<5i")
_RECORD: Final = struct.Struct("<qqHHi")
"""struct input_event of 64-bit systems: what reading an evdev node gives."""
_RECORDS: Final = 1 << 20
_MICROSECONDS: Final = 10**6


class InputEvent(NamedTuple):
    """One event.

    Attributes:
        type: one of `EventType`, unless somebody lies.
        code: which key, axis, lamp.
        value: signed, 32 bits.

    """

    type: int
    code: int
    value: int

    def build(self) -> bytes:
        """Return 8 bytes."""
        return EVENT.pack(self.type, self.code, self.value)

    @classmethod
    def parse(cls, data: bytes) -> InputEvent:
        """Read an event.

        Raises:
            WireError: it has not 8 bytes.

        """
        if len(data) != EVENT.size:
            raise WireError("an event has 8 bytes", spec=_SPEC, detail=f"{len(data)} bytes")
        return cls(*EVENT.unpack(data))

    @property
    def ends(self) -> bool:
        """Whether a sequence ends here."""
        return self.type == EventType.SYN and self.code == SYN_REPORT


class AbsInfo(NamedTuple):
    """Range of an absolute axis."""

    min: int
    max: int
    fuzz: int = 0
    flat: int = 0
    res: int = 0

    def build(self) -> bytes:
        """Return 20 bytes."""
        return _ABS_INFO.pack(self.min, self.max, self.fuzz, self.flat, self.res)

    @classmethod
    def parse(cls, data: bytes) -> AbsInfo:
        """Read a range; whether it makes sense is for the reader to say.

        Raises:
            WireError: it has not 20 bytes.

        """
        if len(data) != _ABS_INFO.size:
            raise WireError("the range of an axis has 20 bytes", spec=_SPEC, detail=f"{len(data)} bytes")
        return cls(*_ABS_INFO.unpack(data))


def bitmap(codes: Iterable[int]) -> bytes:
    """Codes as bits, as short as it goes; the lowest bit of the first byte is code 0."""
    value = 0
    for code in codes:
        value |= 1 << code
    return value.to_bytes((value.bit_length() + 7) // 8, "little")


def codes_of(data: bytes) -> frozenset[int]:
    """Codes whose bits are set."""
    value = int.from_bytes(data, "little")
    return frozenset(code for code in range(8 * len(data)) if value >> code & 1)


def parse_recording(data: bytes) -> Iterator[tuple[float, InputEvent]]:
    """Read what was recorded from an evdev node: seconds since the first event, and the event.

    Raises:
        WireError: it is no whole number of records, or more than a million.

    """
    if len(data) % _RECORD.size or len(data) > _RECORDS * _RECORD.size:
        raise WireError("a recording is records of 24 bytes, a million at most", spec="Linux, uapi/linux/input.h",
                        detail=f"{len(data)} bytes")
    first: int | None = None
    for seconds, micros, kind, code, value in _RECORD.iter_unpack(data):
        when = seconds * _MICROSECONDS + micros
        first = when if first is None else first
        yield (when - first) / _MICROSECONDS, InputEvent(kind, code, value)


def parse_script(text: str) -> Iterator[tuple[float, InputEvent]]:
    """Read events written by hand: a line is seconds, type by name, code, value; ``#`` begins a remark.

    Raises:
        WireError: a line is something else.

    """
    for number, line in enumerate(text.splitlines(), 1):
        words = line.partition("#")[0].split()
        if not words:
            continue
        try:
            seconds, kind, code, value = words
            event = InputEvent(EventType[kind.upper()], int(code, 0), int(value, 0))
            event.build()
            when = float(seconds)
        except (KeyError, ValueError, struct.error):
            raise WireError("a line is seconds, type, code and value", spec="chamber.wire.input",
                            detail=f"line {number}: {line[:80]!r}") from None
        if not 0 <= when < 1e9:
            raise WireError("seconds are counted from the start", spec="chamber.wire.input", detail=f"line {number}")
        yield when, event
