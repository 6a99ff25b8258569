"""The bounce pool: what the device sees, what comes back, and what happens when it is full."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule

from chamber.guest.bounce import SEGMENT_SLOTS, SLOT, BouncePool, Direction, PoolFull
from chamber.guest.untrusted import DeviceViolation
from chamber.platform.heap import Heap, MemoryViolation
from chamber.platform.memory import PAGE, GuestMemory
from chamber.wire.errors import DmaFault

if TYPE_CHECKING:
    from collections.abc import Iterator

    from chamber.platform.heap import Object

SEGMENTS = 2
POOL = SEGMENTS * SEGMENT_SLOTS * SLOT
HEAP = 4 << 20
STALE = b"never to be shared"


def make(*, checked: bool = True) -> tuple[GuestMemory, Heap, BouncePool]:
    memory = GuestMemory(HEAP + POOL, private=True)
    heap = Heap(memory, PAGE, HEAP - PAGE, stale=STALE)
    return memory, heap, BouncePool(memory, HEAP, SEGMENTS, 2, heap, checked=checked)


Parts = tuple[GuestMemory, Heap, BouncePool]


@pytest.fixture(params=[True, False], ids=["checked", "unchecked"])
def parts(request: pytest.FixtureRequest) -> Iterator[Parts]:
    made = make(checked=request.param)
    yield made
    made[0].close()


@pytest.fixture
def checked() -> Iterator[Parts]:
    made = make()
    yield made
    made[0].close()


@pytest.fixture
def unchecked() -> Iterator[Parts]:
    made = make(checked=False)
    yield made
    made[0].close()


def test_the_device_sees_what_was_sent_and_nothing_beside_it(parts: Parts) -> None:
    memory, heap, pool = parts
    thing = heap.alloc(100, "request")
    thing.write(b"x" * 100)
    address = pool.map(thing, 10, 50, Direction.TO_DEVICE)
    assert memory.host.read(address, SLOT) == b"x" * 50 + bytes(SLOT - 50)
    with pytest.raises(DmaFault):
        memory.host.read(thing.address, 1)


def test_what_is_to_be_received_starts_as_zeros(parts: Parts) -> None:
    memory, heap, pool = parts
    first = heap.alloc(SLOT, "secret")
    address = pool.map(first, 0, SLOT, Direction.TO_DEVICE)
    pool.unmap(address, 0)
    again = pool.map(heap.alloc(100, "buffer"), 0, 100, Direction.FROM_DEVICE)
    assert again == address
    assert memory.host.read(again, SLOT) == bytes(SLOT)


def test_only_what_was_written_comes_back(parts: Parts) -> None:
    memory, heap, pool = parts
    thing = heap.alloc(64, "buffer")
    thing.write(b"o" * 64)
    address = pool.map(thing, 8, 32, Direction.FROM_DEVICE)
    memory.host.write(address, b"n" * SLOT)
    pool.unmap(address, 20)
    assert thing.read() == b"o" * 8 + b"n" * 20 + b"o" * 36


def test_what_was_sent_does_not_come_back(parts: Parts) -> None:
    memory, heap, pool = parts
    thing = heap.alloc(16, "request")
    thing.write(b"o" * 16)
    address = pool.map(thing, 0, 16, Direction.TO_DEVICE)
    memory.host.write(address, b"n" * 16)
    pool.unmap(address, 16)
    assert thing.read() == b"o" * 16


def test_a_length_beyond_the_mapping_is_cut_where_lengths_are_checked(checked: Parts) -> None:
    memory, heap, pool = checked
    thing = heap.alloc(16, "buffer", zero=True)
    address = pool.map(thing, 0, 16, Direction.FROM_DEVICE)
    memory.host.write(address, b"n" * 64)
    pool.unmap(address, 64)
    assert thing.read() == b"n" * 16
    assert not heap.reports


def test_a_length_beyond_the_mapping_overflows_where_they_are_not(unchecked: Parts) -> None:
    _, heap, pool = unchecked
    address = pool.map(heap.alloc(16, "buffer"), 0, 16, Direction.FROM_DEVICE)
    with pytest.raises(MemoryViolation, match="out-of-bounds write: buffer"):
        pool.unmap(address, 64)


def test_only_what_was_mapped_is_unmapped(checked: Parts) -> None:
    _, heap, pool = checked
    address = pool.map(heap.alloc(16, "buffer"), 0, 16, Direction.FROM_DEVICE)
    for wrong in (0, address + 1, address + SLOT, HEAP + POOL, 1 << 63):
        with pytest.raises(DeviceViolation, match="only what was mapped"):
            pool.unmap(wrong, 0)
    pool.unmap(address, 0)
    with pytest.raises(DeviceViolation, match="only what was mapped"):
        pool.unmap(address, 0)
    assert pool.usage.used == 0


def test_unmapping_what_was_not_mapped_is_found(unchecked: Parts) -> None:
    _, heap, pool = unchecked
    address = pool.map(heap.alloc(16, "buffer"), 0, 16, Direction.FROM_DEVICE)
    with pytest.raises(MemoryViolation, match="wild access"):
        pool.unmap(address ^ 0x1000, 16)


def test_a_full_pool_says_so_and_has_room_again(checked: Parts) -> None:
    _, heap, pool = checked
    thing = heap.alloc(SEGMENT_SLOTS * SLOT, "large")
    addresses = [pool.map(thing, 0, thing.size, Direction.FROM_DEVICE) for _ in range(SEGMENTS)]
    with pytest.raises(PoolFull, match=r"1 bytes wanted|2048 bytes wanted") as caught:
        pool.map(thing, 0, 1, Direction.FROM_DEVICE)
    assert (caught.value.used, caught.value.total) == (256, 256)
    pool.unmap(addresses[0], 0)
    assert pool.map(thing, 0, 1, Direction.FROM_DEVICE) == addresses[0]
    assert pool.usage.high_water == 256


def test_a_mapping_does_not_cross_segments(checked: Parts) -> None:
    _, heap, pool = checked
    thing = heap.alloc((SEGMENT_SLOTS + 1) * SLOT, "larger than a segment")
    with pytest.raises(PoolFull):
        pool.map(thing, 0, thing.size, Direction.FROM_DEVICE)
    pool.map(thing, 0, SLOT, Direction.FROM_DEVICE)
    address = pool.map(thing, 0, SEGMENT_SLOTS * SLOT, Direction.FROM_DEVICE)
    assert (address - HEAP) % (SEGMENT_SLOTS * SLOT) == 0


def test_processors_have_areas_and_borrow_when_theirs_is_full(checked: Parts) -> None:
    _, heap, pool = checked
    thing = heap.alloc(SEGMENT_SLOTS * SLOT, "large")
    segment = SEGMENT_SLOTS * SLOT
    assert pool.map(thing, 0, SLOT, Direction.FROM_DEVICE, cpu=1) == HEAP + segment
    assert pool.map(thing, 0, segment, Direction.FROM_DEVICE, cpu=0) == HEAP
    assert pool.map(thing, 0, SLOT, Direction.FROM_DEVICE, cpu=0) == HEAP + segment + SLOT


class Pool(RuleBasedStateMachine):
    """A device that writes all over the pool, and a driver that keeps its own account."""

    mappings = Bundle("mappings")

    def __init__(self) -> None:
        super().__init__()
        self.memory, self.heap, self.pool = make()
        self.live: dict[int, tuple[Object, int, bytes, Direction]] = {}
        self.most = 0

    @rule(target=mappings, length=st.integers(1, 20 * SLOT), offset=st.integers(0, 8), cpu=st.integers(0, 3),
          direction=st.sampled_from(Direction), fill=st.binary(min_size=1, max_size=1))
    def map(self, length: int, offset: int, cpu: int, direction: Direction, fill: bytes) -> int:
        thing = self.heap.alloc(offset + length + 8, "buffer")
        content = fill * thing.size
        thing.write(content)
        address = self.pool.map(thing, offset, length, direction, cpu=cpu)
        self.live[address] = (thing, offset, content, direction)
        seen = self.memory.host.read(address, length)
        assert seen == (bytes(length) if direction is Direction.FROM_DEVICE else content[offset:offset + length])
        self.most = max(self.most, self.slots())
        return address

    @rule(mapping=mappings, at=st.integers(0, POOL - 1), data=st.binary(min_size=1, max_size=SLOT))
    def device_writes(self, mapping: int, at: int, data: bytes) -> None:
        for address in (mapping, HEAP + at):
            self.memory.host.write(address, data[:HEAP + POOL - address])

    @rule(mapping=consumes(mappings), written=st.integers(0, 40 * SLOT))
    def unmap(self, mapping: int, written: int) -> None:
        thing, offset, content, direction = self.live.pop(mapping)
        length = thing.size - offset - 8
        taken = 0 if direction is Direction.TO_DEVICE else min(written, length)
        arrived = self.memory.peek(mapping, taken)
        self.pool.unmap(mapping, written)
        assert thing.read() == content[:offset] + arrived + content[offset + taken:]
        self.heap.free(thing)

    def slots(self) -> int:
        return sum(-(-(thing.size - offset - 8) // SLOT) for thing, offset, _, _ in self.live.values())

    @invariant()
    def the_account_is_right(self) -> None:
        usage = self.pool.usage
        assert (usage.used, usage.total, usage.high_water) == (self.slots(), SEGMENTS * SEGMENT_SLOTS, self.most)

    @invariant()
    def mappings_do_not_overlap_and_lie_in_the_pool(self) -> None:
        end = HEAP
        for address, (thing, offset, _, _) in sorted(self.live.items()):
            assert address >= end
            assert address % SLOT == 0
            end = address + thing.size - offset - 8
        assert end <= HEAP + POOL

    def teardown(self) -> None:
        self.heap.check_all()
        assert not self.heap.reports
        self.memory.close()


TestPool = Pool.TestCase
TestPool.settings = settings(max_examples=20, stateful_step_count=20, deadline=None)
