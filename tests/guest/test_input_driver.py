"""The input driver: what it takes, what it refuses, and that no event or declaration breaks it."""

from __future__ import annotations

from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chamber.device.hooks import Hooks
from chamber.device.input import EVERYTHING, InputDevice
from chamber.guest.driver import DeviceTimeout, Refused
from chamber.guest.drivers.input import InputDriver
from chamber.guest.machine import GuestMachine
from chamber.guest.profile import PROFILES, UNTRUSTED
from chamber.guest.untrusted import DeviceViolation
from chamber.lab.model_transport import ModelTransport
from chamber.lab.model_use.input import STIMULI
from chamber.wire.input import Abs, EventType, InputEvent

if TYPE_CHECKING:
    from collections.abc import Iterator

SYN = InputEvent(EventType.SYN, 0, 0)


class AnyBytes(Hooks):
    """Shows other bytes for selections than there are."""

    def __init__(self, shown: list[bytes]) -> None:
        self._shown = shown
        self._turn = 0

    def config(self, config: bytearray, offset: int, size: int) -> bytearray:
        if self._shown and offset + size > 2:
            data = self._shown[self._turn % len(self._shown)]
            self._turn += 1
            config[2:2 + len(data)] = data
        return config


@contextmanager
def driven(hooks: Hooks | None = None, profile: str = "hardened") -> Iterator[tuple[InputDriver, InputDevice]]:
    machine = GuestMachine(PROFILES[profile], 1)
    device = InputDevice(hooks=hooks)
    driver = InputDriver(machine, ModelTransport(machine, device))
    try:
        yield driver, device
        machine.settle(1)
        machine.heap.check_all()
        assert not machine.heap.reports
        assert not device.violations
    finally:
        device.reset()
        machine.close()


@pytest.mark.parametrize("profile", UNTRUSTED)
@pytest.mark.parametrize("stimulus", STIMULI)
def test_stimuli_leave_nothing(profile: str, stimulus: str) -> None:
    with driven(profile=profile) as (driver, device):
        driver.probe()
        STIMULI[stimulus](driver, driver.machine, device.host_action)
        driver.remove()
        assert not driver.violations


def test_it_knows_what_the_device_is() -> None:
    with driven() as (driver, device):
        driver.probe()
        assert driver.name == EVERYTHING.name
        assert driver.axes == EVERYTHING.axes
        assert {kind: driver.codes[kind] for kind in EVERYTHING.codes} == EVERYTHING.codes
        driver.lamp(1, lit=True)
        assert device.states == {(EventType.LED, 1): 1}
        with pytest.raises(Refused):
            driver.lamp(9, lit=True)
        driver.remove()


@pytest.mark.parametrize(("event", "rule"), [
    (InputEvent(31, 0, 0), "one of those declared"),
    (InputEvent(EventType.KEY, 600, 1), "one of those declared"),
    (InputEvent(EventType.LED, 0, 1), "one of those declared"),
    (InputEvent(EventType.SYN, 3, 0), "one of those declared"),
    (InputEvent(EventType.KEY, 30, 3), "a key is released"),
    (InputEvent(EventType.ABS, Abs.X, 32768), "lies on its axis"),
    (InputEvent(EventType.ABS, Abs.MT_SLOT, -1), "lies on its axis"),
    (InputEvent(EventType.ABS, Abs.MT_TRACKING_ID, -2), "lies on its axis"),
])
def test_a_sequence_with_a_wrong_event_is_not_passed_on(event: InputEvent, rule: str) -> None:
    with driven() as (driver, device):
        driver.probe()
        good = InputEvent(EventType.REL, 0, 1)
        device.send((good, event, good, SYN))
        device.send((good, SYN))
        driver.machine.settle(0.1)
        assert driver.take() == [(good, SYN)]
        assert rule in str(driver.violations[0])
        driver.remove()


def test_a_finger_is_lifted_by_minus_one() -> None:
    with driven() as (driver, device):
        driver.probe()
        lifted = (InputEvent(EventType.ABS, Abs.MT_TRACKING_ID, -1), SYN)
        device.send(lifted)
        driver.machine.settle(0.1)
        assert driver.take() == [lifted]
        driver.remove()


@settings(max_examples=80, deadline=None)
@given(st.lists(st.binary(min_size=1, max_size=134), max_size=4),
       st.lists(st.builds(InputEvent, st.integers(0, 0xFFFF) | st.integers(0, 5), st.integers(0, 0xFFFF),
                          st.integers(-(1 << 31), (1 << 31) - 1)), max_size=12))
def test_nothing_breaks_the_hardened_driver(shown: list[bytes], events: list[InputEvent]) -> None:
    with driven(AnyBytes(shown)) as (driver, device):
        with suppress(DeviceViolation, Refused, DeviceTimeout):
            driver.probe()
            device.send((*events, SYN))
            driver.machine.settle(0.1)
            device.host_action("touch")
            driver.machine.settle(0.1)
            assert all(sequence[-1].ends for sequence in driver.take())
        driver.remove()
