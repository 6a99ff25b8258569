"""The kernel's table of its bounce pool: what is lent and not mapped, and what comes back beyond a mapping."""

from __future__ import annotations

import os
import struct
from pathlib import Path

import pytest

from chamber.device.chain import Chain
from chamber.lab.observation import Evidence, Harm
from chamber.lab.slot_table import SLOT, SlotTable, find_table
from tests.device.driver import BASE, Memory

POOL = range(BASE, BASE + 8 * SLOT)
TABLE = POOL.stop
ORIGINAL = POOL.stop + 0x1000
CANARY = bytes(range(200, 216))


class Guest:
    """Its pool, its table, and what is behind them."""

    def __init__(self) -> None:
        self.memory = Memory()
        self.table = SlotTable(POOL, TABLE)
        self.table.begin(CANARY)
        self.found: list[Evidence] = []
        self.notes: list[str] = []
        for slot in range(8):
            self.map(slot, -1, 0)

    def map(self, slot: int, original: int, size: int) -> None:
        self.memory.write(TABLE + 24 * slot, struct.pack("<QQHH4x", original & (1 << 64) - 1, size, 0, 0))

    def lend(self, address: int, length: int, *, writable: bool = True) -> None:
        part = [(POOL.start + address, length)]
        self.table.lent(Chain(0, [] if writable else part, part if writable else [], self.memory), self.memory,
                        self.found.append)

    def finish(self) -> str:
        self.table.finish(self.memory, self.found.append, self.notes.append)
        return self.notes[-1]


def test_a_mapping_that_comes_back_as_it_is_is_passed_over() -> None:
    guest = Guest()
    guest.map(1, ORIGINAL, 100)
    guest.lend(SLOT, 100)
    assert guest.memory.read(POOL.start + SLOT + 100, 16) == CANARY
    guest.memory.write(ORIGINAL, guest.memory.read(POOL.start + SLOT, 100))
    assert guest.finish() == "slots: 1 ends of mappings were filled; 0 descriptors led to where nothing was mapped"
    assert guest.found == []


@pytest.mark.parametrize("again", [False, True])
def test_a_copy_that_goes_beyond_is_told_with_its_place(again: bool) -> None:
    guest = Guest()
    guest.map(1, ORIGINAL, 100)
    guest.lend(SLOT, 100)
    guest.memory.write(ORIGINAL, guest.memory.read(POOL.start + SLOT, 116))
    if again:
        guest.map(1, ORIGINAL + 0x1000, 64)
        guest.lend(SLOT, 64)
    else:
        guest.finish()
    assert [(e.harm, e.signature) for e in guest.found] == [
        (Harm.MEMORY, "bytes beyond a mapping came back from the bounce pool")]
    assert f"{ORIGINAL + 100:#x}" in guest.found[0].text


def test_the_last_slot_of_a_long_mapping_is_filled_and_full_ones_are_not() -> None:
    guest = Guest()
    for slot in range(3):
        guest.map(slot, ORIGINAL + slot * SLOT, 2 * SLOT + 50 - slot * SLOT)
    guest.lend(0, 2 * SLOT + 50)
    assert guest.memory.data[:2 * SLOT + 50] == bytes(2 * SLOT + 50)
    assert guest.memory.read(POOL.start + 2 * SLOT + 50, 16) == CANARY
    assert guest.table.planted == 1


def test_a_part_of_a_mapping_is_lent_and_the_rest_stays_the_guests() -> None:
    guest = Guest()
    guest.map(0, ORIGINAL, 1500)
    guest.lend(0, 600)
    guest.lend(600, 900)
    assert guest.memory.data[:1500] == bytes(1500)


def test_what_is_to_be_read_is_left_alone() -> None:
    guest = Guest()
    guest.map(0, ORIGINAL, 100)
    guest.lend(0, 100, writable=False)
    assert guest.memory.data[:SLOT] == bytes(SLOT)
    assert guest.table.planted == 0


@pytest.mark.parametrize(("mapped", "address", "length"), [(0, SLOT, 10), (10, SLOT, 11), (100, SLOT + 50, 100)])
def test_what_is_not_mapped_is_counted(mapped: int, address: int, length: int) -> None:
    guest = Guest()
    if mapped:
        guest.map(1, ORIGINAL, mapped)
    guest.lend(address, length)
    assert "; 1 descriptors led" in guest.finish()
    assert guest.found == []


def test_addresses_outside_of_the_pool_are_not_this_tables() -> None:
    guest = Guest()
    guest.lend(-SLOT, 10)
    guest.lend(len(POOL) - 10, 20)
    assert guest.table.unmapped == 0


@pytest.mark.parametrize("kernel", ["/bin/true", "/nonexistent", "/dev/null"])
def test_a_kernel_without_the_table_has_none(kernel: str) -> None:
    assert find_table(os.getpid(), Path(kernel), POOL) is None
