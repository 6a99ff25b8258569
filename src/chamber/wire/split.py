"""The split virtqueue's layout in memory (virtio 1.3, 2.7)."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final

from chamber.wire.virtio_pci import LEGACY_PAGE

__all__ = (
    "AVAIL_F_NO_INTERRUPT",
    "DESC",
    "DESC_F_INDIRECT",
    "DESC_F_NEXT",
    "DESC_F_WRITE",
    "DESC_SIZE",
    "USED_ELEM",
    "USED_F_NO_NOTIFY",
    "SplitLayout",
    "vring_need_event",
)

DESC: Final = struct.Struct("<QIHH")
"""addr, len, flags, next (2.7.5)."""
DESC_SIZE: Final = 16
DESC_F_NEXT: Final = 1
DESC_F_WRITE: Final = 2
DESC_F_INDIRECT: Final = 4

AVAIL_F_NO_INTERRUPT: Final = 1
USED_F_NO_NOTIFY: Final = 1
USED_ELEM: Final = struct.Struct("<II")
"""id, len (2.7.8)."""


@dataclass(frozen=True, slots=True)
class SplitLayout:
    """Sizes of a split queue's three areas; all offsets in bytes (2.7, 2.7.6, 2.7.8).

    The event words exist in memory whether or not RING_EVENT_IDX was negotiated.
    """

    size: int

    @property
    def desc_bytes(self) -> int:
        """Descriptor table."""
        return DESC_SIZE * self.size

    @property
    def avail_bytes(self) -> int:
        """Driver area: flags, idx, ring[size], used_event."""
        return 6 + 2 * self.size

    @property
    def used_bytes(self) -> int:
        """Device area: flags, idx, ring[size] of (id, len), avail_event."""
        return 6 + 8 * self.size

    @property
    def avail_offset(self) -> int:
        """Where the driver area starts if the three areas lie together."""
        return self.desc_bytes

    @property
    def used_offset(self) -> int:
        """Where the device area starts if the three areas lie together."""
        return (self.avail_offset + self.avail_bytes + 3) & ~3

    def legacy_areas(self, address: int) -> tuple[int, int, int]:
        """Where the areas are of a queue that a legacy driver has told the address of (2.7.2)."""
        driver = address + self.desc_bytes
        return address, driver, -(-(driver + self.avail_bytes) // LEGACY_PAGE) * LEGACY_PAGE

    @property
    def total_bytes(self) -> int:
        """All three areas together."""
        return self.used_offset + self.used_bytes


def vring_need_event(event: int, new: int, old: int) -> bool:
    """Whether moving an index from `old` to `new` passed `event` (2.7.7.1, 2.7.10); all modulo 2**16."""
    return (new - event - 1) & 0xFFFF < (new - old) & 0xFFFF
