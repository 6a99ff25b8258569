"""vfio-user: a function served to a client over a real socket, and clients that break the rules."""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
import select
import socket
import struct
import threading
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from chamber.device.blk import pattern
from chamber.device.catalogue import make_device
from chamber.device.pmem import FileMedium, PmemDevice
from chamber.device.rng import RngDevice
from chamber.device.virtio_pci import REGISTER_BAR, SHARED_MEMORY_BAR, VirtioPci
from chamber.link.channel import Gone
from chamber.link.eventloop import EventLoop
from chamber.link.listener import VfioServer, serve_function
from chamber.link.vfio_client import ServerError, VfioClient
from chamber.link.vfio_user import VfioStream
from chamber.wire.errors import WireError
from chamber.wire.pci import HEADER, CapabilityId, Command, MsixControl
from chamber.wire.vfio_user import (
    HEADER_SIZE,
    NO_REPLY,
    REPLY,
    Access,
    DmaMap,
    DmaTransfer,
    DmaUnmap,
    Empty,
    Header,
    IrqIndex,
    IrqSet,
    IrqSetFlag,
    RegionAccess,
    RegionFlag,
    RegionInfo,
    RegionIoFds,
    SubRegion,
    Version,
    WriteMulti,
    encode,
)
from chamber.wire.vfio_user import Command as Cmd
from chamber.wire.virtio import DeviceType, Feature, Status
from chamber.wire.virtio_pci import COMMON
from tests.device.driver import Queue

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

CONFIG = 7
MEMORY = 0x100000
SIZE = 1 << 20
NOTIFY_AT = 3 * 4096
EVENTFD = IrqSetFlag.DATA_EVENTFD | IrqSetFlag.TRIGGER


class Served:
    """A function behind a socket, in a thread of its own."""

    def __init__(self, path: Path, function: VirtioPci) -> None:
        self.path = path
        self.function = function
        self._over = False
        ready = threading.Event()
        self._thread = threading.Thread(target=lambda: serve_function(
            function, path, stop=lambda: self._over, ready=ready.set))
        self._thread.start()
        assert ready.wait(10)

    def close(self) -> None:
        self._over = True
        self._thread.join(10)
        assert not self._thread.is_alive()
        assert not self.path.exists()


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    function = VirtioPci(RngDevice(source=lambda count: b"\xa5" * count))
    with contextlib.closing(Served(tmp_path / "s", function)) as running:
        yield running


class File:
    """Memory in a file, as a driver sees it (`tests.device.driver.Memory`)."""

    def __init__(self) -> None:
        self.fd = os.memfd_create("memory")
        os.truncate(self.fd, SIZE)
        self.map = mmap.mmap(self.fd, SIZE)

    def read(self, address: int, length: int) -> bytes:
        return self.map[address - MEMORY:address - MEMORY + length]

    def write(self, address: int, data: bytes) -> None:
        self.map[address - MEMORY:address - MEMORY + len(data)] = data

    def close(self) -> None:
        self.map.close()
        os.close(self.fd)


@pytest.fixture
def file() -> Iterator[File]:
    with contextlib.closing(File()) as opened:
        yield opened


def put(client: VfioClient, name: str, value: int) -> None:
    field = COMMON[name]
    client.write(REGISTER_BAR, field.offset, value.to_bytes(field.size, "little"))


def get(client: VfioClient, name: str) -> int:
    field = COMMON[name]
    return int.from_bytes(client.read(REGISTER_BAR, field.offset, field.size), "little")


def start(client: VfioClient, queue: Queue) -> None:
    client.write(CONFIG, HEADER["command"].offset, bytes((Command.MEMORY | Command.BUS_MASTER, 0)))
    put(client, "driver_feature_select", 1)
    put(client, "driver_feature", 1 << Feature.VERSION_1 - 32)
    put(client, "device_status", Status.FEATURES_OK)
    put(client, "queue_size", queue.size)
    for name, address in zip(("queue_desc", "queue_driver", "queue_device"), queue.areas.values(), strict=True):
        put(client, name, address)
    put(client, "queue_msix_vector", 1)
    put(client, "queue_enable", 1)
    put(client, "device_status", Status.FEATURES_OK | Status.DRIVER_OK)


