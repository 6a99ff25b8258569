"""The vhost-user back end, before front ends that behave, differ, lie and die."""

from __future__ import annotations

import contextlib
import os
import socket
import struct
from collections import deque
from functools import partial
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from chamber.attacks.lifecycle import QueueRefused
from chamber.device.catalogue import make_device
from chamber.link.channel import Channel, Gone
from chamber.link.eventloop import EventLoop
from chamber.link.listener import Backend
from chamber.wire.split import SplitLayout
from chamber.wire.vhost_user import (
    F_PROTOCOL_FEATURES,
    NEED_REPLY,
    U64,
    VRING_NO_FD,
    BackendRequest,
    ConfigSpace,
    FrontendRequest,
    MemoryRegion,
    MemoryTable,
    ProtocolFeature,
    SingleRegion,
    VringAddress,
    VringState,
    encode,
)
from chamber.wire.virtio import DeviceType, Feature, bit
from tests.link.frontend import DATA, MEMORY, PROTOCOL, USER, Frontend, Served

if TYPE_CHECKING:
    from pathlib import Path

R = FrontendRequest
INBAND = PROTOCOL | bit(ProtocolFeature.INBAND_NOTIFICATIONS)
SECTOR_7 = struct.pack("<Q", 7 ^ 0x63686D6272) * 64


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "device.sock"


def read_sector(front: Frontend, number: int) -> None:
    front.put(DATA, struct.pack("<IIQ", 0, 0, 7))
    front.offer(number, [(DATA, 16, False), (DATA + 512, 512, True), (DATA + 1024, 1, True)])


def assert_read(front: Frontend) -> None:
    assert front.get(DATA + 512, 512) == SECTOR_7
    assert front.get(DATA + 1024, 1) == b"\0"


@pytest.mark.parametrize("inband", [False, True], ids=["eventfd", "in-band"])
def test_a_sector_is_read_with_either_way_to_notify(path: Path, *, inband: bool) -> None:
    with Served(make_device(DeviceType.BLOCK), path), Frontend(path) as front:
        front.setup(INBAND if inband else PROTOCOL)
        calls, theirs = socket.socketpair()
        with calls, theirs:
            front.send(R.SET_BACKEND_REQ_FD, fds=(theirs.fileno(),))
            read_sector(front, 0)
            if inband:
                assert front.acked(R.VRING_KICK, VringState(0, 0)) == 0
                calls.settimeout(5)
                assert int.from_bytes(calls.recv(4), "little") == BackendRequest.VRING_CALL
            else:
                os.eventfd_write(front.kick, 1)
                front.wait_used(1)
                front.sync()
                assert os.eventfd_read(front.call) == 1
            assert_read(front)


