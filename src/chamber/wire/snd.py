"""Sound device (virtio 1.3, 5.14): jacks, PCM streams, channel maps, control elements."""

from __future__ import annotations

import enum
import struct
from dataclasses import dataclass
from typing import Final

from chamber.wire.errors import WireError
from chamber.wire.layout import Field, Layout, Role

__all__ = (
    "CHANNELS",
    "CHMAP_INFO",
    "CONFIG",
    "CONTROL_QUEUE",
    "CTL_INFO",
    "CTL_INFO_LINUX_SIZE",
    "ENUM_ITEM",
    "EVENT",
    "EVENT_QUEUE",
    "HDR",
    "IEC958_SIZE",
    "ITEM_HDR",
    "JACK_INFO",
    "JACK_REMAP",
    "PCM_INFO",
    "QUERY",
    "RATES",
    "RX_QUEUE",
    "SET_PARAMS",
    "STATUS",
    "TLV",
    "TX_QUEUE",
    "VALUE_SIZE",
    "WIDTHS",
    "XFER",
    "Access",
    "ControlInfo",
    "ControlType",
    "Direction",
    "JackFeature",
    "Params",
    "PcmFeature",
    "PcmFormat",
    "PcmInfo",
    "SndCode",
    "SndFeature",
    "SndStatus",
)

SPEC: Final = "virtio 1.3, 5.14.6"
CONTROL_QUEUE: Final = 0
EVENT_QUEUE: Final = 1
TX_QUEUE: Final = 2
RX_QUEUE: Final = 3
CHANNELS: Final = 18
"""Positions that a channel map has room for."""
VALUE_SIZE: Final = 512
"""Bytes of a control element's value."""
IEC958_SIZE: Final = 176
"""Bytes of such a value that describe a digital interface."""


class SndFeature(enum.IntEnum):
    """Feature bits (5.14.3)."""

    CTLS = 0


CONFIG: Final = Layout(
    "virtio_snd_config", "virtio 1.3, 5.14.4",
    Field("jacks", "le32", Role.COUNT),
    Field("streams", "le32", Role.COUNT),
    Field("chmaps", "le32", Role.COUNT),
    Field("controls", "le32", Role.COUNT, SndFeature.CTLS),
)


class SndCode(enum.IntEnum):
    """Requests and events (5.14.6)."""

    JACK_INFO = 0x0001
    JACK_REMAP = 0x0002
    PCM_INFO = 0x0100
    PCM_SET_PARAMS = 0x0101
    PCM_PREPARE = 0x0102
    PCM_RELEASE = 0x0103
    PCM_START = 0x0104
    PCM_STOP = 0x0105
    CHMAP_INFO = 0x0200
    CTL_INFO = 0x0300
    CTL_ENUM_ITEMS = 0x0301
    CTL_READ = 0x0302
    CTL_WRITE = 0x0303
    CTL_TLV_READ = 0x0304
    CTL_TLV_WRITE = 0x0305
    CTL_TLV_COMMAND = 0x0306
    EVT_JACK_CONNECTED = 0x1000
    EVT_JACK_DISCONNECTED = 0x1001
    EVT_PCM_PERIOD_ELAPSED = 0x1100
    EVT_PCM_XRUN = 0x1101
    EVT_CTL_NOTIFY = 0x1200


class SndStatus(enum.IntEnum):
    """How a request ended."""

    OK = 0x8000
    BAD_MSG = 0x8001
    NOT_SUPP = 0x8002
    IO_ERR = 0x8003


class Direction(enum.IntEnum):
    """Which way a stream goes."""

    OUTPUT = 0
    INPUT = 1


class JackFeature(enum.IntEnum):
    """What can be done with a jack (5.14.6.4.1)."""

    REMAP = 0


class PcmFeature(enum.IntEnum):
    """What a stream can do (5.14.6.6.2)."""

    SHMEM_HOST = 0
    SHMEM_GUEST = 1
    MSG_POLLING = 2
    EVT_SHMEM_PERIODS = 3
    EVT_XRUNS = 4


class PcmFormat(enum.IntEnum):
    """Sample formats that are used here; there are 25."""

    U8 = 4
    S16 = 5
    S24_3 = 11
    S32 = 17


WIDTHS: Final = {PcmFormat.U8: 1, PcmFormat.S16: 2, PcmFormat.S24_3: 3, PcmFormat.S32: 4}
"""Bytes of a sample."""
RATES: Final = (5512, 8000, 11025, 16000, 22050, 32000, 44100, 48000, 64000, 88200, 96000, 176400, 192000, 384000)
"""Frames a second, by the number that stands for them."""


class ControlType(enum.IntEnum):
    """What a control element holds (5.14.6.10.1)."""

    BOOLEAN = 0
    INTEGER = 1
    INTEGER64 = 2
    ENUMERATED = 3
    BYTES = 4
    IEC958 = 5


class Access(enum.IntEnum):
    """What may be done with a control element."""

    READ = 0
    WRITE = 1
    VOLATILE = 2
    INACTIVE = 3
    TLV_READ = 4
    TLV_WRITE = 5
    TLV_COMMAND = 6


