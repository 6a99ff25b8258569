"""The paths of a hypervisor: what is the TEE's goes over the stream, all else through its hands."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chamber.device.catalogue import make_device
from chamber.device.link_dma import LinkDma
from chamber.device.virtio_pci import VirtioPci
from chamber.host.foreign_queue import DATA_AT, ForeignQueue
from chamber.host.hooks import HostHooks
from chamber.host.hypervisor import Hypervisor, request_of
from chamber.host.ways import Memory, Owner, Window
from chamber.platform.ide import IdeStream
from chamber.platform.interrupts import InterruptController
from chamber.platform.memory import HOST_PAGES, GuestMemory, PrivateView, WithHostPages
from chamber.platform.pci_bus import MSI_ADDRESS
from chamber.platform.root_port import RootPort
from chamber.wire.blk import RequestType
from chamber.wire.errors import DmaFault
from chamber.wire.ide_km import INITIAL_IFV, SubStream
from chamber.wire.pci import HEADER
from chamber.wire.tlp import Completion, MemoryRead, MemoryWrite
from chamber.wire.virtio import DeviceType
from tests.device.driver import Memory as DriverMemory

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from chamber.host.ways import Way

BAR = 0x8000_0000


def keyed() -> tuple[IdeStream, IdeStream]:
    """Both ends of a stream."""
    near, far = IdeStream(3), IdeStream(3)
    for number in SubStream:
        for one, other in ((near, far), (far, near)):
            key = bytes((number,)) * 31 + bytes((one is near,))
            one.program(number, transmit=True, key_set=0, key=key, ifv=INITIAL_IFV)
            other.program(number, transmit=False, key_set=0, key=key, ifv=INITIAL_IFV)
            other.go(number, transmit=False, key_set=0)
            one.go(number, transmit=True, key_set=0)
    return near, far


class Below:
    """A host that notes what passes, and hands packets to the far end of a stream."""

    def __init__(self, far: IdeStream) -> None:
        self.far = far
        self.plain: list[tuple[str, int]] = []
        self.written: list[bytes] = []
        self.answer = b"\x5a"

    def read_config(self, slot: int, offset: int, size: int) -> bytes:
        self.plain.append(("config", offset))
        return bytes(size)

    def write_config(self, slot: int, offset: int, data: bytes) -> None:
        self.plain.append(("config written", offset))

    def read(self, address: int, size: int) -> bytes:
        self.plain.append(("read", address))
        return bytes(size)

    def write(self, address: int, data: bytes) -> None:
        self.plain.append(("written", address))

    def down(self, packet: bytes) -> list[bytes]:
        request = self.far.receive(packet).packet
        if isinstance(request, MemoryRead):
            answer = Completion(1, request.requester, request.tag, self.answer * request.length,
                                lower_address=request.address & 0x7F)
            return [self.far.send(answer, trusted=True)]
        assert isinstance(request, MemoryWrite)
        self.written.append(request.data)
        return []


@pytest.fixture
def memory() -> Iterator[GuestMemory]:
    made = GuestMemory(1 << 16, private=True)
    yield made
    made.close()


def port(memory: GuestMemory) -> tuple[RootPort, Below]:
    near, far = keyed()
    below = Below(far)
    return RootPort(below, near, private=PrivateView(memory), shared=memory.host,
                    interrupts=InterruptController()), below


def test_what_was_accepted_goes_over_the_stream_and_nothing_else(memory: GuestMemory) -> None:
    root, below = port(memory)
    root.accept(BAR, 4096)
    assert root.read(BAR + 16, 4) == b"\x5a" * 4
    root.write(BAR + 20, b"\1\2")
    assert below.written == [b"\1\2"]
    assert not below.plain
    root.read(BAR + 4094, 4)  # not all of it is accepted
    root.write(BAR - 4, bytes(4))
    root.read_config(0, 4, 2)
    assert below.plain == [("read", BAR + 4094), ("written", BAR - 4), ("config", 4)]
    root.release()
    root.read(BAR, 4)
    assert below.plain[-1] == ("read", BAR)


def test_an_answer_that_is_none_reads_as_ones_and_is_told(memory: GuestMemory) -> None:
    root, below = port(memory)
    root.accept(BAR, 4096)
    below.down = lambda packet: [b"\x92" + bytes(40)]  # type: ignore[method-assign]
    assert root.read(BAR, 4) == b"\xff" * 4
    assert root.lost
    root.write(BAR, bytes(4))
    assert len(root.lost) == 2


def test_requests_of_the_device_reach_what_their_t_bit_lets_them(memory: GuestMemory) -> None:
    root, below = port(memory)
    memory.write(0x1000, b"secret")
    assert root.up(below.far.send(MemoryWrite(1, 0x2000, b"trusted"), trusted=True)) is None
    assert memory.read(0x2000, 7) == b"trusted"
    root.up(below.far.send(MemoryWrite(1, 0x2000, b"whoever"), trusted=False))
    assert memory.read(0x2000, 7) == b"trusted"
    assert "private page" in root.lost[-1]
    answer = root.up(below.far.send(MemoryRead(1, 5, 0x1000, 6), trusted=True))
    assert answer is not None
    packet = below.far.receive(answer).packet
    assert isinstance(packet, Completion)
    assert packet.data == b"secret"


def test_a_message_is_an_interrupt(memory: GuestMemory) -> None:
    near, far = keyed()
    interrupts = InterruptController()
    heard: list[int] = []
    interrupts.attach(3, lambda: heard.append(3))
    root = RootPort(Below(far), near, private=PrivateView(memory), shared=memory.host, interrupts=interrupts)
    root.up(far.send(MemoryWrite(1, MSI_ADDRESS, (3).to_bytes(4, "little")), trusted=True))
    interrupts.deliver()
    assert heard == [3]


@given(st.binary(max_size=80))
def test_any_bytes_from_below_are_a_packet_or_the_end_of_the_stream(data: bytes) -> None:
    memory = GuestMemory(1 << 16, private=True)
    try:
        root, _ = port(memory)
        assert root.up(data) is None
        assert root.lost
    finally:
        memory.close()


@given(st.binary(max_size=40))
def test_any_header_shows_a_request_or_none(data: bytes) -> None:
    found = request_of(data)
    assert found is None or isinstance(found, MemoryRead | MemoryWrite)


def test_only_an_address_is_to_be_seen_of_an_encrypted_write() -> None:
    near, _ = keyed()
    packet = near.send(MemoryWrite(0, BAR + 0x14, b"\x0f"), trusted=True)
    request = request_of(packet)
    assert isinstance(request, MemoryWrite)
    assert request.address == BAR + 0x14
    assert request.data != b"\x0f"


# The device's end.


class Link:
    """A root port at the other end of a device's memory requests."""

    def __init__(self, memory: GuestMemory) -> None:
        self.root, self.below = port(memory)
        self.sent = 0
        self.dma = LinkDma(self._carry, requester=1)
        self.dma.stream = self.below.far

    def _carry(self, packet: bytes) -> list[bytes]:
        self.sent += 1
        answer = self.root.up(packet)
        return [] if answer is None else [answer]


