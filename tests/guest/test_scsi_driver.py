"""The guest's SCSI driver, with honest answers and every kind of lie."""

from __future__ import annotations

import struct
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chamber.device.catalogue import make_device
from chamber.device.hooks import Hooks
from chamber.device.scsi import EXTRA_UNIT, ScsiDevice, unit_pattern
from chamber.guest.driver import DeviceTimeout, Refused
from chamber.guest.drivers.scsi import ScsiDriver
from chamber.guest.drivers.scsi_disk import CommandFailed, read_luns
from chamber.guest.machine import GuestMachine
from chamber.guest.profile import PROFILES, UNTRUSTED
from chamber.guest.untrusted import DeviceViolation
from chamber.lab.model_transport import ModelTransport
from chamber.lab.model_use.scsi import STIMULI
from chamber.platform.heap import MemoryViolation
from chamber.wire.scsi import (
    AN_ANSWER,
    COMMAND,
    CONTROL_QUEUE,
    EVENT,
    EVENT_QUEUE,
    EVENTS_MISSED,
    REQUEST_QUEUE,
    RESPONSE,
    SENSE_SIZE,
    Address,
    EventType,
    ResetReason,
    Response,
    TaskFunction,
)
from chamber.wire.scsi_commands import FORMATS, Opcode, Sense, SenseKey, Status, VpdPage
from chamber.wire.virtio import DeviceType

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from chamber.device.chain import Chain
    from chamber.device.queue import DeviceQueue

A, B = Address(0, 0), Address(0, 1)
HEAD = RESPONSE.size + SENSE_SIZE


class Liar(Hooks):
    """Answers otherwise on one queue, to commands that a test chooses there."""

    def __init__(self) -> None:
        self.queue = REQUEST_QUEUE
        self.which: Callable[[bytes], bool] = lambda _cdb: True
        self.lie: Callable[[bytes], bytes] | None = None
        self.silent = False
        self.seen: list[bytes] = []

    def popped(self, queue: DeviceQueue, chain: Chain) -> bool:
        return not self.silent

    def response(self, queue: DeviceQueue, chain: Chain, data: bytes) -> bytes:
        cdb = chain.read(COMMAND.size, 16) if queue.index == REQUEST_QUEUE else b""
        if queue.index == REQUEST_QUEUE:
            self.seen.append(cdb)
        if self.lie is None or queue.index != self.queue or (cdb and not self.which(cdb)):
            return data
        return self.lie(data)


@contextmanager
def probed(liar: Liar | None = None, profile: str = "hardened", *, features: int | None = None) -> Iterator[ScsiDriver]:
    """A driver that found its disks; at the end all must be in order, whatever was told to it."""
    machine = GuestMachine(PROFILES[profile], 1)
    device = make_device(DeviceType.SCSI, hooks=liar, features=features)
    driver = ScsiDriver(machine, ModelTransport(machine, device))
    try:
        driver.probe()
        yield driver
        driver.remove()
        machine.settle(1)
        machine.heap.check_all()
        assert not machine.heap.reports
        assert not device.violations
    finally:
        device.close()
        machine.close()


def device_of(driver: ScsiDriver) -> ScsiDevice:
    device = driver.transport._device  # type: ignore[attr-defined]
    assert isinstance(device, ScsiDevice)
    return device


@pytest.mark.parametrize("profile", UNTRUSTED)
@pytest.mark.parametrize("stimulus", STIMULI)
def test_stimuli_leave_nothing(profile: str, stimulus: str) -> None:
    with probed(profile=profile) as driver:
        STIMULI[stimulus](driver, driver.machine, device_of(driver).host_action)
        assert not driver.violations


