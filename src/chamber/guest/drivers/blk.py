"""Block device driver (virtio 1.3, 5.2)."""

from __future__ import annotations

from typing import Final

from chamber.guest.driver import TRANSPORT_FEATURES, Refused, VirtioDriver
from chamber.wire.blk import (
    CONFIG,
    ID_SIZE,
    REQUEST,
    SECTOR_SIZE,
    SEGMENT,
    BlkFeature,
    BlkStatus,
    RequestType,
)
from chamber.wire.virtio import DeviceType, bit

__all__ = ("BlkDriver",)

_F = BlkFeature
_CACHE_TYPES: Final = (b"through\0", b"back\0\0\0\0")
_MAX_SECTORS: Final = (1 << 63) // SECTOR_SIZE
_UNANSWERED: Final = 0xFF


class BlkDriver(VirtioDriver):
    """Reads and writes sectors. What a sector holds is the host's word: integrity is for a layer above.

    Attributes:
        capacity: sectors.
        blk_size: bytes of a logical block.

    """

    type = DeviceType.BLOCK
    known = TRANSPORT_FEATURES | bit(_F.SIZE_MAX, _F.SEG_MAX, _F.GEOMETRY, _F.RO, _F.BLK_SIZE, _F.FLUSH, _F.TOPOLOGY,
                                     _F.CONFIG_WCE, _F.MQ, _F.DISCARD, _F.WRITE_ZEROES)
    allowed = TRANSPORT_FEATURES | bit(_F.SEG_MAX, _F.RO, _F.BLK_SIZE, _F.FLUSH, _F.TOPOLOGY, _F.CONFIG_WCE, _F.MQ,
                                       _F.DISCARD, _F.WRITE_ZEROES)
    config_layout = CONFIG

    def queue_indexes(self) -> list[int]:
        """Return one queue: the guest has one processor."""
        return [0]

    def initialise(self) -> None:
        """Read the limits of the disk."""
        heap = self.machine.heap
        self._cache_types = heap.alloc(sum(map(len, _CACHE_TYPES)), "cache types")
        self._cache_types.write(b"".join(_CACHE_TYPES))
        self.capacity = self.read_config("capacity").at_most(_MAX_SECTORS, "the disk can be addressed", "5.2.4")
        self.blk_size = SECTOR_SIZE
        if self.has(_F.BLK_SIZE):
            self.blk_size = self.read_config("blk_size").one_of(
                tuple(1 << n for n in range(9, 17)), "a block is a power of two from 512 bytes on", "5.2.4")
        self.blocks = self.capacity * SECTOR_SIZE // self.blk_size
        self.seg_max = 1
        if self.has(_F.SEG_MAX):
            self.seg_max = self.read_config("seg_max").between(1, 0xFFFFFFFF, "a request has one segment", "5.2.4")
        self._segments = heap.alloc(16 * min(self.seg_max, 128), "segment list", zero=True)
        self._segments.put(0, 8, 0)
        if self.has(_F.MQ):
            self.read_config("num_queues").between(1, 0xFFFF, "there is a queue", "5.2.4")
        if self.has(_F.TOPOLOGY):
            exponent = self.read_config("topology.physical_block_exp").at_most(
                16, "a physical block is no larger than 32 MiB", "5.2.4")
            self.physical_block = self.blk_size << min(exponent, 64)
        self._range_sectors = {True: 0, False: 0}
        if self.has(_F.DISCARD):
            self._range_sectors[True] = self._range_limit("max_discard")
            self._alignment = self.read_config("discard_sector_alignment").between(
                1, 0xFFFFFFFF, "ranges to discard are aligned to a sector at least", "5.2.4")
        if self.has(_F.WRITE_ZEROES):
            self._range_sectors[False] = self._range_limit("max_write_zeroes")
        if self.has(_F.CONFIG_WCE):
            self.cache_type()

    def _range_limit(self, name: str) -> int:
        """Read how many sectors a range of a DISCARD or WRITE_ZEROES may have; one range at a time is all we send."""
        self.read_config(f"{name}_seg").between(1, 0xFFFFFFFF, "a request has one range at least", "5.2.4")
        return self.read_config(f"{name}_sectors").between(1, 0xFFFFFFFF, "a range has one sector at least", "5.2.4")

    def cache_type(self) -> str:
        """Name the cache mode that the device has now."""
        mode = self.read_config("writeback").at_most(1, "writeback is 0 or 1", "5.2.4")
        width = len(_CACHE_TYPES[0])
        return self._cache_types.read(mode * width, width).rstrip(b"\0").decode()

    def config_changed(self) -> None:
        """Take a new capacity."""
        self.capacity = self.read_config("capacity").at_most(_MAX_SECTORS, "the disk can be addressed", "5.2.4")

    def free_buffers(self) -> None:
        """Free the tables."""
        for name in ("_cache_types", "_segments"):
            memory = getattr(self, name, None)
            if memory is not None and memory.live:
                self.machine.heap.free(memory)

    def read(self, sector: int, count: int) -> bytes:
        """Read sectors.

        Raises:
            Refused: beyond the end, or the device says that it failed.
            DeviceViolation: the device broke a rule.

        """
        size = count * SECTOR_SIZE
        if sector + count > self.capacity:
            raise Refused("beyond the end of the disk")
        data = self.machine.heap.alloc(size, "sectors")
        try:
            self._request(RequestType.IN, sector, into=(data,))
            return data.read(0, size)
        finally:
            self.release(data)

    def write(self, sector: int, data: bytes) -> None:
        """Write whole sectors."""
        if sector + len(data) // SECTOR_SIZE > self.capacity:
            raise Refused("beyond the end of the disk")
        source = self.machine.heap.alloc(len(data), "sectors")
        source.write(data)
        try:
            self._request(RequestType.OUT, sector, outof=(source,))
        finally:
            self.release(source)

    def flush(self) -> None:
        """Have everything written reach the medium."""
        if self.has(_F.FLUSH):
            self._request(RequestType.FLUSH, 0)

    def serial(self) -> bytes:
        """Return the serial number: up to 20 bytes, ended by a zero where it is shorter."""
        text = self.machine.heap.alloc(ID_SIZE, "serial number")
        try:
            self._request(RequestType.GET_ID, 0, into=(text,))
            return text.read(0, ID_SIZE).split(b"\0")[0]
        finally:
            self.release(text)

    def zero(self, sector: int, count: int, *, discard: bool) -> None:
        """Discard sectors, as far as they are aligned, or write zeroes."""
        if not self.has(_F.DISCARD if discard else _F.WRITE_ZEROES):
            raise Refused("the device offers no such request")
        if discard:
            end = (sector + count) // self._alignment * self._alignment
            sector = -(-sector // self._alignment) * self._alignment
            count = end - sector
        for start in range(sector, sector + count, self._range_sectors[discard]):
            part = min(self._range_sectors[discard], sector + count - start)
            self._zero_range(start, part, RequestType.DISCARD if discard else RequestType.WRITE_ZEROES)

    def _zero_range(self, sector: int, count: int, kind: RequestType) -> None:
        segment = self.machine.heap.alloc(SEGMENT.size, "segment")
        segment.write(bytes(SEGMENT.pack(sector=sector, num_sectors=count, flags=0)))
        try:
            self._request(kind, 0, outof=(segment,))
        finally:
            self.release(segment)

    def _request(self, kind: RequestType, sector: int, *, into: tuple = (), outof: tuple = ()) -> None:  # type: ignore[type-arg]
        heap = self.machine.heap
        header = heap.alloc(REQUEST.size, "request header")
        header.write(bytes(REQUEST.pack(type=kind, sector=sector)))
        status = heap.alloc(1, "request status")
        status.put(0, 1, _UNANSWERED)
        room = sum(memory.size for memory in into)
        try:
            written = self.transact(self.queue(0), [header, *outof], [*into], status)
            answer = self.checks.number(status.get(0, 1)).one_of(
                tuple(BlkStatus), "a status is OK, IOERR or UNSUPP", "5.2.6")
            if answer != BlkStatus.OK:
                raise Refused(f"the device answers with status {answer}")
            # Without this, what the device did not write would pass for what the disk holds.
            self.checks.number(written).equals(room + 1, "a request that succeeded was answered in full", "5.2.6")
        finally:
            self.release(header, status)
