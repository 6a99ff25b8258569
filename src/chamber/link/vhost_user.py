"""A vhost-user back end: serves a virtio device to a real front end (QEMU, User-Mode Linux, any other).

Front ends differ, and what they do differently stands here: User-Mode Linux stops a ring by SET_VRING_ENABLE 0 alone,
sets rings up again while they run, sends its memory table at each probe and needs BACKEND_REQ to find an interrupt;
QEMU adds memory by region, asks for the number of queues and slots, and stops rings by GET_VRING_BASE.

The front end is not trusted either. A message that breaks the protocol raises `WireError` inside, is told to `log`, and
ends that one connection; the device is reset, and the next front end may come.
"""

from __future__ import annotations

import contextlib
import os
import socket
from typing import TYPE_CHECKING, Final, Protocol

from chamber.link.channel import Channel, Gone, Message
from chamber.link.memory import SharedMemory
from chamber.wire.errors import DmaFault, WireError
from chamber.wire.vhost_user import (
    F_PROTOCOL_FEATURES,
    FRONTEND_MESSAGES,
    NEED_REPLY,
    REPLY,
    U64,
    VRING_NO_FD,
    BackendRequest,
    ConfigSpace,
    FrontendRequest,
    MemoryTable,
    ProtocolFeature,
    SingleRegion,
    VringAddress,
    VringState,
    encode,
)
from chamber.wire.virtio import Feature, Status, bit

if TYPE_CHECKING:
    from collections.abc import Callable

    from chamber.link.eventloop import EventLoop
    from chamber.wire.vhost_user import MessageType, Payload

__all__ = ("Servable", "Session")

_R = FrontendRequest
_P = ProtocolFeature

PROTOCOL_FEATURES: Final = bit(_P.MQ, _P.REPLY_ACK, _P.BACKEND_REQ, _P.CONFIG, _P.RESET_DEVICE,
                               _P.CONFIGURE_MEM_SLOTS, _P.STATUS)
"""What this back end offers. A message that needs any other is a broken rule."""

INBAND: Final = bit(_P.INBAND_NOTIFICATIONS)
"""Notifications as messages, each with an acknowledgement. Not offered unless asked for: User-Mode Linux takes them
where it can, and gets less than half of the requests through that it gets through with eventfds."""

MAX_MEM_SLOTS: Final = 64
_MESSAGES_PER_TURN: Final = 64
_REQUESTS: Final = {int(request): request for request in FrontendRequest}
_ONE: Final = (1).to_bytes(8, "little")
_POLL_SECONDS: Final = 0.001
_KICKS_PER_READ: Final = 32
_KICK_BYTES: Final = 1 << 12
"""A kick is an edge, and needs no reading; but a pipe or socket, which a front end may use for an eventfd, fills up."""


class Servable(Protocol):
    """What is served: `chamber.device.base.Device` has these."""

    queue_size: int
    config_interrupt: Callable[[], None]
    schedule: Callable[[float, Callable[[], None]], None]

    @property
    def queue_count(self) -> int:
        """How many queues exist."""
        ...

    def offered_features(self) -> int: ...  # noqa: D102 - as in Device, like all below
    def refuses_queue(self, index: int) -> bool: ...  # noqa: D102
    def accept_features(self, features: int) -> bool: ...  # noqa: D102
    def read_config(self, offset: int, size: int) -> bytes: ...  # noqa: D102
    def write_config(self, offset: int, data: bytes) -> None: ...  # noqa: D102
    def start_queue(self, index: int, dma: SharedMemory, *, size: int, desc: int, driver: int, device: int,  # noqa: D102
                    interrupt: Callable[[], None], base: int = 0) -> None: ...
    def stop_queue(self, index: int) -> int: ...  # noqa: D102
    def notify(self, index: int) -> bool: ...  # noqa: D102
    def pending(self, index: int) -> bool: ...  # noqa: D102
    def driver_ok(self) -> None: ...  # noqa: D102
    def reset(self) -> None: ...  # noqa: D102
    def close(self) -> None: ...  # noqa: D102
    def pollable(self) -> dict[int, Callable[[], None]]: ...  # noqa: D102
    def log(self, line: str) -> None: ...  # noqa: D102