def test_disks_are_found_for_what_they_are() -> None:
    with probed() as driver:
        assert list(driver.disks) == [A, B]
        first, second = driver.disks[A], driver.disks[B]
        assert (first.block_size, first.blocks, first.cached) == (512, 2048, True)
        assert (second.block_size, second.blocks) == (4096, 64)
        assert first.identity is not None
        assert second.identity is not None
        assert (first.identity.serial, second.identity.serial) == (b"chamber", b"chamber-4k")
        assert first.identity.name != second.identity.name
        assert len(first.identity.name) == 8
        assert driver.manage(TaskFunction.QUERY_TASK, Address(0, 5)) is Response.INCORRECT_LUN
        assert driver.asynchronous_events(A, 0x7E) == driver.asynchronous_events(A, 0x7E, subscribe=True) == 0
        with pytest.raises(Refused):
            driver.asynchronous_events(Address(9, 0), 0x7E)


@pytest.mark.parametrize("address", [A, B])
def test_reads_and_writes_of_any_place_and_size(address: Address) -> None:
    with probed() as driver:
        disk = driver.disks[address]
        size = disk.block_size
        expected = unit_pattern(address, disk.blocks * size)
        for start, count in ((0, 1), (disk.blocks - 1, 1), (3, 40), (disk.blocks - 50, 50)):
            assert disk.read(start, count) == expected[start * size:(start + count) * size]
        disk.write(5, b"w" * 40 * size)
        expected[5 * size:45 * size] = b"w" * 40 * size
        disk.unmap(7, 9)
        disk.write_zeroes(20, 3)
        for start, count in ((7, 9), (20, 3)):
            expected[start * size:(start + count) * size] = bytes(count * size)
        assert disk.read(0, 50) == expected[:50 * size]
        assert device_of(driver).units[address].disk.read(0, len(expected)) == bytes(expected)
        for start, count in ((disk.blocks, 1), (disk.blocks - 1, 2)):
            with pytest.raises(Refused, match="beyond"):
                disk.read(start, count)


def test_large_reads_are_split_by_what_the_device_takes() -> None:
    liar = Liar()
    with probed(liar) as driver:
        liar.seen.clear()
        driver.disks[A].read(0, 512)
        lengths = [int.from_bytes(cdb[10:14], "big") for cdb in liar.seen if cdb[0] == Opcode.READ_16]
        assert sum(lengths) == 512
        assert max(lengths) == 128  # 64 KiB


def test_a_busy_unit_is_asked_again_and_given_up_in_the_end() -> None:
    liar = Liar()
    with probed(liar) as driver:
        answers = [fields(status=Status.BUSY), fields(response=Response.BUSY), fields(status=Status.TASK_SET_FULL)]
        liar.lie = lambda data: answers.pop(0)(data) if answers else data
        assert driver.disks[A].read(0, 1) == unit_pattern(A, 512)
        liar.lie = fields(status=Status.BUSY)
        with pytest.raises(CommandFailed, match="busy for ever"):
            driver.disks[A].read(0, 1)
        liar.lie = None
        assert driver.disks[A].read(0, 1) == unit_pattern(A, 512)


def test_a_request_given_up_keeps_its_buffers() -> None:
    liar = Liar()
    with probed(liar) as driver:
        liar.silent = True
        with pytest.raises(DeviceTimeout):
            driver.disks[A].read(0, 1)
        with pytest.raises(DeviceTimeout):
            driver.manage(TaskFunction.QUERY_TASK, A)
        assert len(driver._unanswered) == 2
        liar.silent = False
        assert driver.disks[A].read(0, 1) == unit_pattern(A, 512)


# What the host does.


def test_disks_come_go_and_change() -> None:
    with probed() as driver:
        device = device_of(driver)
        device.host_action("plug")
        extra = driver.wait_for(EXTRA_UNIT)
        assert extra.read(0, 2) == unit_pattern(EXTRA_UNIT, 1024)
        device.host_action("unplug")
        driver.machine.settle(0.1)
        with pytest.raises(Refused, match="gone"):
            extra.read(0, 1)
        driver.attend()
        assert list(driver.disks) == [A, B]
        device.host_action("shrink")
        driver.machine.settle(0.1)
        assert driver.disks[A].read(0, 1) == unit_pattern(A, 512)
        assert driver.disks[A].blocks == 1024
        assert not driver.violations


