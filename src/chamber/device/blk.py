"""Block device (virtio 1.3, 5.2)."""

from __future__ import annotations

import functools
import struct
from typing import TYPE_CHECKING, ClassVar, Final

from chamber.device.base import Device
from chamber.device.disk import MemoryDisk
from chamber.device.errors import DriverError
from chamber.wire.blk import (
    CONFIG,
    ID_SIZE,
    REQUEST_STRUCT,
    SECTOR_SIZE,
    SEGMENT_F_UNMAP,
    SEGMENT_STRUCT,
    BlkFeature,
    BlkStatus,
    RequestType,
)
from chamber.wire.virtio import DeviceType, bit

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from chamber.device.chain import Chain
    from chamber.device.disk import Disk
    from chamber.device.hooks import Hooks
    from chamber.device.queue import DeviceQueue

__all__ = ("PATTERN_KEY", "BlkDevice", "pattern", "pattern_disk", "pattern_sectors")

PATTERN_KEY: Final = 0x63686D6272

_HEADER: Final = REQUEST_STRUCT.size
_REQUEST_LIMIT: Final = 16 << 20
"""Bytes of data that one request may move: a driver can claim terabytes by naming the same page again and again."""
_LARGE: Final = 32 << 10
_RANGE_SECTORS: Final = 1 << 15
_RANGE_SEGMENTS: Final = 16
_WRITEBACK: Final = CONFIG["writeback"].offset

_DEFAULT: Final = bit(BlkFeature.SEG_MAX, BlkFeature.BLK_SIZE, BlkFeature.FLUSH, BlkFeature.TOPOLOGY,
                      BlkFeature.CONFIG_WCE, BlkFeature.MQ, BlkFeature.DISCARD, BlkFeature.WRITE_ZEROES)


def pattern(sector: int) -> bytes:
    """What a sector of `pattern_disk` holds: the number ``sector ^ PATTERN_KEY`` as le64, 64 times.

    The content names its place, so that a guest can tell foreign or stale sectors from right ones by itself.
    """
    return struct.pack("<Q", sector ^ PATTERN_KEY) * 64


