"""Page ownership: what the host reaches, what it does not, and that it is recorded."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chamber.platform.memory import PAGE, GuestMemory
from chamber.wire.errors import DmaFault

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from chamber.platform.memory import HostView

PAGES = 8


@pytest.fixture
def memory() -> Iterator[GuestMemory]:
    memory = GuestMemory(PAGES * PAGE, private=True)
    yield memory
    memory.close()


@pytest.mark.parametrize("size", [0, -PAGE, PAGE - 1, PAGE + 1])
def test_memory_is_whole_pages(size: int) -> None:
    with pytest.raises(ValueError, match="whole number of pages"):
        GuestMemory(size, private=True)


@pytest.mark.parametrize("access", [
    lambda host: host.read(PAGE, 1),
    lambda host: host.write(PAGE, b"x"),
    lambda host: host.view(PAGE, 1),
], ids=["read", "write", "view"])
def test_a_private_page_is_beyond_the_host(memory: GuestMemory, access: Callable[[HostView], object]) -> None:
    memory.write(PAGE, b"private")
    with pytest.raises(DmaFault):
        access(memory.host)
    assert [(fault.address, fault.length) for fault in memory.faults] == [(PAGE, 1)]
    assert memory.read(PAGE, 7) == b"private"


def test_an_access_that_ends_in_a_private_page_reaches_nothing(memory: GuestMemory) -> None:
    memory.share(PAGE, PAGE)
    with pytest.raises(DmaFault):
        memory.host.write(2 * PAGE - 4, b"12345678")
    assert memory.peek(2 * PAGE - 4, 8) == bytes(8)


def test_pages_can_be_taken_back(memory: GuestMemory) -> None:
    memory.share(PAGE, PAGE)
    memory.host.write(PAGE, b"hello")
    memory.unshare(PAGE, PAGE)
    with pytest.raises(DmaFault):
        memory.host.read(PAGE, 5)
    assert memory.read(PAGE, 5) == b"hello"


def test_a_view_is_live_in_both_directions(memory: GuestMemory) -> None:
    memory.share(0, PAGE)
    view = memory.host.view(8, 4)
    view[:] = b"host"
    assert memory.read(8, 4) == b"host"
    memory.write(8, b"mine")
    assert bytes(view) == b"mine"
    view.release()


@given(st.lists(st.tuples(st.integers(0, PAGES - 1), st.integers(1, PAGES), st.booleans()), max_size=8),
       st.integers(-PAGE, (PAGES + 1) * PAGE), st.integers(0, 3 * PAGE))
@settings(max_examples=60)
def test_the_host_reaches_exactly_what_is_shared(changes: list[tuple[int, int, bool]], address: int,
                                                 length: int) -> None:
    memory = GuestMemory(PAGES * PAGE, private=True)
    try:
        shared = [False] * PAGES
        for first, count, share in changes:
            pages = min(count, PAGES - first)
            (memory.share if share else memory.unshare)(first * PAGE, pages * PAGE)
            shared[first:first + pages] = [share] * pages
        ranges = {page for start, size in memory.shared_ranges()
                  for page in range(start // PAGE, (start + size) // PAGE)}
        assert ranges == {page for page, is_shared in enumerate(shared) if is_shared}
        allowed = length == 0 or (address >= 0 and address + length <= PAGES * PAGE and all(
            shared[page] for page in range(address // PAGE, (address + length - 1) // PAGE + 1)))
        if allowed:
            assert len(memory.host.read(address, length)) == length or length == 0
            assert not memory.faults
        else:
            with pytest.raises(DmaFault):
                memory.host.read(address, length)
            assert len(memory.faults) == 1
    finally:
        memory.close()


def test_the_host_is_told_of_the_guests_reads_of_shared_pages_alone(memory: GuestMemory) -> None:
    memory.share(PAGE, PAGE)
    seen: list[tuple[int, int]] = []
    memory.watch = lambda address, length: seen.append((address, length))
    memory.read(0, 8)
    memory.read(PAGE + 16, 8)
    memory.peek(PAGE, 8)
    memory.read(2 * PAGE - 4, 8)  # half of it private
    assert seen == [(PAGE + 16, 8)]


def test_what_a_device_reads_is_shown_to_the_observer(memory: GuestMemory) -> None:
    memory.share(0, PAGE)
    memory.write(0, b"to the device")
    seen: list[bytes] = []
    memory.host.observer = seen.append
    memory.host.read(3, 3)
    with pytest.raises(DmaFault):
        memory.host.read(PAGE, 3)
    assert seen == [b"the"]
