"""A PCI function: its configuration space, its base addresses, and the interrupts that it raises.

What is here is what the bus and every function on it do, whatever the function is for. Configuration space says by a
mask which bits a guest may change; a BAR is a row of regions, each with somebody who answers. Nothing here is the
guest's: a malicious host puts another function in the place of this one, or stands between.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol

from chamber.platform.msix import MsixTable
from chamber.wire.pci import (
    BAR_COUNT,
    BAR_IO,
    BAR_MEMORY_64,
    BAR_PREFETCHABLE,
    CONFIG_SIZE,
    CONVENTIONAL_SIZE,
    EXPRESS,
    FIRST_CAPABILITY,
    HEADER,
    MSIX,
    CapabilityId,
    Command,
    ExpressControl,
    MsixControl,
    Status,
)

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ("Bar", "PciFunction", "Region", "Registers", "Window")

_ENDPOINT: Final = 0x0002
"""PCI Express capability, version 2, endpoint."""
_FLR_CAPABLE: Final = 1 << 28
_HEADER_MASK: Final = {
    "command": Command.MEMORY | Command.BUS_MASTER | Command.PARITY | Command.SERR | Command.INTX_DISABLE,
    "cache_line": 0xFF, "latency": 0xFF, "interrupt_line": 0xFF}


class Registers(Protocol):
    """Who answers for a piece of a BAR."""

    def read(self, offset: int, size: int) -> bytes:
        """Return `size` bytes."""
        ...

    def write(self, offset: int, data: bytes) -> None:
        """Take bytes."""
        ...


@dataclass(frozen=True, slots=True)
class Region:
    """A piece of a BAR: from `start` on, `size` bytes."""

    start: int
    size: int
    registers: Registers


@dataclass(frozen=True, slots=True)
class Bar:
    """A base address: `size` is a power of two of 16 bytes at least; between regions there is nothing.

    Where `ports` is set, it is one of I/O ports.
    """

    size: int
    regions: tuple[Region, ...]
    wide: bool = False
    prefetchable: bool = False
    ports: bool = False

    @property
    def flags(self) -> int:
        """The low bits of its register."""
        return BAR_IO * self.ports | BAR_MEMORY_64 * self.wide | BAR_PREFETCHABLE * self.prefetchable

    @property
    def fixed_bits(self) -> int:
        """How many of the low bits are flags."""
        return 2 if self.ports else 4

    @property
    def answers_to(self) -> Command:
        """What of the command register has it answer."""
        return Command.IO if self.ports else Command.MEMORY


@dataclass(frozen=True, slots=True)
class Window:
    """Bytes of configuration space behind which somebody acts: where `read` or `write` is None, they are just bytes."""

    start: int
    end: int
    read: Callable[[int, int], bytes] | None = None
    written: Callable[[int, bytes], None] | None = None


class PciFunction:
    """One function of a device, or a port.

    Args:
        vendor: vendor id.
        device: device id.
        class_code: three bytes: class, subclass, interface.
        revision: revision id.
        subsystem_vendor: subsystem vendor id.
        subsystem: subsystem id.
        express: what it is on PCI Express; an endpoint by default.
        device_capabilities: the register; by default it can be reset alone.

    Attributes:
        config: the honest configuration space, `CONFIG_SIZE` bytes.
        mask: the bits of it that a guest may change.
        bars: its base addresses, None where there is none.
        msix: its MSI-X table, if `add_msix` gave it one.
        express_at: where its PCI Express capability is.
        send: set by whoever has the function on a bus: write a message signalled interrupt (address, data).
        wire: the same: assert or deassert INTx.
        raise_vector: the same, where the MSI-X table is somebody else's: raise a vector, whatever is in the table here.
        was_reset: called after a function level reset, by whom the function is for.

    """

    def __init__(self, *, vendor: int, device: int, class_code: int, revision: int = 1, subsystem_vendor: int = 0,
                 subsystem: int = 0, express: int = _ENDPOINT, device_capabilities: int = _FLR_CAPABLE) -> None:
        self.config = bytearray(CONFIG_SIZE)
        self.bars: list[Bar | None] = [None] * BAR_COUNT
        self.msix: MsixTable | None = None
        self.send: Callable[[int, int], None] = lambda _address, _data: None
        self.wire: Callable[[bool], None] = lambda _asserted: None
        self.raise_vector: Callable[[int], None] | None = None
        self.was_reset: Callable[[], None] = lambda: None
        self.mask = bytearray(CONFIG_SIZE)
        self._windows: list[Window] = []
        self._last: int | None = None
        self._next = FIRST_CAPABILITY
        self._last_extended: int | None = None
        self._next_extended = CONVENTIONAL_SIZE
        self._intx = False
        for name, value in (("vendor", vendor), ("device", device), ("revision", revision),
                            ("class.base", class_code >> 16), ("class.sub", class_code >> 8 & 0xFF),
                            ("class.interface", class_code & 0xFF), ("subsystem_vendor", subsystem_vendor),
                            ("subsystem", subsystem), ("interrupt_pin", 1)):
            HEADER.put(self.config, name, value)
        for name, mask in _HEADER_MASK.items():
            HEADER.put(self.mask, name, mask)
        body = EXPRESS.pack(capabilities=express, device_capabilities=device_capabilities)[2:]
        self.express_at = self.add_capability(CapabilityId.EXPRESS, bytes(body))
        self._control = self.express_at + EXPRESS["device_control"].offset
        self.add_window(Window(self._control, self._control + 2, written=self._control_written))

    # Building it.

    def add_capability(self, capability: int, body: bytes, mask: bytes = b"") -> int:
        """Add a capability, `body` from its third byte on; return where it is.

        `mask` has the bits of the body that a guest may change.

        Raises:
            ValueError: there is no room.

        """
        at = self._next
        end = at + 2 + len(body)
        if end > CONVENTIONAL_SIZE:
            raise ValueError("no room for another capability")
        self.config[at:end] = bytes((capability, 0)) + body
        self.mask[at + 2:at + 2 + len(mask)] = mask
        self.config[HEADER["capabilities"].offset if self._last is None else self._last + 1] = at
        HEADER.put(self.config, "status", Status.CAPABILITIES)
        self._last, self._next = at, end + 3 & ~3
        return at

    def add_extended(self, capability: int, version: int, body: bytes, mask: bytes = b"") -> int:
        """Add an extended capability, `body` from its fifth byte on; return where it is.

        Raises:
            ValueError: there is no room.

        """
        at = self._next_extended
        end = at + 4 + len(body)
        if end > CONFIG_SIZE:
            raise ValueError("no room for another extended capability")
        self.config[at:end] = (capability | version << 16).to_bytes(4, "little") + body
        self.mask[at + 4:at + 4 + len(mask)] = mask
        if self._last_extended is not None:
            before = self._last_extended
            word = int.from_bytes(self.config[before:before + 4], "little") & 0xFFFFF | at << 20
            self.config[before:before + 4] = word.to_bytes(4, "little")
        self._last_extended, self._next_extended = at, end + 3 & ~3
        return at

    def add_bar(self, index: int, bar: Bar) -> None:
        """Give it a base address; a wide one takes the next register as well.

        Raises:
            ValueError: its size is no power of two, or the register is taken.

        """
        registers = (index, index + 1) if bar.wide else (index,)
        if bar.size < 16 or bar.size & (bar.size - 1) or registers[-1] >= BAR_COUNT or any(
                self._mask_of_bar(register) for register in registers):
            raise ValueError(f"no BAR {index} of {bar.size} bytes")
        self.bars[index] = bar
        mask = -bar.size & (1 << 64) - 1
        HEADER.put(self.config, f"bar{index}", bar.flags)
        HEADER.put(self.mask, f"bar{index}", mask & 0xFFFFFFFF & -1 << bar.fixed_bits)
        HEADER.put(self.mask, "command", HEADER.get(self.mask, "command") | bar.answers_to)
        if bar.wide:
            HEADER.put(self.mask, f"bar{index + 1}", mask >> 32)

    def _mask_of_bar(self, index: int) -> int:
        return HEADER.get(self.mask, f"bar{index}")

    def add_msix(self, vectors: int, bar: int, *, table: int, pending: int) -> MsixTable:
        """Add MSI-X with so many vectors, whose table and pending bits are in a BAR at these offsets.

        The BAR is the caller's to add, with the table as a region.
        """
        body = MSIX.pack(control=vectors - 1, table=table | bar, pending=pending | bar)[2:]
        mask = (MsixControl.ENABLE | MsixControl.FUNCTION_MASK).to_bytes(2, "little")
        at = self.add_capability(CapabilityId.MSIX, bytes(body), mask)
        self._msix_control = at + MSIX["control"].offset
        self.msix = MsixTable(vectors, self._send)
        self.add_window(Window(self._msix_control, self._msix_control + 2, written=self._msix_written))
        return self.msix

    def _send(self, address: int, data: int) -> None:
        self.send(address, data)

    def add_window(self, window: Window) -> None:
        """Have somebody act behind a part of configuration space."""
        self._windows.append(window)

    # What a guest does.

    def read_config(self, offset: int, size: int) -> bytes:
        """Serve a read of configuration space; beyond its end all bits are one."""
        for window in self._windows:
            if window.read is not None and window.start <= offset < window.end:
                return window.read(offset - window.start, size)
        return bytes(self.config[offset:offset + size]).ljust(size, b"\xff")

    def write_config(self, offset: int, data: bytes) -> None:
        """Take a write to configuration space; bits that a guest may not change stay."""
        for at, byte in enumerate(data[:max(0, CONFIG_SIZE - offset)], offset):
            mask = self.mask[at]
            self.config[at] = self.config[at] & ~mask | byte & mask
        for window in self._windows:
            begin, end = max(offset, window.start), min(offset + len(data), window.end)
            if window.written is not None and begin < end:
                window.written(begin - window.start, data[begin - offset:end - offset])

    @property
    def command(self) -> Command:
        """The command register."""
        return Command(HEADER.get(self.config, "command"))

    def bar_base(self, index: int) -> int:
        """Where the guest put a BAR."""
        bar = self.bars[index]
        if bar is None:
            return 0
        low = HEADER.get(self.config, f"bar{index}") & -1 << bar.fixed_bits
        return low | (HEADER.get(self.config, f"bar{index + 1}") << 32 if bar.wide else 0)

    def find_bar(self, address: int, size: int) -> tuple[int, int] | None:
        """Return which BAR so many bytes at an address are in, and where in it; None if they are in none."""
        for index, bar in enumerate(self.bars):
            if bar is not None:
                offset = address - self.bar_base(index)
                if 0 <= offset <= bar.size - size:
                    return index, offset
        return None

    def read_bar(self, index: int, offset: int, size: int) -> bytes:
        """Serve a read of a BAR; where nothing answers, all bits are one."""
        region = self._region(index, offset, size)
        return b"\xff" * size if region is None else region.registers.read(offset - region.start, size)

    def write_bar(self, index: int, offset: int, data: bytes) -> None:
        """Take a write to a BAR; what nobody takes is lost."""
        region = self._region(index, offset, len(data))
        if region is not None:
            region.registers.write(offset - region.start, data)

    def _region(self, index: int, offset: int, size: int) -> Region | None:
        bar = self.bars[index] if index < BAR_COUNT else None
        if bar is None or not self.command & bar.answers_to:
            return None
        return next((r for r in bar.regions if r.start <= offset and offset + size <= r.start + r.size), None)

    # What the function does.

    @property
    def has_msix(self) -> bool:
        """Whether the guest has switched MSI-X on."""
        return self.msix is not None and self.msix.enabled

    @property
    def msix_control(self) -> int:
        """Message control of MSI-X, 0 where there is none."""
        if self.msix is None:
            return 0
        return int.from_bytes(self.config[self._msix_control:self._msix_control + 2], "little")

    def signal(self, vector: int) -> None:
        """Raise an interrupt by MSI-X, if a guest wants it so; an entry that there is not is none."""
        # A message is a write to memory, and needs the right to master the bus as any other does.
        if self.msix is None or not self.msix.enabled or not self.command & Command.BUS_MASTER:
            return
        if self.raise_vector is None:
            self.msix.signal(vector)
        elif vector < self.msix.vectors:
            self.raise_vector(vector)

    def intx(self, *, asserted: bool) -> None:
        """Hold INTx asserted, or no longer."""
        status = HEADER.get(self.config, "status") & ~Status.INTERRUPT
        HEADER.put(self.config, "status", status | Status.INTERRUPT * asserted)
        wanted = asserted and not self.command & Command.INTX_DISABLE and not self.has_msix
        if wanted != self._intx:
            self._intx = wanted
            self.wire(wanted)

    def reset(self) -> None:
        """Reset the function (PCIe 6.0, 6.6.2): what a guest has written is gone, base addresses included."""
        for at, mask in enumerate(self.mask):
            if mask:
                self.config[at] &= ~mask
        if self.msix is not None:
            self.msix.reset()
        self.intx(asserted=False)
        self.was_reset()

    def restore(self, config: bytes) -> None:
        """Have in configuration space what a guest wrote to another function's: nothing acts upon it but MSI-X."""
        for at, mask in enumerate(self.mask):
            if mask:
                self.config[at] = self.config[at] & ~mask | config[at] & mask
        if self.msix is not None:
            self._msix_written(0, b"")

    def _control_written(self, offset: int, data: bytes) -> None:
        if int.from_bytes(data, "little") << 8 * offset & ExpressControl.FLR:
            self.reset()

    def _msix_written(self, _offset: int, _data: bytes) -> None:
        assert self.msix is not None
        control = self.msix_control
        self.msix.set_control(enabled=bool(control & MsixControl.ENABLE),
                              masked=bool(control & MsixControl.FUNCTION_MASK))
