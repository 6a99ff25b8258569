"""The host's ends of sound streams: files, memory; and the state of a stream (virtio 1.3, 5.14.6.6)."""

from __future__ import annotations

import enum
import wave
from collections import deque
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Final

from chamber.wire.snd import RATES, WIDTHS, Direction, Params, PcmFeature, PcmFormat, PcmInfo
from chamber.wire.virtio import bit

if TYPE_CHECKING:
    from pathlib import Path

    from chamber.device.chain import Chain

__all__ = ("MemorySound", "Sound", "SoundError", "State", "Stream", "WavSink", "WavSource")

_ALL: Final = PcmInfo(bit(PcmFeature.EVT_XRUNS), bit(*WIDTHS), (1 << len(RATES)) - 1, Direction.OUTPUT, 1, 8)
_BY_WIDTH: Final = {width: kind for kind, width in WIDTHS.items()}


class SoundError(Exception):
    """A file can't be used for this."""


class Sound:
    """Where frames go to or come from; by default nowhere, and silence."""

    def narrow(self, info: PcmInfo) -> PcmInfo:
        """Say what a stream to or from here can do, of what streams can."""
        return info

    def begin(self, params: Params) -> None:
        """Frames of this kind follow.

        Raises:
            SoundError: it can't take or give such.

        """

    def take(self, frames: bytes) -> None:
        """Take what the guest plays."""

    def give(self, size: int) -> bytes:
        """Give so many bytes to the guest."""
        return bytes(size)

    def end(self) -> None:
        """The stream is released."""


class MemorySound(Sound):
    """Keeps what is played, up to a limit; gives back what it was made with, then silence.

    Attributes:
        data: what was played.

    """

    def __init__(self, content: bytes = b"", *, limit: int = 1 << 20) -> None:
        self.data = bytearray()
        self._content = content
        self._at = 0
        self._limit = limit

    def begin(self, params: Params) -> None:  # noqa: ARG002 - any will do
        """From the start."""
        self._at = 0
        self.data.clear()

    def take(self, frames: bytes) -> None:
        """Keep."""
        self.data += frames[:self._limit - len(self.data)]

    def give(self, size: int) -> bytes:
        """Continue."""
        part = self._content[self._at:self._at + size]
        self._at += len(part)
        return part.ljust(size, b"\0")


class WavSink(Sound):
    """Writes what is played into a WAV file; every time that a stream is prepared it begins anew.

    Args:
        path: the file.
        limit: bytes of sound that it holds at most.

    """

    def __init__(self, path: Path, *, limit: int = 1 << 30) -> None:
        self._path = path
        self._left = self._limit = limit
        self._file: wave.Wave_write | None = None

    def begin(self, params: Params) -> None:
        """Start the file."""
        self.end()
        try:
            self._raw = self._path.open("wb")
        except OSError as error:
            raise SoundError(f"{self._path}: {error.strerror}") from None
        self._file = wave.open(self._raw, "wb")  # noqa: SIM115 - closed by `end`
        self._left = self._limit
        self._file.setnchannels(params.channels)
        self._file.setsampwidth(WIDTHS[PcmFormat(params.format)])
        self._file.setframerate(RATES[params.rate])

    def take(self, frames: bytes) -> None:
        """Append."""
        if self._file is not None:
            part = frames[:self._left]
            self._left -= len(part)
            self._file.writeframesraw(part)

    def end(self) -> None:
        """Finish the file."""
        if self._file is not None:
            self._file.close()
            self._raw.close()
            self._file = None


class WavSource(Sound):
    """Gives what a WAV file holds, then silence; the guest has to ask for the file's own format."""

    def __init__(self, path: Path) -> None:
        try:
            with wave.open(str(path), "rb") as file:
                found = file.getparams()
                self._frames = file.readframes(found.nframes)
        except (OSError, EOFError, wave.Error) as error:
            raise SoundError(f"{path}: {str(error) or 'it ends too soon'}") from None
        if found.sampwidth not in _BY_WIDTH or found.framerate not in RATES:
            raise SoundError(f"{path}: {8 * found.sampwidth} bits at {found.framerate} Hz")
        self._kind = (found.nchannels, _BY_WIDTH[found.sampwidth], RATES.index(found.framerate))
        self._at = 0

    def narrow(self, info: PcmInfo) -> PcmInfo:
        """Nothing but the file's own kind."""
        channels, kind, rate = self._kind
        return replace(info, formats=bit(kind), rates=bit(rate), channels_min=channels, channels_max=channels)

    def begin(self, params: Params) -> None:  # noqa: ARG002 - it is the file's: streams do no other
        """From the start."""
        self._at = 0

    def give(self, size: int) -> bytes:
        """Continue."""
        part = self._frames[self._at:self._at + size]
        self._at += len(part)
        if len(part) == size:
            return part
        return part.ljust(size, b"\x80" if self._kind[1] == PcmFormat.U8 else b"\0")


class State(enum.Enum):
    """Where a stream is in its life."""

    INITIAL = "initial"
    SET = "parameters set"
    PREPARED = "prepared"
    RUNNING = "running"
    STOPPED = "stopped"


@dataclass(eq=False)
class Stream:
    """One stream.

    Attributes:
        info: what it can do.
        sound: the host's end.
        state: where it is.
        params: how it runs, once that was set.
        waiting: messages that were not served yet.
        ticking: whether the next message has its time.

    """

    info: PcmInfo
    sound: Sound
    state: State = State.INITIAL
    params: Params | None = None
    waiting: deque[Chain] = field(default_factory=deque)
    ticking: bool = False

    @classmethod
    def output(cls, sound: Sound) -> Stream:
        """A stream that plays."""
        return cls(sound.narrow(_ALL), sound)

    @classmethod
    def input(cls, sound: Sound) -> Stream:
        """A stream that records."""
        return cls(sound.narrow(replace(_ALL, direction=Direction.INPUT)), sound)

    def accepts(self, params: Params) -> bool:
        """Whether it can run so (5.14.6.6.3)."""
        info = self.info
        return (bool(info.formats >> params.format & 1) and bool(info.rates >> params.rate & 1)
                and info.channels_min <= params.channels <= info.channels_max
                and not params.features & ~info.features
                and 0 < params.period_bytes <= params.buffer_bytes and not params.buffer_bytes % params.period_bytes
                and not params.period_bytes % params.frame)
