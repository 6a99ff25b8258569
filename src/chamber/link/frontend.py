"""A vhost-user front end: drives a real back end (qemu-storage-daemon, virtiofsd, any other) over its socket.

The back end is not trusted. Whatever it sends is a value or a `BackendError` that names the broken rule, in bounded
time and memory; the connection is closed then, and all that was opened for it.

Back ends differ, and what they do differently stands here: those made of libvhost-user start every read of
configuration at its first byte, and each leaves out the features that it does not need.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NoReturn, Self, TypeVar

from chamber.link.channel import Channel, Gone
from chamber.wire.errors import WireError
from chamber.wire.vhost_user import (
    BACKEND_MESSAGES,
    F_LOG_ALL,
    F_PROTOCOL_FEATURES,
    FRONTEND_MESSAGES,
    MAX_FDS,
    NEED_REPLY,
    REPLY,
    U64,
    BackendRequest,
    ConfigSpace,
    FrontendRequest,
    MemoryRegion,
    MemoryTable,
    ProtocolFeature,
    SingleRegion,
    VringAddress,
    VringState,
)
from chamber.wire.virtio import Feature, bit

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path
    from types import TracebackType

    from chamber.link.channel import Message
    from chamber.wire.vhost_user import Payload

__all__ = ("INBAND", "PROTOCOL_FEATURES", "REPLY_SECONDS", "BackendError", "Frontend", "SharedFile")

_R = FrontendRequest
_P = ProtocolFeature

PROTOCOL_FEATURES: Final = bit(_P.MQ, _P.REPLY_ACK, _P.BACKEND_REQ, _P.CONFIG, _P.RESET_DEVICE,
                               _P.CONFIGURE_MEM_SLOTS, _P.STATUS)
"""What this front end takes where it is offered."""
INBAND: Final = bit(_P.INBAND_NOTIFICATIONS)

"""Notifications as messages, each with an acknowledgement: taken on demand alone, as they are slower."""
REPLY_SECONDS: Final = 5.0
"""Within which a back end answers, unless told otherwise."""
_MAX_QUEUES: Final = 256
"""A queue's number has eight bits (SET_VRING_KICK)."""
_MAX_CONFIG: Final = 256
"""Bytes of configuration space that back ends give at once (VHOST_USER_MAX_CONFIG_SIZE of QEMU)."""
_FRESH: Final = {False: 0, True: 0x8000_8000}
"""Where a ring starts, split or packed (Vring descriptor indices for packed virtqueues)."""
_USER: Final = 1 << 40
"""Where user addresses start: a number, as nobody else can use them, but never the guest's address by chance."""
_ONE: Final = (1).to_bytes(8, "little")
_MESSAGES_PER_TURN: Final = 64
_COMMUNICATION: Final = "vhost-user, Communication"
_MESSAGES: Final = "vhost-user, Message Specification"

_PayloadT = TypeVar("_PayloadT", bound="Payload")


class BackendError(Exception):
    """The back end broke a rule, said no, said nothing, or is gone; the connection is closed.

    Attributes:
        rule: what it should have done, without values.
        spec: where that stands.
        detail: the values.

    """

    def __init__(self, rule: str, *, spec: str, detail: str = "") -> None:
        self.rule = rule
        self.spec = spec
        self.detail = detail
        super().__init__(f"{rule}{f' ({detail})' if detail else ''} [{spec}]")


@dataclass(frozen=True, slots=True)
class SharedFile:
    """A run of guest memory that is a file of its own.

    Attributes:
        address: guest-physical address.
        size: bytes, all of the file.
        fd: its descriptor; stays the caller's.

    """

    address: int
    size: int
    fd: int

    @property
    def region(self) -> MemoryRegion:
        """How the back end is told of it."""
        return MemoryRegion(self.address, self.size, _USER + self.address, 0)


class _Ring:
    """The eventfds of a queue that runs; none with in-band notifications."""

    __slots__ = ("call", "kick", "room")

    def __init__(self, *, inband: bool) -> None:
        self.kick: int | None = None
        self.call: int | None = None
        self.room = select.poll()
        if not inband:
            self.kick = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
            self.call = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
            self.room.register(self.kick, select.POLLOUT)


