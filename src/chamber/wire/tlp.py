"""Transaction layer packets outside of flits (PCI Express Base Specification 6.1, 2.2): memory requests, completions.

A packet is a header of three or four double words, big-endian, and a payload of whole ones; byte enables say which
bytes of the first and the last are meant.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Final

from chamber.wire.errors import WireError

__all__ = ("MAX_PAYLOAD", "Completion", "CompletionStatus", "MemoryRead", "MemoryWrite", "Packet", "decode_packet")

MAX_PAYLOAD: Final = 4096
"""Bytes that a packet can carry, or ask for; no packet crosses a multiple of it either (2.2.7)."""
_SPEC: Final = "PCIe 6.1, 2.2"


class _Form(enum.IntEnum):
    """The header's first byte: form and type."""

    READ_32 = 0x00
    READ_64 = 0x20
    WRITE_32 = 0x40
    WRITE_64 = 0x60
    COMPLETION = 0x0A
    COMPLETION_DATA = 0x4A


class CompletionStatus(enum.IntEnum):
    """Status of a completion (2.2.9.1)."""

    SUCCESS = 0
    UNSUPPORTED_REQUEST = 1
    REQUEST_RETRY = 2
    COMPLETER_ABORT = 4


@dataclass(frozen=True, slots=True)
class MemoryWrite:
    """A posted write.

    Attributes:
        requester: bus, device and function of whoever writes.
        address: of its first byte.
        data: at least one byte.

    """

    requester: int
    address: int
    data: bytes

    def encode(self) -> tuple[bytes, bytes]:
        """Return header and payload."""
        lead = self.address % 4
        header = _request(_Form.WRITE_32, self.requester, 0, self.address, len(self.data))
        return header, (bytes(lead) + self.data).ljust(_words(self.address, len(self.data)) * 4, b"\0")


@dataclass(frozen=True, slots=True)
class MemoryRead:
    """A read, which a `Completion` with the same tag answers.

    Attributes:
        requester: who asks.
        tag: which of its reads it is.
        address: of the first byte.
        length: bytes.

    """

    requester: int
    tag: int
    address: int
    length: int

    def encode(self) -> tuple[bytes, bytes]:
        """Return header and payload."""
        return _request(_Form.READ_32, self.requester, self.tag, self.address, self.length), b""


@dataclass(frozen=True, slots=True)
class Completion:
    """The answer to a read.

    Attributes:
        completer: who answers.
        requester: who had asked.
        tag: of the read.
        data: what was read; nothing unless the status is SUCCESS.
        status: how it went.
        lower_address: the low seven bits of the address that was read.

    """

    completer: int
    requester: int
    tag: int
    data: bytes
    status: CompletionStatus = CompletionStatus.SUCCESS
    lower_address: int = 0

    def encode(self) -> tuple[bytes, bytes]:
        """Return header and payload."""
        count = _words(self.lower_address, len(self.data))
        form = _Form.COMPLETION_DATA if self.data else _Form.COMPLETION
        second = self.completer << 16 | self.status << 13 | len(self.data) & 0xFFF
        third = self.requester << 16 | self.tag << 8 | self.lower_address & 0x7F
        header = _pack(form << 24 | count & 0x3FF, second, third)
        return header, (bytes(self.lower_address % 4) + self.data).ljust(count * 4, b"\0") if self.data else b""


Packet = MemoryWrite | MemoryRead | Completion