def pattern_disk(size: int) -> bytearray:
    """A disk of `size` bytes, whole sectors, each as `pattern` gives it."""
    return pattern_sectors(0, size // SECTOR_SIZE)


def pattern_sectors(first: int, count: int) -> bytearray:
    """What `count` sectors from `first` on hold."""
    return bytearray(_pattern_sectors(first, count))


@functools.lru_cache(maxsize=8)
def _pattern_sectors(first: int, count: int) -> bytes:
    """The same content each time that a device is made, some 10 ms for 4 MiB."""
    return b"".join(map(pattern, range(first, first + count)))


class BlkDevice(Device):
    """A disk.

    Serves IN, OUT, FLUSH, GET_ID, DISCARD and WRITE_ZEROES; other requests end as UNSUPP.

    Args:
        disk: where the sectors are; closed with the device. By default 4 MiB of memory, zeroed.
        serial: what GET_ID returns, cut to 20 bytes.
        num_queues: request queues.
        features: feature bits to offer instead of the default.
        config: fields of configuration space to set otherwise, by name.
        queue_size: descriptors per queue.
        hooks: interference, if any. It is shown the data of a request and the status byte behind it as one response.

    """

    type: ClassVar[DeviceType] = DeviceType.BLOCK

    def __init__(self, disk: Disk | None = None, *, serial: bytes = b"chamber", num_queues: int = 1,
                 features: int | None = None, config: Mapping[str, int | bytes] | None = None, queue_size: int = 256,
                 hooks: Hooks | None = None) -> None:
        self.disk: Disk = MemoryDisk(bytearray(4 << 20)) if disk is None else disk
        self.sectors = self.disk.size // SECTOR_SIZE
        if features is None:
            features = _DEFAULT | (bit(BlkFeature.RO) if self.disk.read_only else 0)
        values: dict[str, int | bytes] = {
            "capacity": self.sectors,
            # The header and the status byte take a descriptor each.
            "seg_max": queue_size - 2,
            "blk_size": SECTOR_SIZE,
            "topology.physical_block_exp": 3,
            "topology.min_io_size": 8,
            "topology.opt_io_size": 64,
            "writeback": 1,
            "num_queues": num_queues,
            "max_discard_sectors": _RANGE_SECTORS,
            "max_discard_seg": _RANGE_SEGMENTS,
            "discard_sector_alignment": 8,
            "max_write_zeroes_sectors": _RANGE_SECTORS,
            "max_write_zeroes_seg": _RANGE_SEGMENTS,
            "write_zeroes_may_unmap": 1,
            **(config or {}),
        }
        self._serial = serial[:ID_SIZE].ljust(ID_SIZE, b"\0")
        self._writeback = CONFIG.pack(**values)[_WRITEBACK]
        self._writethrough = True
        self._requests: dict[int, Callable[[Chain, int, int], tuple[BlkStatus, bytes | memoryview]]] = {
            RequestType.IN: self._in,
            RequestType.OUT: self._out,
            RequestType.FLUSH: self._flush,
            RequestType.GET_ID: self._get_id,
            RequestType.DISCARD: self._discard,
            RequestType.WRITE_ZEROES: self._write_zeroes,
        }
        super().__init__(features=features, config=CONFIG.pack(**values), queues=num_queues, queue_size=queue_size,
                         hooks=hooks)

    def close(self) -> None:
        """Close the disk."""
        self.disk.close()

    def resize(self, sectors: int) -> None:
        """Show the guest that many sectors of the disk, also while it runs (5.2.4).

        Raises:
            ValueError: the disk is smaller.

        """
        if not 0 <= sectors <= self.disk.size // SECTOR_SIZE:
            raise ValueError(f"the disk has {self.disk.size // SECTOR_SIZE} sectors")
        self.sectors = sectors
        CONFIG.put(self.config, "capacity", sectors)
        self.config_changed()

    def host_action(self, action: str) -> None:
        """Take half of the disk away, ``shrink``, or give all of it again, ``grow``."""
        whole = self.disk.size // SECTOR_SIZE
        if action in {"shrink", "grow"}:
            self.resize(whole // 2 if action == "shrink" else whole)

    def features_accepted(self) -> None:
        """Start with the cache mode that the features call for (5.2.5.2)."""
        flush = self.has(BlkFeature.FLUSH)
        if self.has(BlkFeature.CONFIG_WCE):
            self._set_writeback(self._writeback if flush else 0)
        else:
            self._writethrough = not flush

    def config_written(self, offset: int, data: bytes) -> None:
        """Take the cache mode; no other field can be written (5.2.4.1)."""
        at = _WRITEBACK - offset
        if not 0 <= at < len(data) or not self.has(BlkFeature.CONFIG_WCE):
            return
        if data[at] > 1:
            self.report(DriverError("writeback is 0 or 1", spec="5.2.4.1", detail=str(data[at])))
            return
        self._set_writeback(data[at])
        if self._writethrough:
            try:
                self.disk.flush()
            except OSError as error:
                self.log(f"flush failed: {error}")

    def _set_writeback(self, value: int) -> None:
        self.config[_WRITEBACK] = value
        self._writethrough = not value

    def handle(self, queue: DeviceQueue, chain: Chain) -> None:
        """Serve one request."""
        header = chain.read(0, _HEADER)
        room = chain.writable_size - 1
        if len(header) < _HEADER or room < 0:
            self.report(DriverError("a request has a header and a status byte", spec="5.2.6.1", detail=repr(chain)))
            self.complete(queue, chain, 0)
            return
        kind, _, sector = REQUEST_STRUCT.unpack(header)
        if room >= _LARGE and kind == RequestType.IN and self.hooks is None and self._in_place(chain, sector, room):
            if self.trace is not None:
                self.log(f"queue {queue.index}: IN, sector {sector}, {room} bytes in place")
            queue.push(chain.head, room + 1)
            return
        serve = self._requests.get(kind)
        status = BlkStatus.UNSUPP
        data: bytes | memoryview = b""
        if serve is not None:
            try:
                status, data = serve(chain, sector, room)
            except OSError as error:
                self.log(f"{RequestType(kind).name} failed: {error}")
                status = BlkStatus.IOERR
        if self.trace is not None:
            self.log(f"queue {queue.index}: request type {kind}, sector {sector}, {room} bytes back: {status.name}")
        if room > _REQUEST_LIMIT:
            chain.write(bytes((status,)), room)
            self.complete(queue, chain, 0)
            return
        if len(data) < room:
            # The used length covers all from the first byte to the status byte, so all of it is written (2.7.8.2).
            data = bytes(data).ljust(room, b"\0")
        if self.hooks is None:
            last, length = chain.writable[-1]
            if length == 1:
                chain.write(data)
                chain.dma.write(last, bytes((status,)))
            else:
                chain.write(bytes(data) + bytes((status,)))
            queue.push(chain.head, room + 1)
        else:
            self.complete(queue, chain, self.respond(queue, chain, bytes(data) + bytes((status,))))

    def _beyond(self, sector: int, length: int) -> bool:
        """Whether a range of bytes is none that a request may name."""
        if not length % SECTOR_SIZE and sector * SECTOR_SIZE + length <= self.sectors * SECTOR_SIZE:
            return length > _REQUEST_LIMIT
        self.report(DriverError("a request lies within the disk and is whole sectors", spec="5.2.6.1",
                                detail=f"{length} bytes at sector {sector} of {self.sectors}"))
        return True

    def _in(self, _chain: Chain, sector: int, room: int) -> tuple[BlkStatus, bytes | memoryview]:
        if self._beyond(sector, room):
            return BlkStatus.IOERR, b""
        return BlkStatus.OK, self.disk.read(sector * SECTOR_SIZE, room)

    def _in_place(self, chain: Chain, sector: int, room: int) -> bool:
        """Read into the driver's buffers themselves; return whether it went well. A small read is cheaper by a copy."""
        start = sector * SECTOR_SIZE
        if room % SECTOR_SIZE or room > _REQUEST_LIMIT or start + room > self.sectors * SECTOR_SIZE:
            return False
        try:
            self.disk.read_into(start, chain.room(0, room))
        except OSError:
            return False
        chain.write(bytes((BlkStatus.OK,)), room)
        return True

    def _out(self, chain: Chain, sector: int, _room: int) -> tuple[BlkStatus, bytes]:
        length = chain.readable_size - _HEADER
        if self.disk.read_only or self._beyond(sector, length):
            return BlkStatus.IOERR, b""
        self.disk.write(sector * SECTOR_SIZE, chain.read(_HEADER, length))
        if self._writethrough:
            self.disk.flush()
        return BlkStatus.OK, b""

    def _flush(self, _chain: Chain, _sector: int, _room: int) -> tuple[BlkStatus, bytes]:
        if not self.has(BlkFeature.FLUSH):
            return BlkStatus.UNSUPP, b""
        self.disk.flush()
        return BlkStatus.OK, b""

    def _get_id(self, _chain: Chain, _sector: int, room: int) -> tuple[BlkStatus, bytes]:
        return BlkStatus.OK, self._serial[:room]

    def _discard(self, chain: Chain, _sector: int, _room: int) -> tuple[BlkStatus, bytes]:
        if not self.has(BlkFeature.DISCARD):
            return BlkStatus.UNSUPP, b""
        return self._ranges(chain, legal_flags=0, unmap=True), b""

    def _write_zeroes(self, chain: Chain, _sector: int, _room: int) -> tuple[BlkStatus, bytes]:
        if not self.has(BlkFeature.WRITE_ZEROES):
            return BlkStatus.UNSUPP, b""
        return self._ranges(chain, legal_flags=SEGMENT_F_UNMAP, unmap=False), b""

    def _ranges(self, chain: Chain, *, legal_flags: int, unmap: bool) -> BlkStatus:
        """Zero the ranges that a DISCARD or WRITE_ZEROES lists, once all of them are found to be right."""
        length = chain.readable_size - _HEADER
        segments, rest = divmod(length, SEGMENT_STRUCT.size)
        if rest or not 0 < segments <= _RANGE_SEGMENTS or self.disk.read_only:
            return BlkStatus.IOERR
        ranges = list(SEGMENT_STRUCT.iter_unpack(chain.read(_HEADER, length)))
        for sector, count, flags in ranges:
            if flags & ~legal_flags:
                return BlkStatus.UNSUPP
            if count > _RANGE_SECTORS or self._beyond(sector, count * SECTOR_SIZE):
                return BlkStatus.IOERR
        for sector, count, flags in ranges:
            if count:
                self.disk.zero(sector * SECTOR_SIZE, count * SECTOR_SIZE, unmap=unmap or bool(flags & SEGMENT_F_UNMAP))
        if self._writethrough:
            self.disk.flush()
        return BlkStatus.OK
