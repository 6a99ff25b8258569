"""How a root port takes keys and ranges from the platform's TSM: registers of Chamber's own in a designated capability.

The specifications leave it to the platform (PCIe 6.1, 6.33.3: "implementation-specific"). On hardware they would be the
TSM's alone; here whoever is root in the kernel that has the port is that.
"""

from __future__ import annotations

import enum
from typing import Final

from chamber.wire.ide_km import KEY_SIZE
from chamber.wire.layout import Field, Layout, Role
from chamber.wire.pci import DESIGNATED

__all__ = ("DESIGNATED_ID", "KEYS", "KEY_SET", "SUB_STREAM_SHIFT", "TRANSMIT", "KeyCommand")

DESIGNATED_ID: Final = 0x4B43
SUB_STREAM_SHIFT: Final = 4
TRANSMIT: Final = 1 << 8
KEY_SET: Final = 1 << 9


class KeyCommand(enum.IntEnum):
    """Low four bits of the command; sub-stream, direction and key set are above them."""

    PROGRAM = 1
    """Take the key and the first counter."""
    GO = 2
    STOP = 3
    ACCEPT = 4
    """Have memory requests to the range carry the T bit."""
    RELEASE = 5
    """Have none carry it."""


KEYS: Final = Layout(
    "root port keys", "docs/tsm.md",
    Field("header", f"bytes:{DESIGNATED.size}", Role.BYTES), Field("reserved", "bytes:2", Role.BYTES),
    *(Field(f"key{word}", "le32") for word in range(KEY_SIZE // 4)),
    Field("counter", "le64"), Field("address", "le64", Role.OFFSET), Field("length", "le64", Role.LENGTH),
    Field("command", "le32", Role.ENUM), Field("status", "le32", Role.ENUM),
)
"""A write of ``command`` does it, and ``status`` is 0 if that was possible. Keys read as zero."""
