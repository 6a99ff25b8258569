"""An owner and its members: commands of both sides, and a guest that is moved from one member to another unawares."""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chamber.device.admin_commands import AdminCommands
from chamber.device.assigned import AssignedFunction
from chamber.device.blk import BlkDevice
from chamber.device.catalogue import RINGS
from chamber.device.disk import MemoryDisk
from chamber.device.hooks import Hooks
from chamber.device.sriov_group import SriovGroup
from chamber.guest.admin import AdminClient, CommandFailed
from chamber.guest.driver import DeviceTimeout, Refused
from chamber.guest.drivers.blk import BlkDriver
from chamber.guest.machine import GuestMachine
from chamber.guest.profile import PROFILES
from chamber.guest.sriov import VirtualFunctions
from chamber.guest.untrusted import ENFORCING, DeviceViolation
from chamber.guest.virtio_pci import PciTransport
from chamber.platform.memory import HostView
from chamber.platform.pci_bus import PciBus
from chamber.wire.admin import (
    CREATE,
    HEADER,
    OBJECT_HEADER,
    PARTS_OBJECT,
    PARTS_REQUEST,
    STATUS,
    Group,
    Opcode,
    Part,
    PartsUse,
    PartType,
    Qualifier,
    Status,
    build_bits,
    parse_bits,
    parse_parts,
)
from chamber.wire.errors import WireError
from chamber.wire.pci import SRIOV, ExtendedId
from chamber.wire.virtio_pci import COMMON

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from chamber.device.chain import Chain
    from chamber.device.queue import DeviceQueue
    from chamber.device.virtio_pci import VirtioPci


class Host:
    """A hypervisor: an owner device, its driver, and members that have one disk."""

    def __init__(self, hooks: Hooks | None = None, members: int = 2, ring: str = "split", *,
                 legacy: bool = False) -> None:
        self.disk = MemoryDisk(bytearray(1 << 20))
        devices = [BlkDevice(self.disk, hooks=hooks if not number else None) for number in range(members + 1)]
        for device in devices:
            device.offer(RINGS[ring])
        self.machine = GuestMachine(PROFILES["hardened"], seed=1)
        self.bus = PciBus(self.machine.interrupts)
        self.group = SriovGroup(devices[0], devices[1:], legacy=legacy)
        self.group.owner.dma = self.machine.memory.host
        devices[0].schedule = self.machine.scheduler.call_later
        self.group.plug(self.bus, 4)
        self.driver = BlkDriver(self.machine, PciTransport(self.machine, self.bus, 4))
        self.driver.own_others()

    def close(self) -> None:
        self.group.close()

    def ready(self, enabled: int = 2) -> AdminClient:
        self.driver.probe()
        VirtualFunctions(self.bus, 4, ENFORCING).enable(enabled)
        client = AdminClient(self.driver)
        for group in Group:
            client.use(group)
        assert client.allow_parts() == (8, 8)
        return client


class Guest:
    """A guest that has a member."""

    def __init__(self, member: VirtioPci) -> None:
        self.machine = GuestMachine(PROFILES["hardened"], seed=2)
        member.dma = self.machine.memory.host
        member.device.schedule = self.machine.scheduler.call_later
        self.assigned = AssignedFunction(member)
        bus = PciBus(self.machine.interrupts)
        bus.plug(0, self.assigned)
        self.driver = BlkDriver(self.machine, PciTransport(self.machine, bus))


@pytest.mark.parametrize("ring", RINGS)
def test_a_guest_is_moved_to_another_device_and_does_not_notice(ring: str) -> None:
    with closing(Host(ring=ring)) as host:
        client = host.ready()
        first, second = host.group.members
        guest = Guest(first)
        guest.driver.probe()
        guest.driver.write(3, b"\x11" * 1024)
        client.stop(1)
        client.stop(2)
        parts = client.read_parts(1)
        assert {part.type for part in parts} == set(PartType)
        client.write_parts(2, parts, number=7)
        guest.assigned.move_to(second)
        client.resume(2)
        assert guest.driver.read(3, 2) == b"\x11" * 1024
        guest.driver.write(5, b"\x22" * 512)
        assert guest.driver.read(5, 1) == b"\x22" * 512
        assert not second.device.violations
        assert not guest.machine.heap.reports
        guest.driver.remove()


