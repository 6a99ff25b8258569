"""Members of a group by their legacy interface: commands of the owner's driver, and a guest that has nothing else."""

from __future__ import annotations

from contextlib import closing
from functools import partial
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chamber.device.admin_commands import AdminCommands
from chamber.device.blk import BlkDevice
from chamber.device.disk import MemoryDisk
from chamber.device.hooks import Hooks
from chamber.device.net import NetDevice
from chamber.device.net_peer import NetPeer
from chamber.device.rng import RngDevice
from chamber.device.sriov_group import SriovGroup
from chamber.device.tdi import Tdi
from chamber.device.transitional import TransitionalFunction
from chamber.device.virtio_pci import DOORBELLS_AT
from chamber.guest.admin import CommandFailed
from chamber.guest.untrusted import DeviceViolation
from chamber.wire.admin import HEADER, LEGACY_OPCODES, STATUS, Group, NotifyFlags, Opcode, Qualifier, Status, build_bits
from chamber.wire.net import NetFeature
from chamber.wire.pci import HEADER as PCI_HEADER
from chamber.wire.pci import Command
from chamber.wire.split import DESC_F_WRITE
from chamber.wire.tdisp import LockFlag, LockInterface
from chamber.wire.virtio import Feature, bit
from chamber.wire.virtio import Status as DeviceStatus
from chamber.wire.virtio_pci import LEGACY, LEGACY_PAGE
from tests.device.driver import Memory, Queue
from tests.guest.test_admin import Host

if TYPE_CHECKING:
    from collections.abc import Callable

    from chamber.device.chain import Chain
    from chamber.device.net_backend import PacketHeader
    from chamber.device.queue import DeviceQueue
    from chamber.guest.admin import AdminClient

QUEUE_AT = 0x20000
DATA_AT = 0x40000


