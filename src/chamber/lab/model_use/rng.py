"""What the model guest does with an entropy source."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from chamber.lab.model_use.right_data import PAUSE, WrongData

if TYPE_CHECKING:
    from collections.abc import Callable

    from chamber.guest.drivers.rng import RngDriver
    from chamber.guest.machine import GuestMachine

__all__ = ("STIMULI",)

_CHANCE: Final = 16
"""Bytes from which on nothing repeats by chance."""


def use(driver: RngDriver, machine: GuestMachine, ask: Callable[[str], None]) -> None:  # noqa: ARG001
    seen: set[bytes] = set()
    for size in (64, 64, 256, 16):
        data = driver.read(size)
        # Random bytes repeat nothing, and least of all what the guest's memory held before.
        suspicious = data in seen or not any(data) or machine.secrets.found_in(data) is not None
        if not data or (suspicious and len(data) >= _CHANCE):
            raise WrongData("random bytes")
        seen.add(data)
        machine.settle(PAUSE)


def inspect(driver: RngDriver, machine: GuestMachine, ask: Callable[[str], None]) -> None:
    use(driver, machine, ask)


STIMULI: Final[dict[str, Callable[..., None]]] = {"use": use, "inspect": inspect}
