"""A virtio device as a PCI function (virtio 1.4, 4.1): capabilities that lead to registers in its BARs.

A structure has a page of its own, so that one that is protected shares none with one that is not.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from chamber.device.admin_queue import AdminQueue
from chamber.device.common_config import CommonConfig
from chamber.device.device_parts import BadPart, read_parts, write_parts
from chamber.platform.dma import NoDma
from chamber.platform.msix import PendingBits
from chamber.platform.pci import Bar, PciFunction, Region, Window
from chamber.wire.errors import WireError
from chamber.wire.function_state import FunctionState
from chamber.wire.pci import CONFIG_SIZE, CapabilityId, Command
from chamber.wire.virtio import DeviceType, Feature, bit
from chamber.wire.virtio_pci import (
    CAPABILITY,
    DEVICE_ID_BASE,
    ISR_CONFIG,
    ISR_QUEUE,
    NOTIFY_CAPABILITY,
    PCI_CFG_CAPABILITY,
    RELOCATED,
    RELOCATED_AT,
    RELOCATED_ID_BASE,
    RELOCATED_MAGIC,
    RELOCATED_SIZE,
    SHARED_MEMORY_CAPABILITY,
    VENDOR_ID,
    CapabilityType,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from chamber.device.admin_commands import AdminCommands
    from chamber.device.base import Device
    from chamber.platform.dma import Dma

__all__ = ("DOORBELLS_AT", "MSIX_BAR", "NOTIFY_MULTIPLIER", "NOTIFY_PAGE", "REGISTER_BAR", "SHARED_MEMORY_BAR",
           "VirtioPci", "identity_of")

_PAGE: Final = 4096
REGISTER_BAR, MSIX_BAR, SHARED_MEMORY_BAR = 0, 1, 2
_BESIDE_LEGACY: Final = 4
"""Where registers are of a function that may be shown with a legacy interface, which is in BAR 0 (2.12.1.2.7)."""
_COMMON_AT, _ISR_AT, _DEVICE_AT, _NOTIFY_AT = (number * _PAGE for number in range(4))
_REGISTERS: Final = 4 * _PAGE
NOTIFY_PAGE: Final = _NOTIFY_AT // _PAGE
"""Which page of the registers has the notification structure, and nothing else."""
DOORBELLS_AT: Final = _REGISTERS
"""Where doorbells of legacy drivers are, in a function that has some: its registers are twice as large then."""
NOTIFY_MULTIPLIER: Final = 4
"""Bytes from one queue's notification register to the next one's."""
_MSIX_TABLE, _MSIX_PENDING, _MSIX_SIZE = 0, 2048, 4096
_NO_MEMORY: Final = NoDma("the function is on no bus, or must not master it")
_MOST_VECTORS: Final = 128
"""As many as the table has room for."""

_CLASSES: Final = {
    DeviceType.NET: 0x020000, DeviceType.BLOCK: 0x018000, DeviceType.SCSI: 0x010000, DeviceType.CONSOLE: 0x078000,
    DeviceType.RNG: 0x00FF00, DeviceType.BALLOON: 0x00FF00, DeviceType.INPUT: 0x098000, DeviceType.SND: 0x040100,
    DeviceType.CRYPTO: 0x108000, DeviceType.TRANSPORT_9P: 0x018000, DeviceType.FS: 0x018000,
    DeviceType.VSOCK: 0x028000, DeviceType.PMEM: 0x058000}
"""Class codes; a driver does not look at them."""


def identity_of(kind: DeviceType, *, base: int = DEVICE_ID_BASE) -> dict[str, int]:
    """What a function with a device of a type says of itself: arguments of `PciFunction`."""
    return {"vendor": VENDOR_ID, "device": base + kind, "subsystem_vendor": VENDOR_ID, "subsystem": base + kind,
            "class_code": _CLASSES.get(kind, 0xFF0000)}


class VirtioPci:
    """The function in which a guest finds a device.

    Whoever puts it on a bus sets `dma`, `function.send` and `function.wire`, and hands accesses to `read_config`,
    `write_config`, `read_bar`, `write_bar`.

    Args:
        device: the device; nobody else is its transport.
        vectors: MSI-X vectors; by default one for each queue and one for changes of configuration, 0 for none.
        function: the PCI function to be, such as a virtual one; by default one of its own.
        commands: what it does with administration commands; it has a queue for them then.
        doorbells: called with a doorbell's number and the queue that was written to it; whom they are for, it knows.
        relocated: whether its capabilities lie in memory, under device ids of their own, and there is no window.

    Attributes:
        device: as given.
        function: the function, honest.
        common: its common configuration.
        dma: guest memory.
        held: whether a guest has locked it, so that its owner's commands and doorbells do not reach it.
        window_open: whether the window through configuration space leads anywhere.
        register_bar: the BAR that has its registers.
        capabilities: where each of the capabilities is in configuration space, by type.

    """

    def __init__(self, device: Device, *, vectors: int | None = None, function: PciFunction | None = None,
                 commands: AdminCommands | None = None,
                 doorbells: Callable[[int, int], None] | None = None, relocated: bool = False) -> None:
        self.device = device
        self._table: bytearray | None = bytearray() if relocated else None
        self.dma: Dma = _NO_MEMORY
        self.held = False
        self.window_open = True
        self.register_bar = REGISTER_BAR if doorbells is None else _BESIDE_LEGACY
        self.capabilities: dict[CapabilityType, int] = {}
        device.offer(bit(Feature.ACCESS_PLATFORM))
        admin = None
        if commands is not None:
            device.offer(bit(Feature.ADMIN_VQ))
            admin = AdminQueue(device, commands)
        base = RELOCATED_ID_BASE if relocated else DEVICE_ID_BASE
        self.function = function = function or PciFunction(**identity_of(device.type, base=base))
        self._isr = 0
        self._changed = False
        self.common = CommonConfig(device, self._memory, self._queue_interrupt, admin)
        queues = self._queues = device.queue_count + (admin is not None)
        self._add(CapabilityType.COMMON_CFG, _COMMON_AT, self.common.size)
        self._add(CapabilityType.ISR_CFG, _ISR_AT, 1)
        self._add(CapabilityType.DEVICE_CFG, _DEVICE_AT, max(4, len(device.config)))
        notify_size = max(4, queues * NOTIFY_MULTIPLIER)
        self._add(CapabilityType.NOTIFY_CFG, _NOTIFY_AT, notify_size,
                  NOTIFY_MULTIPLIER.to_bytes(4, "little"), size=NOTIFY_CAPABILITY.size)
        more = [] if doorbells is None else [Region(DOORBELLS_AT, _PAGE, _Doorbells(doorbells))]
        if self._table is not None:
            more.append(Region(RELOCATED_AT, RELOCATED_SIZE, _Relocated(self._table)))
        function.add_bar(self.register_bar, Bar(_REGISTERS << bool(more), (
            Region(_COMMON_AT, self.common.size, self.common),
            Region(_ISR_AT, 1, _Isr(self.take_isr)),
            Region(_DEVICE_AT, _PAGE, _DeviceConfig(device)),
            Region(_NOTIFY_AT, notify_size, _Notify(self.notified)), *more)))
        wanted = min(_MOST_VECTORS, queues + 1) if vectors is None else vectors
        if wanted:
            table = function.add_msix(wanted, MSIX_BAR, table=_MSIX_TABLE, pending=_MSIX_PENDING)
            pending = PendingBits(table)
            function.add_bar(MSIX_BAR, Bar(_MSIX_SIZE, (Region(_MSIX_TABLE, table.size, table),
                                                        Region(_MSIX_PENDING, pending.size, pending))))
        if device.device_memory is not None:
            self._add_shared_memory(device.device_memory[1])
        if not relocated:
            self._add_window()
        function.was_reset = self._reset
        device.config_interrupt = self._config_interrupt

    def _add(self, kind: CapabilityType, offset: int, length: int, more: bytes = b"", *,
             size: int = CAPABILITY.size, bar: int | None = None, mask: bytes = b"") -> None:
        body = CAPABILITY.pack(cap_vndr=CapabilityId.VENDOR, cap_len=size, cfg_type=kind,
                               bar=self.register_bar if bar is None else bar, offset=offset, length=length)
        if self._table is None:
            self.capabilities[kind] = self.function.add_capability(CapabilityId.VENDOR, bytes(body[2:]) + more, mask)
        else:
            self._table += bytes(body) + more

    def _add_shared_memory(self, memory: memoryview) -> None:
        size = max(_PAGE, 1 << (len(memory) - 1).bit_length())
        self.function.add_bar(SHARED_MEMORY_BAR, Bar(
            size, (Region(0, len(memory), _Memory(memory)),), wide=True, prefetchable=True))
        self._add(CapabilityType.SHARED_MEMORY_CFG, 0, len(memory), bytes(8), size=SHARED_MEMORY_CAPABILITY.size,
                  bar=SHARED_MEMORY_BAR)

    def _add_window(self) -> None:
        """Add the window through which a guest without memory accesses reaches the BARs (4.1.4.9)."""
        mask = bytes(PCI_CFG_CAPABILITY.pack(bar=0xFF, offset=0xFFFFFFFF, length=0xFFFFFFFF)[2:])
        self._add(CapabilityType.PCI_CFG, 0, 0, bytes(4), size=PCI_CFG_CAPABILITY.size, mask=mask)
        start = self.capabilities[CapabilityType.PCI_CFG] + PCI_CFG_CAPABILITY["pci_cfg_data"].offset
        self.function.add_window(Window(start, start + 4, self._window_read, self._window_written))

    # What puts it before a monitor (`chamber.link.vfio_user.ServableFunction`).

    @property
    def bar_sizes(self) -> list[int]:
        """Bytes of each BAR, 0 where there is none."""
        return [0 if bar is None else bar.size for bar in self.function.bars]

    def mappable(self, bar: int) -> tuple[int, int] | None:
        """A file that a monitor may map in the place of a BAR's first bytes, and how many; None where there is none."""
        memory, file = self.device.device_memory, self.device.device_memory_file
        return None if memory is None or file is None or bar != SHARED_MEMORY_BAR else (file, len(memory[1]))

    def doorbells(self, bar: int) -> list[int]:
        """Offsets of registers of two bytes in a BAR that say all by being written: one for each queue (4.1.4.4)."""
        if bar != self.register_bar:
            return []
        return [_NOTIFY_AT + number * NOTIFY_MULTIPLIER for number in range(self._queues)]

    @property
    def vectors(self) -> int:
        """MSI-X vectors."""
        return 0 if self.function.msix is None else self.function.msix.vectors

    def attach(self, dma: Dma, raise_vector: Callable[[int], None], raise_pin: Callable[[bool], None],
               later: Callable[[float, Callable[[], None]], None]) -> None:
        """Take guest memory, and what raises interrupts and calls back after a delay."""
        self.dma = dma
        self.function.raise_vector, self.function.wire = raise_vector, raise_pin
        self.device.schedule = later

    def close(self) -> None:
        """Close the device."""
        self.device.close()

    def pollable(self) -> dict[int, Callable[[], None]]:
        """What the device waits for."""
        return self.device.pollable()

    def log(self, line: str) -> None:
        """Add a line to the device's transcript."""
        self.device.log(line)

    # What a bus calls.

    def read_config(self, offset: int, size: int) -> bytes:
        """Serve a read of configuration space."""
        data = self.function.read_config(offset, size) if 0 <= offset <= CONFIG_SIZE - size else b"\xff" * size
        hooks = self.device.hooks
        return data if hooks is None else hooks.config_space(self, offset, data)

    def write_config(self, offset: int, data: bytes) -> None:
        """Take a write to configuration space."""
        hooks = self.device.hooks
        if hooks is None or hooks.config_space_written(self, offset, data):
            self.function.write_config(offset, data)

    def read_bar(self, bar: int, offset: int, size: int) -> bytes:
        """Serve a read of a BAR."""
        data = self.function.read_bar(bar, offset, size)
        hooks = self.device.hooks
        return data if hooks is None else hooks.register(self, bar, offset, data)

    def write_bar(self, bar: int, offset: int, data: bytes) -> None:
        """Take a write to a BAR."""
        hooks = self.device.hooks
        if hooks is None or hooks.register_written(self, bar, offset, data):
            self.function.write_bar(bar, offset, data)

    def ring_areas(self) -> list[tuple[int, int]]:
        """Address and length of all memory that the driver handed over as rings."""
        return list(self.common.areas())

    def reset(self) -> None:
        """Reset the function, as when it leaves its bus, or is told to."""
        self.function.reset()

    def reset_device(self) -> None:
        """Reset the virtio device as status 0 does; configuration space stays."""
        self._reset()

    # What carries it from one monitor to another (`chamber.link.vfio_migration.Migratable`).

    def save(self) -> bytes:
        """Return its state, while it is halted."""
        table = self.function.msix
        return FunctionState(self.device.type, bytes(self.function.config), b"" if table is None else
                             table.read(0, table.size), read_parts(self)).build()

    def load(self, data: bytes) -> None:
        """Become what another function was, while halted.

        Raises:
            WireError: the data is no state, or of another function; nothing was changed.

        """
        state = FunctionState.parse(data)
        table = self.function.msix
        if state.device_type != self.device.type or len(state.table) != (0 if table is None else table.size):
            raise WireError("the state is of a function of its kind", spec="state of a function, version 1")
        try:
            write_parts(self, state.parts)
        except BadPart as error:
            raise WireError(str(error), spec="virtio 1.4, 2.14") from None
        self.restore_pci(state.config, state.table)

    def restore_pci(self, config: bytes, table: bytes) -> None:
        """Have what a guest wrote to the configuration space and the MSI-X table of another such function."""
        self.function.restore(config)
        if self.function.msix is not None:
            self.function.msix.write(0, table)

    # Interrupts.

    def _memory(self) -> Dma:
        return self.dma if self.function.command & Command.BUS_MASTER else _NO_MEMORY

    def halt(self) -> None:
        """Touch no memory and raise no interrupt until it is to go on (2.12.1.5.3, VIRTIO_ADMIN_CMD_DEV_MODE_SET)."""
        self.common.halt()

    def resume(self) -> None:
        """Go on, and tell what has changed meanwhile."""
        self.common.resume()
        if self._changed:
            self._config_interrupt()

    def _raise(self, cause: int, vector: int) -> None:
        """Raise an interrupt by its vector, or by the pin and the register that says why (4.1.4.5)."""
        if self.function.has_msix:
            hooks = self.device.hooks
            for number in (vector,) if hooks is None else hooks.vectors(self, vector):
                self.function.signal(number)
        else:
            self._isr |= cause
            self.function.intx(asserted=True)

    def _queue_interrupt(self, index: int) -> None:
        self._raise(ISR_QUEUE, self.common.vector_of(index))

    def _config_interrupt(self) -> None:
        self._changed = self.common.halted
        if not self._changed:
            self._raise(ISR_CONFIG, self.common.config_vector)

    def take_isr(self) -> int:
        """Return why the pin is asserted; that is the acknowledgement (4.1.4.5)."""
        cause, self._isr = self._isr, 0
        self.function.intx(asserted=False)
        return cause

    # Registers.

    def notified(self, index: int, data: bytes = b"") -> None:
        """The driver says that a queue has something; `data` is what it wrote where it says so (4.1.5.2)."""
        device = self.device
        # Four bytes say more than the queue with NOTIFICATION_DATA only; without it, they are padded.
        said = int.from_bytes(data, "little") if device.has(Feature.NOTIFICATION_DATA) and len(data) == 4 else None
        if self.common.notified(index, said):
            device.schedule(0.0, lambda: self.notified(index, data[:2]))

    def _reset(self) -> None:
        self._isr = 0
        self.common.reset()

    def _window(self) -> tuple[int, int, int] | None:
        """Return bar, offset and length that a guest chose; None if they lead nowhere."""
        at = self.capabilities[CapabilityType.PCI_CFG]
        fields = PCI_CFG_CAPABILITY.unpack(self.function.config, at)
        length, offset = fields["length"], fields["offset"]
        legal = self.window_open and length in {1, 2, 4} and not offset % length
        return (fields["bar"], offset, length) if legal else None

    def _window_read(self, offset: int, size: int) -> bytes:
        window = self._window()
        if window is None or offset:
            return bytes(size)
        return self.read_bar(*window)[:size].ljust(size, b"\0")

    def _window_written(self, offset: int, data: bytes) -> None:
        window = self._window()
        if window is not None and not offset:
            bar, at, length = window
            self.write_bar(bar, at, data[:length])


