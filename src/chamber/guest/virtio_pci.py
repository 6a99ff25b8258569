"""The guest's side of virtio over PCI: the registers of a function (virtio 1.4, 4.1).

Every answer of a register is as untrusted as the rest. Polling ends, a vector that was not taken is told, and a
notification goes nowhere but into the structure that the function showed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from chamber.guest.pci import Structure, find_function
from chamber.platform.pci_bus import MEMORY, MSI_ADDRESS
from chamber.platform.transport import Identity
from chamber.wire.pci import HEADER, MSIX_ENTRY, MsixControl
from chamber.wire.virtio import Status
from chamber.wire.virtio_pci import COMMON, DEVICE_ID_BASE, NO_VECTOR, CapabilityType

if TYPE_CHECKING:
    from chamber.guest.machine import GuestMachine
    from chamber.guest.pci import Msix, VirtioFunction
    from chamber.platform.pci_bus import Bus

__all__ = ("PciTransport",)

_POLLS: Final = 100
_POLL_SECONDS: Final = 0.001
_SPEC: Final = "4.1.4.3"
_NOWHERE: Final = Structure(MEMORY.stop, 0)
_DOORBELL: Final = 2
"""Bytes that are written to one: a queue's number."""


class PciTransport:
    """The registers of what is in a slot (implements `chamber.platform.transport.Transport`).

    It is looked at when a driver resets it for the first time, and not again until it is to be forgotten.

    Args:
        machine: the guest.
        bus: where the function is.
        slot: in which slot.

    Attributes:
        bus: as given.
        slot: as given.

    """

    def __init__(self, machine: GuestMachine, bus: Bus, slot: int = 0) -> None:
        self._machine = machine
        self.bus = bus
        self.slot = slot
        self._found: VirtioFunction | None = None
        self._checks = machine.checks
        self._notify_off: dict[int, int] = {}
        self._queues = 0
        self._admin: int | None = None

    def forget(self) -> None:
        """Know nothing of the function any more, as before it was found."""
        self._found = None
        self._queues = 0
        self._admin = None

    @property
    def _function(self) -> VirtioFunction:
        if self._found is None:
            self._found = self._take()
        return self._found

    def _take(self) -> VirtioFunction:
        """Look at the function, and have it work."""
        function = find_function(self.bus, self.slot, self._checks)
        if function.msix is not None:
            self._point_vectors(function.msix)
            self._enable_msix(function.msix)
        return function

    @property
    def _common(self) -> Structure:
        # Unchecked, a guest goes on without: where nothing is, there is nothing to be read.
        return self._function.structures.get(CapabilityType.COMMON_CFG, _NOWHERE)

    def _point_vectors(self, msix: Msix) -> None:
        for vector in range(msix.vectors):
            self.bus.write(msix.table.address + vector * MSIX_ENTRY.size,
                            bytes(MSIX_ENTRY.pack(address=MSI_ADDRESS, data=vector)))

    def _enable_msix(self, msix: Msix) -> None:
        self.bus.write_config(self.slot, msix.control, MsixControl.ENABLE.to_bytes(2, "little"))

    def _settle(self) -> None:
        self._machine.scheduler.step()
        self._machine.interrupts.deliver()

    # Registers.

    def _read(self, name: str) -> int:
        field = COMMON[name]
        return int.from_bytes(self.bus.read(self._common.address + field.offset, field.size), "little")

    def _write(self, name: str, value: int) -> None:
        field = COMMON[name]
        self.bus.write(self._common.address + field.offset, value.to_bytes(field.size, "little"))

    def _poll(self, name: str, wanted: int, rule: str) -> None:
        """Wait for a register, and not for ever: only the host knows when it is done, and it may never be."""
        for _ in range(_POLLS):
            if self._read(name) == wanted:
                return
            self._machine.settle(_POLL_SECONDS)
        self._checks.require(False, rule, _SPEC, f"{_POLLS} reads")

    def identity(self) -> Identity:
        """Who the function is: its vendor and device ids alone are read."""
        vendor, device = (int.from_bytes(self.bus.read_config(self.slot, HEADER[name].offset, 2), "little")
                          for name in ("vendor", "device"))
        return Identity("pci", vendor, device - DEVICE_ID_BASE, str(self.slot))

    def device_type(self) -> int:
        """Virtio device id."""
        return self._function.device_type

    def read_features(self) -> int:
        """Feature bits that the device offers."""
        words = []
        for select in (0, 1):
            self._write("device_feature_select", select)
            words.append(self._read("device_feature"))
        return words[0] | words[1] << 32

    def write_features(self, features: int) -> None:
        """Feature bits that the driver accepts."""
        for select in (0, 1):
            self._write("driver_feature_select", select)
            self._write("driver_feature", features >> 32 * select & 0xFFFFFFFF)

    def read_status(self) -> int:
        """Device status field."""
        return self._read("device_status")

    def write_status(self, status: int) -> None:
        """Device status field; a reset is waited for (4.1.4.3.2)."""
        self._write("device_status", status)
        if status == Status.RESET:
            self._poll("device_status", 0, "a reset comes to its end")
        elif status & Status.FEATURES_OK and not self._queues:
            self._queues = self._checks.number(self._read("num_queues")).between(
                1, 1 << 15, "the device has queues", _SPEC)
            self._set_vector("config_msix_vector", 0)
        self._settle()

    def _set_vector(self, name: str, vector: int) -> None:
        msix = self._function.msix
        if msix is None:
            return
        wanted = vector if vector < msix.vectors else NO_VECTOR
        self._write(name, wanted)
        self._checks.number(self._read(name)).equals(wanted, "the device takes the vector", "4.1.5.1.2")

    def read_generation(self) -> int:
        """Configuration generation."""
        return self._read("config_generation")

    def read_config(self, offset: int, size: int) -> bytes:
        """Bytes of configuration space; there are none behind what the function showed."""
        structure = self._function.structures.get(CapabilityType.DEVICE_CFG)
        self._checks.require(structure is not None and offset + size <= structure.length,
                             "configuration space has the fields of its features", "4.1.4.6")
        data = b"\xff" * size if structure is None else self.bus.read(structure.address + offset, size)
        self._settle()
        return data

    def write_config(self, offset: int, data: bytes) -> None:
        """Change configuration space."""
        structure = self._function.structures.get(CapabilityType.DEVICE_CFG)
        self._checks.require(structure is not None and offset + len(data) <= structure.length,
                             "configuration space has the fields of its features", "4.1.4.6")
        if structure is not None:
            self.bus.write(structure.address + offset, data)
        self._settle()

    # Queues.

    def admin_queue(self) -> int | None:
        """Number of the administration queue, which lies behind all others (4.1.4.3)."""
        self._checks.require(self._common.length >= COMMON.size, "registers have the fields of their features", _SPEC)
        self._checks.number(self._read("admin_queue_num")).between(
            1, 1 << 15, "the device has an administration queue", _SPEC)
        self._admin = self._checks.number(self._read("admin_queue_index")).between(
            self._queues, 0xFFFF, "an administration queue is none of the others", _SPEC)
        return self._admin

    def queue_size_max(self, index: int) -> int:
        """Largest size of a queue, 0 if it does not exist."""
        if index >= self._queues and index != self._admin:
            return 0
        self._write("queue_select", index)
        return self._read("queue_size")

    def setup_queue(self, index: int, size: int, desc: int, driver: int, device: int) -> None:
        """Hand a queue over."""
        self._write("queue_select", index)
        self._notify_off[index] = self._notify_place()
        self._write("queue_size", size)
        for name, address in (("queue_desc", desc), ("queue_driver", driver), ("queue_device", device)):
            self._write(name, address)
        self._set_vector("queue_msix_vector", 1 + index)
        self._write("queue_enable", 1)
        self._checks.number(self._read("queue_enable")).equals(1, "the device takes the queue", _SPEC)

    def _notify_place(self) -> int:
        function = self._function
        room = function.structures.get(CapabilityType.NOTIFY_CFG, _NOWHERE)
        step = function.notify_multiplier
        most = max(room.length - 2, 0) // step if step else 0xFFFF
        off = self._checks.number(self._read("queue_notify_off")).at_most(
            most, "a queue is notified within the structure", "4.1.4.4.1")
        return room.address + off * step

    def shared_memory(self, number: int) -> tuple[int, int] | None:
        """Where a region is."""
        found = self._function.shared_memory.get(number)
        return None if found is None else (found.address, found.length)

    def reset_queue(self, index: int) -> None:
        """Take a queue back."""
        self._write("queue_select", index)
        self._write("queue_reset", 1)
        self._poll("queue_reset", 0, "the reset of a queue comes to its end")
        self._poll("queue_enable", 0, "a queue that was reset is not enabled")
        self._settle()

    def ring(self, bar: int, offset: int, queue: int) -> None:
        """Write to a doorbell that the device has named elsewhere, such as a member's."""
        place = self._function.bars.get(bar, _NOWHERE)
        self._checks.require(offset + _DOORBELL <= place.length, "a doorbell is within its BAR", "2.12.1.2")
        self.bus.write(place.address + offset, queue.to_bytes(_DOORBELL, "little"))
        self._settle()

    def notify(self, index: int, data: int | None = None) -> None:
        """Tell the device that a queue has something."""
        said = index.to_bytes(2, "little") if data is None else data.to_bytes(4, "little")
        self.bus.write(self._notify_off[index], said)
        self._settle()