def enable_msix(client: VfioClient) -> None:
    config = client.read(CONFIG, 0, 256)
    at = config[HEADER["capabilities"].offset]
    while config[at] != CapabilityId.MSIX:
        at = config[at + 1]
    client.write(CONFIG, at + 2, MsixControl.ENABLE.to_bytes(2, "little"))


def test_a_function_tells_what_it_has(served: Served) -> None:
    with VfioClient(served.path) as client:
        assert (client.info().regions, client.info().irqs) == (9, 5)
        assert client.region(REGISTER_BAR).size == 4 * 4096
        assert client.region(CONFIG).size == 4096
        assert client.region(CONFIG).flags == RegionFlag.READ | RegionFlag.WRITE
        assert client.region(4).size == 0
        assert client.irqs(IrqIndex.MSIX).count == 2
        assert client.irqs(IrqIndex.INTX).count == 1
        assert client.irqs(IrqIndex.MSI).count == 0
        assert client.read(CONFIG, 0, 4) == bytes.fromhex("f41a4410")
        assert client.version.capabilities == {"max_msg_fds": 16, "max_data_xfer_size": 1 << 20}


@contextlib.contextmanager
def interrupted(served: Served, file: File) -> Iterator[tuple[VfioClient, Queue, int]]:
    """A client with a queue that is started, and the eventfd that its vector is."""
    event = os.eventfd(0, os.EFD_NONBLOCK)
    try:
        with VfioClient(served.path) as client:
            client.map(DmaMap(3, 0, MEMORY, SIZE), file.fd)
            client.set_irqs(IrqSet(EVENTFD, IrqIndex.MSIX, 1, 1), (event,))
            enable_msix(client)
            queue = Queue(file, MEMORY, 8)  # type: ignore[arg-type]
            start(client, queue)
            yield client, queue, event
    finally:
        os.close(event)


def test_a_queue_in_mapped_memory_works_and_a_vector_is_an_eventfd(served: Served, file: File) -> None:
    with interrupted(served, file) as (client, queue, event):
        queue.add([(MEMORY + 8192, 64, 2)])
        client.send(Cmd.REGION_WRITE, RegionAccess(NOTIFY_AT, REGISTER_BAR, 2, bytes(2)).pack(), flags=NO_REPLY)
        assert get(client, "queue_enable") == 1  # what was posted is done by then
        assert queue.take() is not None
        assert file.read(MEMORY + 8192, 64) == b"\xa5" * 64
        assert os.eventfd_read(event) == 1
        client.set_irqs(IrqSet(IrqSetFlag.DATA_NONE | IrqSetFlag.TRIGGER, IrqIndex.MSIX, 1, 1))
        assert os.eventfd_read(event) == 1
        client.set_irqs(IrqSet(IrqSetFlag.DATA_NONE | IrqSetFlag.TRIGGER, IrqIndex.MSIX, 0, 0))
        client.set_irqs(IrqSet(IrqSetFlag.DATA_NONE | IrqSetFlag.TRIGGER, IrqIndex.MSIX, 1, 1))
        with pytest.raises(BlockingIOError):
            os.eventfd_read(event)


