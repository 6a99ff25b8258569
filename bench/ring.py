"""How fast the device half of a queue is, fed by a driver that does nothing else."""

from __future__ import annotations

import struct
import time

from chamber.device.catalogue import make_device
from chamber.wire.split import DESC, SplitLayout
from chamber.wire.virtio import DeviceType, Feature, bit

__all__ = ("reads_a_second",)

_QUEUE = 128
_READS = 40_000
_RING = 0
_DATA = 0x10000


class _Memory:
    """A buffer as guest memory."""

    def __init__(self) -> None:
        self._view = memoryview(bytearray(1 << 20))

    def read(self, address: int, length: int) -> bytes:
        return bytes(self._view[address:address + length])

    def write(self, address: int, data: bytes | bytearray | memoryview) -> None:
        self._view[address:address + len(data)] = data

    def view(self, address: int, length: int) -> memoryview:
        return self._view[address:address + length]


def reads_a_second() -> float:
    """Read 4 KiB again and again, a ring's worth of chains for each notification."""
    layout = SplitLayout(_QUEUE)
    memory = _Memory()
    device = make_device(DeviceType.BLOCK)
    device.accept_features(bit(Feature.VERSION_1))
    device.start_queue(0, memory, size=_QUEUE, desc=_RING, driver=layout.avail_offset, device=layout.used_offset,
                       interrupt=lambda: None)
    heads = range(0, _QUEUE - 2, 3)
    for head in heads:
        base = _DATA + head * 2048
        memory.write(base, struct.pack("<IIQ", 0, 0, head))
        for i, (offset, length, flags) in enumerate(((0, 16, 1), (512, 4096, 3), (4608, 1, 2))):
            memory.write(16 * (head + i), DESC.pack(base + offset, length, flags, head + i + 1))
    avail = memory.view(layout.avail_offset, layout.avail_bytes).cast("H")
    index = done = 0
    begin = time.perf_counter()
    while done < _READS:
        for head in heads:
            avail[2 + index % _QUEUE] = head
            index = (index + 1) & 0xFFFF
        avail[1] = index
        device.notify(0)
        done += len(heads)
    seconds = time.perf_counter() - begin
    used = memory.view(layout.used_offset, 4).cast("H")[1]
    if used != index:
        raise RuntimeError(f"{used} of {index} chains came back")
    return done / seconds
