"""Data Object Exchange: a mailbox in configuration space, and what goes through it (PCIe 6.1, 6.30 and 7.9.24).

SPDM reaches a device by it, and TDISP within SPDM. A data object tells its length in double words, so that what is in
it has to know its own.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Final, Self

from chamber.wire.errors import WireError
from chamber.wire.layout import Field, Layout, Role

__all__ = (
    "MAILBOX",
    "MOST_WORDS",
    "PCI_SIG",
    "WORD",
    "DataObject",
    "DiscoveryRequest",
    "DiscoveryResponse",
    "DoeControl",
    "DoeStatus",
    "DoeType",
    "object_words",
)

PCI_SIG: Final = 0x0001
"""The vendor whose types those of `DoeType` are."""
WORD: Final = 4
MOST_WORDS: Final = 1 << 18
"""Double words of the longest data object, its header included (6.30.1)."""
_HEADER_WORDS: Final = 2
_SPEC: Final = "PCIe 6.1, 6.30.1"

MAILBOX: Final = Layout(
    "Data Object Exchange extended capability", "PCIe 6.1, 7.9.24",
    Field("id", "le16", Role.ID), Field("version_next", "le16", Role.OFFSET),
    Field("capabilities", "le32", Role.FLAGS), Field("control", "le32", Role.FLAGS),
    Field("status", "le32", Role.FLAGS), Field("write", "le32"), Field("read", "le32"),
)
"""Bit 0 of ``capabilities`` says that there is an interrupt, the eleven bits after it which."""


class DoeControl(enum.IntFlag):
    """Control register (7.9.24.3)."""

    ABORT = 1 << 0
    INTERRUPT_ENABLE = 1 << 1
    GO = 1 << 31


class DoeStatus(enum.IntFlag):
    """Status register (7.9.24.4)."""

    BUSY = 1 << 0
    INTERRUPT = 1 << 1
    ERROR = 1 << 2
    READY = 1 << 31


class DoeType(enum.IntEnum):
    """Types of the PCI-SIG's data objects."""

    DISCOVERY = 0
    SPDM = 1
    SECURED_SPDM = 2


def object_words(second: int) -> int:
    """Return how many double words a data object has, by the second one of its header.

    Raises:
        WireError: fewer than the header.

    """
    words = second & MOST_WORDS - 1 or MOST_WORDS
    if words < _HEADER_WORDS:
        raise WireError("a data object is no shorter than its header", spec=_SPEC, detail=f"{words} double words")
    return words


@dataclass(frozen=True, slots=True)
class DataObject:
    """One data object.

    Attributes:
        vendor: whose type it is.
        type: as `DoeType`, where the vendor is `PCI_SIG`.
        payload: what is in it; up to three bytes at its end may be padding.

    """

    vendor: int
    type: int
    payload: bytes

    def encode(self) -> bytes:
        """Return its bytes, filled up to a double word.

        Raises:
            ValueError: it is too long.

        """
        words = _HEADER_WORDS + -(-len(self.payload) // WORD)
        if words > MOST_WORDS:
            raise ValueError(f"a data object of {words} double words")
        head = self.vendor | self.type << 16, words % MOST_WORDS
        return b"".join(word.to_bytes(WORD, "little") for word in head) + self.payload.ljust(
            (words - _HEADER_WORDS) * WORD, b"\0")

    @classmethod
    def decode(cls, data: bytes) -> Self:
        """Read one that is as long as it says.

        Raises:
            WireError: it is not.

        """
        if len(data) < _HEADER_WORDS * WORD:
            raise WireError("a data object has a header", spec=_SPEC, detail=f"{len(data)} bytes")
        first, second = (int.from_bytes(data[at:at + WORD], "little") for at in (0, WORD))
        if object_words(second) * WORD != len(data):
            raise WireError("a data object is as long as it says", spec=_SPEC,
                            detail=f"{len(data)} bytes, where it says {object_words(second)} double words")
        return cls(first & 0xFFFF, first >> 16 & 0xFF, data[_HEADER_WORDS * WORD:])


@dataclass(frozen=True, slots=True)
class DiscoveryRequest:
    """Asks which protocol has a number (6.30.1.1)."""

    index: int
    version: int = 0

    def encode(self) -> bytes:
        """Return the payload."""
        return bytes((self.index, self.version, 0, 0))

    @classmethod
    def decode(cls, payload: bytes) -> Self:
        """Read a payload.

        Raises:
            WireError: it is no such request.

        """
        return cls(*_four(payload)[:2])


@dataclass(frozen=True, slots=True)
class DiscoveryResponse:
    """Names a protocol, and the number of the next one, 0 after the last."""

    vendor: int
    type: int
    next_index: int

    def encode(self) -> bytes:
        """Return the payload."""
        return self.vendor.to_bytes(2, "little") + bytes((self.type, self.next_index))

    @classmethod
    def decode(cls, payload: bytes) -> Self:
        """Read a payload.

        Raises:
            WireError: it is no such response.

        """
        four = _four(payload)
        return cls(int.from_bytes(four[:2], "little"), four[2], four[3])


def _four(payload: bytes) -> bytes:
    if len(payload) != WORD:
        raise WireError("discovery takes one double word", spec="PCIe 6.1, 6.30.1.1", detail=f"{len(payload)} bytes")
    return payload