def test_a_member_that_is_stopped_touches_nothing_and_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    with closing(Host()) as host:
        client = host.ready()
        member = host.group.members[0]
        guest = Guest(member)
        guest.driver.probe()
        client.stop(1)
        client.stop(1)
        heard: list[int] = []
        member.function.send = lambda _address, data: heard.append(data)
        touched: list[int] = []
        monkeypatch.setattr(HostView, "_check", lambda _view, address, _length, _access: touched.append(address))
        member.device.config_changed()
        with pytest.raises(DeviceTimeout):
            guest.driver.flush()
        assert not heard
        assert not touched
        monkeypatch.undo()
        guest.assigned._send_to(lambda _address, data: guest.machine.interrupts.assert_vector(data))
        client.resume(1)
        client.resume(1)
        guest.machine.settle(0.01)
        assert guest.driver.read(0, 1) == bytes(512)


def test_what_a_driver_does_while_its_device_is_stopped_counts_once_it_goes_on() -> None:
    with closing(Host()) as host:
        client = host.ready()
        guest = Guest(host.group.members[0])
        client.stop(1)
        guest.driver.probe()
        client.resume(1)
        guest.driver.write(1, b"\x33" * 512)
        assert bytes(host.disk.read(512, 512)) == b"\x33" * 512


def test_functions_come_and_go_with_the_owners_control_register() -> None:
    with closing(Host()) as host:
        host.driver.probe()
        functions = VirtualFunctions(host.bus, 4, ENFORCING)
        assert functions.total == 2
        assert host.bus.read_config(5, 0, 2) == b"\xff\xff"
        assert functions.enable(2) == [5, 6]
        base = host.group.members[1].function.bar_base(0)
        assert int.from_bytes(host.bus.read(base + COMMON["num_queues"].offset, 2), "little") == 1
        functions.disable()
        assert host.bus.read_config(6, 0, 2) == b"\xff\xff"
        assert not host.group.exist
        functions.enable(1)
        host.group.owner.reset()
        assert not host.group.exist
        with pytest.raises(Refused, match="there can be 2"):
            functions.enable(3)


def test_more_functions_than_there_can_be_are_none() -> None:
    with closing(Host()) as host:
        at = host.group.sriov.at
        host.bus.write_config(4, at + SRIOV["num_vfs"].offset, (3).to_bytes(2, "little"))
        host.bus.write_config(4, at + SRIOV["control"].offset, b"\x09\x00")
        assert not host.group.exist


def _failure(client: AdminClient, opcode: Opcode, group: Group, **more: object) -> tuple[Status, Qualifier]:
    with pytest.raises(CommandFailed) as info:
        client.command(opcode, group, **more)  # type: ignore[arg-type]
    return info.value.status, info.value.qualifier


def test_commands_fail_as_the_specification_says() -> None:
    with closing(Host()) as host:
        host.driver.probe()
        client = AdminClient(host.driver)
        head = bytes(CREATE.pack(type=0, id=0)) + bytes(PARTS_OBJECT.pack(type=PartsUse.GET))
        assert _failure(client, Opcode.LIST_QUERY, Group.SRIOV) == (Status.EINVAL, Qualifier.INVALID_GROUP)
        VirtualFunctions(host.bus, 4, ENFORCING).enable(1)
        create = Opcode.RESOURCE_OBJ_CREATE
        assert _failure(client, create, Group.SRIOV, member=1) == (Status.EINVAL, Qualifier.INVALID_OPCODE)
        client.use(Group.SRIOV)
        client.use(Group.SELF)
        assert _failure(client, create, Group.SRIOV, member=2) == (Status.EINVAL, Qualifier.INVALID_MEMBER)
        assert _failure(client, create, Group.SRIOV, member=1, data=head) == (Status.ENOSPC, Qualifier.NORESOURCE)
        client.allow_parts()
        client.command(create, Group.SRIOV, member=1, data=head)
        assert _failure(client, create, Group.SRIOV, member=1, data=head)[0] is Status.EEXIST
        cap = bytes((0,) * 8 + (9, 1))
        assert _failure(client, Opcode.DRIVER_CAP_SET, Group.SELF, data=cap)[0] is Status.EINVAL
        assert _failure(client, Opcode.DRIVER_CAP_SET, Group.SELF, data=bytes(10))[0] is Status.EBUSY
        assert _failure(client, Opcode.DEVICE_CAP_GET, Group.SELF, data=b"\x05", room=2)[0] is Status.ENXIO
        request = bytes(PARTS_REQUEST.pack(kind=1))
        assert _failure(client, Opcode.DEV_PARTS_GET, Group.SRIOV, member=1, data=request, room=8) == (
            Status.ENOMEM, Qualifier.NORESOURCE)
        other = bytes(OBJECT_HEADER.pack(id=5))
        assert _failure(client, Opcode.DEV_PARTS_SET, Group.SRIOV, member=1, data=other)[0] is Status.ENXIO
        assert _failure(client, Opcode.DEV_PARTS_SET, Group.SRIOV, member=1, data=bytes(8))[0] is Status.EINVAL
        assert _failure(client, Opcode.DEV_MODE_SET, Group.SRIOV, member=1, data=b"\x02")[0] is Status.EINVAL
        assert _failure(client, Opcode.LIST_USE, Group.SRIOV, data=build_bits({0, 1, 2})) == (
            Status.EINVAL, Qualifier.INVALID_FIELD)
        host.driver.reset_queue(0)
        client.command(Opcode.RESOURCE_OBJ_DESTROY, Group.SRIOV, member=1, data=bytes(8))
        assert _failure(client, Opcode.RESOURCE_OBJ_DESTROY, Group.SRIOV, member=1, data=bytes(8))[0] is Status.ENXIO


