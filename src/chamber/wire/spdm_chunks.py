"""Pieces of SPDM messages that are larger than what one end takes at once (DMTF DSP0274 1.2).

What a large message says is looked at when all of it is there. Pieces enter no transcript. Their numbers have two bytes
in 1.2 and 1.3, and four from 1.4 on.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Self

from chamber.wire.spdm import Reader, SpdmCode, head, piece_number_size

__all__ = ("CHUNK_HEAD", "Chunk", "ChunkAck", "ChunkGet", "ack_head")

_LAST: Final = 1
_EARLY: Final = 1
_SIZE: Final = 4
CHUNK_HEAD: Final = 12
"""Bytes before a piece; the first one has four more, for the size of the whole."""
_HEAD: Final = 4


def ack_head(version: int) -> int:
    """Return the bytes before what acknowledges a piece goes on with."""
    return _HEAD + piece_number_size(version)


@dataclass(frozen=True, slots=True)
class Chunk:
    """CHUNK_SEND or CHUNK_RESPONSE.

    Attributes:
        handle: which message it is of.
        sequence: which piece, from 0 on.
        data: the piece.
        last: whether it is the last one.
        total: bytes of the whole, in the first; None in others.

    """

    handle: int
    sequence: int
    data: bytes
    last: bool
    total: int | None = None

    def encode(self, version: int, code: SpdmCode) -> bytes:
        """Return its bytes."""
        size = b"" if self.total is None else self.total.to_bytes(_SIZE, "little")
        # Where a number has two bytes, two more are reserved.
        return (head(version, code, _LAST * self.last, self.handle) + self.sequence.to_bytes(4, "little")
                + len(self.data).to_bytes(4, "little") + size + self.data)

    @classmethod
    def decode(cls, data: bytes, code: SpdmCode) -> Self:
        """Read one.

        Raises:
            WireError: it does not hold what it says.

        """
        reader = Reader(data, code)
        width = piece_number_size(data[0])
        sequence = reader.number(width, "the number of the piece")
        reader.skip(4 - width, "what is reserved")
        size = reader.number(4, "the size of the piece")
        total = None if sequence else reader.number(_SIZE, "the size of the message")
        return cls(data[3], sequence, reader.take(size, "the piece"), bool(data[2] & _LAST), total)


@dataclass(frozen=True, slots=True)
class ChunkAck:
    """CHUNK_SEND_ACK.

    Attributes:
        handle: which message.
        sequence: which piece came.
        answer: to the whole, after the last piece, or after an early error.
        early: whether the answer is an error that came before the whole did.

    """

    handle: int
    sequence: int
    answer: bytes = b""
    early: bool = False

    def encode(self, version: int) -> bytes:
        """Return its bytes."""
        return (head(version, SpdmCode.CHUNK_SEND_ACK, _EARLY * self.early, self.handle)
                + self.sequence.to_bytes(piece_number_size(version), "little") + self.answer)

    @classmethod
    def decode(cls, data: bytes) -> Self:
        """Read one; WireError if it is none."""
        reader = Reader(data, SpdmCode.CHUNK_SEND_ACK)
        sequence = reader.number(piece_number_size(data[0]), "the number of the piece")
        return cls(data[3], sequence, data[reader.at:], bool(data[2] & _EARLY))


@dataclass(frozen=True, slots=True)
class ChunkGet:
    """CHUNK_GET.

    Attributes:
        handle: which message.
        sequence: which piece.

    """

    handle: int
    sequence: int

    def encode(self, version: int) -> bytes:
        """Return its bytes."""
        return (head(version, SpdmCode.CHUNK_GET, 0, self.handle)
                + self.sequence.to_bytes(piece_number_size(version), "little"))

    @classmethod
    def decode(cls, data: bytes) -> Self:
        """Read one; WireError if it is none."""
        sequence = Reader(data, SpdmCode.CHUNK_GET).number(piece_number_size(data[0]), "the number of the piece")
        return cls(data[3], sequence)
