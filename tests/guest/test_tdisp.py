"""A guest that locks a device over an encrypted link, with a host in between; and devices that answer nonsense."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chamber.device.catalogue import make_device
from chamber.device.ide_km import IdePort
from chamber.device.ide_link import IdeLink
from chamber.device.tdi import Tdi
from chamber.device.tdisp import Dsm
from chamber.device.virtio_pci import REGISTER_BAR, VirtioPci
from chamber.guest.tdisp import TdispRequester, TdispViolation, key_stream
from chamber.platform.ide import IdeFailure, IdeStream, StreamState
from chamber.wire import ide_km, tdisp
from chamber.wire.ide_km import Acknowledge, KeySwitch, SubStream
from chamber.wire.pci import HEADER, Command
from chamber.wire.tdisp import (
    Capabilities,
    ErrorCode,
    FunctionId,
    LockFlag,
    LockNonce,
    Message,
    MessageType,
    ReportPortion,
    State,
    TdispError,
    Versions,
)
from chamber.wire.tlp import Completion, CompletionStatus, MemoryRead, MemoryWrite
from chamber.wire.virtio import DeviceType, Status
from chamber.wire.virtio_pci import COMMON
from tests.device.driver import Memory

if TYPE_CHECKING:
    from collections.abc import Callable

FUNCTION, STREAM, SESSION = FunctionId(0x0100), 1, 7
_BASE = 0x8000_0000
_STATUS = _BASE + COMMON["device_status"].offset


class World:
    """A device behind an encrypted link, with its manager, and a guest."""

    def __init__(self) -> None:
        self.tdi = Tdi(VirtioPci(make_device(DeviceType.RNG)), shared=Memory(), private=Memory())
        for name, value in (("bar0", _BASE), ("bar1", 0x8001_0000), ("command", Command.MEMORY | Command.BUS_MASTER)):
            self.tdi.write_config(HEADER[name].offset, value.to_bytes(HEADER[name].size, "little"))
        self.far, self.near = IdeStream(STREAM), IdeStream(STREAM)
        self.port = IdePort([self.far], lambda _function: STREAM)
        self.dsm = Dsm({int(FUNCTION): self.tdi}, os.urandom, streams=self.port)
        self.tdi.happened = lambda event: self.dsm.happened(int(FUNCTION), event)
        self.far.failed = lambda _reason: self.dsm.stream_failed(STREAM)
        self.link = IdeLink(self.far, [self.tdi], completer=int(FUNCTION))
        self.guest = TdispRequester(self._tdisp, FUNCTION)

    def _tdisp(self, data: bytes) -> bytes:
        answer = self.dsm.respond(SESSION, data)
        assert answer is not None
        return answer

    def keys(self, data: bytes, session: int = SESSION) -> bytes:
        return self.port.respond(session, data) or b""

    def set_keys(self, key_set: int = 0) -> None:
        key_stream(self.keys, STREAM, self.near, os.urandom, key_set=key_set)

    def run(self) -> None:
        self.set_keys()
        self.guest.negotiate(LockFlag.LOCK_MSIX)
        self.guest.lock(LockFlag.LOCK_MSIX, STREAM)
        self.guest.start()

    def state(self) -> State:
        return self.dsm.state(int(FUNCTION))

    def write(self, address: int, data: bytes, *, trusted: bool = True) -> bytes:
        return self.near.send(MemoryWrite(0, address, data), trusted=trusted)

    def read(self, address: int, size: int, *, trusted: bool = True) -> Completion:
        answer = self.link.deliver(self.near.send(MemoryRead(0, 1, address, size), trusted=trusted))
        assert answer is not None
        packet = self.near.receive(answer).packet
        assert isinstance(packet, Completion)
        return packet


@pytest.fixture
def world() -> World:
    return World()


def test_a_life(world: World) -> None:
    world.set_keys()
    assert world.near.state is world.far.state is StreamState.SECURE
    capabilities = world.guest.negotiate(LockFlag.LOCK_MSIX)
    assert capabilities.dev_addr_width >= 52
    world.guest.lock(LockFlag.LOCK_MSIX, STREAM, reporting_offset=-0x1000)
    assert world.guest.state() is State.CONFIG_LOCKED
    data, report = world.guest.report()
    assert report.encode() == data
    assert report.ranges[0].first_page == (_BASE - 0x1000) // 4096
    world.guest.start()
    assert world.guest.state() is State.RUN
    assert world.link.deliver(world.write(_STATUS, bytes((Status.ACKNOWLEDGE,)))) is None
    assert world.read(_STATUS, 1).data == bytes((Status.ACKNOWLEDGE,))
    assert world.read(_STATUS, 1, trusted=False).status is CompletionStatus.UNSUPPORTED_REQUEST
    world.guest.stop()
    assert world.guest.state() is State.CONFIG_UNLOCKED
    assert world.read(_STATUS, 1, trusted=False).data == b"\0"


@pytest.mark.parametrize("what", ["dropped", "replayed", "altered"])
def test_a_host_on_the_path_ends_the_interface(world: World, what: str) -> None:
    world.run()
    sent = [world.write(_STATUS, bytes((value,))) for value in (Status.ACKNOWLEDGE, Status.DRIVER)]
    if what == "altered":
        sent[0] = sent[0][:-20] + bytes((sent[0][-20] ^ 1,)) + sent[0][-19:]
    for data in {"dropped": sent[1:], "replayed": [sent[0], *sent], "altered": sent}[what]:
        assert world.link.deliver(data) is None
    assert world.state() is State.ERROR
    assert world.tdi.virtio.read_bar(REGISTER_BAR, COMMON["device_status"].offset, 1) == b"\0"
    with pytest.raises(TdispViolation) as refused:
        world.guest.lock(LockFlag.LOCK_MSIX, STREAM)
    assert refused.value.code == ErrorCode.INVALID_INTERFACE_STATE


def test_a_host_that_sends_packets_of_its_own_gets_nothing(world: World) -> None:
    world.run()
    other = IdeStream(STREAM)
    for number in SubStream:
        for transmit in (True, False):
            other.program(number, transmit=transmit, key_set=0, key=bytes(32), ifv=1)
            other.go(number, transmit=transmit, key_set=0)
    assert world.link.deliver(other.send(MemoryRead(0, 1, _STATUS, 1), trusted=True)) is None
    assert world.state() is State.ERROR


def test_a_host_does_not_set_the_next_keys_of_a_guests_stream(world: World) -> None:
    world.run()
    for which in (ide_km.KeySet(STREAM, 0, 1, transmit=False), ide_km.KeySet(STREAM, 0, 0, transmit=False)):
        answer = ide_km.decode(world.keys(ide_km.KeyProgram(which, bytes(32)).encode(), session=SESSION + 1))
        assert isinstance(answer, Acknowledge)
        assert answer.status == ide_km.ProgramStatus.UNSPECIFIED_FAILURE
        for kind in (ide_km.Object.K_SET_GO, ide_km.Object.K_SET_STOP):
            assert world.keys(KeySwitch(kind, which).encode(), session=SESSION + 1) == b""
    assert world.state() is State.RUN
    assert world.read(_STATUS, 1).data == b"\0"


def test_the_guest_changes_keys_while_it_runs(world: World) -> None:
    world.run()
    for key_set in (1, 0, 1):
        world.set_keys(key_set)
        assert world.read(_STATUS, 1).data == b"\0"
        # The posted lanes are used as well, or the old key stays the receiver's.
        world.link.deliver(world.write(_STATUS, b"\0"))
        world.near.receive(world.far.send(MemoryWrite(0, 0x1000, b"dma"), trusted=True))
        world.far.receive(world.near.send(Completion(0, 0, 0, b"x"), trusted=True))
        world.near.receive(world.far.send(MemoryRead(0, 0, 0x1000, 1), trusted=True))
    assert world.state() is State.RUN


def test_the_session_takes_stream_and_interface_along(world: World) -> None:
    world.run()
    world.port.session_ended(SESSION)
    assert world.far.state is StreamState.INSECURE
    assert world.state() is State.ERROR
    with pytest.raises(IdeFailure):
        world.far.send(MemoryRead(0, 0, 0, 1), trusted=True)


def test_stopping_a_key_ends_the_interface(world: World) -> None:
    world.run()
    which = ide_km.KeySet(STREAM, 0, 0, transmit=True)
    assert world.keys(KeySwitch(ide_km.Object.K_SET_STOP, which).encode())
    assert world.state() is State.ERROR


def test_no_lock_over_keys_of_another_session(world: World) -> None:
    key_stream(lambda data: world.keys(data, SESSION + 1), STREAM, world.near, os.urandom)
    with pytest.raises(TdispViolation) as refused:
        world.guest.lock(LockFlag.LOCK_MSIX, STREAM)
    assert refused.value.code == ErrorCode.INVALID_REQUEST


def test_a_configuration_that_was_changed_between_lock_and_start_is_not_started(world: World) -> None:
    world.set_keys()
    world.guest.lock(LockFlag.LOCK_MSIX, STREAM)
    world.tdi.write_config(HEADER["bar0"].offset, b"\0\0\0\x90")
    with pytest.raises(TdispViolation, match="START_INTERFACE_REQUEST was refused"):
        world.guest.start()
    assert world.guest.state() is State.ERROR


# Devices that answer nonsense.

def _lying(world: World, kind: MessageType, lie: Callable[[Message], Message]) -> TdispRequester:
    def exchange(data: bytes) -> bytes:
        answer = world.dsm.respond(SESSION, data)
        assert answer is not None
        message = tdisp.decode(answer)
        if message.type is kind:
            message = lie(message)
        return tdisp.encode(message.type, message.function, message.body)
    return TdispRequester(exchange, FUNCTION)


def _through(guest: TdispRequester) -> None:
    guest.negotiate(LockFlag.LOCK_MSIX)
    guest.lock(LockFlag.LOCK_MSIX, STREAM)
    guest.report()
    guest.start()
    guest.state()
    guest.stop()


_CAPABILITIES = Capabilities(frozenset(range(0x81, 0x88)), sum(LockFlag), 52)


@pytest.mark.parametrize(("kind", "lie", "why"), [
    (MessageType.TDISP_VERSION, lambda m: replace(m, body=Versions(())), "speaks no TDISP 1"),
    (MessageType.TDISP_VERSION, lambda m: replace(m, body=Versions((0x20,))), "speaks no TDISP 1"),
    (MessageType.TDISP_VERSION, lambda m: replace(m, function=FunctionId(0x0101)), "another interface"),
    (MessageType.TDISP_CAPABILITIES, lambda m: replace(m, body=replace(_CAPABILITIES, requests=frozenset())), "lacks"),
    (MessageType.TDISP_CAPABILITIES, lambda m: replace(m, body=replace(_CAPABILITIES, lock_flags=0)), "know a flag"),
    (MessageType.LOCK_INTERFACE_RESPONSE, lambda m: replace(m, body=LockNonce(bytes(32))), "nonce is none"),
    (MessageType.LOCK_INTERFACE_RESPONSE, lambda m: Message(MessageType.START_INTERFACE_RESPONSE, m.function,
                                                            tdisp.Empty()), "another request"),
    (MessageType.LOCK_INTERFACE_RESPONSE, lambda m: Message(MessageType.TDISP_ERROR, m.function,
                                                            TdispError(ErrorCode.BUSY)), "was refused"),
    (MessageType.DEVICE_INTERFACE_REPORT, lambda m: replace(m, body=ReportPortion(b"", 9)), "hardly anything"),
    (MessageType.DEVICE_INTERFACE_REPORT, lambda m: replace(m, body=ReportPortion(b"x", 9)), "hardly anything"),
    (MessageType.DEVICE_INTERFACE_REPORT, lambda m: replace(m, body=ReportPortion(bytes(20), 0xFFFF)), "changes"),
    (MessageType.DEVICE_INTERFACE_REPORT, lambda m: replace(m, body=ReportPortion(bytes(16), 0)), "can't be read"),
    (MessageType.START_INTERFACE_RESPONSE, lambda m: replace(m, function=FunctionId(0)), "another interface")])
def test_a_device_that_answers_what_it_must_not(world: World, kind: MessageType, lie: Callable[[Message], Message],
                                                why: str) -> None:
    world.set_keys()
    with pytest.raises(TdispViolation, match=why):
        _through(_lying(world, kind, lie))


def test_a_report_whose_end_moves_is_refused(world: World) -> None:
    world.set_keys()
    left = iter(range(100, 0, -1))
    guest = _lying(world, MessageType.DEVICE_INTERFACE_REPORT,
                   lambda m: replace(m, body=ReportPortion(bytes(16), next(left) * 100)))
    guest.lock(LockFlag.LOCK_MSIX, STREAM)
    with pytest.raises(TdispViolation, match="changes"):
        guest.report()


@given(st.lists(st.binary(max_size=120), min_size=8, max_size=8))
def test_any_answers_are_values_or_violations(answers: list[bytes]) -> None:
    rest = iter(answers * 9000)
    guest = TdispRequester(lambda _data: next(rest), FUNCTION)
    for call in (lambda: guest.negotiate(LockFlag(0)), lambda: guest.lock(LockFlag(0), 0), guest.report, guest.start,
                 guest.state, guest.stop):
        with pytest.raises(TdispViolation):
            call()


@given(st.binary(max_size=80))
def test_any_answer_about_keys_is_refused(data: bytes) -> None:
    with pytest.raises(TdispViolation):
        key_stream(lambda _data: data, STREAM, IdeStream(STREAM), os.urandom)


@given(st.binary(max_size=80), st.sampled_from((None, SESSION, SESSION + 1)))
def test_any_key_message_is_answered_or_dropped(data: bytes, session: int | None) -> None:
    world = World()
    world.set_keys()
    answer = world.port.respond(session, data)
    assert answer is None or session is not None
    if answer is not None:
        ide_km.decode(answer)


@pytest.mark.parametrize(("data", "status"), [
    (bytes((2, 0, 0, STREAM, 0, 0, 0)) + bytes(39), ide_km.ProgramStatus.INCORRECT_LENGTH),
    (bytes((2, 0, 0, STREAM, 0, 0, 1)) + bytes(40), ide_km.ProgramStatus.UNSUPPORTED_PORT_INDEX),
    (bytes((2, 0, 0, 9, 0, 0, 0)) + bytes(40), ide_km.ProgramStatus.UNSUPPORTED_VALUE),
    (bytes((2, 0, 0, STREAM, 0, 0x30, 0)) + bytes(40), ide_km.ProgramStatus.UNSUPPORTED_VALUE),
    (bytes((2, 0, 0, STREAM, 0, 0, 0)) + bytes(40), ide_km.ProgramStatus.UNSPECIFIED_FAILURE)])
def test_a_key_that_can_not_be_is_refused(world: World, data: bytes, status: ide_km.ProgramStatus) -> None:
    answer = ide_km.decode(world.keys(data))
    assert isinstance(answer, Acknowledge)
    assert answer.status == status
