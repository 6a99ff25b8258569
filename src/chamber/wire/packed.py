"""The packed virtqueue's layout in memory (virtio 1.3, 2.8)."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final

__all__ = (
    "DESC",
    "DESC_F_AVAIL",
    "DESC_F_USED",
    "EVENT",
    "EVENT_FLAGS_DESC",
    "EVENT_FLAGS_DISABLE",
    "EVENT_FLAGS_ENABLE",
    "WRAP",
    "PackedLayout",
    "packed_need_event",
)

DESC: Final = struct.Struct("<QIHH")
"""addr, len, id, flags; a used descriptor leaves addr out (2.8.2, 2.8.13)."""
DESC_F_AVAIL: Final = 1 << 7
DESC_F_USED: Final = 1 << 15

EVENT: Final = struct.Struct("<HH")
"""desc_event_off and desc_event_wrap in one word, then desc_event_flags (2.8.14)."""
EVENT_FLAGS_ENABLE: Final = 0
EVENT_FLAGS_DISABLE: Final = 1
EVENT_FLAGS_DESC: Final = 2
WRAP: Final = 1 << 15
"""The wrap counter beside a ring offset, in event words and notification data."""


@dataclass(frozen=True, slots=True)
class PackedLayout:
    """Sizes of a packed queue's three areas; all offsets in bytes (2.8)."""

    size: int

    @property
    def desc_bytes(self) -> int:
        """Descriptor ring."""
        return DESC.size * self.size

    @property
    def driver_bytes(self) -> int:
        """Driver event suppression structure: about interrupts."""
        return EVENT.size

    @property
    def device_bytes(self) -> int:
        """Device event suppression structure: about notifications of the device."""
        return EVENT.size

    @property
    def driver_offset(self) -> int:
        """Where the driver area starts if the three areas lie together."""
        return self.desc_bytes

    @property
    def device_offset(self) -> int:
        """Where the device area starts if the three areas lie together."""
        return self.desc_bytes + EVENT.size

    @property
    def total_bytes(self) -> int:
        """All three areas together."""
        return self.desc_bytes + 2 * EVENT.size


def packed_need_event(size: int, event: int, new: int, moved: int) -> bool:
    """Whether going `moved` descriptors on to `new` passed the descriptor that `event` names (2.8.10).

    `event` and `new` are ring offsets with `WRAP` as the wrap counter. An event that no ring has, an offset beyond its
    end, was never passed.
    """
    offset = event & (WRAP - 1)
    if offset >= size:
        return False
    # Positions on a circle of two laps, one for each value of the wrap counter.
    behind = ((new & (WRAP - 1)) - offset + (size if (new ^ event) & WRAP else 0)) % (2 * size)
    return 0 < behind <= moved
