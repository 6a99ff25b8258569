"""Secured messages of SPDM over a mailbox for data objects (DMTF DSP0277): what is around what is sealed."""

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

    """

    session_id: int
    sealed: bytes

    @property
    def head(self) -> bytes:
        """What stands before it, and is authenticated with it."""
        return self.session_id.to_bytes(4, "little") + len(self.sealed).to_bytes(2, "little")

    def encode(self) -> bytes:
        """Return its bytes."""
        return self.head + self.sealed

    @classmethod
    def decode(cls, data: bytes) -> Self:
        """Read one; bytes behind it fill a double word up.

        Raises:
            WireError: it does not hold what it says.

        """
        if len(data) < _HEAD:
            raise WireError("a secured message has a head", spec=_SPEC, detail=f"{len(data)} bytes")
        size = int.from_bytes(data[4:_HEAD], "little")
        if not TAG_SIZE <= size <= len(data) - _HEAD:
            raise WireError("a secured message has a tag, and ends in what carries it", spec=_SPEC,
                            detail=f"{size} of {len(data) - _HEAD} bytes")
        return cls(int.from_bytes(data[:4], "little"), data[_HEAD:_HEAD + size])