def test_what_one_message_brings_about_is_told_in_one_piece_before_its_answer(
        path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    device = make_device(DeviceType.BLOCK)

    def notify(index: int, _data: int | None = None) -> bool:
        for _ in range(3):
            device.queues[index].interrupt()
        return False

    monkeypatch.setattr(device, "notify", notify)
    with Served(device, path), Frontend(path) as front:
        front.setup(INBAND)
        # Of such sockets a receiver gets what was sent at once.
        calls, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with calls, theirs:
            front.send(R.SET_BACKEND_REQ_FD, fds=(theirs.fileno(),))
            assert front.acked(R.VRING_KICK, VringState(0, 0)) == 0
            calls.setblocking(False)
            piece = calls.recv(1000)
            assert piece == 3 * encode(BackendRequest.VRING_CALL, VringState(0, 0))
            with pytest.raises(BlockingIOError):
                calls.recv(1000)


def test_a_kick_from_before_the_ring_ran_is_not_lost(path: Path) -> None:
    with Served(make_device(DeviceType.BLOCK), path), Frontend(path) as front:
        front.negotiate()
        front.send(R.SET_FEATURES, U64(bit(Feature.VERSION_1, F_PROTOCOL_FEATURES)))
        front.share()
        read_sector(front, 0)
        front.start()
        front.wait_used(1)
        assert_read(front)


def test_a_ring_is_polled_when_no_kick_comes(path: Path) -> None:
    with Served(make_device(DeviceType.BLOCK), path), Frontend(path) as front:
        front.setup()
        front.send(R.SET_VRING_KICK, U64(VRING_NO_FD))
        front.sync()
        read_sector(front, 0)
        front.wait_used(1)


def test_without_protocol_features_rings_are_enabled_by_set_features(path: Path) -> None:
    with Served(make_device(DeviceType.BLOCK), path), Frontend(path) as front:
        front.share()
        front.send(R.SET_FEATURES, U64(bit(Feature.VERSION_1)))
        front.send(R.SET_VRING_NUM, VringState(0, 16))
        front.send(R.SET_VRING_BASE, VringState(0, 0))
        read_sector(front, 0)
        front.send(R.SET_VRING_CALL, U64(0), (front.call,))
        layout = SplitLayout(16)
        front.send(R.SET_VRING_ADDR, VringAddress(0, 0, USER + 0x1000, USER + 0x1000 + layout.used_offset,
                                                  USER + 0x1000 + layout.avail_offset, 0))
        front.send(R.SET_VRING_KICK, U64(0), (front.kick,))
        front.wait_used(1)


def test_a_queue_that_is_refused_is_told_so_and_never_served(path: Path) -> None:
    attack = QueueRefused(0)
    with Served(make_device(DeviceType.BLOCK, hooks=attack), path), Frontend(path) as front:
        front.setup()
        layout = SplitLayout(16)
        address = VringAddress(0, 0, USER + 0x1000, USER + 0x1000 + layout.used_offset,
                               USER + 0x1000 + layout.avail_offset, 0)
        assert front.acked(R.SET_VRING_ADDR, address) == 1
        read_sector(front, 0)
        os.eventfd_write(front.kick, 1)
        front.sync()
        assert front.used() == 0
    assert set(attack.strikes) == {"queue 0 can't be set up"}


def test_a_stopped_ring_is_left_alone_and_goes_on_where_it_was(path: Path) -> None:
    with Served(make_device(DeviceType.BLOCK), path), Frontend(path) as front:
        front.setup()
        read_sector(front, 0)
        os.eventfd_write(front.kick, 1)
        front.wait_used(1)
        assert VringState.unpack(front.ask(R.GET_VRING_BASE, VringState(0, 0))) == VringState(0, 1)
        read_sector(front, 1)
        os.eventfd_write(front.kick, 1)
        front.sync()
        assert front.used() == 1
        front.start(base=1)
        front.wait_used(2)


def test_disabling_stops_and_enabling_goes_on(path: Path) -> None:
    with Served(make_device(DeviceType.BLOCK), path), Frontend(path) as front:
        front.setup()
        front.send(R.SET_VRING_ENABLE, VringState(0, 0))
        read_sector(front, 0)
        os.eventfd_write(front.kick, 1)
        front.sync()
        assert front.used() == 0
        front.send(R.SET_VRING_ENABLE, VringState(0, 1))
        front.wait_used(1)


def test_rings_set_up_again_while_they_run_start_anew(path: Path) -> None:
    """As User-Mode Linux does at each probe."""
    with Served(make_device(DeviceType.BLOCK), path), Frontend(path) as front:
        front.setup()
        for _ in range(300):
            front.put(0x1000, bytes(0x1000))
            front.share()
            front.start()
            read_sector(front, 0)
            os.eventfd_write(front.kick, 1)
            front.wait_used(1)
        assert len(os.listdir("/proc/self/fd")) < 100


def test_config_is_echoed_with_offset_size_and_flags(path: Path) -> None:
    with Served(make_device(DeviceType.BLOCK), path), Frontend(path) as front:
        front.negotiate()
        got = ConfigSpace.unpack(front.ask(R.GET_CONFIG, ConfigSpace(0, 1, bytes(12))))
        assert (got.offset, got.flags, len(got.data)) == (0, 1, 12)
        assert int.from_bytes(got.data[:8], "little") == (4 << 20) // 512
        beyond = ConfigSpace.unpack(front.ask(R.GET_CONFIG, ConfigSpace(250, 0, bytes(6))))
        assert beyond.data == bytes(6)


def test_memory_comes_and_goes_by_region(path: Path) -> None:
    with Served(make_device(DeviceType.BLOCK), path), Frontend(path) as front:
        front.negotiate(PROTOCOL | bit(ProtocolFeature.CONFIGURE_MEM_SLOTS))
        front.send(R.SET_FEATURES, U64(bit(Feature.VERSION_1, F_PROTOCOL_FEATURES)))
        assert U64.unpack(front.ask(R.GET_MAX_MEM_SLOTS)).value >= 8
        region = SingleRegion(MemoryRegion(0, MEMORY, USER, 0))
        assert front.acked(R.ADD_MEM_REG, region, (front.memory_fd,)) == 0
        front.start()
        read_sector(front, 0)
        os.eventfd_write(front.kick, 1)
        front.wait_used(1)
        assert front.acked(R.REM_MEM_REG, region) == 0
        assert front.acked(R.REM_MEM_REG, region) == 1
        read_sector(front, 1)
        os.eventfd_write(front.kick, 1)
        front.sync()
        assert front.used() == 1


def test_a_file_shorter_than_its_region_is_refused(path: Path) -> None:
    """Touching what is beyond a file's end would kill the back end by SIGBUS."""
    with Served(make_device(DeviceType.BLOCK), path), Frontend(path) as front:
        front.negotiate()
        table = MemoryTable((MemoryRegion(0, MEMORY * 2, USER, 0),))
        assert front.acked(R.SET_MEM_TABLE, table, (front.memory_fd,)) == 1


def test_status_zero_resets_the_device(path: Path) -> None:
    device = make_device(DeviceType.BLOCK)
    with Served(device, path), Frontend(path) as front:
        front.setup(PROTOCOL | bit(ProtocolFeature.STATUS))
        front.send(R.SET_STATUS, U64(0x0F))
        assert U64.unpack(front.ask(R.GET_STATUS)).value == 0x0F
        assert device.queues[0].started
        front.send(R.SET_STATUS, U64(0))
        front.sync()
        assert not device.queues[0].started


BAD = {
    "unknown request": lambda f: f.send(99),
    "reply instead of a request": lambda f: f.send(R.GET_FEATURES, flags=4),
    "wrong size": lambda f: f.send(R.SET_FEATURES, ConfigSpace(0, 0, b"abc")),
    "message without its feature": lambda f: f.send(R.GET_STATUS),
    "message that nobody offered": lambda f: f.send(R.POSTCOPY_LISTEN),
    "descriptor too many": lambda f: f.send(R.SET_OWNER, fds=(f.kick,)),
    "descriptor missing": lambda f: f.send(R.SET_MEM_TABLE, MemoryTable((MemoryRegion(0, MEMORY, USER, 0),))),
    "two regions, one descriptor": lambda f: f.send(
        R.SET_MEM_TABLE, MemoryTable((MemoryRegion(0, 4096, USER, 0), MemoryRegion(4096, 4096, USER + 4096, 4096))),
        (f.memory_fd,)),
    "queue that does not exist": lambda f: f.send(R.SET_VRING_NUM, VringState(77, 16)),
    "queue without descriptors": lambda f: f.send(R.SET_VRING_NUM, VringState(0, 0)),
    "no-fd bit with a descriptor": lambda f: f.send(R.SET_VRING_KICK, U64(VRING_NO_FD), (f.kick,)),
    "ring outside of memory": lambda f: f.start(),
    "protocol features not offered": lambda f: f.send(R.SET_PROTOCOL_FEATURES, U64(1 << 40)),
    "in-band without what it needs": lambda f: f.send(
        R.SET_PROTOCOL_FEATURES, U64(bit(ProtocolFeature.INBAND_NOTIFICATIONS))),
    "no socket for requests": lambda f: f.send(R.SET_BACKEND_REQ_FD, fds=(f.memory_fd,)),
    "garbage": lambda f: f.socket.send(b"GET / HTTP/1.1\r\n\r\n"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_broken_rule_ends_that_connection_alone(path: Path, name: str) -> None:
    with Served(make_device(DeviceType.BLOCK), path):
        with Frontend(path) as front:
            front.negotiate()
            front.send(R.SET_FEATURES, U64(bit(Feature.VERSION_1, F_PROTOCOL_FEATURES)))
            BAD[name](front)
            assert front.ended()
        with Frontend(path) as front:
            front.setup()
            read_sector(front, 0)
            os.eventfd_write(front.kick, 1)
            front.wait_used(1)


def test_a_front_end_that_dies_or_stalls_leaves_the_back_end_to_the_next(path: Path) -> None:
    with Served(make_device(DeviceType.BLOCK), path):
        for _ in range(3):
            with Frontend(path) as front:
                front.setup()
                front.socket.send(b"\1\0\0")
        with Frontend(path) as front:
            front.setup()
            read_sector(front, 0)
            os.eventfd_write(front.kick, 1)
            front.wait_used(1)


def test_a_second_front_end_is_turned_away(path: Path) -> None:
    with Served(make_device(DeviceType.BLOCK), path), Frontend(path) as front:
        front.setup()
        with Frontend(path) as other:
            assert other.ended()
        read_sector(front, 0)
        os.eventfd_write(front.kick, 1)
        front.wait_used(1)


def test_a_front_end_that_is_replaced_keeps_its_connection_but_is_served_no_more(path: Path) -> None:
    with Served(make_device(DeviceType.BLOCK), path, replace=True), Frontend(path) as front:
        front.setup()
        with Frontend(path) as other:
            other.setup()
            read_sector(front, 0)
            os.eventfd_write(front.kick, 1)
            read_sector(other, 0)
            os.eventfd_write(other.kick, 1)
            other.wait_used(1)
            assert front.used() == 0
            front.socket.setblocking(False)
            with pytest.raises(BlockingIOError):
                front.socket.recv(1)
            front.socket.settimeout(5)
            front.send(R.GET_FEATURES)  # it thinks that it is served
            assert front.ended()


def test_of_front_ends_that_never_go_the_oldest_are_sent_away(path: Path) -> None:
    with Served(make_device(DeviceType.BLOCK), path, replace=True), contextlib.ExitStack() as stack:
        fronts = [stack.enter_context(Frontend(path)) for _ in range(12)]
        fronts[-1].setup()
        assert fronts[0].ended()
        fronts[-2].socket.setblocking(False)
        with pytest.raises(BlockingIOError):
            fronts[-2].socket.recv(1)


def test_a_socket_in_use_is_not_taken_and_a_stale_one_is(path: Path) -> None:
    with Served(make_device(DeviceType.BLOCK), path), EventLoop() as loop, pytest.raises(FileExistsError):
        Backend(path, lambda: None, loop)
    stale = socket.socket(socket.AF_UNIX)
    stale.bind(str(path))
    stale.close()
    with EventLoop() as loop:
        Backend(path, lambda: None, loop).close()
    assert not path.exists()


@given(st.data())
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_messages_end_in_replies_or_a_closed_connection(tmp_path: Path, data: st.DataObject) -> None:
    """Random, often well-formed messages: the back end lives, and serves the next front end."""
    path = tmp_path / f"s{data.draw(st.integers(0, 1 << 60))}"
    loop = EventLoop()
    device = make_device(DeviceType.BLOCK)
    backend = Backend(path, lambda: device, loop)
    try:
        front = socket.socket(socket.AF_UNIX)
        front.connect(str(path))
        front.setblocking(False)
        memory = os.memfd_create("guest")
        os.truncate(memory, 1 << 16)
        try:
            for _ in range(data.draw(st.integers(1, 12))):
                request = data.draw(st.integers(0, 46))
                body = data.draw(st.one_of(
                    st.binary(max_size=80), st.tuples(st.integers(0, 3), st.integers(0, 300)).map(
                        lambda pair: VringState(*pair).pack()),
                    st.just(MemoryTable((MemoryRegion(0, 1 << 16, 0, 0),)).pack())))
                flags = data.draw(st.sampled_from([1, 1 | NEED_REPLY, 5]))
                fds = (memory,) * data.draw(st.integers(0, 2))
                header = struct.pack("=III", request, flags, len(body))
                try:
                    socket.send_fds(front, [header + body], fds)
                except OSError:
                    break
                for _ in range(3):
                    loop.turn(0)
        finally:
            front.close()
            os.close(memory)
        for _ in range(5):
            loop.turn(0)
        assert backend.session is None
    finally:
        backend.close()
        loop.close()


def test_a_channel_that_is_not_read_does_not_block_its_writer() -> None:
    ours, theirs = socket.socketpair()
    channel = Channel(ours)
    with theirs:
        message = partial(channel.send, BackendRequest.VRING_CALL, VringState(0, 0))
        with pytest.raises(Gone):
            deque(iter(message, 0), maxlen=0)
    channel.close()