class _Isr:
    """Why the pin is asserted; reading it is the acknowledgement (4.1.4.5)."""

    def __init__(self, take: Callable[[], int]) -> None:
        self._take = take

    def read(self, offset: int, size: int) -> bytes:  # noqa: ARG002 - one byte that there is
        return bytes((self._take(),))

    def write(self, offset: int, data: bytes) -> None:
        """Read only."""


class _DeviceConfig:
    """Configuration space of the device itself (4.1.4.6)."""

    def __init__(self, device: Device) -> None:
        self._device = device

    def read(self, offset: int, size: int) -> bytes:
        return self._device.read_config(offset, size)

    def write(self, offset: int, data: bytes) -> None:
        self._device.write_config(offset, data)


class _Notify:
    """A register for each queue (4.1.4.4)."""

    def __init__(self, notified: Callable[[int, bytes], None]) -> None:
        self._notified = notified

    def read(self, offset: int, size: int) -> bytes:  # noqa: ARG002 - nothing is to be read
        return bytes(size)

    def write(self, offset: int, data: bytes) -> None:
        if not offset % NOTIFY_MULTIPLIER:
            self._notified(offset // NOTIFY_MULTIPLIER, data)


class _Doorbells:
    """Where the number of a queue is written, as legacy drivers do (2.12.1.2)."""

    def __init__(self, rung: Callable[[int, int], None]) -> None:
        self._rung = rung

    def read(self, offset: int, size: int) -> bytes:  # noqa: ARG002 - nothing is to be read
        return bytes(size)

    def write(self, offset: int, data: bytes) -> None:
        if not offset % NOTIFY_MULTIPLIER:
            self._rung(offset // NOTIFY_MULTIPLIER, int.from_bytes(data[:2], "little"))


class _Relocated:
    """Capabilities, and how many bytes they have; read only."""

    def __init__(self, table: bytearray) -> None:
        self._table = table

    def read(self, offset: int, size: int) -> bytes:
        data = bytes(RELOCATED.pack(magic=RELOCATED_MAGIC, length=len(self._table))) + self._table
        return data[offset:offset + size].ljust(size, b"\0")

    def write(self, offset: int, data: bytes) -> None:
        """Read only."""


class _Memory:
    """A shared memory region (4.1.4.7)."""

    def __init__(self, memory: memoryview) -> None:
        self._memory = memory

    def read(self, offset: int, size: int) -> bytes:
        return bytes(self._memory[offset:offset + size])

    def write(self, offset: int, data: bytes) -> None:
        self._memory[offset:offset + len(data)] = data