def test_lost_events_have_the_driver_look_everywhere() -> None:
    with probed() as driver:
        device = device_of(driver)
        events, device._events = device._events, type(device._events)()
        device._tell = lambda *_: None  # type: ignore[method-assign]  # an event that is lost
        device.host_action("plug")
        assert EXTRA_UNIT not in driver.disks
        device._events = events
        device._missed = True
        device.pump(device.queues[EVENT_QUEUE])
        driver.machine.settle(0.1)
        assert driver.wait_for(EXTRA_UNIT).read(0, 1) == unit_pattern(EXTRA_UNIT, 512)


# Lies in answers to commands.


def fields(*, sense_length: int | None = None, residual: int | None = None, status: int | None = None,
           response: int | None = None) -> Callable[[bytes], bytes]:
    def lie(data: bytes) -> bytes:
        given = (sense_length, residual, None, status, response)
        true = RESPONSE.unpack_from(data)
        return RESPONSE.pack(*(t if g is None else g for t, g in zip(true, given, strict=True))) + data[RESPONSE.size:]

    return lie


def sensed(sense: bytes, length: int | None = None) -> Callable[[bytes], bytes]:
    return lambda data: RESPONSE.pack(len(sense) if length is None else length, 0, 0, Status.CHECK_CONDITION, 0) \
        + sense.ljust(SENSE_SIZE, b"\0") + data[HEAD:]


def said(change: Callable[[bytes], bytes]) -> Callable[[bytes], bytes]:
    """Change the data, and say truly how much of it there is."""
    def lie(data: bytes) -> bytes:
        changed = change(data[HEAD:])
        residual = RESPONSE.unpack_from(data)[1] + len(data) - HEAD - len(changed)
        return fields(residual=residual)(data[:HEAD] + changed)

    return lie


def poked(offset: int, raw: bytes) -> Callable[[bytes], bytes]:
    return said(lambda data: data[:offset] + raw + data[offset + len(raw):])


def page(number: int, content: bytes, length: int | None = None) -> Callable[[bytes], bytes]:
    return said(lambda _data: struct.pack(">BBH", 0, number, len(content) if length is None else length) + content)


def listed(*luns: bytes, length: int | None = None) -> Callable[[bytes], bytes]:
    body = b"".join(lun.ljust(8, b"\0") for lun in luns)
    return said(lambda _data: struct.pack(">I4x", len(body) if length is None else length) + body)


def is_vpd(number: int) -> Callable[[bytes], bool]:
    return lambda cdb: cdb[:3] == bytes((Opcode.INQUIRY, 1, number))


def is_op(opcode: int) -> Callable[[bytes], bool]:
    return lambda cdb: cdb[0] == opcode and not (opcode == Opcode.INQUIRY and cdb[1])


def use(driver: ScsiDriver) -> None:
    """Ask for everything anew, then use it."""
    driver._rescan.add(0)
    read_luns(driver, 0)
    disk = driver.disks[A]
    disk.stale = True
    disk.read(0, 8)
    disk.write(40, bytes(1024))
    disk.flush()
    disk.unmap(48, 8)


