"""The socket driver: an honest host serves it, and no packet whatever makes it misuse memory or hang."""

from __future__ import annotations

from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Final

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chamber.device.hooks import Hooks
from chamber.device.vsock import VsockDevice
from chamber.device.vsock_service import CALL_PORT, ECHO_PORT
from chamber.guest.driver import DeviceTimeout, Refused
from chamber.guest.drivers.vsock import VsockDriver
from chamber.guest.drivers.vsock_connection import BACKLOG, BUFFER
from chamber.guest.machine import GuestMachine
from chamber.guest.profile import PROFILES, UNTRUSTED
from chamber.guest.untrusted import DeviceViolation
from chamber.guest.virtqueue import QueueDead, QueueFull
from chamber.lab.model_transport import ModelTransport
from chamber.lab.model_use.vsock import STIMULI
from chamber.wire.virtio import bit
from chamber.wire.vsock import (
    EVENT,
    EVENT_QUEUE,
    HDR_SIZE,
    HOST_CID,
    RX_QUEUE,
    Header,
    SeqFlag,
    ShutdownFlag,
    VsockFeature,
    VsockOp,
    VsockType,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from chamber.device.chain import Chain
    from chamber.device.queue import DeviceQueue

OP: Final = VsockOp
STREAM, SEQ = VsockType.STREAM, VsockType.SEQPACKET
GONE: Final = (DeviceViolation, DeviceTimeout, Refused, QueueDead, QueueFull)


class Liar(Hooks):
    """Changes packets to the guest, and sends some of its own."""

    def __init__(self) -> None:
        self.lie: Callable[[bytes], bytes] | None = None

    def response(self, queue: DeviceQueue, chain: Chain, data: bytes) -> bytes:
        return data if self.lie is None or queue.index != RX_QUEUE else self.lie(data)

    def say(self, packet: bytes, queue: int = RX_QUEUE, claim: int | None = None) -> None:
        """Put a packet, or an event, into the next buffer."""
        target = self.device.queues[queue]
        chain = target.pop() if target.started else None
        if chain is not None:
            written = chain.write(packet[:chain.writable_size])
            target.push(chain.head, written if claim is None else claim)
            self.device.flush(target)


class Lab:
    """A hardened driver and its host."""

    def __init__(self, driver: VsockDriver, device: VsockDevice, liar: Liar) -> None:
        self.driver = driver
        self.device = device
        self.liar = liar

    def say(self, op: int, local: int, remote: int = ECHO_PORT, data: bytes = b"", *, kind: int = STREAM,
            flags: int = 0, fwd: int = 0, **fields: int) -> None:
        """Say something on a connection that the honest device does not."""
        header = Header(HOST_CID, self.driver.cid, remote, local, len(data), kind, op, flags, 1 << 18, fwd)
        self.liar.say(header._replace(**fields).build() + data)
        self.driver.machine.settle(0.01)

    def memory_is_sound(self) -> None:
        """Remove the driver: nothing is left, and nothing was misused."""
        machine = self.driver.machine
        with suppress(DeviceViolation):
            self.driver.remove()
        machine.settle(1)
        machine.heap.check_all()
        assert not machine.heap.reports


@contextmanager
def lab(profile: str = "hardened", features: int | None = None) -> Iterator[Lab]:
    machine = GuestMachine(PROFILES[profile], 1)
    liar = Liar()
    device = VsockDevice(hooks=liar, features=features, first_port=1 << 30)
    driver = VsockDriver(machine, ModelTransport(machine, device))
    try:
        driver.probe()
        lab = Lab(driver, device, liar)
        yield lab
        lab.memory_is_sound()
    finally:
        device.close()
        machine.close()


@pytest.mark.parametrize("profile", UNTRUSTED)
@pytest.mark.parametrize("stimulus", STIMULI)
def test_stimuli_leave_nothing(profile: str, stimulus: str) -> None:
    with lab(profile) as host:
        STIMULI[stimulus](host.driver, host.driver.machine, host.device.host_action)
        # Without checks, what the device has ended stays in the table, as a trap for those who believe it.
        assert not [s for s in host.driver._sockets.values() if s.memory.live or profile == "hardened"]
        assert not host.driver._listeners
        assert not host.device.connections
        assert not host.device.violations


def test_streams_and_messages() -> None:
    with lab() as host:
        driver = host.driver
        stream, messages = driver.connect(ECHO_PORT), driver.connect(ECHO_PORT, SEQ)
        for size in (1, 1024, BUFFER - 1):
            data = bytes(i & 0xFF for i in range(size))
            driver.send(stream, data)
            driver.send(messages, data)
            assert driver.receive_message(messages) == data
            assert driver.receive(stream, size) == data
        driver.finish(stream, ShutdownFlag.SEND)
        assert driver.receive(stream, 10) == b""
        driver.close(stream)
        driver.close(messages)


def test_what_nobody_listens_on_is_refused() -> None:
    with lab() as host:
        with pytest.raises(Refused, match="nobody listens on port 99"):
            host.driver.connect(99)
        listener = host.driver.listen(CALL_PORT)
        with pytest.raises(Refused, match="is taken"):
            host.driver.listen(CALL_PORT)
        host.driver.close(listener)
        with pytest.raises(DeviceTimeout, match="nobody connects"):
            host.driver.accept(host.driver.listen(CALL_PORT))
    with lab(features=bit(VsockFeature.STREAM)) as host, pytest.raises(Refused, match="no seqpacket"):
        host.driver.connect(ECHO_PORT, SEQ)


def test_no_more_calls_wait_than_there_is_room_for() -> None:
    with lab() as host:
        listener = host.driver.listen(CALL_PORT)
        for _ in range(3 * BACKLOG):
            host.device.host_action("call")
            host.driver.machine.settle(0.01)
        assert len(listener.pending) == BACKLOG
        assert len(host.device.connections) == BACKLOG
        for _ in range(BACKLOG):
            host.driver.close(host.driver.accept(listener))


def test_the_end_of_a_stream_is_told_from_its_loss() -> None:
    with lab() as host:
        socket = host.driver.connect(ECHO_PORT)
        host.driver.send(socket, b"half")
        host.say(OP.RST, socket.local, fwd=4)
        assert host.driver.receive(socket, 4) == b"half"
        with pytest.raises(Refused, match="ended before"):
            host.driver.receive(socket, 4)
        host.driver.close(socket)


_FWD: Final = 4
_CONNECTED: Final = {
    "no more data than there is space for": lambda host, s: [
        host.say(OP.RW, s.local, data=b"x" * 1024, fwd=_FWD) for _ in range(BUFFER // 1024 + 1)],
    "fwd_cnt is no more than was sent": lambda host, s: host.say(OP.CREDIT_UPDATE, s.local, fwd=_FWD + 1),
    "a response answers a request, once": lambda host, s: host.say(OP.RESPONSE, s.local, fwd=_FWD),
    "packets of a connection have its type": lambda host, s: host.say(OP.RW, s.local, data=b"x", kind=SEQ),
    "SHUTDOWN says RECEIVE, SEND or both": lambda host, s: host.say(OP.SHUTDOWN, s.local, flags=4),
    "a packet fits the state of its connection": lambda host, s: host.say(OP.REQUEST, s.local, fwd=_FWD),
    "data comes on a connection, before SHUTDOWN": lambda host, s: [
        host.say(OP.SHUTDOWN, s.local, flags=ShutdownFlag.SEND), host.say(OP.RW, s.local, data=b"x")],
    "a packet has the data that its header says": lambda host, s: host.say(OP.RW, s.local, data=b"x", len=2),
    "an operation is one of those defined": lambda host, s: host.say(8, s.local),
    "packets come from the host": lambda host, s: host.say(OP.RST, s.local, src_cid=5),
    "packets are for the guest": lambda host, s: host.say(OP.RST, s.local, dst_cid=5),
    "a packet starts with a header": lambda host, _s: host.liar.say(bytes(HDR_SIZE), claim=HDR_SIZE - 1),
    "an event is 4 bytes": lambda host, _s: host.liar.say(bytes(EVENT.size), EVENT_QUEUE, claim=3),
    "an event is one of those defined": lambda host, _s: host.liar.say(b"\1\0\0\0", EVENT_QUEUE),
}
"""Lies on a connection over which 4 bytes went, by the rule that they break."""


@pytest.mark.parametrize("rule", _CONNECTED)
def test_lies_are_refused_and_latch(rule: str) -> None:
    with lab() as host:
        socket = host.driver.connect(ECHO_PORT)
        host.driver.send(socket, b"data")
        assert host.driver.receive(socket, 4) == b"data"
        _CONNECTED[rule](host, socket)  # type: ignore[no-untyped-call]
        host.driver.machine.settle(0.01)
        assert host.driver.broken is not None
        wanted = "no more is sent than" if rule.startswith("no more data") else rule
        assert wanted in str(host.driver.broken)
        for call in (lambda: host.driver.receive(socket, 1), lambda: host.driver.connect(ECHO_PORT)):
            with pytest.raises(DeviceViolation):
                call()


def test_a_context_id_is_none_of_the_reserved_ones() -> None:
    for cid in (0, 1, 2, 0xFFFFFFFF, 1 << 32, (1 << 64) - 1):
        machine = GuestMachine(PROFILES["hardened"], 1)
        device = VsockDevice(guest_cid=cid)
        with pytest.raises(DeviceViolation, match="not a reserved one"):
            VsockDriver(machine, ModelTransport(machine, device)).probe()
        machine.close()


def test_message_flags_are_checked() -> None:
    with lab() as host:
        socket = host.driver.connect(ECHO_PORT, SEQ)
        host.say(OP.RW, socket.local, data=b"part", kind=SEQ)
        assert not socket.messages
        host.say(OP.RW, socket.local, data=b"end", kind=SEQ, flags=SeqFlag.EOM)
        assert host.driver.receive_message(socket) == b"partend"
        host.say(OP.RW, socket.local, data=b"x", kind=SEQ, flags=4)
        with pytest.raises(DeviceViolation, match="flags of RW"):
            host.driver.receive_message(socket)


_u32 = st.one_of(st.integers(0, 4), st.just(0xFFFFFFFF), st.integers(0, 0xFFFFFFFF))
_packets = st.builds(
    lambda op, kind, flags, alloc, fwd, size, length: (op, kind, flags, alloc, fwd, b"\xA5" * size, length),
    st.integers(0, 8), st.sampled_from((STREAM, SEQ, 0, 3)), _u32, _u32, _u32, st.integers(0, 1200),
    st.one_of(st.none(), _u32))


@settings(max_examples=60, deadline=None)
@given(st.lists(_packets, max_size=8), st.sampled_from((STREAM, SEQ)), st.sampled_from(("open", "closed", "listening")))
def test_no_packet_on_a_connection_breaks_the_hardened_driver(
        packets: list[tuple[int, int, int, int, int, bytes, int | None]], kind: VsockType, where: str) -> None:
    with lab() as host:
        driver = host.driver
        listener = driver.listen(CALL_PORT, kind)
        socket = driver.connect(ECHO_PORT, kind)
        if where == "closed":
            driver.close(socket)
        for op, lie, flags, alloc, fwd, data, length in packets:
            local = CALL_PORT if where == "listening" else socket.local
            fields = {} if length is None else {"len": length}
            host.say(op, local, data=data, kind=lie, flags=flags, fwd=fwd, buf_alloc=alloc, **fields)
        for call in (lambda: driver.send(socket, b"words"), lambda: driver.receive(socket, 3),
                     lambda: driver.receive_message(socket), lambda: driver.accept(listener),
                     lambda: driver.close(socket), lambda: driver.connect(ECHO_PORT, kind)):
            with suppress(*GONE):
                if where != "closed" or socket.memory.live:
                    call()


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=100), st.booleans(), st.one_of(st.none(), st.integers(0, 5000)),
       st.sampled_from((RX_QUEUE, EVENT_QUEUE)))
def test_no_bytes_break_the_hardened_driver(data: bytes, changed: bool, claim: int | None, queue: int) -> None:
    with lab() as host:
        socket = host.driver.connect(ECHO_PORT)
        if changed:
            host.liar.lie = lambda packet: data + packet[len(data):]
        else:
            host.liar.say(data, queue, claim)
        for call in (lambda: host.driver.send(socket, b"words"), lambda: host.driver.receive(socket, 5),
                     lambda: host.driver.close(socket), lambda: host.driver.connect(ECHO_PORT)):
            with suppress(*GONE):
                if socket.memory.live:
                    call()
