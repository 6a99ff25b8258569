"""What the model guest does with persistent memory."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Final

from chamber.guest.drivers.pmem import RECORD_SIZE
from chamber.lab.model_use.right_data import PAUSE, compare

if TYPE_CHECKING:
    from collections.abc import Callable

    from chamber.guest.drivers.pmem import PmemDriver
    from chamber.guest.machine import GuestMachine

__all__ = ("STIMULI",)

_STEP: Final = 1024


def use(driver: PmemDriver, machine: GuestMachine, ask: Callable[[str], None]) -> None:
    """Store, flush, survive a power cut, read back."""
    dice = random.Random(3)  # noqa: S311 - test data
    records = {place * _STEP: dice.randbytes(size) for place, size in enumerate((1, 64, RECORD_SIZE, 100))}
    for offset, data in records.items():
        driver.write_record(offset, data)
        compare(driver.read_record(offset), data, "record")
    driver.flush()
    machine.settle(PAUSE)
    ask("power-cut")
    for offset, data in records.items():
        compare(driver.read_record(offset), data, "record after a power cut")
        machine.settle(PAUSE)


def inspect(driver: PmemDriver, machine: GuestMachine, ask: Callable[[str], None]) -> None:  # noqa: ARG001
    """Use the end of the memory, and write over what is there."""
    last = driver.size - _STEP
    for turn in range(4):
        data = bytes([turn + 1]) * 32
        driver.write_record(last, data)
        driver.flush()
        compare(driver.read_record(last), data, "record at the end")
    driver.config_changed()


STIMULI: Final[dict[str, Callable[..., None]]] = {"use": use, "inspect": inspect}
