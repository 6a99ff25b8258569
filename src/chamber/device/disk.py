"""What a block device keeps its sectors in: memory or a raw file."""

from __future__ import annotations

import ctypes
import os
from typing import TYPE_CHECKING, Final, Protocol

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ("Disk", "FileDisk", "MemoryDisk")

_FALLOC_FL_KEEP_SIZE: Final = 1
_FALLOC_FL_PUNCH_HOLE: Final = 2
_FALLOC_FL_ZERO_RANGE: Final = 16
_PIECE: Final = 1 << 20
_IOV_MAX: Final = 1024


class Disk(Protocol):
    """Bytes by offset. The block device checks every range against `size` before it asks; I/O may raise OSError."""

    size: int
    read_only: bool

    def read(self, offset: int, length: int) -> bytes | memoryview:
        """Return exactly `length` bytes."""
        ...

    def read_into(self, offset: int, views: list[memoryview]) -> None:
        """Fill `views`, one after the other."""
        ...

    def write(self, offset: int, data: bytes) -> None:
        """Store bytes."""
        ...

    def zero(self, offset: int, length: int, *, unmap: bool) -> None:
        """Make a range read as zeros; `unmap` allows to give its storage back."""
        ...

    def flush(self) -> None:
        """Make what was written durable."""
        ...

    def close(self) -> None:
        """Give everything back."""
        ...


class MemoryDisk:
    """Sectors in a bytearray, which the owner may look into at any time."""

    def __init__(self, data: bytearray, *, read_only: bool = False) -> None:
        self.data = data
        self.size = len(data)
        self.read_only = read_only
        self._view = memoryview(data)

    def read(self, offset: int, length: int) -> memoryview:
        """Return exactly `length` bytes."""
        return self._view[offset:offset + length]

    def read_into(self, offset: int, views: list[memoryview]) -> None:
        """Fill `views`, one after the other."""
        for view in views:
            view[:] = self._view[offset:offset + len(view)]
            offset += len(view)

    def write(self, offset: int, data: bytes) -> None:
        """Store bytes."""
        self.data[offset:offset + len(data)] = data

    def zero(self, offset: int, length: int, *, unmap: bool) -> None:  # noqa: ARG002 - memory has no holes
        """Make a range read as zeros."""
        self.data[offset:offset + length] = bytes(length)

    def flush(self) -> None:
        """Memory is as durable as it gets."""

    def close(self) -> None:
        """Nothing to give back."""


class FileDisk:
    """Sectors in a raw file or block device.

    Raises:
        OSError: the file cannot be opened.

    """

    def __init__(self, path: Path, *, read_only: bool = False) -> None:
        self._fd = os.open(path, (os.O_RDONLY if read_only else os.O_RDWR) | os.O_CLOEXEC)
        self.size = os.lseek(self._fd, 0, os.SEEK_END)
        self.read_only = read_only
        self._fallocate = ctypes.CDLL(None, use_errno=True).fallocate
        self._fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)

    def read(self, offset: int, length: int) -> bytes:
        """Return exactly `length` bytes; a file that was cut short behind our back is an error."""
        data = os.pread(self._fd, length, offset)
        if len(data) != length:
            raise OSError(f"{len(data)} bytes read of {length} at {offset}")
        return data

    def read_into(self, offset: int, views: list[memoryview]) -> None:
        """Fill `views`, one after the other, without a copy in between; a file that was cut short is an error."""
        for start in range(0, len(views), _IOV_MAX):
            part = views[start:start + _IOV_MAX]
            length = sum(map(len, part))
            done = os.preadv(self._fd, part, offset)
            if done != length:
                raise OSError(f"{done} bytes read of {length} at {offset}")
            offset += length

    def write(self, offset: int, data: bytes) -> None:
        """Store bytes."""
        view = memoryview(data)
        while view:
            done = os.pwrite(self._fd, view, offset)
            view = view[done:]
            offset += done

    def zero(self, offset: int, length: int, *, unmap: bool) -> None:
        """Make a range read as zeros, by the file system where it can."""
        how = _FALLOC_FL_PUNCH_HOLE if unmap else _FALLOC_FL_ZERO_RANGE
        if self._fallocate(self._fd, how | _FALLOC_FL_KEEP_SIZE, offset, length) == 0:
            return
        for start in range(offset, offset + length, _PIECE):
            self.write(start, bytes(min(_PIECE, offset + length - start)))

    def flush(self) -> None:
        """Make what was written durable."""
        os.fdatasync(self._fd)

    def close(self) -> None:
        """Close the file."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
