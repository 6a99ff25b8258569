"""What a stock guest tells its balloon about its memory, beside what it tells its own users."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from chamber.device.balloon import BalloonDevice
from chamber.lab.observation import TargetError
from chamber.lab.uml_guest import UmlGuest
from chamber.lab.uml_kernel import find_kernel
from chamber.lab.uml_program import connect, disconnect, run_program
from chamber.link.eventloop import EventLoop
from chamber.wire.balloon import StatTag
from chamber.wire.virtio import DeviceType

if TYPE_CHECKING:
    from collections.abc import Iterator

try:
    KERNEL = find_kernel()
except TargetError as error:
    pytest.skip(str(error), allow_module_level=True)

pytestmark = pytest.mark.uml

PAGES = 2048


@pytest.fixture(scope="module")
def guest() -> Iterator[tuple[UmlGuest, BalloonDevice]]:
    device = BalloonDevice(target=PAGES)
    loop = EventLoop()
    guest = UmlGuest(KERNEL, loop, {DeviceType.BALLOON: lambda: device})
    connect(guest, DeviceType.BALLOON)
    yield guest, device
    disconnect(guest, DeviceType.BALLOON)
    guest.close()
    loop.close()


def told(guest: UmlGuest, device: BalloonDevice) -> dict[int, int]:
    """Fresh statistics; the guest answers while a program of its own runs."""
    answers: list[dict[int, int]] = []
    for _ in range(20):
        if device.poll_statistics(answers.append):
            break
        run_program(guest, "sleep", "0.05")
    for _ in range(20):
        run_program(guest, "sleep", "0.05")
        if answers:
            return answers[0]
    raise AssertionError("no statistics")


def shown(guest: UmlGuest) -> dict[str, int]:
    """/proc/meminfo, in bytes."""
    lines = run_program(guest, "cat", "/proc/meminfo").output.splitlines()
    return {line.split(":")[0]: int(line.split()[1]) * 1024 for line in lines}


def test_statistics_agree_with_the_guest_s_own(guest: tuple[UmlGuest, BalloonDevice]) -> None:
    kernel, device = guest
    statistics = told(kernel, device)
    memory = shown(kernel)
    # Between one question and the other the guest uses a little memory.
    near = 8 << 20
    assert statistics[StatTag.MEMTOT] == memory["MemTotal"]
    assert abs(statistics[StatTag.MEMFREE] - memory["MemFree"]) < near
    assert abs(statistics[StatTag.AVAIL] - memory["MemAvailable"]) < near
    assert abs(statistics[StatTag.CACHES] - memory["Cached"]) < near
    assert statistics[StatTag.MEMFREE] < statistics[StatTag.MEMTOT]


def test_what_is_in_the_balloon_is_gone_from_the_guest_and_comes_back(guest: tuple[UmlGuest, BalloonDevice]) -> None:
    kernel, device = guest
    before = shown(kernel)["MemFree"]
    for action, pages in (("inflate", PAGES), ("deflate", 0)):
        device.host_action(action)
        for _ in range(40):
            run_program(kernel, "sleep", "0.05")
            if device.actual == pages:
                break
        assert device.actual == pages == len(device.pages)
        gone = before - shown(kernel)["MemFree"]
        assert abs(gone - pages * 4096) < 4 << 20
