"""Objects that notice when they are misused."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chamber.platform.heap import FREED, Heap, MemoryViolation
from chamber.platform.memory import PAGE, GuestMemory

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from chamber.platform.heap import Object

STALE = b"stale secret bytes"
SIZE = 64 * PAGE


@pytest.fixture
def memory() -> Iterator[GuestMemory]:
    memory = GuestMemory(SIZE, private=False)
    yield memory
    memory.close()


@pytest.fixture
def heap(memory: GuestMemory) -> Heap:
    return Heap(memory, 0, SIZE, stale=STALE)


def test_objects_keep_what_is_written_and_apart(heap: Heap) -> None:
    things = [heap.alloc(size, f"thing {size}") for size in (1, 15, 16, 17, 4096)]
    for i, thing in enumerate(things):
        thing.write(bytes([i]) * thing.size)
    for i, thing in enumerate(things):
        assert thing.read() == bytes([i]) * thing.size
    heap.check_all()
    assert not heap.reports


def test_numbers_are_little_endian_and_cut_to_their_width(heap: Heap) -> None:
    thing = heap.alloc(8, "numbers", zero=True)
    thing.put(0, 2, 0x12345)
    assert thing.read() == b"\x45\x23" + bytes(6)
    assert thing.get(0, 2) == 0x2345


def test_fresh_memory_is_stale_unless_it_is_cleared(heap: Heap) -> None:
    assert heap.alloc(40, "fresh").read() == (STALE * 3)[:40]
    assert heap.alloc(40, "cleared", zero=True).read() == bytes(40)


@pytest.mark.parametrize(("misuse", "kind"), [
    (lambda thing: thing.read(0, 33), "out-of-bounds read"),
    (lambda thing: thing.read(32, 1), "out-of-bounds read"),
    (lambda thing: thing.read(-1, 1), "out-of-bounds read"),
    (lambda thing: thing.write(b"x", 32), "out-of-bounds write"),
    (lambda thing: thing.write(bytes(33)), "out-of-bounds write"),
    (lambda thing: thing.put(31, 2, 0), "out-of-bounds write"),
], ids=["long", "behind", "before", "write behind", "long write", "number across the end"])
def test_bounds(heap: Heap, misuse: Callable[[Object], object], kind: str) -> None:
    thing = heap.alloc(32, "thing", zero=True)
    before = thing.read()
    with pytest.raises(MemoryViolation) as caught:
        misuse(thing)
    assert caught.value.report.kind == kind
    assert caught.value.report.object == "thing"
    assert heap.reports == [caught.value.report]
    assert thing.read() == before, "the misuse is stopped before it happens"


@pytest.mark.parametrize("use", [lambda t: t.read(0, 1), lambda t: t.write(b"x")], ids=["read", "write"])
def test_use_after_free(heap: Heap, use: Callable[[Object], object]) -> None:
    thing = heap.alloc(32, "thing")
    heap.free(thing)
    with pytest.raises(MemoryViolation, match="use after free"):
        use(thing)


def test_double_free(heap: Heap) -> None:
    thing = heap.alloc(32, "thing")
    heap.free(thing)
    with pytest.raises(MemoryViolation, match="double free"):
        heap.free(thing)


def test_tracked_memory_is_written_before_it_is_read(heap: Heap) -> None:
    thing = heap.alloc(32, "lock", track=True)
    with pytest.raises(MemoryViolation, match="uninitialised"):
        thing.read(0, 4)
    thing.write(b"lock")
    assert thing.read(0, 4) == b"lock"


def test_freed_memory_is_poisoned_and_rests(heap: Heap, memory: GuestMemory) -> None:
    thing = heap.alloc(32, "thing")
    heap.free(thing)
    assert memory.peek(thing.address, 32) == bytes([FREED]) * 32
    assert all(heap.alloc(32, "next").address != thing.address for _ in range(32))


@pytest.mark.parametrize("offset", [-1, -64, 20, 32, 20 + 63], ids=str)
def test_a_device_that_writes_around_an_object_is_found_when_it_is_freed(heap: Heap, memory: GuestMemory,
                                                                       offset: int) -> None:
    thing = heap.alloc(20, "thing", zero=True)
    memory.host.write(thing.address + offset, b"\xee")
    heap.free(thing)
    assert [report.kind for report in heap.reports] == ["red zone overwritten"]


def test_a_device_that_writes_to_freed_memory_is_found(heap: Heap, memory: GuestMemory) -> None:
    thing = heap.alloc(20, "thing")
    heap.free(thing)
    memory.host.write(thing.address + 3, b"late")
    heap.check_all()
    assert [report.kind for report in heap.reports] == ["freed memory overwritten"]


def test_a_report_is_kept_once_and_names_no_address(heap: Heap) -> None:
    thing = heap.alloc(32, "thing")
    for _ in range(3):
        with pytest.raises(MemoryViolation):
            thing.read(0, 99)
    (report,) = heap.reports
    assert hex(thing.address) not in report.signature
    assert "99 bytes" in report.detail


def test_memory_comes_to_an_end(heap: Heap) -> None:
    with pytest.raises(MemoryError):
        heap.alloc(SIZE, "too much")
    assert heap.alloc(32, "still works").size == 32


@given(st.lists(st.one_of(st.tuples(st.just("alloc"), st.integers(0, 200)),
                          st.tuples(st.just("free"), st.integers(0, 1000))), max_size=150))
@settings(max_examples=40)
def test_sound_use_is_never_reported_and_objects_never_overlap(steps: list[tuple[str, int]]) -> None:
    memory = GuestMemory(SIZE, private=False)
    try:
        heap = Heap(memory, 0, SIZE, stale=STALE)
        live: list[tuple[Object, bytes]] = []
        for number, (step, value) in enumerate(steps):
            if step == "alloc":
                thing = heap.alloc(value, f"thing {number}")
                content = number.to_bytes(2, "little") * (value // 2) + bytes(value % 2)
                thing.write(content)
                live.append((thing, content))
            elif live:
                thing, content = live.pop(value % len(live))
                assert thing.read() == content
                heap.free(thing)
        assert all(thing.read() == content for thing, content in live)
        heap.check_all()
        assert not heap.reports
    finally:
        memory.close()
