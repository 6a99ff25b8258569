"""A PCI bus of the model: configuration space by slot, memory by address, interrupts as writes to an address."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Protocol

from chamber.wire.pci import BAR_COUNT, NO_DEVICE, Command

if TYPE_CHECKING:
    from chamber.platform.interrupts import InterruptController
    from chamber.platform.pci import PciFunction

__all__ = ("MEMORY", "MSI_ADDRESS", "Bus", "Occupant", "PciBus")

MEMORY: Final = range(0x8000_0000, 0x9000_0000)
"""Addresses that a guest may put BARs at."""
MSI_ADDRESS: Final = 0xFEE0_0000
"""Where a message has to go to be an interrupt; its data is the vector."""


class Bus(Protocol):
    """What a guest reaches functions by."""

    def read_config(self, slot: int, offset: int, size: int) -> bytes: ...  # noqa: D102 - as PciBus's, like those below
    def write_config(self, slot: int, offset: int, data: bytes) -> None: ...  # noqa: D102
    def read(self, address: int, size: int) -> bytes: ...  # noqa: D102
    def write(self, address: int, data: bytes) -> None: ...  # noqa: D102


class Occupant(Protocol):
    """What is in a slot: a function, and whoever stands before it."""

    @property
    def function(self) -> PciFunction:
        """The function."""
        ...

    def read_config(self, offset: int, size: int) -> bytes: ...  # noqa: D102 - as PciFunction's, like those below
    def write_config(self, offset: int, data: bytes) -> None: ...  # noqa: D102
    def read_bar(self, bar: int, offset: int, size: int) -> bytes: ...  # noqa: D102
    def write_bar(self, bar: int, offset: int, data: bytes) -> None: ...  # noqa: D102


class PciBus:
    """A bus with slots.

    Args:
        interrupts: takes the messages that functions send.

    """

    def __init__(self, interrupts: InterruptController) -> None:
        self._interrupts = interrupts
        self._slots: dict[int, Occupant] = {}

    def plug(self, slot: int, occupant: Occupant) -> None:
        """Put a function into a slot."""
        occupant.function.send = self._message
        self._slots[slot] = occupant

    def unplug(self, slot: int) -> None:
        """Take what is in a slot off the bus, if there is anything."""
        self._slots.pop(slot, None)

    def read_config(self, slot: int, offset: int, size: int) -> bytes:
        """Read configuration space; where nobody is, all bits are one."""
        occupant = self._slots.get(slot)
        nobody = NO_DEVICE.to_bytes(2, "little")[:1] * size
        return nobody if occupant is None else occupant.read_config(offset, size)

    def write_config(self, slot: int, offset: int, data: bytes) -> None:
        """Write configuration space."""
        occupant = self._slots.get(slot)
        if occupant is not None:
            occupant.write_config(offset, data)

    def read(self, address: int, size: int) -> bytes:
        """Read memory that functions answer for, by where their BARs are now."""
        found = self._find(address)
        if found is None:
            return b"\xff" * size
        occupant, bar, offset = found
        return occupant.read_bar(bar, offset, size)

    def write(self, address: int, data: bytes) -> None:
        """Write it."""
        found = self._find(address)
        if found is not None:
            occupant, bar, offset = found
            occupant.write_bar(bar, offset, data)

    def _find(self, address: int) -> tuple[Occupant, int, int] | None:
        for occupant in self._slots.values():
            function = occupant.function
            for index in range(BAR_COUNT):
                bar = function.bars[index]
                base = function.bar_base(index)
                if bar is None or bar.ports:
                    continue
                if function.command & Command.MEMORY and base <= address < base + bar.size:
                    return occupant, index, address - base
        return None

    def _message(self, address: int, data: int) -> None:
        if address == MSI_ADDRESS:
            self._interrupts.assert_vector(data)
