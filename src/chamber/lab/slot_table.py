"""Linux's own table of its bounce pool, read from outside: which slots are mapped, to what, and how far (swiotlb.c).

A descriptor says what the guest lends; the table says what it has mapped. Where they differ, one of two things is
seen that neither device nor driver knows: a slot that is lent while nothing is mapped there, and bytes beyond the end
of a mapping that come back into the guest's memory with it. For that, the end of a mapping's last slot, which belongs
to no mapping, is filled with bytes that are nowhere else.
"""

from __future__ import annotations

import struct
import subprocess
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Final

from chamber.lab.observation import Evidence, Harm

if TYPE_CHECKING:
    from collections.abc import Callable

    from chamber.device.chain import Chain
    from chamber.platform.dma import Dma

__all__ = ("SLOT", "SlotTable", "find_table")

SLOT: Final = 2048
"""Bytes of a slot (IO_TLB_SIZE)."""
_SYMBOL: Final = "io_tlb_default_mem"
_POOL: Final = struct.Struct("<QQQQ?3xIIxxxxQQ")
"""The begin of struct io_tlb_pool: start, end, vaddr, nslabs, late_alloc, nareas, area_nslabs, areas, slots."""
_ENTRY: Final = struct.Struct("<QQHH4x")
"""struct io_tlb_slot: orig_addr, alloc_size, list, pad_slots."""
_UNMAPPED: Final = (1 << 64) - 1
_MOST_MAPPED: Final = 128 * SLOT
"""A mapping is no longer (IO_TLB_SEGSIZE)."""
_CANARY: Final = 16
_MOST_PLANTED: Final = 4096


@cache
def _symbol(kernel: Path) -> int | None:
    """Where the kernel keeps its pool; None where nothing says so."""
    try:
        said = subprocess.run(("nm", kernel), capture_output=True, text=True, timeout=60, check=False).stdout
    except (OSError, subprocess.TimeoutExpired):
        return None
    return next((int(line.split()[0], 16) for line in said.splitlines() if line.endswith(f" {_SYMBOL}")), None)


def find_table(pid: int, kernel: Path, pool: range) -> SlotTable | None:
    """Find the table of a guest in User-Mode Linux, whose kernel is a process; None where it can't be read."""
    at = _symbol(kernel)
    if at is None:
        return None
    try:
        with Path(f"/proc/{pid}/mem").open("rb") as memory:
            memory.seek(at)
            start, end, vaddr, count, *_, slots = _POOL.unpack(memory.read(_POOL.size))
            # Another kernel's structure may be another one.
            if (start, end, count) != (pool.start, pool.stop, len(pool) // SLOT):
                return None
            memory.seek(slots)
            entries = tuple(_ENTRY.iter_unpack(memory.read(count * _ENTRY.size)))
    except (OSError, OverflowError, ValueError, struct.error):
        return None
    if len(entries) != count or any(original != _UNMAPPED and size > _MOST_MAPPED for original, size, *_ in entries):
        return None
    return SlotTable(pool, slots - (vaddr - start))


class SlotTable:
    """Looks at what is lent.

    Args:
        pool: addresses of the bounce pool.
        table: address of the table in guest memory.

    Attributes:
        unmapped: descriptors that led to slots where nothing was mapped.
        planted: ends of slots that were filled.

    """

    def __init__(self, pool: range, table: int) -> None:
        self._pool = pool
        self._table = table
        self._canary = b""
        self._waiting: dict[int, tuple[int, int]] = {}
        self._told = False
        self.unmapped = 0
        self.planted = 0

    def begin(self, canary: bytes) -> None:
        """Start anew, with bytes that are nowhere in the guest."""
        self._canary = canary[:_CANARY]
        self._waiting.clear()
        self._told = False
        self.unmapped = self.planted = 0

    def _entry(self, memory: Dma, slot: int) -> tuple[int, int]:
        """Return the original address that a slot is mapped to, and how many bytes are left of the mapping there."""
        original, size, *_ = _ENTRY.unpack(memory.view(self._table + slot * _ENTRY.size, _ENTRY.size))
        return original, size

    def lent(self, chain: Chain, memory: Dma, found: Callable[[Evidence], None]) -> None:
        """Look at a chain, before the device does anything with it.

        Raises:
            DmaFault: the table is not within reach.

        """
        for parts, writable in ((chain.readable, False), (chain.writable, True)):
            for address, length in parts:
                if length and self._pool.start <= address and address + length <= self._pool.stop:
                    self._look(address, length, memory, found, writable=writable)

    def _look(self, address: int, length: int, memory: Dma, found: Callable[[Evidence], None], *,
              writable: bool) -> None:
        offset = address - self._pool.start
        for slot in range(offset // SLOT, (offset + length - 1) // SLOT + 1):
            self._check(slot, memory, found)
            original, size = self._entry(memory, slot)
            used = min(SLOT, offset + length - slot * SLOT)
            if original == _UNMAPPED or used > size:
                self.unmapped += 1
            elif self._canary and writable and size <= SLOT - _CANARY and len(self._waiting) < _MOST_PLANTED:
                memory.view(self._pool.start + slot * SLOT + size, _CANARY)[:] = self._canary
                self._waiting[slot] = original, size
                self.planted += 1

    def _check(self, slot: int, memory: Dma, found: Callable[[Evidence], None]) -> None:
        """See whether what was put behind a mapping has come back with it."""
        planted = self._waiting.pop(slot, None)
        if planted is None or not self._canary:
            return
        original, size = planted
        if not self._told and bytes(memory.view(original + size, _CANARY)) == self._canary:
            self._told = True
            found(Evidence(Harm.MEMORY, "bytes beyond a mapping came back from the bounce pool",
                           f"slot {slot}: {size} bytes were mapped, and {self._canary.hex(' ')} behind them is now at "
                           f"{original + size:#x} in the guest's memory"))

    def finish(self, memory: Dma, found: Callable[[Evidence], None], note: Callable[[str], None]) -> None:
        """Look once more, when the guest has let go of the device.

        Raises:
            DmaFault: the guest's memory is not within reach.

        """
        for slot in tuple(self._waiting):
            self._check(slot, memory, found)
        note(f"slots: {self.planted} ends of mappings were filled; "
             f"{self.unmapped} descriptors led to where nothing was mapped")
