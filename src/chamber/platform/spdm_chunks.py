"""Large messages, put together from pieces and cut into them (DMTF DSP0274 1.2): the same at both ends.

The other end is not to be trusted with sizes: nothing is kept beyond what it has said at first, which has a limit, and
a piece that adds nothing ends the transfer.
"""

from __future__ import annotations

from typing import Final

from chamber.wire.errors import WireError
from chamber.wire.spdm_chunks import CHUNK_HEAD, Chunk

__all__ = ("LARGEST", "PIECES_SINCE", "TRANSFER_SIZE", "Assembly", "Cutter")

PIECES_SINCE: Final = 0x12
"""The version that has them."""
TRANSFER_SIZE: Final = 0x1200
"""Bytes of a message that an end takes at once, where nobody says otherwise,"""
LARGEST: Final = 0x1_0000
"""and of a message at all."""

_SPEC: Final = "DSP0274, 10"
_TOTAL: Final = 4


class Assembly:
    """A message on its way.

    Args:
        handle: of the transfer.
        limit: bytes that the whole may have.

    """

    def __init__(self, handle: int, limit: int) -> None:
        self._handle = handle
        self._limit = limit
        self._data = bytearray()
        self._total = 0
        self._next = 0

    def take(self, chunk: Chunk) -> bytes | None:
        """Add a piece; return the whole with the last one, None before.

        Raises:
            WireError: the piece is not the next one, or sizes do not add up.

        """
        if chunk.handle != self._handle or chunk.sequence != self._next:
            raise WireError("pieces come one after the other", spec=_SPEC, detail=f"{chunk.handle}, {chunk.sequence}")
        if chunk.total is not None:
            self._total = chunk.total
            if self._total > self._limit:
                raise WireError("a message is no larger than was agreed on", spec=_SPEC, detail=f"{self._total} bytes")
        self._data += chunk.data
        self._next += 1
        if not chunk.data or len(self._data) > self._total or (len(self._data) == self._total) is not chunk.last:
            raise WireError("pieces are as large as the whole", spec=_SPEC,
                            detail=f"{len(self._data)} of {self._total} bytes")
        return bytes(self._data) if chunk.last else None


class Cutter:
    """A message to be given away.

    Args:
        handle: of the transfer.
        data: the message.
        size: bytes that the other end takes at once.

    """

    def __init__(self, handle: int, data: bytes, size: int) -> None:
        self.handle = handle
        self._data = data
        self._room = size - CHUNK_HEAD

    def piece(self, sequence: int) -> Chunk:
        """Return a piece.

        Raises:
            WireError: there is none of that number.

        """
        first = self._room - _TOTAL
        begin = 0 if not sequence else first + self._room * (sequence - 1)
        end = begin + (self._room if sequence else first)
        if begin >= len(self._data):
            raise WireError("a piece that is asked for is there", spec=_SPEC, detail=str(sequence))
        return Chunk(self.handle, sequence, self._data[begin:end], end >= len(self._data),
                     None if sequence else len(self._data))
