"""How the driver of a physical function brings its virtual functions about (PCIe 6.0, 9).

The capability is the host's word. How many functions there are, where they are and how large is checked before the bus
is told to have them: a function that lies on another's place would be talked to in its name.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from chamber.guest.driver import Refused
from chamber.guest.pci import bar_size
from chamber.platform.pci_bus import MEMORY
from chamber.wire.pci import (
    BAR_COUNT,
    BAR_IO,
    BAR_MEMORY_64,
    CONFIG_SIZE,
    CONVENTIONAL_SIZE,
    EXTENDED_HEADER,
    SRIOV,
    ExtendedId,
    SriovControl,
)

if TYPE_CHECKING:
    from chamber.guest.untrusted import Checks, Untrusted
    from chamber.platform.pci_bus import Bus

__all__ = ("VirtualFunctions",)

_SPEC: Final = "PCIe 6.0, 9.3.3"
_LIST_SPEC: Final = "PCIe 6.0, 7.6.3"
_MOST_CAPABILITIES: Final = (CONFIG_SIZE - CONVENTIONAL_SIZE) // EXTENDED_HEADER.size
_MOST_FUNCTIONS: Final = 255
_NEXT_SHIFT: Final = 4


class VirtualFunctions:
    """Those of one physical function.

    Args:
        bus: where it is.
        slot: in which slot.
        checks: of what is read.

    Raises:
        Refused: it has none.
        DeviceViolation: it says of them what can't be.

    """

    def __init__(self, bus: Bus, slot: int, checks: Checks) -> None:
        self._bus = bus
        self._slot = slot
        self._checks = checks
        self._at = self._find()
        self.total = self._field("total_vfs").between(1, _MOST_FUNCTIONS, "there are functions, on one bus", _SPEC)
        self._offset = self._field("first_vf_offset").between(1, _MOST_FUNCTIONS, "functions are none of their owner",
                                                              _SPEC)
        self._stride = self._field("vf_stride").between(
            int(self.total > 1), _MOST_FUNCTIONS, "functions have a place each", _SPEC)
        checks.require(slot + self._offset + (self.total - 1) * self._stride <= _MOST_FUNCTIONS,
                       "there are functions, on one bus", _SPEC)

    def _read(self, at: int, size: int) -> Untrusted[int]:
        return self._checks.number(int.from_bytes(self._bus.read_config(self._slot, at, size), "little"))

    def _field(self, name: str) -> Untrusted[int]:
        return self._read(self._at + SRIOV[name].offset, SRIOV[name].size)

    def _write(self, name: str, value: int) -> None:
        self._bus.write_config(self._slot, self._at + SRIOV[name].offset,
                               (value & SRIOV[name].maximum).to_bytes(SRIOV[name].size, "little"))

    def _find(self) -> int:
        """Return where the capability is: in a list that ends, and never in the header."""
        at, seen = CONVENTIONAL_SIZE, set[int]()
        while at and len(seen) < _MOST_CAPABILITIES:
            self._checks.require(CONVENTIONAL_SIZE <= at <= CONFIG_SIZE - EXTENDED_HEADER.size and at not in seen,
                                 "the list of extended capabilities ends", _LIST_SPEC)
            seen.add(at)
            kind = self._read(at, 2).masked(0xFFFF)
            if kind == ExtendedId.SRIOV:
                self._checks.require(at + SRIOV.size <= CONFIG_SIZE, "a capability ends in its space", _LIST_SPEC)
                return at
            at = self._read(at + 2, 2).masked(0xFFFF) >> _NEXT_SHIFT & ~3
        raise Refused("the function has no virtual functions")

    def enable(self, count: int, memory: int = MEMORY.start + len(MEMORY) // 2) -> list[int]:
        """Have `count` of them, with their BARs from an address on; return their slots.

        Raises:
            Refused: there can't be so many.
            DeviceViolation: their BARs can't be placed.

        """
        if not 1 <= count <= self.total:
            raise Refused(f"there can be {self.total} functions")
        self._place_bars(count, memory)
        self._write("num_vfs", count)
        self._write("control", SriovControl.VF_ENABLE | SriovControl.MEMORY)
        self._field("num_vfs").equals(count, "there are as many functions as were asked for", _SPEC)
        return [self._slot + self._offset + number * self._stride for number in range(count)]

    def disable(self) -> None:
        """Have none."""
        self._write("control", 0)

    def _place_bars(self, count: int, memory: int) -> None:
        index = 0
        while index < BAR_COUNT:
            name = f"vf_bar{index}"
            self._write(name, SRIOV[name].maximum)
            low = self._field(name).masked(0xFFFFFFFF)
            wide = low & 7 == BAR_MEMORY_64 and index + 1 < BAR_COUNT
            if not low or low & BAR_IO:
                index += 1
                continue
            mask = low & ~0xF | 0xFFFFFFFF << 32
            if wide:
                self._write(f"vf_bar{index + 1}", 0xFFFFFFFF)
                mask = low & ~0xF | self._field(f"vf_bar{index + 1}").masked(0xFFFFFFFF) << 32
            size = bar_size(mask, self._checks, _SPEC)
            memory = -(-memory // size) * size
            self._checks.require(memory + count * size <= MEMORY.stop, "there is room for all BARs", _SPEC)
            self._write(name, memory)
            if wide:
                self._write(f"vf_bar{index + 1}", memory >> 32)
            memory += count * size
            index += 1 + wide
