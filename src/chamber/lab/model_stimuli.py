"""What the model guest does with its devices; the same names as for real guests, so that reports compare."""

from __future__ import annotations

import random
import struct
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from chamber.guest.driver import Refused
from chamber.guest.drivers.blk import BlkDriver
from chamber.guest.drivers.console import ConsoleDriver
from chamber.guest.drivers.net import NetDriver
from chamber.guest.drivers.rng import RngDriver
from chamber.lab.model_net import Stack
from chamber.wire.console import ConsoleFeature
from chamber.wire.virtio import DeviceType

if TYPE_CHECKING:
    from collections.abc import Callable

    from chamber.guest.driver import VirtioDriver
    from chamber.guest.machine import GuestMachine

__all__ = ("DRIVERS", "STIMULI", "WrongData")

_PATTERN: Final = 0x63686D6272
_ECHO_PORT: Final = "chamber.echo"
_EXTRA_PORT: Final = "chamber.extra"
_PAUSE: Final = 0.05
"""Virtual seconds between one request and the next: what a device does a moment later, it does to a guest at work."""
_CHANCE: Final = 16
"""Bytes from which on nothing repeats by chance."""

DRIVERS: Final[dict[DeviceType, type[VirtioDriver]]] = {
    DeviceType.NET: NetDriver,
    DeviceType.BLOCK: BlkDriver,
    DeviceType.CONSOLE: ConsoleDriver,
    DeviceType.RNG: RngDriver,
}


class WrongData(Exception):
    """The guest was given something that is not what it should be, and took it."""


def _compare(got: bytes, right: bytes, what: str) -> None:
    if got != right:
        raise WrongData(what)


def _sectors(start: int, count: int) -> bytes:
    return b"".join(struct.pack("<Q", (start + i) ^ _PATTERN) * 64 for i in range(count))


def _use_blk(driver: BlkDriver, machine: GuestMachine, ask: Callable[[str], None]) -> None:  # noqa: ARG001
    for start, count in ((0, 8), (9, 1), (64, 16)):
        _compare(driver.read(start, count), _sectors(start, count), "read sectors")
        machine.settle(_PAUSE)
    data = random.Random(1).randbytes(8 * 512)  # noqa: S311 - test data
    driver.write(1024, data)
    driver.flush()
    _compare(driver.read(1024, 8), data, "read back what was written")
    _compare(driver.serial(), b"chamber", "serial number")


def _inspect_blk(driver: BlkDriver, machine: GuestMachine, ask: Callable[[str], None]) -> None:
    ask("grow")
    machine.settle(0.1)
    driver.config_changed()
    driver.cache_type()
    _compare(driver.read(2, 1), _sectors(2, 1), "read sectors")
    driver.serial()


def _discard_blk(driver: BlkDriver, machine: GuestMachine, ask: Callable[[str], None]) -> None:  # noqa: ARG001
    driver.zero(2048, 8, discard=True)
    driver.zero(2048, 8, discard=False)
    _compare(driver.read(2048, 8), bytes(8 * 512), "zeroed sectors")


def _use_rng(driver: RngDriver, machine: GuestMachine, ask: Callable[[str], None]) -> None:  # noqa: ARG001
    seen: set[bytes] = set()
    for size in (64, 64, 256, 16):
        data = driver.read(size)
        # Random bytes repeat nothing, and least of all what the guest's memory held before.
        suspicious = data in seen or not any(data) or machine.secrets.found_in(data) is not None
        if not data or (suspicious and len(data) >= _CHANCE):
            raise WrongData("random bytes")
        seen.add(data)
        machine.settle(_PAUSE)


def _inspect_rng(driver: RngDriver, machine: GuestMachine, ask: Callable[[str], None]) -> None:
    _use_rng(driver, machine, ask)


