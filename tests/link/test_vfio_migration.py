"""vfio-user: a function that is moved to another server, and the log of what it writes meanwhile."""

from __future__ import annotations

import contextlib
import errno
import struct
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chamber.device.blk import BlkDevice, pattern
from chamber.device.disk import MemoryDisk
from chamber.device.rng import RngDevice
from chamber.device.virtio_pci import REGISTER_BAR, VirtioPci
from chamber.link.vfio_client import ServerError, VfioClient
from chamber.wire.errors import WireError
from chamber.wire.function_state import FunctionState
from chamber.wire.vfio_user import Command as Cmd
from chamber.wire.vfio_user import DeviceFeature, DmaMap, FeatureIndex, LogRange, LogReport, MigrationData
from chamber.wire.vfio_user import MigrationState as State
from chamber.wire.virtio_pci import COMMON
from tests.device.driver import Queue
from tests.link.test_vfio_user import MEMORY, NOTIFY_AT, SIZE, File, Served, get, start

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

PAGE = 4096
REQUEST, DATA, STATUS = MEMORY + 2 * PAGE, MEMORY + 4 * PAGE, MEMORY + 6 * PAGE


@pytest.fixture
def file() -> Iterator[File]:
    with contextlib.closing(File()) as opened:
        yield opened


class Pair:
    """Two servers with functions that have one disk."""

    def __init__(self, folder: Path) -> None:
        disk = MemoryDisk(bytearray(1 << 20))
        disk.write(0, pattern(0) + pattern(1) + pattern(2))
        self.served = [Served(folder / name, VirtioPci(BlkDevice(disk))) for name in ("one", "other")]

    def close(self) -> None:
        for one in self.served:
            one.close()


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[Pair]:
    with contextlib.closing(Pair(tmp_path)) as both:
        yield both


def connected(served: Served, file: File) -> VfioClient:
    client = VfioClient(served.path, {"migration": {"pgsize": PAGE}})
    client.map(DmaMap(3, 0, MEMORY, SIZE), file.fd)
    return client


def read_sector(client: VfioClient, queue: Queue, file: File, sector: int) -> bytes:
    file.write(REQUEST, struct.pack("<IIQ", 0, 0, sector))
    queue.add([(REQUEST, 16, 0), (DATA, 512, 2), (STATUS, 1, 2)])
    client.write(REGISTER_BAR, NOTIFY_AT, bytes(2))
    assert queue.take() is not None
    return file.read(DATA, 512)


@pytest.mark.parametrize("piece", [64, 1 << 20])
def test_a_function_goes_on_at_another_server(pair: Pair, file: File, piece: int) -> None:
    queue = Queue(file, MEMORY, 8)  # type: ignore[arg-type]
    with connected(pair.served[0], file) as client:
        assert client.version.capabilities["migration"] == {"pgsize": PAGE, "max_bitmap_size": 1 << 19}
        start(client, queue)
        assert read_sector(client, queue, file, 0) == pattern(0)
        client.set_state(State.STOP)
        state = client.read_state(piece)
        assert client.feature(FeatureIndex.MIG_DEVICE_STATE, DeviceFeature.GET) == struct.pack("<Ii", State.STOP, -1)
    with connected(pair.served[1], file) as client:
        client.write_state(state, piece)
        client.set_state(State.RUNNING)
        assert get(client, "queue_desc") == MEMORY
        assert read_sector(client, queue, file, 1) == pattern(1)
        assert read_sector(client, queue, file, 2) == pattern(2)


def test_a_function_that_is_stopped_serves_what_came_meanwhile(pair: Pair, file: File) -> None:
    queue = Queue(file, MEMORY, 8)  # type: ignore[arg-type]
    with connected(pair.served[0], file) as client:
        start(client, queue)
        client.set_state(State.STOP_COPY)
        file.write(REQUEST, struct.pack("<IIQ", 0, 0, 1))
        queue.add([(REQUEST, 16, 0), (DATA, 512, 2), (STATUS, 1, 2)])
        client.write(REGISTER_BAR, NOTIFY_AT, bytes(2))
        assert get(client, "queue_enable") == 1
        assert queue.take() is None
        client.set_state(State.RUNNING)
        assert get(client, "queue_enable") == 1
        assert queue.take() is not None
        assert file.read(DATA, 512) == pattern(1)


def test_pages_that_were_written_are_told_once_and_rings_always(pair: Pair, file: File) -> None:
    queue = Queue(file, MEMORY, 8)  # type: ignore[arg-type]
    rings = {MEMORY}
    with connected(pair.served[0], file) as client:
        start(client, queue)
        client.watch(PAGE, [LogRange(MEMORY, SIZE)])
        assert client.written(MEMORY, SIZE, PAGE) == rings
        read_sector(client, queue, file, 0)
        assert client.written(MEMORY, 5 * PAGE, PAGE) == rings | {DATA}
        assert client.written(MEMORY, SIZE, PAGE) == rings | {STATUS}
        assert client.written(MEMORY, SIZE, PAGE) == rings
        read_sector(client, queue, file, 0)
        assert client.written(MEMORY, SIZE, 4 * PAGE) == {MEMORY, MEMORY + 4 * PAGE}
        client.unwatch()
        client.watch(PAGE, [LogRange(DATA, PAGE)])
        read_sector(client, queue, file, 0)
        assert client.written(MEMORY, SIZE, PAGE) == {DATA}


