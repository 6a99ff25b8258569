"""A driver that puts any bytes anywhere: a device serves what makes sense, and comes to an end."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chamber.device.catalogue import TYPES, make_device
from chamber.wire.errors import DmaFault
from chamber.wire.packed import DESC as PACKED_DESC
from chamber.wire.split import DESC, SplitLayout
from chamber.wire.virtio import Feature, bit

if TYPE_CHECKING:
    from chamber.device.base import Device
    from chamber.wire.virtio import DeviceType

MEMORY = 1 << 16
SIZE = 16
BUFFERS = 0x8000
TURNS = 8


class Bounded:
    """Guest memory that counts what is touched; everything beyond it was never shared."""

    def __init__(self) -> None:
        self.view_of_all = memoryview(bytearray(MEMORY))
        self.touched = 0

    def view(self, address: int, length: int) -> memoryview:
        if address < 0 or length < 0 or address + length > MEMORY:
            raise DmaFault(address, length, "view", "outside of what is shared")
        return self.view_of_all[address:address + length]

    def read(self, address: int, length: int) -> bytes:
        self.touched += length
        return bytes(self.view(address, length))

    def write(self, address: int, data: bytes | bytearray | memoryview) -> None:
        self.touched += len(data)
        self.view(address, len(data))[:] = data


descriptors = st.tuples(
    st.one_of(st.integers(BUFFERS, MEMORY), st.integers(0, (1 << 64) - 1)),
    st.one_of(st.integers(0, 64), st.sampled_from((4096, MEMORY, 1 << 31, (1 << 32) - 1))),
    st.one_of(st.integers(0, SIZE), st.integers(0, 0xFFFF)),
    st.one_of(st.sampled_from((0, 1, 2, 3, 4, 0x80, 0x81, 0x82, 0x83, 0x84)), st.integers(0, 0xFFFF)))


def ring(table: list[tuple[int, int, int, int]], avail: list[int], idx: int, *, packed: bool) -> bytes:
    """Bytes of a queue's areas: descriptors, then what the driver says is available."""
    layout = SplitLayout(SIZE)
    if packed:
        return b"".join(PACKED_DESC.pack(*entry) for entry in table)
    out = bytearray(layout.used_offset)
    for i, (address, length, follow, flags) in enumerate(table):
        DESC.pack_into(out, 16 * i, address, length, flags & 0xFFFF, follow)
    struct.pack_into(f"<HH{len(avail)}H", out, layout.avail_offset, 0, idx, *avail)
    return bytes(out)


def start(device: Device, memory: Bounded, *, packed: bool) -> None:
    features = device.offered_features() & ~bit(Feature.RING_PACKED, Feature.IN_ORDER)
    device.accept_features(features | (bit(Feature.RING_PACKED) if packed else 0))
    layout = SplitLayout(SIZE)
    for index in range(device.queue_count):
        # All queues lie in one place: what one of them writes is what another reads.
        device.start_queue(index, memory, size=SIZE, desc=0, driver=layout.avail_offset, device=layout.used_offset,
                           interrupt=lambda: None)


@pytest.mark.parametrize("packed", [False, True], ids=["split", "packed"])
@pytest.mark.parametrize("kind", TYPES, ids=lambda kind: kind.short)
@given(data=st.data())
@settings(max_examples=15, deadline=None)
def test_any_bytes_in_the_rings(kind: DeviceType, data: st.DataObject, *, packed: bool) -> None:
    memory = Bounded()
    device = make_device(kind)
    device.offer(bit(Feature.RING_PACKED))
    timers: list[object] = []
    device.schedule = lambda _delay, call: timers.append(call)
    try:
        memory.view_of_all[BUFFERS:BUFFERS + 0x1000] = data.draw(st.binary(min_size=64, max_size=64)) * 64
        start(device, memory, packed=packed)
        for _ in range(TURNS):
            table = data.draw(st.lists(descriptors, min_size=SIZE, max_size=SIZE))
            avail = data.draw(st.lists(st.integers(0, SIZE), min_size=SIZE, max_size=SIZE))
            image = ring(table, avail, data.draw(st.integers(0, 0xFFFF)), packed=packed)
            memory.view_of_all[:len(image)] = image
            device.write_config(data.draw(st.integers(0, 64)), data.draw(st.binary(max_size=8)))
            memory.touched = 0
            for index in range(device.queue_count):
                device.notify(index)
            assert memory.touched < 64 << 20
        assert len(device.violations) <= 100
        assert len(timers) < 10_000
        for index in range(device.queue_count):
            device.stop_queue(index)
    finally:
        device.close()