def decode_packet(header: bytes, payload: bytes) -> Packet:
    """Read a packet.

    Raises:
        WireError: it is of none of these kinds, or its lengths contradict each other.

    """
    if len(header) not in {12, 16}:
        raise WireError("a header has three or four double words", spec=_SPEC, detail=f"{len(header)} bytes")
    first, second, third, *more = (int.from_bytes(header[at:at + 4], "big") for at in range(0, len(header), 4))
    try:
        form = _Form(first >> 24)
    except ValueError:
        raise WireError("the packet is of no known type", spec=_SPEC, detail=f"{first >> 24:#04x}") from None
    if bool(more) != (form in {_Form.READ_64, _Form.WRITE_64}):
        raise WireError("the header is not as long as its form says", spec=_SPEC)
    count = 0 if form is _Form.COMPLETION else first & 0x3FF or 1024
    has_data = form in {_Form.WRITE_32, _Form.WRITE_64, _Form.COMPLETION_DATA}
    if len(payload) != (count * 4 if has_data else 0):
        raise WireError("the payload is not as long as the header says", spec=_SPEC,
                        detail=f"{len(payload)} bytes for {count} double words")
    if form in {_Form.COMPLETION, _Form.COMPLETION_DATA}:
        return _completion(second, third, payload)
    address, length = _span((third << 32 | more[0]) if more else third, second, count)
    if not has_data:
        return MemoryRead(second >> 16, second >> 8 & 0xFF, address, length)
    return MemoryWrite(second >> 16, address, payload[address % 4:address % 4 + length])


def _completion(second: int, third: int, payload: bytes) -> Completion:
    number, lower = second >> 13 & 7, third & 0x7F
    if number not in tuple(CompletionStatus):
        raise WireError("the completion's status is reserved", spec="PCIe 6.1, 2.2.9.1", detail=str(number))
    length = (second & 0xFFF or MAX_PAYLOAD) if payload else 0
    if _words(lower, length) * 4 != len(payload):
        raise WireError("the byte count is not that of the payload", spec="PCIe 6.1, 2.2.9.1")
    data = payload[lower % 4:lower % 4 + length]
    return Completion(second >> 16, third >> 16, third >> 8 & 0xFF, data, CompletionStatus(number), lower)


def _words(address: int, length: int) -> int:
    """Return how many double words so many bytes from there on touch."""
    return (address % 4 + length + 3) // 4 if length else 0


def _request(form: _Form, requester: int, tag: int, address: int, length: int) -> bytes:
    if length < 1 or address % MAX_PAYLOAD + length > MAX_PAYLOAD:
        raise ValueError("a packet has one byte at least, and crosses no page")
    count = _words(address, length)
    end = (address + length) % 4 or 4
    first_be, last_be = 0xF << address % 4 & 0xF, 0xF >> 4 - end
    if count == 1:
        first_be, last_be = first_be & last_be, 0
    wide = address >= 1 << 32
    first = (form | (0x20 if wide else 0)) << 24 | count & 0x3FF
    second = requester << 16 | tag << 8 | last_be << 4 | first_be
    where = (address >> 32, address & 0xFFFFFFFC) if wide else (address & 0xFFFFFFFC,)
    return _pack(first, second, *where)


def _span(start: int, second: int, count: int) -> tuple[int, int]:
    """Return address and length that byte enables leave of so many double words."""
    first_be, last_be = second & 0xF, second >> 4 & 0xF
    if (count == 1) != (last_be == 0) or not first_be:
        raise WireError("the byte enables do not fit the length", spec="PCIe 6.1, 2.2.5",
                        detail=f"{second & 0xFF:#04x}")
    head = (first_be & -first_be).bit_length() - 1
    tail = (last_be or first_be).bit_length()
    length = (count - 1) * 4 + tail - head
    bits = (1 << length) - 1 << head if count == 1 else 0
    if (first_be != bits) if count == 1 else (first_be != 0xF << head & 0xF or last_be & last_be + 1):
        raise WireError("the byte enables have gaps", spec="PCIe 6.1, 2.2.5", detail=f"{second & 0xFF:#04x}")
    address = (start & ~3) + head
    if address % MAX_PAYLOAD + length > MAX_PAYLOAD:
        raise WireError("the packet crosses a page", spec="PCIe 6.1, 2.2.7", detail=f"{length} bytes at {address:#x}")
    return address, length


def _pack(*words: int) -> bytes:
    return b"".join(word.to_bytes(4, "big") for word in words)