def _number(call: Callable[[], object]) -> int:
    with pytest.raises(ServerError) as info:
        call()
    return info.value.number


def test_what_can_not_be_is_an_error_and_no_more(pair: Pair, file: File) -> None:
    get_, set_, probe = DeviceFeature.GET, DeviceFeature.SET, DeviceFeature.PROBE
    with connected(pair.served[0], file) as client:
        assert client.feature(FeatureIndex.MIGRATION, get_) == (1).to_bytes(8, "little")
        client.feature(FeatureIndex.MIG_DEVICE_STATE, probe | set_)
        assert _number(lambda: client.feature(FeatureIndex.MIGRATION, probe | set_)) == errno.ENOTTY
        assert _number(lambda: client.feature(FeatureIndex.DMA_LOGGING_STOP, get_)) == errno.ENOTTY
        assert _number(lambda: client.feature(FeatureIndex.MIGRATION, get_, room=8)) == errno.ENOSPC
        assert _number(lambda: client.feature(FeatureIndex.MIG_DEVICE_STATE, set_)) == errno.EINVAL
        for state in (State.ERROR, State.PRE_COPY, State.RUNNING_P2P, 77):
            assert _number(lambda state=state: client.set_state(state)) == errno.EINVAL  # type: ignore[misc]
        assert _number(lambda: client.ask(Cmd.MIG_DATA_READ, MigrationData(8), MigrationData)) == errno.EINVAL
        assert _number(lambda: client.ask(Cmd.MIG_DATA_WRITE, MigrationData(1, b"x"), MigrationData)) == errno.EINVAL
        assert _number(client.unwatch) == errno.EINVAL
        report = LogReport(MEMORY, SIZE, PAGE).pack()
        assert _number(lambda: client.feature(FeatureIndex.DMA_LOGGING_REPORT, get_, report, 99)) == errno.EINVAL
        client.watch(PAGE, [])
        assert _number(lambda: client.watch(PAGE, [])) == errno.EINVAL
        assert _number(lambda: client.feature(FeatureIndex.DMA_LOGGING_REPORT, get_, report, 40)) == errno.ENOSPC
        assert client.written(MEMORY, SIZE, PAGE) == set()


@pytest.mark.parametrize("change", [
    lambda _state: b"nothing", lambda state: state[:-1], lambda state: state + b"\0",
    lambda state: state[:6] + b"\x01" + state[7:],
    lambda _state: _state_of(VirtioPci(RngDevice()))])
def test_a_state_that_is_none_leaves_an_error_until_a_reset(pair: Pair, file: File,
                                                           change: Callable[[bytes], bytes]) -> None:
    queue = Queue(file, MEMORY, 8)  # type: ignore[arg-type]
    with connected(pair.served[0], file) as client:
        state = client.read_state()
        assert _number(lambda: client.write_state(change(state))) == errno.EINVAL
        assert client.feature(FeatureIndex.MIG_DEVICE_STATE, DeviceFeature.GET)[0] == State.ERROR
        assert _number(lambda: client.set_state(State.RUNNING)) == errno.EINVAL
        client.reset()
        start(client, queue)
        assert read_sector(client, queue, file, 2) == pattern(2)


def _state_of(function: VirtioPci) -> bytes:
    function.halt()
    return function.save()


def test_a_client_that_leaves_a_function_stopped_leaves_the_next_one_a_running_one(pair: Pair, file: File) -> None:
    with connected(pair.served[0], file) as client:
        client.watch(PAGE, [LogRange(MEMORY, SIZE)])
        client.set_state(State.RESUMING)
    queue = Queue(file, MEMORY, 8)  # type: ignore[arg-type]
    with connected(pair.served[0], file) as client:
        start(client, queue)
        assert read_sector(client, queue, file, 0) == pattern(0)
        assert get(client, "device_status")


def test_configuration_space_and_the_message_table_go_along() -> None:
    one, other = VirtioPci(RngDevice()), VirtioPci(RngDevice())
    one.write_config(4, b"\x06\x00")
    one.write_config(0x10, b"\x00\x00\x00\x80")
    one.write_bar(1, 0, bytes(range(16)))
    one.write_bar(REGISTER_BAR, COMMON["config_msix_vector"].offset, b"\x01\x00")
    one.halt()
    other.halt()
    other.load(one.save())
    assert other.function.config == one.function.config
    assert other.read_bar(1, 0, 16) == bytes(range(16))
    assert other.read_bar(REGISTER_BAR, 0, COMMON.size) == one.read_bar(REGISTER_BAR, 0, COMMON.size)
    other.resume()
    with pytest.raises(WireError, match="stopped"):
        other.load(one.save())


@given(st.binary(max_size=200) | st.binary(max_size=60).map(
    lambda tail: FunctionState(2, bytes(4096), b"", ()).build()[:20 + 4096] + tail))
@settings(max_examples=200, deadline=None)
def test_any_bytes_are_a_state_or_are_not(data: bytes) -> None:
    try:
        state = FunctionState.parse(data)
    except WireError:
        return
    assert FunctionState.parse(state.build()) == state