def _use_console(driver: ConsoleDriver, machine: GuestMachine, ask: Callable[[str], None]) -> None:  # noqa: ARG001
    port = driver.wait_for(_ECHO_PORT if driver.has(ConsoleFeature.MULTIPORT) else "")
    driver.open(port)
    dice = random.Random(2)  # noqa: S311 - test data
    for size in (1, 64, 1000):
        data = dice.randbytes(size)
        driver.send(port, data)
        _compare(driver.receive(port, size), data, "echo")
        machine.settle(_PAUSE)
    driver.close(port)


def _inspect_console(driver: ConsoleDriver, machine: GuestMachine, ask: Callable[[str], None]) -> None:
    ask("resize")
    machine.settle(0.1)
    driver.wait_for(_ECHO_PORT)
    driver.config_changed()


def _hotplug_console(driver: ConsoleDriver, machine: GuestMachine, ask: Callable[[str], None]) -> None:
    for _ in range(2):
        ask("plug")
        port = driver.wait_for(_EXTRA_PORT)
        driver.open(port)
        driver.send(port, b"plugged")
        _compare(driver.receive(port, 7), b"plugged", "echo")
        ask("unplug")
        machine.settle(0.1)
        try:
            driver.send(port, b"gone")
        except Refused:
            continue
        raise WrongData("a port that is gone takes data")
    _use_console(driver, machine, ask)


def _hangup_console(driver: ConsoleDriver, machine: GuestMachine, ask: Callable[[str], None]) -> None:
    port = driver.wait_for(_ECHO_PORT)
    driver.open(port)
    ask("hangup")
    machine.settle(0.1)
    driver.send(port, b"again")
    _compare(driver.receive(port, 5), b"again", "echo")


def _use_net(driver: NetDriver, machine: GuestMachine, ask: Callable[[str], None]) -> None:  # noqa: ARG001
    stack = Stack(driver, machine)
    with suppress(Refused):  # what the device does not filter, the guest does
        driver.set_promiscuous(on=False)
    stack.resolve()
    for size in (56, 1400):
        _compare(*stack.ping(size), "echo of a ping")
        machine.settle(_PAUSE)
    for size in (1, 1000):
        _compare(*stack.datagram(size), "echo of a datagram")


def _inspect_net(driver: NetDriver, machine: GuestMachine, ask: Callable[[str], None]) -> None:
    ask("link-down")
    machine.settle(0.1)
    ask("link-up")
    machine.settle(0.1)
    driver.config_changed()
    Stack(driver, machine).resolve()


def _configure_net(driver: NetDriver, machine: GuestMachine, ask: Callable[[str], None]) -> None:
    for on in (True, False):
        driver.set_promiscuous(on=on)
    driver.set_mac(bytes.fromhex("52540063686e"))
    driver.set_mac(driver.mac)
    driver.set_pairs(1)
    _use_net(driver, machine, ask)


STIMULI: Final[dict[tuple[DeviceType, str], Callable[..., None]]] = {
    (DeviceType.BLOCK, "use"): _use_blk,
    (DeviceType.BLOCK, "inspect"): _inspect_blk,
    (DeviceType.BLOCK, "discard"): _discard_blk,
    (DeviceType.RNG, "use"): _use_rng,
    (DeviceType.RNG, "inspect"): _inspect_rng,
    (DeviceType.CONSOLE, "use"): _use_console,
    (DeviceType.CONSOLE, "inspect"): _inspect_console,
    (DeviceType.CONSOLE, "hotplug"): _hotplug_console,
    (DeviceType.CONSOLE, "hangup"): _hangup_console,
    (DeviceType.NET, "use"): _use_net,
    (DeviceType.NET, "inspect"): _inspect_net,
    (DeviceType.NET, "configure"): _configure_net,
    # The model's network has no forwarding and no programs of its own: its ordinary traffic stands for them.
    (DeviceType.NET, "forward"): _use_net,
    (DeviceType.NET, "xdp"): _use_net,
}
