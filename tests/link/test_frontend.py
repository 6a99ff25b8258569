"""The vhost-user front end, before back ends that behave, differ, lie and die."""

from __future__ import annotations

import contextlib
import os
import socket
import struct
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chamber.link.channel import Channel
from chamber.link.frontend import INBAND, PROTOCOL_FEATURES, BackendError, Frontend, SharedFile
from chamber.wire.vhost_user import (
    F_LOG_ALL,
    F_PROTOCOL_FEATURES,
    NEED_REPLY,
    REPLY,
    U64,
    BackendRequest,
    Bytes,
    ConfigSpace,
    FrontendRequest,
    Iotlb,
    MemoryTable,
    ProtocolFeature,
    SingleRegion,
    VringAddress,
    VringArea,
    VringState,
    encode,
)
from chamber.wire.virtio import Feature, bit
from tests.link.scripted_backend import CONFIG, R, ScriptedBackend, breaks_off, replies, says

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from chamber.link.channel import Message
    from chamber.wire.vhost_user import Payload
    from tests.link.scripted_backend import Lie

P = ProtocolFeature
B = BackendRequest
SOON = 0.3
MEMORY = 1 << 16
ZERO = U64(0)


@pytest.fixture(autouse=True)
def nothing_is_left_open() -> Iterator[None]:
    before = set(os.listdir("/proc/self/fd"))
    yield
    assert set(os.listdir("/proc/self/fd")) == before


@contextlib.contextmanager
def shared_file(address: int = 0x1000) -> Iterator[SharedFile]:
    fd = os.memfd_create("test")
    os.truncate(fd, MEMORY)
    try:
        yield SharedFile(address, MEMORY, fd)
    finally:
        os.close(fd)


def use(front: Frontend) -> None:
    """Everything that a transport asks of a front end, once."""
    front.read_features()
    front.write_features(bit(Feature.VERSION_1))
    for feature, call in ((P.CONFIG, lambda: front.read_config(8, 4)),
                          (P.CONFIG, lambda: front.write_config(0, b"x")),
                          (P.STATUS, front.read_status), (P.STATUS, lambda: front.write_status(7)),
                          (P.RESET_DEVICE, front.reset_device)):
        if front.has(feature):
            call()
    with shared_file() as file:
        front.share([file])
        front.share([file])
    front.start_queue(0, size=16, desc=0x1000, driver=0x2000, device=0x3000)
    front.kick(0)
    front.wait(0)
    front.stop_queue(0)


def session(back: ScriptedBackend, seconds: float = 5.0, *, inband: bool = False) -> None:
    """All of it, and what was left unsaid comes out at the end."""
    with back.frontend(seconds=seconds, inband=inband) as front:
        use(front)
        front.read_features()
        front.wait(min(seconds, SOON))


# Back ends that behave.

def test_a_session_from_beginning_to_end() -> None:
    with ScriptedBackend() as back, back.frontend() as front:
        assert front.protocol_features == PROTOCOL_FEATURES
        assert front.queue_count == 2
        use(front)
        assert back.seen == [
            "GET_FEATURES", "GET_PROTOCOL_FEATURES", "SET_PROTOCOL_FEATURES", "GET_QUEUE_NUM", "GET_MAX_MEM_SLOTS",
            "SET_BACKEND_REQ_FD", "SET_OWNER", "GET_FEATURES", "SET_FEATURES", "GET_CONFIG", "SET_CONFIG", "GET_STATUS",
            "SET_STATUS", "RESET_DEVICE", "ADD_MEM_REG", "REM_MEM_REG", "ADD_MEM_REG", "SET_VRING_NUM",
            "SET_VRING_BASE", "SET_VRING_ADDR", "SET_VRING_CALL", "SET_VRING_KICK", "SET_VRING_ENABLE",
            "SET_VRING_ENABLE", "GET_VRING_BASE"]
        # The kick that `use` gave is in the eventfd still, and nobody is to be interrupted.
        assert os.eventfd_read(back.fds[R.SET_VRING_KICK][0]) == 1


