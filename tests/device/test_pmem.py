"""The persistent memory device: what is flushed lasts, in memory and in a file."""

from __future__ import annotations

import mmap
from typing import TYPE_CHECKING

import pytest

from chamber.device.pmem import FileMedium, MemoryMedium, PmemDevice, SharedMedium
from chamber.platform.memory import PAGE, GuestMemory
from chamber.wire.pmem import CONFIG, FLUSH, REQUEST, RESPONSE, PmemFeature
from tests.device.driver import Driver

if TYPE_CHECKING:
    from pathlib import Path

FLUSHED = bytes(RESPONSE.pack(ret=0))


def request(kind: int) -> bytes:
    return bytes(REQUEST.pack(type=kind))


def test_what_is_flushed_survives_a_power_cut_and_the_rest_does_not() -> None:
    device = PmemDevice(MemoryMedium(PAGE))
    driver = Driver(device)
    device.medium.live[:4] = b"kept"
    assert driver.request(0, [request(FLUSH)], [4]) == FLUSHED
    device.medium.live[4:8] = b"lost"
    device.host_action("power-cut")
    assert bytes(device.medium.live[:8]) == b"kept\0\0\0\0"
    assert CONFIG.get(device.read_config(0, 16), "size") == PAGE


def test_a_file_holds_what_was_written(tmp_path: Path) -> None:
    path = tmp_path / "medium"
    path.write_bytes(bytes(2 * PAGE))
    device = PmemDevice(FileMedium(path))
    driver = Driver(device)
    device.medium.live[PAGE:PAGE + 4] = b"file"
    assert driver.request(0, [request(FLUSH)], [4]) == FLUSHED
    assert path.read_bytes()[PAGE:PAGE + 4] == b"file"
    device.close()


def test_memory_that_is_shown_already_is_taken_over_empty_and_lasts_as_any() -> None:
    shown = SharedMedium(2 * PAGE)
    with mmap.mmap(shown.fd, 2 * PAGE) as seen:
        seen[:4] = b"past"
        device = PmemDevice()
        device.move_to(shown.fd)
        device.show_at(7 << 32)
        assert device.device_memory_file is not None
        assert seen[:4] == bytes(4)
        driver = Driver(device, features=1 << PmemFeature.SHMEM_REGION)
        assert CONFIG.get(device.read_config(0, 16), "size") == 2 * PAGE
        assert CONFIG.get(device.read_config(0, 16), "start") == device.start == 7 << 32
        seen[PAGE:PAGE + 4] = b"kept"
        assert driver.request(0, [request(FLUSH)], [4]) == FLUSHED
        seen[:4] = b"lost"
        device.host_action("power-cut")
        assert seen[:4] == bytes(4)
        assert seen[PAGE:PAGE + 4] == b"kept"
        device.close()
        assert seen[PAGE:PAGE + 4] == b"kept", "who has mapped it keeps it"
    shown.close()


@pytest.mark.parametrize("size", [0, 100, PAGE + 1])
def test_a_file_is_whole_pages(tmp_path: Path, size: int) -> None:
    path = tmp_path / "medium"
    path.write_bytes(bytes(size))
    with pytest.raises(ValueError, match="whole pages"):
        FileMedium(path)


def test_other_requests_fail_and_short_ones_break_a_rule() -> None:
    device = PmemDevice()
    driver = Driver(device)
    assert driver.request(0, [request(7)], [4]) == b"\xff" * 4
    assert driver.request(0, [b"x"], [4]) == b""
    assert driver.request(0, [request(FLUSH)], [3]) == b""
    assert [violation.spec for violation in device.violations] == ["5.19.6", "5.19.6"]


def test_the_guest_sees_a_device_s_memory_where_it_is_shown_and_nowhere_else() -> None:
    memory = GuestMemory(PAGE, private=True)
    shown = memoryview(bytearray(b"abcdefgh"))
    reads: list[tuple[int, int]] = []
    with pytest.raises(ValueError, match="beyond"):
        memory.show_device_memory(PAGE - 8, shown)
    memory.show_device_memory(1 << 32, shown)
    memory.watch = lambda address, length: reads.append((address, length))
    memory.write((1 << 32) + 4, b"WXYZ")
    assert bytes(shown) == b"abcdWXYZ"
    assert memory.read((1 << 32) + 2, 4) == b"cdWX"
    assert memory.read((1 << 32) + 6, 4) == b"\xff" * 4
    assert memory.read(1 << 40, 2) == b"\xff\xff"
    memory.write(1 << 40, b"lost")
    assert reads == [((1 << 32) + 2, 4)]
    memory.close()
