from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from chamber.device.blk import PATTERN_KEY, BlkDevice, pattern, pattern_disk
from chamber.device.disk import FileDisk, MemoryDisk
from chamber.device.hooks import Hooks
from chamber.wire.blk import CONFIG, REQUEST, SEGMENT, BlkFeature, BlkStatus, RequestType
from chamber.wire.virtio import bit
from tests.device.driver import Driver

if TYPE_CHECKING:
    from pathlib import Path

    from chamber.device.chain import Chain
    from chamber.device.queue import DeviceQueue

OK = bytes((BlkStatus.OK,))
IOERR = bytes((BlkStatus.IOERR,))
UNSUPP = bytes((BlkStatus.UNSUPP,))


def header(kind: int, sector: int = 0) -> bytes:
    return bytes(REQUEST.pack(type=kind, sector=sector))


def segment(sector: int, count: int, flags: int = 0) -> bytes:
    return bytes(SEGMENT.pack(sector=sector, num_sectors=count, flags=flags))


@pytest.fixture
def disk() -> MemoryDisk:
    return MemoryDisk(pattern_disk(64 * 512))


@pytest.fixture
def driver(disk: MemoryDisk) -> Driver:
    return Driver(BlkDevice(disk))


def test_pattern_follows_its_formula() -> None:
    assert pattern(5) == (5 ^ PATTERN_KEY).to_bytes(8, "little") * 64
    assert pattern_disk(1024) == pattern(0) + pattern(1)


@pytest.mark.parametrize("cut", [[1024, 1], [1025], [1, 1023, 1], [512, 513], [1000, 24, 1]])
def test_read_gives_data_and_status_however_buffers_are_cut(driver: Driver, cut: list[int]) -> None:
    assert driver.request(0, [header(RequestType.IN, 3)], cut) == pattern(3) + pattern(4) + OK


@pytest.mark.parametrize("cut", [0, 1, 15, 16, 17, 500])
def test_write_stores_data_however_buffers_are_cut(driver: Driver, disk: MemoryDisk, cut: int) -> None:
    request = header(RequestType.OUT, 7) + b"w" * 512
    assert driver.request(0, [part for part in (request[:cut], request[cut:]) if part], [1]) == OK
    assert disk.data[7 * 512:8 * 512] == b"w" * 512
    assert disk.data[8 * 512:9 * 512] == pattern(8)


@pytest.mark.parametrize(("sector", "length"), [(64, 512), (63, 1024), (1 << 63, 512), (0, 100), (0, 65 * 512)])
def test_read_beyond_the_disk_fails_and_leaks_nothing(driver: Driver, sector: int, length: int) -> None:
    assert driver.request(0, [header(RequestType.IN, sector)], [length, 1]) == bytes(length) + IOERR
    assert driver.device.violations


def test_write_beyond_the_disk_fails(driver: Driver, disk: MemoryDisk) -> None:
    assert driver.request(0, [header(RequestType.OUT, 63), bytes(1024)], [1]) == IOERR
    assert disk.data == pattern_disk(64 * 512)


def test_get_id_is_twenty_bytes() -> None:
    driver = Driver(BlkDevice(serial=b"disk one"))
    assert driver.request(0, [header(RequestType.GET_ID)], [20, 1]) == b"disk one".ljust(20, b"\0") + OK


def test_discard_and_write_zeroes_clear_ranges(driver: Driver, disk: MemoryDisk) -> None:
    assert driver.request(0, [header(RequestType.DISCARD), segment(2, 1) + segment(4, 2)], [1]) == OK
    assert driver.request(0, [header(RequestType.WRITE_ZEROES), segment(8, 1, 1)], [1]) == OK
    gone = {2, 4, 5, 8}
    for sector in range(64):
        assert disk.data[sector * 512:sector * 512 + 512] == (bytes(512) if sector in gone else pattern(sector))


@pytest.mark.parametrize(("kind", "data", "status"), [
    (RequestType.DISCARD, segment(0, 1, 1), UNSUPP),
    (RequestType.DISCARD, segment(0, 1) + segment(64, 1), IOERR),
    (RequestType.WRITE_ZEROES, segment(0, 1, 2), UNSUPP),
    (RequestType.WRITE_ZEROES, segment(0, 0xFFFFFFFF), IOERR),
    (RequestType.WRITE_ZEROES, b"short", IOERR),
    (RequestType.WRITE_ZEROES, b"", IOERR),
    (RequestType.SECURE_ERASE, segment(0, 1), UNSUPP),
    (99, b"", UNSUPP),
])
def test_bad_requests_change_nothing(driver: Driver, disk: MemoryDisk, kind: int, data: bytes, status: bytes) -> None:
    assert driver.request(0, [header(kind), *([data] if data else [])], [1]) == status
    assert disk.data == pattern_disk(64 * 512)


def test_what_was_not_negotiated_is_unsupported(disk: MemoryDisk) -> None:
    driver = Driver(BlkDevice(disk), features=bit(32))
    for kind in (RequestType.FLUSH, RequestType.DISCARD, RequestType.WRITE_ZEROES):
        assert driver.request(0, [header(kind), segment(0, 1)], [1]) == UNSUPP