def test_a_back_end_that_knows_no_protocol_features() -> None:
    with ScriptedBackend(protocol=None) as back, back.frontend() as front:
        assert front.protocol_features == 0
        use(front)
        assert "SET_VRING_ENABLE" not in back.seen
        assert "GET_PROTOCOL_FEATURES" not in back.seen
        assert [p for p in back.payloads if isinstance(p, MemoryTable)]
        assert U64(bit(Feature.VERSION_1)) in back.payloads


def test_a_back_end_that_knows_few() -> None:
    with ScriptedBackend(protocol=bit(P.MQ, P.PAGEFAULT, 60)) as back, back.frontend() as front:
        assert front.protocol_features == bit(P.MQ)
        use(front)
        assert back.seen.count("SET_VRING_ENABLE") == 2
        assert U64(bit(Feature.VERSION_1, F_PROTOCOL_FEATURES)) in back.payloads


def test_features_that_are_not_the_device_s_are_kept_from_the_driver() -> None:
    offered = bit(Feature.VERSION_1, F_LOG_ALL, Feature.NOTIFICATION_DATA, Feature.RING_PACKED, 5)
    with ScriptedBackend(features=offered) as back, back.frontend() as front:
        assert front.read_features() == bit(Feature.VERSION_1, Feature.RING_PACKED, 5)


@pytest.mark.parametrize(("features", "base"), [(0, 0), (bit(Feature.RING_PACKED), 0x8000_8000)],
                         ids=["split", "packed"])
def test_a_ring_starts_where_its_format_says(features: int, base: int) -> None:
    with ScriptedBackend() as back, back.frontend() as front:
        front.write_features(features)
        front.start_queue(1, size=8, desc=0x1000, driver=0x2000, device=0x3000)
        assert VringState(1, base) in back.payloads
        (where,) = [p for p in back.payloads if isinstance(p, VringAddress)]
        assert where.avail - where.desc == 0x1000
        assert where.used - where.desc == 0x2000
        assert front.stop_queue(1) == 7


def test_user_addresses_are_those_of_the_regions() -> None:
    with ScriptedBackend() as back, back.frontend() as front, shared_file(0x4000) as file:
        front.share([file])
        front.start_queue(0, size=8, desc=0x4100, driver=0x4200, device=0x4300)
        front.read_features()
        (added,) = [p for p in back.payloads if isinstance(p, SingleRegion)]
        (where,) = [p for p in back.payloads if isinstance(p, VringAddress)]
        assert where.desc == added.region.user_address + 0x100
        assert (added.region.guest_address, added.region.size, added.region.mmap_offset) == (0x4000, MEMORY, 0)


def test_configuration_is_read_from_its_start() -> None:
    """As back ends made of libvhost-user take no notice of the offset."""
    with ScriptedBackend() as back, back.frontend() as front:
        assert front.read_config(10, 4) == CONFIG[10:14]
        assert back.payloads[-1] == ConfigSpace(0, 0, bytes(14))
    longest = replies(R.GET_CONFIG, ConfigSpace(0, 0, b"c" * 256))
    with ScriptedBackend({R.GET_CONFIG: longest}) as back, back.frontend() as front:
        assert front.read_config(250, 8) == b"cccccc\0\0"
        assert front.read_config(1 << 20, 2) == bytes(2)


def test_interrupts_and_changes_are_told_once() -> None:
    with ScriptedBackend() as back, back.frontend() as front:
        for index in (0, 1):
            front.start_queue(index, size=8, desc=0x1000, driver=0x2000, device=0x3000)
        assert front.wait(0) == (frozenset(), False)
        for _ in range(3):
            os.eventfd_write(back.fds[R.SET_VRING_CALL][1], 1)
        assert front.wait(5) == (frozenset({1}), False)
        assert front.wait(0) == (frozenset(), False)
        with backend_channel(back) as channel:
            channel.send(B.CONFIG_CHANGE_MSG, None, NEED_REPLY)
            assert front.wait(5) == (frozenset(), True)
            assert front.config_changes == 1
            answer = channel.receive()
            assert answer is not None
            assert (answer.header.request, answer.header.is_reply, answer.data) == (
                B.CONFIG_CHANGE_MSG, True, ZERO.pack())
        # It may close its channel: the session goes on.
        assert front.wait(0) == (frozenset(), False)
        assert front.read_features()


