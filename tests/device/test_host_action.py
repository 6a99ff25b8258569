from __future__ import annotations

import struct

from chamber.device.blk import BlkDevice
from chamber.device.catalogue import TYPES, make_device
from chamber.device.console import EXTRA_PORT, ConsoleDevice
from chamber.wire import blk, console
from chamber.wire.console import CONTROL, CONTROL_RX_QUEUE, CONTROL_TX_QUEUE, ConsoleEvent, ConsoleFeature, rx_queue
from chamber.wire.virtio import DeviceType, bit
from tests.device.driver import Driver


def console_guest(features: int | None = None) -> tuple[ConsoleDevice, Driver]:
    device = make_device(DeviceType.CONSOLE) if features is None else make_device(DeviceType.CONSOLE, features=features)
    assert isinstance(device, ConsoleDevice)
    driver = Driver(device)
    for _ in range(30):
        driver.add(CONTROL_RX_QUEUE, [], [64])
    for ident, event in ((0, ConsoleEvent.DEVICE_READY), (0, ConsoleEvent.PORT_READY), (1, ConsoleEvent.PORT_READY)):
        driver.request(CONTROL_TX_QUEUE, [bytes(CONTROL.pack(id=ident, event=event, value=1))], [])
    told(driver)
    return device, driver


def told(driver: Driver) -> list[tuple[int, int, int]]:
    return [struct.unpack_from("<IHH", data) for _, data in driver.used(CONTROL_RX_QUEUE)]


def test_a_port_is_plugged_and_unplugged() -> None:
    device, driver = console_guest()
    for _ in range(2):
        device.host_action("plug")
        device.host_action("plug")
        assert told(driver) == [(2, ConsoleEvent.DEVICE_ADD, 1)]
        assert device.ports[2].name == EXTRA_PORT
        device.host_action("unplug")
        device.host_action("unplug")
        assert told(driver) == [(2, ConsoleEvent.DEVICE_REMOVE, 1)]


def test_a_port_is_hung_up_and_taken_up_again() -> None:
    device, driver = console_guest()
    device.host_action("hangup")
    assert told(driver) == [(1, ConsoleEvent.PORT_OPEN, 0), (1, ConsoleEvent.PORT_OPEN, 1)]
    assert driver.queues[rx_queue(1)].interrupts == 0


def test_a_console_is_resized_only_where_sizes_were_negotiated() -> None:
    device, driver = console_guest()
    device.host_action("resize")
    assert (told(driver), driver.config_interrupts) == ([], 0)
    device, driver = console_guest(bit(ConsoleFeature.SIZE, ConsoleFeature.MULTIPORT))
    device.host_action("resize")
    assert (told(driver), driver.config_interrupts) == ([(0, ConsoleEvent.RESIZE, 1)], 1)
    assert console.CONFIG.get(device.config, "cols") == 25


def test_a_disk_shrinks_and_grows() -> None:
    device = make_device(DeviceType.BLOCK)
    assert isinstance(device, BlkDevice)
    driver = Driver(device)
    whole = device.sectors
    last = struct.pack("<IIQ", 0, 0, whole - 1)
    assert driver.request(0, [last], [512, 1])[-1] == blk.BlkStatus.OK
    device.host_action("shrink")
    assert blk.CONFIG.get(device.config, "capacity") == whole // 2
    assert driver.request(0, [last], [512, 1])[-1] == blk.BlkStatus.IOERR
    device.host_action("grow")
    assert driver.request(0, [last], [512, 1])[-1] == blk.BlkStatus.OK
    assert driver.config_interrupts == 2


def test_what_a_device_does_not_know_it_ignores() -> None:
    for kind in TYPES:
        device = make_device(kind)
        driver = Driver(device)
        device.host_action("dance")
        assert driver.config_interrupts == 0
        device.close()
