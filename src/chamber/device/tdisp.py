"""The device security manager: TDISP's responder (PCI Express Base Specification 6.1, 11.2 and 11.3).

It keeps the state of each interface (TDI), and says what the host may do no longer once the guest has locked one. What
it is told comes from a guest's TSM in a secured session; what it hears of besides (a reset, a stream that failed, a
session that ended) comes from the hardware, and from a host who makes it happen.

Where the specification leaves it open, this device decides so:

- An interface obeys the session that locked it and no other: versions, capabilities and the state may be asked for by
  anybody; the rest is refused as INVALID_REQUEST. After that session has ended, any other may stop the interface.
- A report asked for from its end on, or with no length, is an INVALID_REQUEST: neither could ever be the end of a loop.
- A refused lock or start leaves the state as it was, and the nonce with it.
"""

from __future__ import annotations

import enum
import hmac
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Protocol

from chamber.wire import tdisp
from chamber.wire.errors import WireError
from chamber.wire.tdisp import (
    NONCE_SIZE,
    VERSION,
    BindP2p,
    Body,
    Capabilities,
    Empty,
    ErrorCode,
    FunctionId,
    GetReport,
    InterfaceState,
    LockFlag,
    LockInterface,
    LockNonce,
    Message,
    MessageType,
    ReportPortion,
    SetMmioAttribute,
    StartInterface,
    State,
    TdispError,
    UnknownMessage,
    UnknownVersion,
    Versions,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from chamber.wire.tdi_report import InterfaceReport

__all__ = ("Dsm", "Event", "Interface", "Streams", "next_state")


class Event(enum.Enum):
    """What moves an interface from one state to another (11.1)."""

    LOCK = "locked by a guest"
    START = "started by a guest"
    STOP = "stopped by a guest"
    CONFIGURATION = "its configuration was changed"
    REQUESTER_ID = "its requester id was changed"
    FUNCTION_RESET = "its function was reset"
    STREAM_INSECURE = "its IDE stream became Insecure"
    SESSION_ENDED = "the session that locked it has ended"
    DATA_ERROR = "it got poisoned data, or an answer that it can't recover from"
    FIRMWARE = "its firmware was changed"
    CONVENTIONAL_RESET = "the device was reset"


_VIOLATIONS: Final = frozenset(Event) - {Event.LOCK, Event.START, Event.STOP, Event.CONVENTIONAL_RESET}

_TRANSITIONS: Final[dict[tuple[State, Event], State]] = {
    (State.CONFIG_UNLOCKED, Event.LOCK): State.CONFIG_LOCKED,
    (State.CONFIG_LOCKED, Event.START): State.RUN,
    **{(state, event): State.CONFIG_UNLOCKED for state in State for event in (Event.STOP, Event.CONVENTIONAL_RESET)},
    **{(state, event): State.ERROR for state in (State.CONFIG_LOCKED, State.RUN) for event in _VIOLATIONS},
    # Nothing is locked yet that could be violated, or nothing is left that a violation could take.
    **{(state, event): state for state in (State.CONFIG_UNLOCKED, State.ERROR) for event in _VIOLATIONS},
}


def next_state(state: State, event: Event) -> State | None:
    """Return the state after an event; None where the event can't be in that state."""
    return _TRANSITIONS.get((state, event))


class Interface(Protocol):
    """What is locked: a function, as its device sees it."""

    def obstacle(self, lock: LockInterface) -> str | None:
        """Return why it can't be locked as it is configured now; None if it can."""
        ...

    def lock(self, lock: LockInterface) -> InterfaceReport:
        """End all work under way, hold the configuration from now on, and say what it is."""
        ...

    def run(self) -> None:
        """Let trusted accesses through, and begin to make them."""
        ...

    def fail(self) -> None:
        """Stop memory accesses in both directions; keep what the guest left in it away from all others."""
        ...

    def unlock(self) -> None:
        """Forget everything of the guest's, and be anybody's again."""
        ...

    def set_non_tee(self, request: SetMmioAttribute) -> bool:
        """Change a reported range as asked; False if there is none that may be changed so."""
        ...


class Streams(Protocol):
    """The IDE streams of the device's port."""

    def default_stream(self, function: FunctionId) -> int | None:
        """Return the stream that the function's configuration names, None where it names none, or more than one."""
        ...

    def keyed_over(self, stream_id: int) -> int | None:
        """Return the session over which all keys in use of a secure stream were set, None for any other stream."""
        ...


@dataclass
class _Tdi:
    interface: Interface
    state: State = State.CONFIG_UNLOCKED
    session: int | None = None
    nonce: bytearray = field(default_factory=bytearray, repr=False)
    lock: LockInterface = field(default_factory=LockInterface)
    report: bytes = b""
    p2p: set[int] = field(default_factory=set)


class _RefusedError(Exception):
    """A request that is answered by TDISP_ERROR."""

    def __init__(self, code: ErrorCode, data: int = 0, why: str = "") -> None:
        self.code = code
        self.data = data
        self.why = why
        super().__init__(code.name)


_HARMLESS: Final = frozenset((MessageType.GET_TDISP_VERSION, MessageType.GET_TDISP_CAPABILITIES,
                              MessageType.GET_DEVICE_INTERFACE_STATE))
"""Requests of which a session that did not lock the interface learns nothing that matters."""


class Dsm:
    """The manager of a device's interfaces.

    Args:
        interfaces: what the device hosts, by function id.
        random: returns so many random bytes; fewer if there is no entropy left.
        streams: the port's IDE streams; None for a device that needs none, being part of the processor's package.
        portion: bytes of a report that one message has at most.
        address_width: bits of the addresses that the device uses.
        log: gets a line for each message, refusal and change of state, without anything that is secret.

    """

    def __init__(self, interfaces: Mapping[int, Interface], random: Callable[[int], bytes], *,
                 streams: Streams | None = None, portion: int = 0xFFFF, address_width: int = 52,
                 log: Callable[[str], None] = lambda _line: None) -> None:
        self._tdis = {number: _Tdi(interface) for number, interface in interfaces.items()}
        self._random = random
        self._streams = streams
        self._portion = portion
        self._log = log
        self._answers: dict[MessageType, Callable[[int, _Tdi, Message], Body]] = {
            MessageType.GET_TDISP_VERSION: lambda _session, _tdi, _message: Versions((VERSION,)),
            MessageType.GET_TDISP_CAPABILITIES: self._capabilities,
            MessageType.LOCK_INTERFACE_REQUEST: self._lock,
            MessageType.GET_DEVICE_INTERFACE_REPORT: self._report,
            MessageType.GET_DEVICE_INTERFACE_STATE: lambda _session, tdi, _message: InterfaceState(tdi.state),
            MessageType.START_INTERFACE_REQUEST: self._start,
            MessageType.STOP_INTERFACE_REQUEST: self._stop,
            MessageType.BIND_P2P_STREAM_REQUEST: self._bind,
            MessageType.UNBIND_P2P_STREAM_REQUEST: self._unbind,
            MessageType.SET_MMIO_ATTRIBUTE_REQUEST: self._set_attribute,
        }
        self._offered = Capabilities(frozenset(self._answers), sum(LockFlag), address_width)

    def state(self, function: int) -> State:
        """Return the state of an interface."""
        return self._tdis[function].state

    def holds_firmware(self, function: int) -> bool:
        """Whether a guest has locked an interface against other firmware on its device."""
        tdi = self._tdis[function]
        return tdi.state in {State.CONFIG_LOCKED, State.RUN} and bool(tdi.lock.flags & LockFlag.NO_FW_UPDATE)

    # What a session says.

    def respond(self, session: int | None, data: bytes) -> bytes | None:
        """Answer a message; None is no answer at all.

        Args:
            session: the secured session that it came in, None if it came in none.
            data: the message, from its header on.

        """
        if session is None:
            # Whoever is on the path could have sent it; it must not even be refused (11.2.2).
            self._log("a TDISP message outside of a secured session: dropped")
            return None
        function = FunctionId.of(int.from_bytes(data[4:8], "little"))
        try:
            kind, body = self._answer(session, data)
        except _RefusedError as error:
            self._log(f"refused: {error.code.name}{f' ({error.why})' if error.why else ''}")
            kind, body = MessageType.TDISP_ERROR, TdispError(error.code, error.data)
        return tdisp.encode(kind, function, body)

    def _answer(self, session: int, data: bytes) -> tuple[MessageType, Body]:
        try:
            message = tdisp.decode(data)
        except UnknownVersion as error:
            raise _RefusedError(ErrorCode.VERSION_MISMATCH) from error
        except UnknownMessage as error:
            raise _RefusedError(ErrorCode.UNSUPPORTED_REQUEST, error.code) from error
        except WireError as error:
            raise _RefusedError(ErrorCode.INVALID_REQUEST, why=error.rule) from error
        answer = self._answers.get(message.type)
        if answer is None:
            raise _RefusedError(ErrorCode.UNSUPPORTED_REQUEST, message.type)
        tdi = self._tdis.get(int(message.function))
        if tdi is None:
            raise _RefusedError(ErrorCode.INVALID_INTERFACE)
        if tdi.session not in {None, session} and message.type not in _HARMLESS:
            raise _RefusedError(ErrorCode.INVALID_REQUEST, why="another session has locked the interface")
        self._log(f"{message.type.name} for {int(message.function):#x} in {tdi.state.name}")
        return MessageType(message.type & 0x7F), answer(session, tdi, message)

    def _capabilities(self, _session: int, _tdi: _Tdi, _message: Message) -> Body:
        return self._offered

    def _lock(self, session: int, tdi: _Tdi, message: Message) -> Body:
        request = message.body
        assert isinstance(request, LockInterface)
        _require(tdi, State.CONFIG_UNLOCKED)
        if self._streams is not None:
            stream = request.default_stream_id
            if self._streams.default_stream(message.function) != stream:
                raise _RefusedError(ErrorCode.INVALID_REQUEST, why="that is not the function's default stream")
            if self._streams.keyed_over(stream) != session:
                # Keys that somebody else set are keys that somebody else knows.
                raise _RefusedError(ErrorCode.INVALID_REQUEST, why="the stream has no keys of this session")
        obstacle = tdi.interface.obstacle(request)
        if obstacle is not None:
            raise _RefusedError(ErrorCode.INVALID_DEVICE_CONFIGURATION, why=obstacle)
        nonce = self._random(NONCE_SIZE)
        if len(nonce) < NONCE_SIZE:
            raise _RefusedError(ErrorCode.INSUFFICIENT_ENTROPY)
        tdi.report = tdi.interface.lock(request).encode()
        tdi.session, tdi.lock, tdi.nonce = session, request, bytearray(nonce)
        self._move(tdi, Event.LOCK)
        return LockNonce(nonce)

    def _report(self, _session: int, tdi: _Tdi, message: Message) -> Body:
        request = message.body
        assert isinstance(request, GetReport)
        _require(tdi, State.CONFIG_LOCKED, State.RUN)
        rest = tdi.report[request.offset:]
        if not rest or not request.length:
            raise _RefusedError(ErrorCode.INVALID_REQUEST, why="nothing of the report is there")
        portion = rest[:min(request.length, self._portion)]
        return ReportPortion(portion, len(rest) - len(portion))

    def _start(self, _session: int, tdi: _Tdi, message: Message) -> Body:
        request = message.body
        assert isinstance(request, StartInterface)
        _require(tdi, State.CONFIG_LOCKED)
        if not hmac.compare_digest(request.nonce, tdi.nonce):
            raise _RefusedError(ErrorCode.INVALID_NONCE)
        # Before the interface runs, so that there is no moment in which it could be started twice.
        _wipe(tdi.nonce)
        self._move(tdi, Event.START)
        return Empty()

    def _stop(self, _session: int, tdi: _Tdi, _message: Message) -> Body:
        self._move(tdi, Event.STOP)
        return Empty()

    def _bind(self, session: int, tdi: _Tdi, message: Message) -> Body:
        stream = self._p2p_stream(tdi, message)
        if stream in tdi.p2p or self._streams is None or self._streams.keyed_over(stream) != session:
            raise _RefusedError(ErrorCode.INVALID_REQUEST, why="no such stream, or one that is bound")
        tdi.p2p.add(stream)
        return Empty()

    def _unbind(self, _session: int, tdi: _Tdi, message: Message) -> Body:
        stream = self._p2p_stream(tdi, message)
        if stream not in tdi.p2p:
            raise _RefusedError(ErrorCode.INVALID_REQUEST, why="the stream is not bound")
        tdi.p2p.discard(stream)
        return Empty()

    @staticmethod
    def _p2p_stream(tdi: _Tdi, message: Message) -> int:
        assert isinstance(message.body, BindP2p)
        _require(tdi, State.RUN)
        if not tdi.lock.flags & LockFlag.BIND_P2P:
            raise _RefusedError(ErrorCode.INVALID_REQUEST, why="it was locked without BIND_P2P")
        return message.body.stream_id

    @staticmethod
    def _set_attribute(_session: int, tdi: _Tdi, message: Message) -> Body:
        assert isinstance(message.body, SetMmioAttribute)
        _require(tdi, State.RUN)
        if not tdi.interface.set_non_tee(message.body):
            raise _RefusedError(ErrorCode.INVALID_REQUEST, why="no reported range may be changed so")
        return Empty()

    # What happens to it.

    def happened(self, function: int, event: Event) -> None:
        """Take notice of an event of one interface."""
        self._move(self._tdis[function], event)

    def session_ended(self, session: int) -> None:
        """Take notice that a session is over: what it locked is nobody's."""
        for tdi in self._tdis.values():
            if tdi.session == session:
                self._move(tdi, Event.SESSION_ENDED)
                tdi.session = None

    def stream_failed(self, stream_id: int) -> None:
        """Take notice that a stream is Insecure."""
        for tdi in self._tdis.values():
            if tdi.session is not None and stream_id in {tdi.lock.default_stream_id, *tdi.p2p}:
                self._move(tdi, Event.STREAM_INSECURE)

    def reset(self) -> None:
        """Take notice of a conventional reset."""
        for tdi in self._tdis.values():
            self._move(tdi, Event.CONVENTIONAL_RESET)

    def _move(self, tdi: _Tdi, event: Event) -> None:
        before, after = tdi.state, next_state(tdi.state, event)
        assert after is not None, f"{event} in {before}"
        if event in {Event.STOP, Event.CONVENTIONAL_RESET}:
            # Also when it was unlocked before: a stop is how a guest is sure that nothing of it is left.
            _wipe(tdi.nonce)
            tdi.interface.unlock()
            tdi.session, tdi.report, tdi.lock = None, b"", LockInterface()
            tdi.p2p.clear()
        elif after is not before:
            if after is State.ERROR:
                _wipe(tdi.nonce)
                tdi.interface.fail()
            elif after is State.RUN:
                tdi.interface.run()
        tdi.state = after
        if after is not before:
            self._log(f"{before.name} to {after.name}: {event.value}")


def _require(tdi: _Tdi, *states: State) -> None:
    if tdi.state not in states:
        raise _RefusedError(ErrorCode.INVALID_INTERFACE_STATE, why=f"in {tdi.state.name}")


def _wipe(secret: bytearray) -> None:
    secret[:] = bytes(len(secret))
    secret.clear()
