"""A virtio device in a PCI function: what its registers do, and what they don't let themselves be talked into."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chamber.device.catalogue import TYPES, make_device
from chamber.device.rng import RngDevice
from chamber.device.virtio_pci import MSIX_BAR, NOTIFY_MULTIPLIER, REGISTER_BAR, VirtioPci
from chamber.wire.pci import CONFIG_SIZE, HEADER, MSIX_ENTRY, CapabilityId, Command, MsixControl
from chamber.wire.split import DESC_F_WRITE
from chamber.wire.virtio import DeviceType, Feature, Status, bit
from chamber.wire.virtio_pci import CAPABILITY, COMMON, NO_VECTOR, PCI_CFG_CAPABILITY, CapabilityType
from tests.device.driver import BASE, Memory, Queue

READY = Status.ACKNOWLEDGE | Status.DRIVER | Status.FEATURES_OK
NOTIFY_AT = 3 * 4096


class Function:
    """A function and the smallest driver that there can be."""

    def __init__(self, vectors: int | None = None) -> None:
        self.device = RngDevice(source=lambda count: b"\xa5" * count)
        self.pci = VirtioPci(self.device, vectors=vectors)
        self.memory = Memory()
        self.pci.dma = self.memory
        self.sent: list[tuple[int, int]] = []
        self.pin: list[bool] = []
        self.pci.function.send = lambda address, data: self.sent.append((address, data))
        self.pci.function.wire = self.pin.append
        self.pci.write_config(HEADER["command"].offset, bytes((Command.MEMORY | Command.BUS_MASTER, 0)))

    def get(self, name: str) -> int:
        field = COMMON[name]
        return int.from_bytes(self.pci.read_bar(REGISTER_BAR, field.offset, field.size), "little")

    def put(self, name: str, value: int) -> None:
        field = COMMON[name]
        self.pci.write_bar(REGISTER_BAR, field.offset, value.to_bytes(field.size, "little"))

    def accept(self, features: int) -> None:
        for select in (0, 1):
            self.put("driver_feature_select", select)
            self.put("driver_feature", features >> 32 * select & 0xFFFFFFFF)
        self.put("device_status", READY)

    def vector(self, number: int, data: int) -> None:
        entry = MSIX_ENTRY.pack(address=0xFEE00000, data=data)
        self.pci.write_bar(MSIX_BAR, number * MSIX_ENTRY.size, bytes(entry))

    def msix(self) -> None:
        config = self.pci.function.config
        at = next(at for at in range(0x40, 256, 4) if config[at] == CapabilityId.MSIX)
        self.pci.write_config(at + 2, MsixControl.ENABLE.to_bytes(2, "little"))

    def queue(self) -> Queue:
        queue = Queue(self.memory, BASE, 8)
        self.put("queue_select", 0)
        self.put("queue_size", 8)
        for name, address in zip(("queue_desc", "queue_driver", "queue_device"), queue.areas.values(), strict=True):
            self.put(name, address)
        self.put("queue_msix_vector", 1)
        self.put("queue_enable", 1)
        self.put("device_status", READY | Status.DRIVER_OK)
        return queue

    def ask(self, queue: Queue) -> bytes:
        queue.add([(BASE + 4096, 16, DESC_F_WRITE)])
        self.pci.write_bar(REGISTER_BAR, NOTIFY_AT, bytes(2))
        assert queue.take() is not None
        return self.memory.read(BASE + 4096, 16)


@pytest.mark.parametrize("kind", TYPES)
def test_every_type_is_a_function_with_its_identity_and_structures(kind: DeviceType) -> None:
    device = make_device(kind)
    pci = VirtioPci(device)
    assert int.from_bytes(pci.read_config(0, 4), "little") == 0x1AF4 | 0x1040 + kind << 16
    assert set(pci.capabilities) >= {CapabilityType.COMMON_CFG, CapabilityType.NOTIFY_CFG, CapabilityType.ISR_CFG,
                                     CapabilityType.DEVICE_CFG, CapabilityType.PCI_CFG}
    pages = set()
    for at in pci.capabilities.values():
        fields = CAPABILITY.unpack(pci.function.config, at)
        bar = pci.function.bars[fields["bar"]]
        assert bar is not None
        assert fields["offset"] + fields["length"] <= bar.size
        if fields["length"]:
            pages.add((fields["bar"], fields["offset"] // 4096))
    assert len(pages) == len(pci.capabilities) - 1, "structures share no page"
    device.close()


def test_a_queue_works_and_interrupts_by_its_vector() -> None:
    function = Function()
    function.accept(bit(Feature.VERSION_1, Feature.ACCESS_PLATFORM))
    assert function.get("device_status") == READY
    function.vector(1, 0x41)
    function.msix()
    queue = function.queue()
    assert (function.get("queue_enable"), function.get("queue_msix_vector"), function.get("num_queues")) == (1, 1, 1)
    assert function.ask(queue) == b"\xa5" * 16
    assert function.sent == [(0xFEE00000, 0x41)]
    assert not function.pin


def test_without_msix_the_pin_tells_and_the_isr_says_why() -> None:
    function = Function(vectors=0)
    function.accept(bit(Feature.VERSION_1))
    queue = function.queue()
    function.ask(queue)
    assert function.pin == [True]
    assert function.pci.read_bar(REGISTER_BAR, 4096, 1) == b"\1"
    assert function.pci.read_bar(REGISTER_BAR, 4096, 1) == b"\0"
    assert function.pin == [True, False]
    function.device.config_changed()
    assert function.pci.read_bar(REGISTER_BAR, 4096, 1) == b"\2"


def test_features_that_were_not_offered_are_refused() -> None:
    function = Function()
    function.accept(bit(Feature.VERSION_1, 55))
    assert not function.get("device_status") & Status.FEATURES_OK
    function.put("device_feature_select", 7)
    assert function.get("device_feature") == 0


def test_a_reset_forgets_everything() -> None:
    function = Function()
    function.accept(bit(Feature.VERSION_1))
    function.queue()
    function.put("config_msix_vector", 0)
    function.put("device_status", 0)
    assert function.get("device_status") == 0
    assert (function.get("queue_enable"), function.get("queue_desc")) == (0, 0)
    assert function.get("queue_msix_vector") == function.get("config_msix_vector") == NO_VECTOR
    assert not function.device.queues[0].started


def test_an_enabled_queue_stays_as_it_is_until_it_is_reset() -> None:
    function = Function()
    function.accept(bit(Feature.VERSION_1, Feature.RING_RESET))
    function.queue()
    function.put("queue_desc", 0x1000)
    function.put("queue_size", 4)
    function.put("queue_enable", 0)
    assert (function.get("queue_desc"), function.get("queue_size"), function.get("queue_enable")) == (BASE, 8, 1)
    function.put("queue_reset", 1)
    assert (function.get("queue_enable"), function.get("queue_reset"), function.get("queue_msix_vector")) == (0, 0, 1)
    assert not function.device.queues[0].started


def test_a_function_that_must_not_master_the_bus_reaches_no_memory() -> None:
    function = Function()
    function.accept(bit(Feature.VERSION_1))
    function.pci.write_config(HEADER["command"].offset, bytes((Command.MEMORY, 0)))
    queue = function.queue()
    queue.add([(BASE + 4096, 16, DESC_F_WRITE)])
    function.pci.write_bar(REGISTER_BAR, NOTIFY_AT, bytes(2))
    assert queue.take() is None
    assert not function.device.queues[0].started


def test_the_window_in_configuration_space_reaches_registers() -> None:
    function = Function()
    at = function.pci.capabilities[CapabilityType.PCI_CFG]
    data = at + PCI_CFG_CAPABILITY["pci_cfg_data"].offset

    def choose(offset: int, length: int) -> None:
        for name, value in (("bar", REGISTER_BAR), ("offset", offset), ("length", length)):
            field = PCI_CFG_CAPABILITY[name]
            function.pci.write_config(at + field.offset, value.to_bytes(field.size, "little"))

    choose(COMMON["device_status"].offset, 1)
    function.pci.write_config(data, bytes((Status.ACKNOWLEDGE,)))
    assert function.get("device_status") == Status.ACKNOWLEDGE
    assert function.pci.read_config(data, 1) == bytes((Status.ACKNOWLEDGE,))
    choose(COMMON["device_status"].offset, 3)  # no length that the specification has
    assert function.pci.read_config(data, 4) == bytes(4)


def test_a_notification_of_no_queue_is_none() -> None:
    function = Function()
    function.accept(bit(Feature.VERSION_1))
    queue = function.queue()
    queue.add([(BASE + 4096, 16, DESC_F_WRITE)])
    function.pci.write_bar(REGISTER_BAR, NOTIFY_AT + 1, bytes(2))
    function.pci.write_bar(REGISTER_BAR, NOTIFY_AT + NOTIFY_MULTIPLIER, bytes(2))
    assert queue.take() is None


_ACCESS = st.tuples(st.sampled_from(["config", "bar"]), st.integers(0, 2), st.integers(0, 4 * 4096 + 8),
                    st.binary(min_size=1, max_size=8))


@given(st.lists(_ACCESS, max_size=60))
@settings(max_examples=60)
def test_whatever_a_driver_writes_the_function_answers(accesses: list[tuple[str, int, int, bytes]]) -> None:
    function = Function()
    for where, bar, offset, data in accesses:
        if where == "config":
            function.pci.write_config(offset % CONFIG_SIZE, data)
            assert len(function.pci.read_config(offset % CONFIG_SIZE, len(data))) == len(data)
        else:
            function.pci.write_bar(bar, offset, data)
            assert len(function.pci.read_bar(bar, offset, len(data))) == len(data)
