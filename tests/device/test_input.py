"""The input device: what it shows, whole sequences or none, lamps, recordings."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from chamber.device.input import EVERYTHING, KEYBOARD, MULTITOUCH, POINTER, Abilities, InputDevice
from chamber.device.input_actions import ACTIONS
from chamber.wire.input import EVENT, EVENT_QUEUE, STATUS_QUEUE, AbsInfo, EventType, InputEvent, Select, codes_of
from tests.device.driver import Driver

if TYPE_CHECKING:
    from collections.abc import Callable

SYN = InputEvent(EventType.SYN, 0, 0)
KEY = InputEvent(EventType.KEY, 30, 1)


def shown(device: InputDevice, select: Select, subsel: int = 0) -> bytes:
    device.write_config(0, bytes([select]))
    device.write_config(1, bytes([subsel]))
    size = device.read_config(2, 1)[0]
    return device.read_config(8, size)


def events(driver: Driver) -> list[InputEvent]:
    return [InputEvent.parse(data) for _, data in driver.used(EVENT_QUEUE)]


@pytest.mark.parametrize("abilities", [KEYBOARD, POINTER, MULTITOUCH, EVERYTHING], ids=lambda a: a.name)
def test_selections_show_the_abilities(abilities: Abilities) -> None:
    device = InputDevice(abilities)
    assert shown(device, Select.ID_NAME).decode() == abilities.name
    assert len(shown(device, Select.ID_DEVIDS)) == 8
    for kind in EventType:
        assert codes_of(shown(device, Select.EV_BITS, kind)) == abilities.codes.get(kind, frozenset())
    for axis in range(64):
        data = shown(device, Select.ABS_INFO, axis)
        assert (AbsInfo.parse(data) if data else None) == abilities.axes.get(axis)
    for select in range(256):
        if select not in set(Select):
            device.write_config(0, bytes([select, 3]))
            assert device.read_config(2, 1) == b"\0"
    assert shown(device, Select.ID_NAME, 7) == b""


def test_a_sequence_goes_whole_or_not_at_all() -> None:
    device = InputDevice()
    assert not device.send((KEY, SYN))
    driver = Driver(device)
    driver.add(EVENT_QUEUE, [], [EVENT.size])
    driver.notify(EVENT_QUEUE)
    assert device.send((KEY, SYN))
    assert events(driver) == [KEY]
    driver.add(EVENT_QUEUE, [], [4, 4])
    driver.notify(EVENT_QUEUE)
    assert events(driver) == [SYN]
    assert device.dropped == 1
    sent = 0
    while device.send((KEY, KEY, SYN)):
        sent += 1
    assert sent == 256 // 3
    came = []
    for _ in range(300):
        driver.add(EVENT_QUEUE, [], [EVENT.size])
        driver.notify(EVENT_QUEUE)
        came += events(driver)
    assert came == [KEY, KEY, SYN] * sent


def test_a_buffer_without_room_breaks_the_queue_and_no_more() -> None:
    device = InputDevice()
    driver = Driver(device)
    driver.add(EVENT_QUEUE, [], [7])
    driver.notify(EVENT_QUEUE)
    device.send((SYN,))
    assert device.violations
    driver.request(STATUS_QUEUE, [InputEvent(EventType.LED, 1, 1).build()], [])
    assert device.states == {(EventType.LED, 1): 1}


def test_lamps() -> None:
    device = InputDevice()
    driver = Driver(device)
    for event in (InputEvent(EventType.LED, 0, 1), InputEvent(EventType.SND, 2, 440), InputEvent(EventType.KEY, 1, 1)):
        driver.request(STATUS_QUEUE, [event.build()], [])
    assert device.states == {(EventType.LED, 0): 1, (EventType.SND, 2): 440}
    driver.request(STATUS_QUEUE, [b"short"], [])
    assert len(device.violations) == 1
    for code in range(3000):
        driver.request(STATUS_QUEUE, [InputEvent(EventType.LED, code, 1).build()], [])
    assert len(device.states) <= 1024


def test_a_recording_is_played_in_time() -> None:
    device = InputDevice()
    driver = Driver(device)
    due: list[float] = []

    def at_once(delay: float, call: Callable[[], None]) -> None:
        due.append(delay)
        call()

    device.schedule = at_once
    for _ in range(6):
        driver.add(EVENT_QUEUE, [], [EVENT.size])
    driver.notify(EVENT_QUEUE)
    device.play([(0.0, KEY), (0.1, SYN), (0.5, KEY), (0.5, SYN), (0.9, KEY)])
    assert due == [0.1, 0.5]
    assert events(driver) == [KEY, SYN, KEY, SYN]


def test_actions_are_within_the_abilities() -> None:
    for sequence in (s for sequences in ACTIONS.values() for s in sequences):
        assert sequence[-1].ends
        for event in sequence[:-1]:
            assert event.code in EVERYTHING.codes[EventType(event.type)]
            if event.type == EventType.ABS:
                assert EVERYTHING.axes[event.code].min <= event.value <= EVERYTHING.axes[event.code].max