def test_what_a_device_moves_travels_in_packets_that_cross_no_page(memory: GuestMemory) -> None:
    link = Link(memory)
    data = bytes(range(256)) * 40
    link.dma.write(0x1F00, data)
    assert memory.read(0x1F00, len(data)) == data
    assert link.sent == 4
    assert link.dma.read(0x1F00, len(data)) == data
    assert link.sent == 8


def test_a_view_is_fetched_before_work_and_stored_after_it(memory: GuestMemory) -> None:
    link = Link(memory)
    memory.write(0x3000, bytes(64))
    view = link.dma.view(0x3000, 64)
    memory.write(0x3000, b"new")
    assert bytes(view[:3]) == bytes(3)
    with link.dma.working():
        assert bytes(view[:3]) == b"new"
        view[10:12] = b"ab"
        view[40:44] = b"cdef"
        memory.write(0x3014, b"guest's")  # what the device has not changed stays as the guest has it
        assert memory.read(0x300A, 2) == bytes(2)
    assert memory.read(0x300A, 2) == b"ab"
    assert memory.read(0x3028, 4) == b"cdef"
    assert memory.read(0x3014, 7) == b"guest's"
    view.release()
    sent = link.sent
    with link.dma.working():
        pass
    assert link.sent == sent  # nobody has a view any more


def test_an_interrupt_comes_after_what_it_tells_of(memory: GuestMemory) -> None:
    link = Link(memory)
    view = link.dma.view(0x3000, 8)
    view[:2] = b"ok"
    link.dma.message(MSI_ADDRESS, 2)
    assert memory.read(0x3000, 2) == b"ok"


