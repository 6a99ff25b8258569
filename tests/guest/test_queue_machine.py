"""One model of a queue, and both halves of every kind of queue held against it."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from chamber.device.packed import PackedRing
from chamber.device.queue import DeviceQueue
from chamber.device.split import SplitRing
from chamber.guest.bounce import PoolFull
from chamber.guest.dma import Buffer
from chamber.guest.machine import GuestMachine
from chamber.guest.packed import PackedQueue
from chamber.guest.profile import PROFILES, UNTRUSTED
from chamber.guest.split import SplitQueue
from chamber.guest.virtqueue import QueueFull, Request, VirtQueue
from chamber.wire.virtio import Feature

if TYPE_CHECKING:
    from chamber.device.chain import Chain

FORMATS = (Feature.RING_PACKED, Feature.RING_INDIRECT_DESC, Feature.RING_EVENT_IDX, Feature.IN_ORDER)


class QueueMachine(RuleBasedStateMachine):
    """A driver half and a device half on the same memory; a queue, as the model has it, is a list of what was lent.

    Whatever is lent arrives as it was lent, comes back once, with what was written; in order, if that was agreed on.
    And nobody sleeps while there is something to do for him: a side that asked to be woken is.
    """

    profile = "hardened"

    @initialize(features=st.sets(st.sampled_from(FORMATS)), size=st.sampled_from((1, 2, 3, 4, 8, 12, 64)))
    def start(self, features: set[Feature], size: int) -> None:
        self.features = sum(1 << feature for feature in features)
        packed = Feature.RING_PACKED in features
        self.in_order = Feature.IN_ORDER in features
        self.size = size if packed else 1 << size.bit_length() - 1
        self.machine = GuestMachine(PROFILES[self.profile], 1)
        make: type[VirtQueue] = PackedQueue if packed else SplitQueue
        self.make = make
        self.device = DeviceQueue(0)
        self.number = 0
        self.lent: deque[tuple[Request, bytes, int]] = deque()
        self.waiting: deque[tuple[Request, bytes, int]] = deque()
        self.taken: list[tuple[Chain, Request]] = []
        self.finished: dict[Request, bytes] = {}
        self.completed: deque[Request] = deque()
        self.queue = self.new_queue()

    def new_queue(self) -> VirtQueue:
        machine = self.machine
        queue = self.make(0, self.size, machine.dma, machine.profile, machine.checks, machine.scheduler,
                          features=self.features)
        queue.require_untouched()
        self.start_device(queue, 0)
        self.device_sleeps = self.driver_sleeps = True
        self.kick_due = self.interrupt_due = False
        return queue

    def start_device(self, queue: VirtQueue, base: int) -> None:
        desc, driver, device = queue.areas
        self.device.start(self.machine.memory.host, self.size, desc, driver, device, features=self.features,
                          interrupt=lambda: None, base=base)

    # The driver.

    @rule(readable=st.lists(st.binary(min_size=1, max_size=30), max_size=3),
          writable=st.lists(st.integers(1, 3000), max_size=3))
    def lend(self, readable: list[bytes], writable: list[int]) -> None:
        if not readable and not writable:
            return
        heap = self.machine.heap
        request = Request(heap.alloc(32, "request", zero=True))
        for data in readable:
            memory = heap.alloc(len(data), "sent")
            memory.write(data)
            request.readable.append(Buffer.whole(memory))
        request.writable.extend(Buffer.whole(heap.alloc(length, "received")) for length in writable)
        count = len(readable) + len(writable)
        free = self.queue.free
        try:
            self.queue.add(request)
        except QueueFull:
            indirect = self.features >> Feature.RING_INDIRECT_DESC & 1
            assert count > (self.size if indirect else free) or not free
            self.free(request)
        except PoolFull:
            assert len(self.lent) + len(self.waiting) > 0
            self.free(request)
        else:
            entry = (request, b"".join(readable), sum(writable))
            self.lent.append(entry)
            self.waiting.append(entry)
            self.kick_due = True

    def free(self, request: Request) -> None:
        for memory in (request.record, *(b.memory for b in (*request.readable, *request.writable))):
            self.machine.heap.free(memory)

    @rule()
    def kick(self) -> None:
        wanted = self.queue.kick()
        if self.device_sleeps and self.kick_due and self.waiting:
            assert wanted
        if wanted:
            self.device_sleeps = False
        self.kick_due = False

    @precondition(lambda self: not self.driver_sleeps)
    @rule()
    def take_back(self) -> None:
        """Drain what was used, as an interrupt handler does; then sleep."""
        while (request := self.queue.get()) is not None:
            if self.in_order:
                assert request is self.completed[0]
            self.completed.remove(request)
            answer = self.finished.pop(request)
            assert request.done
            assert request.written == len(answer)
            got = b"".join(b.memory.read(0, b.length) for b in request.writable)
            assert got[:len(answer)] == answer
            self.lent.remove(next(entry for entry in self.lent if entry[0] is request))
            self.free(request)
        assert not self.completed
        self.driver_sleeps = True

    # The device.

    @rule(most=st.integers(1, 5))
    def take(self, most: int) -> None:
        """Take some of what is available; asleep, the device does not look."""
        if self.device_sleeps:
            return
        assert self.device.ring is not None
        self.device.ring.suppress_kicks()
        for _ in range(most):
            chain = self.device.pop()
            if chain is None:
                assert not self.waiting
                self.device_sleeps = self.device.ring.arm_kick()
                assert self.device_sleeps
                return
            request, sent, room = self.waiting.popleft()
            assert chain.read(0, 1 << 16) == sent
            assert chain.writable_size == room
            self.taken.append((chain, request))

    @precondition(lambda self: self.taken)
    @rule(data=st.data(), whole=st.booleans())
    def complete(self, data: st.DataObject, *, whole: bool) -> None:
        """Complete any chain that was taken; in order, it may have to wait in the queue."""
        chain, request = self.taken.pop(data.draw(st.integers(0, len(self.taken) - 1)))
        room = chain.writable_size
        self.number += 1
        answer = bytes([self.number & 0xFF]) * (room if whole else data.draw(st.integers(0, room)))
        assert chain.write(answer) == len(answer)
        self.device.push(chain.head, len(answer))
        self.finished[request] = answer

    @rule()
    def publish(self) -> None:
        fresh = self.shown() - len(self.completed)
        for request, *_ in self.lent:
            if request in self.finished and request not in self.completed and len(self.completed) < self.shown():
                self.completed.append(request)
        wanted = self.device.publish()
        if self.driver_sleeps and fresh:
            assert wanted
        if wanted:
            self.driver_sleeps = False

    def shown(self) -> int:
        """How many of those lent the driver may take back once the device publishes."""
        if not self.in_order:
            return len(self.finished)
        count = 0
        for request, *_ in self.lent:
            if request not in self.finished:
                break
            count += 1
        return count

    # Both.

    @rule()
    def reset(self) -> None:
        """The driver takes the queue back; what was lent and not taken back is lent again through the new one."""
        self.device.stop()
        requests = self.queue.cancel()
        assert requests == [request for request, *_ in self.lent]
        self.queue.destroy()
        self.queue = self.new_queue()
        self.taken, self.finished, self.completed = [], {}, deque()
        for request in requests:
            self.queue.add(request)
        self.waiting = deque(self.lent)
        self.kick_due = bool(requests)

    @precondition(lambda self: not self.taken and not self.device.unpublished)
    @rule()
    def restart_device(self) -> None:
        """The back end is replaced, and goes on where the other stopped."""
        self.start_device(self.queue, self.device.stop())
        self.device_sleeps = False

    @invariant()
    def nothing_is_lost(self) -> None:
        if hasattr(self, "queue"):
            assert self.queue.outstanding == len(self.lent)
            assert self.queue.broken is None
            assert self.device.broken is None
            assert self.device.ring is not None
            assert self.device.ring.could_be_next(self.queue.notification_data >> 16)

    def teardown(self) -> None:
        if hasattr(self, "queue"):
            self.device.stop()
            requests = self.queue.cancel()
            self.queue.destroy()
            for request in requests:
                self.free(request)
            self.machine.heap.check_all()
            assert not self.machine.heap.reports
            self.machine.close()


@pytest.mark.parametrize("profile", UNTRUSTED)
def test_every_kind_of_queue_is_a_queue(profile: str) -> None:
    class Machine(QueueMachine):
        pass

    Machine.profile = profile
    run_state_machine_as_test(Machine, settings=settings(
        max_examples=120, stateful_step_count=60, deadline=None, suppress_health_check=list(HealthCheck)))


def test_a_fresh_packed_ring_is_at_both_beginnings() -> None:
    machine = GuestMachine(PROFILES["hardened"], 1)
    queue = PackedQueue(0, 4, machine.dma, machine.profile, machine.checks, machine.scheduler, features=0)
    for base in (0, 0x80008000):
        ring = PackedRing(machine.memory.host, 4, *queue.areas, indirect=False, event_idx=False, base=base)
        assert ring.position == 0x80008000
        ring.release()
    machine.close()


@pytest.mark.parametrize("packed", [False, True], ids=["split", "packed"])
def test_in_order_one_used_element_stands_for_those_before_it(packed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    machine = QueueMachine()
    machine.start({Feature.IN_ORDER, *((Feature.RING_PACKED,) if packed else ())}, 8)
    for _ in range(4):
        machine.lend([], [4])
    machine.kick()
    machine.take(4)
    elements = []
    kind = PackedRing if packed else SplitRing
    push = kind.push

    def record(ring: Any, *element: Any) -> None:
        elements.append(element)
        push(ring, *element)

    monkeypatch.setattr(kind, "push", record)
    for (chain, request), length in zip(reversed(machine.taken), (2, 4, 3, 4), strict=True):
        machine.device.push(chain.head, chain.write(b"\7" * length))
        machine.finished[request] = b"\7" * length
    machine.taken.clear()
    assert not elements
    machine.publish()
    heads = [element[0] for element in elements]
    assert [element[1:] for element in elements] == [(3, (heads[0] - 1,)), (2, (heads[1] - 1,))]
    machine.take_back()
    assert machine.queue.outstanding == 0
    machine.teardown()