class _Refused(Exception):
    """The device does not take a message that is fine."""


class _Vring:
    """What the front end said about one queue."""

    __slots__ = (
        "address",
        "base",
        "call",
        "enabled",
        "err",
        "index",
        "kick",
        "kicked",
        "kicks",
        "polled",
        "running",
        "size",
    )

    def __init__(self, index: int) -> None:
        self.index = index
        self.size = 0
        self.base = 0
        self.address: VringAddress | None = None
        self.kick: int | None = None
        self.call: int | None = None
        self.err: int | None = None
        self.kicked = False
        self.kicks = 0
        self.polled = False
        self.enabled = False
        self.running = False


class Session:
    """One front end's connection, from its first message to its end.

    Args:
        device: what is served; reset at the end.
        sock: the connection.
        loop: where it waits.
        ended: called once, after everything is given back.
        trace: gets one line per message, if given.
        observer: sees all that the device reads from buffers, if given.
        protocol_features: what is offered.

    """

    def __init__(self, device: Servable, sock: socket.socket, loop: EventLoop, ended: Callable[[Session], None],
                 trace: Callable[[str], None] | None = None, observer: Callable[[bytes], None] | None = None,
                 protocol_features: int = PROTOCOL_FEATURES) -> None:
        self.device = device
        self._offered_protocol = protocol_features
        self.error: Exception | None = None
        self.messages = 0
        self._loop = loop
        self._ended = ended
        self._trace = trace
        self._channel = Channel(sock)
        self._backend_channel: Channel | None = None
        self._memory = SharedMemory(observer)
        self._vrings = [_Vring(i) for i in range(device.queue_count)]
        self._acked_protocol = 0
        self._protocol_set = False
        self._features = 0
        self._status = 0
        self._polling = self._pumping = False
        self._untold = b""
        self.closed = self.gone = False
        device.config_interrupt = self._config_changed
        device.schedule = self._schedule
        loop.add_reader(self._channel.fileno(), self.pump)
        for fd, call in device.pollable().items():
            loop.add_reader(fd, call)
        self._handlers: dict[FrontendRequest, Callable[[Payload, Message], Payload | None]] = {
            _R.GET_FEATURES: self._get_features,
            _R.SET_FEATURES: self._set_features,
            _R.SET_OWNER: self._nothing,
            _R.RESET_OWNER: self._nothing,
            _R.SET_MEM_TABLE: self._set_mem_table,
            _R.SET_VRING_NUM: self._set_vring_num,
            _R.SET_VRING_ADDR: self._set_vring_addr,
            _R.SET_VRING_BASE: self._set_vring_base,
            _R.GET_VRING_BASE: self._get_vring_base,
            _R.SET_VRING_KICK: self._set_vring_kick,
            _R.SET_VRING_CALL: self._set_vring_call,
            _R.SET_VRING_ERR: self._set_vring_err,
            _R.GET_PROTOCOL_FEATURES: self._get_protocol_features,
            _R.SET_PROTOCOL_FEATURES: self._set_protocol_features,
            _R.GET_QUEUE_NUM: self._get_queue_num,
            _R.SET_VRING_ENABLE: self._set_vring_enable,
            _R.SET_BACKEND_REQ_FD: self._set_backend_req_fd,
            _R.GET_CONFIG: self._get_config,
            _R.SET_CONFIG: self._set_config,
            _R.RESET_DEVICE: self._reset_device,
            _R.VRING_KICK: self._vring_kick,
            _R.GET_MAX_MEM_SLOTS: self._get_max_mem_slots,
            _R.ADD_MEM_REG: self._add_mem_reg,
            _R.REM_MEM_REG: self._rem_mem_reg,
            _R.SET_STATUS: self._set_status,
            _R.GET_STATUS: self._get_status,
        }

    # Receiving.

    def pump(self) -> None:
        """Handle the messages that are there; end the session when the front end is gone or breaks a rule."""
        self._pumping = True
        try:
            for _ in range(_MESSAGES_PER_TURN):
                message = self._channel.receive()
                if message is None:
                    return
                try:
                    answered = self._handle(message)
                finally:
                    message.close()
                # Who waited for an answer has sent no more; who did not gets the next turn.
                if answered or self.closed:
                    return
        except Gone:
            self.close()
        except (WireError, DmaFault) as error:
            self.error = error
            self.device.log(f"front end: {error}; connection closed")
            self.close()
        finally:
            self._pumping = False
            self._tell_all()

    def _handle(self, message: Message) -> bool:
        """Do what a message asks for; return whether it was answered."""
        header = message.header
        self.messages += 1
        request = _REQUESTS.get(header.request)
        if request is None:
            raise WireError("the request is one of the protocol", spec="vhost-user, Front-end message types",
                            detail=str(header.request))
        kind = FRONTEND_MESSAGES[request]
        handler = self._handlers.get(request)
        if handler is None or header.is_reply:
            raise WireError("a message needs a feature that was negotiated", spec="vhost-user, Front-end message types",
                            detail=request.name)
        self._check(request, kind, message)
        payload = kind.payload.unpack(message.data)
        if self._trace is not None:
            self._trace(f"{request.name} {payload}")
        outcome = 0
        answer: Payload | None = None
        try:
            answer = handler(payload, message)
        except _Refused:
            outcome = 1  # where nobody asked for an answer the queue is just never started
        except DmaFault as error:
            if kind.reply is not None or not self._needs_ack(header.flags):
                raise
            self.device.log(f"front end: {request.name}: {error}")
            outcome = 1
        if answer is None and self._needs_ack(header.flags):
            answer = U64(outcome)
        if answer is None or self.closed:
            return False
        self._tell_all()
        self._channel.send(request, answer, REPLY)
        return True

    def _check(self, request: FrontendRequest, kind: MessageType, message: Message) -> None:
        least, most = kind.fds
        if not least <= len(message.fds) <= most:
            raise WireError("a message brings its own number of descriptors",
                            spec="vhost-user, Message Specification", detail=f"{request.name} with {len(message.fds)}")
        if kind.gate is not None and not self._has(kind.gate):
            raise WireError("a message needs a feature that was negotiated", spec="vhost-user, Protocol features",
                            detail=f"{request.name} without {kind.gate.name}")

    def _needs_ack(self, flags: int) -> bool:
        return bool(flags & NEED_REPLY) and self._has(_P.REPLY_ACK)

    def _has(self, feature: ProtocolFeature) -> bool:
        return bool(self._acked_protocol >> feature & 1)

    def _vring(self, index: int) -> _Vring:
        if index >= len(self._vrings):
            raise WireError("a vring index is below the number of queues", spec="vhost-user, Vring state description",
                            detail=f"{index} of {len(self._vrings)}")
        return self._vrings[index]

    # Features, config, status.

    def _nothing(self, _payload: Payload, _message: Message) -> None:
        return None

    def _get_features(self, _payload: Payload, _message: Message) -> Payload:
        features = self.device.offered_features() & (1 << 64) - 1 & ~bit(Feature.NOTIFICATION_DATA)
        return U64(features | bit(F_PROTOCOL_FEATURES))

    def _set_features(self, payload: Payload, _message: Message) -> None:
        assert isinstance(payload, U64)
        self._features = payload.value
        if not self.device.accept_features(payload.value & ~bit(F_PROTOCOL_FEATURES)):
            self.device.log(f"the driver accepted features that were not offered: {payload.value:#x}")
        if not payload.value >> F_PROTOCOL_FEATURES & 1:
            for vring in self._vrings:
                vring.enabled = True
                self._update(vring)

    def _get_protocol_features(self, _payload: Payload, _message: Message) -> Payload:
        return U64(self._offered_protocol)

    def _set_protocol_features(self, payload: Payload, _message: Message) -> None:
        assert isinstance(payload, U64)
        if payload.value & ~self._offered_protocol:
            raise WireError("the front end takes offered protocol features alone",
                            spec="vhost-user, Protocol features", detail=f"{payload.value:#x}")
        needs = bit(_P.REPLY_ACK, _P.BACKEND_REQ)
        if payload.value & INBAND and payload.value & needs != needs:
            raise WireError("INBAND_NOTIFICATIONS needs BACKEND_REQ and REPLY_ACK",
                            spec="vhost-user, In-band notifications")
        self._acked_protocol = payload.value
        self._protocol_set = True

    def _get_queue_num(self, _payload: Payload, _message: Message) -> Payload:
        return U64(len(self._vrings))

    def _get_config(self, payload: Payload, _message: Message) -> Payload:
        assert isinstance(payload, ConfigSpace)
        return ConfigSpace(payload.offset, payload.flags, self.device.read_config(payload.offset, len(payload.data)))

    def _set_config(self, payload: Payload, _message: Message) -> None:
        assert isinstance(payload, ConfigSpace)
        self.device.write_config(payload.offset, payload.data)

    def _set_status(self, payload: Payload, _message: Message) -> None:
        assert isinstance(payload, U64)
        self._status = payload.value & 0xFF
        if not self._status:
            self._stop_all()
            self.device.reset()
        elif self._status & Status.DRIVER_OK:
            self.device.driver_ok()

    def _get_status(self, _payload: Payload, _message: Message) -> Payload:
        return U64(self._status)

    def _reset_device(self, _payload: Payload, _message: Message) -> None:
        self._stop_all()
        for vring in self._vrings:
            vring.enabled = False
        self.device.reset()

    # Memory.

    def _set_mem_table(self, payload: Payload, message: Message) -> None:
        assert isinstance(payload, MemoryTable)
        if len(message.fds) != len(payload.regions):
            raise WireError("each memory region brings a descriptor", spec="vhost-user, SET_MEM_TABLE",
                            detail=f"{len(message.fds)} for {len(payload.regions)}")
        fds, message.fds = message.fds, []
        running = self._pause()
        self._memory.replace(list(zip(payload.regions, fds, strict=True)))
        self._resume(running)

    def _get_max_mem_slots(self, _payload: Payload, _message: Message) -> Payload:
        return U64(MAX_MEM_SLOTS)

    def _add_mem_reg(self, payload: Payload, message: Message) -> None:
        assert isinstance(payload, SingleRegion)
        if len(self._memory.regions) >= MAX_MEM_SLOTS:
            raise WireError(f"there are {MAX_MEM_SLOTS} memory slots", spec="vhost-user, ADD_MEM_REG")
        fd = message.take_fd()
        assert fd is not None
        self._memory.add(payload.region, fd)

    def _rem_mem_reg(self, payload: Payload, _message: Message) -> None:
        assert isinstance(payload, SingleRegion)
        running = self._pause()
        self._memory.remove(payload.region)
        self._resume(running)

    def _pause(self) -> list[_Vring]:
        running = [v for v in self._vrings if v.running]
        for vring in running:
            self._stop(vring)
        return running

    def _resume(self, vrings: list[_Vring]) -> None:
        for vring in vrings:
            # A ring whose memory went away stays stopped: User-Mode Linux replaces its table before it replaces rings.
            with contextlib.suppress(DmaFault):
                self._update(vring)

    # Rings.

    def _set_vring_num(self, payload: Payload, _message: Message) -> None:
        assert isinstance(payload, VringState)
        vring = self._vring(payload.index)
        if not 0 < payload.num <= 32768:
            raise WireError("a queue has 1 to 32768 descriptors", spec="vhost-user, SET_VRING_NUM",
                            detail=str(payload.num))
        self._stop(vring)
        # A ring set up anew waits for its new address.
        vring.address = None
        vring.size = payload.num

    def _set_vring_base(self, payload: Payload, _message: Message) -> None:
        assert isinstance(payload, VringState)
        vring = self._vring(payload.index)
        self._stop(vring)
        vring.base = payload.num

    def _set_vring_addr(self, payload: Payload, _message: Message) -> None:
        assert isinstance(payload, VringAddress)
        vring = self._vring(payload.index)
        self._stop(vring)
        if self.device.refuses_queue(payload.index):
            raise _Refused
        vring.address = payload
        self._update(vring)

    def _get_vring_base(self, payload: Payload, _message: Message) -> Payload:
        assert isinstance(payload, VringState)
        vring = self._vring(payload.index)
        self._stop(vring)
        vring.kicked = vring.polled = False
        self._close_fd(vring, "kick")
        return VringState(payload.index, vring.base)

    def _set_vring_enable(self, payload: Payload, _message: Message) -> None:
        assert isinstance(payload, VringState)
        # QEMU enables network rings before it sets features; that it set protocol features tells as much.
        if not (self._features >> F_PROTOCOL_FEATURES & 1 or self._protocol_set):
            raise WireError("SET_VRING_ENABLE needs VHOST_USER_F_PROTOCOL_FEATURES",
                            spec="vhost-user, SET_VRING_ENABLE")
        vring = self._vring(payload.index)
        vring.enabled = bool(payload.num)
        self._update(vring)

    def _set_vring_kick(self, payload: Payload, message: Message) -> None:
        vring, fd = self._vring_fd(payload, message)
        self._close_fd(vring, "kick")
        vring.kicked = True
        vring.polled = fd is None
        if fd is not None:
            vring.kick = fd
            os.set_blocking(fd, False)
            self._loop.add_reader(fd, lambda: self._kicked(vring), edge=True)
        elif not self._polling:
            self._polling = True
            self._schedule(_POLL_SECONDS, self._poll)
        self._update(vring)

    def _set_vring_call(self, payload: Payload, message: Message) -> None:
        vring, fd = self._vring_fd(payload, message)
        self._close_fd(vring, "call")
        vring.call = fd
        if fd is not None:
            os.set_blocking(fd, False)

    def _set_vring_err(self, payload: Payload, message: Message) -> None:
        vring, fd = self._vring_fd(payload, message)
        self._close_fd(vring, "err")
        vring.err = fd

    def _vring_fd(self, payload: Payload, message: Message) -> tuple[_Vring, int | None]:
        assert isinstance(payload, U64)
        if bool(payload.value & VRING_NO_FD) != (not message.fds):
            raise WireError("bit 8 tells whether a descriptor comes along", spec="vhost-user, SET_VRING_KICK",
                            detail=f"{payload.value:#x} with {len(message.fds)}")
        vring = self._vring(payload.value & 0xFF)
        return vring, message.take_fd()

    def _close_fd(self, vring: _Vring, name: str) -> None:
        fd: int | None = getattr(vring, name)
        if fd is not None:
            self._loop.remove_reader(fd)
            os.close(fd)
            setattr(vring, name, None)

    def _update(self, vring: _Vring) -> None:
        """Start or stop a ring as its state has become (Ring states)."""
        ready = vring.address is not None and vring.enabled and (vring.kicked or self._has(_P.INBAND_NOTIFICATIONS))
        if ready and not vring.running:
            self._start(vring)
        elif not ready:
            self._stop(vring)

    def _start(self, vring: _Vring) -> None:
        address = vring.address
        assert address is not None
        where = self._memory.guest_address
        self.device.start_queue(vring.index, self._memory, size=vring.size, desc=where(address.desc),
                                driver=where(address.avail), device=where(address.used), base=vring.base,
                                interrupt=lambda: self._interrupt(vring))
        vring.running = True
        if self.device.pending(vring.index):
            # A kick from before the ring ran is lost otherwise.
            self._loop.call_soon(lambda: self._notify(vring))

    def _stop(self, vring: _Vring) -> None:
        if vring.running:
            vring.running = False
            vring.base = self.device.stop_queue(vring.index)

    def _stop_all(self) -> None:
        for vring in self._vrings:
            self._stop(vring)
            vring.address = None

    # Notifications.

    def _kicked(self, vring: _Vring) -> None:
        if vring.kick is not None:
            vring.kicks += 1
            if not vring.kicks % _KICKS_PER_READ:
                with contextlib.suppress(OSError):
                    os.read(vring.kick, _KICK_BYTES)
            self._notify(vring)

    def _vring_kick(self, payload: Payload, _message: Message) -> None:
        assert isinstance(payload, VringState)
        self._notify(self._vring(payload.index))

    def _notify(self, vring: _Vring) -> None:
        if vring.running and not self.closed and self.device.notify(vring.index):
            self._loop.call_soon(lambda: self._notify(vring))

    def _poll(self) -> None:
        polled = [v for v in self._vrings if v.polled]
        for vring in polled:
            if vring.running and self.device.pending(vring.index):
                self._notify(vring)
        self._polling = bool(polled)
        if polled:
            self._schedule(_POLL_SECONDS, self._poll)

    def _interrupt(self, vring: _Vring) -> None:
        if vring.call is not None:
            try:  # noqa: SIM105 - once a request: the context manager takes a microsecond
                os.write(vring.call, _ONE)
            except (BlockingIOError, BrokenPipeError, ConnectionResetError):
                pass  # a full socket or counter means that an interrupt is pending already
        elif self._backend_channel is not None and self._has(_P.INBAND_NOTIFICATIONS):
            self._tell(BackendRequest.VRING_CALL, VringState(vring.index, 0))

    def _config_changed(self) -> None:
        if self._backend_channel is not None and self._has(_P.CONFIG):
            self._tell(BackendRequest.CONFIG_CHANGE_MSG, None)

    def _tell(self, request: BackendRequest, payload: Payload | None) -> None:
        self._untold += encode(request, payload)
        if not self._pumping:
            self._tell_all()

    def _tell_all(self) -> None:
        """Send what came up while a message was handled, in one piece: each piece is a signal to User-Mode Linux."""
        if not self._untold:
            return
        untold, self._untold = self._untold, b""
        # A front end that leaves its socket full has interrupts pending; it loses these and no others.
        if self._backend_channel is not None:
            with contextlib.suppress(Gone):
                self._backend_channel.send_frame(untold)

    def _set_backend_req_fd(self, _payload: Payload, message: Message) -> None:
        fd = message.take_fd()
        assert fd is not None
        self._drop_backend_channel()
        try:
            sock = socket.socket(fileno=fd)
        except OSError as error:
            os.close(fd)
            raise WireError("the back-end channel is a socket", spec="vhost-user, SET_BACKEND_REQ_FD",
                            detail=str(error)) from None
        channel = self._backend_channel = Channel(sock)
        self._loop.add_reader(channel.fileno(), self._drain_replies)

    def _drain_replies(self) -> None:
        """Read what the front end answers on the back-end channel: nothing was asked, so nothing is done with it."""
        channel = self._backend_channel
        if channel is None:
            return
        try:
            while (message := channel.receive()) is not None:
                message.close()
        except (Gone, WireError):
            self._drop_backend_channel()

    def _drop_backend_channel(self) -> None:
        channel, self._backend_channel = self._backend_channel, None
        if channel is not None:
            self._loop.remove_reader(channel.fileno())
            channel.close()

    def _schedule(self, delay: float, call: Callable[[], None]) -> None:
        """Call back later, unless the session has ended by then."""
        def run() -> None:
            if not self.closed:
                call()
        self._loop.call_later(delay, run)

    def retire(self) -> None:
        """Serve no more: stop all rings, reset the device, give back memory; stay connected until the front end goes.

        User-Mode Linux takes the end of a connection for the end of a device, for good: also of one that it keeps only
        because somebody holds it, while it has connected anew.
        """
        if self.closed:
            return
        self._stop_all()
        self.closed = True
        self.device.reset()
        self.device.config_interrupt = lambda: None
        for fd in self.device.pollable():
            self._loop.remove_reader(fd)
        for vring in self._vrings:
            for name in ("kick", "call", "err"):
                self._close_fd(vring, name)
        self._memory.close()
        self._loop.remove_reader(self._channel.fileno())
        self._loop.add_reader(self._channel.fileno(), self._await_end)

    def _await_end(self) -> None:
        try:
            message = self._channel.receive()
        except (Gone, WireError):
            self.close()
            return
        if message is not None:  # it does not know that nobody answers any more
            message.close()
            self.close()

    def close(self) -> None:
        """End the session and the connection."""
        self.retire()
        if self.gone:
            return
        self.gone = True
        self._drop_backend_channel()
        self._loop.remove_reader(self._channel.fileno())
        self._channel.close()
        self._ended(self)
