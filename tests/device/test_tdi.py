"""A virtio function that a guest locks: what a host can still reach of it, and what it notices."""

from __future__ import annotations

import pytest

from chamber.device.catalogue import TYPES, make_device
from chamber.device.tdi import Tdi
from chamber.device.tdisp import Dsm, Event
from chamber.device.virtio_pci import MSIX_BAR, REGISTER_BAR, SHARED_MEMORY_BAR, VirtioPci
from chamber.wire import tdisp
from chamber.wire.errors import DmaFault
from chamber.wire.pci import HEADER, CapabilityId, Command
from chamber.wire.tdi_report import PAGE, InterfaceReport, MmioRange, RangeAttribute
from chamber.wire.tdisp import (
    ErrorCode,
    FunctionId,
    GetReport,
    LockFlag,
    LockInterface,
    LockNonce,
    MessageType,
    ReportPortion,
    SetMmioAttribute,
    StartInterface,
    State,
    TdispError,
)
from chamber.wire.virtio import DeviceType, Status
from chamber.wire.virtio_pci import COMMON, PCI_CFG_CAPABILITY, CapabilityType
from tests.device.driver import BASE, Memory

FUNCTION, SESSION = 0x0100, 1
_STATUS = COMMON["device_status"].offset


class Guest:
    """A function on a bus, a manager, and a guest's TSM that asks it."""

    def __init__(self, kind: DeviceType = DeviceType.RNG) -> None:
        self.shared, self.private = Memory(), Memory()
        self.virtio = VirtioPci(make_device(kind))
        self.tdi = Tdi(self.virtio, shared=self.shared, private=self.private, device_info=lambda _virtio: b"info")
        self.dsm = Dsm({FUNCTION: self.tdi}, lambda size: b"\x5a" * size)
        self.tdi.happened = lambda event: self.dsm.happened(FUNCTION, event)
        self.tdi.place()

    def config(self, name: str, value: int) -> None:
        field = HEADER[name]
        self.tdi.write_config(field.offset, value.to_bytes(field.size, "little"))

    def ask(self, kind: MessageType, body: tdisp.Body | None = None) -> tdisp.Body:
        answer = self.dsm.respond(SESSION, tdisp.encode(kind, FunctionId(FUNCTION), body))
        assert answer is not None
        return tdisp.decode(answer).body

    def lock(self, flags: LockFlag = LockFlag.LOCK_MSIX, offset: int = 0) -> InterfaceReport:
        nonce = self.ask(MessageType.LOCK_INTERFACE_REQUEST, LockInterface(flags, 0, offset))
        assert isinstance(nonce, LockNonce), nonce
        self.nonce = nonce.nonce
        answer = self.ask(MessageType.GET_DEVICE_INTERFACE_REPORT, GetReport())
        assert isinstance(answer, ReportPortion)
        return InterfaceReport.decode(answer.portion)

    def run(self) -> None:
        self.lock()
        self.ask(MessageType.START_INTERFACE_REQUEST, StartInterface(self.nonce))
        assert self.state() is State.RUN

    def state(self) -> State:
        return self.dsm.state(FUNCTION)

    def status(self, *, trusted: bool) -> int:
        path = self.tdi.trusted if trusted else self.tdi
        return path.read_bar(REGISTER_BAR, _STATUS, 1)[0]

    def set_status(self, value: int, *, trusted: bool) -> None:
        path = self.tdi.trusted if trusted else self.tdi
        path.write_bar(REGISTER_BAR, _STATUS, bytes((value,)))

    def dma(self) -> str:
        """Tell which memory the device reaches."""
        try:
            self.virtio.dma.write(BASE, b"x")
        except DmaFault:
            return "none"
        return "private" if self.virtio.dma is self.private else "shared"


@pytest.fixture
def guest() -> Guest:
    return Guest()


