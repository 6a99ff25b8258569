"""What the model guest does with a foreign device: nothing that hurts, unless it is given a place to write."""

from __future__ import annotations

import random
import stat
import time
from typing import TYPE_CHECKING, Final, TypeAlias

from chamber.guest.drivers.blk import BlkDriver
from chamber.guest.drivers.fs import FsDriver
from chamber.guest.drivers.net import NetDriver
from chamber.guest.drivers.rng import RngDriver
from chamber.lab.model_use.right_data import compare
from chamber.wire.blk import SECTOR_SIZE, BlkFeature

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

    from chamber.guest.driver import VirtioDriver

__all__ = ("ScratchError", "steps")

_Steps: TypeAlias = "Generator[tuple[str, Callable[[], str | None]], None, None]"

_BLOCK: Final = 32
"""Sectors of a request: what the heap of a small guest bears."""
_READ_SECONDS: Final = 2.0
_MOST_BYTES: Final = 16 << 20
_MOST_REQUESTS: Final = 1000
_BIG_FILE: Final = 4 << 20
_SCRATCH_FILE: Final = 1 << 20


class ScratchError(ValueError):
    """What was given to write to is no such place; the message says what one is."""


def _rate(requests: int, size: int, start: float) -> str:
    seconds = max(time.perf_counter() - start, 1e-9)
    return (f"{requests:,} requests, {size:,} bytes: {requests / seconds:,.0f} requests/s, "
            f"{size / seconds / 1e6:,.1f} MB/s")


def steps(driver: VirtioDriver, scratch: str | None) -> _Steps:
    """What there is to do with a probed device: names, and what does it and says how it went.

    Args:
        driver: the driver; a device type of which nothing is known here has no steps.
        scratch: where to write; sectors FIRST:COUNT of a disk, whose content is put back, or the name of a directory
            to make and remove again.

    Raises:
        ScratchError: that is no place to write to on such a device.

    """
    match driver:
        case BlkDriver():
            return _blk(driver, None if scratch is None else _sectors(scratch))
        case FsDriver():
            if scratch is not None and (not scratch or "/" in scratch or scratch in {".", ".."}):
                raise ScratchError(f"{scratch!r}: the name of a directory to make")
            return _fs(driver, scratch)
    if scratch is not None:
        raise ScratchError(f"nothing is written to {driver.type.short}")
    return _others(driver)


def _others(driver: VirtioDriver) -> _Steps:
    match driver:
        case RngDriver():
            yield "read", lambda: _random(driver)
        case NetDriver():
            yield "identify", lambda: (f"address {driver.mac.hex(':')}, MTU {driver.mtu}, "
                                       f"link {'up' if driver.link_up() else 'down'}")


# A disk.