READ, INQUIRY, LUNS = is_op(Opcode.READ_16), is_op(Opcode.INQUIRY), is_op(Opcode.REPORT_LUNS)
CAPACITY, MODE, WRITE = is_op(Opcode.SERVICE_ACTION_IN_16), is_op(Opcode.MODE_SENSE_6), is_op(Opcode.WRITE_16)
RULES = [
    (READ, lambda data: data[:HEAD - 1], "a whole response"),
    (READ, lambda _data: b"", "a whole response"),
    (READ, fields(response=Response.FUNCTION_SUCCEEDED), "a response is one of those defined"),
    (READ, fields(response=0xFF), "a response is one of those defined"),
    (READ, fields(status=0x01), "a status is one that SAM defines"),
    (READ, fields(sense_length=SENSE_SIZE + 1), "sense data fits"),
    (READ, fields(sense_length=0xFFFFFFFF), "sense data fits"),
    (READ, fields(residual=4097), "no more is left over"),
    (READ, fields(residual=0xFFFFFFFF), "no more is left over"),
    (READ, fields(residual=512), "was answered in full"),
    (READ, lambda data: data[:HEAD + 512], "what was moved was written"),
    (WRITE, fields(residual=1024), "took everything"),
    (WRITE, fields(residual=1025), "no more is left over"),
    (is_op(Opcode.UNMAP), fields(residual=1), "all of its parameters"),
    (READ, sensed(b""), "comes with sense data"),
    (READ, sensed(b"\x70\0"), "comes with sense data"),
    (READ, sensed(b"\x7f" * 18), "comes with sense data"),
    (READ, sensed(b"\x70\0\5", 97), "sense data fits"),
    (INQUIRY, said(lambda data: data[:35]), "36 bytes at least"),
    (INQUIRY, poked(4, b"\xff"), "36 to 255 bytes"),
    (INQUIRY, poked(4, b"\0"), "36 to 255 bytes"),
    (INQUIRY, poked(4, b"\x7f"), "as long as it says"),
    (INQUIRY, lambda data: poked(8, bytes((len(data) & 0x7F,)))(data), "says the same of itself twice"),
    (INQUIRY, poked(8, b"X"), "stays the one that it is"),
    (is_vpd(VpdPage.SERIAL_NUMBER), page(VpdPage.SERIAL_NUMBER, b"another"), "stays the one that it is"),
    (is_vpd(VpdPage.SERIAL_NUMBER), page(VpdPage.SERIAL_NUMBER, b"\x1b[2J"), "ASCII"),
    (is_vpd(VpdPage.SERIAL_NUMBER), page(VpdPage.SERIAL_NUMBER, b"S" * 65), "1 to 64 characters"),
    (is_vpd(VpdPage.SERIAL_NUMBER), page(VpdPage.SERIAL_NUMBER, b""), "1 to 64 characters"),
    (is_vpd(VpdPage.SERIAL_NUMBER), page(VpdPage.SERIAL_NUMBER, b"short", 200), "as long as it says"),
    (is_vpd(VpdPage.SERIAL_NUMBER), said(lambda data: data[:3]), "a page has a header"),
    (is_vpd(VpdPage.SERIAL_NUMBER), page(0x89, b"chamber"), "the one asked for"),
    (is_vpd(VpdPage.SUPPORTED_PAGES), page(0, b"\x00\x80\x80"), "listed once"),
    (is_vpd(VpdPage.SUPPORTED_PAGES), page(0, b"\x80\x00"), "listed once"),
    (is_vpd(VpdPage.SUPPORTED_PAGES), page(0, b""), "listed once"),
    (is_vpd(VpdPage.IDENTIFICATION), page(0x83, b"\1\3\0\xff" + bytes(8)), "ends within its page"),
    (is_vpd(VpdPage.IDENTIFICATION), page(0x83, b"\1\1\0\0\1\3"), "has a header"),
    (is_vpd(VpdPage.IDENTIFICATION), page(0x83, b"\1\3\0\x20" + bytes(32)), "8 or 16 bytes"),
    (is_vpd(VpdPage.IDENTIFICATION), page(0x83, b"\1\3\0\x08" + bytes(8)), "stays the one that it is"),
    (is_vpd(VpdPage.BLOCK_LIMITS), page(0xB0, bytes(59)), "60 bytes"),
    (is_vpd(VpdPage.BLOCK_CHARACTERISTICS), page(0xB1, bytes(4)), "60 bytes"),
    (is_vpd(VpdPage.BLOCK_CHARACTERISTICS), page(0xB1, b"\0\1\0\0\x10".ljust(60, b"\0")), "no zones"),
    (is_vpd(VpdPage.PROVISIONING), page(0xB2, bytes(3)), "4 bytes"),
    (CAPACITY, poked(8, bytes(4)), "a block is 512"),
    (CAPACITY, poked(8, b"\xff" * 4), "a block is 512"),
    (CAPACITY, poked(0, b"\xff" * 8), "all of a disk can be addressed"),
    (CAPACITY, said(lambda data: data[:12]), "a capacity is 32 bytes"),
    (MODE, poked(0, b"\xff"), "as long as they say"),
    (MODE, poked(0, b"\0"), "follows its block descriptors"),
    (MODE, poked(3, b"\xff"), "follows its block descriptors"),
    (MODE, poked(12, b"\x1c"), "the one asked for"),
    (MODE, said(lambda data: data[:3]), "a header"),
    (LUNS, said(lambda data: data[:7]), "has its length"),
    (LUNS, listed(b"", length=0xFFFFFFF8), "as long as it says"),
    (LUNS, listed(b"", b"\0\1", length=12), "whole LUNs"),
    (LUNS, listed(b"", b""), "listed once"),
    (LUNS, listed(b"\xc1\1"), "peripheral or in flat space"),
    (LUNS, listed(b"\x01\1"), "a single level"),
    (LUNS, listed(b"\0\1\0\2"), "a single level"),
]