def test_a_doorbell_is_an_eventfd(served: Served, file: File) -> None:
    with interrupted(served, file) as (client, queue, event):
        assert client.ring(REGISTER_BAR) == {(NOTIFY_AT, 2)}
        assert client.ring(REGISTER_BAR) == {(NOTIFY_AT, 2)}, "asked again, it is the same"
        assert client.ring(CONFIG) == client.ring(1) == client.ring(8) == set()
        before = client.asked
        for turn in range(3):
            queue.add([(MEMORY + 8192, 64, 2)])
            client.write(REGISTER_BAR, NOTIFY_AT, bytes(2))
            assert select.select([event], [], [], 10)[0]
            assert os.eventfd_read(event) == 1
            assert queue.take() is not None
            assert file.read(MEMORY + 8192, 64) == b"\xa5" * 64, turn
            file.write(MEMORY + 8192, bytes(64))
        assert client.asked == before
        client.write(REGISTER_BAR, NOTIFY_AT, bytes(4))
        assert client.asked == before + 1, "what is written with four bytes says something"


def test_doorbells_are_not_more_than_there_is_room_for(tmp_path: Path) -> None:
    function = VirtioPci(make_device(DeviceType.NET))
    queues = function.device.queue_count
    with contextlib.closing(Served(tmp_path / "s", function)) as served:
        with VfioClient(served.path, {"max_msg_fds": 2}) as client:
            assert client.ring(REGISTER_BAR) == {(NOTIFY_AT, 2), (NOTIFY_AT + 4, 2)}
            none = client.ask(Cmd.DEVICE_GET_REGION_IO_FDS, RegionIoFds(REGISTER_BAR), RegionIoFds)
            assert none == RegionIoFds(REGISTER_BAR, (), 16 + 2 * 40), "says what there must be room for"
        with VfioClient(served.path) as client:
            assert len(client.ring(REGISTER_BAR)) == queues


@pytest.mark.parametrize(("piece", "fds", "rung"), [
    (SubRegion(0, 2, 1), 1, None), (SubRegion(0, 2, 0), 0, None), (SubRegion(4095, 2, 0), 1, None),
    (SubRegion((1 << 64) - 1, 2, 0), 1, None), (SubRegion(0, 2, 0, kind=1), 1, set()),
    (SubRegion(0, 2, 0, flags=1, datamatch=7), 1, set()), (SubRegion(0, 0, 0), 1, set()),
    (SubRegion(4094, 2, 0), 1, {(4094, 2)})])
def test_a_server_gives_pieces_of_a_region_that_are_in_it(tmp_path: Path, piece: SubRegion, fds: int,
                                                          rung: set[tuple[int, int]] | None) -> None:
    event = os.eventfd(0)

    def serve() -> None:
        with contextlib.closing(VfioStream(listener.accept()[0])) as stream:
            for answer, given in ((Version(0, 0, {}), ()), (RegionInfo(0, RegionFlag.READ, 4096), ()),
                                  (RegionIoFds(0, (piece,)), (event,) * fds)):
                header = stream.wait(10).header
                stream.send_frame(encode(header.message_id, header.command, answer.pack(), REPLY), given)
            with contextlib.suppress(Gone):
                stream.wait(10)

    before = len(os.listdir("/proc/self/fd"))
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(tmp_path / "s"))
        listener.listen()
        server = threading.Thread(target=serve)
        server.start()
        try:
            with VfioClient(tmp_path / "s") as client:
                if rung is None:
                    with pytest.raises(WireError, match="in it, and comes with its descriptor"):
                        client.ring(0)
                else:
                    assert client.ring(0) == rung
        finally:
            server.join(10)
    assert len(os.listdir("/proc/self/fd")) == before
    os.close(event)


def test_buffers_without_a_descriptor_are_reached_by_messages(tmp_path: Path, file: File) -> None:
    function = VirtioPci(make_device(DeviceType.BLOCK))
    with contextlib.closing(Served(tmp_path / "s", function)) as served, VfioClient(served.path) as client:
        client.map(DmaMap(3, 0, MEMORY, SIZE), file.fd)
        far = 1 << 40
        client.memory[far] = bytearray(8192)
        client.map(DmaMap(3, 0, far, 8192))
        client.memory[far][:16] = struct.pack("<IIQ", 0, 0, 5)
        queue = Queue(file, MEMORY, 8)  # type: ignore[arg-type]
        start(client, queue)
        queue.add([(far, 16, 0), (far + 4096, 512, 2), (MEMORY + 8192, 1, 2)])
        client.write(REGISTER_BAR, NOTIFY_AT, bytes(2))
        used = queue.take()
        assert used is not None
        assert bytes(client.memory[far][4096:4608]) == pattern(5)
        client.unmap(DmaUnmap(0, far, 8192))
        queue.add([(far, 16, 0), (far + 4096, 512, 2), (MEMORY + 8192, 1, 2)])
        client.write(REGISTER_BAR, NOTIFY_AT, bytes(2))
        assert queue.take() is None, "what was taken away is not reached"


