"""Traditional memory balloon device (virtio 1.3, 5.5)."""

from __future__ import annotations

import enum
import struct
from typing import TYPE_CHECKING, Final

from chamber.wire.errors import WireError
from chamber.wire.layout import Field, Layout, Role

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = (
    "CMD_ID_DONE",
    "CMD_ID_FIRST",
    "CMD_ID_STOP",
    "CONFIG",
    "PAGE_SIZE",
    "STAT",
    "BalloonFeature",
    "StatTag",
    "pack_pfns",
    "parse_statistics",
    "queue_roles",
)

PAGE_SIZE: Final = 4096
"""The unit of pages here, whatever pages the guest has (5.5.6)."""

CMD_ID_STOP: Final = 0
CMD_ID_DONE: Final = 1
CMD_ID_FIRST: Final = 2
"""The first number that free_page_hint_cmd_id may have as a command (5.5.6.5)."""


class BalloonFeature(enum.IntEnum):
    """Feature bits (5.5.3)."""

    MUST_TELL_HOST = 0
    STATS_VQ = 1
    DEFLATE_ON_OOM = 2
    FREE_PAGE_HINT = 3
    PAGE_POISON = 4
    PAGE_REPORTING = 5


class StatTag(enum.IntEnum):
    """Memory statistics (5.5.6.4)."""

    SWAP_IN = 0
    SWAP_OUT = 1
    MAJFLT = 2
    MINFLT = 3
    MEMFREE = 4
    MEMTOT = 5
    AVAIL = 6
    CACHES = 7
    HTLB_PGALLOC = 8
    HTLB_PGFAIL = 9
    OOM_KILL = 10
    ALLOC_STALL = 11
    ASYNC_SCAN = 12
    DIRECT_SCAN = 13
    ASYNC_RECLAIM = 14
    DIRECT_RECLAIM = 15


CONFIG: Final = Layout(
    "virtio_balloon_config", "virtio 1.3, 5.5.4",
    Field("num_pages", "le32", Role.COUNT),
    Field("actual", "le32", Role.COUNT),
    Field("free_page_hint_cmd_id", "le32", Role.ID, BalloonFeature.FREE_PAGE_HINT),
    Field("poison_val", "le32", Role.VALUE, BalloonFeature.PAGE_POISON),
)

STAT: Final = struct.Struct("<HQ")
"""tag, val (5.5.6.3)."""


def queue_roles(features: int) -> tuple[str, ...]:
    """What each queue is for, by index; queues that were not negotiated leave no gap (5.5.2)."""
    roles = ["inflate", "deflate"]
    for feature, role in ((BalloonFeature.STATS_VQ, "stats"), (BalloonFeature.FREE_PAGE_HINT, "hint"),
                          (BalloonFeature.PAGE_REPORTING, "report")):
        if features >> feature & 1:
            roles.append(role)
    return tuple(roles)


def pack_pfns(addresses: Iterable[int]) -> bytes:
    """Page frame numbers of guest-physical addresses."""
    numbers = [address // PAGE_SIZE for address in addresses]
    return struct.pack(f"<{len(numbers)}I", *numbers)


def parse_statistics(data: bytes) -> dict[int, int]:
    """Statistics by tag; the last of several counts, and tags may be unknown.

    Raises:
        WireError: the bytes are no whole number of statistics.

    """
    if len(data) % STAT.size:
        raise WireError("a statistic has 10 bytes", spec="virtio 1.3, 5.5.6.3", detail=f"{len(data)} bytes")
    return dict(STAT.iter_unpack(data))
