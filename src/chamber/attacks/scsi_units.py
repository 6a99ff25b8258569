"""What a SCSI unit says of itself, and is not: INQUIRY, vital product data, capacity, LUNs, mode pages."""

from __future__ import annotations

import struct
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from chamber.attacks.attack import Aim, Surface
from chamber.attacks.scsi_exchange import (
    LOOK,
    WILD,
    Reply,
    Row,
    failing,
    is_any_page,
    is_capacity,
    is_inquiry,
    is_page,
    on,
    one_of,
    with_bytes,
    with_capacity,
    with_data,
    with_luns,
    with_page,
)
from chamber.wire.scsi_commands import Opcode, Sense, SenseKey, VpdPage

if TYPE_CHECKING:
    from collections.abc import Callable

    from chamber.attacks.attack import Attack

__all__ = ("UNIT_ROWS",)

_LEN, _PAY = Surface.LENGTH, Surface.PAYLOAD

_INQUIRIES: Final = (
    on("inquiry-empty", _LEN, Aim.LEAK, "says what it is in no byte", is_inquiry,
        lambda e: replace(e, data=b"", residual=e.size)),
    on("inquiry-short", _LEN, Aim.LEAK, "says what it is in 5 bytes", is_inquiry, with_data(lambda d: d[:5])),
    on("inquiry-additional-max", _LEN, Aim.MEMORY, "says that its inquiry data has 260 bytes", is_inquiry,
        with_bytes(4, b"\xff")),
    on("inquiry-additional-zero", _LEN, Aim.MEMORY, "says that its inquiry data has 5 bytes", is_inquiry,
        with_bytes(4, b"\0")),
    *(on(f"inquiry-type-{kind:x}", _PAY, Aim.MEMORY, f"says that it is of device type {kind:X}h", is_inquiry,
          with_bytes(0, bytes((kind,)))) for kind in (0x05, 0x0D, 0x14, 0x1F)),
    on("inquiry-qualifier", _PAY, Aim.DENIAL, "says that nothing is connected where there is a disk", is_inquiry,
        with_bytes(0, b"\x20")),
    on("inquiry-version-zero", _PAY, Aim.MEMORY, "says that it follows no standard", is_inquiry,
        with_bytes(2, b"\0\0")),
    on("inquiry-binary", _PAY, Aim.DECEPTION, "has a name of control characters", is_inquiry,
        with_bytes(8, b"\xff\n%s%n\x1b[2J\0\x80" + b"\x01" * 16)),
    on("inquiry-protect", _PAY, Aim.MEMORY, "says that it protects blocks, and is removable", is_inquiry,
        with_data(lambda d: d[:1] + b"\x80" + d[2:5] + b"\x01" + d[6:])),
    ("inquiry-changing", _PAY, Aim.DECEPTION, "says something else of itself each time",
     lambda: Reply(is_inquiry, with_bytes(8, b"ANOTHER "), after=1, times=1), LOOK),
)


def _grown(page: int) -> Callable[[], Attack]:
    return lambda: Reply(is_page(page), with_bytes(2, b"\x01\xfc"), after=1, times=1)


