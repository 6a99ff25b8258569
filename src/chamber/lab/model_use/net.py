"""What the model guest does with a network device."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Final

from chamber.guest.driver import Refused
from chamber.lab.model_net import Stack
from chamber.lab.model_use.right_data import PAUSE, compare

if TYPE_CHECKING:
    from collections.abc import Callable

    from chamber.guest.drivers.net import NetDriver
    from chamber.guest.machine import GuestMachine

__all__ = ("STIMULI",)



def use(driver: NetDriver, machine: GuestMachine, ask: Callable[[str], None]) -> None:  # noqa: ARG001
    stack = Stack(driver, machine)
    with suppress(Refused):  # what the device does not filter, the guest does
        driver.set_promiscuous(on=False)
    stack.resolve()
    for size in (56, 1400):
        compare(*stack.ping(size), "echo of a ping")
        machine.settle(PAUSE)
    for size in (1, 1000):
        compare(*stack.datagram(size), "echo of a datagram")


def inspect(driver: NetDriver, machine: GuestMachine, ask: Callable[[str], None]) -> None:
    ask("link-down")
    machine.settle(0.1)
    ask("link-up")
    machine.settle(0.1)
    driver.config_changed()
    Stack(driver, machine).resolve()


def configure(driver: NetDriver, machine: GuestMachine, ask: Callable[[str], None]) -> None:
    for on in (True, False):
        driver.set_promiscuous(on=on)
    driver.set_mac(bytes.fromhex("52540063686e"))
    driver.set_mac(driver.mac)
    driver.set_pairs(1)
    use(driver, machine, ask)


# The model's network has no forwarding and no programs of its own: its ordinary traffic stands for them.
STIMULI: Final[dict[str, Callable[..., None]]] = {
    "use": use, "inspect": inspect, "configure": configure, "forward": use, "xdp": use}
