"""Secured messages of SPDM (DMTF DSP0277): what is around what is sealed.

A mailbox and TCP have no sequence numbers, as they lose nothing; MCTP has two bytes of them (DSP0276).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Self

from chamber.wire.errors import WireError

__all__ = ("TAG_SIZE", "SecuredMessage")

TAG_SIZE: Final = 16
_HEAD: Final = 6
_SPEC: Final = "DSP0277, 8"


@dataclass(frozen=True, slots=True)
class SecuredMessage:
    """One sealed message.

    Attributes:
        session_id: half of each end.
        sealed: ciphertext and tag.
        sequence: the low bytes of the message's number, where the transport has them.

    """

    session_id: int
    sealed: bytes
    sequence: bytes = b""

    @property
    def head(self) -> bytes:
        """What stands before it, and is authenticated with it."""
        return self.session_id.to_bytes(4, "little") + self.sequence + len(self.sealed).to_bytes(2, "little")

    def encode(self) -> bytes:
        """Return its bytes."""
        return self.head + self.sealed

    @classmethod
    def decode(cls, data: bytes, sequence_size: int = 0) -> Self:
        """Read one; bytes behind it fill a double word up.

        Raises:
            WireError: it does not hold what it says.

        """
        start = _HEAD + sequence_size
        if len(data) < start:
            raise WireError("a secured message has a head", spec=_SPEC, detail=f"{len(data)} bytes")
        size = int.from_bytes(data[start - 2:start], "little")
        if not TAG_SIZE <= size <= len(data) - start:
            raise WireError("a secured message has a tag, and ends in what carries it", spec=_SPEC,
                            detail=f"{size} of {len(data) - start} bytes")
        return cls(int.from_bytes(data[:4], "little"), data[start:start + size], data[4:start - 2])