_VPDS: Final = (
    *(on(f"vpd-{page:02x}-length-max", _LEN, Aim.MEMORY, f"says that page {page:02X}h has 65,535 bytes",
          is_page(page), with_bytes(2, b"\xff\xff")) for page in VpdPage),
    *((f"vpd-{page:02x}-grows", _LEN, Aim.MEMORY, f"says that page {page:02X}h is longer when it is asked for whole",
       _grown(page), LOOK) for page in VpdPage),
    on("vpd-length-zero", _LEN, Aim.MEMORY, "says that all pages are empty", is_any_page, with_bytes(2, b"\0\0")),
    on("vpd-short", _LEN, Aim.LEAK, "returns 3 bytes of each page", is_any_page, with_data(lambda d: d[:3])),
    on("vpd-one-less", _LEN, Aim.LEAK, "returns one byte less of each page than it says", is_any_page,
        lambda e: e if len(e.data) <= 4 else replace(e, data=e.data[:-1], residual=e.residual + 1)),
    on("vpd-wrong-page", _PAY, Aim.DECEPTION, "returns other pages than were asked for", is_any_page,
        with_bytes(1, b"\x89")),
    on("vpd-list-all", _PAY, Aim.MEMORY, "lists all pages that could be", is_page(0x00),
        with_page(0x00, bytes(range(251)))),
    on("vpd-list-repeated", _PAY, Aim.MEMORY, "lists the same pages again and again", is_page(0x00),
        with_page(0x00, b"\xb0\x83\x80\x00" * 32)),
    on("vpd-serial-long", _PAY, Aim.MEMORY, "has a serial number of 251 bytes without an end", is_page(0x80),
        with_page(0x80, b"S" * 251)),
    on("vpd-serial-binary", _PAY, Aim.DECEPTION, "has a serial number of control characters", is_page(0x80),
        with_page(0x80, b"\0\xff\n%s%n/../\x1b[2J\x80")),
    on("vpd-designator-beyond", _LEN, Aim.MEMORY, "has a designator that ends behind its page", is_page(0x83),
        with_page(0x83, b"\x01\x03\0\xff" + b"N" * 8)),
    on("vpd-designator-long", _LEN, Aim.MEMORY, "has a number of 200 bytes", is_page(0x83),
        with_page(0x83, b"\x01\x03\0\xc8" + b"N" * 200)),
    on("vpd-designator-cut", _LEN, Aim.MEMORY, "has a page that ends in the header of a designator", is_page(0x83),
        with_page(0x83, b"\x02\x01\0\x04name\x01\x03")),
    on("vpd-designators-empty", _LEN, Aim.DENIAL, "has 60 designators without content", is_page(0x83),
        with_page(0x83, b"\x02\x08\0\0" * 60)),
    on("vpd-limits-zero", _PAY, Aim.MEMORY, "says that all of its limits are zero", is_page(0xB0),
        with_page(0xB0, bytes(60))),
    on("vpd-limits-max", _PAY, Aim.MEMORY, "says that it has no limits", is_page(0xB0), with_page(0xB0, b"\xff" * 60)),
    on("vpd-limits-one", _PAY, Aim.DENIAL, "moves and unmaps one block at a time", is_page(0xB0),
        with_page(0xB0, struct.pack(">BBHIIIIIIIQ20x", 1, 0, 1, 1, 1, 0, 1, 1, 1, 0, 1))),
    on("vpd-limits-odd", _PAY, Aim.MEMORY, "aligns what it unmaps by a granularity that is no power of two",
        is_page(0xB0),
        with_page(0xB0, struct.pack(">BBHIIIIIIIQ20x", 0, 0, 3, 7, 5, 0, 7, 1, 3, 1 << 31 | 1, 7)), ("use", "discard")),
    on("vpd-characteristics-zoned", _PAY, Aim.MEMORY, "says that it has zones", is_page(0xB1),
        with_page(0xB1, b"\0\1\0\0\x10".ljust(60, b"\0"))),
    on("vpd-provisioning", _PAY, Aim.MEMORY, "says that it provisions in every way at once", is_page(0xB2),
        with_page(0xB2, b"\xff" * 200), ("use", "discard")),
)

