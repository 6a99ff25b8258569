"""A SCSI disk as a guest uses it: what it is, how large, its blocks (SPC-4, SBC-3)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from chamber.guest.driver import Refused
from chamber.wire.scsi import Address
from chamber.wire.scsi_commands import (
    UNMAP_DESCRIPTOR,
    UNMAP_HEADER,
    Opcode,
    ServiceAction,
    VpdPage,
    build_cdb,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from chamber.guest.drivers.scsi import ScsiDriver
    from chamber.platform.heap import Object
    from chamber.wire.scsi_commands import Sense

__all__ = ("CommandFailed", "Identity", "NoTarget", "ScsiDisk", "UnitAttention", "read_luns")

_SPEC: Final = "5.6.6.1"
"""What a unit returns is data of a request to virtio; its rules are those of SPC-4 and SBC-3."""
_INQUIRY: Final = 36
_PAGE: Final = 255
_LIST_LUNS: Final = 16
_MODE: Final = 64
_CACHING: Final = 0x08
_NAA: Final = 3
_NAME: Final = 16
_SERIAL: Final = 64
_SHIFTS: Final = bytes((9, 10, 11, 12))
"""Block sizes that this guest has use for, as powers of two: 512 to 4096."""
_MAX_BYTES: Final = 1 << 62
_PIECE: Final = 64 << 10
_TRIES: Final = 4


class NoTarget(Refused):
    """There is nothing at this address."""


class CommandFailed(Refused):
    """A command was not carried out.

    Attributes:
        sense: what the unit said, if it said anything.

    """

    def __init__(self, why: str, sense: Sense | None = None) -> None:
        super().__init__(why)
        self.sense = sense


class UnitAttention(CommandFailed):
    """A command was not carried out because the unit had something to tell first."""


def read_luns(driver: ScsiDriver, target: int) -> set[int]:
    """Return which LUNs a target has, of those that are looked for.

    Raises:
        NoTarget: there is no such target.
        DeviceViolation: the list is none.

    """
    checks, heap = driver.checks, driver.machine.heap
    address = Address(target, 0)
    inquire(driver, address)
    data = heap.alloc(8 + 8 * _LIST_LUNS, "list of LUNs")
    try:
        moved = driver.command(address, build_cdb(Opcode.REPORT_LUNS, length=data.size), into=data)
        checks.number(moved).between(8, data.size, "a list of LUNs has its length", _SPEC)
        length = checks.number(int.from_bytes(data.read(0, 4), "big")).at_most(
            moved - 8, "a list of LUNs is as long as it says", _SPEC)
        checks.require(not length % 8, "a list holds whole LUNs", _SPEC, f"{length} bytes")
        found: set[int] = set()
        for offset in range(8, 8 + length, 8):
            raw = data.read(offset, 8)
            method = checks.number(raw[0] >> 6).at_most(1, "a LUN is a peripheral or in flat space", _SPEC)
            checks.require(not any(raw[2:]) and (bool(method) or not raw[0]), "a LUN has a single level", _SPEC,
                           raw.hex())
            lun = (raw[0] & 0x3F) << 8 | raw[1]
            checks.require(lun not in found, "a LUN is listed once", _SPEC, str(lun))
            if lun <= driver.max_lun or not checks.enforcing:
                found.add(lun)
        return found
    finally:
        driver.release(data)


def inquire(driver: ScsiDriver, address: Address) -> bytes:
    """Ask a unit what it is, at first for what all have, then for all that it says it has; return 36 bytes.

    Raises:
        NoTarget: there is no such target.
        DeviceViolation: the answer is none.

    """
    checks, heap = driver.checks, driver.machine.heap
    first = heap.alloc(_INQUIRY, "inquiry data")
    try:
        moved = driver.command(address, build_cdb(Opcode.INQUIRY, length=_INQUIRY), into=first)
        checks.number(moved).equals(_INQUIRY, "inquiry data is 36 bytes at least", _SPEC)
        head = first.read(0, _INQUIRY)
        size = checks.number(head[4]).between(_INQUIRY - 5, 250, "inquiry data is 36 to 255 bytes", _SPEC) + 5
        second = heap.alloc(size, "inquiry data")
        try:
            again = driver.command(address, build_cdb(Opcode.INQUIRY, length=size), into=second)
            checks.number(again).equals(size, "inquiry data is as long as it says", _SPEC)
            # Which answer to believe is no question if they agree.
            checks.require(second.read(0, _INQUIRY) == head, "a unit says the same of itself twice", _SPEC)
        finally:
            driver.release(second)
        return head
    finally:
        driver.release(first)


@dataclass(frozen=True, slots=True)
class Identity:
    """What a disk is known by, which does not change while it is there.

    Attributes:
        model: vendor, product and revision.
        serial: serial number.
        name: its number among all, empty if it has none.

    """

    model: bytes
    serial: bytes
    name: bytes


class ScsiDisk:
    """A disk that was found.

    Args:
        driver: how it is reached.
        address: where it is.
        memory: the driver's own note of it, freed when it is removed.

    Attributes:
        identity: what it is known by.
        blocks: how many it has.
        block_size: bytes of each.
        cached: writes are cached until they are flushed.
        stale: it has to be asked anew what it is, before it is used again.
        gone: it was removed.

    """

    def __init__(self, driver: ScsiDriver, address: Address, memory: Object) -> None:
        self.driver = driver
        self.address = address
        self.memory = memory
        self.identity: Identity | None = None
        self.blocks = 0
        self.block_size = 0
        self.cached = False
        self.stale = False
        self.gone = False
        self._shift = 0
        self._unmap_blocks = 0
        self._most = 0

    # What it is.

    def identify(self) -> None:
        """Ask for all that matters.

        Raises:
            Refused: it is no disk that this guest can use.
            DeviceViolation: it says what can't be, or is another disk than it was.

        """
        checks = self.driver.checks
        head = inquire(self.driver, self.address)
        if head[0] != 0:
            raise Refused("no disk")
        pages = self._pages()
        serial = self._serial() if VpdPage.SERIAL_NUMBER in pages else b""
        name = self._name() if VpdPage.IDENTIFICATION in pages else b""
        identity = Identity(head[8:36], serial, name)
        checks.require(self.identity in {None, identity}, "a disk stays the one that it is", _SPEC, str(self.address))
        self.identity = identity
        self._size()
        self._limits(pages)
        self._cache()
        self.stale = False

    def _ask(self, cdb: bytes, into: Object) -> int:
        """Have a command carried out that tells of the disk, whatever else it had to tell."""
        for _ in range(_TRIES):
            try:
                return self.driver.command(self.address, cdb, into=into)
            except UnitAttention:
                continue
        raise Refused("the unit has something to tell for ever")

    def _vpd(self, page: int) -> bytes:
        """Return a page of vital product data, without its header."""
        checks = self.driver.checks
        data = self.driver.machine.heap.alloc(_PAGE, "vital product data")
        try:
            moved = self._ask(build_cdb(Opcode.INQUIRY, flags=1, b2=page, length=_PAGE), data)
            checks.number(moved).between(4, _PAGE, "a page has a header", _SPEC)
            checks.number(data.read(1, 1)[0]).equals(page, "a page is the one asked for", _SPEC)
            length = checks.number(int.from_bytes(data.read(2, 2), "big")).at_most(
                moved - 4, "a page is as long as it says", _SPEC)
            return data.read(4, length)
        finally:
            self.driver.release(data)

    def _pages(self) -> bytes:
        pages = self._vpd(VpdPage.SUPPORTED_PAGES)
        self.driver.checks.require(list(pages) == sorted(set(pages)) and pages[:1] == b"\0",
                                   "pages are listed once, in order, the list itself first", _SPEC)
        return pages

    def _serial(self) -> bytes:
        """Return the serial number, without the spaces before it."""
        checks = self.driver.checks
        page = self._vpd(VpdPage.SERIAL_NUMBER)
        checks.require(all(0x20 <= byte < 0x7F for byte in page), "a serial number is of ASCII characters", _SPEC)
        length = checks.number(len(page)).between(1, _SERIAL, "a serial number is 1 to 64 characters", _SPEC)
        serial = self.driver.machine.heap.alloc(_SERIAL, "serial number")
        serial.write(page)
        try:
            return serial.read(0, length).lstrip()
        finally:
            self.driver.machine.heap.free(serial)

    def _name(self) -> bytes:
        """Return the disk's number, from the designators that it has."""
        checks = self.driver.checks
        heap = self.driver.machine.heap
        content = self._vpd(VpdPage.IDENTIFICATION)
        page = heap.alloc(len(content), "designators")
        name = heap.alloc(_NAME, "name of a disk", zero=True)
        page.write(content)
        try:
            offset, length = 0, 0
            while offset < len(content):
                checks.require(offset + 4 <= len(content), "a designator has a header", _SPEC)
                kind = page.read(offset + 1, 1)[0] & 0x3F
                length = checks.number(page.read(offset + 3, 1)[0]).at_most(
                    len(content) - offset - 4, "a designator ends within its page", _SPEC)
                if kind == _NAA:
                    checks.number(length).one_of((8, _NAME), "a number is 8 or 16 bytes", _SPEC)
                    name.write(page.read(offset + 4, length))
                    return name.read(0, length)
                offset += 4 + length
            return b""
        finally:
            heap.free(page)
            heap.free(name)

    def _size(self) -> None:
        checks = self.driver.checks
        heap = self.driver.machine.heap
        data = heap.alloc(32, "capacity")
        shifts = heap.alloc(len(_SHIFTS), "block sizes")
        shifts.write(_SHIFTS)
        try:
            moved = self._ask(build_cdb(Opcode.SERVICE_ACTION_IN_16, ServiceAction.READ_CAPACITY_16, length=32), data)
            checks.number(moved).equals(32, "a capacity is 32 bytes", _SPEC)
            self.block_size = checks.number(int.from_bytes(data.read(8, 4), "big")).one_of(
                tuple(1 << shift for shift in _SHIFTS), "a block is 512, 1024, 2048 or 4096 bytes", _SPEC)
            self._shift = shifts.read(self.block_size.bit_length() - 10, 1)[0]
            last = checks.number(int.from_bytes(data.read(0, 8), "big")).at_most(
                (_MAX_BYTES >> self._shift) - 1, "all of a disk can be addressed", _SPEC)
            self.blocks = (last + 1) & (1 << 64) - 1
        finally:
            self.driver.release(data)
            heap.free(shifts)

    def _limits(self, pages: bytes) -> None:
        checks = self.driver.checks
        self._most = min(self.driver.max_sectors * 512, _PIECE)
        self._unmap_blocks = 0
        if VpdPage.BLOCK_LIMITS in pages:
            limits = self._vpd(VpdPage.BLOCK_LIMITS)
            checks.number(len(limits)).between(0x3C, _PAGE, "block limits are 60 bytes", _SPEC)
            most = int.from_bytes(limits[4:8], "big")
            if most:  # zero stands for any
                self._most = min(self._most, most * self.block_size)
            self._unmap_blocks = int.from_bytes(limits[16:20], "big")
        if VpdPage.BLOCK_CHARACTERISTICS in pages:
            characteristics = self._vpd(VpdPage.BLOCK_CHARACTERISTICS)
            checks.number(len(characteristics)).between(0x3C, _PAGE, "block characteristics are 60 bytes", _SPEC)
            checks.require(not characteristics[4] & 0x30, "a disk has no zones", _SPEC)
        if VpdPage.PROVISIONING in pages:
            provisioning = self._vpd(VpdPage.PROVISIONING)
            checks.number(len(provisioning)).between(4, _PAGE, "provisioning is 4 bytes", _SPEC)
            if not provisioning[1] & 0x80:
                self._unmap_blocks = 0

    def _cache(self) -> None:
        """Ask whether writes are cached."""
        checks = self.driver.checks
        data = self.driver.machine.heap.alloc(_MODE, "mode page")
        try:
            moved = self._ask(build_cdb(Opcode.MODE_SENSE_6, b2=_CACHING, length=_MODE), data)
            checks.number(moved).between(4, _MODE, "mode pages have a header", _SPEC)
            length = checks.number(data.read(0, 1)[0]).at_most(moved - 1, "mode pages are as long as they say", _SPEC)
            at = 4 + checks.number(data.read(3, 1)[0]).at_most(
                max(length - 6, 0), "a mode page follows its block descriptors", _SPEC)
            checks.number(data.read(at, 1)[0] & 0x3F).equals(_CACHING, "a mode page is the one asked for", _SPEC)
            self.cached = bool(data.read(at + 2, 1)[0] & 4)
        finally:
            self.driver.release(data)

    # Its blocks.

    def _use(self, call: Callable[[], int]) -> int:
        """Do something to the disk; if it has something to tell, ask anew what it is, and do it again."""
        for _ in range(_TRIES):
            if self.gone:
                raise Refused("the disk is gone")
            if self.stale:
                self.identify()
            self.memory.put(0, 8, self.memory.get(0, 8) + 1)  # requests under way
            try:
                return call()
            except UnitAttention:
                self.stale = True
            finally:
                self.memory.put(0, 8, self.memory.get(0, 8) - 1)
        raise Refused("the unit has something to tell for ever")

    def _check_range(self, block: int, count: int) -> None:
        if block + count > self.blocks:
            raise Refused("beyond the end of the disk")

    def _pieces(self, block: int, count: int) -> list[tuple[int, int]]:
        step = max(self._most >> self._shift, 1)
        return [(start, min(step, block + count - start)) for start in range(block, block + count, step)]

    def read(self, block: int, count: int) -> bytes:
        """Read blocks.

        Raises:
            Refused: beyond the end, or the unit fails.
            DeviceViolation: the device broke a rule.

        """
        return b"".join(self._read_piece(*piece) for piece in self._pieces(block, count))

    def _read_piece(self, block: int, count: int) -> bytes:
        def read() -> int:
            self._check_range(block, count)
            return self.driver.command(self.address, build_cdb(Opcode.READ_16, lba=block, length=count), into=data)

        size = count << self._shift
        data = self.driver.machine.heap.alloc(size, "blocks")
        try:
            moved = self._use(read)
            self.driver.checks.number(moved).equals(size, "a read that succeeded was answered in full", _SPEC)
            return data.read(0, moved)
        finally:
            self.driver.release(data)

    def write(self, block: int, content: bytes) -> None:
        """Write whole blocks."""
        for start, length in self._pieces(block, len(content) >> self._shift):
            at = (start - block) << self._shift
            self._write_piece(start, length, content[at:at + (length << self._shift)])

    def _write_piece(self, block: int, count: int, content: bytes) -> None:
        def write() -> int:
            self._check_range(block, count)
            return self.driver.command(self.address, build_cdb(Opcode.WRITE_16, lba=block, length=count), outof=data)

        data = self.driver.machine.heap.alloc(len(content), "blocks")
        data.write(content)
        try:
            moved = self._use(write)
            self.driver.checks.number(moved).equals(len(content), "a write that succeeded took everything", _SPEC)
        finally:
            self.driver.release(data)

    def flush(self) -> None:
        """Have everything written reach the medium."""
        if self.cached:
            self._use(lambda: self.driver.command(self.address, build_cdb(Opcode.SYNCHRONIZE_CACHE_16)))

    def ready(self) -> None:
        """Ask whether the disk can be used.

        Raises:
            Refused: it can't.

        """
        self._use(lambda: self.driver.command(self.address, build_cdb(Opcode.TEST_UNIT_READY)))

    def verify(self, block: int, count: int) -> None:
        """Have the unit read blocks for itself."""
        self._check_range(block, count)
        self._use(lambda: self.driver.command(self.address, build_cdb(Opcode.VERIFY_16, lba=block, length=count)))

    def unmap(self, block: int, count: int) -> None:
        """Give blocks back; they read as zeros then.

        Raises:
            Refused: the disk can't.

        """
        if not self._unmap_blocks:
            raise Refused("the disk does not unmap")
        self._check_range(block, count)
        for start in range(block, block + count, self._unmap_blocks):
            row = UNMAP_DESCRIPTOR.pack(start, min(self._unmap_blocks, block + count - start))
            self._send(build_cdb(Opcode.UNMAP, length=UNMAP_HEADER.size + len(row)),
                       UNMAP_HEADER.pack(len(row) + 6, len(row)) + row)

    def write_zeroes(self, block: int, count: int) -> None:
        """Have blocks zeroed, and unmapped if the disk likes."""
        self._check_range(block, count)
        self._send(build_cdb(Opcode.WRITE_SAME_16, lba=block, length=count, flags=8), bytes(self.block_size))

    def _send(self, cdb: bytes, content: bytes) -> None:
        data = self.driver.machine.heap.alloc(len(content), "parameters")
        data.write(content)
        try:
            moved = self._use(lambda: self.driver.command(self.address, cdb, outof=data))
            self.driver.checks.number(moved).equals(len(content), "a command takes all of its parameters", _SPEC)
        finally:
            self.driver.release(data)
