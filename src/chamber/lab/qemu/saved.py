"""A guest as it was at one moment: what others begin from, in a tenth of the time that a boot takes."""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass

__all__ = ("SavedGuest", "copy_memory", "guest_memory")


@dataclass(frozen=True, slots=True)
class SavedGuest:
    """What `QemuGuest.save` returned; to be closed.

    Attributes:
        memory: the guest's memory, a file of which only what was touched is there.
        state: everything else, as QEMU wrote it.

    """

    memory: int
    state: bytes

    def close(self) -> None:
        """Let go of the memory."""
        os.close(self.memory)


def guest_memory(size: int) -> int:
    """Return a descriptor of memory for a guest, `size` bytes, which goes with the last process that has it."""
    memory = os.memfd_create("chamber-guest")
    os.ftruncate(memory, size)
    return memory


def copy_memory(source: int, target: int) -> None:
    """Copy what was touched of a guest's memory; the rest takes no room in the copy either."""
    end = 0
    while True:
        try:
            begin = os.lseek(source, end, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:  # nothing but a hole up to the end
                return
            raise
        end = os.lseek(source, begin, os.SEEK_HOLE)
        os.lseek(target, begin, os.SEEK_SET)
        at = begin
        while at < end:
            at += os.sendfile(target, source, at, end - at)
