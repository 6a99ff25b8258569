"""What lies in the bounce pool, and whose fault it is."""

from __future__ import annotations

import pytest

from chamber.device.chain import Chain
from chamber.device.queue import DeviceQueue
from chamber.lab.observation import Evidence, Harm
from chamber.lab.pool_watch import PoolWatch
from chamber.lab.slot_table import SLOT
from chamber.wire.split import DESC_F_WRITE
from tests.device.driver import BASE, Memory, Queue

POOL = range(BASE + 4 * SLOT, BASE + 12 * SLOT)
MARKER = bytes(range(1, 25))
AT = POOL.start + SLOT + 100


def look(watch: PoolWatch, memory: Memory) -> tuple[list[Evidence], list[str]]:
    found, notes = list[Evidence](), list[str]()
    watch.scan(memory, found.append, notes.append)
    return found, notes


def prepared() -> tuple[PoolWatch, Memory]:
    watch, memory = PoolWatch(POOL), Memory()
    watch.begin(MARKER)
    return watch, memory


def test_a_pool_without_the_secret_is_passed_over_in_silence() -> None:
    watch, memory = prepared()
    memory.write(AT, b"what was meant to be shared")
    memory.write(POOL.start - SLOT, MARKER)  # private memory
    found, notes = look(watch, memory)
    assert found == []
    assert [note.partition(";")[0] for note in notes] == ["pool: 1 of 8 slots hold data"]
    assert notes[0].count(" 0 times ") == 2


def test_a_secret_that_no_descriptor_leads_to_is_noted() -> None:
    watch, memory = prepared()
    memory.write(AT, MARKER)
    found, notes = look(watch, memory)
    assert found == []
    assert notes[0].endswith("1 times where no descriptor led")


@pytest.mark.parametrize("before", [0, 10])
def test_a_secret_that_is_lent_to_be_read_is_a_leak(before: int) -> None:
    watch, memory = prepared()
    memory.write(AT, MARKER)
    watch.lent(Chain(0, [(AT - before, len(MARKER) + before)], [], memory))
    found, _ = look(watch, memory)
    assert [(e.harm, e.signature) for e in found] == [
        (Harm.LEAK, "planted secret in the bounce pool in bytes lent to be read")]
    assert MARKER.hex(" ") in found[0].text
    assert look(watch, memory)[0] == []  # told once a run


def test_what_a_buffer_held_that_is_lent_to_be_written_is_noted() -> None:
    watch, memory = prepared()
    memory.write(AT, MARKER)
    watch.lent(Chain(0, [], [(AT, SLOT)], memory))
    found, notes = look(watch, memory)
    assert found == []
    assert "lies 1 times" in notes[0]


def test_a_secret_of_which_one_byte_is_lent_to_be_read_is_a_leak() -> None:
    watch, memory = prepared()
    memory.write(AT, MARKER)
    watch.lent(Chain(0, [(AT, 1)], [], memory))
    assert len(look(watch, memory)[0]) == 1


def test_each_run_has_its_own_secret_and_forgets_what_was_lent() -> None:
    watch, memory = prepared()
    memory.write(AT, MARKER)
    watch.lent(Chain(0, [(AT, SLOT)], [], memory))
    watch.begin(MARKER)
    assert look(watch, memory)[0] == []
    watch.lent(Chain(0, [(AT, SLOT)], [], memory))
    watch.begin(MARKER[::-1])
    assert look(watch, memory)[0] == []


@pytest.mark.parametrize("part", [(0, 1 << 40), (POOL.stop - 1, 5), (1 << 63, 1 << 31), (POOL.start, 0)])
def test_a_chain_that_leads_anywhere_is_noted_where_it_meets_the_pool(part: tuple[int, int]) -> None:
    watch, memory = prepared()
    watch.lent(Chain(0, [part], [part], memory))
    assert look(watch, memory)[0] == []


def test_what_the_device_never_took_was_lent_all_the_same() -> None:
    watch, memory = prepared()
    ring = Queue(memory, BASE, 4)
    queue = DeviceQueue(0)
    queue.lent = watch.lent
    queue.start(memory, 4, **ring.areas, features=0, interrupt=lambda: None)
    memory.write(AT, MARKER)
    ring.add([(AT, SLOT, DESC_F_WRITE)])
    assert queue.stop() == 0  # where it would go on
    assert look(watch, memory)[0] == []
