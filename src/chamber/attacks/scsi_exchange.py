"""Commands to SCSI disks and their answers, taken apart and put together otherwise."""

from __future__ import annotations

import struct
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from chamber.attacks.attack import Aim, Attack, Surface
from chamber.wire.scsi import COMMAND, CONFIG, RESPONSE
from chamber.wire.scsi_commands import Opcode, Status

if TYPE_CHECKING:
    from collections.abc import Callable

    from chamber.device.base import Device
    from chamber.device.chain import Chain
    from chamber.device.queue import DeviceQueue

__all__ = (
    "FLUSH",
    "LOOK",
    "READ",
    "READS_BEFORE",
    "USE",
    "WILD",
    "WRITE",
    "ZERO",
    "Exchange",
    "Reply",
    "Row",
    "block_of",
    "both",
    "exchange_of",
    "failing",
    "is_any_page",
    "is_capacity",
    "is_inquiry",
    "is_page",
    "is_read",
    "on",
    "one_of",
    "request_of",
    "with_bytes",
    "with_capacity",
    "with_data",
    "with_fields",
    "with_luns",
    "with_page",
)

READS_BEFORE: Final = 3
"""Reads to serve before a lie, so that the guest has found its disks and looked for partitions."""
_CDB: Final = 32
WILD: Final = 0xFFFFFFFF


@dataclass(frozen=True, slots=True)
class Exchange:
    """A command and its answer.

    Attributes:
        lun: where it went.
        cdb: the command.
        size: bytes of data that the driver brings or has room for.
        sense_length: what is said about the sense data.
        residual: what is said to be left over.
        status: status byte.
        response: response byte.
        sense: sense data, padded to the size that the driver gave it.
        data: data for the driver.

    """

    lun: bytes
    cdb: bytes
    size: int
    sense_length: int
    residual: int
    status: int
    response: int
    sense: bytes
    data: bytes

    def pack(self) -> bytes:
        """Return the bytes of the answer."""
        return RESPONSE.pack(self.sense_length & WILD, self.residual & WILD, 0, self.status,
                             self.response) + self.sense + self.data


def request_of(chain: Chain) -> tuple[bytes, bytes]:
    """LUN and CDB of a request; empty for none."""
    raw = chain.read(0, COMMAND.size + _CDB)
    if len(raw) < COMMAND.size + 16:
        return b"", b""
    return raw[:8], raw[COMMAND.size:]


def exchange_of(device: Device, queue: DeviceQueue, chain: Chain, data: bytes) -> Exchange | None:
    """Take an answer apart, and the command that it belongs to; None where it belongs to none."""
    lun, cdb = request_of(chain)
    if device.queue_role(queue.index) != "requests" or not cdb:
        return None
    head = RESPONSE.size + CONFIG.get(device.config, "sense_size")
    sense_length, residual, _, status, response = RESPONSE.unpack_from(data)
    size = chain.writable_size - head or chain.readable_size - COMMAND.size - _CDB
    return Exchange(lun, cdb, size, sense_length, residual, status, response, bytes(data[RESPONSE.size:head]),
                    bytes(data[head:]))


# Which commands.

READ: Final = frozenset({Opcode.READ_6, Opcode.READ_10, Opcode.READ_12, Opcode.READ_16})
WRITE: Final = frozenset({Opcode.WRITE_6, Opcode.WRITE_10, Opcode.WRITE_12, Opcode.WRITE_16})
FLUSH: Final = frozenset({Opcode.SYNCHRONIZE_CACHE_10, Opcode.SYNCHRONIZE_CACHE_16})
ZERO: Final = frozenset({Opcode.UNMAP, Opcode.WRITE_SAME_10, Opcode.WRITE_SAME_16})


def one_of(opcodes: frozenset[Opcode]) -> Callable[[bytes], bool]:
    """Whether a command has one of these operation codes."""
    return lambda cdb: cdb[0] in opcodes


def is_read(cdb: bytes) -> bool:
    """Whether a command reads blocks."""
    return bool(cdb) and cdb[0] in READ


def is_inquiry(cdb: bytes) -> bool:
    """Whether a command asks for standard inquiry data."""
    return cdb[0] == Opcode.INQUIRY and not cdb[1] & 1


def is_page(page: int) -> Callable[[bytes], bool]:
    """Whether a command asks for a page of vital product data."""
    return lambda cdb: cdb[0] == Opcode.INQUIRY and bool(cdb[1] & 1) and cdb[2] == page


def is_any_page(cdb: bytes) -> bool:
    """Whether a command asks for any page of vital product data."""
    return cdb[0] == Opcode.INQUIRY and bool(cdb[1] & 1)


def is_capacity(cdb: bytes) -> bool:
    """Whether a command is READ CAPACITY, in either form."""
    return cdb[0] in {Opcode.READ_CAPACITY_10, Opcode.SERVICE_ACTION_IN_16}


