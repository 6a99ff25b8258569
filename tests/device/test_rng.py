from __future__ import annotations

import random

from chamber.device.rng import RngDevice
from tests.device.driver import Driver


def test_fills_buffers_from_its_source() -> None:
    driver = Driver(RngDevice(source=random.Random(1).randbytes))
    same = random.Random(1)
    assert driver.request(0, [], [64]) == same.randbytes(64)
    assert driver.request(0, [], [1, 9]) == same.randbytes(10)


def test_default_source_does_not_repeat_itself() -> None:
    driver = Driver(RngDevice())
    assert driver.request(0, [], [32]) != driver.request(0, [], [32])


def test_large_and_unwritable_buffers() -> None:
    driver = Driver(RngDevice())
    assert len(driver.request(0, [], [1 << 17])) == 1 << 16
    assert driver.request(0, [b"read me"], []) == b""
    assert len(driver.device.violations) == 1
    assert len(driver.request(0, [], [8])) == 8