@pytest.mark.parametrize("kind", TYPES)
def test_every_type_can_be_locked_and_says_what_it_is(kind: DeviceType) -> None:
    guest = Guest(kind)
    report = guest.lock(offset=0x10_0000)
    ranges = {r.range_id: r for r in report.ranges}
    assert ranges[REGISTER_BAR] == MmioRange((0x8000_0000 + 0x10_0000) // PAGE, 4, RangeAttribute(0), REGISTER_BAR)
    assert ranges[MSIX_BAR].attributes == RangeAttribute.MSIX_TABLE | RangeAttribute.MSIX_PBA
    assert (SHARED_MEMORY_BAR in ranges) == (guest.virtio.device.device_memory is not None)
    assert [r.range_id for r in report.ranges] == sorted(ranges)
    assert report.device_specific == b"info"
    assert report.msix_control == guest.virtio.function.msix_control != 0


def test_a_table_that_is_not_locked_is_not_reported(guest: Guest) -> None:
    report = guest.lock(LockFlag(0))
    assert report.msix_control == 0
    assert [r.range_id for r in report.ranges] == [REGISTER_BAR]
    guest.tdi.write_bar(MSIX_BAR, 8, b"\7\0\0\0")
    assert guest.tdi.read_bar(MSIX_BAR, 8, 4) == b"\7\0\0\0"


@pytest.mark.parametrize(("state", "host", "own"), [
    (State.CONFIG_UNLOCKED, True, False), (State.CONFIG_LOCKED, False, False), (State.RUN, False, True),
    (State.ERROR, False, False)])
@pytest.mark.parametrize("bar", [REGISTER_BAR, MSIX_BAR])
def test_who_reaches_memory_in_which_state(guest: Guest, state: State, host: bool, own: bool, bar: int) -> None:
    if state in {State.RUN, State.ERROR}:
        guest.run()
    elif state is State.CONFIG_LOCKED:
        guest.lock()
    if state is State.ERROR:
        guest.dsm.happened(FUNCTION, Event.DATA_ERROR)
    at = COMMON["queue_size"].offset if bar == REGISTER_BAR else 8
    for path, lets in ((guest.tdi, host), (guest.tdi.trusted, own)):
        before = guest.virtio.read_bar(bar, at, 2)
        path.write_bar(bar, at, b"\x08\0")
        assert (guest.virtio.read_bar(bar, at, 2) == b"\x08\0") == lets
        guest.virtio.write_bar(bar, at, before)
        assert (path.read_bar(bar, at, 2) == b"\xff\xff") != lets


@pytest.mark.parametrize(("state", "memory"), [
    (State.CONFIG_UNLOCKED, "shared"), (State.CONFIG_LOCKED, "none"), (State.RUN, "private"), (State.ERROR, "none")])
def test_what_memory_the_device_reaches(guest: Guest, state: State, memory: str) -> None:
    if state is State.CONFIG_LOCKED:
        guest.lock()
    elif state in {State.RUN, State.ERROR}:
        guest.run()
    if state is State.ERROR:
        guest.config("bar0", 0x9000_0000)
    assert guest.state() is state
    assert guest.dma() == memory


def test_a_lock_resets_what_a_host_had_set_up(guest: Guest) -> None:
    guest.set_status(Status.ACKNOWLEDGE | Status.DRIVER, trusted=False)
    assert guest.status(trusted=False)
    guest.run()
    assert guest.status(trusted=True) == 0


def test_a_virtio_reset_does_not_unlock(guest: Guest) -> None:
    guest.run()
    guest.set_status(Status.ACKNOWLEDGE, trusted=True)
    guest.set_status(0, trusted=True)
    assert guest.state() is State.RUN
    assert guest.dma() == "private"
    assert guest.status(trusted=False) == 0xFF


def test_stopping_clears_what_the_guest_left() -> None:
    guest = Guest(DeviceType.PMEM)
    guest.run()
    guest.tdi.trusted.write_bar(SHARED_MEMORY_BAR, 0, b"secret")
    guest.set_status(Status.ACKNOWLEDGE, trusted=True)
    assert guest.tdi.trusted.read_bar(SHARED_MEMORY_BAR, 0, 6) == b"secret"
    assert guest.tdi.read_bar(SHARED_MEMORY_BAR, 0, 6) == b"\xff" * 6
    guest.ask(MessageType.STOP_INTERFACE_REQUEST)
    assert guest.tdi.read_bar(SHARED_MEMORY_BAR, 0, 6) == bytes(6)
    assert guest.status(trusted=False) == 0
    assert guest.dma() == "shared"


def test_device_memory_can_be_given_to_the_host_and_back() -> None:
    guest = Guest(DeviceType.PMEM)
    guest.run()
    answer = guest.ask(MessageType.GET_DEVICE_INTERFACE_REPORT, GetReport())
    assert isinstance(answer, ReportPortion)
    shared = InterfaceReport.decode(answer.portion).ranges[-1]
    ask = SetMmioAttribute(shared.first_page, shared.pages, non_tee=True, range_id=SHARED_MEMORY_BAR)
    assert not isinstance(guest.ask(MessageType.SET_MMIO_ATTRIBUTE_REQUEST, ask), TdispError)
    guest.tdi.write_bar(SHARED_MEMORY_BAR, 0, b"shared")
    assert guest.tdi.read_bar(SHARED_MEMORY_BAR, 0, 6) == b"shared"
    assert guest.tdi.trusted.read_bar(SHARED_MEMORY_BAR, 0, 6) == b"\xff" * 6
    for other in (SetMmioAttribute(shared.first_page, shared.pages - 1, non_tee=True, range_id=SHARED_MEMORY_BAR),
                  SetMmioAttribute(0x8000_0000 // PAGE, 4, non_tee=True, range_id=REGISTER_BAR)):
        assert guest.ask(MessageType.SET_MMIO_ATTRIBUTE_REQUEST, other) == TdispError(ErrorCode.INVALID_REQUEST)


# Configurations that can't be locked.

@pytest.mark.parametrize(("name", "value"), [
    ("command", 0), ("command", Command.MEMORY), ("bar0", 0), ("bar0", 0x8001_0000), ("bar1", 0x8000_1000)])
def test_no_lock_of_a_function_that_is_not_placed_or_not_enabled(guest: Guest, name: str, value: int) -> None:
    guest.config(name, value)
    answer = guest.ask(MessageType.LOCK_INTERFACE_REQUEST, LockInterface())
    assert answer == TdispError(ErrorCode.INVALID_DEVICE_CONFIGURATION)
    assert guest.dma() == "shared"


def test_no_lock_with_an_offset_within_a_page(guest: Guest) -> None:
    answer = guest.ask(MessageType.LOCK_INTERFACE_REQUEST, LockInterface(mmio_reporting_offset=8))
    assert answer == TdispError(ErrorCode.INVALID_DEVICE_CONFIGURATION)


# What a host writes to configuration space.

_ON = Command.MEMORY | Command.BUS_MASTER


def _capability(guest: Guest, kind: CapabilityId) -> int:
    config = guest.virtio.function.config
    return next(at for at in range(0x40, 256, 4) if config[at] == kind and config[at + 1] % 4 == 0)


@pytest.mark.parametrize(("name", "value", "after"), [
    ("command", _ON | Command.INTX_DISABLE, State.RUN), ("command", Command.MEMORY, State.ERROR),
    ("command", Command.BUS_MASTER, State.ERROR), ("bar0", 0x8000_0000, State.ERROR),
    ("bar1", 0xFFFF_FFFF, State.ERROR), ("bar5", 0, State.ERROR), ("rom", 0, State.ERROR), ("bist", 0, State.ERROR),
    ("interrupt_line", 9, State.RUN), ("latency", 9, State.RUN), ("cache_line", 16, State.RUN),
    ("vendor", 0, State.RUN), ("status", 0xFFFF, State.RUN)])
@pytest.mark.parametrize("locked", [True, False])
def test_what_a_write_to_the_header_does(guest: Guest, name: str, value: int, after: State, locked: bool) -> None:
    if not locked:
        guest.config(name, value)
        assert guest.state() is State.CONFIG_UNLOCKED
        return
    guest.run()
    guest.config(name, value)
    assert guest.state() is after
    field = HEADER[name]
    if name == "command":
        # Noticed, and done: the completion of the write tells a host nothing.
        assert guest.tdi.read_config(field.offset, 2) == value.to_bytes(2, "little")


@pytest.mark.parametrize(("flags", "after"), [(LockFlag.LOCK_MSIX, State.ERROR), (LockFlag(0), State.CONFIG_LOCKED)])
def test_interrupts_that_are_locked_are_not_written(guest: Guest, flags: LockFlag, after: State) -> None:
    guest.lock(flags)
    guest.tdi.write_config(_capability(guest, CapabilityId.MSIX) + 2, b"\0\x80")
    assert guest.state() is after


@pytest.mark.parametrize(("offset", "data", "after"), [
    (8, b"\0\x80", State.ERROR), (9, b"\x80", State.ERROR), (8, b"\0\1", State.ERROR), (8, b"\x0f\0", State.RUN),
    (16, b"\3\0", State.RUN)])
def test_the_express_capability(guest: Guest, offset: int, data: bytes, after: State) -> None:
    guest.run()
    guest.tdi.write_config(_capability(guest, CapabilityId.EXPRESS) + offset, data)
    assert guest.state() is after


def test_a_function_reset_is_an_error_and_ends_all_access(guest: Guest) -> None:
    guest.run()
    guest.tdi.write_config(_capability(guest, CapabilityId.EXPRESS) + 8, b"\0\x80")
    assert guest.state() is State.ERROR
    assert guest.dma() == "none"
    guest.ask(MessageType.STOP_INTERFACE_REQUEST)
    assert guest.state() is State.CONFIG_UNLOCKED


def test_the_window_leads_nowhere_while_it_is_locked(guest: Guest) -> None:
    at = guest.virtio.capabilities[CapabilityType.PCI_CFG]
    bar, offset, length, data = (at + PCI_CFG_CAPABILITY[name].offset
                                 for name in ("bar", "offset", "length", "pci_cfg_data"))
    for place, value in ((bar, b"\0"), (offset, _STATUS.to_bytes(4, "little")), (length, b"\1\0\0\0")):
        guest.tdi.write_config(place, value)
    guest.tdi.write_config(data, b"\1")
    assert guest.tdi.read_config(data, 1) == b"\1"
    guest.run()
    guest.set_status(Status.ACKNOWLEDGE, trusted=True)
    assert guest.tdi.read_config(data, 4) == bytes(4)
    guest.tdi.write_config(data, b"\0\0\0\0")
    assert guest.status(trusted=True) == Status.ACKNOWLEDGE
    before = guest.tdi.read_config(at, 16)
    guest.tdi.write_config(offset, b"\xff\xff\xff\xff")
    assert guest.tdi.read_config(at, 16) == before
    assert guest.state() is State.RUN
    guest.ask(MessageType.STOP_INTERFACE_REQUEST)
    guest.tdi.write_config(data, b"\1")
    assert guest.tdi.read_config(data, 1) == b"\1"
