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
from chamber.guest.profile import PROFILES, UNTRUSTED
from chamber.guest.untrusted import DeviceViolation
from chamber.guest.virtqueue import QueueDead
from chamber.lab.model_transport import ModelTransport
from chamber.lab.model_use.snd import STIMULI
from chamber.wire.snd import HDR, Access, ControlInfo, ControlType, PcmFormat, SndCode
from chamber.wire.virtio import bit

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


@pytest.mark.parametrize("profile", UNTRUSTED)
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


class Elements(Hooks):
    """Has control elements of another type."""

    def __init__(self, info: ControlInfo) -> None:
        self._info = info

    def response(self, queue: DeviceQueue, chain: Chain, data: bytes) -> bytes:
        if chain.read(0, 4) == HDR.pack(SndCode.CTL_INFO):
            return data[:4] + self._info.build() * len(CONTROLS)
        return data


@pytest.mark.parametrize(("kind", "count", "size"), [
    (ControlType.BYTES, 512, 512), (ControlType.INTEGER64, 64, 64), (ControlType.IEC958, 1, 1),
])
def test_the_largest_values_are_read(kind: ControlType, count: int, size: int) -> None:
    with driven(Elements(ControlInfo(kind, bit(Access.READ), count, b"x", 0, 1 << 40 if count == 64 else 0))) as (
            driver, _):
        driver.probe()
        assert len(driver.read_control(0)) == size
        with pytest.raises(Refused):
            driver.write_control(0, (1,))
        with pytest.raises(Refused):
            driver.read_metadata(0)


@pytest.mark.parametrize(("kind", "count"), [
    (ControlType.BYTES, 513), (ControlType.INTEGER64, 65), (ControlType.IEC958, 2), (ControlType.INTEGER, 129),
    (ControlType.INTEGER, 0), (6, 1),
])
def test_larger_values_are_refused(kind: int, count: int) -> None:
    with driven(Elements(ControlInfo(kind, bit(Access.READ), count, b"x", 0, 9))) as (driver, _), pytest.raises(
            DeviceViolation):
        driver.probe()


def test_what_there_is_not() -> None:
    with driven() as (driver, _):
        driver.probe()
        with pytest.raises(Refused):
            driver.read_control(3)
        with pytest.raises(Refused):
            driver.choose(2, channels=2, format=PcmFormat.S16, rate=48000, period=400)
        with pytest.raises(Refused):
            driver.remap(2, 0, 0)


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
                with suppress(*known):
                    driver.read_metadata(number)
            device.host_action("volume")
            driver.machine.settle(0.1)