def test_a_transfer_goes_over_ranges_that_lie_side_by_side(tmp_path: Path, file: File) -> None:
    function = VirtioPci(make_device(DeviceType.BLOCK))
    with contextlib.closing(Served(tmp_path / "s", function)) as served, VfioClient(served.path) as client:
        for at in (0, 16384, 32768):
            client.map(DmaMap(3, at, MEMORY + at, 16384), file.fd)
        queue = Queue(file, MEMORY, 8)  # type: ignore[arg-type]
        start(client, queue)
        file.write(MEMORY + 8192, struct.pack("<IIQ", 0, 0, 0))
        queue.add([(MEMORY + 8192, 16, 0), (MEMORY + 16384 - 512, 1024, 2), (MEMORY + 40000, 1, 2)])
        client.write(REGISTER_BAR, NOTIFY_AT, bytes(2))
        assert queue.take() is not None
        assert file.read(MEMORY + 16384 - 512, 1024) == pattern(0) + pattern(1)


def test_a_reset_and_several_writes_at_once(served: Served) -> None:
    with VfioClient(served.path) as client:
        client.write(CONFIG, HEADER["command"].offset, bytes((Command.MEMORY, 0)))
        writes = WriteMulti((Access(COMMON["device_status"].offset, REGISTER_BAR, b"\3"),
                             Access(COMMON["queue_select"].offset, REGISTER_BAR, b"\0\0")))
        client.ask(Cmd.REGION_WRITE_MULTI, writes, WriteMulti)
        assert get(client, "device_status") == 3
        client.reset()
        client.write(CONFIG, HEADER["command"].offset, bytes((Command.MEMORY, 0)))
        assert get(client, "device_status") == 0


@pytest.mark.parametrize(("command", "payload", "number"), [
    (Cmd.REGION_READ, RegionAccess(4094, CONFIG, 4), errno.EINVAL),
    (Cmd.REGION_READ, RegionAccess(0, 4, 4), errno.EINVAL), (Cmd.REGION_READ, RegionAccess(0, 99, 4), errno.EINVAL),
    (Cmd.REGION_READ, RegionAccess((1 << 64) - 1, 0, 4), errno.EINVAL),
    (Cmd.REGION_WRITE, RegionAccess(0, 0, 4), errno.EINVAL), (Cmd.DMA_UNMAP, DmaUnmap(0, 4096, 4096), errno.ENOENT),
    (Cmd.DEVICE_SET_IRQS, IrqSet(EVENTFD, 2, 1, 9), errno.EINVAL),
    (Cmd.DEVICE_SET_IRQS, IrqSet(EVENTFD, 9, 0, 0), errno.EINVAL),
    (Cmd.MIG_DATA_READ, DmaTransfer(8, 0), errno.EINVAL), (Cmd.DMA_READ, DmaTransfer(0, 1), errno.EOPNOTSUPP)])
def test_what_cannot_be_done_is_an_error_and_the_session_goes_on(served: Served, command: Cmd, payload: RegionAccess,
                                                                 number: int) -> None:
    with VfioClient(served.path) as client:
        with pytest.raises(ServerError) as refused:
            client.ask(command, payload, Empty)
        assert refused.value.number == number
        assert client.read(CONFIG, 0, 2) == b"\xf4\x1a"


