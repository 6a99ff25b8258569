"""Messages of a PCI function that a virtio device carries: User-Mode Linux's PCI bus (``linux/virtio_pcidev.h``).

Queue 0 takes commands: a readable message, with data behind it where it writes, and room for an answer where it reads.
Queue 1 holds buffers of the guest for what the function says by itself: interrupts. The header is in the machine's own
byte order, data is little-endian.
"""

from __future__ import annotations

import enum
import struct
from dataclasses import dataclass
from typing import Final, Self

from chamber.wire.errors import WireError

__all__ = ("COMMAND_QUEUE", "DEVICE_ID", "EVENT_QUEUE", "MAX_ACCESS", "Message", "Operation")

DEVICE_ID: Final = 1234
"""The virtio id that kernels of `chamber lab build` expect: of a number's choice, as the bus has none of its own."""
COMMAND_QUEUE, EVENT_QUEUE = 0, 1
MAX_ACCESS: Final = 4096
"""Bytes that one access moves at most; a guest's driver copies no more than a page at a time."""

_HEADER: Final = struct.Struct("=BBHIQ")
_SPEC: Final = "linux/virtio_pcidev.h"


class Operation(enum.IntEnum):
    """What a message asks for, or says."""

    CFG_READ = 1
    CFG_WRITE = 2
    MMIO_READ = 3
    MMIO_WRITE = 4
    MMIO_MEMSET = 5
    INT = 6
    MSI = 7
    PME = 8


_COMMANDS: Final = frozenset({Operation.CFG_READ, Operation.CFG_WRITE, Operation.MMIO_READ, Operation.MMIO_WRITE,
                              Operation.MMIO_MEMSET})
_READS: Final = frozenset({Operation.CFG_READ, Operation.MMIO_READ})


@dataclass(frozen=True, slots=True)
class Message:
    """One message.

    Attributes:
        operation: what it is.
        bar: which BAR, for accesses to one.
        size: bytes of the access.
        address: where in configuration space or BAR; of an INTx its pin, from 1.
        data: what is written; of MMIO_MEMSET one byte.

    """

    operation: Operation
    bar: int = 0
    size: int = 0
    address: int = 0
    data: bytes = b""

    @property
    def reads(self) -> bool:
        """Whether it wants an answer of `size` bytes."""
        return self.operation in _READS

    @classmethod
    def parse_command(cls, data: bytes) -> Self:
        """Read a command of the guest's.

        Raises:
            WireError: it is cut short, asks for what a guest can't, or for too much.

        """
        if len(data) < _HEADER.size:
            raise WireError("a message has a header", spec=_SPEC, detail=f"{len(data)} bytes")
        number, bar, _, size, address = _HEADER.unpack_from(data)
        if number not in _COMMANDS:
            raise WireError("a guest reads and writes, and says nothing else", spec=_SPEC, detail=f"operation {number}")
        operation = Operation(number)
        if size > MAX_ACCESS:
            raise WireError(f"an access moves at most {MAX_ACCESS} bytes", spec=_SPEC, detail=str(size))
        rest = data[_HEADER.size:]
        needed = 0 if operation in _READS else 1 if operation is Operation.MMIO_MEMSET else size
        if len(rest) < needed:
            raise WireError("a write brings its bytes along", spec=_SPEC, detail=f"{len(rest)} of {needed}")
        return cls(operation, bar, size, address, rest[:needed])

    def pack(self) -> bytes:
        """Return the bytes of the message."""
        return _HEADER.pack(self.operation, self.bar, 0, self.size, self.address) + self.data
