"""Sound device (virtio 1.3, 5.14): plays and records at the pace of the sound, tells of jacks, has control elements."""

from __future__ import annotations

import struct
from collections import deque
from typing import TYPE_CHECKING, ClassVar, Final

from chamber.device.base import Device
from chamber.device.errors import DriverError
from chamber.device.sample_content import RECORDED
from chamber.device.snd_stream import MemorySound, SoundError, State, Stream
from chamber.wire.errors import WireError
from chamber.wire.snd import (
    CHANNELS,
    CHMAP_INFO,
    CONFIG,
    CONTROL_QUEUE,
    CTL_INFO,
    CTL_INFO_LINUX_SIZE,
    ENUM_ITEM,
    EVENT,
    EVENT_QUEUE,
    HDR,
    ITEM_HDR,
    JACK_INFO,
    JACK_REMAP,
    PCM_INFO,
    QUERY,
    SET_PARAMS,
    STATUS,
    TLV,
    TX_QUEUE,
    VALUE_SIZE,
    XFER,
    Access,
    ControlInfo,
    ControlType,
    Direction,
    JackFeature,
    Params,
    PcmFeature,
    SndCode,
    SndFeature,
    SndStatus,
)
from chamber.wire.virtio import DeviceType, bit

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from chamber.device.chain import Chain
    from chamber.device.hooks import Hooks
    from chamber.device.queue import DeviceQueue

__all__ = ("CONTROLS", "ITEMS", "SndDevice")

_MESSAGE: Final = 1 << 20
"""Bytes of frames that one message may bring or ask for."""
_REQUEST: Final = ITEM_HDR.size + VALUE_SIZE
_REPLY: Final = 1 << 16
_EVENTS: Final = 64
_READ_WRITE: Final = bit(Access.READ, Access.WRITE)
CONTROLS: Final = (
    ControlInfo(ControlType.INTEGER, _READ_WRITE | bit(Access.TLV_READ, Access.TLV_WRITE), 2, b"Master Playback Volume",
                0, 100, 1),
    ControlInfo(ControlType.BOOLEAN, _READ_WRITE, 1, b"Master Playback Switch", 0, 1, 0),
    ControlInfo(ControlType.ENUMERATED, _READ_WRITE, 1, b"Capture Source", 0, 3),
)
ITEMS: Final = (b"Microphone", b"Line", b"Loopback")
"""What the enumerated element can be."""
_DECIBELS: Final = struct.pack("<2I2i", 1, 8, -5000, 50)
"""SNDRV_CTL_TLVT_DB_SCALE from -50 dB in steps of 0.5 dB."""
_PLUG: Final = 0x01014000
"""What a jack is in terms of HDA, 7.3.3.31: a green line-out plug at the rear."""
_STATES: Final = {
    SndCode.PCM_SET_PARAMS: (State.INITIAL, State.SET, State.PREPARED),
    SndCode.PCM_PREPARE: (State.SET, State.PREPARED),
    SndCode.PCM_START: (State.PREPARED, State.STOPPED),
    SndCode.PCM_STOP: (State.RUNNING,),
    SndCode.PCM_RELEASE: (State.PREPARED, State.STOPPED),
}
"""In which states each request is in order (5.14.6.6.1)."""


class _BadMessageError(Exception):
    """Ends a request with BAD_MSG."""


class _NotSupportedError(Exception):
    """Ends a request with NOT_SUPP: it is in order, and this device has no such thing."""