def test_a_link_that_is_down_is_a_fault(memory: GuestMemory) -> None:
    link = Link(memory)
    assert link.dma.stream is not None
    link.dma.stream.fail("the link was down")
    with pytest.raises(DmaFault, match="Insecure"):
        link.dma.read(0x1000, 4)
    with pytest.raises(DmaFault):
        link.dma.write(0x1000, b"x")
    link.dma.stream = None
    with pytest.raises(DmaFault, match="no stream"):
        link.dma.read(0x1000, 4)
    link.dma.message(MSI_ADDRESS, 1)  # nobody hears it


@given(st.integers(0, 1 << 16), st.integers(0, 1 << 12))
@settings(max_examples=40)
def test_host_pages_lie_beside_the_guests(address: int, length: int) -> None:
    memory = GuestMemory(1 << 16, private=True)
    try:
        pages = bytearray(1 << 16)
        both = WithHostPages(PrivateView(memory), pages)
        if address + length > 1 << 16:
            with pytest.raises(DmaFault):
                both.read(address, length)
            with pytest.raises(DmaFault):
                both.write(HOST_PAGES + address, bytes(length))
            return
        both.write(address, b"\1" * length)
        both.write(HOST_PAGES + address, b"\2" * length)
        assert both.read(address, length) == memory.read(address, length) == b"\1" * length
        assert bytes(pages[address:address + length]) == both.read(HOST_PAGES + address, length) == b"\2" * length
    finally:
        memory.close()


# Ways to a device that nobody has locked: they all lead there.


def unlocked() -> Hypervisor:
    virtio = VirtioPci(make_device(DeviceType.BLOCK))
    host = Hypervisor(virtio, InterruptController(), DriverMemory(), HostHooks())
    host.write_config(0, HEADER["bar0"].offset, BAR.to_bytes(4, "little"))
    host.write_config(0, HEADER["command"].offset, b"\6\0")
    return host


@pytest.mark.parametrize("way", [Memory, Window, Owner])
def test_a_foreign_queue_moves_sectors(way: Callable[[Hypervisor], Way]) -> None:
    host = unlocked()
    queue = ForeignQueue(host, way(host))
    host.memory[DATA_AT:DATA_AT + 512] = b"x" * 512
    first = queue.add(RequestType.OUT, 100, HOST_PAGES + DATA_AT, 512)
    second = queue.add(RequestType.IN, 100, HOST_PAGES + DATA_AT + 4096, 512)
    assert not queue.done(first)
    queue.notify()
    assert queue.done(first)
    assert queue.done(second)
    assert host.memory[DATA_AT + 4096:DATA_AT + 4096 + 512] == b"x" * 512


@pytest.mark.parametrize("way", [Memory, Window, Owner])
def test_what_a_driver_has_made_of_a_device_can_be_made_again(way: Callable[[Hypervisor], Way]) -> None:
    host = unlocked()
    first = ForeignQueue(host, Memory(host))
    chosen = way(host)
    before = host.virtio.common.state()
    saved = chosen.save()
    chosen.write("device_status", 0)
    assert not host.virtio.common.state().status
    chosen.restore(saved)
    after = host.virtio.common.state()
    assert (after.status, after.features, after.queues[0].desc) == (before.status, before.features,
                                                                   before.queues[0].desc)
    number = first.add(RequestType.IN, 0, HOST_PAGES + DATA_AT, 512)
    first.notify()
    assert first.done(number)


def test_a_hypervisor_notices_notifications_and_the_drivers_beginning() -> None:
    noticed: list[str] = []

    class Noting(HostHooks):
        def looked(self) -> None:
            noticed.append("looked")

        def started(self) -> None:
            noticed.append("started")

        def working(self, notifications: int) -> None:
            noticed.append(f"working {notifications}")

        def worked(self) -> None:
            noticed.append("worked")

    virtio = VirtioPci(make_device(DeviceType.BLOCK))
    host = Hypervisor(virtio, InterruptController(), DriverMemory(), Noting())
    host.read_config(0, 0, 4)
    host.read_config(0, 4, 4)
    host.write_config(0, HEADER["bar0"].offset, BAR.to_bytes(4, "little"))
    host.write_config(0, HEADER["command"].offset, b"\6\0")
    host.write(BAR + 20, b"\1")
    assert noticed == ["looked"]
    host.write(BAR + 28, b"\1\0")
    host.write(BAR + 20, b"\x0f")
    host.write(BAR + 0x3000, b"\0\0")
    assert noticed == ["looked", "started", "working 1", "worked"]