def test_the_interrupt_of_a_queue_that_was_stopped_is_forgotten() -> None:
    with ScriptedBackend() as back, back.frontend() as front:
        front.start_queue(0, size=8, desc=0x1000, driver=0x2000, device=0x3000)
        os.eventfd_write(back.fds[R.SET_VRING_CALL][0], 1)
        front.stop_queue(0)
        os.eventfd_write(back.fds[R.SET_VRING_CALL][0], 1)
        assert front.wait(0) == (frozenset(), False)


def test_notifications_as_messages() -> None:
    with ScriptedBackend() as back, back.frontend(inband=True) as front:
        assert front.protocol_features == PROTOCOL_FEATURES | INBAND
        front.start_queue(1, size=8, desc=0x1000, driver=0x2000, device=0x3000)
        assert "SET_VRING_KICK" not in back.seen
        front.kick(1)
        assert back.seen[-1] == "VRING_KICK"
        with backend_channel(back) as channel:
            channel.send(B.VRING_CALL, VringState(1, 0), NEED_REPLY)
            assert front.wait(5) == (frozenset({1}), False)
        front.stop_queue(1)


def test_messages_need_a_channel_and_acknowledgements() -> None:
    with ScriptedBackend(protocol=INBAND | bit(P.REPLY_ACK)) as back, back.frontend(inband=True) as front:
        assert front.protocol_features == bit(P.REPLY_ACK)


@contextlib.contextmanager
def backend_channel(back: ScriptedBackend) -> Iterator[Channel]:
    """The back end's own channel; closed at the end."""
    fd = back.fds[R.SET_BACKEND_REQ_FD].pop()
    channel = Channel(socket.socket(fileno=fd))
    try:
        yield channel
    finally:
        channel.close()


# Back ends that lie, one lie at a time.

def header(request: int, flags: int, size: int) -> bytes:
    return struct.pack("=III", request, flags, size)


