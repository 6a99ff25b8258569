"""The sound driver: what it learns, what it refuses, and that no reply breaks it."""

from __future__ import annotations

from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chamber.device.hooks import Hooks
from chamber.device.snd import CONTROLS, ITEMS, SndDevice
from chamber.guest.driver import DeviceTimeout, Refused
from chamber.guest.drivers.snd import SndDriver
from chamber.guest.machine import GuestMachine
from chamber.guest.profile import PROFILES
from chamber.guest.untrusted import DeviceViolation
from chamber.guest.virtqueue import QueueDead
from chamber.lab.model_transport import ModelTransport
from chamber.lab.model_use.snd import STIMULI
from chamber.wire.snd import PcmFormat, SndCode

if TYPE_CHECKING:
    from collections.abc import Iterator

    from chamber.device.chain import Chain
    from chamber.device.queue import DeviceQueue


class AnyReplies(Hooks):
    """Answers with other bytes than are true."""

    def __init__(self, role: str, replies: list[bytes], keep: int) -> None:
        self._role = role
        self._replies = replies
        self._keep = keep
        self._turn = 0

    def response(self, queue: DeviceQueue, chain: Chain, data: bytes) -> bytes:
        if self.device.queue_role(queue.index) != self._role or not self._replies:
            return data
        reply = self._replies[self._turn % len(self._replies)]
        self._turn += 1
        return data[:self._keep] + reply


@contextmanager
def driven(hooks: Hooks | None = None, profile: str = "hardened") -> Iterator[tuple[SndDriver, SndDevice]]:
    machine = GuestMachine(PROFILES[profile], 1)
    device = SndDevice(hooks=hooks)
    driver = SndDriver(machine, ModelTransport(machine, device))
    try:
        yield driver, device
        driver.remove()
        machine.settle(1)
        machine.heap.check_all()
        assert not machine.heap.reports
        assert not device.violations
    finally:
        device.reset()
        machine.close()


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("stimulus", STIMULI)
def test_stimuli_leave_nothing(profile: str, stimulus: str) -> None:
    with driven(profile=profile) as (driver, device):
        driver.probe()
        STIMULI[stimulus](driver, driver.machine, device.host_action)
        assert not driver.violations


def test_it_knows_what_the_device_has() -> None:
    with driven() as (driver, _):
        driver.probe()
        assert driver.jacks == [True, False]
        assert [info.direction for info in driver.streams] == [0, 1]
        assert tuple(driver.controls) == CONTROLS
        assert driver.items == {2: ITEMS}
        with pytest.raises(Refused):
            driver.choose(0, channels=9, format=PcmFormat.S16, rate=48000, period=400)
        params = driver.choose(0, channels=2, format=PcmFormat.S16, rate=48000, period=400)
        with pytest.raises(Refused):
            driver.record(0, params, 400)


@pytest.mark.parametrize(("code", "data", "rule"), [
    (SndCode.EVT_JACK_CONNECTED, 2, "jack that there is"), (SndCode.EVT_PCM_XRUN, 1 << 31, "stream that there is"),
    (SndCode.EVT_CTL_NOTIFY, 3, "control element that there is"), (SndCode.PCM_START, 0, "one of those"),
])
def test_events_of_what_there_is_not(code: SndCode, data: int, rule: str) -> None:
    with driven() as (driver, device):
        driver.probe()
        device._event(code, data)
        device.host_action("unplug")
        driver.machine.settle(0.1)
        assert rule in str(driver.violations[0])
        assert driver.notified == [(SndCode.EVT_JACK_DISCONNECTED, 0)]


@settings(max_examples=120, deadline=None)
@given(st.sampled_from(["control", "tx", "rx", "events"]), st.lists(st.binary(max_size=300), max_size=4),
       st.sampled_from([0, 4, 12]))
def test_nothing_breaks_the_hardened_driver(role: str, replies: list[bytes], keep: int) -> None:
    with driven(AnyReplies(role, replies, keep)) as (driver, device):
        known = (DeviceViolation, Refused, DeviceTimeout, QueueDead)
        with suppress(*known):
            driver.probe()
            params = driver.choose(0, channels=2, format=PcmFormat.S16, rate=48000, period=400)
            with suppress(*known):
                driver.play(0, params, bytes(1600))
            with suppress(*known):
                driver.record(1, params, 1600)
            for number in range(3):
                with suppress(*known):
                    driver.read_control(number)
            device.host_action("volume")
            driver.machine.settle(0.1)
