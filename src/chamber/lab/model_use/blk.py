"""What the model guest does with a disk."""

from __future__ import annotations

import random
import struct
from typing import TYPE_CHECKING, Final

from chamber.device.catalogue import DISK_SIZE
from chamber.lab.model_use.right_data import PAUSE, compare
from chamber.wire.blk import BlkFeature

if TYPE_CHECKING:
    from collections.abc import Callable

    from chamber.guest.drivers.blk import BlkDriver
    from chamber.guest.machine import GuestMachine

__all__ = ("STIMULI",)

_PATTERN: Final = 0x63686D6272


def _sectors(start: int, count: int) -> bytes:
    return b"".join(struct.pack("<Q", (start + i) ^ _PATTERN) * 64 for i in range(count))


def use(driver: BlkDriver, machine: GuestMachine, ask: Callable[[str], None]) -> None:  # noqa: ARG001
    for start, count in ((0, 8), (9, 1), (64, 16)):
        compare(driver.read(start, count), _sectors(start, count), "read sectors")
        machine.settle(PAUSE)
    data = random.Random(1).randbytes(8 * 512)  # noqa: S311 - test data
    driver.write(1024, data)
    driver.flush()
    compare(driver.read(1024, 8), data, "read back what was written")
    compare(driver.serial(), b"chamber", "serial number")


def identify(driver: BlkDriver, machine: GuestMachine, ask: Callable[[str], None]) -> None:  # noqa: ARG001
    for got, right, what in ((driver.capacity, DISK_SIZE // 512, "capacity"), (driver.blk_size, 512, "block size"),
                             (driver.has(BlkFeature.RO), False, "write protection"),
                             (driver.has(BlkFeature.FLUSH), True, "flushing")):
        compare(bytes(f"{got}", "ascii"), bytes(f"{right}", "ascii"), what)


def inspect(driver: BlkDriver, machine: GuestMachine, ask: Callable[[str], None]) -> None:
    ask("grow")
    machine.settle(0.1)
    driver.config_changed()
    driver.cache_type()
    compare(driver.read(2, 1), _sectors(2, 1), "read sectors")
    driver.serial()


def discard(driver: BlkDriver, machine: GuestMachine, ask: Callable[[str], None]) -> None:  # noqa: ARG001
    driver.zero(2048, 8, discard=True)
    driver.zero(2048, 8, discard=False)
    compare(driver.read(2048, 8), bytes(8 * 512), "zeroed sectors")


STIMULI: Final[dict[str, Callable[..., None]]] = {"use": use, "identify": identify, "inspect": inspect,
                                                  "discard": discard}