HDR: Final = struct.Struct("<I")
"""code."""
QUERY: Final = struct.Struct("<4I")
"""code, start_id, count, size."""
ITEM_HDR: Final = struct.Struct("<2I")
"""code, and the number of a jack, stream or control element."""
JACK_INFO: Final = struct.Struct("<4IB7x")
"""hda_fn_nid, features, hda_reg_defconf, hda_reg_caps, connected."""
JACK_REMAP: Final = struct.Struct("<4I")
"""code, jack_id, association, sequence."""
PCM_INFO: Final = struct.Struct("<2I2Q3B5x")
"""hda_fn_nid, features, formats, rates, direction, channels_min, channels_max."""
SET_PARAMS: Final = struct.Struct("<5I4B")
"""code, stream_id, buffer_bytes, period_bytes, features, channels, format, rate, padding."""
CHMAP_INFO: Final = struct.Struct(f"<I2B{CHANNELS}s")
"""hda_fn_nid, direction, channels, positions."""
CTL_INFO: Final = struct.Struct("<6I44s24s")
"""hda_fn_nid, role, type, access, count, index, name; what its values can be, by its type."""
CTL_INFO_LINUX_SIZE: Final = 96
"""What Linux takes the same information to have: sizes stand in questions for that."""
_VALUE_AT: Final = 68
_RANGE: Final = struct.Struct("<3I12x")
_RANGE64: Final = struct.Struct("<3Q")
"""min, max, step."""
ENUM_ITEM: Final = struct.Struct("<64s")
TLV: Final = struct.Struct("<2I")
"""type, length; so many bytes follow."""
XFER: Final = struct.Struct("<I")
"""stream_id; frames follow, in a tx message."""
STATUS: Final = struct.Struct("<2I")
"""status, latency_bytes."""
EVENT: Final = struct.Struct("<2I")
"""code, data."""


def _parse(layout: struct.Struct, data: bytes, what: str) -> tuple[int, ...]:
    if len(data) != layout.size:
        raise WireError(f"{what} has {layout.size} bytes", spec=SPEC, detail=f"{len(data)} bytes")
    return layout.unpack(data)


@dataclass(frozen=True, slots=True)
class PcmInfo:
    """What a stream can do: bits of `PcmFormat` and of places in `RATES`."""

    features: int
    formats: int
    rates: int
    direction: int
    channels_min: int
    channels_max: int

    def build(self) -> bytes:
        """Return 32 bytes."""
        return PCM_INFO.pack(0, self.features, self.formats, self.rates, self.direction, self.channels_min,
                             self.channels_max)

    @classmethod
    def parse(cls, data: bytes) -> PcmInfo:
        """Read it; whether it makes sense is for the reader to say.

        Raises:
            WireError: it has another size.

        """
        return cls(*_parse(PCM_INFO, data, "a stream's information")[1:])


@dataclass(frozen=True, slots=True)
class Params:
    """How a stream is to run."""

    buffer_bytes: int
    period_bytes: int
    channels: int
    format: int
    rate: int
    features: int = 0

    def build(self, stream: int) -> bytes:
        """Return the request."""
        return SET_PARAMS.pack(SndCode.PCM_SET_PARAMS, stream, self.buffer_bytes, self.period_bytes, self.features,
                               self.channels, self.format, self.rate, 0)

    @classmethod
    def parse(cls, data: bytes) -> Params:
        """Read a request.

        Raises:
            WireError: it has another size.

        """
        _, _, buffer, period, features, channels, kind, rate, _ = _parse(SET_PARAMS, data, "a request for parameters")
        return cls(buffer, period, channels, kind, rate, features)

    @property
    def frame(self) -> int:
        """Bytes of a frame: a sample for each channel."""
        return WIDTHS[PcmFormat(self.format)] * self.channels

    def seconds(self, size: int) -> float:
        """How long so many bytes last."""
        return size / (self.frame * RATES[self.rate])


@dataclass(frozen=True, slots=True)
class ControlInfo:
    """A control element: for enumerated ones `max` is the number of items."""

    type: int
    access: int
    count: int
    name: bytes
    min: int = 0
    max: int = 0
    step: int = 0
    index: int = 0

    def build(self, size: int = CTL_INFO.size) -> bytes:
        """Return 92 bytes, or the 96 of Linux (7.3 and before), whose compiler aligns the value to 8 bytes."""
        values = (self.max, 0, 0) if self.type == ControlType.ENUMERATED else (self.min, self.max, self.step)
        layout = _RANGE64 if self.type == ControlType.INTEGER64 else _RANGE
        packed = CTL_INFO.pack(0, 0, self.type, self.access, self.count, self.index, self.name, layout.pack(*values))
        return packed if size == CTL_INFO.size else packed[:_VALUE_AT] + bytes(size - len(packed)) + packed[_VALUE_AT:]

    @classmethod
    def parse(cls, data: bytes) -> ControlInfo:
        """Read it.

        Raises:
            WireError: it has another size.

        """
        if len(data) != CTL_INFO.size:
            raise WireError(f"a control element's information has {CTL_INFO.size} bytes", spec=SPEC,
                            detail=f"{len(data)} bytes")
        _, _, kind, access, count, index, name, values = CTL_INFO.unpack(data)
        first, second, third = (_RANGE64 if kind == ControlType.INTEGER64 else _RANGE).unpack(values)
        if kind == ControlType.ENUMERATED:
            first, second, third = 0, first, 0
        return cls(kind, access, count, name.split(b"\0")[0], first, second, third, index)
