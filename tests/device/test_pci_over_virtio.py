"""A PCI function behind a virtio device: accesses are requests, interrupts are messages."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chamber.device.pci_over_virtio import PciOverVirtio
from chamber.device.rng import RngDevice
from chamber.device.virtio_pci import MSIX_BAR, REGISTER_BAR, VirtioPci
from chamber.wire.pci import HEADER, MSIX_ENTRY, CapabilityId, Command, MsixControl
from chamber.wire.pcidev import COMMAND_QUEUE, EVENT_QUEUE, Message, Operation
from chamber.wire.split import DESC_F_WRITE
from chamber.wire.virtio_pci import COMMON
from tests.device.driver import BASE, Memory, Queue

ANSWER_AT, COMMAND_AT, EVENTS_AT = BASE + 0x8000, BASE + 0x9000, BASE + 0xA000
SIZE = 64


class Bus:
    """What a guest has of the bus: two queues, and memory for a message in each."""

    def __init__(self) -> None:
        self.device = RngDevice(source=lambda count: b"\xa5" * count)
        self.carrier = PciOverVirtio(VirtioPci(self.device))
        self.memory = Memory()
        self.queues = [Queue(self.memory, BASE + index * 0x2000, SIZE) for index in (COMMAND_QUEUE, EVENT_QUEUE)]
        self.carrier.accept_features(1 << 32)
        for index, queue in enumerate(self.queues):
            self.carrier.start_queue(index, self.memory, size=SIZE, interrupt=queue.interrupted, **queue.areas)
        self.carrier.driver_ok()

    def tell(self, data: bytes, room: int = 0) -> bytes:
        """Send a command; return what was written for an answer."""
        queue = self.queues[COMMAND_QUEUE]
        self.memory.write(COMMAND_AT, data)
        queue.add([(COMMAND_AT, len(data), 0)] + ([(ANSWER_AT, room, DESC_F_WRITE)] if room else []))
        self.carrier.notify(COMMAND_QUEUE)
        used = queue.take()
        assert used is not None
        return self.memory.read(ANSWER_AT, min(used[2], room))

    def read(self, operation: Operation, address: int, size: int, bar: int = 0) -> int:
        return int.from_bytes(self.tell(Message(operation, bar, size, address).pack(), 8), "little")

    def write(self, operation: Operation, address: int, data: bytes, bar: int = 0) -> None:
        self.tell(Message(operation, bar, len(data), address, data).pack())

    def lend_event(self) -> None:
        self.queues[EVENT_QUEUE].add([(EVENTS_AT, 20, DESC_F_WRITE)])
        self.carrier.notify(EVENT_QUEUE)

    def event(self) -> bytes | None:
        used = self.queues[EVENT_QUEUE].take()
        return None if used is None else self.memory.read(EVENTS_AT, used[2])


@pytest.fixture
def bus() -> Bus:
    return Bus()


def enable(bus: Bus, *, msix: bool) -> None:
    bus.write(Operation.CFG_WRITE, HEADER["command"].offset, bytes((Command.MEMORY | Command.BUS_MASTER, 0)))
    if msix:
        at = bus.read(Operation.CFG_READ, HEADER["capabilities"].offset, 1)
        while bus.read(Operation.CFG_READ, at, 1) != CapabilityId.MSIX:
            at = bus.read(Operation.CFG_READ, at + 1, 1)
        bus.write(Operation.MMIO_WRITE, 0, bytes(MSIX_ENTRY.pack(address=0xA0000, data=77)), MSIX_BAR)
        bus.write(Operation.CFG_WRITE, at + 2, MsixControl.ENABLE.to_bytes(2, "little"))
        bus.write(Operation.MMIO_WRITE, COMMON["config_msix_vector"].offset, b"\0\0", REGISTER_BAR)


def test_configuration_space_and_registers_are_read_and_written(bus: Bus) -> None:
    assert bus.read(Operation.CFG_READ, 0, 4) == 0x1044_1AF4
    assert bus.read(Operation.MMIO_READ, COMMON["num_queues"].offset, 2) == 0xFFFF  # memory is not enabled
    enable(bus, msix=False)
    assert bus.read(Operation.MMIO_READ, COMMON["num_queues"].offset, 2) == 1
    bus.write(Operation.MMIO_WRITE, COMMON["device_status"].offset, b"\3")
    assert bus.read(Operation.MMIO_READ, COMMON["device_status"].offset, 1) == 3
    bus.tell(Message(Operation.MMIO_MEMSET, 0, 1, COMMON["device_status"].offset, b"\0").pack())
    assert bus.read(Operation.MMIO_READ, COMMON["device_status"].offset, 1) == 0


def test_an_interrupt_is_a_message_as_soon_as_there_is_a_buffer_for_it(bus: Bus) -> None:
    enable(bus, msix=True)
    bus.device.config_changed()
    bus.device.config_changed()
    assert bus.event() is None
    bus.lend_event()
    assert bus.event() == Message(Operation.MSI, size=4, address=0xA0000, data=(77).to_bytes(4, "little")).pack()
    bus.lend_event()
    assert bus.event() is None, "what was said once is said"
    assert bus.queues[EVENT_QUEUE].interrupts == 1


def test_without_msix_it_is_the_pin(bus: Bus) -> None:
    enable(bus, msix=False)
    bus.lend_event()
    bus.device.config_changed()
    assert bus.event() == Message(Operation.INT, address=1).pack()


def test_a_guest_that_only_writes_is_interrupted_now_and_then(bus: Bus) -> None:
    for _ in range(100):
        bus.write(Operation.CFG_WRITE, HEADER["interrupt_line"].offset, b"\5")
    assert 1 <= bus.queues[COMMAND_QUEUE].interrupts <= 4
    before = bus.queues[COMMAND_QUEUE].interrupts
    for _ in range(100):
        bus.read(Operation.CFG_READ, 0, 4)
    assert bus.queues[COMMAND_QUEUE].interrupts == before


def test_a_bus_that_goes_takes_the_function_along(bus: Bus) -> None:
    enable(bus, msix=True)
    bus.carrier.stop_queue(EVENT_QUEUE)
    assert not bus.carrier.carried.function.command
    assert not bus.carrier.carried.function.has_msix


@given(st.lists(st.binary(max_size=40), max_size=10))
@settings(max_examples=80, deadline=None)
def test_any_command_is_answered(commands: list[bytes]) -> None:
    bus = Bus()
    for command in commands:
        assert len(bus.tell(command or b"\0", 64)) <= 64
    assert bus.read(Operation.CFG_READ, 0, 2) == 0x1AF4