@pytest.mark.parametrize(("which", "lie", "rule"), RULES, ids=range(len(RULES)))
def test_lies_are_named(which: Callable[[bytes], bool], lie: Callable[[bytes], bytes], rule: str) -> None:
    liar = Liar()
    with probed(liar) as driver:
        liar.which, liar.lie = which, lie
        with pytest.raises(DeviceViolation) as caught:
            use(driver)
        assert rule in caught.value.rule
        assert caught.value.spec.startswith("5.6")
        liar.lie = None
        use(driver)
        assert driver.disks[A].read(0, 8) == unit_pattern(A, 4096)


@pytest.mark.parametrize("response", [Response.OVERRUN, Response.ABORTED, Response.RESET, Response.TRANSPORT_FAILURE,
                                      Response.TARGET_FAILURE, Response.NEXUS_FAILURE, Response.FAILURE])
def test_failures_are_failures(response: Response) -> None:
    liar = Liar()
    with probed(liar) as driver:
        liar.which, liar.lie = READ, fields(response=response)
        with pytest.raises(CommandFailed):
            use(driver)
        assert not driver.violations


@pytest.mark.parametrize("status", [Status.CONDITION_MET, Status.RESERVATION_CONFLICT, Status.ACA_ACTIVE,
                                    Status.TASK_ABORTED])
def test_a_status_that_is_not_good_is_no_success(status: Status) -> None:
    liar = Liar()
    with probed(liar) as driver:
        liar.which, liar.lie = READ, fields(status=status)
        with pytest.raises(CommandFailed, match="status"):
            use(driver)


def test_sense_data_is_the_reason() -> None:
    liar = Liar()
    with probed(liar) as driver:
        liar.which, liar.lie = READ, sensed(Sense(SenseKey.MEDIUM_ERROR, 0x11).pack())
        with pytest.raises(CommandFailed) as caught:
            use(driver)
        assert caught.value.sense == Sense(SenseKey.MEDIUM_ERROR, 0x11)
        # What an earlier command left in the buffer is not the reason of a later one.
        liar.lie = sensed(b"\x72\x05\x20")
        with pytest.raises(CommandFailed) as caught:
            use(driver)
        assert caught.value.sense == Sense(SenseKey.ILLEGAL_REQUEST, 0x20)
        liar.lie = sensed(Sense(SenseKey.UNIT_ATTENTION, 0x29).pack())
        with pytest.raises(Refused, match="for ever"):
            use(driver)


def test_units_beyond_what_the_device_said_are_not_looked_for() -> None:
    liar = Liar()
    with probed(liar) as driver:
        liar.which, liar.lie = LUNS, listed(b"", b"\0\1", b"\x40\xff", b"\x7f\xff")
        driver._rescan.add(0)
        driver.attend()
        assert list(driver.disks) == [A, B]


def test_a_disk_that_is_not_listed_any_more_is_gone_for_whoever_has_it() -> None:
    liar = Liar()
    with probed(liar) as driver:
        disk = driver.disks[A]
        liar.which, liar.lie = LUNS, listed(b"\0\1")
        driver._rescan.add(0)
        driver.attend()
        assert list(driver.disks) == [B]
        with pytest.raises(Refused, match="gone"):
            disk.read(0, 1)