def test_objects_can_be_asked_what_they_are_for_and_be_changed() -> None:
    with closing(Host()) as host:
        client = host.ready()
        client.command(Opcode.LIST_USE, Group.SRIOV, data=build_bits(
            parse_bits(client.command(Opcode.LIST_QUERY, Group.SRIOV, room=8))))
        head = bytes(CREATE.pack(type=0, id=3))
        client.command(Opcode.RESOURCE_OBJ_CREATE, Group.SRIOV, member=2, data=head + bytes(8))
        assert client.command(Opcode.RESOURCE_OBJ_QUERY, Group.SRIOV, member=2, data=head, room=8)[0] == PartsUse.GET
        client.command(Opcode.RESOURCE_OBJ_MODIFY, Group.SRIOV, member=2,
                       data=head + bytes(PARTS_OBJECT.pack(type=PartsUse.SET)))
        assert client.command(Opcode.RESOURCE_OBJ_QUERY, Group.SRIOV, member=2, data=head, room=8)[0] == PartsUse.SET
        assert _failure(client, Opcode.RESOURCE_OBJ_QUERY, Group.SRIOV, member=1, data=head)[0] is Status.ENXIO


_WRONG: tuple[tuple[str, Callable[[list[Part]], Iterable[Part]]], ...] = (
    ("other features", lambda parts: [Part(PartType.DEV_FEATURES, bytes(8)), *parts[1:]]),
    ("features that are not offered", lambda _parts: [Part(PartType.DRV_FEATURES, b"\xff" * 8)]),
    ("out of order", reversed),
    ("twice", lambda parts: [*parts[:2], *parts[1:]]),
    ("short", lambda _parts: [Part(PartType.VQ_CFG, bytes(31))]),
    ("no such queue", lambda _parts: [Part(PartType.VQ_CFG, bytes(32), 1)]),
    ("a queue of no size", lambda _parts: [Part(PartType.VQ_CFG, bytes(32))]),
    ("no such field", lambda _parts: [Part(PartType.PCI_COMMON_CFG, b"\0", 21)]),
    ("more queues", lambda _parts: [Part(PartType.PCI_COMMON_CFG, b"\x02\0", COMMON["num_queues"].offset)]),
    ("unknown", lambda _parts: [Part(0x200, b"x")]),
    ("notified elsewhere", lambda _parts: [Part(PartType.VQ_NOTIFY_CFG, b"\x01" + bytes(7))]),
)


@pytest.mark.parametrize(("name", "change"), _WRONG)
def test_wrong_parts_change_nothing(name: str, change: Callable[[list[Part]], Iterable[Part]]) -> None:
    with closing(Host()) as host:
        client = host.ready()
        guest = Guest(host.group.members[0])
        guest.driver.probe()
        client.stop(1)
        parts = list(client.read_parts(1))
        with pytest.raises(CommandFailed):
            client.write_parts(1, tuple(change(parts)))
        assert list(client.read_parts(1)) == parts, name
        client.write_parts(1, [*parts, Part(0x200, b"x", optional=True)][-1:])
        client.resume(1)
        assert guest.driver.read(0, 1) == bytes(512)


def test_parts_are_set_of_a_device_that_is_stopped_alone() -> None:
    with closing(Host()) as host:
        client = host.ready()
        with pytest.raises(CommandFailed, match="EINVAL"):
            client.write_parts(1, client.read_parts(1))


