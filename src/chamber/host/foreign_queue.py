"""A queue in the host's own memory, which a device works on as if its driver had made it.

What its descriptors name is any memory that the device reaches: of a trusted device, all that is the guest's.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Final

from chamber.platform.memory import HOST_PAGES
from chamber.wire.blk import REQUEST, BlkStatus, RequestType
from chamber.wire.split import DESC, DESC_F_NEXT, DESC_F_WRITE, DESC_SIZE, SplitLayout

if TYPE_CHECKING:
    from chamber.host.hypervisor import Hypervisor
    from chamber.host.ways import Way

__all__ = ("DATA_AT", "ForeignQueue")

_REQUESTS_AT: Final = 0x1_0000
_REQUEST_ROOM: Final = 0x40
"""Bytes for the header of a request, and its status."""
_STATUS_AT: Final = 0x20
_PENDING: Final = 0xFF
DATA_AT: Final = 0x2_0000
"""Where in the host's memory data has room."""


class ForeignQueue:
    """Queue 0 of a disk, in a host's hands.

    Args:
        host: whose memory it is in.
        way: how the device is told of it.

    """

    def __init__(self, host: Hypervisor, way: Way) -> None:
        self._memory = host.memory
        self._way = way
        self._count = 0
        size = host.virtio.device.queue_size
        self._desc, self._avail, _ = (address - HOST_PAGES for address in SplitLayout(size).legacy_areas(HOST_PAGES))
        way.start(size, HOST_PAGES)

    def add(self, kind: RequestType, sector: int, address: int, length: int) -> int:
        """Have the disk move bytes between its sectors and some memory, once it is notified; return the number."""
        number, self._count = self._count, self._count + 1
        memory, at = self._memory, _REQUESTS_AT + number * _REQUEST_ROOM
        header = bytes(REQUEST.pack(type=kind, sector=sector))
        memory[at:at + len(header)] = header
        memory[at + _STATUS_AT] = _PENDING
        into = DESC_F_WRITE if kind == RequestType.IN else 0
        first = 3 * number
        for place, entry in enumerate((
                (HOST_PAGES + at, len(header), DESC_F_NEXT, first + 1),
                (address, length, DESC_F_NEXT | into, first + 2),
                (HOST_PAGES + at + _STATUS_AT, 1, DESC_F_WRITE, 0)), first):
            DESC.pack_into(memory, self._desc + place * DESC_SIZE, *entry)
        struct.pack_into("<H", memory, self._avail + 4 + 2 * number, first)
        struct.pack_into("<HH", memory, self._avail, 0, self._count)
        return number

    def notify(self) -> None:
        """Notify the device, if the way leads there; else it looks when its driver notifies it."""
        self._way.notify()

    def done(self, number: int) -> bool:
        """Whether a request was answered with success."""
        return self._memory[_REQUESTS_AT + number * _REQUEST_ROOM + _STATUS_AT] == BlkStatus.OK
