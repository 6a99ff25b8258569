"""A guest's memory: pages that belong to it alone, and pages that it shares with its host."""

from __future__ import annotations

import ctypes
import fcntl
import mmap
import os
from typing import TYPE_CHECKING, Final

from chamber.wire.errors import DmaFault

if TYPE_CHECKING:
    from collections.abc import Callable

    from chamber.platform.dma import Dma

__all__ = ("HOST_PAGES", "PAGE", "GuestMemory", "HostView", "PrivateView", "WithHostPages")

PAGE: Final = 4096
HOST_PAGES: Final = 1 << 40
"""Guest-physical addresses from here on are shared by their highest bit, and are what the host maps there."""
_MAP_FIXED: Final = 0x10
_SEALS: Final = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long)


class GuestMemory:
    """Physical memory of a guest on a memfd, with an owner for each page.

    A private page is the guest's alone, as an RMP entry or a TDX key makes it. The guest itself reaches everything by
    `read` and `write`; its host and devices only what `host` lets them.

    Args:
        size: bytes, whole pages.
        private: whether pages start private (a confidential guest) or shared (any other).

    Attributes:
        faults: what the host tried and was not let.
        watch: called after each read by the guest of memory that the host can write: the moment at which a host would
            rewrite what was just checked.

    """

    def __init__(self, size: int, *, private: bool) -> None:
        if size <= 0 or size % PAGE:
            raise ValueError("guest memory is a whole number of pages")
        self.size = size
        self.faults: list[DmaFault] = []
        self.watch: Callable[[int, int], None] | None = None
        self._device_memory: tuple[int, memoryview] | None = None
        self._in_files: list[tuple[int, int]] = []
        fd = os.memfd_create("guest-memory", os.MFD_CLOEXEC)
        try:
            os.truncate(fd, size)
            self._map = mmap.mmap(fd, size)
        finally:
            os.close(fd)
        self._shared = bytearray(b"\0" if private else b"\1") * (size // PAGE)
        self.host = HostView(self)

    def close(self) -> None:
        """Give the memory back."""
        self._device_memory = None
        try:
            self._map.close()
        except BufferError:
            del self._map  # a device still holds a view of a ring; the last view takes the mapping with it

    def show_device_memory(self, address: int, memory: memoryview) -> None:
        """Show a device's own memory to the guest, beyond the guest's.

        No byte of it can be trusted at any time: the host writes it while the guest reads it.

        Raises:
            ValueError: it overlaps the guest's memory.

        """
        if address < self.size:
            raise ValueError("a device's memory lies beyond the guest's")
        self._device_memory = (address, memory)

    def _of_device(self, address: int, length: int) -> memoryview | None:
        if self._device_memory is None:
            return None
        start, memory = self._device_memory
        at = address - start
        return memory[at:at + length] if 0 <= at <= at + length <= len(memory) else None

    def share(self, address: int, length: int) -> None:
        """Let the host reach the pages of a range."""
        self._set(address, length, 1)

    def unshare(self, address: int, length: int) -> None:
        """Take pages back.

        Raises:
            ValueError: whoever has the file of `move_to_file` would keep them.

        """
        if any(start < address + length and address < end for start, end in self._in_files):
            raise ValueError("pages that were moved to a file stay shared")
        self._set(address, length, 0)

    def _set(self, address: int, length: int, owner: int) -> None:
        if address % PAGE or length % PAGE or not 0 <= address <= address + length <= self.size:
            raise ValueError("ownership changes by whole pages of the guest's memory")
        self._shared[address // PAGE:(address + length) // PAGE] = bytes([owner]) * (length // PAGE)

    def is_shared(self, address: int, length: int) -> bool:
        """Whether the host can reach all of a range."""
        if length <= 0 or address < 0 or address + length > self.size:
            return False
        return 0 not in self._shared[address // PAGE:(address + length - 1) // PAGE + 1]

    def shared_ranges(self) -> list[tuple[int, int]]:
        """(address, length) of every run of shared pages."""
        ranges: list[tuple[int, int]] = []
        start = None
        for page, owner in enumerate(bytes(self._shared) + b"\0"):
            if owner and start is None:
                start = page
            elif not owner and start is not None:
                ranges.append((start * PAGE, (page - start) * PAGE))
                start = None
        return ranges

    def move_to_file(self, address: int, length: int) -> int:
        """Move shared pages to a file of their own; return its descriptor, which is the caller's to close.

        A host in another process is given memory by the file, and has all of the file then, whatever it was told to
        map: nothing private may be in it. Nor can it cut the file short, which would end the guest at its next access.
        Pages that are moved again are lost to whoever has the file from before.

        Raises:
            ValueError: not all of the pages are shared.
            OSError: no memory for it.

        """
        if address % PAGE or length % PAGE or not self.is_shared(address, length):
            raise ValueError("whole shared pages are moved")
        fd = os.memfd_create("shared-pages", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.truncate(fd, length)
            fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _SEALS)
            os.pwrite(fd, self._map[address:address + length], 0)
            at = ctypes.addressof(ctypes.c_char.from_buffer(self._map, address))
            if _libc.mmap(at, length, mmap.PROT_READ | mmap.PROT_WRITE, mmap.MAP_SHARED | _MAP_FIXED, fd, 0) != at:
                raise OSError(ctypes.get_errno(), "pages can't be moved to a file")
        except BaseException:
            os.close(fd)
            raise
        self._in_files.append((address, address + length))
        return fd

    def read(self, address: int, length: int) -> bytes:
        """Read as the guest's processor does; where nothing answers, all bits are one."""
        if address >= self.size:
            found = self._of_device(address, length)
            if found is None:
                return b"\xff" * min(length, self.size)
            data = bytes(found)
            if self.watch is not None:
                self.watch(address, length)
            return data
        data = self._map[address:address + length]
        if self.watch is not None and self.is_shared(address, length):
            self.watch(address, length)
        return data

    def write(self, address: int, data: bytes | bytearray | memoryview) -> None:
        """Write as the guest's processor does; what nothing takes is lost."""
        if address >= self.size:
            found = self._of_device(address, len(data))
            if found is not None:
                found[:] = bytes(data)
            return
        self._map[address:address + len(data)] = bytes(data)

    def peek(self, address: int, length: int) -> bytes:
        """Look at memory without anybody noticing; for oracles."""
        return self._map[address:address + length]

    def raw_view(self, address: int, length: int) -> memoryview:
        """Return a live view; for `HostView`."""
        return memoryview(self._map)[address:address + length]


class _View:
    """Guest memory as somebody reaches it (implements `chamber.platform.dma.Dma`)."""

    def __init__(self, memory: GuestMemory) -> None:
        self._memory = memory

    def _check(self, address: int, length: int, access: str) -> None:
        """Raise `DmaFault` for what is out of reach."""
        raise NotImplementedError

    def read(self, address: int, length: int) -> bytes:
        """Copy bytes."""
        self._check(address, length, "read")
        return self._memory.peek(address, length)

    def write(self, address: int, data: bytes | bytearray | memoryview) -> None:
        """Store bytes."""
        self._check(address, len(data), "write")
        self._memory.write(address, data)

    def view(self, address: int, length: int) -> memoryview:
        """Return a live view."""
        self._check(address, length, "view")
        return self._memory.raw_view(address, length)


class HostView(_View):
    """Guest memory as the host and its devices reach it: shared pages only.

    Attributes:
        observer: sees all that a device reads, if set.

    """

    def __init__(self, memory: GuestMemory) -> None:
        super().__init__(memory)
        self.observer: Callable[[bytes], None] | None = None

    def _check(self, address: int, length: int, access: str) -> None:
        if length and not self._memory.is_shared(address, length):
            fault = DmaFault(address, length, access, "a private page, or none at all")
            self._memory.faults.append(fault)
            raise fault

    def read(self, address: int, length: int) -> bytes:
        """Copy bytes out of shared pages."""
        data = super().read(address, length)
        if self.observer is not None:
            self.observer(data)
        return data


class PrivateView(_View):
    """All of a guest's memory, as requests of a trusted device reach it."""

    def _check(self, address: int, length: int, access: str) -> None:
        if not 0 <= address <= address + length <= self._memory.size:
            raise DmaFault(address, length, access, "no memory of the guest's")


class WithHostPages:
    """A guest's memory, and pages of the host's own from `HOST_PAGES` on (implements `chamber.platform.dma.Dma`).

    What kind of request a device makes does not keep it from memory that is shared: a host can have it read there what
    the guest has never written.

    Args:
        memory: the guest's.
        pages: the host's.

    """

    def __init__(self, memory: Dma, pages: bytearray) -> None:
        self._memory = memory
        self._pages = memoryview(pages)

    def _of_host(self, address: int, length: int) -> memoryview | None:
        at = address - HOST_PAGES
        return self._pages[at:at + length] if 0 <= at <= at + length <= len(self._pages) else None

    def read(self, address: int, length: int) -> bytes:
        """Copy bytes."""
        found = self._of_host(address, length)
        return self._memory.read(address, length) if found is None else bytes(found)

    def write(self, address: int, data: bytes | bytearray | memoryview) -> None:
        """Store bytes."""
        found = self._of_host(address, len(data))
        if found is None:
            self._memory.write(address, data)
        else:
            found[:] = bytes(data)

    def view(self, address: int, length: int) -> memoryview:
        """Return a live view."""
        found = self._of_host(address, length)
        return self._memory.view(address, length) if found is None else found