class _Answers(Hooks):
    """Answers commands otherwise."""

    def __init__(self, answer: Callable[[bytes], bytes]) -> None:
        self.answer = answer
        self.active = False

    def response(self, queue: DeviceQueue, chain: Chain, data: bytes) -> bytes:
        return self.answer(data) if queue.index == 1 and self.active else data


@pytest.mark.parametrize(("answer", "expected"), [
    (lambda _data: b"\0\0\0", DeviceViolation),
    (lambda _data: b"\x99\x99\x99\x99" + bytes(4), CommandFailed),
    (lambda _data: bytes(STATUS.pack(status=Status.EAGAIN)), CommandFailed),
    (lambda data: data[:8] + b"\xff" * 8, DeviceViolation)])
def test_a_client_believes_no_answer(answer: Callable[[bytes], bytes], expected: type[Exception]) -> None:
    hooks = _Answers(answer)
    with closing(Host(hooks)) as host:
        client = host.ready()
        hooks.active = True
        with pytest.raises(expected):
            client.read_parts(1)


class _Registers(Hooks):
    """Shows something else in the common configuration."""

    def __init__(self, **shown: int) -> None:
        self.shown = shown

    def register(self, function: VirtioPci, bar: int, offset: int, data: bytes) -> bytes:
        for name, value in self.shown.items():
            if bar == 0 and offset == COMMON[name].offset:
                return value.to_bytes(len(data), "little")
        return data


@pytest.mark.parametrize("shown", [{"admin_queue_num": 0}, {"admin_queue_index": 0}, {"admin_queue_num": 0xFFFF}])
def test_an_administration_queue_that_can_not_be_is_refused(shown: dict[str, int]) -> None:
    with closing(Host(_Registers(**shown))) as host, pytest.raises(DeviceViolation, match="administration queue"):
        host.driver.probe()


@pytest.mark.parametrize(("name", "value"), [
    ("total_vfs", 0), ("total_vfs", 300), ("first_vf_offset", 0), ("vf_stride", 0), ("first_vf_offset", 255),
    ("vf_bar0", 0x0FFFFFF0 & 0xABCDEF0)])
def test_a_capability_that_can_not_be_is_refused(name: str, value: int) -> None:
    with closing(Host()) as host:
        host.driver.probe()
        function = host.group.owner.function
        SRIOV.put(function.config, name, value, host.group.sriov.at)
        SRIOV.put(function.mask, name, 0, host.group.sriov.at)
        with pytest.raises(DeviceViolation):
            VirtualFunctions(host.bus, 4, ENFORCING).enable(1)


def test_a_function_without_the_capability_or_with_an_endless_list_is_refused() -> None:
    with closing(Host()) as host:
        config = host.group.owner.function.config
        config[0x100:0x104] = (0x0B | 1 << 16 | 0x100 << 20).to_bytes(4, "little")
        with pytest.raises(DeviceViolation, match="extended capabilities ends"):
            VirtualFunctions(host.bus, 4, ENFORCING)
        config[0x100:0x104] = (ExtendedId.VENDOR | 1 << 16).to_bytes(4, "little")
        with pytest.raises(Refused, match="no virtual functions"):
            VirtualFunctions(host.bus, 4, ENFORCING)


def test_a_device_without_the_queue_has_no_client() -> None:
    with closing(Host()) as host:
        driver = BlkDriver(host.machine, PciTransport(host.machine, host.bus, 4))
        driver.probe()
        with pytest.raises(Refused, match="no administration queue"):
            AdminClient(driver)


@given(st.binary(max_size=200))
@settings(max_examples=200, deadline=None)
def test_any_command_is_answered(command: bytes) -> None:
    commands = AdminCommands()
    for data in (command, bytes(HEADER.pack(opcode=command[0] if command else 0)) + command):
        assert STATUS.size <= len(commands.execute(data, 100)) <= STATUS.size + 100


@given(st.binary(max_size=300), st.booleans())
@settings(max_examples=200, deadline=None)
def test_any_bytes_are_parts_or_are_not(data: bytes, headers: bool) -> None:
    try:
        parts = parse_parts(data, headers=headers)
    except WireError:
        return
    assert all(Part.parse(part.build(header=headers), header=headers) == part for part in parts)


@given(st.frozensets(st.integers(0, 300)))
def test_lists_are_read_as_they_were_written(numbers: frozenset[int]) -> None:
    assert parse_bits(build_bits(numbers)) == numbers
