"""The balloon device: pages, statistics, hints and reports."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chamber.device.balloon import BalloonDevice
from chamber.wire.balloon import (
    CMD_ID_DONE,
    CMD_ID_STOP,
    CONFIG,
    PAGE_SIZE,
    STAT,
    BalloonFeature,
    pack_pfns,
    parse_statistics,
    queue_roles,
)
from chamber.wire.errors import WireError
from chamber.wire.virtio import Feature, bit
from tests.device.driver import Driver

INFLATE, DEFLATE, STATS, HINT, REPORT = range(5)


def pages(driver: Driver, count: int) -> list[int]:
    start = -(-driver.place((count + 1) * PAGE_SIZE) // PAGE_SIZE) * PAGE_SIZE
    return [start + i * PAGE_SIZE for i in range(count)]


def test_pages_go_and_come_back_and_lose_what_they_held() -> None:
    device = BalloonDevice()
    driver = Driver(device)
    addresses = pages(driver, 4)
    for address in addresses:
        driver.memory.write(address, b"x" * PAGE_SIZE)
    driver.request(INFLATE, [pack_pfns(addresses[:3])], [])
    assert device.pages == {address // PAGE_SIZE for address in addresses[:3]}
    assert driver.memory.read(addresses[0], PAGE_SIZE) == bytes(PAGE_SIZE)
    assert driver.memory.read(addresses[3], 1) == b"x"
    driver.request(DEFLATE, [pack_pfns(addresses[:2])], [])
    assert device.pages == {addresses[2] // PAGE_SIZE}
    driver.request(INFLATE, [pack_pfns([1 << 40])], [])
    assert not device.violations
    driver.request(INFLATE, [b"odd"], [])
    assert [violation.spec for violation in device.violations] == ["5.5.6"]


def test_the_host_wishes_and_the_driver_says_what_it_did() -> None:
    device = BalloonDevice()
    driver = Driver(device)
    device.set_target(77)
    assert CONFIG.get(device.read_config(0, CONFIG.size), "num_pages") == 77
    assert driver.config_interrupts == 1
    device.write_config(CONFIG["actual"].offset, (70).to_bytes(4, "little"))
    device.write_config(CONFIG["num_pages"].offset, (1).to_bytes(4, "little"))
    assert device.actual == 70
    assert CONFIG.get(device.read_config(0, CONFIG.size), "num_pages") == 77


def test_statistics_come_when_they_are_asked_for() -> None:
    device = BalloonDevice()
    driver = Driver(device)
    answers: list[dict[int, int]] = []
    assert not device.poll_statistics(answers.append)
    driver.add(STATS, [STAT.pack(4, 1000)], [])
    driver.notify(STATS)
    assert device.statistics == {4: 1000}
    assert driver.used(STATS) == []
    assert device.poll_statistics(answers.append)
    assert len(driver.used(STATS)) == 1
    driver.add(STATS, [STAT.pack(4, 2000) + STAT.pack(99, 5)], [])
    driver.notify(STATS)
    assert answers == [{4: 2000, 99: 5}]
    driver.add(STATS, [STAT.pack(4, 1)], [])
    driver.notify(STATS)
    assert device.queues[STATS].broken is not None


def test_hints_end_with_done() -> None:
    device = BalloonDevice()
    driver = Driver(device)
    timers = []
    device.schedule = lambda _delay, call: timers.append(call)
    device.hint()
    command = device.read_config(CONFIG["free_page_hint_cmd_id"].offset, 4)
    driver.request(HINT, [command], [])
    driver.request(HINT, [], [PAGE_SIZE, PAGE_SIZE])
    driver.request(HINT, [CMD_ID_STOP.to_bytes(4, "little")], [])
    assert device.freed == 2
    (done,) = timers
    done()
    assert CONFIG.get(device.config, "free_page_hint_cmd_id") == CMD_ID_DONE


def test_reported_pages_are_discarded() -> None:
    device = BalloonDevice()
    driver = Driver(device)
    (address,) = pages(driver, 1)
    driver.request(REPORT, [], [PAGE_SIZE])
    assert device.freed == 1
    assert not device.violations
    assert address


@pytest.mark.parametrize(("features", "roles"), [
    (0, ("inflate", "deflate")),
    (bit(BalloonFeature.PAGE_REPORTING), ("inflate", "deflate", "report")),
    (bit(BalloonFeature.STATS_VQ, BalloonFeature.PAGE_REPORTING), ("inflate", "deflate", "stats", "report")),
])
def test_queues_are_numbered_without_gaps(features: int, roles: tuple[str, ...]) -> None:
    assert queue_roles(features) == roles
    device = BalloonDevice()
    device.accept_features(features | bit(Feature.VERSION_1))
    assert [device.queue_role(i) for i in range(len(roles) + 1)] == [*roles, "none"]


@given(st.binary(max_size=200))
def test_any_bytes_are_statistics_or_an_error(data: bytes) -> None:
    try:
        statistics = parse_statistics(data)
    except WireError:
        assert len(data) % STAT.size
    else:
        assert len(statistics) <= len(data) // STAT.size