def test_read_only_disk_refuses_writes() -> None:
    device = BlkDevice(MemoryDisk(pattern_disk(4096), read_only=True))
    assert device.offered_features() >> BlkFeature.RO & 1
    driver = Driver(device)
    assert driver.request(0, [header(RequestType.OUT), bytes(512)], [1]) == IOERR
    assert driver.request(0, [header(RequestType.WRITE_ZEROES), segment(0, 1)], [1]) == IOERR
    assert driver.request(0, [header(RequestType.IN, 1)], [512, 1]) == pattern(1) + OK


class _Flushes(MemoryDisk):
    count = 0

    def flush(self) -> None:
        self.count += 1


def test_cache_mode_decides_when_writes_are_flushed() -> None:
    disk = _Flushes(bytearray(4096))
    device = BlkDevice(disk)
    driver = Driver(device)
    at = CONFIG["writeback"].offset
    assert device.read_config(at, 1) == b"\1"
    driver.request(0, [header(RequestType.OUT), bytes(512)], [1])
    assert disk.count == 0
    driver.request(0, [header(RequestType.FLUSH)], [1])
    assert disk.count == 1
    device.write_config(at, b"\0")
    assert (device.read_config(at, 1), disk.count) == (b"\0", 2)
    driver.request(0, [header(RequestType.OUT), bytes(512)], [1])
    assert disk.count == 3
    device.write_config(at, b"\2")
    device.write_config(0, b"\xff" * 8)
    assert device.read_config(at, 1) == b"\0"
    assert device.read_config(0, 8) == (8).to_bytes(8, "little")
    device.accept_features(bit(BlkFeature.FLUSH, BlkFeature.CONFIG_WCE))
    assert device.read_config(at, 1) == b"\1"
    device.accept_features(bit(BlkFeature.CONFIG_WCE))
    assert device.read_config(at, 1) == b"\0"


def test_raw_file(tmp_path: Path) -> None:
    path = tmp_path / "disk"
    path.write_bytes(pattern_disk(64 * 512))
    device = BlkDevice(FileDisk(path))
    driver = Driver(device)
    assert driver.request(0, [header(RequestType.IN, 9)], [512, 1]) == pattern(9) + OK
    assert driver.request(0, [header(RequestType.OUT, 1), b"f" * 512], [1]) == OK
    assert driver.request(0, [header(RequestType.FLUSH)], [1]) == OK
    assert driver.request(0, [header(RequestType.DISCARD), segment(8, 8)], [1]) == OK
    assert driver.request(0, [header(RequestType.WRITE_ZEROES), segment(20, 2)], [1]) == OK
    os.truncate(path, 512)
    assert driver.request(0, [header(RequestType.IN, 9)], [512, 1]) == bytes(512) + IOERR
    device.close()
    device.close()
    assert path.read_bytes() == pattern(0)


def test_file_keeps_what_was_written(tmp_path: Path) -> None:
    path = tmp_path / "disk"
    path.write_bytes(b"x" * 16 * 512)
    disk = FileDisk(path)
    disk.write(512, b"w" * 512)
    disk.zero(2 * 512, 512, unmap=False)
    disk.zero(8 * 512, 8 * 512, unmap=True)
    disk.flush()
    disk.close()
    assert path.read_bytes() == b"x" * 512 + b"w" * 512 + bytes(512) + b"x" * 5 * 512 + bytes(8 * 512)


def test_config_and_features_can_be_overridden(disk: MemoryDisk) -> None:
    device = BlkDevice(disk, features=bit(BlkFeature.SIZE_MAX), config={"size_max": 4096}, num_queues=2)
    assert device.offered_features() >> BlkFeature.SIZE_MAX & 1
    assert not device.offered_features() >> BlkFeature.MQ & 1
    config = CONFIG.unpack(device.read_config(0, CONFIG.size))
    assert (config["size_max"], config["num_queues"], config["capacity"], config["seg_max"]) == (4096, 2, 64, 254)
    assert device.queue_count == 2


class _Seen(Hooks):
    def __init__(self) -> None:
        self.data = b""

    def response(self, queue: DeviceQueue, chain: Chain, data: bytes) -> bytes:
        self.data = data
        return b"!" + data[1:-1] + UNSUPP


def test_hooks_see_and_change_data_and_status(disk: MemoryDisk) -> None:
    hooks = _Seen()
    driver = Driver(BlkDevice(disk, hooks=hooks))
    answer = driver.request(0, [header(RequestType.IN, 3)], [512, 1])
    assert hooks.data == pattern(3) + OK
    assert answer == b"!" + pattern(3)[1:] + UNSUPP


def test_request_without_room_for_a_status_is_given_back(driver: Driver) -> None:
    assert driver.request(0, [header(RequestType.OUT), bytes(512)], []) == b""
    assert driver.request(0, [header(RequestType.IN)[:15]], [1]) == b""
    assert driver.request(0, [header(RequestType.IN)], [1]) == OK


def test_claimed_terabytes_cost_nothing(driver: Driver) -> None:
    queue = driver.queues[0]
    place = driver.place(4096)
    driver.memory.write(place, header(RequestType.IN))
    queue.put_desc(0, place, 16, 1, 1)
    for i in range(1, 60):
        queue.put_desc(i, place, 0xFFFFFFFF, 3, i + 1)
    queue.put_desc(60, place, 1, 2, 0)
    queue.buffers[0] = []
    queue.expose(0)
    driver.notify(0)
    assert driver.used(0) == [(0, b"")]
    assert driver.memory.read(place, 1) == IOERR
