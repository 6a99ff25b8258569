"""The driver half of a queue with the real device half at its other end: honest, then hostile."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chamber.device.split import SplitRing
from chamber.guest.dma import Buffer
from chamber.guest.machine import GuestMachine
from chamber.guest.profile import PROFILES, UNTRUSTED
from chamber.guest.split import SplitQueue
from chamber.guest.untrusted import DeviceViolation
from chamber.guest.virtqueue import QueueDead, QueueFull, Request
from chamber.platform.heap import MemoryViolation
from chamber.platform.scheduler import BudgetExhausted
from chamber.wire.virtio import Feature

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

SIZE = 8


class Pair:
    """A queue of a guest and the ring of a device on the same memory."""

    def __init__(self, profile: str, *, indirect: bool = True, event_idx: bool = True, size: int = SIZE) -> None:
        self.machine = GuestMachine(PROFILES[profile], 1)
        features = (indirect << Feature.RING_INDIRECT_DESC) | (event_idx << Feature.RING_EVENT_IDX)
        self.queue = SplitQueue(0, size, self.machine.dma, self.machine.profile, self.machine.checks,
                                self.machine.scheduler, features=features)
        self.ring = SplitRing(self.machine.memory.host, size, self.queue.desc.address, self.queue.avail.address,
                              self.queue.used.address, indirect=indirect, event_idx=event_idx)

    def lend(self, readable: list[bytes], writable: list[int]) -> Request:
        heap = self.machine.heap
        request = Request(heap.alloc(32, "request", zero=True))
        for data in readable:
            memory = heap.alloc(len(data), "sent")
            memory.write(data)
            request.readable.append(Buffer.whole(memory))
        request.writable.extend(Buffer.whole(heap.alloc(length, "received")) for length in writable)
        try:
            self.queue.add(request)
        except Exception:
            self.free(request)
            raise
        return request

    def free(self, request: Request) -> None:
        for memory in (request.record, *(b.memory for b in (*request.readable, *request.writable))):
            self.machine.heap.free(memory)

    def serve(self, data: bytes = b"answer") -> int:
        """Complete the next chain as an honest device does; return the length told."""
        chain = self.ring.pop()
        assert chain is not None
        length = chain.write(data)
        self.ring.push(chain.head, length)
        self.ring.publish()
        return length

    def close(self) -> None:
        self.ring.release()
        self.queue.destroy()
        self.machine.heap.check_all()
        self.machine.close()


@pytest.fixture(params=UNTRUSTED)
def pair(request: pytest.FixtureRequest) -> Iterator[Pair]:
    pair = Pair(request.param)
    yield pair
    pair.ring.release()
    pair.machine.close()


@pytest.fixture
def hardened() -> Iterator[Pair]:
    pair = Pair("hardened")
    yield pair
    pair.ring.release()
    pair.machine.close()


chains = st.tuples(st.lists(st.binary(min_size=1, max_size=40), max_size=3),
                   st.lists(st.integers(1, 5000), max_size=3)).filter(lambda parts: bool(parts[0] or parts[1]))


@pytest.mark.parametrize("profile", UNTRUSTED)
@given(indirect=st.booleans(), event_idx=st.booleans(), data=st.data())
@settings(max_examples=12, deadline=None)
def test_both_halves_agree(profile: str, *, indirect: bool, event_idx: bool, data: st.DataObject) -> None:
    """Any chains, in any order of completion, around the ring: what one side sends is what the other gets."""
    pair = Pair(profile, indirect=indirect, event_idx=event_idx)
    lent: dict[int, tuple[Request, list[bytes], list[int]]] = {}
    held = []
    for number in range(data.draw(st.integers(1, 3 * SIZE))):
        readable, writable = data.draw(chains)
        try:
            request = pair.lend(readable, writable)
        except QueueFull:
            needed = 1 if indirect and len(readable) + len(writable) > 1 else len(readable) + len(writable)
            assert pair.queue.free < needed
        else:
            chain = pair.ring.pop()
            assert chain is not None
            assert chain.read(0, 1 << 16) == b"".join(readable)
            assert chain.writable_size == sum(writable)
            held.append(chain)
            lent[chain.head] = (request, readable, writable)
        while held and (len(held) > 4 or data.draw(st.booleans())):
            chain = held.pop(data.draw(st.integers(0, len(held) - 1)))
            request, _, writable = lent.pop(chain.head)
            answer = bytes([number]) * data.draw(st.integers(0, sum(writable)))
            assert chain.write(answer) == len(answer)
            pair.ring.push(chain.head, len(answer))
            pair.ring.publish()
            pair.ring.arm_kick()
            assert pair.queue.get() is request
            assert request.done
            assert request.written == len(answer)
            got = b"".join(b.memory.read(0, b.length) for b in request.writable)
            assert got[:len(answer)] == answer
            pair.free(request)
            assert pair.queue.outstanding == len(held)
    assert pair.queue.get() is None
    assert pair.queue.broken is None
    pair.close()
    assert not pair.machine.heap.reports


def test_a_chain_as_long_as_the_queue_passes(pair: Pair) -> None:
    pair = Pair(pair.machine.profile.name, indirect=False)
    for turn in range(3):
        request = pair.lend([b"r"] * (SIZE // 2), [1] * (SIZE // 2))
        assert pair.queue.free == 0
        with pytest.raises(QueueFull):
            pair.lend([b"more"], [])
        assert pair.serve(bytes([turn]) * (SIZE // 2)) == SIZE // 2
        assert pair.queue.get() is request
        assert [b.memory.read(0, 1) for b in request.writable] == [bytes([turn])] * (SIZE // 2)
        assert pair.queue.free == SIZE
        pair.free(request)
    pair.close()


def test_indices_wrap(pair: Pair) -> None:
    queue = pair.queue
    queue._avail_idx = queue._last_used = queue._kicked = pair.ring.next_avail = pair.ring.used_idx = 0xFFFE
    for _ in range(4):
        request = pair.lend([], [6])
        pair.serve()
        assert queue.get() is request
        assert request.writable[0].memory.read() == b"answer"


def test_nothing_of_a_finished_request_is_kept(hardened: Pair) -> None:
    for _ in range(3 * SIZE):
        request = hardened.lend([b"x"], [4])
        hardened.serve(b"yes!")
        assert hardened.queue.get() is request
        hardened.free(request)
    assert not hardened.queue._requests
    assert not hardened.queue._shadow
    assert hardened.machine.pool is not None
    assert hardened.machine.pool.usage.used == 0


def test_a_preset_status_stands_where_the_device_writes_nothing(pair: Pair) -> None:
    status = pair.machine.heap.alloc(1, "status")
    status.put(0, 1, 0xFF)
    request = Request(pair.machine.heap.alloc(32, "request", zero=True),
                      writable=[Buffer.whole(pair.machine.heap.alloc(64, "data")), Buffer(status, 0, 1, preset=True)])
    pair.queue.add(request)
    chain = pair.ring.pop()
    assert chain is not None
    pair.ring.push(chain.head, 65)
    pair.ring.publish()
    assert pair.queue.get() is request
    assert status.get(0, 1) == 0xFF


# Hostile devices.

Lie = tuple["Callable[[SplitRing, int], None]", str]


def _used(*elements: tuple[int | None, int]) -> Callable[[SplitRing, int], None]:
    """Complete with these (id, len); None stands for the true id."""
    def lie(ring: SplitRing, head: int) -> None:
        for ident, length in elements:
            ring.push(head if ident is None else ident, length)
        ring.publish()
    return lie


LIES: dict[str, Lie] = {
    "id beyond the table": (_used((SIZE, 4)), "below the queue size"),
    "id max": (_used((0xFFFFFFFF, 4)), "below the queue size"),
    "id of 16 bits and more": (_used((0x10000, 4)), "below the queue size"),
    "id not lent": (_used((SIZE - 1, 4)), "head of a chain"),
    "id repeated": (_used((None, 4), (None, 4)), "head of a chain"),
    "length one beyond": (_used((None, 65)), "more than the device could write"),
    "length max": (_used((None, 0xFFFFFFFF)), "more than the device could write"),
    "index ahead of all that is lent": (lambda ring, _head: ring.raw_used_idx(3), "what is outstanding"),
    "index back": (lambda ring, _head: ring.raw_used_idx(-1), "what is outstanding"),
    "index a ring ahead": (lambda ring, _head: ring.raw_used_idx(SIZE), "what is outstanding"),
}


@pytest.mark.parametrize("lie", LIES)
@pytest.mark.parametrize("indirect", [True, False], ids=["indirect", "direct"])
def test_a_lie_latches_once_and_for_all(lie: str, indirect: bool) -> None:
    pair = Pair("hardened", indirect=indirect)
    for _ in range(2):
        pair.lend([b"out"], [64])
    chain = pair.ring.pop()
    assert chain is not None
    act, rule = LIES[lie]
    act(pair.ring, chain.head)

    def drain() -> None:
        while pair.queue.get() is not None:
            pass

    with pytest.raises(DeviceViolation) as caught:
        drain()
    assert rule in caught.value.rule
    assert caught.value.spec.startswith("2.7.")
    assert pair.queue.broken is caught.value
    drain()  # dead, and says no more
    with pytest.raises(QueueDead):
        pair.lend([b"more"], [])
    assert not pair.queue.kick()
    pair.close()
    assert not pair.machine.heap.reports
    assert pair.machine.pool is not None
    assert pair.machine.pool.usage.used == 0


def test_a_completion_from_before_a_chain_was_lent_is_not_about_it(hardened: Pair) -> None:
    """Both elements are there before the driver takes the first, frees its descriptor, and lends the same one anew."""
    for _ in range(2):
        hardened.lend([], [64])
    chain = hardened.ring.pop()
    assert chain is not None
    chain.write(b"true" * 16)
    _used((None, 64), (None, 64))(hardened.ring, chain.head)
    first = hardened.queue.get()
    assert first is not None
    assert first.writable[0].memory.read(0, 4) == b"true"
    again = hardened.lend([], [64])
    with pytest.raises(DeviceViolation, match="head of a chain"):
        hardened.queue.get()
    assert not again.done


def test_a_chain_that_waits_for_ever_does_not_count_as_old(hardened: Pair) -> None:
    waiting = hardened.lend([], [4])
    kept = hardened.ring.pop()
    assert kept is not None
    # More completions than the index has numbers would take long; a private count beyond them says the same.
    hardened.queue._taken += 0x18000
    hardened.queue._shown += 0x18000
    kept.write(b"late")
    hardened.ring.push(kept.head, 4)
    hardened.ring.publish()
    assert hardened.queue.get() is waiting


def test_a_queue_that_was_used_before_the_driver_is_ready_is_refused(hardened: Pair) -> None:
    hardened.queue.require_untouched()
    hardened.ring.raw_used_idx(1)
    with pytest.raises(DeviceViolation, match="before the driver is ready"):
        hardened.queue.require_untouched()


DESCRIPTORS: dict[str, Callable[[int, tuple[int, int, int, int]], tuple[int, int, int, int]]] = {
    "address": lambda _i, d: (d[0] ^ 0x1000, *d[1:]),
    "wild address": lambda _i, d: (0xFFFFFFFFFFFFF000, *d[1:]),
    "length": lambda _i, d: (d[0], 0xFFFFFFFF, *d[2:]),
    "flags": lambda _i, d: (d[0], d[1], d[2] ^ 3, d[3]),
    "indirect": lambda _i, d: (d[0], d[1], d[2] ^ 4, d[3]),
    "loop": lambda i, d: (d[0], d[1], d[2] | 1, i),
    "next": lambda _i, d: (d[0], d[1], d[2] | 1, 0xFFFF),
}


@pytest.mark.parametrize("change", DESCRIPTORS)
@pytest.mark.parametrize("indirect", [True, False], ids=["indirect", "direct"])
def test_with_shadows_the_table_may_say_what_it_likes(change: str, indirect: bool) -> None:
    pair = Pair("hardened", indirect=indirect)
    for turn in range(2 * SIZE):
        request = pair.lend([b"out"], [8, 8])
        chain = pair.ring.pop()
        assert chain is not None
        for index in range(SIZE):
            pair.ring.raw_write_desc(index, *DESCRIPTORS[change](index, pair.ring.raw_desc(index)))
        chain.write(bytes([turn]) * 16)
        pair.ring.push(chain.head, 16)
        pair.ring.publish()
        assert pair.queue.get() is request
        assert [b.memory.read() for b in request.writable] == [bytes([turn]) * 8] * 2
        pair.free(request)
    pair.close()
    assert not pair.machine.heap.reports


@pytest.mark.parametrize("change", ["wild address", "length", "next", "loop"])
def test_without_shadows_the_host_leads_the_driver_astray(change: str) -> None:
    """The same lies, and the driver that reads its own table back: it is caught in the act, or never comes back."""
    pair = Pair("bounced", indirect=False)
    pair.lend([b"out"], [8, 8])
    chain = pair.ring.pop()
    assert chain is not None
    for index in range(SIZE):
        pair.ring.raw_write_desc(index, *DESCRIPTORS[change](index, pair.ring.raw_desc(index)))
    pair.ring.push(chain.head, 16 if change != "length" else 0xFFFF)
    pair.ring.publish()
    with pytest.raises((MemoryViolation, BudgetExhausted)):
        pair.queue.get()
    pair.ring.release()
    pair.machine.close()


@given(words=st.lists(st.tuples(st.integers(0, SIZE - 1), st.integers(0, 0xFFFFFFFF), st.integers(0, 0xFFFFFFFF)),
                      max_size=SIZE), index=st.integers(0, 0xFFFF), indirect=st.booleans())
@settings(max_examples=80, deadline=None)
def test_any_used_ring_is_taken_or_refused(words: list[tuple[int, int, int]], index: int, *, indirect: bool) -> None:
    pair = Pair("hardened", indirect=indirect)
    for _ in range(3):
        pair.lend([b"out"], [64])
    for slot, ident, length in words:
        pair.ring.raw_used_elem(slot, ident, length)
    pair.ring.raw_used_idx(index)
    taken: list[Request] = []
    with suppress(DeviceViolation):
        while (request := pair.queue.get()) is not None:
            taken.append(request)
    assert len(taken) + pair.queue.outstanding == 3
    assert all(request.written <= 64 for request in taken)
    pair.close()
    assert not pair.machine.heap.reports


@given(event=st.integers(0, 0xFFFF), flags=st.integers(0, 0xFFFF), event_idx=st.booleans())
@settings(max_examples=30, deadline=None)
def test_any_event_words_only_decide_about_the_kick(event: int, flags: int, *, event_idx: bool) -> None:
    pair = Pair("hardened", event_idx=event_idx)
    pair.ring.raw_avail_event(event)
    pair.ring.raw_used_flags(flags)
    request = pair.lend([b"out"], [6])
    assert pair.queue.kick() == (event == 0 if event_idx else not flags & 1)
    pair.serve()
    assert pair.queue.get() is request
    pair.close()
