"""What the model guest does with a console."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Final

from chamber.guest.driver import Refused
from chamber.lab.model_use.right_data import PAUSE, WrongData, compare
from chamber.wire.console import ConsoleFeature

if TYPE_CHECKING:
    from collections.abc import Callable

    from chamber.guest.drivers.console import ConsoleDriver
    from chamber.guest.machine import GuestMachine

__all__ = ("STIMULI",)

_ECHO_PORT: Final = "chamber.echo"
_EXTRA_PORT: Final = "chamber.extra"


def use(driver: ConsoleDriver, machine: GuestMachine, ask: Callable[[str], None]) -> None:  # noqa: ARG001
    port = driver.wait_for(_ECHO_PORT if driver.has(ConsoleFeature.MULTIPORT) else "")
    driver.open(port)
    dice = random.Random(2)  # noqa: S311 - test data
    for size in (1, 64, 1000):
        data = dice.randbytes(size)
        driver.send(port, data)
        compare(driver.receive(port, size), data, "echo")
        machine.settle(PAUSE)
    driver.close(port)


def inspect(driver: ConsoleDriver, machine: GuestMachine, ask: Callable[[str], None]) -> None:
    ask("resize")
    machine.settle(0.1)
    driver.wait_for(_ECHO_PORT)
    driver.config_changed()


def hotplug(driver: ConsoleDriver, machine: GuestMachine, ask: Callable[[str], None]) -> None:
    for _ in range(2):
        ask("plug")
        port = driver.wait_for(_EXTRA_PORT)
        driver.open(port)
        driver.send(port, b"plugged")
        compare(driver.receive(port, 7), b"plugged", "echo")
        ask("unplug")
        machine.settle(0.1)
        try:
            driver.send(port, b"gone")
        except Refused:
            continue
        raise WrongData("a port that is gone takes data")
    use(driver, machine, ask)


def hangup(driver: ConsoleDriver, machine: GuestMachine, ask: Callable[[str], None]) -> None:
    port = driver.wait_for(_ECHO_PORT)
    driver.open(port)
    ask("hangup")
    machine.settle(0.1)
    driver.send(port, b"again")
    compare(driver.receive(port, 5), b"again", "echo")


STIMULI: Final[dict[str, Callable[..., None]]] = {"use": use, "inspect": inspect, "hotplug": hotplug, "hangup": hangup}