def block_of(cdb: bytes) -> int:
    """Block address of a read."""
    if cdb[0] == Opcode.READ_6:
        return int.from_bytes(cdb[1:4], "big") & 0x1FFFFF
    return int.from_bytes(cdb[2:10] if cdb[0] == Opcode.READ_16 else cdb[2:6], "big")


# What to change.


def with_fields(**fields: int) -> Callable[[Exchange], Exchange]:
    """Change fields of the response, and leave the rest as it is."""
    return lambda exchange: replace(exchange, **fields)  # type: ignore[arg-type]  # all of them are numbers


def failing(sense: bytes, length: int | None = None, status: int = Status.CHECK_CONDITION) -> Callable[
        [Exchange], Exchange]:
    """Have a command fail, with sense data, of the length given or its own."""
    return lambda e: replace(e, status=status, sense=sense[:len(e.sense)].ljust(len(e.sense), b"\0"),
                             sense_length=len(sense) if length is None else length, residual=e.size, data=b"")


def with_data(change: Callable[[bytes], bytes]) -> Callable[[Exchange], Exchange]:
    """Change the data of commands that returned some; what is longer than the driver's room is cut."""
    def lie(exchange: Exchange) -> Exchange:
        if not exchange.data:
            return exchange
        data = change(exchange.data)[:exchange.size]
        return replace(exchange, data=data, residual=exchange.size - len(data))

    return lie


def with_bytes(offset: int, raw: bytes) -> Callable[[Exchange], Exchange]:
    """Overwrite bytes of the data; what is shorter stays as it is."""
    return with_data(lambda data: data[:offset] + raw + data[offset + len(raw):] if len(data) > offset else data)


def both(first: Callable[[Exchange], Exchange], second: Callable[[Exchange], Exchange]) -> Callable[
        [Exchange], Exchange]:
    """Make two changes."""
    return lambda exchange: second(first(exchange))


def with_capacity(last: int | None, block: int | None) -> Callable[[Exchange], Exchange]:
    """Say another last block, another block size, or both, in either form of READ CAPACITY."""
    def lie(data: bytes) -> bytes:
        width = 8 if len(data) > 8 else 4
        true_last, true_block = data[:width], data[width:width + 4]
        said = true_last if last is None else min(last, (1 << 8 * width) - 1).to_bytes(width, "big")
        return said + (true_block if block is None else block.to_bytes(4, "big")) + data[width + 4:]

    return with_data(lie)


def with_luns(*entries: bytes, length: int | None = None) -> Callable[[Exchange], Exchange]:
    """List other LUNs, and say that the list has another length."""
    body = b"".join(entry.ljust(8, b"\0") for entry in entries)
    return with_data(lambda _data: struct.pack(">I4x", len(body) if length is None else length) + body)


def with_page(page: int, body: bytes, length: int | None = None) -> Callable[[Exchange], Exchange]:
    """Return another page of vital product data."""
    return with_data(lambda _data: struct.pack(">BBH", 0, page, len(body) if length is None else length) + body)


class Reply(Attack):
    """Changes the answers to some commands.

    Args:
        which: tells by the CDB whether a command is one of them.
        change: makes another answer of the honest one.
        after: answers to leave as they are.
        times: answers to change.

    """

    def __init__(self, which: Callable[[bytes], bool], change: Callable[[Exchange], Exchange], *, after: int = 0,
                 times: int = 50) -> None:
        super().__init__()
        self._which = which
        self._change = change
        self._after = after
        self._left = times

    def response(self, queue: DeviceQueue, chain: Chain, data: bytes) -> bytes:
        """Answer otherwise."""
        true = exchange_of(self.device, queue, chain, data)
        if true is None or not self._which(true.cdb) or not self._left:
            return data
        if self._after:
            self._after -= 1
            return data
        said = self._change(true)
        changed = said.pack()
        if changed != data:
            self._left -= 1
            self.strike(f"{true.cdb[:10].hex()} of {true.lun[:4].hex()}: {changed[:12].hex()} and {len(said.data)} "
                        f"bytes for {data[:12].hex()} and {len(true.data)}")
        return changed


Row = tuple[str, Surface, Aim, str, "Callable[[], Attack]", tuple[str, ...]]
"""Name, surface, aim, what the device does, how the attack is made, stimuli."""
USE: Final = ("use",)
LOOK: Final = ("use", "inspect")


def on(name: str, surface: Surface, aim: Aim, summary: str, which: Callable[[bytes], bool],
        change: Callable[[Exchange], Exchange], stimuli: tuple[str, ...] = LOOK) -> Row:
    """Change the answers to some commands from the first on."""
    return (name, surface, aim, summary, lambda: Reply(which, change), stimuli)
