"""The socket device: states, credit, shutdown, messages, and guests that break the rules."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chamber.device.vsock import GUEST_CID, VsockDevice
from chamber.device.vsock_connection import BUFFER, MESSAGE, HostEnd
from chamber.device.vsock_service import CALL_PORT, ECHO_PORT, GREETING, EchoEnd, Services
from chamber.wire.virtio import Feature, bit
from chamber.wire.vsock import (
    CONFIG,
    HOST_CID,
    PORT_ANY,
    RX_QUEUE,
    TX_QUEUE,
    SeqFlag,
    ShutdownFlag,
    VsockFeature,
    VsockOp,
    VsockType,
)
from tests.device.vsock_guest import ALLOC, Guest

if TYPE_CHECKING:
    from collections.abc import Callable

OP = VsockOp
SEQ = VsockType.SEQPACKET


class Recorder(HostEnd):
    """A host's end that tests act for."""

    def __init__(self) -> None:
        self.heard: list[bytes] = []
        self.told: list[str] = []
        self.keep = False
        self.supply = b""
        self.asked: list[int] = []

    def opened(self) -> None:
        self.told.append("opened")

    def received(self, data: bytes) -> None:
        self.heard.append(data)
        if not self.keep:
            self.connection.consume(len(data))

    def fill(self, space: int) -> None:
        self.asked.append(space)
        data, self.supply = self.supply[:space], self.supply[space:]
        self.connection.send(data)

    def finished(self) -> None:
        self.told.append("finished")

    def unheard(self) -> None:
        self.told.append("unheard")

    def closed(self, *, graceful: bool) -> None:
        self.told.append("closed in order" if graceful else "closed")


class Clock:
    """Keeps what is scheduled until a test says that time passes."""

    def __init__(self, device: VsockDevice) -> None:
        self.due: list[tuple[float, Callable[[], None]]] = []
        device.schedule = lambda delay, call: self.due.append((delay, call))

    def tick(self) -> None:
        due, self.due = self.due, []
        for _, call in due:
            call()


def make(**options: int) -> tuple[Guest, list[Recorder]]:
    """A guest whose host has recorders on port 9 and echo on port 7."""
    ends: list[Recorder] = []

    def record() -> Recorder:
        ends.append(Recorder())
        return ends[-1]

    device = VsockDevice([Services({9: record}), Services({ECHO_PORT: EchoEnd})])
    return Guest(device, **options), ends


def test_config_says_the_guests_cid() -> None:
    device = VsockDevice(guest_cid=77)
    assert CONFIG.get(device.read_config(0, 8), "guest_cid") == 77
    assert VsockDevice().read_config(0, 16) == GUEST_CID.to_bytes(16, "little")


def test_a_stream_echoes() -> None:
    guest, _ = make()
    guest.send(OP.REQUEST, 7)
    (header, data), = guest.packets()
    assert (header.src_cid, header.dst_cid, header.src_port, header.dst_port) == (HOST_CID, 3, 7, 1000)
    assert (header.op, header.type, header.buf_alloc, header.fwd_cnt, data) == (OP.RESPONSE, 1, BUFFER, 0, b"")
    guest.send(OP.RW, 7, data=b"hello")
    (header, data), = guest.packets()
    assert (header.op, header.len, data) == (OP.RW, 5, b"hello")
    assert header.fwd_cnt in {0, 5}
    guest.send(OP.SHUTDOWN, 7, flags=3, fwd=5)
    assert guest.ops() == [OP.RST]
    assert guest.device.connections == {}
    assert guest.device.violations == []


def test_nobody_listens() -> None:
    guest, _ = make()
    guest.send(OP.REQUEST, 8)
    (header, _), = guest.packets()
    assert (header.op, header.src_port, header.dst_port) == (OP.RST, 8, 1000)
    guest.send(OP.REQUEST, PORT_ANY)
    assert guest.ops() == [OP.RST]


def test_big_data_fills_the_buffers_that_there_are_with_one_interrupt() -> None:
    guest, ends = make(buffers=8)
    guest.connect(9)
    before = guest.queues[RX_QUEUE].interrupts
    ends[0].supply = bytes(range(256)) * 64
    ends[0].connection.poke()
    assert guest.queues[RX_QUEUE].interrupts == before + 1
    packets = guest.packets()
    assert [h.len for h, _ in packets] == [4096] * 4
    assert b"".join(d for _, d in packets) == bytes(range(256)) * 64


