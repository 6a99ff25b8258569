"""The smallest driver that a device can be tried with: split queues in a bytearray, nothing checked."""

from __future__ import annotations

from typing import TYPE_CHECKING

from chamber.wire.errors import DmaFault
from chamber.wire.split import DESC, DESC_F_NEXT, DESC_F_WRITE, SplitLayout

if TYPE_CHECKING:
    from chamber.device.base import Device

MEMORY = 1 << 20
BASE = 0x10000


class Memory:
    """Guest memory at `BASE`; all of it is shared."""

    def __init__(self, size: int = MEMORY) -> None:
        self.data = bytearray(size)
        self._view = memoryview(self.data)

    def view(self, address: int, length: int) -> memoryview:
        start = address - BASE
        if start < 0 or length < 0 or start + length > len(self.data):
            raise DmaFault(address, length, "view", "outside the test's memory")
        return self._view[start:start + length]

    def read(self, address: int, length: int) -> bytes:
        return bytes(self.view(address, length))

    def write(self, address: int, data: bytes | bytearray | memoryview) -> None:
        self.view(address, len(data))[:] = data


class Queue:
    """The driver half of one split queue. Every buffer has a fixed place of its own."""

    def __init__(self, memory: Memory, base: int, size: int) -> None:
        self.memory = memory
        self.size = size
        self.desc = base
        layout = SplitLayout(size)
        self.avail = base + layout.avail_offset
        self.used = base + layout.used_offset
        self.next_desc = 0
        self.avail_idx = 0
        self.seen = 0
        self.buffers: dict[int, list[tuple[int, int]]] = {}
        self.interrupts = 0

    def put_desc(self, index: int, addr: int, length: int, flags: int, follow: int) -> None:
        self.memory.write(self.desc + 16 * index, DESC.pack(addr, length, flags, follow))

    def expose(self, head: int) -> None:
        slot = self.avail_idx % self.size
        self.memory.write(self.avail + 4 + 2 * slot, head.to_bytes(2, "little"))
        self.avail_idx = (self.avail_idx + 1) & 0xFFFF
        self.memory.write(self.avail + 2, self.avail_idx.to_bytes(2, "little"))

    def interrupted(self) -> None:
        self.interrupts += 1


class Driver:
    """Puts chains into a device's queues and takes them back.

    Args:
        device: the device.
        features: what to accept; by default all that it offers but event index.
        queues: how many queues to start; by default all.
        size: descriptors per queue.

    """

    def __init__(self, device: Device, *, features: int | None = None, queues: int | None = None, size: int = 64,
                 memory: int = MEMORY) -> None:
        self.device = device
        self.memory = Memory(memory)
        self._free = BASE
        self.queues: list[Queue] = []
        self.config_interrupts = 0
        device.config_interrupt = self._config_changed
        device.accept_features(device.offered_features() & ~(1 << 29) if features is None else features)
        for index in range(device.queue_count if queues is None else queues):
            queue = Queue(self.memory, self.place(SplitLayout(size).total_bytes), size)
            self.queues.append(queue)
            device.start_queue(index, self.memory, size=size, desc=queue.desc, driver=queue.avail, device=queue.used,
                               interrupt=queue.interrupted)

    def _config_changed(self) -> None:
        self.config_interrupts += 1

    def place(self, size: int) -> int:
        """Take fresh memory."""
        address = self._free
        self._free += (size + 63) & ~63
        assert self._free <= BASE + len(self.memory.data)
        return address

    def add(self, index: int, readable: list[bytes], writable: list[int]) -> int:
        """Make a chain available; return its head."""
        queue = self.queues[index]
        head = queue.next_desc
        buffers = []
        parts: list[tuple[int, int, int]] = []
        for data in readable:
            address = self.place(len(data))
            self.memory.write(address, data)
            parts.append((address, len(data), 0))
        for length in writable:
            address = self.place(length)
            self.memory.write(address, b"\xee" * length)
            parts.append((address, length, DESC_F_WRITE))
            buffers.append((address, length))
        for i, (address, length, flags) in enumerate(parts):
            at = (head + i) % queue.size
            follow = DESC_F_NEXT if i < len(parts) - 1 else 0
            queue.put_desc(at, address, length, flags | follow, (at + 1) % queue.size)
        queue.next_desc = (head + len(parts)) % queue.size
        queue.buffers[head] = buffers
        queue.expose(head)
        return head

    def notify(self, index: int) -> bool:
        return self.device.notify(index)

    def used(self, index: int) -> list[tuple[int, bytes]]:
        """All newly used chains of a queue: head, and the written bytes as far as the used length goes."""
        queue = self.queues[index]
        out = []
        while queue.seen != int.from_bytes(self.memory.read(queue.used + 2, 2), "little"):
            at = queue.used + 4 + 8 * (queue.seen % queue.size)
            head = int.from_bytes(self.memory.read(at, 4), "little")
            length = int.from_bytes(self.memory.read(at + 4, 4), "little")
            queue.seen = (queue.seen + 1) & 0xFFFF
            whole = b"".join(self.memory.read(a, n) for a, n in queue.buffers.pop(head))
            assert length <= len(whole)
            out.append((head, whole[:length]))
        return out

    def request(self, index: int, readable: list[bytes], writable: list[int]) -> bytes:
        """One chain, notified and answered at once; return what was written."""
        head = self.add(index, readable, writable)
        self.notify(index)
        ((answered, data),) = self.used(index)
        assert answered == head
        return data
