"""Persistent memory driver (virtio 1.3, 5.19).

The device's memory is the host's, byte for byte and at every moment. What the driver can see to is that it is where no
memory of the guest is, and that what it reads is read once.
"""

from __future__ import annotations

from typing import Final

from chamber.guest.driver import TRANSPORT_FEATURES, Refused, VirtioDriver
from chamber.platform.memory import PAGE
from chamber.wire.pmem import CONFIG, FLUSH, REQUEST, REQUEST_QUEUE, RESPONSE, SHARED_MEMORY_ID, PmemFeature
from chamber.wire.virtio import DeviceType, bit

__all__ = ("RECORD_SIZE", "PmemDriver")

RECORD_SIZE: Final = 256
"""Bytes of the longest record, besides its length."""
_LENGTH: Final = 4
_UNANSWERED: Final = 0x5A5A5A5A
_ADDRESSES: Final = 1 << 46
"""Physical addresses that this guest's processor has."""


class PmemDriver(VirtioDriver):
    """Keeps records in persistent memory: a length, then that many bytes.

    Attributes:
        start: where it lies.
        size: bytes.

    """

    type = DeviceType.PMEM
    known = allowed = TRANSPORT_FEATURES | bit(PmemFeature.SHMEM_REGION)
    config_layout = CONFIG

    def queue_indexes(self) -> list[int]:
        """Return the one queue."""
        return [REQUEST_QUEUE]

    def initialise(self) -> None:
        """Find the memory, and see that it is no memory of the guest's own."""
        if self.has(PmemFeature.SHMEM_REGION):
            region = self.transport.shared_memory(SHARED_MEMORY_ID)
            if region is None:
                raise Refused("the device has no shared memory region")
            start, size = (self.checks.number(value) for value in region)
        else:
            start, size = self.read_config("start"), self.read_config("size")
        self.start = start.at_most(_ADDRESSES - PAGE, "the memory can be addressed", "5.19.4")
        self.size = size.between(PAGE, _ADDRESSES, "there is a page of memory", "5.19.4")
        self.checks.require(self.start % PAGE == 0 and self.size % PAGE == 0, "the memory is whole pages", "5.19.4")
        self.checks.require(self.start + self.size <= _ADDRESSES, "the memory ends where addresses do", "5.19.4")
        # A range that overlaps memory of the guest would make the guest write its data over itself.
        self.checks.require(self.start >= self.machine.memory.size, "the memory is none of the guest's own", "5.19.4",
                            f"{self.start:#x}")

    def config_changed(self) -> None:
        """See that the memory did not move: nothing in the guest could follow it."""
        if not self.has(PmemFeature.SHMEM_REGION):
            self.read_config("start").equals(self.start, "the memory stays where it is", "5.19.4")
            self.size = self.read_config("size").equals(self.size, "the memory stays as large as it is", "5.19.4")

    def _where(self, offset: int, length: int) -> int:
        if offset + length > self.size:
            raise Refused("beyond the end of the memory")
        return self.start + offset

    def write_record(self, offset: int, data: bytes) -> None:
        """Store a record; `flush` makes it durable."""
        where = self._where(offset, _LENGTH + len(data))
        self.machine.memory.write(where, len(data).to_bytes(_LENGTH, "little") + data)

    def read_record(self, offset: int) -> bytes:
        """Fetch a record.

        Raises:
            DeviceViolation: its length can't be.

        """
        memory = self.machine.memory
        where = self._where(offset, _LENGTH + RECORD_SIZE)
        buffer = self.machine.heap.alloc(RECORD_SIZE, "record", zero=True)
        try:
            length = self.checks.number(int.from_bytes(memory.read(where, _LENGTH), "little")).at_most(
                RECORD_SIZE, "a record is no longer than records are", "5.19.2")
            if not self.machine.profile.checked:
                # As code does that reads the length where it stands each time that it needs it.
                length = int.from_bytes(memory.read(where, _LENGTH), "little") & 0xFFFF
            buffer.write(memory.read(where + _LENGTH, length))
            return buffer.read(0, length)
        finally:
            self.machine.heap.free(buffer)

    def flush(self) -> None:
        """Have the host make everything written durable; that it did is its word.

        Raises:
            Refused: the host says that it failed.

        """
        heap = self.machine.heap
        request = heap.alloc(REQUEST.size, "flush")
        request.write(bytes(REQUEST.pack(type=FLUSH)))
        response = heap.alloc(RESPONSE.size, "flush response")
        response.write(bytes(RESPONSE.pack(ret=_UNANSWERED)))
        try:
            written = self.transact(self.queue(REQUEST_QUEUE), [request], [], response)
            self.checks.number(written).equals(RESPONSE.size, "a response has its own size", "5.19.6")
            result = self.checks.number(response.get(0, 4)).one_of(
                (0, 0xFFFFFFFF), "a flush is done or failed", "5.19.6")
            if result:
                raise Refused(f"the flush failed: {result:#x}")
        finally:
            self.release(request, response)