class SndDevice(Device):
    """Plays what the guest sends, and gives it what is recorded.

    Args:
        streams: by number; by default one that plays into memory and one that records `RECORDED`.
        jacks: whether each is connected.
        features: feature bits to offer instead of CTLS.
        config: fields of configuration space to set otherwise, by name.
        queue_size: descriptors per queue.
        hooks: interference, if any. A reply to a control request, a message's answer with its status, and an event are
            one response each.

    Attributes:
        streams: the streams, with their state.
        jacks: whether each is connected.
        values: what control elements hold.
        places: association and sequence of each jack.

    """

    type: ClassVar[DeviceType] = DeviceType.SND

    def __init__(self, streams: Sequence[Stream] | None = None, *, jacks: Sequence[bool] = (True, False),
                 features: int | None = None, config: Mapping[str, int | bytes] | None = None, queue_size: int = 64,
                 hooks: Hooks | None = None) -> None:
        self.streams = list(streams) if streams is not None else [
            Stream.output(MemorySound()), Stream.input(MemorySound(RECORDED))]
        self.jacks = list(jacks)
        self.places = [(1, 0)] * len(self.jacks)
        self.values = [(50, 50), (1,), (0,)]
        self._metadata = [_DECIBELS] * len(CONTROLS)
        self._events: deque[tuple[int, int]] = deque(maxlen=_EVENTS)
        self._over: list[Stream] = []
        values: dict[str, int | bytes] = {"jacks": len(self.jacks), "streams": len(self.streams),
                                          "chmaps": len(self.streams), "controls": len(CONTROLS), **(config or {})}
        super().__init__(features=bit(SndFeature.CTLS) if features is None else features, config=CONFIG.pack(**values),
                         queues=4, queue_size=queue_size, hooks=hooks)
        self._serve: dict[int, Callable[[bytes, int], bytes]] = {
            SndCode.JACK_INFO: self._jack_info, SndCode.JACK_REMAP: self._jack_remap,
            SndCode.PCM_INFO: self._pcm_info, SndCode.CHMAP_INFO: self._chmap_info,
            SndCode.PCM_SET_PARAMS: self._set_params, SndCode.PCM_PREPARE: self._prepare,
            SndCode.PCM_START: self._start, SndCode.PCM_STOP: self._stop, SndCode.PCM_RELEASE: self._release,
        }
        self._controls: dict[int, Callable[[bytes, int], bytes]] = {
            SndCode.CTL_INFO: self._ctl_info, SndCode.CTL_ENUM_ITEMS: self._enum_items,
            SndCode.CTL_READ: self._ctl_read, SndCode.CTL_WRITE: self._ctl_write,
            SndCode.CTL_TLV_READ: self._tlv_read, SndCode.CTL_TLV_WRITE: self._tlv_write,
        }

    def queue_role(self, index: int) -> str:
        """``control``, ``events``, ``tx`` or ``rx`` (5.14.2)."""
        return ("control", "events", "tx", "rx")[index]

    def close(self) -> None:
        """Finish files."""
        for stream in self.streams:
            stream.sound.end()

    def reset(self) -> None:
        """Forget the driver."""
        super().reset()
        for stream in self.streams:
            stream.sound.end()
            stream.state, stream.params, stream.ticking = State.INITIAL, None, False
        self._events.clear()

    def queue_stopped(self, queue: DeviceQueue) -> None:
        """Forget its messages."""
        if queue.index >= TX_QUEUE:
            direction = Direction(queue.index - TX_QUEUE)
            for stream in self.streams:
                if stream.info.direction == direction:
                    stream.waiting.clear()

    # Events.

    def host_action(self, action: str) -> None:
        """Pull or push a plug, ``unplug`` and ``plug``; turn the ``volume``."""
        if action in {"plug", "unplug"}:
            self.jacks[0] = action == "plug"
            self._event(SndCode.EVT_JACK_CONNECTED if self.jacks[0] else SndCode.EVT_JACK_DISCONNECTED, 0)
        elif action == "volume":
            self.values[0] = (30, 30)
            self._event(SndCode.EVT_CTL_NOTIFY, 1 << 16)  # control 0, its value

    def _event(self, code: int, data: int) -> None:
        self._events.append((code, data))
        self.pump(self.queues[EVENT_QUEUE])

    def available(self, queue: DeviceQueue) -> bool:
        """Serve a queue; that for events only when there is one."""
        if queue.index != EVENT_QUEUE:
            self._serve_over(queue)
            return super().available(queue)
        while self._events:
            chain = self.take_buffer(queue, EVENT.size)
            if chain is None:
                break
            code, data = self._events.popleft()
            self.log(f"event {SndCode(code).name} {data:#x}")
            self.complete(queue, chain, self.respond(queue, chain, EVENT.pack(code, data)))
        return False

    def handle(self, queue: DeviceQueue, chain: Chain) -> None:
        """Serve one request or message."""
        if queue.index == CONTROL_QUEUE:
            self._control(queue, chain)
        else:
            self._message(queue, chain)

    # Requests.

    def _control(self, queue: DeviceQueue, chain: Chain) -> None:
        request = chain.read(0, _REQUEST)
        room = min(chain.writable_size, _REPLY)
        if len(request) < HDR.size or room < HDR.size:
            self.report(DriverError("a request has a header, and room for one", spec="5.14.6", detail=repr(chain)))
            self.complete(queue, chain, 0)
            return
        code, = HDR.unpack_from(request)
        serve = self._serve.get(code) or (self._controls.get(code) if self.has(SndFeature.CTLS) else None)
        body = b""
        try:
            body = self._unsupported(request, room) if serve is None else serve(request, room - HDR.size)
            status = SndStatus.OK
        except _BadMessageError as error:
            status = SndStatus.BAD_MSG
            self.report(DriverError("a request is in order", spec="5.14.6", detail=str(error)))
        except _NotSupportedError:
            status = SndStatus.NOT_SUPP
        except (SoundError, OSError) as error:
            self.log(f"sound: {error}")
            status = SndStatus.IO_ERR
        if self.trace is not None or self.hooks is not None:
            self.log(f"request {SndCode(code).name if code in set(SndCode) else hex(code)}: {status.name}")
        self.complete(queue, chain, self.respond(queue, chain, HDR.pack(status) + body))

    def _unsupported(self, _request: bytes, _room: int) -> bytes:
        raise _NotSupportedError

    def _query(self, request: bytes, room: int, entries: Sequence[bytes], size: int) -> bytes:
        """Answer a question for several entries (5.14.6.1)."""
        if len(request) < QUERY.size:
            raise _BadMessageError("a question has 16 bytes")
        _, start, count, wanted = QUERY.unpack_from(request)
        if wanted != size or not count or start + count > len(entries) or count * size > room:
            raise _BadMessageError(f"{count} entries of {wanted} bytes from {start} of {len(entries)}, room {room}")
        return b"".join(entries[start:start + count])

    def _jack_info(self, request: bytes, room: int) -> bytes:
        entries = [JACK_INFO.pack(0, bit(JackFeature.REMAP), _PLUG | association << 4 | sequence, 0, int(connected))
                   for connected, (association, sequence) in zip(self.jacks, self.places, strict=True)]
        return self._query(request, room, entries, JACK_INFO.size)

    def _jack_remap(self, request: bytes, _room: int) -> bytes:
        """Put a jack into another group, or elsewhere in its group; both are four bits of what it is (5.14.6.4.2)."""
        if len(request) < JACK_REMAP.size:
            raise _BadMessageError("a request to move a jack has 16 bytes")
        _, jack, association, sequence = JACK_REMAP.unpack_from(request)
        if jack >= len(self.jacks) or association > 0xF or sequence > 0xF:
            raise _BadMessageError(f"jack {jack} of {len(self.jacks)} to {association}, {sequence}")
        self.places[jack] = (association, sequence)
        return b""

    def _pcm_info(self, request: bytes, room: int) -> bytes:
        return self._query(request, room, [stream.info.build() for stream in self.streams], PCM_INFO.size)

    def _chmap_info(self, request: bytes, room: int) -> bytes:
        positions = bytes((3, 4)).ljust(CHANNELS, b"\0")  # front left, front right
        entries = [CHMAP_INFO.pack(0, stream.info.direction, 2, positions) for stream in self.streams]
        return self._query(request, room, entries, CHMAP_INFO.size)

    # Streams.

    def _stream(self, request: bytes, code: SndCode) -> Stream:
        if len(request) < ITEM_HDR.size:
            raise _BadMessageError("a request names a stream")
        number = int.from_bytes(request[4:8], "little")
        if number >= len(self.streams):
            raise _BadMessageError(f"stream {number} of {len(self.streams)}")
        stream = self.streams[number]
        if stream.state not in _STATES[code]:
            raise _BadMessageError(f"{code.name} while stream {number} is {stream.state.value}")
        return stream

    def _set_params(self, request: bytes, _room: int) -> bytes:
        stream = self._stream(request, SndCode.PCM_SET_PARAMS)
        try:
            params = Params.parse(request[:SET_PARAMS.size])
        except WireError as error:
            raise _BadMessageError(error.rule) from None
        try:
            fine = stream.accepts(params)
        except ValueError:  # a format that is none of those here
            fine = False
        if not fine or params.buffer_bytes > _MESSAGE:
            raise _NotSupportedError
        self._give_up(stream)
        stream.params, stream.state = params, State.SET
        return b""

    def _prepare(self, request: bytes, _room: int) -> bytes:
        stream = self._stream(request, SndCode.PCM_PREPARE)
        assert stream.params is not None
        stream.sound.begin(stream.params)
        stream.state = State.PREPARED
        return b""

    def _start(self, request: bytes, _room: int) -> bytes:
        stream = self._stream(request, SndCode.PCM_START)
        stream.state = State.RUNNING
        self._tick(stream)
        return b""

    def _stop(self, request: bytes, _room: int) -> bytes:
        self._stream(request, SndCode.PCM_STOP).state = State.STOPPED
        return b""

    def _release(self, request: bytes, _room: int) -> bytes:
        stream = self._stream(request, SndCode.PCM_RELEASE)
        self._give_up(stream)
        stream.sound.end()
        stream.state = State.SET
        return b""

    def _give_up(self, stream: Stream) -> None:
        """Complete what was not played or recorded (5.14.6.6.5)."""
        queue = self.queues[TX_QUEUE + stream.info.direction]
        while stream.waiting:
            self._answer(queue, stream.waiting.popleft(), stream, SndStatus.IO_ERR)
        self.flush(queue)

    # Messages.

    def _message(self, queue: DeviceQueue, chain: Chain) -> None:
        header = chain.read(0, XFER.size)
        number = int.from_bytes(header, "little") if len(header) == XFER.size else -1
        direction = queue.index - TX_QUEUE
        size = (chain.readable_size - XFER.size if direction == Direction.OUTPUT else chain.writable_size - STATUS.size)
        stream = self.streams[number] if 0 <= number < len(self.streams) else None
        if (stream is None or stream.info.direction != direction or stream.params is None
                or chain.writable_size < STATUS.size or not 0 < size <= _MESSAGE or size % stream.params.frame):
            self.report(DriverError("a message is for a stream of its queue and has whole frames", spec="5.14.6.8",
                                    detail=repr(chain)))
            self._answer(queue, chain, stream, SndStatus.BAD_MSG)
            return
        if stream.state not in {State.PREPARED, State.RUNNING, State.STOPPED}:
            self._answer(queue, chain, stream, SndStatus.BAD_MSG)
            return
        stream.waiting.append(chain)
        if stream.state is State.RUNNING:
            self._tick(stream)

    def _tick(self, stream: Stream) -> None:
        """Give the next message the time that its sound takes."""
        if stream.ticking or not stream.waiting or stream.params is None:
            return
        chain = stream.waiting[0]
        stream.ticking = True
        self.schedule(stream.params.seconds(self._size(stream, chain)), lambda: self._due(stream, chain))

    @staticmethod
    def _size(stream: Stream, chain: Chain) -> int:
        return (chain.readable_size - XFER.size if stream.info.direction == Direction.OUTPUT
                else chain.writable_size - STATUS.size)

    def _due(self, stream: Stream, chain: Chain) -> None:
        """Its time is over: have it served as if the driver had just brought it."""
        stream.ticking = False
        if stream.state is State.RUNNING and stream.waiting and stream.waiting[0] is chain:
            self._over.append(stream)
            self.pump(self.queues[TX_QUEUE + stream.info.direction])
        self._tick(stream)

    def _serve_over(self, queue: DeviceQueue) -> None:
        """Transfer the messages whose time is over."""
        while self._over:
            stream = self._over.pop()
            if stream.waiting and queue.index == TX_QUEUE + stream.info.direction:
                self._transfer(queue, stream, stream.waiting.popleft())

    def _transfer(self, queue: DeviceQueue, stream: Stream, chain: Chain) -> None:
        size = self._size(stream, chain)
        status = SndStatus.OK
        frames = b""
        try:
            if stream.info.direction == Direction.OUTPUT:
                stream.sound.take(chain.read(XFER.size, size))
            else:
                frames = stream.sound.give(size)
        except OSError as error:
            self.log(f"sound: {error}")
            status = SndStatus.IO_ERR
        self.log(f"queue {queue.index}: {size} bytes: {status.name}")
        self._answer(queue, chain, stream, status, frames)
        if not stream.waiting and stream.params is not None and stream.params.features >> PcmFeature.EVT_XRUNS & 1:
            self._event(SndCode.EVT_PCM_XRUN, self.streams.index(stream))

    def _answer(self, queue: DeviceQueue, chain: Chain, stream: Stream | None, status: SndStatus,
                frames: bytes = b"") -> None:
        """Complete a message: frames, if they are asked for, and the status at the end."""
        room = min(chain.writable_size, _MESSAGE + STATUS.size) - STATUS.size
        if room < 0:
            self.complete(queue, chain, 0)
            return
        latency = sum(self._size(stream, c) for c in stream.waiting) if stream is not None else 0
        data = frames.ljust(room, b"\0") + STATUS.pack(status, latency & 0xFFFFFFFF)
        self.complete(queue, chain, self.respond(queue, chain, data))

    # Control elements.

    def _element(self, request: bytes) -> int:
        if len(request) < ITEM_HDR.size:
            raise _BadMessageError("a request names a control element")
        number = int.from_bytes(request[4:8], "little")
        if number >= len(CONTROLS):
            raise _BadMessageError(f"control element {number} of {len(CONTROLS)}")
        return number

    def _ctl_info(self, request: bytes, room: int) -> bytes:
        wanted = QUERY.unpack_from(request)[3] if len(request) >= QUERY.size else 0
        size = CTL_INFO_LINUX_SIZE if wanted == CTL_INFO_LINUX_SIZE else CTL_INFO.size
        return self._query(request, room, [control.build(size) for control in CONTROLS], size)

    def _enum_items(self, request: bytes, room: int) -> bytes:
        if CONTROLS[self._element(request)].type != ControlType.ENUMERATED or room < ENUM_ITEM.size * len(ITEMS):
            raise _BadMessageError("items of an element that has none, or no room for them")
        return b"".join(ENUM_ITEM.pack(item) for item in ITEMS)

    def _ctl_read(self, request: bytes, room: int) -> bytes:
        value = self.values[self._element(request)]
        if room < VALUE_SIZE:
            raise _BadMessageError("no room for a value")
        return struct.pack(f"<{len(value)}I", *value).ljust(VALUE_SIZE, b"\0")

    def _ctl_write(self, request: bytes, _room: int) -> bytes:
        number = self._element(request)
        control = CONTROLS[number]
        data = request[ITEM_HDR.size:]
        if len(data) != VALUE_SIZE:
            raise _BadMessageError("a value has 512 bytes")
        value = struct.unpack_from(f"<{control.count}I", data)
        limit = control.max - (control.type == ControlType.ENUMERATED)
        if not all(control.min <= entry <= limit for entry in value):
            raise _BadMessageError(f"{control.name.decode()} can't be {value}")
        self.values[number] = value
        return b""

    def _tlv_read(self, request: bytes, room: int) -> bytes:
        """As much metadata as there is room for (5.14.6.10.3)."""
        number = self._element(request)
        if not CONTROLS[number].access >> Access.TLV_READ & 1:
            raise _NotSupportedError
        if room < TLV.size:
            raise _BadMessageError("no room for metadata")
        return self._metadata[number][:room]

    def _tlv_write(self, request: bytes, _room: int) -> bytes:
        """Keep metadata; not more than a value has, though a driver may send 64 KiB."""
        number = self._element(request)
        if not CONTROLS[number].access >> Access.TLV_WRITE & 1:
            raise _NotSupportedError
        data = request[ITEM_HDR.size:]
        if len(data) < TLV.size or TLV.unpack_from(data)[1] != len(data) - TLV.size or len(data) % 4:
            raise _BadMessageError("metadata has a type, and its own length")
        self._metadata[number] = data
        return b""


