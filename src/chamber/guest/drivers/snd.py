"""Sound driver (virtio 1.3, 5.14).

What is heard is the host's word. That the device has no more of anything than this guest keeps account of, that what it
says of a stream makes a stream, and that no message returns more than was lent for it, is checked.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Final

from chamber.guest.driver import TRANSPORT_FEATURES, DeviceTimeout, Refused, VirtioDriver
from chamber.guest.untrusted import DeviceViolation
from chamber.wire.snd import (
    CHANNELS,
    CHMAP_INFO,
    CONFIG,
    CONTROL_QUEUE,
    CTL_INFO,
    ENUM_ITEM,
    EVENT,
    EVENT_QUEUE,
    HDR,
    IEC958_SIZE,
    ITEM_HDR,
    JACK_INFO,
    JACK_REMAP,
    PCM_INFO,
    QUERY,
    RATES,
    RX_QUEUE,
    STATUS,
    TLV,
    TX_QUEUE,
    VALUE_SIZE,
    WIDTHS,
    XFER,
    Access,
    ControlInfo,
    ControlType,
    Direction,
    Params,
    PcmInfo,
    SndCode,
    SndFeature,
    SndStatus,
)
from chamber.wire.virtio import DeviceType, bit

if TYPE_CHECKING:
    import struct
    from collections.abc import Callable

    from chamber.guest.machine import GuestMachine
    from chamber.guest.virtqueue import Request, VirtQueue
    from chamber.platform.heap import Object
    from chamber.platform.transport import Transport

__all__ = ("SndDriver",)

_SPEC: Final = "5.14.6"
_MOST: Final = 32
"""Jacks, streams, channel maps and control elements of each kind that this guest keeps account of."""
_ITEMS: Final = 32
_METADATA: Final = 1 << 12
_VALUES: Final[dict[int, tuple[int, int]]] = {
    ControlType.BOOLEAN: (4, 128), ControlType.INTEGER: (4, 128), ControlType.INTEGER64: (8, 64),
    ControlType.ENUMERATED: (4, 128), ControlType.BYTES: (1, 512), ControlType.IEC958: (IEC958_SIZE, 1),
}
"""Bytes of a part of a value, and parts that a value has at most, by type (5.14.6.10.1)."""
_NUMBERS: Final = (4, 128)
_RANGED: Final = (ControlType.BOOLEAN, ControlType.INTEGER, ControlType.INTEGER64, ControlType.ENUMERATED)
_EVENT_BUFFERS: Final = 8
_PERIODS: Final = 4
_VIOLATIONS: Final = 100
_PERIOD_SECONDS: Final = 2.0
_STATUSES: Final = tuple(SndStatus)
_KEPT: Final = 256


class SndDriver(VirtioDriver):
    """Plays, records, and turns knobs.

    Attributes:
        jacks: whether something is plugged in, by number.
        streams: what each stream can do.
        controls: the control elements.
        items: what enumerated control elements can be, by number.
        notified: events that came: code and data.

    """

    type = DeviceType.SND
    known = allowed = TRANSPORT_FEATURES | bit(SndFeature.CTLS)
    config_layout = CONFIG

    def __init__(self, machine: GuestMachine, transport: Transport) -> None:
        super().__init__(machine, transport)
        self.jacks: list[bool] = []
        self.streams: list[PcmInfo] = []
        self.controls: list[ControlInfo] = []
        self.items: dict[int, tuple[bytes, ...]] = {}
        self.notified: list[tuple[int, int]] = []
        self._objects: list[Object] = []
        self._lent: list[Request] = []
        self._counts: dict[str, int] = {}

    def queue_indexes(self) -> list[int]:
        """Return all four."""
        return [CONTROL_QUEUE, EVENT_QUEUE, TX_QUEUE, RX_QUEUE]

    def initialise(self) -> None:
        """Make room for what the device has."""
        names = ["jacks", "streams", "chmaps", *(["controls"] if self.has(SndFeature.CTLS) else [])]
        for name in names:
            count = self.read_config(name).at_most(_MOST, "a sound device has a bounded number of things", "5.14.4")
            self._counts[name] = count
            self._objects.append(self.machine.heap.alloc(8 * count, f"state of {name}", zero=True))
        self.notified = []

    def started(self) -> None:
        """Give the device buffers for events, and ask what it has."""
        queue = self.queues[EVENT_QUEUE]
        for _ in range(_EVENT_BUFFERS):
            self._lent.append(self.lend(queue, [], [self.machine.heap.alloc(EVENT.size, "event")]))
        self.kick(queue)
        self.jacks = [bool(JACK_INFO.unpack(entry)[4]) for entry in self._all("jacks", SndCode.JACK_INFO, JACK_INFO)]
        self.streams = [self._pcm(entry) for entry in self._all("streams", SndCode.PCM_INFO, PCM_INFO)]
        for entry in self._all("chmaps", SndCode.CHMAP_INFO, CHMAP_INFO):
            self._chmap(entry)
        if self.has(SndFeature.CTLS):
            self.controls = [self._control(entry) for entry in self._all("controls", SndCode.CTL_INFO, CTL_INFO)]
            self.items = {number: self._enum_items(number, control) for number, control in enumerate(self.controls)
                          if control.type == ControlType.ENUMERATED}

    def free_buffers(self) -> None:
        """Free what was lent, and what was kept."""
        for request in self._lent:
            for memory in (request.record, request.writable[0].memory):
                if memory.live:
                    self.machine.heap.free(memory)
        for memory in self._objects:
            if memory.live:
                self.machine.heap.free(memory)
        self._lent, self._objects = [], []

    # Requests.

    def _ask(self, request: bytes, room: int = 0, *, least: int | None = None) -> bytes:
        """Send a request; return what follows the header of the reply: all that it has room for, or `least` and more.

        Raises:
            Refused: the device refuses.
            DeviceViolation: the reply is none to this request.

        """
        heap = self.machine.heap
        asked = heap.alloc(len(request), "sound request")
        asked.write(request)
        reply = heap.alloc(HDR.size + room, "sound reply")
        try:
            written = self.transact(self.queue(CONTROL_QUEUE), [asked], [reply])
            self.checks.number(written).between(HDR.size, reply.size, "a reply has a header", _SPEC)
            status = self.checks.number(reply.get(0, 4)).one_of(_STATUSES, "a status is one of four", _SPEC)
            if status != SndStatus.OK:
                raise Refused(f"request {int.from_bytes(request[:4], 'little'):#x}: status {status:#x}")
            size = self.checks.number(written).between(
                HDR.size + (room if least is None else least), reply.size, "a reply has its request's length", _SPEC)
            return reply.read(HDR.size, room if least is None else (size - HDR.size) & 0xFFFFFFFF)
        finally:
            self.release(asked, reply)

    def _all(self, name: str, code: SndCode, layout: struct.Struct) -> list[bytes]:
        """Ask for every entry of a kind, as many at once as a page holds."""
        total = self._counts[name]
        at_once = max(1, 2048 // layout.size)
        found: list[bytes] = []
        while len(found) < total:
            self.machine.scheduler.step()
            count = min(total - len(found), at_once)
            data = self._ask(QUERY.pack(code, len(found), count, layout.size), count * layout.size)
            found += [data[at:at + layout.size] for at in range(0, len(data), layout.size)]
        return found

    def _pcm(self, entry: bytes) -> PcmInfo:
        info = PcmInfo.parse(entry)
        self.checks.number(info.direction).one_of((0, 1), "a stream has a direction", "5.14.6.6.2")
        self.checks.number(info.channels_min).between(1, info.channels_max, "a stream has channels", "5.14.6.6.2")
        self.checks.require(bool(info.formats) and bool(info.rates & (1 << len(RATES)) - 1),
                            "a stream has a format and a rate", "5.14.6.6.2")
        _ = 0xFFFF // info.channels_max
        return info

    def _chmap(self, entry: bytes) -> None:
        """Keep the positions of a map's channels."""
        _, _, channels, positions = CHMAP_INFO.unpack(entry)
        count = self.checks.number(channels).at_most(CHANNELS, "a channel map has 18 positions", "5.14.6.9.1")
        room = self.machine.heap.alloc(CHANNELS, "channel map", zero=True)
        self._objects.append(room)
        for channel in range(count):
            room.put(channel, 1, positions[channel] if channel < len(positions) else 0)

    def _control(self, entry: bytes) -> ControlInfo:
        info = ControlInfo.parse(entry)
        self.checks.number(info.type).one_of(tuple(ControlType), "a control element has a type", "5.14.6.10.1")
        _, most = _VALUES.get(info.type, _NUMBERS)
        self.checks.number(info.count).between(1, most, "a value has room for its parts", "5.14.6.10.1")
        if info.type == ControlType.ENUMERATED:
            self.checks.number(info.max).between(1, _ITEMS, "an element has a bounded number of items", "5.14.6.10.1")
        else:
            self.checks.require(info.min <= info.max, "a control element has a range", "5.14.6.10.1")
        _ = 1 // (info.max - info.min + 1)
        return replace(info, name=self._text(info.name))

    def _text(self, raw: bytes) -> bytes:
        """Take what is shown to people, and to whoever logs it."""
        if not self.machine.profile.checked:
            return raw
        return bytes(byte if 32 <= byte < 127 else 63 for byte in raw)

    def _enum_items(self, number: int, control: ControlInfo) -> tuple[bytes, ...]:
        data = self._ask(ITEM_HDR.pack(SndCode.CTL_ENUM_ITEMS, number), ENUM_ITEM.size * control.max)
        return tuple(self._text(data[at:at + ENUM_ITEM.size].split(b"\0")[0])
                     for at in range(0, len(data), ENUM_ITEM.size))

    # Jacks and control elements.

    def remap(self, jack: int, association: int, sequence: int) -> None:
        """Put a jack into another group, or elsewhere in its group.

        Raises:
            Refused: the device refuses, or there is no such jack.

        """
        if jack >= len(self.jacks):
            raise Refused("there is no such jack")
        self._ask(JACK_REMAP.pack(SndCode.JACK_REMAP, jack, association, sequence))

    def _element(self, number: int, access: Access) -> tuple[ControlInfo, int]:
        """Return an element with which that may be done, and the bytes of a part of its value."""
        if number >= len(self.controls):
            raise Refused("there is no such control element")
        control = self.controls[number]
        if not control.access >> access & 1:
            raise Refused("the control element is not for that")
        return control, _VALUES.get(control.type, _NUMBERS)[0]

    def read_control(self, number: int) -> tuple[int, ...]:
        """Value of a control element: its parts, each as a number.

        Raises:
            Refused: the device refuses, or there is nothing to read.
            DeviceViolation: a value lies outside of its range.

        """
        control, width = self._element(number, Access.READ)
        data = self._ask(ITEM_HDR.pack(SndCode.CTL_READ, number), VALUE_SIZE)
        held = self.machine.heap.alloc(VALUE_SIZE, "value")
        try:
            held.write(data)
            values = tuple(held.get(width * at, width) for at in range(control.count))
        finally:
            self.machine.heap.free(held)
        if control.type in _RANGED:
            limit = control.max - (control.type == ControlType.ENUMERATED)
            for value in values:
                self.checks.number(value).between(control.min, limit, "a value lies in its range", "5.14.6.10.2")
        return values

    def write_control(self, number: int, values: tuple[int, ...]) -> None:
        """Set a control element.

        Raises:
            Refused: the device refuses, or there is nothing to set.

        """
        _, width = self._element(number, Access.WRITE)
        raw = b"".join(value.to_bytes(width, "little") for value in values)
        self._ask(ITEM_HDR.pack(SndCode.CTL_WRITE, number) + raw.ljust(VALUE_SIZE, b"\0"))

    def read_metadata(self, number: int) -> tuple[int, bytes]:
        """Type and content of what a control element says of itself, such as its range in decibels.

        Raises:
            Refused: the device refuses, or it has none.
            DeviceViolation: its length is not what came.

        """
        self._element(number, Access.TLV_READ)
        data = self._ask(ITEM_HDR.pack(SndCode.CTL_TLV_READ, number), _METADATA, least=TLV.size)
        held = self.machine.heap.alloc(len(data), "metadata")
        try:
            held.write(data)
            length = self.checks.number(held.get(4, 4)).at_most(
                len(data) - TLV.size, "metadata is as long as it says", "5.14.6.10.3")
            self.checks.require(not length % 4, "metadata has whole words", "5.14.6.10.3")
            return held.get(0, 4), held.read(TLV.size, length)
        finally:
            self.machine.heap.free(held)

    def write_metadata(self, number: int, kind: int, content: bytes) -> None:
        """Have a control element say something else of itself.

        Raises:
            Refused: the device refuses, or it keeps none.

        """
        self._element(number, Access.TLV_WRITE)
        self._ask(ITEM_HDR.pack(SndCode.CTL_TLV_WRITE, number) + TLV.pack(kind, len(content)) + content)

    # Streams.

    def choose(self, stream: int, *, channels: int, format: int, rate: int, period: int) -> Params:  # noqa: A002
        """Make parameters that the stream says that it takes.

        Raises:
            Refused: it takes no such.

        """
        if stream >= len(self.streams):
            raise Refused("there is no such stream")
        info = self.streams[stream]
        if not (info.formats >> format & 1 and info.rates >> RATES.index(rate) & 1
                and info.channels_min <= channels <= info.channels_max and format in WIDTHS):
            raise Refused("the stream takes no such sound")
        return Params(period * _PERIODS, period, channels, format, RATES.index(rate))

    def play(self, stream: int, params: Params, frames: bytes) -> None:
        """Play frames to their end.

        Raises:
            Refused: the device refuses.
            DeviceTimeout: it takes no more.
            DeviceViolation: it broke a rule.

        """
        pieces = [frames[at:at + params.period_bytes] for at in range(0, len(frames), params.period_bytes)]
        self._run(stream, params, TX_QUEUE, [len(piece) for piece in pieces],
                  lambda number: pieces[number], lambda _number, _data: None)

    def record(self, stream: int, params: Params, size: int) -> bytes:
        """Record so many bytes, whole periods of them."""
        pieces: list[bytes] = []
        count = -(-size // params.period_bytes)
        self._run(stream, params, RX_QUEUE, [params.period_bytes] * count, lambda _number: b"",
                  lambda _number, data: pieces.append(data))
        return b"".join(pieces)[:size]

    def _run(self, stream: int, params: Params, index: int, sizes: list[int], fetch: Callable[[int], bytes],
             store: Callable[[int, bytes], None]) -> None:
        direction = Direction.OUTPUT if index == TX_QUEUE else Direction.INPUT
        if self.streams[stream].direction != direction:
            raise Refused("the stream goes the other way")
        self._ask(params.build(stream))
        self._ask(ITEM_HDR.pack(SndCode.PCM_PREPARE, stream))
        lent: list[tuple[int, Request]] = []
        started = False
        following = 0
        try:
            while following < len(sizes) or lent:
                self.machine.scheduler.step()
                while following < len(sizes) and len(lent) < _PERIODS:
                    lent.append((following, self._message(index, stream, sizes[following], fetch(following))))
                    following += 1
                self.kick(self.queue(index))
                if not started:
                    self._ask(ITEM_HDR.pack(SndCode.PCM_START, stream))
                    started = True
                number, request = lent[0]
                queue = self.queue(index)
                self.machine.wait(lambda: request.done or queue.broken is not None, _PERIOD_SECONDS)  # noqa: B023
                if queue.broken is not None:
                    raise queue.broken
                if not request.done:
                    raise DeviceTimeout(f"queue {index} does not answer")
                lent.pop(0)
                store(number, self._finished(index, request, sizes[number]))
            self._ask(ITEM_HDR.pack(SndCode.PCM_STOP, stream))
            started = False
            self._ask(ITEM_HDR.pack(SndCode.PCM_RELEASE, stream))
        finally:
            for _, request in lent:
                if request.done:
                    self._free_message(request)
                else:
                    self._unanswered.append(request)

    def _message(self, index: int, stream: int, size: int, frames: bytes) -> Request:
        """Lend one period: the stream's number, the frames, room for the status."""
        heap = self.machine.heap
        header = heap.alloc(XFER.size, "message header")
        header.write(XFER.pack(stream))
        data = heap.alloc(size, "frames")
        if index == TX_QUEUE:
            data.write(frames)
        status = heap.alloc(STATUS.size, "message status")
        readable, writable = ([header, data], [status]) if index == TX_QUEUE else ([header], [data, status])
        return self.lend(self.queue(index), readable, writable)

    def _finished(self, index: int, request: Request, size: int) -> bytes:
        """Take a message back; return its frames."""
        status = request.writable[-1].memory
        try:
            room = STATUS.size + (size if index == RX_QUEUE else 0)
            written = self.checks.number(request.written).equals(room, "a message is answered whole", "5.14.6.8")
            code = self.checks.number(status.get(0, 4)).one_of(_STATUSES, "a status is one of four", _SPEC)
            self.checks.number(status.get(4, 4)).at_most(1 << 24, "what is delayed was lent before", "5.14.6.8")
            if code != SndStatus.OK:
                raise Refused(f"message: status {code:#x}")
            if index == TX_QUEUE:
                return b""
            # Who trusts the length takes as much of the buffer as it says.
            return request.writable[0].memory.read(0, (written - STATUS.size) & 0xFFFFFFFF)
        finally:
            self._free_message(request)

    def _free_message(self, request: Request) -> None:
        for memory in (request.record, *(b.memory for b in (*request.readable, *request.writable))):
            if memory.live:
                self.machine.heap.free(memory)

    # Events.

    def used(self, queue: VirtQueue) -> None:
        """Take events, and lend their buffers again; messages and replies are waited for elsewhere."""
        if queue.index != EVENT_QUEUE:
            super().used(queue)
            return
        try:
            while (request := queue.get()) is not None:
                if request in self._lent:
                    self._lent.remove(request)
                memory = request.writable[0].memory
                self.machine.heap.free(request.record)
                written = request.written
                try:
                    self.checks.number(written).equals(EVENT.size, "an event has 8 bytes", _SPEC)
                    self._event(*EVENT.unpack(memory.read(0, EVENT.size)))
                except DeviceViolation as violation:
                    # What comes behind it is looked at now: there may be no further interrupt.
                    if len(self.violations) < _VIOLATIONS:
                        self.violations.append(violation)
                self._lent.append(self.lend(queue, [], [memory]))
        finally:
            self.kick(queue)

    def _event(self, code: int, data: int) -> None:
        checks = self.checks.number(data)
        if code in {SndCode.EVT_JACK_CONNECTED, SndCode.EVT_JACK_DISCONNECTED}:
            jack = checks.index(len(self.jacks), "an event is of a jack that there is", "5.14.6.5")
            self._objects[0].put(8 * jack, 4, 1)
            if jack < len(self.jacks):
                self.jacks[jack] = code == SndCode.EVT_JACK_CONNECTED
        elif code in {SndCode.EVT_PCM_PERIOD_ELAPSED, SndCode.EVT_PCM_XRUN}:
            stream = checks.index(len(self.streams), "an event is of a stream that there is", "5.14.6.7")
            self._objects[1].put(8 * stream, 4, 1)
        elif code == SndCode.EVT_CTL_NOTIFY and self.has(SndFeature.CTLS):
            control = self.checks.number(data & 0xFFFF).index(
                len(self.controls), "an event is of a control element that there is", "5.14.6.10.4")
            self._objects[3].put(8 * control, 4, 1)
        else:
            self.checks.require(False, "an event is one of those that there are", _SPEC, f"{code:#x}")
            return
        if len(self.notified) < _KEPT:  # a host may send them for ever
            self.notified.append((code, data))


