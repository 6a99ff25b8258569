"""Reads and writes of a disk that go past the page cache, and what the kernel can be asked about one."""

from __future__ import annotations

import fcntl
import mmap
import os
from typing import Final, Self

from chamber.lab.agent.report import WrongData

__all__ = ("BLKDISCARD", "BLKFLSBUF", "BLKRRPART", "BLKZEROOUT", "IOCTLS", "Direct", "compare")

IOCTLS: Final = {
    "BLKROGET": 0x125E, "BLKRAGET": 0x1263, "BLKSSZGET": 0x1268, "BLKPBSZGET": 0x127B, "BLKIOMIN": 0x1278,
    "BLKIOOPT": 0x1279, "BLKALIGNOFF": 0x127A, "BLKGETSIZE64": 0x80081272, "BLKROTATIONAL": 0x127E,
    "HDIO_GETGEO": 0x0301,
}
"""Questions by name."""
BLKFLSBUF: Final = 0x1261
BLKRRPART: Final = 0x125F
BLKDISCARD: Final = 0x1277
BLKZEROOUT: Final = 0x127F


class Direct:
    """Reads and writes that go past the page cache, so that each reaches the device."""

    def __init__(self, disk: str, flags: int) -> None:
        self._fd = os.open(f"/dev/{disk}", flags | os.O_DIRECT)
        self._buffer = mmap.mmap(-1, 1 << 20)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._fd)
        self._buffer.close()

    def read(self, sector: int, count: int) -> bytes:
        """Read sectors of 512 bytes."""
        size = count * 512
        with memoryview(self._buffer)[:size] as view:
            view[:] = b"\xee" * size
            got = os.preadv(self._fd, [view], sector * 512)
            if got != size:
                raise OSError(5, f"read {got} of {size} bytes at sector {sector}")
            return bytes(view)

    def write(self, sector: int, data: bytes) -> None:
        """Write sectors of 512 bytes."""
        with memoryview(self._buffer)[:len(data)] as view:
            view[:] = data
            if os.pwritev(self._fd, [view], sector * 512) != len(data):
                raise OSError(5, f"short write at sector {sector}")

    def flush(self) -> None:
        """Have everything written reach the device, and its medium."""
        os.fsync(self._fd)

    def ioctl(self, request: int, argument: bytes | int = 0) -> None:
        """Ask the kernel for something."""
        fcntl.ioctl(self._fd, request, argument)


def compare(got: bytes, right: bytes, what: str) -> None:
    """Take data for right.

    Raises:
        WrongData: it is not.

    """
    if got != right:
        at = next(i for i in range(len(right)) if got[i:i + 1] != right[i:i + 1])
        raise WrongData(f"{what}: byte {at} is {got[at:at + 16].hex()}, not {right[at:at + 16].hex()}")