LIES: dict[str, tuple[FrontendRequest, Lie, str]] = {
    "another request": (R.GET_FEATURES, replies(R.GET_STATUS, ZERO), "a reply is to the message that was sent"),
    "no request at all": (R.GET_FEATURES, replies(999, ZERO), "a reply is to the message that was sent"),
    "no reply flag": (R.GET_FEATURES, replies(R.GET_FEATURES, ZERO, 0), "a reply has the reply flag"),
    "version 0": (R.GET_FEATURES, says(header(1, REPLY, 8) + bytes(8)), "the protocol version is 1"),
    "version 3": (R.GET_FEATURES, says(header(1, REPLY | 3, 8) + bytes(8)), "the protocol version is 1"),
    "too short": (R.GET_FEATURES, replies(R.GET_FEATURES, Bytes(bytes(4))), "u64 payload is 8 bytes"),
    "too long": (R.GET_FEATURES, replies(R.GET_FEATURES, Bytes(bytes(16))), "u64 payload is 8 bytes"),
    "no payload": (R.GET_PROTOCOL_FEATURES, replies(R.GET_PROTOCOL_FEATURES, None), "u64 payload is 8 bytes"),
    "endless payload": (R.GET_FEATURES, says(header(1, REPLY | 1, 0xFFFFFFFF)), "a payload has at most 4096 bytes"),
    "a descriptor": (R.GET_FEATURES, replies(R.GET_FEATURES, ZERO, REPLY, 1), "no descriptors that nobody asked for"),
    "eight descriptors": (R.GET_QUEUE_NUM, replies(R.GET_QUEUE_NUM, U64(1), REPLY, 8), "no descriptors that nobody"),
    "thirty descriptors": (R.GET_QUEUE_NUM, replies(R.GET_QUEUE_NUM, U64(1), REPLY, 30), "at most 8 descriptors"),
    "no queue": (R.GET_QUEUE_NUM, replies(R.GET_QUEUE_NUM, ZERO), "a device has a queue"),
    "no slot": (R.GET_MAX_MEM_SLOTS, replies(R.GET_MAX_MEM_SLOTS, ZERO), "room for the regions"),
    "no to memory": (R.ADD_MEM_REG, replies(R.ADD_MEM_REG, U64(1)), "a back end does what it is told"),
    "no to a channel": (R.SET_BACKEND_REQ_FD, replies(R.SET_BACKEND_REQ_FD, U64(1 << 63)), "does what it is told"),
    "no to an eventfd": (R.SET_VRING_KICK, replies(R.SET_VRING_KICK, U64(22)), "a back end does what it is told"),
    "shorter config": (R.GET_CONFIG, replies(R.GET_CONFIG, ConfigSpace(0, 0, bytes(3))), "configuration that it is"),
    "longer config": (R.GET_CONFIG, replies(R.GET_CONFIG, ConfigSpace(0, 0, bytes(99))), "configuration that it is"),
    "other config": (R.GET_CONFIG, replies(R.GET_CONFIG, ConfigSpace(4, 0, bytes(12))), "configuration that it is"),
    "no config": (R.GET_CONFIG, replies(R.GET_CONFIG, None), "a config message starts with 12 bytes"),
    "config that counts wrong": (R.GET_CONFIG, replies(R.GET_CONFIG, Bytes(struct.pack("=III", 0, 12, 0) + bytes(8))),
                                 "the size of a config message counts its bytes"),
    "another queue": (R.GET_VRING_BASE, replies(R.GET_VRING_BASE, VringState(1, 0)), "answers for the queue"),
    "a queue beyond": (R.GET_VRING_BASE, replies(R.GET_VRING_BASE, VringState(1 << 31, 0)), "answers for the queue"),
    "two replies": (R.GET_STATUS, says(encode(R.GET_STATUS, ZERO, REPLY) * 2), "replies to what it was asked"),
    # Which rule it is depends on whether the next question was faster.
    "a reply unasked": (R.SET_STATUS, replies(R.SET_STATUS, ZERO), "repl"),
    "its own request": (R.GET_STATUS, replies(R.SET_OWNER, None, NEED_REPLY), "a reply has the reply flag"),
    "silence": (R.GET_CONFIG, says(b""), "a back end answers"),
    "half a header": (R.GET_CONFIG, says(header(24, REPLY | 1, 24)[:7]), "a back end answers"),
    "half a payload": (R.GET_STATUS, says(header(40, REPLY | 1, 8) + bytes(4)), "a back end answers"),
    "a byte at a time": (R.GET_STATUS, lambda back, _: back.trickle(header(40, REPLY | 1, 4000) + bytes(4000)),
                         "a back end answers"),
    "hanging up": (R.GET_CONFIG, breaks_off(b""), "a back end stays"),
    "hanging up in the middle": (R.GET_STATUS, breaks_off(b"\x28\0\0\0"), "a back end stays"),
}


@pytest.mark.parametrize("name", LIES)
def test_a_lie_is_named_and_ends_the_connection(name: str) -> None:
    request, lie, rule = LIES[name]
    with ScriptedBackend({request: lie}) as back:
        with pytest.raises(BackendError) as caught:
            session(back, SOON)
        assert rule in caught.value.rule
        assert caught.value.spec.startswith("vhost-user, ")


@pytest.mark.parametrize("after", range(20))
def test_a_back_end_may_go_at_any_time(after: int) -> None:
    def until(back: ScriptedBackend, message: Message) -> None:
        if len(back.seen) > after:
            back.hang_up()
            return
        answer = back.answer(FrontendRequest(message.header.request), back.payloads[-1])
        if answer is not None or message.header.need_reply:
            back.raw(encode(message.header.request, answer or ZERO, REPLY))

    with (ScriptedBackend(dict.fromkeys(FrontendRequest, until)) as back,
          pytest.raises(BackendError, match="a back end stays")):
        session(back)


