"""Gives virtiofsd a configuration space, so that a guest without a front end of QEMU's can mount what it serves.

virtiofsd 7.2 leaves the tag to QEMU. The relay passes every message on with its descriptors, and answers what asks for
configuration itself. Requests of the guest go past it: they take shared memory and eventfds.
"""

from __future__ import annotations

import select
import socket
import threading
from typing import TYPE_CHECKING, Final, Self

from chamber.link.channel import Channel, Gone
from chamber.wire.errors import WireError
from chamber.wire.fs import CONFIG
from chamber.wire.vhost_user import (
    REPLY,
    U64,
    VERSION_MASK,
    Bytes,
    ConfigSpace,
    FrontendRequest,
    ProtocolFeature,
)

if TYPE_CHECKING:
    from pathlib import Path
    from types import TracebackType

    from chamber.link.channel import Message

__all__ = ("TagRelay",)

_OURS: Final = 1 << ProtocolFeature.CONFIG
_TURN_SECONDS: Final = 0.1


class TagRelay:
    """One session between a guest and virtiofsd, in a thread of its own, until closed.

    Args:
        listen: where the guest connects.
        server: where virtiofsd listens.
        tag: by which the guest mounts.

    """

    def __init__(self, listen: Path, server: Path, tag: str) -> None:
        self._config = CONFIG.pack(tag=tag.encode(), num_request_queues=1)
        self._server = server
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(listen))
        self._listener.listen()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        self._ended.set()
        self._thread.join()
        self._listener.close()

    def _run(self) -> None:
        while not self._ended.is_set():
            if select.select([self._listener], [], [], _TURN_SECONDS)[0]:
                guest = Channel(self._listener.accept()[0])
                back = socket.socket(socket.AF_UNIX)
                back.connect(str(self._server))
                self._session(guest, Channel(back))
                return

    def _session(self, guest: Channel, server: Channel) -> None:
        try:
            while not self._ended.is_set():
                ready, _, _ = select.select([guest, server], [], [], _TURN_SECONDS)
                for side in ready:
                    while (message := side.receive()) is not None:
                        if side is server:
                            self._to_guest(guest, message)
                        else:
                            self._to_server(guest, server, message)
                        message.close()
        except (Gone, WireError):
            pass  # the session is over
        finally:
            guest.close()
            server.close()

    def _to_guest(self, guest: Channel, message: Message) -> None:
        data = message.data
        if message.header.request == FrontendRequest.GET_PROTOCOL_FEATURES:
            data = U64(U64.unpack(data).value | _OURS).pack()
        guest.send(message.header.request, Bytes(data), message.header.flags & ~VERSION_MASK, tuple(message.fds))

    def _to_server(self, guest: Channel, server: Channel, message: Message) -> None:
        request, data = message.header.request, message.data
        if request == FrontendRequest.GET_CONFIG:
            asked = ConfigSpace.unpack(data)
            part = bytes(self._config[asked.offset:asked.offset + len(asked.data)]).ljust(len(asked.data), b"\0")
            guest.send(request, ConfigSpace(asked.offset, asked.flags, part), REPLY)
            return
        if request == FrontendRequest.SET_PROTOCOL_FEATURES:
            data = U64(U64.unpack(data).value & ~_OURS).pack()
        server.send(request, Bytes(data), message.header.flags & ~VERSION_MASK, tuple(message.fds))
