"""The device security manager: every request in every state, and whatever happens besides."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from chamber.device.tdisp import Dsm, Event, next_state
from chamber.wire import tdisp
from chamber.wire.tdi_report import InterfaceInfo, InterfaceReport, MmioRange, RangeAttribute
from chamber.wire.tdisp import (
    BindP2p,
    Body,
    ErrorCode,
    FunctionId,
    GetCapabilities,
    GetReport,
    InterfaceState,
    LockFlag,
    LockInterface,
    LockNonce,
    MessageType,
    ReportPortion,
    SetMmioAttribute,
    StartInterface,
    State,
    TdispError,
    VendorMessage,
)

FUNCTION, OTHER = 0x0100, 0x0101
STREAM, P2P_STREAM = 1, 2
SESSION, INTRUDER = 0xFFFF0001, 0xFFFF0002
REPORT = InterfaceReport(InterfaceInfo.DMA_WITHOUT_PASID, (MmioRange(16, 4, RangeAttribute(0), 0),), b"virtio" * 20)


class Fake:
    """An interface that writes down what it is told."""

    def __init__(self) -> None:
        self.told: list[str] = []
        self.in_the_way: str | None = None

    def obstacle(self, _lock: LockInterface) -> str | None:
        return self.in_the_way

    def lock(self, _lock: LockInterface) -> InterfaceReport:
        self.told.append("lock")
        return REPORT

    def run(self) -> None:
        self.told.append("run")

    def fail(self) -> None:
        self.told.append("fail")

    def unlock(self) -> None:
        self.told.append("unlock")

    def set_non_tee(self, request: SetMmioAttribute) -> bool:
        return request.range_id == 2


class FakeStreams:
    """Streams of which somebody set the keys."""

    def __init__(self) -> None:
        self.default: int | None = STREAM
        self.keyed: dict[int, int] = {STREAM: SESSION, P2P_STREAM: SESSION}

    def default_stream(self, _function: FunctionId) -> int | None:
        return self.default

    def keyed_over(self, stream_id: int) -> int | None:
        return self.keyed.get(stream_id)


class Bench:
    """A manager with two interfaces, and whoever asks it."""

    def __init__(self, portion: int = 0xFFFF) -> None:
        self.interface, self.streams = Fake(), FakeStreams()
        self.count = 0
        self.dry = False
        self.lines: list[str] = []
        self.dsm = Dsm({FUNCTION: self.interface, OTHER: Fake()}, self._random, streams=self.streams,
                       portion=portion, log=self.lines.append)

    def _random(self, size: int) -> bytes:
        self.count += 1
        return b"" if self.dry else bytes((self.count,)) * size

    def ask(self, kind: MessageType, body: Body | None = None, *, session: int = SESSION,
            function: int = FUNCTION) -> Body:
        answer = self.dsm.respond(session, tdisp.encode(kind, FunctionId(function), body))
        assert answer is not None
        message = tdisp.decode(answer)
        assert message.function == FunctionId(function)
        assert message.type == (MessageType.TDISP_ERROR if isinstance(message.body, TdispError) else kind & 0x7F)
        return message.body

    def lock(self, flags: LockFlag = LockFlag.BIND_P2P, *, session: int = SESSION) -> bytes:
        answer = self.ask(MessageType.LOCK_INTERFACE_REQUEST, LockInterface(flags, STREAM), session=session)
        assert isinstance(answer, LockNonce)
        return answer.nonce

    def reach(self, state: State) -> bytes:
        """Bring the interface into a state; return the nonce that it gave."""
        nonce = bytes(32) if state is State.CONFIG_UNLOCKED else self.lock()
        if state is State.RUN:
            self.ask(MessageType.START_INTERFACE_REQUEST, StartInterface(nonce))
        if state is State.ERROR:
            self.dsm.happened(FUNCTION, Event.CONFIGURATION)
        assert self.dsm.state(FUNCTION) is state
        return nonce

    def refusal(self, kind: MessageType, body: Body | None = None, *, session: int = SESSION,
                function: int = FUNCTION) -> ErrorCode:
        answer = self.ask(kind, body, session=session, function=function)
        assert isinstance(answer, TdispError)
        return ErrorCode(answer.code)


@pytest.fixture
def bench() -> Bench:
    return Bench()


_ANY = frozenset(State)
_LEGAL = {
    MessageType.GET_TDISP_VERSION: _ANY, MessageType.GET_TDISP_CAPABILITIES: _ANY,
    MessageType.GET_DEVICE_INTERFACE_STATE: _ANY, MessageType.STOP_INTERFACE_REQUEST: _ANY,
    MessageType.LOCK_INTERFACE_REQUEST: {State.CONFIG_UNLOCKED}, MessageType.START_INTERFACE_REQUEST: {
        State.CONFIG_LOCKED}, MessageType.GET_DEVICE_INTERFACE_REPORT: {State.CONFIG_LOCKED, State.RUN},
    MessageType.BIND_P2P_STREAM_REQUEST: {State.RUN}, MessageType.UNBIND_P2P_STREAM_REQUEST: {State.RUN},
    MessageType.SET_MMIO_ATTRIBUTE_REQUEST: {State.RUN}}
_AFTER = {MessageType.LOCK_INTERFACE_REQUEST: State.CONFIG_LOCKED, MessageType.START_INTERFACE_REQUEST: State.RUN,
          MessageType.STOP_INTERFACE_REQUEST: State.CONFIG_UNLOCKED}


def _body(kind: MessageType, nonce: bytes) -> Body | None:
    bodies: dict[MessageType, Body] = {
        MessageType.GET_TDISP_CAPABILITIES: GetCapabilities(),
        MessageType.LOCK_INTERFACE_REQUEST: LockInterface(default_stream_id=STREAM),
        MessageType.GET_DEVICE_INTERFACE_REPORT: GetReport(),
        MessageType.START_INTERFACE_REQUEST: StartInterface(nonce),
        MessageType.BIND_P2P_STREAM_REQUEST: BindP2p(P2P_STREAM),
        MessageType.UNBIND_P2P_STREAM_REQUEST: tdisp.UnbindP2p(P2P_STREAM),
        MessageType.SET_MMIO_ATTRIBUTE_REQUEST: SetMmioAttribute(0, 1, non_tee=True, range_id=2)}
    return bodies.get(kind)


@pytest.mark.parametrize("kind", _LEGAL)
@pytest.mark.parametrize("state", State)
def test_every_request_in_every_state(bench: Bench, kind: MessageType, state: State) -> None:
    nonce = bench.reach(state)
    if kind is MessageType.UNBIND_P2P_STREAM_REQUEST and state is State.RUN:
        bench.ask(MessageType.BIND_P2P_STREAM_REQUEST, BindP2p(P2P_STREAM))
    answer = bench.ask(kind, _body(kind, nonce))
    if state in _LEGAL[kind]:
        assert not isinstance(answer, TdispError)
        assert bench.dsm.state(FUNCTION) is _AFTER.get(kind, state)
    else:
        assert answer == TdispError(ErrorCode.INVALID_INTERFACE_STATE)
        assert bench.dsm.state(FUNCTION) is state


@pytest.mark.parametrize("event", Event)
@pytest.mark.parametrize("state", State)
def test_every_event_in_every_state(bench: Bench, state: State, event: Event) -> None:
    if event in {Event.LOCK, Event.START}:
        right = {Event.LOCK: State.CONFIG_UNLOCKED, Event.START: State.CONFIG_LOCKED}[event]
        assert (next_state(state, event) is None) == (state is not right)
        return
    bench.reach(state)
    bench.interface.told.clear()
    bench.dsm.happened(FUNCTION, event)
    after = bench.dsm.state(FUNCTION)
    assert after is next_state(state, event)
    if event in {Event.STOP, Event.CONVENTIONAL_RESET}:
        assert (after, bench.interface.told) == (State.CONFIG_UNLOCKED, ["unlock"])
    elif state in {State.CONFIG_LOCKED, State.RUN}:
        assert (after, bench.interface.told) == (State.ERROR, ["fail"])
    else:
        assert (after, bench.interface.told) == (state, [])


def test_a_life(bench: Bench) -> None:
    nonce = bench.lock()
    assert bench.ask(MessageType.GET_DEVICE_INTERFACE_STATE) == InterfaceState(State.CONFIG_LOCKED)
    assert bench.ask(MessageType.GET_DEVICE_INTERFACE_REPORT, GetReport()) == ReportPortion(REPORT.encode(), 0)
    bench.ask(MessageType.START_INTERFACE_REQUEST, StartInterface(nonce))
    bench.ask(MessageType.STOP_INTERFACE_REQUEST)
    assert bench.interface.told == ["lock", "run", "unlock"]
    assert bench.lock() != nonce
    assert bench.dsm.state(OTHER) is State.CONFIG_UNLOCKED


def test_a_message_outside_of_a_session_has_no_answer(bench: Bench) -> None:
    assert bench.dsm.respond(None, tdisp.encode(MessageType.GET_TDISP_VERSION, FunctionId(FUNCTION))) is None


def test_the_report_comes_in_portions() -> None:
    bench, data, offset = Bench(portion=64), b"", 0
    bench.lock()
    while True:
        answer = bench.ask(MessageType.GET_DEVICE_INTERFACE_REPORT, GetReport(offset, 0xFFFF))
        assert isinstance(answer, ReportPortion)
        data += answer.portion
        offset = len(data)
        if not answer.remainder:
            break
    assert data == REPORT.encode()
    for nothing in (GetReport(offset), GetReport(0xFFFF), GetReport(0, 0)):
        assert bench.refusal(MessageType.GET_DEVICE_INTERFACE_REPORT, nothing) is ErrorCode.INVALID_REQUEST
    assert bench.dsm.state(FUNCTION) is State.CONFIG_LOCKED


# Locks that are refused.

def _refused_lock(bench: Bench, stream: int = STREAM) -> ErrorCode:
    code = bench.refusal(MessageType.LOCK_INTERFACE_REQUEST, LockInterface(default_stream_id=stream))
    assert bench.dsm.state(FUNCTION) is State.CONFIG_UNLOCKED
    assert bench.interface.told == []
    return code


def test_no_lock_with_another_stream(bench: Bench) -> None:
    assert _refused_lock(bench, P2P_STREAM) is ErrorCode.INVALID_REQUEST
    bench.streams.default = None
    assert _refused_lock(bench) is ErrorCode.INVALID_REQUEST


@pytest.mark.parametrize("whose", [None, INTRUDER])
def test_no_lock_without_keys_of_the_same_session(bench: Bench, whose: int | None) -> None:
    bench.streams.keyed = {} if whose is None else {STREAM: whose}
    assert _refused_lock(bench) is ErrorCode.INVALID_REQUEST


def test_no_lock_of_a_configuration_that_cannot_be(bench: Bench) -> None:
    bench.interface.in_the_way = "BARs overlap"
    assert _refused_lock(bench) is ErrorCode.INVALID_DEVICE_CONFIGURATION


def test_no_lock_without_entropy(bench: Bench) -> None:
    bench.dry = True
    assert _refused_lock(bench) is ErrorCode.INSUFFICIENT_ENTROPY


def test_a_device_in_the_package_needs_no_stream() -> None:
    interface = Fake()
    dsm = Dsm({FUNCTION: interface}, bytes)
    dsm.respond(SESSION, tdisp.encode(MessageType.LOCK_INTERFACE_REQUEST, FunctionId(FUNCTION), LockInterface()))
    assert dsm.state(FUNCTION) is State.CONFIG_LOCKED


# The nonce.

def test_a_wrong_nonce_starts_nothing_and_the_right_one_still_does(bench: Bench) -> None:
    nonce = bench.lock()
    wrong = bytes((nonce[0] ^ 1,)) + nonce[1:]
    assert bench.refusal(MessageType.START_INTERFACE_REQUEST, StartInterface(wrong)) is ErrorCode.INVALID_NONCE
    assert bench.interface.told == ["lock"]
    bench.ask(MessageType.START_INTERFACE_REQUEST, StartInterface(nonce))
    assert bench.dsm.state(FUNCTION) is State.RUN


def test_a_nonce_of_an_earlier_lock_starts_nothing(bench: Bench) -> None:
    nonce = bench.lock()
    bench.ask(MessageType.STOP_INTERFACE_REQUEST)
    bench.lock()
    assert bench.refusal(MessageType.START_INTERFACE_REQUEST, StartInterface(nonce)) is ErrorCode.INVALID_NONCE


def test_no_nonce_is_written_down(bench: Bench) -> None:
    nonce = bench.lock()
    bench.ask(MessageType.START_INTERFACE_REQUEST, StartInterface(nonce))
    said = "".join(bench.lines) + repr(bench.dsm.__dict__)
    assert nonce.hex() not in said
    assert repr(nonce)[2:-1] not in said


# Whose it is.

def test_another_session_may_look_and_do_nothing(bench: Bench) -> None:
    nonce = bench.lock()
    assert bench.ask(MessageType.GET_DEVICE_INTERFACE_STATE, session=INTRUDER) == InterfaceState(State.CONFIG_LOCKED)
    for kind in (MessageType.START_INTERFACE_REQUEST, MessageType.STOP_INTERFACE_REQUEST,
                 MessageType.GET_DEVICE_INTERFACE_REPORT, MessageType.LOCK_INTERFACE_REQUEST):
        assert bench.refusal(kind, _body(kind, nonce), session=INTRUDER) is ErrorCode.INVALID_REQUEST
    assert bench.dsm.state(FUNCTION) is State.CONFIG_LOCKED


@pytest.mark.parametrize("state", [State.CONFIG_LOCKED, State.RUN])
def test_a_session_takes_its_interfaces_along(bench: Bench, state: State) -> None:
    bench.reach(state)
    bench.dsm.session_ended(INTRUDER)
    assert bench.dsm.state(FUNCTION) is state
    bench.dsm.session_ended(SESSION)
    assert bench.dsm.state(FUNCTION) is State.ERROR
    bench.ask(MessageType.STOP_INTERFACE_REQUEST, session=INTRUDER)
    assert bench.dsm.state(FUNCTION) is State.CONFIG_UNLOCKED


@pytest.mark.parametrize(("stream", "bound", "after"), [
    (STREAM, False, State.ERROR), (P2P_STREAM, False, State.RUN), (P2P_STREAM, True, State.ERROR)])
def test_a_stream_takes_its_interfaces_along(bench: Bench, stream: int, bound: bool, after: State) -> None:
    bench.reach(State.RUN)
    if bound:
        bench.ask(MessageType.BIND_P2P_STREAM_REQUEST, BindP2p(P2P_STREAM))
    bench.dsm.stream_failed(stream)
    assert bench.dsm.state(FUNCTION) is after
    assert bench.dsm.state(OTHER) is State.CONFIG_UNLOCKED


def test_p2p_needs_the_flag_and_keys(bench: Bench) -> None:
    nonce = bench.lock(LockFlag(0))
    bench.ask(MessageType.START_INTERFACE_REQUEST, StartInterface(nonce))
    assert bench.refusal(MessageType.BIND_P2P_STREAM_REQUEST, BindP2p(P2P_STREAM)) is ErrorCode.INVALID_REQUEST
    bench.ask(MessageType.STOP_INTERFACE_REQUEST)
    bench.reach(State.RUN)
    assert bench.refusal(MessageType.BIND_P2P_STREAM_REQUEST, BindP2p(7)) is ErrorCode.INVALID_REQUEST
    assert bench.refusal(MessageType.UNBIND_P2P_STREAM_REQUEST, BindP2p(P2P_STREAM)) is ErrorCode.INVALID_REQUEST
    bench.ask(MessageType.BIND_P2P_STREAM_REQUEST, BindP2p(P2P_STREAM))
    assert bench.refusal(MessageType.BIND_P2P_STREAM_REQUEST, BindP2p(P2P_STREAM)) is ErrorCode.INVALID_REQUEST
    bench.ask(MessageType.UNBIND_P2P_STREAM_REQUEST, BindP2p(P2P_STREAM))


def test_only_a_range_that_may_change_changes(bench: Bench) -> None:
    bench.reach(State.RUN)
    bad = SetMmioAttribute(0, 1, non_tee=True, range_id=0)
    assert bench.refusal(MessageType.SET_MMIO_ATTRIBUTE_REQUEST, bad) is ErrorCode.INVALID_REQUEST


# Messages that are none.

@pytest.mark.parametrize(("data", "code", "more"), [
    (b"\x11\x81\0\0\0\1\0\0" + bytes(8), ErrorCode.VERSION_MISMATCH, 0),
    (b"\x10\x8c\0\0\0\1\0\0" + bytes(8), ErrorCode.UNSUPPORTED_REQUEST, 0x8C),
    (b"\x10\x05\0\0\0\1\0\0" + bytes(8) + b"\0", ErrorCode.UNSUPPORTED_REQUEST, 5),
    (b"\x10\x81\0\0\0\1\0\0" + bytes(9), ErrorCode.INVALID_REQUEST, 0),
    (b"\x10\x81\0\0\0\2\0\0" + bytes(8), ErrorCode.INVALID_INTERFACE, 0), (b"", ErrorCode.INVALID_REQUEST, 0)])
def test_what_is_no_request_is_answered_as_it_must_be(bench: Bench, data: bytes, code: ErrorCode, more: int) -> None:
    answer = bench.dsm.respond(SESSION, data)
    assert answer is not None
    assert tdisp.decode(answer).body == TdispError(code, more)


def test_vendor_messages_are_not_offered(bench: Bench) -> None:
    answer = bench.ask(MessageType.VDM_REQUEST, VendorMessage(0, b"\xf4\x1a", b""))
    assert answer == TdispError(ErrorCode.UNSUPPORTED_REQUEST, MessageType.VDM_REQUEST)
    offered = bench.ask(MessageType.GET_TDISP_CAPABILITIES, GetCapabilities())
    assert isinstance(offered, tdisp.Capabilities)
    assert MessageType.VDM_REQUEST not in offered.requests
    assert offered.requests == set(range(0x81, 0x8B))


@given(st.binary(max_size=60), st.sampled_from(State))
def test_any_bytes_in_any_state_are_answered(data: bytes, state: State) -> None:
    bench = Bench()
    bench.reach(state)
    answer = bench.dsm.respond(SESSION, data)
    assert answer is not None
    tdisp.decode(answer)


class Lives(RuleBasedStateMachine):
    """Whatever guest and host do: it runs only if it was started with the lock's nonce, and nothing happened since."""

    @initialize()
    def start(self) -> None:
        self.bench = Bench()
        self.nonce: bytes | None = None
        self.running = False

    @rule(session=st.sampled_from((SESSION, INTRUDER)))
    def lock(self, session: int) -> None:
        answer = self.bench.ask(MessageType.LOCK_INTERFACE_REQUEST, LockInterface(default_stream_id=STREAM),
                                session=session)
        if isinstance(answer, LockNonce):
            assert session == SESSION
            assert self.nonce is None
            assert not self.running
            self.nonce = answer.nonce

    @rule(right=st.booleans(), session=st.sampled_from((SESSION, INTRUDER)))
    def begin(self, right: bool, session: int) -> None:
        nonce = self.nonce if right and self.nonce is not None else bytes(32)
        answer = self.bench.ask(MessageType.START_INTERFACE_REQUEST, StartInterface(nonce), session=session)
        if not isinstance(answer, TdispError):
            assert right
            assert session == SESSION
            assert nonce == self.nonce
            self.nonce, self.running = None, True

    @rule(event=st.sampled_from(sorted(set(Event) - {Event.LOCK, Event.START}, key=lambda e: e.name)))
    def happen(self, event: Event) -> None:
        self.bench.dsm.happened(FUNCTION, event)
        self.nonce, self.running = None, False

    @rule()
    def stop(self) -> None:
        if not isinstance(self.bench.ask(MessageType.STOP_INTERFACE_REQUEST), TdispError):
            self.nonce, self.running = None, False

    @invariant()
    def it_runs_for_one_reason_only(self) -> None:
        assert (self.bench.dsm.state(FUNCTION) is State.RUN) == self.running


TestLives = Lives.TestCase