class Frontend:
    """One connection to a back end, negotiated when this returns. Not thread-safe.

    Args:
        sock: the connection; closed at the end.
        seconds: within which the back end answers.
        inband: take notifications as messages, where they are offered.
        trace: gets one line per message, if given.

    Attributes:
        protocol_features: those that were negotiated, as bits.
        queue_count: how many queues the back end has, or as many as there can be if it does not tell.
        config_changes: how often it said that configuration changed.
        closed: whether the connection is over.

    Raises:
        BackendError: the back end broke a rule.

    """

    def __init__(self, sock: socket.socket, *, seconds: float = REPLY_SECONDS, inband: bool = False,
                 trace: Callable[[str], None] | None = None) -> None:
        self._channel = Channel(sock)
        self._seconds = seconds
        self._trace = trace
        self._backend_channel: Channel | None = None
        self._rings: dict[int, _Ring] = {}
        self._shared: list[MemoryRegion] = []
        self._slots = MAX_FDS
        self._features = 0
        self._has_protocol = False
        self._interrupts: set[int] = set()
        self._config_changed = False
        self.protocol_features = 0
        self.queue_count = _MAX_QUEUES
        self.config_changes = 0
        self.closed = False
        # The call eventfds are watched edge by edge and never read: a back end can make a descriptor that both have
        # blocking, and then a read waits for as long as it likes.
        self._epoll = select.epoll()
        self._calls: dict[int, int] = {}
        try:
            self._epoll.register(self._channel.fileno(), select.EPOLLIN | select.EPOLLRDHUP)
            self._negotiate(PROTOCOL_FEATURES | (INBAND if inband else 0))
        except BaseException:
            self.close()
            raise

    @classmethod
    def connect(cls, path: Path, *, seconds: float = REPLY_SECONDS, inband: bool = False,
                trace: Callable[[str], None] | None = None) -> Self:
        """Connect to a socket and negotiate.

        Raises:
            OSError: nobody listens there.
            BackendError: the back end broke a rule.

        """
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            # A backlog that is full lets nobody in, and a listener that never accepts keeps it full.
            sock.settimeout(seconds)
            sock.connect(str(path))
        except BaseException:
            sock.close()
            raise
        return cls(sock, seconds=seconds, inband=inband, trace=trace)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        self.close()

    def _negotiate(self, wanted: int) -> None:
        self._has_protocol = bool(self._ask(_R.GET_FEATURES, U64).value >> F_PROTOCOL_FEATURES & 1)
        if not self._has_protocol:
            self._tell(_R.SET_OWNER)
            return
        self.protocol_features = self._ask(_R.GET_PROTOCOL_FEATURES, U64).value & wanted
        if not (self.has(_P.BACKEND_REQ) and self.has(_P.REPLY_ACK)):
            self.protocol_features &= ~INBAND
        self._tell(_R.SET_PROTOCOL_FEATURES, U64(self.protocol_features))
        if self.has(_P.MQ):
            count = self._ask(_R.GET_QUEUE_NUM, U64).value
            if not count:
                self._fail("a device has a queue", "vhost-user, GET_QUEUE_NUM")
            self.queue_count = min(count, _MAX_QUEUES)
        if self.has(_P.CONFIGURE_MEM_SLOTS):
            self._slots = self._ask(_R.GET_MAX_MEM_SLOTS, U64).value
        if self.has(_P.BACKEND_REQ):
            self._open_backend_channel()
        self._tell(_R.SET_OWNER)

    def _open_backend_channel(self) -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            self._backend_channel = Channel(ours)
            self._epoll.register(ours.fileno(), select.EPOLLIN | select.EPOLLRDHUP)
            self._tell(_R.SET_BACKEND_REQ_FD, fds=(theirs.fileno(),), confirm=True)

    def has(self, feature: ProtocolFeature) -> bool:
        """Whether a protocol feature was negotiated."""
        return bool(self.protocol_features >> feature & 1)

    # The device.

    def read_features(self) -> int:
        """Feature bits of the device, without those that are the protocol's or that it can't carry."""
        return self._ask(_R.GET_FEATURES, U64).value & ~bit(F_PROTOCOL_FEATURES, F_LOG_ALL, Feature.NOTIFICATION_DATA)

    def write_features(self, features: int) -> None:
        """Feature bits that the driver accepts."""
        self._features = features
        self._tell(_R.SET_FEATURES, U64(features | self._has_protocol << F_PROTOCOL_FEATURES))

    def read_status(self) -> int:
        """Device status; needs STATUS."""
        return self._ask(_R.GET_STATUS, U64).value & 0xFF

    def write_status(self, status: int) -> None:
        """Device status; needs STATUS."""
        self._tell(_R.SET_STATUS, U64(status))

    def reset_device(self) -> None:
        """Have the device forget its driver; needs RESET_DEVICE."""
        self._tell(_R.RESET_DEVICE)

    def read_config(self, offset: int, size: int) -> bytes:
        """Bytes of configuration space, zero beyond what back ends give; needs CONFIG."""
        end = min(offset + size, _MAX_CONFIG)
        config = self._ask(_R.GET_CONFIG, ConfigSpace, ConfigSpace(0, 0, bytes(end)))
        if (config.offset, len(config.data)) != (0, end):
            self._fail("a back end gives the configuration that it is asked for", "vhost-user, GET_CONFIG",
                       f"{len(config.data)} bytes at {config.offset}, not {end} at 0")
        return config.data[offset:].ljust(size, b"\0")

    def write_config(self, offset: int, data: bytes) -> None:
        """Change configuration space; needs CONFIG."""
        self._tell(_R.SET_CONFIG, ConfigSpace(offset, 0, data), confirm=True)

    def share(self, files: list[SharedFile]) -> None:
        """Share memory: these files, and no longer what was shared before."""
        if len(files) > self._slots:
            self._fail("a back end has room for the regions of the guest's memory", "vhost-user, GET_MAX_MEM_SLOTS",
                       f"{len(files)} regions, {self._slots} slots")
        fresh = [file.region for file in files]
        if self.has(_P.CONFIGURE_MEM_SLOTS):
            for region in self._shared:
                self._tell(_R.REM_MEM_REG, SingleRegion(region), confirm=True)
            for file in files:
                self._tell(_R.ADD_MEM_REG, SingleRegion(file.region), fds=(file.fd,), confirm=True)
        else:
            self._tell(_R.SET_MEM_TABLE, MemoryTable(tuple(fresh)), fds=tuple(f.fd for f in files), confirm=True)
        self._shared = fresh

    # Queues.

    def start_queue(self, index: int, *, size: int, desc: int, driver: int, device: int) -> None:
        """Hand a fresh queue over and enable it; addresses are the guest's, in shared memory.

        Raises:
            ValueError: the back end has no such queue, or it runs.

        """
        self._require_open()
        if not 0 <= index < self.queue_count or index in self._rings:
            raise ValueError(f"there is no queue {index} to start")
        ring = self._rings[index] = _Ring(inband=self.has(_P.INBAND_NOTIFICATIONS))
        packed = bool(self._features >> Feature.RING_PACKED & 1)
        self._tell(_R.SET_VRING_NUM, VringState(index, size))
        self._tell(_R.SET_VRING_BASE, VringState(index, _FRESH[packed]))
        self._tell(_R.SET_VRING_ADDR,
                   VringAddress(index, 0, _USER + desc, _USER + device, _USER + driver, 0), confirm=True)
        if ring.call is not None and ring.kick is not None:
            self._epoll.register(ring.call, select.EPOLLIN | select.EPOLLET)
            self._calls[ring.call] = index
            self._tell(_R.SET_VRING_CALL, U64(index), fds=(ring.call,), confirm=True)
            self._tell(_R.SET_VRING_KICK, U64(index), fds=(ring.kick,), confirm=True)
        if self._has_protocol:
            self._tell(_R.SET_VRING_ENABLE, VringState(index, 1))

    def stop_queue(self, index: int) -> int:
        """Take a queue back; return the position that the back end says it came to."""
        if self._has_protocol:
            self._tell(_R.SET_VRING_ENABLE, VringState(index, 0))
        base = self._ask(_R.GET_VRING_BASE, VringState, VringState(index, 0))
        if base.index != index:
            self._fail("a back end answers for the queue that it is asked about", "vhost-user, GET_VRING_BASE",
                       f"{base.index}, not {index}")
        self._drop_ring(index)
        self._interrupts.discard(index)
        return base.num

    def kick(self, index: int) -> None:
        """Tell the back end that a queue that was started has something."""
        self._require_open()
        ring = self._rings[index]
        if ring.kick is None:
            self._tell(_R.VRING_KICK, VringState(index, 0), confirm=True)
            return
        # Where there is no room a kick is pending already. Asked first, and not left to O_NONBLOCK alone, which the
        # back end can take off a descriptor that both have.
        if ring.room.poll(0):
            with contextlib.suppress(BlockingIOError):
                os.write(ring.kick, _ONE)

    def wait(self, seconds: float) -> tuple[frozenset[int], bool]:
        """Wait for the back end to say something; return queues with interrupts, and whether configuration changed.

        Both are empty if nothing came in time, and may be earlier.
        """
        self._require_open()
        if not (self._interrupts or self._config_changed) and self._turn(seconds):
            self._expect_nothing()
        interrupts, changed = frozenset(self._interrupts), self._config_changed
        self._interrupts.clear()
        self._config_changed = False
        return interrupts, changed

    # Messages.

    def _tell(self, request: FrontendRequest, payload: Payload | None = None, *, fds: tuple[int, ...] = (),
              confirm: bool = False) -> None:
        """Send what has no reply of its own; with `confirm`, wait until it is done where that can be asked for."""
        confirm = confirm and self.has(_P.REPLY_ACK)
        self._send(request, payload, NEED_REPLY if confirm else 0, fds)
        if confirm:
            answer = self._reply(request, U64).value
            if answer:
                self._fail("a back end does what it is told", "vhost-user, REPLY_ACK", f"{request.name}: {answer:#x}")

    def _ask(self, request: FrontendRequest, reply: type[_PayloadT], payload: Payload | None = None) -> _PayloadT:
        assert FRONTEND_MESSAGES[request].reply is reply
        self._send(request, payload, 0, ())
        return self._reply(request, reply)

    def _send(self, request: FrontendRequest, payload: Payload | None, flags: int, fds: tuple[int, ...]) -> None:
        gate = FRONTEND_MESSAGES[request].gate
        assert gate is None or self.has(gate), request.name
        if self._trace is not None:
            self._trace(f"{request.name} {payload or ''}".rstrip())
        self._expect_nothing()
        try:
            self._channel.send(request, payload, flags, fds)
        except Gone as error:
            self._fail("a back end stays", _COMMUNICATION, f"{request.name}: {error}")

    def _reply(self, request: FrontendRequest, kind: type[_PayloadT]) -> _PayloadT:
        deadline = time.monotonic() + self._seconds
        while (message := self._receive(self._channel)) is None:
            left = deadline - time.monotonic()
            if left <= 0:
                self._fail("a back end answers", _COMMUNICATION,
                           f"{request.name}: nothing in {self._seconds:g} s")
            self._turn(left)
        try:
            if not message.header.is_reply:
                self._fail("a reply has the reply flag", "vhost-user, Header", request.name)
            if message.header.request != request:
                self._fail("a reply is to the message that was sent", _COMMUNICATION,
                           f"{message.header.request} to {request.name}")
            if message.fds:
                self._fail("a reply brings no descriptors that nobody asked for", _MESSAGES,
                           f"{request.name} with {len(message.fds)}")
            payload = kind.unpack(message.data)
            if self._trace is not None:
                self._trace(f"{request.name} answered {payload}")
            return payload
        except WireError as error:
            self._fail(error.rule, error.spec, f"{request.name}: {error.detail}")
        finally:
            message.close()

    def _require_open(self) -> None:
        if self.closed:
            self._fail("a back end stays", _COMMUNICATION, "the connection is closed")

    def _expect_nothing(self) -> None:
        message = self._receive(self._channel)
        if message is not None:
            message.close()
            self._fail("a back end replies to what it was asked", _COMMUNICATION,
                       f"request {message.header.request} unasked")

    def _receive(self, channel: Channel) -> Message | None:
        try:
            return channel.receive()
        except Gone as error:
            self._fail("a back end stays", _COMMUNICATION, str(error))
        except WireError as error:
            self._fail(error.rule, error.spec, error.detail)

    def _turn(self, seconds: float) -> bool:
        """Wait once, and take interrupts and messages in; return whether something came on the main socket."""
        main = False
        for fd, _ in self._epoll.poll(max(seconds, 0.0)):
            index = self._calls.get(fd)
            if index is not None:
                self._interrupts.add(index)
            elif fd == self._channel.fileno():
                main = True
            else:
                self._serve_backend_channel()
        return main

    # What the back end says of its own accord.

    def _serve_backend_channel(self) -> None:
        channel = self._backend_channel
        assert channel is not None
        for _ in range(_MESSAGES_PER_TURN):
            try:
                message = channel.receive()
            except Gone:
                self._drop_backend_channel()  # it may; it has nothing more to say then
                return
            except WireError as error:
                self._fail(error.rule, error.spec, error.detail)
            if message is None:
                return
            try:
                self._handle(channel, message)
            except WireError as error:
                self._fail(error.rule, error.spec, error.detail)
            except Gone as error:
                self._fail("a back end takes the answers that it asks for", "vhost-user, REPLY_ACK", str(error))
            finally:
                message.close()

    def _handle(self, channel: Channel, message: Message) -> None:
        header = message.header
        gate = {BackendRequest.CONFIG_CHANGE_MSG: _P.CONFIG, BackendRequest.VRING_CALL: _P.INBAND_NOTIFICATIONS,
                BackendRequest.VRING_ERR: _P.INBAND_NOTIFICATIONS}.get(header.request)  # type: ignore[call-overload]
        if gate is None or not self.has(gate) or header.is_reply or message.fds:
            self._fail("a back end asks for what was negotiated alone", "vhost-user, Back-end message types",
                       f"request {header.request}, flags {header.flags:#x}, {len(message.fds)} descriptors")
        request = BackendRequest(header.request)
        if self._trace is not None:
            self._trace(f"back end: {request.name}")
        payload = BACKEND_MESSAGES[request].payload.unpack(message.data)
        if isinstance(payload, VringState):
            if payload.index not in self._rings:
                self._fail("a back end names a queue that runs", "vhost-user, Back-end message types",
                           f"{request.name}: {payload.index}")
            if request is BackendRequest.VRING_ERR:
                self._fail("a queue works", "vhost-user, VRING_ERR", f"queue {payload.index}")
            self._interrupts.add(payload.index)
        else:
            self._config_changed = True
            self.config_changes += 1
        if header.need_reply and self.has(_P.REPLY_ACK):
            channel.send(request, U64(0), REPLY)

    # The end.

    def _fail(self, rule: str, spec: str, detail: str = "") -> NoReturn:
        self.close()
        raise BackendError(rule, spec=spec, detail=detail)

    def _drop_ring(self, index: int) -> None:
        ring = self._rings.pop(index)
        for fd in (ring.kick, ring.call):
            if fd is not None:
                if self._calls.pop(fd, None) is not None:
                    # Closing it would not do: the back end has it still.
                    self._epoll.unregister(fd)
                os.close(fd)

    def _drop_backend_channel(self) -> None:
        channel, self._backend_channel = self._backend_channel, None
        if channel is not None:
            channel.close()

    def close(self) -> None:
        """End the connection and close all that was opened for it; what the back end still has, it has."""
        if self.closed:
            return
        self.closed = True
        for index in list(self._rings):
            self._drop_ring(index)
        self._epoll.close()
        self._drop_backend_channel()
        self._channel.close()
