"""What the model guest does with SCSI disks."""

from __future__ import annotations

import random
import struct
from typing import TYPE_CHECKING, Final

from chamber.guest.driver import Refused
from chamber.lab.model_use.right_data import PAUSE, WrongData, compare
from chamber.wire.scsi import Address, Response, TaskFunction

if TYPE_CHECKING:
    from collections.abc import Callable

    from chamber.guest.drivers.scsi import ScsiDriver
    from chamber.guest.machine import GuestMachine

__all__ = ("STIMULI",)

_PATTERN: Final = 0x63686D6272
_FIRST: Final = Address(0, 0)
_SERIALS: Final = {_FIRST: b"chamber", Address(0, 1): b"chamber-4k"}
_EXTRA: Final = Address(1, 0)
_WRITE_AREA: Final = 32
"""First block that is written to."""


def _blocks(address: Address, start: int, count: int, block_size: int) -> bytes:
    """Return what a disk holds at first: each sector's number, which its address is part of, XORed, 64 times."""
    sectors = block_size // 512
    first = ((address.target << 14 | address.lun) << 32) + start * sectors
    return b"".join(struct.pack("<Q", (first + i) ^ _PATTERN) * 64 for i in range(count * sectors))


def use(driver: ScsiDriver, machine: GuestMachine, ask: Callable[[str], None]) -> None:
    for address, serial in _SERIALS.items():
        disk = driver.wait_for(address)
        for start, count in ((0, 8), (9, 1), (11, 16)):
            compare(disk.read(start, count), _blocks(address, start, count, disk.block_size), "read blocks")
            machine.settle(PAUSE)
        data = random.Random(disk.block_size).randbytes(8 * disk.block_size)  # noqa: S311 - test data
        disk.write(_WRITE_AREA, data)
        disk.flush()
        compare(disk.read(_WRITE_AREA, 8), data, "read back what was written")
        assert disk.identity is not None
        compare(disk.identity.serial, serial, "serial number")
        driver.manage(TaskFunction.QUERY_TASK_SET, address)
        ask("reset")
        machine.settle(PAUSE)
        driver.attend()


def inspect(driver: ScsiDriver, machine: GuestMachine, ask: Callable[[str], None]) -> None:
    disk = driver.wait_for(_FIRST)
    disk.ready()
    driver.manage(TaskFunction.QUERY_TASK_SET, _FIRST)
    driver.asynchronous_events(_FIRST, 0x7E)
    if driver.manage(TaskFunction.LOGICAL_UNIT_RESET, _FIRST) is not Response.OK:
        raise Refused("the disk is not reset")
    compare(disk.read(2, 1), _blocks(_FIRST, 2, 1, disk.block_size), "read blocks after a reset")
    ask("reset")
    machine.settle(0.1)
    driver.attend()
    disk = driver.wait_for(_FIRST)
    compare(disk.read(2, 1), _blocks(_FIRST, 2, 1, disk.block_size), "read blocks after a reset of the host's")


def discard(driver: ScsiDriver, machine: GuestMachine, ask: Callable[[str], None]) -> None:  # noqa: ARG001
    disk = driver.wait_for(_FIRST)
    for call in (disk.unmap, disk.write_zeroes):
        disk.write(64, b"\xd1" * (8 * disk.block_size))
        call(64, 8)
        disk.verify(64, 8)
        compare(disk.read(64, 8), bytes(8 * disk.block_size), "zeroed blocks")


def hotplug(driver: ScsiDriver, machine: GuestMachine, ask: Callable[[str], None]) -> None:
    for _ in range(2):
        ask("plug")
        disk = driver.wait_for(_EXTRA)
        compare(disk.read(0, 8), _blocks(_EXTRA, 0, 8, disk.block_size), "read blocks of a new disk")
        ask("unplug")
        machine.settle(0.1)
        driver.attend()
        if _EXTRA in driver.disks:
            raise Refused("a disk that was unplugged is still there")
        try:
            disk.read(0, 8)
        except Refused:
            continue
        raise WrongData("a disk that is gone is read")
    use(driver, machine, ask)


def resize(driver: ScsiDriver, machine: GuestMachine, ask: Callable[[str], None]) -> None:
    disk = driver.wait_for(_FIRST)
    for action in ("shrink", "grow"):
        before = disk.blocks
        ask(action)
        machine.settle(0.1)
        compare(disk.read(2, 1), _blocks(_FIRST, 2, 1, disk.block_size), "read blocks")
        if disk.blocks == before:
            raise Refused("the disk's size is what it was")
        compare(disk.read(disk.blocks - 1, 1), _blocks(_FIRST, disk.blocks - 1, 1, disk.block_size), "last block")


STIMULI: Final[dict[str, Callable[..., None]]] = {
    "use": use, "inspect": inspect, "discard": discard, "hotplug": hotplug, "resize": resize}