def test_after_the_end_there_is_an_error_and_nothing_else() -> None:
    with ScriptedBackend() as back:
        front = back.frontend()
        front.start_queue(0, size=8, desc=0x1000, driver=0x2000, device=0x3000)
        front.close()
        for call in (front.read_features, lambda: front.wait(1), lambda: front.write_status(0), lambda: front.kick(0),
                     lambda: front.start_queue(1, size=8, desc=0x1000, driver=0x2000, device=0x3000),
                     lambda: front.stop_queue(0)):
            with pytest.raises(BackendError, match="a back end stays"):
                call()


def test_more_queues_than_a_number_names_are_not_there() -> None:
    with ScriptedBackend(queues=1 << 60) as back, back.frontend() as front:
        assert front.queue_count == 256
        for index in (-1, 256):
            with pytest.raises(ValueError, match="no queue"):
                front.start_queue(index, size=8, desc=0x1000, driver=0x2000, device=0x3000)


@pytest.mark.parametrize(("request_", "payload", "flags", "fds"), [
    (B.IOTLB_MSG, Iotlb(0, 4096, 0, 3, 1), 0, 0),
    (B.VRING_HOST_NOTIFIER_MSG, VringArea(0, 4096, 0), 0, 1),
    (B.VRING_CALL, VringState(0, 0), 0, 0),
    (B.SHMEM_MAP, Bytes(bytes(40)), 0, 1),
    (B.CONFIG_CHANGE_MSG, None, REPLY, 0),
    (B.CONFIG_CHANGE_MSG, None, 0, 1),
    (B.CONFIG_CHANGE_MSG, U64(1), 0, 0),
    (77, None, NEED_REPLY, 0),
])
def test_what_was_not_negotiated_is_refused(request_: int, payload: Payload | None, flags: int, fds: int) -> None:
    with ScriptedBackend() as back, back.frontend() as front:
        front.start_queue(0, size=8, desc=0x1000, driver=0x2000, device=0x3000)
        with backend_channel(back) as channel, contextlib.ExitStack() as stack:
            ends = tuple(os.eventfd(0) for _ in range(fds))
            for fd in ends:
                stack.callback(os.close, fd)
            channel.send(request_, payload, flags, ends)
            with pytest.raises(BackendError, match=r"negotiated alone|has no payload"):
                front.wait(5)
            assert front.closed


@pytest.mark.parametrize(("request_", "index", "rule"), [
    (B.VRING_CALL, 1, "a queue that runs"), (B.VRING_CALL, 1 << 31, "a queue that runs"),
    (B.VRING_ERR, 0, "a queue works")])
def test_messages_about_queues_name_one(request_: B, index: int, rule: str) -> None:
    with ScriptedBackend() as back, back.frontend(inband=True) as front:
        front.start_queue(0, size=8, desc=0x1000, driver=0x2000, device=0x3000)
        with backend_channel(back) as channel:
            channel.send(request_, VringState(index, 0))
            with pytest.raises(BackendError, match=rule):
                front.wait(5)


def test_a_back_end_that_takes_no_answers() -> None:
    def ask_without_end(front: Frontend, channel: Channel) -> None:
        for _ in range(1 << 14):
            channel.send(B.CONFIG_CHANGE_MSG, None, NEED_REPLY)
            front.wait(0)

    with (ScriptedBackend() as back, back.frontend() as front, backend_channel(back) as channel,
          pytest.raises(BackendError, match="takes the answers that it asks for")):
        ask_without_end(front, channel)


def test_interrupts_without_end_put_no_reply_off() -> None:
    def storm(back: ScriptedBackend, _message: Message) -> None:
        while not front.closed:
            os.eventfd_write(back.fds[R.SET_VRING_CALL][0], 1)

    with ScriptedBackend({R.GET_STATUS: storm}) as back, back.frontend(seconds=SOON) as front:
        front.start_queue(0, size=8, desc=0x1000, driver=0x2000, device=0x3000)
        with pytest.raises(BackendError, match="a back end answers"):
            front.read_status()


