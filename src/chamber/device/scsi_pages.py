"""What a SCSI disk says about itself: INQUIRY data, vital product data, mode pages (SPC-4, SBC-3)."""

from __future__ import annotations

import hashlib
import struct
from dataclasses import dataclass
from typing import Final

from chamber.wire.scsi_commands import VpdPage

__all__ = ("DiskFacts", "inquiry", "mode_pages", "vpd_page")

_VENDOR: Final = b"CHAMBER "
_PRODUCT: Final = b"virtual disk    "
_REVISION: Final = b"1   "
_VERSIONS: Final = (0x00A0, 0x0460, 0x04C0)
"""SAM-5, SPC-4, SBC-3."""
_SPC_4: Final = 6
_INQUIRY_SIZE: Final = 96

_ERROR_RECOVERY: Final = 0x01
_CACHING: Final = 0x08
_CONTROL: Final = 0x0A
_ALL_PAGES: Final = 0x3F
_CHANGEABLE: Final = 1


@dataclass(frozen=True, slots=True)
class DiskFacts:
    """What pages are made from.

    Attributes:
        serial: serial number, printable ASCII.
        block_size: bytes of a logical block.
        physical_exponent: a physical block is so many powers of two of it.
        max_blocks: blocks that one command may move, zero or repeat.
        unmap_blocks: blocks that one UNMAP may name.
        unmap_ranges: ranges that one UNMAP may have.

    """

    serial: bytes
    block_size: int
    physical_exponent: int
    max_blocks: int
    unmap_blocks: int
    unmap_ranges: int


def inquiry() -> bytes:
    """Return standard INQUIRY data: a disk (SPC-4, 6.6.2)."""
    versions = b"".join(v.to_bytes(2, "big") for v in _VERSIONS)
    head = struct.pack(">BBBBBBBB8s16s4s", 0, 0, _SPC_4, 0x12, _INQUIRY_SIZE - 5, 0, 0, 0x02,
                       _VENDOR, _PRODUCT, _REVISION)
    return (head.ljust(58, b"\0") + versions).ljust(_INQUIRY_SIZE, b"\0")


def vpd_page(page: int, facts: DiskFacts) -> bytes | None:
    """Return a page of vital product data; None if there is no such page."""
    content = {
        VpdPage.SUPPORTED_PAGES: bytes(VpdPage),
        VpdPage.SERIAL_NUMBER: facts.serial,
        VpdPage.IDENTIFICATION: _identification(facts),
        VpdPage.BLOCK_LIMITS: struct.pack(
            # WSNZ: a WRITE SAME names its blocks. Then transfers, UNMAP, WRITE SAME.
            ">BBHIIIIIIIQ20x", 1, 0, 1 << facts.physical_exponent, facts.max_blocks, facts.max_blocks, 0,
            facts.unmap_blocks, facts.unmap_ranges, 1 << facts.physical_exponent, 1 << 31, facts.max_blocks),
        VpdPage.BLOCK_CHARACTERISTICS: struct.pack(">H58x", 1),  # does not rotate
        # UNMAP and both WRITE SAMEs unmap; what is unmapped reads as zeros; thin provisioning.
        VpdPage.PROVISIONING: struct.pack(">BBBx", 0, 0xE4, 2),
    }.get(page)  # type: ignore[call-overload]  # any number may be asked for
    return None if content is None else struct.pack(">BBH", 0, page, len(content)) + content


def _identification(facts: DiskFacts) -> bytes:
    """Name the disk twice: by vendor and serial number, and by a number of 64 bits that is made of it."""
    number = int.from_bytes(hashlib.sha256(facts.serial).digest()[:8], "big")
    name = (0x3 << 60 | number >> 4).to_bytes(8, "big")  # NAA 3: assigned locally
    text = _VENDOR + facts.serial
    return bytes((0x02, 0x01, 0, len(text))) + text + bytes((0x01, 0x03, 0, len(name))) + name


def mode_pages(page: int, subpage: int, control: int) -> bytes | None:
    """Return mode pages; None if there are no such pages (SPC-4, 7.5; SBC-3, 6.4).

    Args:
        page: page code, 3Fh for all.
        subpage: 0, or FFh for all.
        control: 0 for current values, 1 for which can be changed, 2 for defaults.

    """
    pages = {
        _ERROR_RECOVERY: bytes((0xC0,)).ljust(10, b"\0"),
        _CACHING: bytes((0x04,)).ljust(18, b"\0"),  # WCE: writes are cached until they are flushed
        _CONTROL: bytes((0, 0x10)).ljust(10, b"\0"),  # commands may be reordered
    }
    wanted = sorted(pages) if page == _ALL_PAGES else [page]
    if subpage not in {0, 0xFF} or not pages.keys() >= set(wanted):
        return None
    return b"".join(bytes((code, len(pages[code]))) + (bytes(len(pages[code])) if control == _CHANGEABLE
                                                       else pages[code]) for code in wanted)
