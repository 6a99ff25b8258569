"""How fast the device half of a queue is, fed by a driver that does nothing else."""

from __future__ import annotations

import struct
import time
import tracemalloc
from typing import Final

from chamber.device.catalogue import make_device
from chamber.wire.split import DESC, SplitLayout
from chamber.wire.virtio import DeviceType, Feature, bit

__all__ = ("chain_seconds", "device_memory", "reads_a_second")

_READS: Final = 40_000
_DATA: Final = 1 << 20
"""Where buffers lie: behind the largest ring."""
_STRIDE: Final = 8192
_BUFFERS: Final = 64
_WRITE: Final = 2
_NEXT: Final = 1


class _Memory:
    """A buffer as guest memory."""

    def __init__(self) -> None:
        self._view = memoryview(bytearray(_DATA + (4 << 20)))

    def read(self, address: int, length: int) -> bytes:
        return bytes(self._view[address:address + length])

    def write(self, address: int, data: bytes | bytearray | memoryview) -> None:
        self._view[address:address + len(data)] = data

    def view(self, address: int, length: int) -> memoryview:
        return self._view[address:address + length]


class _Queue:
    """A disk with one split queue."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.memory = _Memory()
        self.layout = SplitLayout(size)
        self.device = make_device(DeviceType.BLOCK)
        self.device.accept_features(bit(Feature.VERSION_1))
        self.device.start_queue(0, self.memory, size=size, desc=0, driver=self.layout.avail_offset,
                                device=self.layout.used_offset, interrupt=lambda: None)
        self._avail = self.memory.view(self.layout.avail_offset, self.layout.avail_bytes).cast("H")
        self._index = 0

    def describe(self, head: int, parts: list[tuple[int, int, int]]) -> None:
        """Write a chain of (address, length, flags)."""
        for i, (address, length, flags) in enumerate(parts):
            follow = _NEXT if i < len(parts) - 1 else 0
            self.memory.write(16 * (head + i), DESC.pack(address, length, flags | follow, (head + i + 1) % self.size))

    def serve(self, heads: range) -> None:
        """Make chains available and notify once."""
        index = self._index
        for head in heads:
            self._avail[2 + index % self.size] = head
            index = (index + 1) & 0xFFFF
        self._index = index
        self._avail[1] = index
        while self.device.notify(0):
            pass

    def check(self) -> None:
        """See that all came back."""
        used = self.memory.view(self.layout.used_offset, 4).cast("H")[1]
        if used != self._index:
            raise RuntimeError(f"{used} of {self._index} chains came back")


def _reading(size: int) -> tuple[_Queue, range]:
    """A queue full of reads of 4 KiB."""
    queue = _Queue(size)
    heads = range(0, size - 2, 3)
    for head in heads:
        base = _DATA + head // 3 % _BUFFERS * _STRIDE
        queue.memory.write(base, struct.pack("<IIQ", 0, 0, head % 1000))
        queue.describe(head, [(base, 16, 0), (base + 512, 4096, _WRITE), (base + 4608, 1, _WRITE)])
    return queue, heads


def reads_a_second(size: int = 128) -> float:
    """Read 4 KiB again and again, a ring's worth of chains for each notification."""
    queue, heads = _reading(size)
    done = 0
    begin = time.perf_counter()
    while done < _READS:
        queue.serve(heads)
        done += len(heads)
    seconds = time.perf_counter() - begin
    queue.check()
    return done / seconds


def device_memory(size: int) -> int:
    """Bytes that the device allocates at most while it serves a ring's worth of reads."""
    queue, heads = _reading(size)
    queue.serve(heads)
    tracemalloc.start()
    try:
        queue.serve(heads)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def chain_seconds(parts: int, *, times: int) -> float:
    """Seconds for one read that is scattered over so many descriptors of 64 bytes each."""
    size = 1 << max(parts + 2 - 1, 1).bit_length()
    queue = _Queue(min(size, 32768))
    room = -(-parts // 8) * 8  # whole sectors
    scattered = [(_DATA + 512 + 64 * i, 64, _WRITE) for i in range(min(room, queue.size - 2))]
    queue.memory.write(_DATA, struct.pack("<IIQ", 0, 0, 0))
    queue.describe(0, [(_DATA, 16, 0), *scattered, (_DATA + 512 + 64 * len(scattered), 1, _WRITE)])
    begin = time.perf_counter()
    for _ in range(times):
        queue.serve(range(1))
    seconds = (time.perf_counter() - begin) / times
    queue.check()
    return seconds
