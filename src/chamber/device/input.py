"""Input device (virtio 1.3, 5.8): keyboards, pointers and touch screens whose events the host writes."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, ClassVar, Final

from chamber.device.base import Device
from chamber.device.errors import DriverError
from chamber.device.input_actions import ACTIONS
from chamber.wire.errors import WireError
from chamber.wire.input import (
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
    bitmap,
)
from chamber.wire.virtio import DeviceType

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from chamber.device.chain import Chain
    from chamber.device.hooks import Hooks
    from chamber.device.queue import DeviceQueue

__all__ = ("EVERYTHING", "KEYBOARD", "MULTITOUCH", "POINTER", "Abilities", "InputDevice")

_E: Final = EventType
_STATUS_TYPES: Final = (_E.LED, _E.SND, _E.REP)
_STATES: Final = 1024
_BACKLOG: Final = 256
"""Events that wait for buffers."""
_SIZE_AT: Final = CONFIG["size"].offset
_U_AT: Final = CONFIG["u"].offset


@dataclass(frozen=True)
class Abilities:
    """What an input device says that it is.

    Attributes:
        name: for people.
        codes: codes of each type of event that it sends or takes.
        axes: the range of each absolute axis.
        properties: numbers of input properties (INPUT_PROP_*).

    """

    name: str
    codes: Mapping[EventType, frozenset[int]]
    axes: Mapping[int, AbsInfo] = field(default_factory=dict)
    properties: frozenset[int] = frozenset()


_KEYS: Final = {_E.KEY: frozenset(range(1, 89)), _E.LED: frozenset(range(3)), _E.REP: frozenset(range(2))}
_BUTTONS: Final = frozenset({0x110, 0x111, 0x112})
_TOUCH: Final = frozenset({0x14A})
_AXES: Final[Mapping[int, AbsInfo]] = {
    Abs.X: AbsInfo(0, 32767), Abs.Y: AbsInfo(0, 32767), Abs.MT_SLOT: AbsInfo(0, 9),
    Abs.MT_POSITION_X: AbsInfo(0, 32767), Abs.MT_POSITION_Y: AbsInfo(0, 32767), Abs.MT_TRACKING_ID: AbsInfo(0, 65535)}

KEYBOARD: Final = Abilities("Chamber keyboard", _KEYS)
POINTER: Final = Abilities("Chamber pointer", {_E.KEY: _BUTTONS, _E.REL: frozenset({0, 1, 8})})
MULTITOUCH: Final = Abilities("Chamber touch screen", {_E.KEY: _TOUCH, _E.ABS: frozenset(_AXES)}, _AXES, frozenset({1}))
EVERYTHING: Final = Abilities(
    "Chamber input", {**_KEYS, _E.KEY: _KEYS[_E.KEY] | _BUTTONS | _TOUCH, _E.REL: frozenset({0, 1, 8}),
                      _E.ABS: frozenset(_AXES)}, _AXES, frozenset({1}))
"""All of it in one device, for assessments."""


class InputDevice(Device):
    """Sends events, and takes those for its lamps.

    Args:
        abilities: what it is.
        recording: seconds and event, played once the driver is ready.
        config: fields of configuration space to set otherwise, by name.
        features: feature bits to offer; the device type has none.
        queue_size: descriptors per queue.
        hooks: interference, if any. An event is one response.

    Attributes:
        states: value by type and code that the driver set last: lamps, bells, repetition.
        dropped: sequences that the driver was too slow for.

    """

    type: ClassVar[DeviceType] = DeviceType.INPUT

    def __init__(self, abilities: Abilities = EVERYTHING, *, recording: Sequence[tuple[float, InputEvent]] = (),
                 config: Mapping[str, int | bytes] | None = None, features: int | None = None, queue_size: int = 64,
                 hooks: Hooks | None = None) -> None:
        self.abilities = abilities
        self._recording = tuple(recording)
        self.states: dict[tuple[int, int], int] = {}
        self.dropped = 0
        self._waiting: deque[InputEvent] = deque()
        super().__init__(features=features or 0, config=CONFIG.pack(**(config or {})), queues=2, queue_size=queue_size,
                         hooks=hooks)

    def queue_role(self, index: int) -> str:
        """``events`` or ``status`` (5.8.2)."""
        return "events" if index == EVENT_QUEUE else "status"

    # Configuration.

    def config_written(self, offset: int, data: bytes) -> None:
        """Show what is selected (5.8.5.2)."""
        for at, value in enumerate(data, offset):
            if at < _SIZE_AT:
                self.config[at] = value
        shown = self._selected(self.config[0], self.config[1])
        self.config[_SIZE_AT] = len(shown)
        self.config[_U_AT:_U_AT + SELECTED_SIZE] = shown.ljust(SELECTED_SIZE, b"\0")

    def _selected(self, select: int, subsel: int) -> bytes:
        own = self.abilities
        match select:
            case Select.ID_NAME if not subsel:
                return own.name.encode()[:SELECTED_SIZE]
            case Select.ID_SERIAL if not subsel:
                return b"chamber"
            case Select.ID_DEVIDS if not subsel:
                return DEVIDS.pack(6, 0x1AF4, 0x0052, 1)  # BUS_VIRTUAL, and the numbers of virtio-input-pci
            case Select.PROP_BITS if not subsel:
                return bitmap(own.properties)
            case Select.EV_BITS if subsel in own.codes:
                return bitmap(own.codes[EventType(subsel)])
            case Select.ABS_INFO if subsel in own.axes:
                return own.axes[subsel].build()
            case _:
                return b""

    # Events.

    def host_action(self, action: str) -> None:
        """Use the device: ``type``, ``move`` or ``touch``."""
        for sequence in ACTIONS.get(action, ()):
            self.send(sequence)

    def send(self, sequence: Iterable[InputEvent]) -> bool:
        """Send a sequence as the driver has buffers for it; return False where too many events wait already.

        A sequence is sent whole or not at all (5.8.6.2), also where a queue is shorter than it.
        """
        events = tuple(sequence)
        queue = self.queues[EVENT_QUEUE]
        if not queue.started or len(self._waiting) + len(events) > _BACKLOG:
            self.dropped += 1
            self.log(f"a sequence of {len(events)} events is dropped: {len(self._waiting)} wait")
            return False
        self._waiting.extend(events)
        self.pump(queue)
        return True

    def driver_ready(self) -> None:
        """Play the recording."""
        self.play(self._recording)

    def play(self, recording: Iterable[tuple[float, InputEvent]]) -> None:
        """Send a recording, each sequence when its last event is due."""
        sequence: list[InputEvent] = []
        for seconds, event in recording:
            sequence.append(event)
            if event.ends:
                self.schedule(seconds, partial(self._play, tuple(sequence)))
                sequence = []

    def _play(self, sequence: tuple[InputEvent, ...]) -> None:
        self.send(sequence)

    def available(self, queue: DeviceQueue) -> bool:
        """Serve the status queue; the other one waits for events."""
        if queue.index == STATUS_QUEUE:
            return super().available(queue)
        while self._waiting:
            chain = self.take_buffer(queue, EVENT.size)
            if chain is None:
                break
            event = self._waiting.popleft()
            self.complete(queue, chain, self.respond(queue, chain, event.build()))
            self.log(f"event type {event.type}, code {event.code}, value {event.value}")
        return False

    def queue_stopped(self, queue: DeviceQueue) -> None:
        """Forget what waits."""
        if queue.index == EVENT_QUEUE:
            self._waiting.clear()

    def handle(self, queue: DeviceQueue, chain: Chain) -> None:
        """Take an event for a lamp."""
        try:
            event = InputEvent.parse(chain.read(0, EVENT.size))
        except WireError as error:
            self.report(DriverError(error.rule, spec="5.8.6", detail=error.detail))
        else:
            if event.type in _STATUS_TYPES and len(self.states) < _STATES:
                self.states[event.type, event.code] = event.value
            self.log(f"status type {event.type}, code {event.code}, value {event.value}")
        self.complete(queue, chain, 0)