class Ports:
    """What a legacy driver has: a function's I/O ports, and memory that is its own to lend."""

    def __init__(self, host: Host, client: AdminClient) -> None:
        self.member = host.group.members[0]
        self.function = TransitionalFunction(self.member, 1, client)
        self.memory = Memory()
        self.later: list[object] = []
        self.function.attach(self.memory, lambda _vector: None, lambda _asserted: None,
                             lambda _delay, call: self.later.append(call))
        self.function.write_config(PCI_HEADER["command"].offset, bytes((Command.IO | Command.BUS_MASTER, 0)))

    def get(self, name: str) -> int:
        field = LEGACY[name]
        return int.from_bytes(self.function.read_bar(0, field.offset, field.size), "little")

    def put(self, name: str, value: int) -> None:
        field = LEGACY[name]
        self.function.write_bar(0, field.offset, value.to_bytes(field.size, "little"))

    def start(self, features: int, queues: int = 1) -> list[Queue]:
        self.put("device_status", 0)
        self.put("device_status", DeviceStatus.ACKNOWLEDGE | DeviceStatus.DRIVER)
        self.put("driver_features", features)
        made = []
        for index in range(queues):
            self.put("queue_select", index)
            start = QUEUE_AT + index * 0x8000
            self.put("queue_address", start // LEGACY_PAGE)
            queue = Queue(self.memory, start, self.get("queue_size"))
            # A legacy queue is in one piece, and its device area on a page of its own.
            queue.used = -(-(queue.avail + 6 + 2 * queue.size) // LEGACY_PAGE) * LEGACY_PAGE
            made.append(queue)
        self.put("device_status", DeviceStatus.ACKNOWLEDGE | DeviceStatus.DRIVER | DeviceStatus.DRIVER_OK)
        return made


def _host(hooks: Hooks | None = None) -> Host:
    return Host(hooks, legacy=True)


def _ring(ports: Ports, queue: Queue) -> None:
    """Read the first sector."""
    ports.memory.write(DATA_AT, bytes(16))
    queue.add([(DATA_AT, 16, 0), (DATA_AT + 16, 512, DESC_F_WRITE), (DATA_AT + 528, 1, DESC_F_WRITE)])
    ports.put("queue_notify", 0)


def test_a_guest_with_a_legacy_driver_reads_a_disk_by_commands_of_the_owner() -> None:
    with closing(_host()) as host:
        ports = Ports(host, host.ready())
        host.disk.write(0, b"\x5a" * 512)
        assert int.from_bytes(ports.function.read_config(0, 4), "little") == 0x1001_1AF4
        assert ports.function.read_config(8, 1) == b"\0"
        queue, = ports.start(bit(Feature.RING_INDIRECT_DESC))
        assert not ports.member.device.has(Feature.VERSION_1)
        assert not ports.member.device.has(Feature.ACCESS_PLATFORM)
        _ring(ports, queue)
        assert ports.memory.read(DATA_AT + 16, 513) == b"\x5a" * 512 + b"\0"
        assert not ports.member.device.violations
        assert ports.get("isr_status") == 1
        assert ports.get("isr_status") == 0


def test_registers_of_the_device_follow_and_move_as_msix_is_enabled() -> None:
    with closing(_host()) as host:
        ports = Ports(host, host.ready())
        sectors = (1 << 20) // 512
        assert ports.function.read_bar(0, 20, 8) == sectors.to_bytes(8, "little")
        table = ports.member.function
        at = table._msix_control
        ports.function.write_config(at, b"\x00\x80")
        assert ports.function.read_bar(0, 24, 8) == sectors.to_bytes(8, "little")
        ports.put("config_msix_vector", 1)
        assert ports.get("config_msix_vector") == 1
        assert ports.function.read_bar(0, 126, 4) == b"\xff" * 4


def test_a_queue_of_page_zero_is_taken_back() -> None:
    with closing(_host()) as host:
        ports = Ports(host, host.ready())
        ports.start(0)
        queues = ports.member.device.queues
        assert [queue.started for queue in queues] == [True]
        ports.put("queue_select", 0)
        ports.put("queue_address", 0)
        assert [queue.started for queue in queues] == [False]
        assert ports.get("queue_address") == 0


def test_features_that_are_not_offered_are_not_had() -> None:
    with closing(_host()) as host:
        ports = Ports(host, host.ready())
        ports.start(0xFFFFFFFF)
        assert ports.member.device.features == ports.get("device_features") == ports.get("driver_features")
        ports.put("device_status", DeviceStatus.FEATURES_OK)
        assert ports.get("device_status") == 0


def test_both_doorbells_reach_the_member() -> None:
    with closing(_host()) as host:
        client = host.ready()
        ports = Ports(host, client)
        queue, = ports.start(0)
        doorbells = client.legacy_doorbells(1)
        assert [flags for flags, _, _ in doorbells] == [NotifyFlags.MEMBER, NotifyFlags.OWNER]
        for flags, bar, offset in doorbells:
            _ring(ports, queue)
            queue.add([(DATA_AT, 16, 0), (DATA_AT + 16, 512, DESC_F_WRITE), (DATA_AT + 528, 1, DESC_F_WRITE)])
            ports.memory.write(DATA_AT + 528, b"\xff")
            (host.group.owner if flags is NotifyFlags.OWNER else ports.member).write_bar(bar, offset, bytes(2))
            assert ports.memory.read(DATA_AT + 528, 1) == b"\0"


def test_a_member_that_a_legacy_driver_has_is_moved() -> None:
    with closing(_host()) as host:
        client = host.ready()
        ports = Ports(host, client)
        queue, = ports.start(0)
        client.stop(1)
        client.stop(2)
        client.write_parts(2, client.read_parts(1))
        host.group.members[1].attach(ports.memory, lambda _vector: None, lambda _asserted: None, lambda *_: None)
        host.group.members[1].write_config(PCI_HEADER["command"].offset, bytes((Command.BUS_MASTER, 0)))
        client.resume(2)
        queue.add([(DATA_AT, 16, 0), (DATA_AT + 16, 512, DESC_F_WRITE), (DATA_AT + 528, 1, DESC_F_WRITE)])
        ports.memory.write(DATA_AT + 528, b"\xff")
        host.group.members[1].notified(0)
        assert ports.memory.read(DATA_AT + 528, 1) == b"\0"


def test_a_legacy_network_header_ends_before_the_number_of_buffers() -> None:
    class Peer(NetPeer):
        def transmit(self, frame: bytes, header: PacketHeader) -> None:
            sent.append(frame)

    sent: list[bytes] = []
    peer = Peer()
    group = SriovGroup(NetDevice(NetPeer()), [NetDevice(peer)], legacy=True)
    with closing(group):
        device = group.members[0].device
        memory = Memory()
        queue = Queue(memory, QUEUE_AT, 16)
        device.accept_features(bit(NetFeature.MAC))
        device.start_queue(1, memory, size=16, **queue.areas, interrupt=lambda: None)
        device.driver_ok()
        frame = bytes(range(60))
        memory.write(DATA_AT, bytes(10) + frame)
        queue.add([(DATA_AT, 70, 0)])
        device.notify(1)
        assert sent == [frame]
        received = Queue(memory, QUEUE_AT + 0x2000, 16)
        device.start_queue(0, memory, size=16, **received.areas, interrupt=lambda: None)
        received.add([(DATA_AT, 2048, DESC_F_WRITE)])
        peer.inject(b"\xff" * 6 + frame)
        used = received.take()
        assert used is not None
        assert used[2] == 10 + 66
        assert memory.read(DATA_AT + 10, 66) == b"\xff" * 6 + frame


def test_a_type_without_a_legacy_interface_has_none() -> None:
    with pytest.raises(ValueError, match="rng has no legacy interface"):
        SriovGroup(RngDevice(), [RngDevice()], legacy=True)
    with closing(Host()) as host, pytest.raises(CommandFailed, match="INVALID_OPCODE"):
        host.ready().legacy_doorbells(1)


@pytest.mark.parametrize(("offset", "size"), [(23, 2), (255, 1), (24, 1)])
def test_registers_that_are_not_there_are_refused(offset: int, size: int) -> None:
    with closing(_host()) as host:
        client = host.ready()
        for call in (lambda: client.read_legacy(1, offset, size), lambda: client.write_legacy(1, offset, bytes(size))):
            with pytest.raises(CommandFailed) as failed:
                call()
            assert (failed.value.status, failed.value.qualifier) == (Status.EINVAL, Qualifier.INVALID_FIELD)
        with pytest.raises(CommandFailed) as failed:
            client.read_legacy(3, 0, 4)
        assert failed.value.qualifier is Qualifier.INVALID_MEMBER


class _Answers(Hooks):
    """Puts another result in the place of an opcode's."""

    def __init__(self, opcode: Opcode, result: bytes) -> None:
        self._opcode = opcode
        self._result = result

    def response(self, queue: DeviceQueue, chain: Chain, honest: bytes) -> bytes:
        command = chain.read(0, HEADER.size)
        group = HEADER.get(command, "group_type")
        return bytes(STATUS.size) + self._result if (
            HEADER.get(command, "opcode") == self._opcode and group == Group.SRIOV) else honest


@pytest.mark.parametrize("missing", sorted(LEGACY_OPCODES))
def test_some_of_the_commands_are_none(missing: Opcode) -> None:
    listed = build_bits((LEGACY_OPCODES | {Opcode.LIST_QUERY, Opcode.LIST_USE}) - {missing})
    with closing(_host(_Answers(Opcode.LIST_QUERY, listed))) as host, pytest.raises(
            DeviceViolation, match="all, or not at all"):
        host.ready()


@pytest.mark.parametrize(("opcode", "result", "why"), [
    (Opcode.LEGACY_NOTIFY_INFO, b"\x03", "the owner's or the member's"),
    (Opcode.LEGACY_NOTIFY_INFO, b"\x01\x06", "six BARs"),
    (Opcode.LEGACY_COMMON_CFG_READ, b"\x01", "as many bytes"),
])
def test_an_answer_that_can_not_be_is_refused(opcode: Opcode, result: bytes, why: str) -> None:
    with closing(_host(_Answers(opcode, result))) as host:
        client = host.ready()
        ask = client.legacy_doorbells if opcode is Opcode.LEGACY_NOTIFY_INFO else partial(
            client.read_legacy, offset=0, size=4)
        with pytest.raises(DeviceViolation, match=why):
            ask(1)


@given(st.sampled_from(sorted(LEGACY_OPCODES)), st.binary(max_size=48), st.integers(0, 64))
@settings(deadline=None)
def test_any_bytes_give_an_answer_and_no_other_member_changes(opcode: Opcode, data: bytes, room: int) -> None:
    disk = MemoryDisk(bytearray(4096))
    group = SriovGroup(BlkDevice(disk), [BlkDevice(disk), BlkDevice(disk)], legacy=True)
    with closing(group):
        group.sriov._owner.config[group.sriov.at + 8] = 1
        group.sriov._owner.config[group.sriov.at + 16] = 2
        commands = AdminCommands(group, legacy=True)
        use = HEADER.pack(opcode=Opcode.LIST_USE, group_type=Group.SRIOV)
        commands.execute(bytes(use) + build_bits(LEGACY_OPCODES), 0)
        before = group.members[1].common.state()
        answer = commands.execute(bytes(HEADER.pack(opcode=opcode, group_type=Group.SRIOV, group_member_id=1)) + data,
                                  room)
        assert STATUS.get(answer, "status") in set(Status)
        assert len(answer) <= STATUS.size + max(room, 64)
        assert group.members[1].common.state() == before


def test_what_a_guest_has_locked_its_owner_reaches_by_no_command_and_no_doorbell(
        monkeypatch: pytest.MonkeyPatch) -> None:
    with closing(_host()) as host:
        client = host.ready()
        member = host.group.members[0]
        tdi = Tdi(member, shared=Memory(), private=Memory())
        before = client.read_parts(1)
        assert client.read_legacy(1, 0, 4)
        tdi.lock(LockInterface(LockFlag(0), 0, 0))
        tdi.run()
        calls: tuple[Callable[[], object], ...] = (
            lambda: client.read_legacy(1, 0, 4), lambda: client.write_legacy(1, 18, b"\0"),
            lambda: client.read_legacy(1, 0, 4, device=True), lambda: client.write_legacy(1, 0, b"\0", device=True),
            lambda: client.legacy_doorbells(1), lambda: client.read_parts(1),
            lambda: client.write_parts(1, before))
        for call in calls:
            with pytest.raises(CommandFailed) as failed:
                call()
            assert (failed.value.status, failed.value.qualifier) == (Status.EBUSY, Qualifier.TRYAGAIN)
        rung: list[int] = []
        monkeypatch.setattr(member, "notified", rung.append)
        host.group.owner.write_bar(host.group.owner.register_bar, DOORBELLS_AT, bytes(2))
        assert not rung
        client.stop(1)
        client.resume(1)
        assert client.read_legacy(2, 0, 4)
        tdi.unlock()
        assert client.read_legacy(1, 0, 4)
        host.group.owner.write_bar(host.group.owner.register_bar, DOORBELLS_AT, bytes(2))
        assert rung == [0]
