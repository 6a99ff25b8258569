"""An encrypted link, with a hypervisor on it."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from chamber.platform.ide import PREFIX, TAG_SIZE, IdeFailure, IdeStream, Received, StreamState
from chamber.wire.ide_km import INITIAL_IFV, SubStream
from chamber.wire.tlp import Completion, MemoryRead, MemoryWrite, Packet

if TYPE_CHECKING:
    from collections.abc import Callable

_WRITE = MemoryWrite(0x100, 0x8000_0000, b"to the device")
_READ = MemoryRead(0x100, 1, 0x8000_0000, 4)
_ANSWER = Completion(0x200, 0x100, 1, b"four")


def _key(near: IdeStream, far: IdeStream, key_set: int = 0) -> None:
    for sender, receiver in ((near, far), (far, near)):
        for number in SubStream:
            key = os.urandom(32)
            receiver.program(number, transmit=False, key_set=key_set, key=key, ifv=INITIAL_IFV)
            sender.program(number, transmit=True, key_set=key_set, key=key, ifv=INITIAL_IFV)
            receiver.go(number, transmit=False, key_set=key_set)
            sender.go(number, transmit=True, key_set=key_set)


@pytest.fixture
def ends() -> tuple[IdeStream, IdeStream]:
    near, far = IdeStream(3), IdeStream(3)
    _key(near, far)
    return near, far


def test_packets_cross_and_cannot_be_read(ends: tuple[IdeStream, IdeStream]) -> None:
    near, far = ends
    assert near.state is StreamState.SECURE
    for packet, trusted in ((_WRITE, True), (_READ, False), (_WRITE, False)):
        data = near.send(packet, trusted=trusted)
        assert b"device" not in data
        assert far.receive(data) == Received(packet, trusted)
    assert near.receive(far.send(_ANSWER, trusted=True)) == Received(_ANSWER, trusted=True)


def test_the_same_packet_never_looks_the_same(ends: tuple[IdeStream, IdeStream]) -> None:
    near, _ = ends
    assert len({near.send(_WRITE, trusted=True) for _ in range(50)}) == 50


def _altered(at: int) -> Callable[[list[bytes]], list[bytes]]:
    return lambda sent: [sent[0][:at] + bytes((sent[0][at] ^ 1,)) + sent[0][at + 1:], *sent[1:]]


_ON_THE_PATH: dict[str, Callable[[list[bytes]], list[bytes]]] = {
    "dropped": lambda sent: sent[1:], "replayed": lambda sent: [sent[0], *sent],
    "reordered": lambda sent: [sent[1], sent[0], *sent[2:]], "truncated": lambda sent: [sent[0][:-1], *sent[1:]],
    "emptied": lambda sent: [b"", *sent[1:]],
    "payload": _altered(PREFIX.size + 12), "header": _altered(PREFIX.size + 8),
    "T bit": lambda sent: [bytes((sent[0][0], sent[0][1] ^ 2)) + sent[0][2:], *sent[1:]],
    "sub-stream": lambda sent: [bytes((sent[0][0], sent[0][1] ^ 0x10)) + sent[0][2:], *sent[1:]],
    "key set": lambda sent: [bytes((sent[0][0], sent[0][1] ^ 1)) + sent[0][2:], *sent[1:]],
    "count": _altered(2), "redirected": _altered(3), "prefix": _altered(0), "tag": _altered(-TAG_SIZE),
    "forged": lambda sent: [sent[0][:16] + bytes(len(sent[0]) - 16), *sent[1:]]}


@pytest.mark.parametrize("done", _ON_THE_PATH)
def test_what_a_hypervisor_does_on_the_path_ends_the_stream(ends: tuple[IdeStream, IdeStream], done: str) -> None:
    near, far = ends
    reasons: list[str] = []
    far.failed = reasons.append
    sent = [near.send(MemoryWrite(0x100, 0x8000_0000 + 16 * n, b"%16d" % n), trusted=True) for n in range(3)]
    got: list[Packet] = []
    with pytest.raises(IdeFailure):
        got.extend(far.receive(data).packet for data in _ON_THE_PATH[done](sent))
    assert all(isinstance(p, MemoryWrite) and p.data == b"%16d" % n for n, p in enumerate(got))
    assert far.state is StreamState.INSECURE
    assert len(reasons) == 1
    with pytest.raises(IdeFailure, match="Insecure"):
        far.receive(sent[-1])
    with pytest.raises(IdeFailure, match="Insecure"):
        far.send(_ANSWER, trusted=True)
    assert len(reasons) == 1


def test_a_dropped_last_write_shows_at_the_next_read(ends: tuple[IdeStream, IdeStream]) -> None:
    near, far = ends
    near.send(_WRITE, trusted=True)
    with pytest.raises(IdeFailure, match="did not come"):
        far.receive(near.send(_READ, trusted=True))


def test_a_write_may_overtake_a_read(ends: tuple[IdeStream, IdeStream]) -> None:
    near, far = ends
    read, write = near.send(_READ, trusted=True), near.send(_WRITE, trusted=True)
    assert far.receive(write).packet == _WRITE
    assert far.receive(read).packet == _READ


def test_what_one_end_sent_does_not_come_back_to_it(ends: tuple[IdeStream, IdeStream]) -> None:
    near, _ = ends
    with pytest.raises(IdeFailure, match="tag"):
        near.receive(near.send(_WRITE, trusted=True))


def test_another_stream_with_other_keys_takes_nothing(ends: tuple[IdeStream, IdeStream]) -> None:
    near, _ = ends
    other, far = IdeStream(3), IdeStream(3)
    _key(other, far)
    with pytest.raises(IdeFailure, match="tag"):
        far.receive(near.send(_WRITE, trusted=True))


def test_keys_are_changed_in_flight(ends: tuple[IdeStream, IdeStream]) -> None:
    near, far = ends
    before = near.send(_WRITE, trusted=True)
    for number in SubStream:
        key = os.urandom(32)
        far.program(number, transmit=False, key_set=1, key=key, ifv=INITIAL_IFV)
        near.program(number, transmit=True, key_set=1, key=key, ifv=INITIAL_IFV)
        far.go(number, transmit=False, key_set=1)
        near.go(number, transmit=True, key_set=1)
    after = near.send(_WRITE, trusted=True)
    assert far.receive(before).packet == far.receive(after).packet == _WRITE
    # The old key is gone: what was sent with it is of no use any more.
    with pytest.raises(IdeFailure):
        far.receive(before)


@pytest.mark.parametrize("size", [0, 16, 31, 33])
def test_a_key_of_another_size_is_refused(size: int) -> None:
    with pytest.raises(ValueError, match="no such key"):
        IdeStream(0).program(SubStream.POSTED, transmit=True, key_set=0, key=bytes(size), ifv=1)


def test_a_key_in_use_is_not_set_again(ends: tuple[IdeStream, IdeStream]) -> None:
    near, _ = ends
    with pytest.raises(ValueError, match="in use"):
        near.program(SubStream.POSTED, transmit=True, key_set=0, key=bytes(32), ifv=1)
    with pytest.raises(ValueError, match="in use"):
        near.go(SubStream.POSTED, transmit=True, key_set=0)
    with pytest.raises(ValueError, match="not set"):
        near.go(SubStream.POSTED, transmit=True, key_set=1)


def test_a_stopped_key_makes_the_stream_insecure_and_all_stopped_make_it_new(
        ends: tuple[IdeStream, IdeStream]) -> None:
    for end in ends:
        end.fail("the link was down")
        for number in SubStream:
            for transmit in (False, True):
                end.stop(number, transmit=transmit, key_set=0)
                assert end.state is StreamState.INSECURE
    _key(*ends)
    near, far = ends
    assert far.receive(near.send(_READ, trusted=True)).packet == _READ


def test_a_counter_that_is_used_up_ends_the_stream() -> None:
    near, far = IdeStream(0), IdeStream(0)
    _key(near, far)
    near.stop(SubStream.POSTED, transmit=True, key_set=0)
    near.program(SubStream.POSTED, transmit=True, key_set=0, key=bytes(32), ifv=(1 << 64) - 1)
    near.go(SubStream.POSTED, transmit=True, key_set=0)
    with pytest.raises(IdeFailure, match="used up"):
        near.send(_WRITE, trusted=True)
    assert near.state is StreamState.INSECURE


@given(st.binary(max_size=100))
def test_any_bytes_end_the_stream(data: bytes) -> None:
    near, far = IdeStream(3), IdeStream(3)
    _key(near, far)
    with pytest.raises(IdeFailure):
        far.receive(data)
    assert far.state is StreamState.INSECURE


class LinkMachine(RuleBasedStateMachine):
    """Whatever is sent, in either direction, with keys changed in between: it arrives, in order, or the stream ends."""

    @initialize()
    def start(self) -> None:
        self.ends = (IdeStream(9), IdeStream(9))
        _key(*self.ends)
        self.wire: list[list[tuple[Packet, bytes]]] = [[], []]
        self.key_set = 0

    @rule(side=st.integers(0, 1), kind=st.integers(0, 2), size=st.integers(1, 40), trusted=st.booleans())
    def send(self, side: int, kind: int, size: int, trusted: bool) -> None:
        packet: Packet = (MemoryWrite(1, 0x1000, bytes(size)), MemoryRead(1, 2, 0x1000, size),
                          Completion(2, 1, 2, bytes(size)))[kind]
        self.wire[side].append((packet, self.ends[side].send(packet, trusted=trusted)))

    @precondition(lambda self: any(self.wire))
    @rule()
    def deliver(self) -> None:
        side = 0 if self.wire[0] else 1
        packet, data = self.wire[side].pop(0)
        assert self.ends[1 - side].receive(data).packet == packet

    @precondition(lambda self: not any(self.wire))
    @rule()
    def rekey(self) -> None:
        self.key_set ^= 1
        _key(*self.ends, self.key_set)
        for number in range(3):
            packet: Packet = (_WRITE, _READ, _ANSWER)[number]
            for side in range(2):
                assert self.ends[1 - side].receive(self.ends[side].send(packet, trusted=True)).packet == packet

    @invariant()
    def both_are_secure(self) -> None:
        assert all(end.state is StreamState.SECURE for end in self.ends)


TestLinkMachine = LinkMachine.TestCase
