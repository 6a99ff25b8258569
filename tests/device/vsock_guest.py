"""A scripted guest of a socket device: sends what a test says, and keeps receive buffers there."""

from __future__ import annotations

from typing import TYPE_CHECKING

from chamber.wire.vsock import (
    EVENT_QUEUE,
    HDR_SIZE,
    HOST_CID,
    RX_QUEUE,
    TX_QUEUE,
    Header,
    VsockOp,
    VsockType,
)
from tests.device.driver import Driver

if TYPE_CHECKING:
    from chamber.device.vsock import VsockDevice

ALLOC = 1 << 18


class Guest(Driver):
    """A driver with sockets' bookkeeping left to the test.

    Attributes:
        inbox: packets that came and were not looked at.

    """

    device: VsockDevice

    def __init__(self, device: VsockDevice, *, buffers: int = 16, data: int = 4096,
                 features: int | None = None) -> None:
        super().__init__(device, features=features, memory=24 << 20)
        self.inbox: list[tuple[Header, bytes]] = []
        self._rx = [(self.place(HDR_SIZE), self.place(data)) for _ in range(buffers)]
        self._data = data
        self._tx = self.place(HDR_SIZE + (1 << 16))
        device.driver_ok()
        for header, body in self._rx:
            self._offer(header, body)
        for _ in range(4):
            self.add(EVENT_QUEUE, [], [4])
        device.notify(RX_QUEUE)

    def _offer(self, header: int, body: int) -> None:
        head = self.queues[RX_QUEUE].add([(header, HDR_SIZE, 2), (body, self._data, 2)])
        self.queues[RX_QUEUE].buffers[head] = [(header, HDR_SIZE), (body, self._data)]

    def collect(self) -> None:
        """Take what came, and offer the buffers again."""
        queue = self.queues[RX_QUEUE]
        while (element := queue.take()) is not None:
            _, head, length = element
            (header, _), (body, _) = queue.buffers.pop(head)
            whole = self.memory.read(header, HDR_SIZE) + self.memory.read(body, self._data)
            assert HDR_SIZE <= length <= len(whole)
            packet = Header.parse(whole)
            assert packet.len == length - HDR_SIZE
            self.inbox.append((packet, whole[HDR_SIZE:length]))
            self._offer(header, body)

    def packets(self) -> list[tuple[Header, bytes]]:
        """What came since the last call."""
        self.collect()
        self.device.notify(RX_QUEUE)
        self.collect()
        out, self.inbox = self.inbox, []
        return out

    def ops(self) -> list[int]:
        return [header.op for header, _ in self.packets()]

    def send(self, op: int, port: int = 7, *, data: bytes = b"", local: int = 1000, kind: int = VsockType.STREAM,
             flags: int = 0, alloc: int = ALLOC, fwd: int = 0, length: int | None = None, src: int = 3,
             dst: int = HOST_CID) -> None:
        """Send one packet."""
        header = Header(src, dst, local, port, len(data) if length is None else length, kind, op, flags, alloc, fwd)
        self.send_raw(header.build() + data)

    def send_raw(self, packet: bytes) -> None:
        self.memory.write(self._tx, packet)
        queue = self.queues[TX_QUEUE]
        parts = [(self._tx, len(packet[:HDR_SIZE]), 0)]
        if len(packet) > HDR_SIZE:
            parts.append((self._tx + HDR_SIZE, len(packet) - HDR_SIZE, 0))
        head = queue.add(parts)
        queue.buffers[head] = []
        self.device.notify(TX_QUEUE)
        assert [h for h, _ in self.used(TX_QUEUE)] == [head]

    def connect(self, port: int = 7, *, local: int = 1000, kind: int = VsockType.STREAM, alloc: int = ALLOC) -> None:
        """Connect, and see that it was accepted."""
        self.send(VsockOp.REQUEST, port, local=local, kind=kind, alloc=alloc)
        (header, _), = self.packets()
        assert header.op == VsockOp.RESPONSE

    def events(self) -> list[bytes]:
        return [data for _, data in self.used(EVENT_QUEUE)]