def test_a_kick_waits_for_nobody() -> None:
    """The back end can make the eventfd that both have blocking, and fill it."""
    with ScriptedBackend() as back, back.frontend() as front:
        front.start_queue(0, size=8, desc=0x1000, driver=0x2000, device=0x3000)
        (kick,), (call,) = back.fds[R.SET_VRING_KICK], back.fds[R.SET_VRING_CALL]
        for fd in (kick, call):
            os.set_blocking(fd, True)
            os.eventfd_write(fd, (1 << 64) - 2)
        front.kick(0)
        assert front.wait(5) == (frozenset({0}), False)
        assert front.wait(0) == (frozenset(), False)
        # Nor for a back end that takes interrupts back before the guest has seen them.
        os.eventfd_read(call)
        assert front.wait(0) == (frozenset(), False)
        assert front.read_features()


def test_nobody_listens(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        Frontend.connect(tmp_path / "none")
    path = tmp_path / "deaf"
    with socket.socket(socket.AF_UNIX) as deaf:
        deaf.bind(str(path))
        with pytest.raises(ConnectionRefusedError):
            Frontend.connect(path)
        deaf.listen(0)
        # It lets one in and answers nothing; and then nobody else.
        for _ in range(2):
            with pytest.raises((BackendError, OSError)):
                Frontend.connect(path, seconds=0.1)


# Back ends that say anything.

messages = st.builds(
    lambda request, flags, payload, cut: (header(request, flags, len(payload)) + payload)[:cut],
    st.sampled_from([1, 15, 17, 36, 21, 24, 40, 37, 11]) | st.integers(0, 0xFFFFFFFF),
    st.sampled_from([REPLY | 1, REPLY | 1, 1, NEED_REPLY | REPLY | 1]) | st.integers(0, 0xFFFFFFFF),
    st.sampled_from([bytes(8), b"\xff" * 8, struct.pack("=Q", 0x40000000), struct.pack("=III", 0, 12, 0) + bytes(12)])
    | st.binary(max_size=64),
    st.none() | st.integers(0, 40))


@settings(max_examples=60, deadline=None)
@given(st.lists(messages | st.binary(max_size=64), max_size=30), st.integers(0, 30), st.booleans())
def test_any_bytes_are_a_value_or_an_error(answers: list[bytes], honest: int, inband: bool) -> None:
    """Some answers in earnest, then these, then the end of the connection."""
    left = list(answers)

    def lie(back: ScriptedBackend, message: Message) -> None:
        if len(back.seen) <= honest:
            answer = back.answer(FrontendRequest(message.header.request), back.payloads[-1])
            if answer is not None or message.header.need_reply:
                back.raw(encode(message.header.request, answer or ZERO, REPLY))
        elif left:
            back.raw(left.pop(0), [back.socket.fileno()] if len(left) % 7 == 3 else [])
        else:
            back.hang_up()

    before = set(os.listdir("/proc/self/fd"))
    with ScriptedBackend(dict.fromkeys(FrontendRequest, lie)) as back, contextlib.suppress(BackendError):
        session(back, 0.05, inband=inband)
    assert set(os.listdir("/proc/self/fd")) == before


@settings(max_examples=60, deadline=None)
@given(st.lists(messages | st.binary(max_size=64), max_size=8), st.booleans())
def test_any_bytes_on_the_back_end_s_own_channel(said: list[bytes], inband: bool) -> None:
    before = set(os.listdir("/proc/self/fd"))
    with ScriptedBackend() as back, contextlib.suppress(BackendError), back.frontend(inband=inband) as front:
        front.start_queue(0, size=8, desc=0x1000, driver=0x2000, device=0x3000)
        with socket.socket(fileno=back.fds[R.SET_BACKEND_REQ_FD].pop()) as theirs:
            for data in said:
                theirs.sendall(data)
                queues, _ = front.wait(0)
                assert queues <= {0}
        front.read_features()
    assert set(os.listdir("/proc/self/fd")) == before
