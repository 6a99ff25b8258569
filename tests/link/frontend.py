"""A scripted vhost-user front end: speaks to a back end as QEMU or User-Mode Linux do, and worse."""

from __future__ import annotations

import array
import os
import socket
import struct
import threading
import time
from typing import TYPE_CHECKING, Self

from chamber.link.eventloop import EventLoop
from chamber.link.listener import Backend
from chamber.wire.split import DESC, SplitLayout
from chamber.wire.vhost_user import (
    F_PROTOCOL_FEATURES,
    HEADER_SIZE,
    NEED_REPLY,
    U64,
    FrontendRequest,
    Header,
    MemoryRegion,
    MemoryTable,
    Payload,
    ProtocolFeature,
    VringAddress,
    VringState,
    encode,
)
from chamber.wire.virtio import Feature, bit

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from chamber.device.base import Device

MEMORY = 1 << 20
USER = 0x7F00_0000_0000
RING = 0x1000
DATA = 0x10000
PROTOCOL = bit(ProtocolFeature.MQ, ProtocolFeature.REPLY_ACK, ProtocolFeature.BACKEND_REQ, ProtocolFeature.CONFIG)


class Served:
    """A device behind a back end that runs in a thread of its own, until the block ends."""

    def __init__(self, device: Device, path: Path, observer: Callable[[bytes], None] | None = None, *,
                 replace: bool = False) -> None:
        self.device = device
        self.path = path
        self.error: BaseException | None = None
        self._stop = False
        self._loop = EventLoop()
        self.backend = Backend(path, lambda: device, self._loop, observer=observer, inband=True, replace=replace)
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        try:
            while not self._stop:
                self._loop.turn(0.01)
        except BaseException as error:
            self.error = error

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop = True
        self._thread.join()
        self.backend.close()
        self._loop.close()
        if self.error is not None:
            raise self.error


class Frontend:
    """One connection, one queue's worth of memory."""

    def __init__(self, path: Path) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self.socket.connect(str(path))  # before the time-out: without one, it waits while the backlog is full
        except BaseException:
            self.socket.close()
            raise
        self.socket.settimeout(5)
        self.memory_fd = os.memfd_create("guest")
        os.truncate(self.memory_fd, MEMORY)
        self.kick = os.eventfd(0)
        self.call = os.eventfd(0, os.EFD_NONBLOCK)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()
        for fd in (self.memory_fd, self.kick, self.call):
            os.close(fd)

    def send(self, request: int, payload: Payload | None = None, fds: tuple[int, ...] = (), flags: int = 0) -> None:
        ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        self.socket.sendmsg([encode(request, payload, flags)], ancillary)

    def receive(self) -> tuple[Header, bytes]:
        header = Header.unpack(self._exactly(HEADER_SIZE))
        return header, self._exactly(header.size)

    def _exactly(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            part = self.socket.recv(size - len(data))
            if not part:
                raise EOFError("the back end closed the connection")
            data += part
        return data

    def ask(self, request: int, payload: Payload | None = None) -> bytes:
        self.send(request, payload)
        header, data = self.receive()
        assert header.is_reply
        assert header.request == request
        return data

    def acked(self, request: int, payload: Payload | None = None, fds: tuple[int, ...] = ()) -> int:
        self.send(request, payload, fds, NEED_REPLY)
        return U64.unpack(self.receive()[1]).value

    def ended(self) -> bool:
        """Whether the back end closed the connection."""
        try:
            while self.socket.recv(4096):
                pass
        except ConnectionResetError:
            pass
        except TimeoutError:
            return False
        return True

    def negotiate(self, protocol: int = PROTOCOL) -> int:
        self.send(FrontendRequest.SET_OWNER)
        features = U64.unpack(self.ask(FrontendRequest.GET_FEATURES)).value
        assert features >> F_PROTOCOL_FEATURES & 1
        offered = U64.unpack(self.ask(FrontendRequest.GET_PROTOCOL_FEATURES)).value
        self.send(FrontendRequest.SET_PROTOCOL_FEATURES, U64(protocol & offered))
        return features

    def share(self) -> None:
        table = MemoryTable((MemoryRegion(0, MEMORY, USER, 0),))
        self.send(FrontendRequest.SET_MEM_TABLE, table, (self.memory_fd,))

    def start(self, index: int = 0, size: int = 16, *, base: int = 0, inband: bool = False) -> None:
        layout = SplitLayout(size)
        address = VringAddress(index, 0, USER + RING, USER + RING + layout.used_offset,
                               USER + RING + layout.avail_offset, 0)
        if not inband:
            self.send(FrontendRequest.SET_VRING_CALL, U64(index), (self.call,))
        self.send(FrontendRequest.SET_VRING_NUM, VringState(index, size))
        self.send(FrontendRequest.SET_VRING_BASE, VringState(index, base))
        self.send(FrontendRequest.SET_VRING_ADDR, address)
        if not inband:
            self.send(FrontendRequest.SET_VRING_KICK, U64(index), (self.kick,))
        self.send(FrontendRequest.SET_VRING_ENABLE, VringState(index, 1))

    def setup(self, protocol: int = PROTOCOL) -> None:
        self.negotiate(protocol)
        self.send(FrontendRequest.SET_FEATURES, U64(bit(Feature.VERSION_1, F_PROTOCOL_FEATURES)))
        self.share()
        self.start(inband=bool(protocol >> ProtocolFeature.INBAND_NOTIFICATIONS & 1))

    def put(self, address: int, data: bytes) -> None:
        os.pwrite(self.memory_fd, data, address)

    def get(self, address: int, length: int) -> bytes:
        return os.pread(self.memory_fd, length, address)

    def offer(self, number: int, parts: list[tuple[int, int, bool]], *, size: int = 16) -> None:
        """Make the `number`-th chain available, from descriptor 0 on: (address, length, device writes it)."""
        layout = SplitLayout(size)
        for i, (address, length, write) in enumerate(parts):
            flags = (2 if write else 0) | (1 if i + 1 < len(parts) else 0)
            self.put(RING + 16 * i, DESC.pack(address, length, flags, i + 1))
        avail = RING + layout.avail_offset
        self.put(avail + 4 + 2 * (number % size), struct.pack("<H", 0))
        self.put(avail + 2, struct.pack("<H", number + 1))

    def used(self, size: int = 16) -> int:
        return int.from_bytes(self.get(RING + SplitLayout(size).used_offset + 2, 2), "little")

    def wait_used(self, index: int) -> None:
        deadline = time.monotonic() + 10
        while self.used() != index:
            assert time.monotonic() < deadline, "the chain was not used"
            time.sleep(0.001)

    def sync(self) -> None:
        """Return after the back end has handled all that was sent."""
        self.ask(FrontendRequest.GET_FEATURES)