def test_ranges_that_overlap_or_have_no_file_behind_them_are_refused(served: Served, file: File) -> None:
    with VfioClient(served.path) as client:
        client.map(DmaMap(3, 0, MEMORY, 8192), file.fd)
        for wanted, number in ((DmaMap(3, 0, MEMORY + 4096, 8192), errno.EEXIST),
                               (DmaMap(3, SIZE, 0, 4096), errno.EFAULT), (DmaMap(3, 1 << 62, 0, 4096), errno.EFAULT)):
            with pytest.raises(ServerError) as refused:
                client.map(wanted, file.fd)
            assert refused.value.number == number
        client.unmap(DmaUnmap(DmaUnmap.ALL, 0, 0))
        client.map(DmaMap(3, 0, MEMORY + 4096, 8192), file.fd)


def test_one_client_at_a_time_and_nothing_is_left_for_the_next(served: Served, file: File) -> None:
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        with VfioClient(served.path) as client:
            client.map(DmaMap(3, 0, MEMORY, SIZE), file.fd)
            client.write(CONFIG, HEADER["command"].offset, bytes((Command.MEMORY, 0)))
            put(client, "device_status", 1)
            with pytest.raises((Gone, OSError)):
                VfioClient(served.path)
    with VfioClient(served.path) as client:
        client.write(CONFIG, HEADER["command"].offset, bytes((Command.MEMORY, 0)))
        assert get(client, "device_status") == 0
    assert len(os.listdir("/proc/self/fd")) <= before + 1


@given(st.lists(st.tuples(st.integers(0, 20), st.binary(max_size=60), st.integers(0, 0x3F)), max_size=12))
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_messages_end_in_answers_or_the_end(tmp_path: Path, messages: list[tuple[int, bytes, int]]) -> None:
    function = VirtioPci(RngDevice())
    with EventLoop() as loop, contextlib.closing(VfioServer(tmp_path / "s", function, loop)) as server, \
            socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as peer:
        peer.connect(str(tmp_path / "s"))
        loop.turn(1)
        peer.sendall(encode(1, Cmd.VERSION, b"\0\0\0\0"))
        for number, (command, body, flags) in enumerate(messages, 2):
            with contextlib.suppress(OSError):
                peer.sendall(encode(number, command, body, flags))
        for _ in range(30):
            loop.turn(0.0)
        assert server.session is None or not server.session.closed
        peer.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            answer = peer.recv(1 << 16)
            while len(answer) >= HEADER_SIZE:
                header = Header.unpack(answer[:HEADER_SIZE])
                assert header.flags & 0xF == REPLY
                answer = answer[HEADER_SIZE + header.size:]


@pytest.mark.parametrize("pages", [16, 17])
def test_memory_of_a_devices_own_is_mapped(tmp_path: Path, pages: int) -> None:
    path = tmp_path / "medium"
    path.write_bytes(bytes(pages * 4096))
    function = VirtioPci(PmemDevice(FileMedium(path)))
    with contextlib.closing(Served(tmp_path / "s", function)) as served, VfioClient(served.path) as client:
        client.write(CONFIG, HEADER["command"].offset, bytes((Command.MEMORY, 0)))
        info = client.region(SHARED_MEMORY_BAR)
        assert info.flags & RegionFlag.MMAP
        assert info.areas == (() if pages == 16 else ((0, pages * 4096),))
        with contextlib.closing(client.map_region(SHARED_MEMORY_BAR)) as mapped:
            assert len(mapped) == pages * 4096
            mapped[4096:4101] = b"hello"
            assert client.read(SHARED_MEMORY_BAR, 4096, 5) == b"hello"
            client.write(SHARED_MEMORY_BAR, 8192, b"back")
            assert mapped[8192:8196] == b"back"
        assert not client.region(REGISTER_BAR).flags & RegionFlag.MMAP
        with pytest.raises(WireError, match="comes with its file"):
            client.map_region(REGISTER_BAR)
    assert path.read_bytes()[4096:4101] == b"hello"