_SIZES: Final = (
    *(on(f"capacity-{name}", _PAY, Aim.MEMORY, f"says that its last block is {last:X}h", is_capacity,
          with_capacity(last, None)) for name, last in (
        ("zero", 0), ("wrap", (1 << 64) - 1), ("max", (1 << 64) - 2), ("sign", (1 << 63) - 1),
        ("wrap-bytes", (1 << 55) - 1))),
    *(on(f"block-size-{block:x}", _PAY, Aim.MEMORY, f"says that its blocks have {block} bytes", is_capacity,
          with_capacity(None, block)) for block in (0, 1, 3, 511, 1 << 16, WILD)),
    on("block-size-other", _PAY, Aim.DECEPTION, "says that its blocks have 1,024 bytes", is_capacity,
        with_capacity(None, 1024)),
    on("capacity-short", _LEN, Aim.LEAK, "says its size in 7 bytes", is_capacity, with_data(lambda d: d[:7])),
    on("capacity-protected", _PAY, Aim.MEMORY, "says that its blocks are protected by type 8", is_capacity,
        with_bytes(12, b"\x0f\xff\xff\xff")),
    on("capacity-fails", _PAY, Aim.DENIAL, "does not tell its size", is_capacity,
        failing(Sense(SenseKey.ILLEGAL_REQUEST, 0x20).pack())),
)

_LISTS: Final = tuple(
    on(f"luns-{name}", surface, aim, summary, lambda cdb: cdb[0] == Opcode.REPORT_LUNS, change)
    for name, surface, aim, summary, change in (
        ("length-max", _LEN, Aim.MEMORY, "lists one LUN and says that there are 2**29", with_luns(b"", length=WILD)),
        ("length-large", _LEN, Aim.MEMORY, "lists one LUN and says that there are 2**23",
         with_luns(b"", length=1 << 26)),
        ("length-odd", _LEN, Aim.MEMORY, "lists a LUN and part of another", with_luns(b"", b"\0\1", length=13)),
        ("length-zero", _LEN, Aim.DENIAL, "lists no LUN", with_luns()),
        ("length-beyond", _LEN, Aim.LEAK, "lists one LUN and says that there are 8", with_luns(b"", length=64)),
        ("many", _PAY, Aim.MEMORY, "lists 500 LUNs", with_luns(*(struct.pack(">H", n) for n in range(500)))),
        ("repeated", _PAY, Aim.MEMORY, "lists the same LUN 16 times", with_luns(*[b""] * 16)),
        ("beyond", _PAY, Aim.MEMORY, "lists LUNs beyond max_lun", with_luns(b"", b"\x40\xff", b"\x7f\xff")),
        ("formats", _PAY, Aim.MEMORY, "lists LUNs of formats that there are not",
         with_luns(b"", b"\x80\1", b"\xc1\1", b"\xd2\0\0\1", b"\xff" * 8)),
        ("levels", _PAY, Aim.MEMORY, "lists LUNs of four levels", with_luns(b"", b"\0\1\0\2\0\3\0\4")),
        ("short", _LEN, Aim.LEAK, "returns 3 bytes of its list", with_data(lambda d: d[:3])),
    ))

_MODES: Final = tuple(
    on(f"mode-{name}", surface, aim, summary, one_of(frozenset({Opcode.MODE_SENSE_6, Opcode.MODE_SENSE_10})), change)
    for name, surface, aim, summary, change in (
        ("length-max", _LEN, Aim.MEMORY, "says that its mode pages have 255 bytes", with_bytes(0, b"\xff")),
        ("length-zero", _LEN, Aim.MEMORY, "says that its mode pages have no byte", with_bytes(0, b"\0")),
        ("descriptors", _LEN, Aim.MEMORY, "says that block descriptors take 255 bytes", with_bytes(3, b"\xff")),
        ("page", _PAY, Aim.DECEPTION, "returns another mode page than was asked for", with_bytes(12, b"\x1c\xff")),
        ("page-length", _LEN, Aim.MEMORY, "says that a mode page has 255 bytes", with_bytes(13, b"\xff")),
        ("short", _LEN, Aim.LEAK, "returns 3 bytes of mode pages", with_data(lambda d: d[:3])),
        ("filled", _PAY, Aim.MEMORY, "returns nothing but ones for mode pages", with_data(lambda d: b"\xff" * len(d))),
    ))

UNIT_ROWS: Final[tuple[Row, ...]] = (*_INQUIRIES, *_VPDS, *_SIZES, *_LISTS, *_MODES)
"""Attacks by what a unit says of itself."""