def _sectors(scratch: str) -> tuple[int, int]:
    first, _, count = scratch.partition(":")
    if not (first.isdecimal() and count.isdecimal() and first.isascii() and count.isascii()
            and 0 < int(count) <= _MOST_BYTES // SECTOR_SIZE):
        raise ScratchError(f"{scratch!r}: sectors to write to, as FIRST:COUNT, {_MOST_BYTES // SECTOR_SIZE} at most")
    return int(first), int(count)


def _blk(driver: BlkDriver, scratch: tuple[int, int] | None) -> _Steps:
    yield "identify", lambda: (
        f"serial number {driver.serial().decode(errors='replace')!r}, {driver.capacity * SECTOR_SIZE:,} bytes in "
        f"blocks of {driver.blk_size}")
    yield "read in order", lambda: _in_order(driver)
    yield "read at random", lambda: _at_random(driver)
    yield "flush", lambda: _flush(driver)
    if scratch is not None:
        yield from _blk_scratch(driver, *scratch)


def _blk_scratch(driver: BlkDriver, first: int, count: int) -> _Steps:
    before = b""
    kept = False

    def keep() -> str:
        nonlocal before, kept
        before = _read(driver, first, count)
        kept = True
        return f"{count} sectors from {first} on"

    def put_back() -> str:
        nonlocal kept
        kept = False
        _write(driver, first, before)
        driver.flush()
        compare(_read(driver, first, count), before, "what was there before")
        return f"{count} sectors"

    yield "keep what is there", keep
    if not kept:
        return
    try:
        yield "write and compare", lambda: _write_and_compare(driver, first, count)
        if driver.has(BlkFeature.WRITE_ZEROES):
            yield "write zeroes", lambda: _zero(driver, first, count)
        if driver.has(BlkFeature.DISCARD):
            yield "discard", lambda: _discard(driver, first, count)
        yield "put back", put_back
    finally:
        if kept:  # interrupted
            put_back()


def _read(driver: BlkDriver, first: int, count: int) -> bytes:
    return b"".join(driver.read(at, min(_BLOCK, first + count - at)) for at in range(first, first + count, _BLOCK))


def _write(driver: BlkDriver, first: int, data: bytes) -> None:
    size = _BLOCK * SECTOR_SIZE
    for at in range(0, len(data), size):
        driver.write(first + at // SECTOR_SIZE, data[at:at + size])


def _in_order(driver: BlkDriver) -> str:
    start, requests, size = time.perf_counter(), 0, 0
    while size < min(_MOST_BYTES, driver.capacity * SECTOR_SIZE) and time.perf_counter() < start + _READ_SECONDS:
        at = size // SECTOR_SIZE
        size += len(driver.read(at, min(_BLOCK, driver.capacity - at)))
        requests += 1
    return _rate(requests, size, start)


def _at_random(driver: BlkDriver) -> str:
    dice = random.Random(1)  # noqa: S311 - which sectors to read
    count = min(8, driver.capacity)
    start, requests = time.perf_counter(), 0
    while requests < _MOST_REQUESTS and time.perf_counter() < start + _READ_SECONDS:
        driver.read(dice.randrange(driver.capacity // count) * count if count else 0, count)
        requests += 1
    return _rate(requests, requests * count * SECTOR_SIZE, start)


def _flush(driver: BlkDriver) -> str:
    driver.flush()
    return "" if driver.has(BlkFeature.FLUSH) else "not offered"


def _write_and_compare(driver: BlkDriver, first: int, count: int) -> str:
    data = random.Random(2).randbytes(count * SECTOR_SIZE)  # noqa: S311 - test data
    start = time.perf_counter()
    _write(driver, first, data)
    driver.flush()
    rate = _rate(-(-count // _BLOCK), len(data), start)
    compare(_read(driver, first, count), data, "what was written")
    return rate


def _zero(driver: BlkDriver, first: int, count: int) -> str:
    driver.zero(first, count, discard=False)
    compare(_read(driver, first, count), bytes(count * SECTOR_SIZE), "zeroed sectors")
    return f"{count} sectors"


def _discard(driver: BlkDriver, first: int, count: int) -> str:
    driver.zero(first, count, discard=True)  # what they hold now is the device's choice (5.2.6.2)
    return f"{count} sectors"


# A directory.

def _fs(driver: FsDriver, scratch: str | None) -> _Steps:
    def mount() -> str:
        driver.mount()
        about = driver.statfs()
        return f"tag {driver.tag!r}, {about.bfree:,} of {about.blocks:,} blocks of {about.bsize} free"

    yield "mount", mount
    yield "list", lambda: f"{len(driver.listdir('')):,} names"
    yield "read files", lambda: _read_files(driver)
    if scratch is not None:
        yield from _fs_scratch(driver, scratch)
    yield "unmount", driver.unmount


def _read_files(driver: FsDriver) -> str:
    start, files, size = time.perf_counter(), 0, 0
    for name in driver.listdir(""):
        if size >= _MOST_BYTES or time.perf_counter() > start + _READ_SECONDS:
            break
        about = driver.getattr(name)
        if stat.S_ISREG(about.mode) and about.size <= _BIG_FILE:
            size += len(driver.read_file(name))
            files += 1
    seconds = time.perf_counter() - start
    return f"{files:,} files, {size:,} bytes: {size / seconds / 1e6:,.1f} MB/s"


def _fs_scratch(driver: FsDriver, folder: str) -> _Steps:
    data = random.Random(2).randbytes(_SCRATCH_FILE)  # noqa: S311 - test data

    def write() -> str:
        start = time.perf_counter()
        driver.write_file(f"{folder}/written", data)
        return f"{len(data):,} bytes: {len(data) / (time.perf_counter() - start) / 1e6:,.1f} MB/s"

    def read() -> str:
        start = time.perf_counter()
        compare(driver.read_file(f"{folder}/written"), data, "what was written")
        return f"{len(data):,} bytes: {len(data) / (time.perf_counter() - start) / 1e6:,.1f} MB/s"

    def rename() -> None:
        driver.rename(f"{folder}/written", f"{folder}/renamed")
        names = driver.listdir(folder)
        compare(repr(names).encode(), repr(["renamed"]).encode(), "names after renaming")

    made = False

    def make() -> None:
        nonlocal made
        driver.mkdir(folder)
        made = True

    yield "make a directory", make
    if made:
        yield "write", write
        yield "read back", read
        yield "rename", rename
        yield "remove", lambda: _remove(driver, folder)


def _remove(driver: FsDriver, folder: str) -> None:
    for name in driver.listdir(folder):
        driver.unlink(f"{folder}/{name}")
    driver.rmdir(folder)


# A source of randomness.

def _random(driver: RngDriver) -> str:
    start, size, requests = time.perf_counter(), 0, 0
    while requests < _MOST_REQUESTS and time.perf_counter() < start + _READ_SECONDS:
        size += len(driver.read(64))
        requests += 1
    return _rate(requests, size, start)
