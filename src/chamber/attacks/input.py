"""What a lying keyboard does: sizes, ranges and codes that are none, sequences without an end, keys nobody pressed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from chamber.attacks.answer import Answer, Claim, Unasked
from chamber.attacks.attack import Aim, Attack, AttackSpec, Surface
from chamber.wire.input import CONFIG, SELECTED_SIZE, Abs, AbsInfo, EventType, InputEvent, Select
from chamber.wire.virtio import DeviceType

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

__all__ = ("input_attacks",)

_E: Final = EventType
_SYN: Final = InputEvent(_E.SYN, 0, 0)
_SIZE_AT: Final = CONFIG["size"].offset
_U_AT: Final = CONFIG["u"].offset
_MAX: Final = (1 << 31) - 1
_MIN: Final = -(1 << 31)
_PIECE: Final = 30
_CODES_APART: Final = 64


class Shown(Attack):
    """Shows something else for a selection.

    Args:
        select: which one.
        subsel: and which of its kind; None for each.
        shown: what to show; None leaves the bytes.
        size: how much it says that it shows; by default as much as it does.
        alternate: show it at every second read, the truth at the others.

    """

    def __init__(self, select: Select, subsel: int | None, shown: bytes | None, size: int | None = None, *,
                 alternate: bool = False) -> None:
        super().__init__()
        self._wanted = (select, subsel)
        self._shown = shown
        self._size = size
        self._alternate = alternate
        self._reads = 0

    def config(self, config: bytearray, offset: int, size: int) -> bytearray:
        """Lie."""
        select, subsel = self._wanted
        if config[0] != select or subsel not in {None, config[1]} or offset + size <= _SIZE_AT:
            return config
        self._reads += 1
        if self._alternate and self._reads % 2:
            return config
        if self._shown is not None:
            config[_U_AT:_U_AT + SELECTED_SIZE] = self._shown[:SELECTED_SIZE].ljust(SELECTED_SIZE, b"\0")
            config[_SIZE_AT] = len(self._shown)
        if self._size is not None:
            config[_SIZE_AT] = self._size
        self.strike(f"{select.name} {config[1]:#x}: size {config[_SIZE_AT]}, {bytes(config[_U_AT:_U_AT + 8]).hex(' ')}")
        return config


class Sweep(Unasked):
    """Sends a long sequence that nobody caused, piece by piece, as the guest gives buffers."""

    def __init__(self, events: Iterable[InputEvent]) -> None:
        data = tuple(event.build() for event in events)
        self._pieces = [data[at:at + _PIECE] for at in range(0, len(data), _PIECE)]
        super().__init__("events", (), times=len(self._pieces), delay=0.001)

    def _send(self) -> None:
        self._data = self._pieces.pop(0)
        super()._send()


def _codes(kind: EventType) -> Callable[[], Attack]:
    """Send codes from all over their range: what a missing check reads by is anywhere behind a bit map."""
    return lambda: Sweep(InputEvent(kind, code, 1) for code in range(0, 1 << 16, _CODES_APART))


def _range(low: int, high: int, axis: int = Abs.MT_SLOT) -> Callable[[], Attack]:
    return lambda: Shown(Select.ABS_INFO, axis, AbsInfo(low, high).build())


def _event(change: Callable[[InputEvent], InputEvent | None], *, times: int = 50) -> Callable[[], Attack]:
    """Change events, where the change is one."""
    def answer(_request: bytes, honest: bytes) -> bytes | None:
        changed = change(InputEvent.parse(honest))
        return None if changed is None else changed.build()

    return lambda: Answer("events", answer, times=times)


def _of(kind: EventType, make: Callable[[InputEvent], InputEvent]) -> Callable[[InputEvent], InputEvent | None]:
    return lambda event: make(event) if event.type == kind else None


def _unasked(*events: InputEvent, delay: float = 0.02, times: int = 1) -> Callable[[], Attack]:
    return lambda: Unasked("events", tuple(event.build() for event in events), times=times, delay=delay)


def _key(code: int, value: int) -> InputEvent:
    return InputEvent(_E.KEY, code, value)


_COMMAND: Final = tuple(event for code in (19, 50, 28) for event in (_key(code, 1), _SYN, _key(code, 0), _SYN))

Row = tuple[str, Surface, Aim, str, str, "Callable[[], Attack]"]
_C, _L, _P = Surface.CONFIG, Surface.LENGTH, Surface.PAYLOAD
_M, _D, _N = Aim.MEMORY, Aim.DECEPTION, Aim.DENIAL

_ROWS: Final[tuple[Row, ...]] = (
    ("name-long", _C, _M, "5.8.5", "has a name of 128 bytes", lambda: Shown(Select.ID_NAME, 0, b"n" * 128)),
    ("name-size-max", _C, _M, "5.8.4", "says that its name has 255 bytes",
     lambda: Shown(Select.ID_NAME, 0, None, 255)),
    ("name-control", _C, _D, "5.8.5", "has a name of control characters",
     lambda: Shown(Select.ID_NAME, 0, b"\n\x1b[2J<0>root: panic\x00\xff")),
    ("name-empty", _C, _D, "5.8.5", "has no name", lambda: Shown(Select.ID_NAME, 0, b"")),
    ("ids-short", _C, _M, "5.8.5", "shows three bytes of ids", lambda: Shown(Select.ID_DEVIDS, 0, b"\x06\0\0")),
    ("ids-long", _C, _M, "5.8.5", "shows 128 bytes of ids", lambda: Shown(Select.ID_DEVIDS, 0, b"\xff" * 128)),
    ("bits-every", _C, _M, "5.8.5", "declares every code of every type, and more than there are",
     lambda: Shown(Select.EV_BITS, None, b"\xff" * 128)),
    ("bits-keys-every", _C, _M, "5.8.5", "declares 1024 keys", lambda: Shown(Select.EV_BITS, _E.KEY, b"\xff" * 128)),
    ("bits-axes-every", _C, _M, "5.8.5", "declares 1024 axes", lambda: Shown(Select.EV_BITS, _E.ABS, b"\xff" * 128)),
    ("bits-lamps-every", _C, _M, "5.8.5", "declares 1024 lamps", lambda: Shown(Select.EV_BITS, _E.LED, b"\xff" * 128)),
    ("bits-size-max", _C, _M, "5.8.4", "says that its codes have 255 bytes",
     lambda: Shown(Select.EV_BITS, None, None, 255)),
    ("bits-none", _C, _D, "5.8.5", "declares no code of any type", lambda: Shown(Select.EV_BITS, None, b"")),
    ("bits-changing", _C, _M, "5.8.5", "declares other codes at every second read",
     lambda: Shown(Select.EV_BITS, None, b"\xff" * 96, alternate=True)),
    ("axis-short", _C, _M, "5.8.5", "shows 4 bytes of an axis's range",
     lambda: Shown(Select.ABS_INFO, None, b"\1\0\0\0")),
    ("axis-missing", _C, _M, "5.8.5", "declares axes and shows no range",
     lambda: Shown(Select.ABS_INFO, None, b"")),
    ("axis-empty", _C, _M, "5.8.5", "has axes that start where they end", _range(5, 5, Abs.X)),
    ("axis-reversed", _C, _M, "5.8.5", "has axes that end before they start", _range(100, -100, Abs.X)),
    ("axis-whole", _C, _M, "5.8.5", "has axes of 2**32 - 1 places", _range(_MIN, _MAX, Abs.X)),
    ("slots-max", _C, _M, "5.8.5", "follows 2**31 - 1 contacts", _range(0, _MAX)),
    ("slots-many", _C, _M, "5.8.5", "follows 65536 contacts", _range(0, 65535)),
    ("slots-negative", _C, _M, "5.8.5", "numbers its contacts from -2**31", _range(_MIN, 9)),
    ("slots-wrap", _C, _M, "5.8.5", "follows contacts from -1 to -1", _range(-2, -1)),
    ("type-unknown", _P, _M, "5.8.6", "sends events of type 31",
     _event(_of(_E.KEY, lambda e: InputEvent(31, e.code, 1)))),
    ("type-max", _P, _M, "5.8.6", "sends events of type 65535",
     _event(_of(_E.KEY, lambda e: InputEvent(0xFFFF, e.code, 1)))),
    ("type-lamp", _P, _M, "5.8.6", "sends events of its lamps",
     _event(_of(_E.KEY, lambda _e: InputEvent(_E.LED, 0, 1)))),
    ("type-repeat", _P, _M, "5.8.6", "sends times of repetition of 0",
     _event(_of(_E.KEY, lambda _e: InputEvent(_E.REP, 1, 0)))),
    ("code-undeclared", _P, _M, "5.8.6", "sends keys that it did not declare",
     _event(_of(_E.KEY, lambda e: _key(600, e.value)))),
    ("code-beyond", _P, _M, "5.8.6", "sends key 768, where there are 768",
     _event(_of(_E.KEY, lambda e: _key(0x300, e.value)))),
    ("code-max", _P, _M, "5.8.6", "sends key 65535", _event(_of(_E.KEY, lambda e: _key(0xFFFF, e.value)))),
    *((f"codes-{kind.name.lower()}", _P, _M, "5.8.6", f"sends every 64th code there could be, as {kind.name}",
       _codes(kind)) for kind in (_E.KEY, _E.REL, _E.ABS, _E.SW)),
    ("axis-undeclared", _P, _M, "5.8.6", "sends positions on axis 63",
     _event(_of(_E.ABS, lambda e: InputEvent(_E.ABS, 63, e.value)))),
    ("value-key-max", _P, _M, "5.8.6", "sends keys of value 2**31 - 1",
     _event(_of(_E.KEY, lambda e: _key(e.code, _MAX)))),
    ("value-position-max", _P, _M, "5.8.6", "sends positions beyond their axis",
     _event(_of(_E.ABS, lambda e: InputEvent(_E.ABS, e.code, _MAX)))),
    ("value-position-min", _P, _M, "5.8.6", "sends positions of -2**31",
     _event(_of(_E.ABS, lambda e: InputEvent(_E.ABS, e.code, _MIN)))),
    ("slot-beyond", _P, _M, "5.8.6", "sends contact 10, where 0 to 9 are declared",
     _event(_of(_E.ABS, lambda _e: InputEvent(_E.ABS, Abs.MT_SLOT, 10)))),
    ("slot-negative", _P, _M, "5.8.6", "sends contact -1",
     _event(_of(_E.ABS, lambda _e: InputEvent(_E.ABS, Abs.MT_SLOT, -1)))),
    ("syn-never", _P, _M, "5.8.6", "ends no sequence", _event(_of(_E.SYN, lambda _e: InputEvent(_E.REL, 0, 1)))),
    ("syn-dropped", _P, _D, "5.8.6", "says that events were lost",
     _event(_of(_E.SYN, lambda _e: InputEvent(_E.SYN, 3, 0)))),
    ("sequence-endless", _P, _M, "5.8.6", "sends 32 events that no SYN_REPORT ends",
     _unasked(*(InputEvent(_E.REL, 0, 1) for _ in range(32)), times=4)),
    ("event-half", _L, _M, "5.8.6", "writes half of each event, and says so",
     lambda: Answer("events", lambda _r, honest: honest[:4])),
    ("event-none", _L, _M, "5.8.6", "writes no event and claims one",
     lambda: Claim("events", lambda n, _r: n, keep=lambda _n: 0)),
    ("event-claimed-short", _L, _M, "5.8.6", "writes whole events and claims two bytes",
     lambda: Claim("events", lambda _n, _r: 2)),
    ("typed", Surface.CONTENT, _D, "5.8.6", "types what nobody types", _unasked(*_COMMAND)),
    ("typed-other", Surface.CONTENT, _D, "5.8.6", "sends other keys than are typed",
     _event(_of(_E.KEY, lambda e: _key(e.code % 80 + 1, e.value)))),
    ("held", Surface.CONTENT, _D, "5.8.6", "never lets a key go", _event(_of(_E.KEY, lambda e: _key(e.code, 1)))),
    ("flood", _P, _N, "5.8.6", "fills all buffers whenever it is given some",
     _unasked(*(event for _ in range(15) for event in (InputEvent(_E.REL, 0, 1), _SYN)), delay=0.001, times=50)),
)


def input_attacks() -> Iterator[AttackSpec]:
    """Attacks on the input device's protocol."""
    for what, surface, aim, spec, summary, make in _ROWS:
        yield AttackSpec(f"input-{what}", DeviceType.INPUT, surface, aim, f"virtio 1.3, {spec}",
                         f"The device {summary}.", make, stimuli=("use", "inspect"))


