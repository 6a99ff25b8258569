"""A scripted vhost-user back end, in a thread of its own: answers as an honest one does, except where it is told."""

from __future__ import annotations

import os
import select
import socket
import threading
import time
from typing import TYPE_CHECKING, Self, TypeAlias

from chamber.link.channel import Channel, Gone, Message
from chamber.link.frontend import INBAND, PROTOCOL_FEATURES, Frontend
from chamber.wire.vhost_user import (
    F_PROTOCOL_FEATURES,
    FRONTEND_MESSAGES,
    NEED_REPLY,
    REPLY,
    U64,
    ConfigSpace,
    FrontendRequest,
    VringState,
    encode,
)
from chamber.wire.virtio import Feature, bit

if TYPE_CHECKING:
    from collections.abc import Callable

    from chamber.wire.vhost_user import Payload

R = FrontendRequest
CONFIG = bytes(range(64))

Lie: TypeAlias = "Callable[[ScriptedBackend, Message], object]"


class ScriptedBackend:
    """One session over a socket pair, until the block ends.

    Attributes:
        lies: by request, what to do instead of answering.
        features: offered device features, without the protocol's bit.
        protocol: offered protocol features; None: not even that bit.
        seen: names of the requests that came.
        fds: descriptors that came, by request, newest last.

    """

    def __init__(self, lies: dict[FrontendRequest, Lie] | None = None, *, features: int = bit(Feature.VERSION_1),
                 protocol: int | None = PROTOCOL_FEATURES | INBAND, queues: int = 2, slots: int = 8) -> None:
        self.lies = lies or {}
        self.features = features
        self.protocol = protocol
        self.queues = queues
        self.slots = slots
        self.seen: list[str] = []
        self.payloads: list[Payload] = []
        self.fds: dict[FrontendRequest, list[int]] = {}
        self.error: BaseException | None = None
        self.theirs, self.socket = socket.socketpair()
        self._channel = Channel(self.socket)
        self._stop, self._stopped = os.pipe()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._stopped)
        self._thread.join()
        os.close(self._stop)
        self._channel.close()
        self.theirs.close()
        for fds in self.fds.values():
            for fd in fds:
                os.close(fd)
        if self.error is not None:
            raise self.error

    def frontend(self, *, seconds: float = 5.0, inband: bool = False) -> Frontend:
        """Negotiate with it."""
        return Frontend(self.theirs, seconds=seconds, inband=inband)

    def _run(self) -> None:
        try:
            while self._stop not in select.select([self._stop, self.socket.fileno()], [], [])[0]:
                while (message := self._channel.receive()) is not None:
                    self._handle(message)
        except (Gone, OSError):  # the front end has gone, or a lie was to go first
            pass
        except BaseException as error:
            self.error = error

    def _handle(self, message: Message) -> None:
        request = FrontendRequest(message.header.request)
        kind = FRONTEND_MESSAGES[request]
        payload = kind.payload.unpack(message.data)
        self.seen.append(request.name)
        self.payloads.append(payload)
        least, most = kind.fds
        assert least <= len(message.fds) <= most
        self.fds.setdefault(request, []).extend(message.fds)
        message.fds.clear()
        if request in self.lies:
            self.lies[request](self, message)
            return
        answer = self.answer(request, payload)
        if answer is not None:
            self._channel.send(request, answer, REPLY)
        elif message.header.flags & NEED_REPLY:
            self._channel.send(request, U64(0), REPLY)

    def answer(self, request: FrontendRequest, payload: Payload) -> Payload | None:
        match request:
            case R.GET_FEATURES:
                return U64(self.features | (0 if self.protocol is None else bit(F_PROTOCOL_FEATURES)))
            case R.GET_PROTOCOL_FEATURES:
                return U64(self.protocol or 0)
            case R.GET_QUEUE_NUM:
                return U64(self.queues)
            case R.GET_MAX_MEM_SLOTS:
                return U64(self.slots)
            case R.GET_STATUS:
                return U64(0x0F)
            case R.GET_CONFIG:
                assert isinstance(payload, ConfigSpace)
                assert payload.offset == 0
                return ConfigSpace(0, 0, CONFIG[:len(payload.data)])
            case R.GET_VRING_BASE:
                assert isinstance(payload, VringState)
                return VringState(payload.index, 7)
            case _:
                return None

    # What lies are made of.

    def raw(self, data: bytes, fds: list[int] | None = None) -> None:
        """Send bytes as they are."""
        if data:
            socket.send_fds(self.socket, [data], fds or [])

    def trickle(self, data: bytes) -> None:
        """Send a byte, and another a moment later, until the front end has had enough."""
        for i in range(len(data)):
            self.socket.send(data[i:i + 1])
            time.sleep(0.02)

    def hang_up(self) -> None:
        self.socket.shutdown(socket.SHUT_RDWR)


def says(data: bytes, fds: int = 0) -> Lie:
    """Say that instead of an answer, with so many descriptors."""
    def lie(backend: ScriptedBackend, _message: Message) -> None:
        ends = [os.eventfd(0) for _ in range(fds)]
        backend.raw(data, ends)
        for fd in ends:
            os.close(fd)
    return lie


def breaks_off(data: bytes) -> Lie:
    """Say that, and hang up."""
    def lie(backend: ScriptedBackend, _message: Message) -> None:
        backend.raw(data)
        backend.hang_up()
    return lie


def replies(request: int, payload: Payload | None, flags: int = REPLY, fds: int = 0) -> Lie:
    """Send a well-formed message."""
    return says(encode(request, payload, flags), fds)
