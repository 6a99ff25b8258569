"""What a guest makes of a function on a PCI bus: identity, base addresses, capabilities, each looked at once.

All of it is the host's word, and decides where the guest writes. What is read here is checked, kept in private memory,
and never asked for again (virtio 1.4, 4.1.4; PCIe 6.0, 7.5 and 7.7).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from chamber.platform.pci_bus import MEMORY
from chamber.wire.pci import (
    BAR_COUNT,
    BAR_IO,
    BAR_MEMORY_64,
    CONVENTIONAL_SIZE,
    FIRST_CAPABILITY,
    HEADER,
    MSIX,
    MSIX_ENTRY,
    CapabilityId,
    Command,
    Status,
)
from chamber.wire.virtio_pci import (
    CAPABILITY,
    COMMON,
    DEVICE_ID_BASE,
    NOTIFY_CAPABILITY,
    RELOCATED,
    RELOCATED_AT,
    RELOCATED_BAR,
    RELOCATED_ID_BASE,
    RELOCATED_MAGIC,
    RELOCATED_SIZE,
    SHARED_MEMORY_CAPABILITY,
    VENDOR_ID,
    CapabilityType,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from chamber.guest.untrusted import Checks, Untrusted
    from chamber.platform.pci_bus import Bus

__all__ = ("ALIGNED", "LEAST", "NEEDED", "FunctionFinder", "Msix", "Structure", "TableFinder", "VirtioFunction",
           "bar_size", "find_function", "is_multiplier", "overlap")

_MOST_CAPABILITIES: Final = 48
"""As many as the space that they lie in has room for (PCIe 6.0, 7.5.3)."""
_MOST_BYTES: Final = 1 << 24
"""A BAR that no virtio device needs a larger one than."""
LEAST: Final = {CapabilityType.COMMON_CFG: COMMON["queue_notif_config_data"].offset, CapabilityType.NOTIFY_CFG: 2,
                 CapabilityType.ISR_CFG: 1, CapabilityType.DEVICE_CFG: 4}
ALIGNED: Final = {CapabilityType.COMMON_CFG: 4, CapabilityType.NOTIFY_CFG: 2, CapabilityType.ISR_CFG: 1,
                   CapabilityType.DEVICE_CFG: 4}
NEEDED: Final = (CapabilityType.COMMON_CFG, CapabilityType.NOTIFY_CFG)
_TABLE_SPEC: Final = "docs/trusted-virtio.md"
_DEVICE_SPEC, _BAR_SPEC, _LIST_SPEC, _CAP_SPEC = "4.1.2", "PCIe 6.0, 7.5.1.2.1", "PCIe 6.0, 7.5.3.1", "4.1.4"


@dataclass(frozen=True, slots=True)
class Structure:
    """Registers in memory, as far as the guest has convinced itself of them."""

    address: int
    length: int


@dataclass(frozen=True, slots=True)
class Msix:
    """The MSI-X table, and where it is switched on."""

    table: Structure
    control: int
    vectors: int


@dataclass(frozen=True, slots=True)
class VirtioFunction:
    """A virtio function that the guest is willing to talk to.

    Attributes:
        slot: where it is on the bus.
        device_type: virtio id.
        structures: registers by the type of their capability.
        notify_multiplier: bytes between two queues' notification registers.
        shared_memory: shared memory regions by their id.
        msix: its MSI-X table; None without.
        bars: its base addresses, by their number.

    """

    slot: int
    device_type: int
    structures: dict[CapabilityType, Structure]
    notify_multiplier: int
    shared_memory: dict[int, Structure]
    msix: Msix | None
    bars: dict[int, Structure] = field(default_factory=dict)


class FunctionFinder:
    """Looks at one function, step by step: `look` takes them all.

    Args:
        bus: where it is.
        slot: in which slot.
        checks: of what is read.
        id_base: what is added to a device type to have its device id.

    Attributes:
        bars: where its base addresses were placed.

    """

    def __init__(self, bus: Bus, slot: int, checks: Checks, *, id_base: int = DEVICE_ID_BASE) -> None:
        self._bus = bus
        self._slot = slot
        self._checks = checks
        self._id_base = id_base
        self.bars: dict[int, Structure] = {}
        self._next = MEMORY.start
        self._type = 0

    def _bytes(self, offset: int, size: int) -> bytes:
        """Return bytes of where capabilities are."""
        return self._bus.read_config(self._slot, offset, size)

    def _read(self, offset: int, size: int) -> Untrusted[int]:
        return self._checks.number(int.from_bytes(self._bytes(offset, size), "little"))

    def _write(self, offset: int, size: int, value: int) -> None:
        self._bus.write_config(self._slot, offset, (value & (1 << 8 * size) - 1).to_bytes(size, "little"))

    def look(self) -> VirtioFunction:
        """Identify it, place its BARs, find what it has, and let it work."""
        self.place()
        function = self.find()
        self.enable()
        return function

    def place(self) -> None:
        """Identify the function, and place its BARs."""
        checks = self._checks
        self._read(HEADER["vendor"].offset, 2).equals(VENDOR_ID, "the function is virtio's", _DEVICE_SPEC)
        base = self._id_base
        self._type = self._read(HEADER["device"].offset, 2).between(
            base, base + 63, "the function is a device without a legacy interface", _DEVICE_SPEC) - base
        self._read(HEADER["header_type"].offset, 1).one_of((0,), "the function is no bridge, and alone", "4.1.2")
        status = self._read(HEADER["status"].offset, 2).masked(0xFFFF)
        checks.require(bool(status & Status.CAPABILITIES), "the function has capabilities", _CAP_SPEC)
        self._size_bars()

    def enable(self) -> None:
        """Have its memory answer, and let it master the bus."""
        self._write(HEADER["command"].offset, 2, Command.MEMORY | Command.BUS_MASTER | Command.INTX_DISABLE)

    def find(self) -> VirtioFunction:
        """Follow its capabilities to what it has."""
        checks = self._checks
        structures: dict[CapabilityType, Structure] = {}
        shared: dict[int, Structure] = {}
        multiplier, msix = 0, None
        for at, kind in self._capabilities():
            if kind == CapabilityId.MSIX and msix is None:
                msix = self._msix(at)
            if kind != CapabilityId.VENDOR:
                continue
            what = self._read(at + CAPABILITY["cfg_type"].offset, 1).masked(0xFF)
            if what in set(LEAST) and what not in structures:  # the first one counts (4.1.4.1)
                known = CapabilityType(what)
                structures[known] = self._structure(at, known)
                if known is CapabilityType.NOTIFY_CFG:
                    multiplier = self._multiplier(at)
            elif what == CapabilityType.SHARED_MEMORY_CFG:
                number = self._read(at + CAPABILITY["id"].offset, 1).masked(0xFF)
                shared.setdefault(number, self._shared(at))
        checks.require(all(kind in structures for kind in NEEDED), "the function has the structures that it needs",
                       _CAP_SPEC)
        taken = list(structures.values()) + ([] if msix is None else [msix.table])
        checks.require(not overlap(taken), "no structure lies in another", _CAP_SPEC)
        return VirtioFunction(self._slot, self._type, structures, multiplier, shared, msix, dict(self.bars))

    def find_msix(self) -> Msix | None:
        """Follow the capability of MSI-X alone."""
        at = next((at for at, kind in self._capabilities() if kind == CapabilityId.MSIX), None)
        return None if at is None else self._msix(at)

    # Base addresses.

    def _size_bars(self) -> None:
        index = 0
        while index < BAR_COUNT:
            at = HEADER[f"bar{index}"].offset
            self._write(at, 4, 0xFFFFFFFF)
            low = self._read(at, 4).masked(0xFFFFFFFF)
            wide = low & 7 == BAR_MEMORY_64
            if low & BAR_IO or not low:
                index += 1
                continue
            mask = low & ~0xF
            if wide and index + 1 < BAR_COUNT:
                self._write(at + 4, 4, 0xFFFFFFFF)
                mask |= self._read(at + 4, 4).masked(0xFFFFFFFF) << 32
            else:
                mask |= 0xFFFFFFFF << 32
            size = bar_size(mask, self._checks, _BAR_SPEC)
            self._place(index, at, size, wide=wide)
            index += 1 + wide

    def _place(self, index: int, at: int, size: int, *, wide: bool) -> None:
        address = -(-self._next // size) * size if size else self._next
        self._checks.require(address + size <= MEMORY.stop, "there is room for all BARs", _BAR_SPEC)
        self._next = address + size
        self._write(at, 4, address)
        if wide:
            self._write(at + 4, 4, address >> 32)
        self.bars[index] = Structure(address, size)

    # Capabilities.

    def _capabilities(self) -> list[tuple[int, int]]:
        """Return where capabilities are, and their ids: a list that ends, and no place twice."""
        found: list[tuple[int, int]] = []
        at = self._read(HEADER["capabilities"].offset, 1).masked(0xFC)
        while at and len(found) < _MOST_CAPABILITIES:
            self._checks.require(at >= FIRST_CAPABILITY, "capabilities lie behind the header", _LIST_SPEC)
            self._checks.require(all(at != known for known, _ in found), "the list of capabilities ends", _LIST_SPEC)
            found.append((at, self._read(at, 1).masked(0xFF)))
            at = self._read(at + 1, 1).masked(0xFC)
        return found

    def _field(self, at: int, name: str) -> Untrusted[int]:
        field = CAPABILITY[name]
        return self._read(at + field.offset, field.size)

    def _structure(self, at: int, kind: CapabilityType) -> Structure:
        bar = self._bar_of(self._field(at, "bar"))
        offset = self._field(at, "offset").at_most(bar.length, "a structure begins in its BAR", _CAP_SPEC)
        length = self._field(at, "length").between(LEAST[kind], bar.length - offset,
                                                   "a structure has its fields, and ends in its BAR", _CAP_SPEC)
        self._checks.require(not offset % ALIGNED[kind], "a structure is aligned", _CAP_SPEC)
        self._field(at, "cap_len").between(CAPABILITY.size, CONVENTIONAL_SIZE - at, "a capability is as long as it is",
                                           _CAP_SPEC)
        return Structure(bar.address + offset, length)

    def _bar_of(self, number: Untrusted[int]) -> Structure:
        index = number.one_of(tuple(self.bars), "a structure is in a BAR that there is", _CAP_SPEC)
        return self.bars.get(index, Structure(MEMORY.stop, 0))

    def _multiplier(self, at: int) -> int:
        field = NOTIFY_CAPABILITY["notify_off_multiplier"]
        value = self._read(at + field.offset, field.size).at_most(1 << 16, "the multiplier fits a BAR", "4.1.4.4")
        self._checks.require(is_multiplier(value),
                             "the multiplier is an even power of two, or 0", "4.1.4.4.1")
        return value

    def _shared(self, at: int) -> Structure:
        bar = self._bar_of(self._field(at, "bar"))
        high = [SHARED_MEMORY_CAPABILITY[name] for name in ("offset_hi", "length_hi")]
        offset_hi, length_hi = (self._read(at + field.offset, 4).masked(0xFFFFFFFF) for field in high)
        offset = self._checks.number(self._field(at, "offset").masked(0xFFFFFFFF) | offset_hi << 32).at_most(
            bar.length, "shared memory begins in its BAR", "4.1.4.7")
        length = self._checks.number(self._field(at, "length").masked(0xFFFFFFFF) | length_hi << 32).at_most(
            bar.length - offset, "shared memory ends in its BAR", "4.1.4.7")
        return Structure(bar.address + offset, length)

    def _msix(self, at: int) -> Msix:
        control = at + MSIX["control"].offset
        vectors = (self._read(control, 2).masked(0x7FF)) + 1
        word = self._read(at + MSIX["table"].offset, 4).masked(0xFFFFFFFF)
        bar = self._bar_of(self._checks.number(word & 7))
        size = vectors * MSIX_ENTRY.size
        self._checks.require((word & ~7) + size <= bar.length, "the MSI-X table lies in its BAR", "PCIe 6.0, 7.7.2.3")
        return Msix(Structure(bar.address + (word & ~7), size), control, vectors)


class TableFinder(FunctionFinder):
    """Follows capabilities that lie in the device's memory: `RELOCATED` in `chamber.wire.virtio_pci`."""

    def __init__(self, bus: Bus, slot: int, checks: Checks) -> None:
        super().__init__(bus, slot, checks, id_base=RELOCATED_ID_BASE)
        self._table: bytes | None = None

    def _bytes(self, offset: int, size: int) -> bytes:
        return super()._bytes(offset, size) if self._table is None else self._table[offset:offset + size]

    def find(self) -> VirtioFunction:
        """Copy the table, once, and follow it. Interrupts' registers are no part of it."""
        bar = self._bar_of(self._checks.number(RELOCATED_BAR))
        self._checks.require(bar.length >= RELOCATED_AT + RELOCATED_SIZE, "the table lies in its BAR", _TABLE_SPEC)
        data = self._bus.read(bar.address + RELOCATED_AT, RELOCATED_SIZE)
        head = RELOCATED.unpack(data)
        self._checks.number(head["magic"]).equals(RELOCATED_MAGIC, "there is a table", _TABLE_SPEC)
        size = self._checks.number(head["length"]).at_most(
            RELOCATED_SIZE - RELOCATED.size, "the table ends on its page", _TABLE_SPEC)
        self._table = data[RELOCATED.size:RELOCATED.size + size]
        try:
            return super().find()
        finally:
            self._table = None

    def _capabilities(self) -> list[tuple[int, int]]:
        if self._table is None:
            return super()._capabilities()
        found: list[tuple[int, int]] = []
        at = 0
        while at < len(self._table):
            size = self._field(at, "cap_len").between(CAPABILITY.size, len(self._table) - at,
                                                      "a capability is as long as it is", _TABLE_SPEC)
            found.append((at, self._read(at, 1).masked(0xFF)))
            at += size
        return found


def bar_size(mask: int, checks: Checks, spec: str) -> int:
    """Return the size of a BAR by the address bits, of 64, that it kept when all were written."""
    size = checks.number(-mask & (1 << 64) - 1).between(16, _MOST_BYTES, "a BAR has a size that fits", spec)
    checks.require(not size & (size - 1), "the size of a BAR is a power of two", spec)
    return size


def is_multiplier(value: int) -> bool:
    """Whether a number may be ``notify_off_multiplier``: an even power of two, or 0 (virtio 1.4, 4.1.4.4.1)."""
    return not value or (value > 1 and not value & (value - 1))


def overlap(structures: Sequence[Structure]) -> bool:
    """Whether one of them lies in another."""
    return any(one.address < other.address + other.length and other.address < one.address + one.length
               for place, one in enumerate(structures) for other in structures[:place])


def find_function(bus: Bus, slot: int, checks: Checks) -> VirtioFunction:
    """Look at the function in a slot, place its BARs, and let it work.

    Raises:
        DeviceViolation: something about it is not as it has to be; nothing of it was mapped.

    """
    return FunctionFinder(bus, slot, checks).look()
