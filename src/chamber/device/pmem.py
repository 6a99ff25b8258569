"""Persistent memory device (virtio 1.3, 5.19): memory of the host that the guest reads and writes without asking."""

from __future__ import annotations

import mmap
import os
from typing import TYPE_CHECKING, ClassVar, Final

from chamber.device.base import Device
from chamber.device.errors import DriverError
from chamber.wire.pmem import CONFIG, FLUSH, REQUEST, RESPONSE, PmemFeature
from chamber.wire.virtio import DeviceType, bit

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from chamber.device.chain import Chain
    from chamber.device.hooks import Hooks
    from chamber.device.queue import DeviceQueue

__all__ = ("FileMedium", "MemoryMedium", "PmemDevice", "SharedMedium")

_START: Final = 1 << 32
_SIZE: Final = 1 << 18
_FAILED: Final = 0xFFFFFFFF
"""ret of a flush that failed: -1."""


class MemoryMedium:
    """A medium in memory: what was flushed survives `power_cut`, the rest does not.

    Attributes:
        live: what the guest reads and writes.

    """

    def __init__(self, size: int) -> None:
        self.live = memoryview(bytearray(size))
        self._durable = bytearray(size)

    def flush(self) -> None:
        """Make it durable."""
        self._durable[:] = self.live

    def power_cut(self) -> None:
        """Lose what was never flushed."""
        self.live[:] = self._durable

    def close(self) -> None:
        """Nothing to give back."""


class SharedMedium(MemoryMedium):
    """A medium in memory that a monitor can map in the place of a BAR. It is all zeros at first.

    Args:
        size: bytes of it.
        file: another's `fd`, whose memory it is to be, as who has mapped that goes on to show it.

    Attributes:
        fd: a file of that memory.

    """

    def __init__(self, size: int, file: int | None = None) -> None:
        super().__init__(size)
        if file is None:
            self.fd = os.memfd_create("chamber-pmem", os.MFD_CLOEXEC)
            os.ftruncate(self.fd, size)
        else:
            self.fd = os.dup(file)
        self._map = mmap.mmap(self.fd, size)
        self.live = memoryview(self._map)
        self.live[:] = bytes(size)

    def close(self) -> None:
        """Give it back; who has mapped it keeps it."""
        self.live.release()
        self._map.close()
        os.close(self.fd)


class FileMedium:
    """A medium in a file, mapped.

    Args:
        path: the file; whole pages.

    Attributes:
        fd: the file, open.

    Raises:
        OSError: it can't be opened or mapped.
        ValueError: it is empty or not whole pages.

    """

    def __init__(self, path: Path) -> None:
        self.fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        try:
            size = os.fstat(self.fd).st_size
            if not size or size % mmap.PAGESIZE:
                raise ValueError(f"{path}: persistent memory is whole pages of {mmap.PAGESIZE} bytes")
            self._map = mmap.mmap(self.fd, size)
        except BaseException:
            os.close(self.fd)
            raise
        self.live = memoryview(self._map)

    def flush(self) -> None:
        """Have the file system write it (msync)."""
        self._map.flush()

    def power_cut(self) -> None:
        """A file does not forget what was written to it."""

    def close(self) -> None:
        """Unmap the file, and close it."""
        self.live.release()
        self._map.close()
        os.close(self.fd)


class PmemDevice(Device):
    """Shows the guest a range of memory, and makes it durable when asked to.

    Args:
        medium: what the memory holds; closed with the device. By default 256 KiB, zeroed.
        start: guest-physical address at which the platform is to show it.
        config: fields of configuration space to set otherwise, by name.
        features: feature bits to offer, SHMEM_REGION for one.
        queue_size: descriptors per queue.
        hooks: interference, if any.

    """

    type: ClassVar[DeviceType] = DeviceType.PMEM

    def __init__(self, medium: MemoryMedium | FileMedium | None = None, *, start: int = _START,
                 config: Mapping[str, int | bytes] | None = None, features: int | None = None, queue_size: int = 64,
                 hooks: Hooks | None = None) -> None:
        self.medium = MemoryMedium(_SIZE) if medium is None else medium
        self.start = start
        values = {"start": start, "size": len(self.medium.live), **(config or {})}
        super().__init__(features=features or 0, config=CONFIG.pack(**values), queues=1, queue_size=queue_size,
                         hooks=hooks)

    @property
    def device_memory(self) -> tuple[int, memoryview]:
        """Where the platform shows which memory."""
        return self.start, self.medium.live

    @property
    def device_memory_file(self) -> int | None:
        """The file behind it."""
        return self.medium.fd if isinstance(self.medium, FileMedium | SharedMedium) else None

    def move_to(self, file: int) -> None:
        """Have its memory in a `SharedMedium`'s file, which a platform shows already, instead of its own.

        Where that is the guest learns from the platform (SHMEM_REGION, 5.19.4).
        """
        self.medium.close()
        self.medium = SharedMedium(os.fstat(file).st_size, file)
        CONFIG.put(self.config, "size", len(self.medium.live))
        self.offer(bit(PmemFeature.SHMEM_REGION))

    def show_at(self, address: int) -> None:
        """Have the platform show its memory elsewhere."""
        self.start = address
        CONFIG.put(self.config, "start", address)

    def close(self) -> None:
        """Close the medium."""
        self.medium.close()

    def host_action(self, action: str) -> None:
        """Cut the power, ``power-cut``: what was flushed stays."""
        if action == "power-cut":
            self.medium.power_cut()

    def handle(self, queue: DeviceQueue, chain: Chain) -> None:
        """Serve a request; flush is all that there is (5.19.6)."""
        request = chain.read(0, REQUEST.size)
        if len(request) < REQUEST.size or chain.writable_size < RESPONSE.size:
            self.report(DriverError("a request has a type and room for a response", spec="5.19.6", detail=repr(chain)))
            self.complete(queue, chain, 0)
            return
        result = _FAILED
        if REQUEST.get(request, "type") == FLUSH:
            try:
                self.medium.flush()
                result = 0
            except OSError as error:
                self.log(f"flush failed: {error}")
        self.log(f"flush: {'ok' if not result else 'failed'}")
        self.complete(queue, chain, self.respond(queue, chain, bytes(RESPONSE.pack(ret=result))))