# Lies in control and events.


@pytest.mark.parametrize(("answer", "rule"), [
    (b"\1", "one that task management has"), (b"\4", "one that task management has"),
    (b"\xff", "one that task management has"), (b"", "answered in full")])
def test_answers_of_task_management_are_checked(answer: bytes, rule: str) -> None:
    liar = Liar()
    with probed(liar) as driver:
        liar.queue, liar.lie = CONTROL_QUEUE, lambda _data: answer
        with pytest.raises(DeviceViolation, match=rule):
            driver.manage(TaskFunction.LOGICAL_UNIT_RESET, A)


@pytest.mark.parametrize(("answer", "rule"), [
    (AN_ANSWER.pack(0x80, 0), "but those asked for"), (AN_ANSWER.pack(0xFFFFFFFF, 0), "but those asked for"),
    (AN_ANSWER.pack(0, 10), "one that queries have"), (AN_ANSWER.pack(0, 0xFF), "one that queries have"),
    (AN_ANSWER.pack(0, 0)[:4], "answered in full")])
def test_answers_of_queries_are_checked(answer: bytes, rule: str) -> None:
    liar = Liar()
    with probed(liar) as driver:
        liar.queue, liar.lie = CONTROL_QUEUE, lambda _data: answer
        with pytest.raises(DeviceViolation, match=rule):
            driver.asynchronous_events(A, 0x7E)


def event(kind: int, lun: bytes = A.pack(), reason: int = 0) -> bytes:
    return EVENT.pack(kind, lun, reason)


def tell(driver: ScsiDriver, liar: Liar, lie: Callable[[bytes], bytes]) -> None:
    liar.queue, liar.lie = EVENT_QUEUE, lie
    device_of(driver).host_action("reset")
    driver.machine.settle(0.1)
    liar.lie = None


@pytest.mark.parametrize(("raw", "rule"), [
    (event(4), "one of those defined"), (event(0x7FFFFFFF), "one of those defined"),
    (event(EVENTS_MISSED | 9), "one of those defined"),
    (event(EventType.ASYNC_NOTIFY, reason=2), "subscribed to"),
    (event(EventType.TRANSPORT_RESET, reason=3), "a reset has a reason"),
    (event(EventType.TRANSPORT_RESET, reason=0xFFFFFFFF), "a reset has a reason"),
    (event(EventType.TRANSPORT_RESET, b"\0" * 8), "lun is 1"), (event(EventType.PARAM_CHANGE, b"\xff" * 8), "lun is 1"),
    (event(EventType.TRANSPORT_RESET, Address(200, 0).pack(), 1), "one that the device has"),
    (event(EventType.PARAM_CHANGE, Address(0, 0x3FFF).pack()), "one that the device has"),
    (event(EventType.TRANSPORT_RESET)[:15], "an event is 16 bytes"), (b"", "an event is 16 bytes")])
def test_events_are_checked(raw: bytes, rule: str) -> None:
    liar = Liar()
    with probed(liar) as driver:
        for turn in range(1, 21):  # more than there are buffers: each is lent again
            tell(driver, liar, lambda _data: raw)
            assert len(driver.violations) == turn
        assert all(rule in violation.rule for violation in driver.violations)
        device_of(driver).host_action("plug")
        driver.machine.settle(0.1)
        driver.attend()
        assert EXTRA_UNIT in driver.disks


def test_hot_plug_needs_the_feature() -> None:
    liar = Liar()
    with probed(liar, features=0) as driver:
        tell(driver, liar, lambda _data: event(EventType.TRANSPORT_RESET, reason=ResetReason.REMOVED))
        assert [violation.rule for violation in driver.violations] == ["hot plug was negotiated"]
        assert driver.disks[A].read(0, 1) == unit_pattern(A, 512)


