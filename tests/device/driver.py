"""The smallest driver that a device can be tried with: split queues in a bytearray, nothing checked."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Any

from chamber.wire import packed
from chamber.wire.errors import DmaFault
from chamber.wire.split import DESC, DESC_F_NEXT, DESC_F_WRITE, SplitLayout
from chamber.wire.virtio import Feature

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


Parts = list[tuple[int, int, int]]


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

    @staticmethod
    def room(size: int) -> int:
        """Bytes of a queue."""
        return SplitLayout(size).total_bytes

    @property
    def areas(self) -> dict[str, int]:
        """What a device is told about it."""
        return {"desc": self.desc, "driver": self.avail, "device": self.used}

    def add(self, parts: Parts) -> int:
        """Make a chain available; return its head."""
        head = self.next_desc
        for i, (address, length, flags) in enumerate(parts):
            at = (head + i) % self.size
            follow = DESC_F_NEXT if i < len(parts) - 1 else 0
            self.put_desc(at, address, length, flags | follow, (at + 1) % self.size)
        self.next_desc = (head + len(parts)) % self.size
        self.expose(head)
        return head

    @staticmethod
    def table(parts: Parts) -> bytes:
        """An indirect table."""
        return b"".join(DESC.pack(a, n, flags | (DESC_F_NEXT if i + 1 < len(parts) else 0), i + 1)
                        for i, (a, n, flags) in enumerate(parts))

    def take(self) -> tuple[int, int, int] | None:
        """Take the next used element: where it stands, id, length."""
        if self.seen == int.from_bytes(self.memory.read(self.used + 2, 2), "little"):
            return None
        at = self.used + 4 + 8 * (self.seen % self.size)
        self.seen = (self.seen + 1) & 0xFFFF
        head, length = struct.unpack("<II", self.memory.read(at, 8))
        return at, head, length

    def put_desc(self, index: int, addr: int, length: int, flags: int, follow: int) -> None:
        self.memory.write(self.desc + 16 * index, DESC.pack(addr, length, flags, follow))

    def expose(self, head: int) -> None:
        slot = self.avail_idx % self.size
        self.memory.write(self.avail + 4 + 2 * slot, head.to_bytes(2, "little"))
        self.avail_idx = (self.avail_idx + 1) & 0xFFFF
        self.memory.write(self.avail + 2, self.avail_idx.to_bytes(2, "little"))

    def interrupted(self) -> None:
        self.interrupts += 1


class PackedQueue:
    """The driver half of one packed queue."""

    def __init__(self, memory: Memory, base: int, size: int) -> None:
        self.memory = memory
        self.size = size
        self.desc = base
        self.buffers: dict[int, list[tuple[int, int]]] = {}
        self.interrupts = 0
        self._next, self._wrap = 0, 1
        self._seen, self._seen_wrap = 0, 1
        self._counts: dict[int, int] = {}
        self._id = 0

    @staticmethod
    def room(size: int) -> int:
        """Bytes of a queue."""
        return packed.PackedLayout(size).total_bytes

    @property
    def areas(self) -> dict[str, int]:
        """What a device is told about it."""
        layout = packed.PackedLayout(self.size)
        return {"desc": self.desc, "driver": self.desc + layout.driver_offset,
                "device": self.desc + layout.device_offset}

    def add(self, parts: Parts) -> int:
        """Make a chain available; return its id."""
        number, self._id = self._id, (self._id + 1) % self.size
        self._counts[number] = len(parts)
        for i, (address, length, flag) in enumerate(parts):
            flags = flag | (DESC_F_NEXT if i + 1 < len(parts) else 0)
            flags |= packed.DESC_F_AVAIL if self._wrap else packed.DESC_F_USED
            self.memory.write(self.desc + 16 * self._next, packed.DESC.pack(address, length, number, flags))
            self._next += 1
            if self._next == self.size:
                self._next, self._wrap = 0, self._wrap ^ 1
        return number

    @staticmethod
    def table(parts: Parts) -> bytes:
        """An indirect table."""
        return b"".join(packed.DESC.pack(a, n, 0, flags) for a, n, flags in parts)

    def take(self) -> tuple[int, int, int] | None:
        """Take the next used descriptor: where it stands, id, length."""
        at = self.desc + 16 * self._seen
        _, length, number, flags = packed.DESC.unpack(self.memory.read(at, 16))
        marks = packed.DESC_F_AVAIL | packed.DESC_F_USED
        if flags & marks != (marks if self._seen_wrap else 0):
            return None
        self._seen += self._counts.pop(number, 1)
        if self._seen >= self.size:
            self._seen, self._seen_wrap = self._seen - self.size, self._seen_wrap ^ 1
        return at, number, length

    def interrupted(self) -> None:
        self.interrupts += 1


class Driver:
    """Puts chains into a device's queues and takes them back.

    Args:
        device: the device.
        features: what to accept; by default all that it offers but event index.
        queues: how many queues to start; by default all.
        size: descriptors per queue.
        memory: bytes of guest memory.

    Queues are packed where that is among the features.

    """

    def __init__(self, device: Device, *, features: int | None = None, queues: int | None = None, size: int = 64,
                 memory: int = MEMORY) -> None:
        self.device = device
        self.memory = Memory(memory)
        self._free = BASE
        self.queues: list[Any] = []  # Queue or PackedQueue: tests reach into either
        self.config_interrupts = 0
        device.config_interrupt = self._config_changed
        device.accept_features(device.offered_features() & ~(1 << 29) if features is None else features)
        make = PackedQueue if device.has(Feature.RING_PACKED) else Queue
        for index in range(device.queue_count if queues is None else queues):
            queue = make(self.memory, self.place(make.room(size)), size)
            self.queues.append(queue)
            # Asked for as a transport does it; this driver looks at no answer.
            device.refuses_queue(index)
            device.start_queue(index, self.memory, size=size, interrupt=queue.interrupted, **queue.areas)

    def reset_queue(self, index: int) -> None:
        """Take a queue back and hand it over anew, empty, in the same place."""
        queue = self.queues[index]
        self.device.stop_queue(index)
        self.memory.write(queue.desc, bytes(queue.room(queue.size)))
        queue = self.queues[index] = type(queue)(self.memory, queue.desc, queue.size)
        self.device.start_queue(index, self.memory, size=queue.size, interrupt=queue.interrupted, **queue.areas)

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
        buffers = []
        parts: Parts = []
        for data in readable:
            address = self.place(len(data))
            self.memory.write(address, data)
            parts.append((address, len(data), 0))
        for length in writable:
            address = self.place(length)
            self.memory.write(address, b"\xee" * length)
            parts.append((address, length, DESC_F_WRITE))
            buffers.append((address, length))
        head: int = queue.add(parts)
        queue.buffers[head] = buffers
        return head

    def notify(self, index: int) -> bool:
        return self.device.notify(index)

    def used(self, index: int) -> list[tuple[int, bytes]]:
        """All newly used chains of a queue: head, and the written bytes as far as the used length goes."""
        queue = self.queues[index]
        out = []
        while (element := queue.take()) is not None:
            _, head, length = element
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
