"""Input driver (virtio 1.3, 5.8).

What is typed is the host's word, as on any machine whose keyboard somebody else holds. That an event is one of those
that the device declared, within the ranges that it declared, and that what it declared fits into what the guest keeps
of it, is checked.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from chamber.guest.driver import TRANSPORT_FEATURES, Refused, VirtioDriver
from chamber.guest.untrusted import DeviceViolation
from chamber.wire.input import (
    CODES,
    CONFIG,
    DEVIDS,
    EVENT,
    EVENT_QUEUE,
    SELECTED_SIZE,
    STATUS_QUEUE,
    Abs,
    AbsInfo,
    EventType,
    InputEvent,
    Select,
    codes_of,
)
from chamber.wire.virtio import DeviceType

if TYPE_CHECKING:
    from chamber.guest.machine import GuestMachine
    from chamber.guest.virtqueue import Request, VirtQueue
    from chamber.platform.heap import Object
    from chamber.platform.transport import Transport

__all__ = ("InputDriver",)

_SPEC: Final = "5.8.6"
_CONFIG_SPEC: Final = "5.8.5"
_NAME_SIZE: Final = 64
_BUFFERS: Final = 32
_SEQUENCE: Final = 32
"""Events that belong together, at most."""
_SLOTS: Final = 64
"""Contacts that this guest follows at once."""
_TYPES: Final = (EventType.KEY, EventType.REL, EventType.ABS, EventType.MSC, EventType.SW)
_TAKEN: Final = (EventType.LED, EventType.SND, EventType.REP)
_KEPT: Final = 4096
_VIOLATIONS: Final = 100
_NO_EVENT: Final = b"\xff" * EVENT.size
_PRESSES: Final = (0, 1, 2)


class InputDriver(VirtioDriver):
    """Reads what is typed, moved and touched.

    Attributes:
        name: what the device calls itself.
        sequences: events that came, in sequences that belong together; the reader takes them out.
        codes: codes of each type that the device declared.
        axes: range of each absolute axis.

    """

    type = DeviceType.INPUT
    known = allowed = TRANSPORT_FEATURES
    config_layout = CONFIG

    def __init__(self, machine: GuestMachine, transport: Transport) -> None:
        super().__init__(machine, transport)
        self.name = ""
        self.sequences: list[tuple[InputEvent, ...]] = []
        self.codes: dict[int, frozenset[int]] = {}
        self.axes: dict[int, AbsInfo] = {}
        self._objects: list[Object] = []
        self._bits: dict[int, Object] = {}
        self._lent: list[Request] = []
        self._slot = 0
        self._count = 0
        self._skipping = False

    def queue_indexes(self) -> list[int]:
        """Return both queues."""
        return [EVENT_QUEUE, STATUS_QUEUE]

    # What the device is.

    def initialise(self) -> None:
        """Read what the device is, and make room for its state."""
        heap = self.machine.heap
        name = self._kept(heap.alloc(_NAME_SIZE, "input name", zero=True))
        raw = self._select(Select.ID_NAME)
        # Shown to people and to whoever logs it.
        if self.machine.profile.checked:
            raw = bytes(byte if 32 <= byte < 127 else 63 for byte in raw[:_NAME_SIZE])
        name.write(raw)
        self.name = raw.decode(errors="replace")
        self._select(Select.ID_SERIAL)
        ids = self._select(Select.ID_DEVIDS)
        self.checks.require(len(ids) in {0, DEVIDS.size}, "device ids have 8 bytes", _CONFIG_SPEC)
        self._select(Select.PROP_BITS)
        self.codes = {EventType.SYN: frozenset({0})}
        for kind in (*_TYPES, *_TAKEN):
            self._declare(kind)
        for code in sorted(self.codes.get(EventType.ABS, ())):
            self._axis(code)
        contacts = self.axes[Abs.MT_SLOT].max + 1 if Abs.MT_SLOT in self.axes else 1
        self._slots = self._kept(heap.alloc(8 * contacts, "contacts", zero=True))
        self._sequence = self._kept(heap.alloc(EVENT.size * _SEQUENCE, "sequence", zero=True))
        self._slot = self._count = 0
        self.sequences = []

    def _kept(self, memory: Object) -> Object:
        self._objects.append(memory)
        return memory

    def _select(self, select: Select, subsel: int = 0) -> bytes:
        """Read what a selection shows."""
        self.transport.write_config(CONFIG["select"].offset, bytes((select, subsel)))
        size = self.read_config("size").at_most(SELECTED_SIZE, "a selection has 128 bytes at most", "5.8.4")
        shown = self.read_config_bytes("u").opaque("what it says is checked by whoever uses it")
        room = self.machine.heap.alloc(SELECTED_SIZE, "selection")
        try:
            room.write(shown)
            return room.read(0, size)
        finally:
            self.machine.heap.free(room)

    def _declare(self, kind: EventType) -> None:
        """Keep which codes of a type there are, as bits."""
        shown = self._select(Select.EV_BITS, kind)
        if not shown:
            return
        size = (CODES[kind] + 7) // 8
        if self.machine.profile.checked:
            shown = shown[:size]  # codes that nobody knows can't come later either
        bits = self._bits[kind] = self._kept(self.machine.heap.alloc(size, f"bits of {kind.name}", zero=True))
        bits.write(shown)
        self.codes[kind] = codes_of(shown)

    def _axis(self, code: int) -> None:
        shown = self._select(Select.ABS_INFO, code)
        self.checks.require(len(shown) == 20, "the range of an axis has 20 bytes", _CONFIG_SPEC, str(len(shown)))
        info = AbsInfo.parse(shown.ljust(20, b"\0")[:20])
        self.checks.require(info.min < info.max, "an axis has a range", _CONFIG_SPEC, f"{info.min} to {info.max}")
        if code == Abs.MT_SLOT:
            self.checks.require(info.min >= 0 and info.max < _SLOTS, "contacts are few", _CONFIG_SPEC, str(info.max))
        _ = 0xFFFF // (info.max - info.min)  # what a reader scales positions by
        self.axes[code] = info

    def started(self) -> None:
        """Give the device buffers for events."""
        queue = self.queues[EVENT_QUEUE]
        for _ in range(min(_BUFFERS, queue.size)):
            self._lend(queue, self.machine.heap.alloc(EVENT.size, "event"))
        self.kick(queue)

    def _lend(self, queue: VirtQueue, memory: Object) -> None:
        """Lend a buffer that holds what no event is, so that one that was not written is seen."""
        memory.write(_NO_EVENT)
        self._lent.append(self.lend(queue, [], [], status=memory))

    def free_buffers(self) -> None:
        """Free what was lent, and what was kept."""
        heap = self.machine.heap
        for request in self._lent:
            for memory in (request.record, request.writable[0].memory):
                if memory.live:
                    heap.free(memory)
        for memory in self._objects:
            if memory.live:
                heap.free(memory)
        self._lent, self._objects, self._bits = [], [], {}

    # Events.

    def used(self, queue: VirtQueue) -> None:
        """Take events and lend their buffers again."""
        if queue.index != EVENT_QUEUE:
            super().used(queue)
            return
        try:
            while (request := queue.get()) is not None:
                if request in self._lent:
                    self._lent.remove(request)
                memory = request.writable[0].memory
                self.machine.heap.free(request.record)
                data = memory.read(0, EVENT.size)
                self._lend(queue, memory)
                try:
                    self._take(request.written, InputEvent(*EVENT.unpack(data)))
                except DeviceViolation as violation:
                    # What comes behind it is looked at now: there may be no further interrupt.
                    if len(self.violations) < _VIOLATIONS:
                        self.violations.append(violation)
        finally:
            self.kick(queue)

    def _take(self, written: int, event: InputEvent) -> None:
        """Take an event; of a sequence that one is missing from nothing is passed on."""
        if self._skipping:
            self._skipping = not event.ends
            return
        try:
            self.checks.number(written).equals(EVENT.size, "an event has 8 bytes", _SPEC)
            self._event(event)
        except DeviceViolation:
            self._skipping = not event.ends
            self._count = 0
            raise

    def _event(self, event: InputEvent) -> None:
        self.checks.require(event.code in self.codes.get(event.type, ()) and event.type not in _TAKEN,
                            "an event is one of those declared", _SPEC, f"type {event.type}, code {event.code}")
        if event.type == EventType.KEY:
            self.checks.require(event.value in _PRESSES, "a key is released, pressed or repeated", _SPEC)
            self._bits[EventType.KEY].read(event.code // 8, 1)  # its state is kept there
        elif event.type == EventType.ABS:
            info = self.axes.get(event.code)
            if info is None:
                self.checks.require(False, "an axis has a range", _SPEC)
                return
            lowest = -1 if event.code == Abs.MT_TRACKING_ID else info.min  # -1 lifts a finger
            self.checks.require(lowest <= event.value <= info.max, "a position lies on its axis", _SPEC,
                                str(event.value))
            if event.code == Abs.MT_SLOT:
                self._slot = event.value
            elif event.code >= Abs.MT_SLOT:
                self._slots.put(8 * self._slot, 4, event.value & 0xFFFFFFFF)
        self.checks.require(self._count < _SEQUENCE, "a sequence ends", _SPEC)
        self._sequence.write(event.build(), EVENT.size * self._count)
        self._count += 1
        if event.ends:
            data = self._sequence.read(0, EVENT.size * self._count)
            self._count = 0
            # An end alone is no news. A host may type for ever, and nobody read it.
            if len(data) > EVENT.size and len(self.sequences) < _KEPT:
                self.sequences.append(tuple(InputEvent(*entry) for entry in EVENT.iter_unpack(data)))

    def take(self) -> list[tuple[InputEvent, ...]]:
        """Return what came since the last time."""
        came, self.sequences = self.sequences, []
        return came

    def lamp(self, code: int, *, lit: bool) -> None:
        """Switch a lamp of the device.

        Raises:
            Refused: it has none.
            DeviceTimeout: no answer.

        """
        if code not in self.codes.get(EventType.LED, ()):
            raise Refused("the device has no such lamp")
        buffer = self.machine.heap.alloc(EVENT.size, "status")
        buffer.write(InputEvent(EventType.LED, code, int(lit)).build())
        try:
            self.transact(self.queue(STATUS_QUEUE), [buffer], [])
        finally:
            self.release(buffer)