def test_small_pieces_of_a_stream_travel_together() -> None:
    guest, ends = make(buffers=1)
    guest.connect(9)
    ends[0].connection.send(b"first")  # takes the one buffer
    for letter in b"abcdef":
        ends[0].connection.send(bytes([letter]) * 1000)
    assert [d[:1] + d[-1:] for _, d in guest.packets()] == [b"ft", b"ae"]
    assert [len(d) for _, d in guest.packets()] == [6000 - 4096]


def test_connections_take_turns() -> None:
    guest, ends = make()
    for local in (1, 2, 3):
        guest.connect(9, local=local)
    for end in ends:
        end.supply = b"x" * 12288

    def all_at_once() -> None:
        for end in ends:
            end.connection.poke()

    guest.device._in_one_go(all_at_once)
    assert [h.dst_port for h, _ in guest.packets()] == [1, 2, 3] * 3


def test_the_guest_is_given_credit_as_the_host_consumes() -> None:
    guest, ends = make()
    guest.connect(9)
    end, = ends
    end.keep = True
    for _ in range(BUFFER >> 16):
        guest.send(OP.RW, 9, data=b"d" * 65536)
    assert guest.ops() == []
    end.connection.consume(BUFFER // 2 - 1)
    assert guest.ops() == []
    end.connection.consume(1)
    (header, _), = guest.packets()
    assert (header.op, header.fwd_cnt, header.buf_alloc) == (OP.CREDIT_UPDATE, BUFFER // 2, BUFFER)
    guest.send(OP.CREDIT_REQUEST, 9)
    assert guest.ops() == [OP.CREDIT_UPDATE]


def test_more_than_the_credit_ends_the_connection() -> None:
    guest, ends = make()
    guest.connect(9)
    ends[0].keep = True
    for _ in range(BUFFER >> 16):
        guest.send(OP.RW, 9, data=b"d" * 65536)
    guest.send(OP.RW, 9, data=b"x")
    assert guest.ops() == [OP.RST]
    assert ends[0].told == ["opened", "closed"]
    assert sum(map(len, ends[0].heard)) == BUFFER
    assert "no more is sent than the receiver has space for" in str(guest.device.violations[0])


def test_the_host_waits_for_the_guests_credit_and_asks_for_it_once() -> None:
    guest, ends = make()
    guest.connect(9, alloc=5000)
    end, = ends
    end.supply = b"s" * 12000
    end.connection.poke()
    assert [(h.op, h.len) for h, _ in guest.packets()] == [(OP.RW, 4096), (OP.RW, 904)]
    guest.send(OP.CREDIT_UPDATE, 9, alloc=5000, fwd=0)
    end.connection.send(b"more")
    assert guest.ops() == [OP.CREDIT_REQUEST]
    guest.send(OP.CREDIT_UPDATE, 9, alloc=5000, fwd=0)
    assert guest.ops() == []
    guest.send(OP.CREDIT_UPDATE, 9, alloc=5000, fwd=5000)
    assert sum(h.len for h, _ in guest.packets()) == 5000
    guest.send(OP.CREDIT_UPDATE, 9, alloc=0xFFFFFFFF, fwd=10000)
    assert sum(h.len for h, _ in guest.packets()) == 2004


def test_a_guest_that_makes_its_buffer_smaller_than_what_is_under_way_gets_no_more() -> None:
    guest, ends = make()
    guest.connect(9, alloc=5000)
    ends[0].connection.send(b"s" * 4000)
    guest.packets()
    guest.send(OP.CREDIT_UPDATE, 9, alloc=100, fwd=0)
    ends[0].connection.send(b"s" * 10)
    assert guest.ops() == [OP.CREDIT_REQUEST]


@pytest.mark.parametrize(("fwd", "fine"), [(4, True), (2, True), (5, False), (0xFFFFFFFF, True), (0x7FFFFFFF, False)])
def test_counts_of_forwarded_bytes(fwd: int, fine: bool) -> None:
    guest, ends = make()
    guest.connect(9)
    ends[0].connection.send(b"1234")
    guest.packets()
    guest.send(OP.CREDIT_UPDATE, 9, fwd=3)
    guest.send(OP.CREDIT_UPDATE, 9, fwd=fwd)
    assert guest.ops() == ([] if fine else [OP.RST])


def test_half_closed_by_the_guest() -> None:
    guest, ends = make()
    guest.connect(9)
    guest.send(OP.SHUTDOWN, 9, flags=ShutdownFlag.SEND)
    ends[0].connection.send(b"still heard")
    assert [d for _, d in guest.packets()] == [b"still heard"]
    ends[0].connection.finish()
    (header, _), = guest.packets()
    assert (header.op, header.flags) == (OP.SHUTDOWN, ShutdownFlag.SEND)
    guest.send(OP.SHUTDOWN, 9, flags=ShutdownFlag.BOTH, fwd=11)
    assert guest.ops() == [OP.RST]
    assert ends[0].told == ["opened", "finished", "closed in order"]
    assert guest.device.violations == []


def test_a_guest_that_listens_no_more_is_sent_nothing() -> None:
    guest, ends = make()
    guest.connect(9)
    guest.send(OP.SHUTDOWN, 9, flags=ShutdownFlag.RECEIVE)
    ends[0].connection.send(b"unheard")
    assert guest.ops() == []
    guest.send(OP.RW, 9, data=b"still said")
    assert ends[0].heard == [b"still said"]
    assert ends[0].told == ["opened", "unheard"]


def test_data_after_shutdown_ends_the_connection() -> None:
    guest, ends = make()
    guest.connect(9)
    guest.send(OP.SHUTDOWN, 9, flags=ShutdownFlag.SEND)
    guest.send(OP.RW, 9, data=b"late")
    assert guest.ops() == [OP.RST]
    assert ends[0].heard == []


def test_the_host_hangs_up_and_the_guest_answers_with_rst() -> None:
    guest, ends = make()
    guest.connect(9)
    ends[0].connection.send(b"bye")
    ends[0].connection.hang_up()
    packets = guest.packets()
    assert [(h.op, h.flags) for h, _ in packets] == [(OP.RW, 0), (OP.SHUTDOWN, 3)]
    guest.send(OP.RW, 9, data=b"nobody hears this", fwd=3)
    guest.send(OP.RST, 9)
    assert guest.ops() == []
    assert ends[0].heard == []
    assert guest.device.connections == {}
    assert guest.device.violations == []


def test_patience_with_a_guest_that_does_not_hang_up() -> None:
    guest, ends = make()
    clock = Clock(guest.device)
    guest.connect(9)
    ends[0].connection.hang_up()
    assert guest.ops() == [OP.SHUTDOWN]
    for _ in range(7):
        clock.tick()
    assert guest.ops() == []
    clock.tick()
    assert guest.ops() == [OP.RST]
    clock.tick()
    assert clock.due == []
    assert guest.device.connections == {}


def test_the_host_calls() -> None:
    guest, _ = make()
    guest.device.host_action("call")
    (header, _), = guest.packets()
    assert (header.op, header.dst_port, header.src_cid, header.dst_cid) == (OP.REQUEST, CALL_PORT, HOST_CID, 3)
    guest.send(OP.RESPONSE, header.src_port, local=CALL_PORT)
    assert b"".join(d for _, d in guest.packets()) == GREETING
    guest.send(OP.RW, header.src_port, local=CALL_PORT, data=b"and echo", fwd=len(GREETING))
    (echo, data), = guest.packets()
    assert (data, echo.op) == (b"and echo", OP.RW)
    guest.send(OP.CREDIT_REQUEST, header.src_port, local=CALL_PORT, fwd=len(GREETING) + 8)
    (update, _), = guest.packets()
    assert update.fwd_cnt == 8


def test_a_call_that_is_refused_or_not_answered_ends() -> None:
    guest, _ = make()
    clock = Clock(guest.device)
    refused, silent = Recorder(), Recorder()
    for end in (refused, silent):
        assert guest.device.dial(5, VsockType.STREAM, end) is not None
    first, second = (h for h, _ in guest.packets())
    assert first.src_port != second.src_port
    guest.send(OP.RST, first.src_port, local=5)
    assert refused.told == ["closed"]
    for _ in range(2):
        clock.tick()
    assert silent.told == ["closed"]
    assert guest.ops() == [OP.RST]


def test_messages_keep_their_boundaries() -> None:
    guest, ends = make()
    guest.connect(9, kind=SEQ)
    guest.send(OP.RW, 9, kind=SEQ, data=b"first ")
    guest.send(OP.RW, 9, kind=SEQ, data=b"half", flags=SeqFlag.EOM | SeqFlag.EOR)
    guest.send(OP.RW, 9, kind=SEQ, data=b"second", flags=SeqFlag.EOM)
    assert ends[0].heard == [b"first half", b"second"]
    ends[0].connection.send(b"a" * 5000)
    ends[0].connection.send(b"b")
    assert [(len(d), h.flags) for h, d in guest.packets()] == [(4096, 0), (904, 1), (1, 1)]


def test_a_message_goes_out_when_there_is_room_for_all_of_it() -> None:
    guest, ends = make()
    guest.connect(9, kind=SEQ, alloc=6000)
    for _ in range(2):
        ends[0].connection.send(b"m" * 4000)
    assert [(h.op, h.len) for h, _ in guest.packets()] == [(OP.RW, 4000), (OP.CREDIT_REQUEST, 0)]
    guest.send(OP.CREDIT_UPDATE, 9, kind=SEQ, alloc=6000, fwd=4000)
    assert [h.len for h, _ in guest.packets()] == [4000]
    ends[0].connection.send(b"m" * 6001)
    assert guest.ops() == [OP.RST]


def test_a_supply_of_messages_is_asked_for_no_more_than_the_limit() -> None:
    guest, ends = make()
    guest.connect(9, kind=SEQ, alloc=0xFFFFFFFF)
    ends[0].supply = bytes(MESSAGE + 10)
    ends[0].connection.poke()
    guest.packets()
    assert ends[0].asked[0] == MESSAGE
    assert len(ends[0].supply) == 10


BROKEN: dict[str, Callable[[Guest], None]] = {
    "request twice": lambda g: g.send(OP.REQUEST, 9),
    "response not asked for": lambda g: g.send(OP.RESPONSE, 9),
    "another type": lambda g: g.send(OP.RW, 9, kind=SEQ, data=b"x"),
    "no type": lambda g: g.send(OP.RW, 9, kind=0, data=b"x"),
    "op invalid": lambda g: g.send(OP.INVALID, 9),
    "op unknown": lambda g: g.send(99, 9),
    "shutdown of nothing": lambda g: g.send(OP.SHUTDOWN, 9, flags=0),
    "shutdown of unknown flags": lambda g: g.send(OP.SHUTDOWN, 9, flags=7),
    "less data than said": lambda g: g.send(OP.RW, 9, data=b"x", length=100),
    "length beyond all": lambda g: g.send(OP.RW, 9, data=b"x", length=0xFFFFFFFF),
}


@pytest.mark.parametrize("what", BROKEN)
def test_a_broken_rule_ends_the_connection_and_nothing_else(what: str) -> None:
    guest, ends = make()
    guest.connect(9)
    guest.connect(9, local=1001)
    BROKEN[what](guest)
    (header, _), = guest.packets()
    assert (header.op, header.dst_port) == (OP.RST, 1000)
    assert ends[0].told == ["opened", "closed"]
    assert len(guest.device.violations) == 1
    guest.send(OP.RW, 9, data=b"the other one lives", local=1001)
    assert ends[1].heard == [b"the other one lives"]


def test_what_belongs_to_no_connection_is_answered_with_rst_but_rst_is_not() -> None:
    guest, _ = make()
    for op in (OP.RW, OP.RESPONSE, OP.SHUTDOWN, OP.CREDIT_UPDATE, 99):
        guest.send(op, 9)
        assert guest.ops() == [OP.RST]
    guest.send(OP.RST, 9)
    guest.send(OP.REQUEST, 9, kind=7)
    (header, _), = guest.packets()
    assert (header.op, header.type) == (OP.RST, 7)


@pytest.mark.parametrize(("src", "dst"), [(4, 2), (HOST_CID, 2), (3, 1), (3, 3), ((1 << 32) + 3, 2)])
def test_others_names_are_no_packets_of_the_guest(src: int, dst: int) -> None:
    guest, ends = make()
    guest.connect(9)
    guest.send(OP.RST, 9, src=src, dst=dst)
    assert guest.ops() == []
    assert ends[0].told == ["opened"]
    assert len(guest.device.violations) == 1


def test_short_packets() -> None:
    guest, _ = make()
    guest.send_raw(b"short")
    assert "44 bytes" in str(guest.device.violations[0])
    guest.connect(7)


def test_socket_types_are_as_negotiated() -> None:
    stream, seqpacket, explicit = (bit(f) for f in VsockFeature)
    base = bit(Feature.VERSION_1)
    for features, streams, messages in ((0, True, False), (seqpacket, True, True), (explicit | seqpacket, False, True),
                                        (explicit | stream, True, False), (explicit, False, False)):
        guest = Guest(VsockDevice(), features=base | features)
        for kind, allowed in ((VsockType.STREAM, streams), (SEQ, messages)):
            guest.send(OP.REQUEST, ECHO_PORT, kind=kind, local=kind)
            assert guest.ops() == [OP.RESPONSE if allowed else OP.RST]
            assert (guest.device.dial(1, kind, HostEnd()) is not None) == allowed
            guest.packets()


def test_the_transport_is_reset() -> None:
    guest, ends = make()
    guest.connect(9)
    guest.device.host_action("reset")
    assert guest.events() == [bytes(4)]
    assert guest.ops() == []
    assert ends[0].told == ["opened", "closed"]
    assert CONFIG.get(guest.device.read_config(0, 8), "guest_cid") == 4
    guest.send(OP.RW, 9, data=b"old", src=3)
    assert guest.ops() == []
    guest.send(OP.REQUEST, 9, src=4)
    assert guest.ops() == [OP.RESPONSE]


def test_an_event_waits_for_a_buffer_and_is_told_once() -> None:
    guest, _ = make()
    for _ in range(4):
        guest.device.host_action("reset")
    assert len(guest.events()) == 4
    for _ in range(3):
        guest.device.host_action("reset")
    guest.add(2, [], [4])
    guest.add(2, [], [4])
    guest.notify(2)
    assert guest.events() == [bytes(4)]


def test_a_new_driver_finds_no_old_connection() -> None:
    guest, ends = make()
    guest.connect(9)
    guest.device.accept_features(guest.device.features)
    assert ends[0].told == ["opened", "closed"]
    guest.connect(9)
    guest.device.reset()
    assert ends[1].told == ["opened", "closed"]


def test_queues_that_come_back_at_once_cost_nothing_and_queues_that_stay_away_end_all() -> None:
    guest, ends = make()
    clock = Clock(guest.device)
    guest.connect(9)
    device = guest.device
    queue = guest.queues[TX_QUEUE]
    base = device.stop_queue(TX_QUEUE)
    device.start_queue(TX_QUEUE, guest.memory, size=queue.size, interrupt=queue.interrupted, base=base, **queue.areas)
    clock.tick()
    guest.send(OP.RW, 9, data=b"there")
    assert ends[0].heard == [b"there"]
    device.stop_queue(TX_QUEUE)
    clock.tick()
    assert ends[0].told == ["opened", "closed"]


def test_connections_are_limited() -> None:
    guest, _ = make()
    for local in range(1024):
        guest.send(OP.REQUEST, 9, local=local)
        guest.packets()
    assert len(guest.device.connections) == 1024
    guest.send(OP.REQUEST, 9, local=5000)
    assert guest.ops() == [OP.RST]
    assert guest.device.dial(1, VsockType.STREAM, HostEnd()) is None


def test_a_guest_that_never_listens_fills_no_memory() -> None:
    guest, _ = make(buffers=0)
    for local in range(300):
        guest.send(OP.RW, 9, local=local)
    assert len(guest.device._resets) == 256
    assert len(guest.device.violations) == 44
    guest.send(OP.REQUEST, 7)
    for _ in range(BUFFER >> 16):
        guest.send(OP.RW, 7, data=b"e" * 65536)
    assert guest.device.violations[-1].spec == "5.10.6.1"
    guest.send(OP.RW, 7, data=b"e")
    assert guest.device.violations[-1].spec == "5.10.6.3"


def test_a_buffer_without_room_for_a_header_breaks_the_queue() -> None:
    guest = Guest(VsockDevice(), buffers=0)
    guest.add(RX_QUEUE, [], [43])
    guest.send(OP.REQUEST, 7)
    assert guest.device.queues[RX_QUEUE].broken is not None


packets = st.tuples(
    st.sampled_from((3, 3, 3, 3, 2, 0, 1 << 40)), st.sampled_from((2, 2, 2, 2, 3)), st.integers(1, 3),
    st.sampled_from((7, 9, 9, 11)), st.sampled_from((0, 1, 44, 5000, 1 << 18, 0xFFFFFFFF)),
    st.sampled_from((1, 1, 2, 0, 3)), st.integers(0, 8), st.sampled_from((0, 1, 2, 3, 4)),
    st.sampled_from((0, 1, 5000, ALLOC, 0xFFFFFFFF)), st.sampled_from((0, 1, 44, 5000, 0xFFFFFFFF)))


@given(st.lists(st.tuples(packets, st.binary(max_size=64)), max_size=40))
@settings(max_examples=60, deadline=None)
def test_any_packets(script: list[tuple[tuple[int, ...], bytes]]) -> None:
    guest, ends = make()
    for (src, dst, local, port, length, kind, op, flags, alloc, fwd), data in script:
        guest.send(op, port, data=data, local=local, kind=kind, flags=flags, alloc=alloc, fwd=fwd, length=length,
                   src=src, dst=dst)
        for end in ends:
            end.connection.send(b"from the host")
        for header, _ in guest.packets():
            assert (header.src_cid, header.dst_cid) == (HOST_CID, 3)
    assert len(guest.device.connections) <= 12
    guest.device.close()
    assert all(end.told[-1].startswith("closed") for end in ends)