def test_a_disk_that_is_said_to_be_gone_is_forgotten_once() -> None:
    liar = Liar()
    with probed(liar) as driver:
        for _ in range(3):
            tell(driver, liar, lambda _data: event(EventType.TRANSPORT_RESET, reason=ResetReason.REMOVED))
        assert not driver.violations
        driver.attend()  # it is there still, says the list: so it is a new one
        assert driver.disks[A].read(0, 1) == unit_pattern(A, 512)


# Without checks, and anything at all.


@pytest.mark.parametrize(("which", "lie"), [
    (READ, fields(sense_length=0xFFFF)), (READ, fields(residual=0xFFFFFFFF)), (CAPACITY, poked(8, bytes(4))),
    (is_vpd(VpdPage.SERIAL_NUMBER), page(VpdPage.SERIAL_NUMBER, b"S" * 200)),
    (is_vpd(VpdPage.IDENTIFICATION), page(0x83, b"\1\3\0\xc8" + bytes(200))),
    (MODE, poked(3, b"\xff"))])
def test_a_driver_that_does_not_check_is_broken_by_the_same(which: Callable[[bytes], bool],
                                                            lie: Callable[[bytes], bytes]) -> None:
    liar = Liar()
    machine = GuestMachine(PROFILES["bare"], 1)
    device = make_device(DeviceType.SCSI, hooks=liar)
    driver = ScsiDriver(machine, ModelTransport(machine, device))
    driver.probe()
    liar.which, liar.lie = which, lie
    with pytest.raises(MemoryViolation):
        use(driver)
    device.close()
    machine.close()


def everything(driver: ScsiDriver) -> None:
    disk = driver.disks[A]
    for call in (lambda: use(driver), lambda: driver.manage(TaskFunction.LOGICAL_UNIT_RESET, A),
                 lambda: driver.asynchronous_events(A, 0x7E), driver.attend, disk.ready,
                 lambda: disk.write_zeroes(50, 4), disk.flush):
        with suppress(DeviceViolation, Refused, DeviceTimeout):
            call()
    for action in ("plug", "reset", "shrink", "grow", "unplug"):
        device_of(driver).host_action(action)
        driver.machine.settle(0.1)
        with suppress(DeviceViolation, Refused, DeviceTimeout):
            driver.attend()


NUMBERS = st.one_of(st.integers(0, 255), st.sampled_from([96, 97, 4096, 1 << 31, (1 << 32) - 1]))
HEADS = st.builds(lambda sense, residual, status, response, rest: RESPONSE.pack(sense, residual, 0, status, response)
                  + rest, NUMBERS, NUMBERS, st.sampled_from([0, 0, 2, 8, 1]), st.sampled_from([0, 0, 0, 3, 5, 99]),
                  st.binary(max_size=SENSE_SIZE))


@settings(max_examples=150, deadline=None)
@given(st.data(), st.sampled_from([None, *(form.opcode for form in FORMATS.values())]),
       st.sampled_from(["data", "head", "cut", "bytes", "event", "control"]))
def test_no_answer_breaks_the_guest(data: st.DataObject, opcode: Opcode | None, how: str) -> None:
    liar = Liar()
    raw = data.draw(st.binary(max_size=300))
    head = data.draw(HEADS)
    at = data.draw(st.integers(0, 300))
    lies: dict[str, Callable[[bytes], bytes]] = {
        "data": lambda true: true[:HEAD + at] + raw + true[HEAD + at + len(raw):],
        "head": lambda true: head + true[len(head):],
        "cut": lambda true: true[:at],
        "bytes": lambda _true: raw,
        "event": lambda _true: head[:4] + A.pack() + raw[:4] if at & 1 else raw,
        "control": lambda _true: raw[:5]}
    queue = {"event": EVENT_QUEUE, "control": CONTROL_QUEUE}.get(how, REQUEST_QUEUE)
    with probed(liar) as driver:
        liar.queue, liar.lie = queue, lies[how]
        liar.which = lambda cdb: opcode is None or cdb[0] == opcode
        everything(driver)
        liar.lie = None
        with suppress(DeviceViolation, Refused, DeviceTimeout, KeyError):  # the disk may have been forgotten
            use(driver)
