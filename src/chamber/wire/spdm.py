"""SPDM messages as far as they set a session up, and how long they are (DMTF DSP0274 1.1 to 1.4).

A mailbox for data objects tells lengths in double words. What fills one up is no part of a message, and must enter no
transcript: the length of a message is read from the message itself.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Final

from chamber.wire.errors import WireError

__all__ = ("Agreed", "Portion", "SpdmCode", "certificate_portion", "message_size", "signature_place")

_SPEC: Final = "DSP0274"
_HEAD: Final = 4
_RANDOM: Final = 32
_LARGE: Final = 0x80
"""Bit of the first parameter by which GET_CERTIFICATE and its answer use 32 bits for offsets and lengths (1.4)."""
_KEY_PAIR: Final = 4
"""What DIGESTS has of each key besides, where keys are told apart: id, model, and usage in two bytes (1.3)."""


class SpdmCode(enum.IntEnum):
    """Codes of requests and responses."""

    DIGESTS = 0x01
    CERTIFICATE = 0x02
    VERSION = 0x04
    CAPABILITIES = 0x61
    ALGORITHMS = 0x63
    KEY_EXCHANGE_RSP = 0x64
    FINISH_RSP = 0x65
    ERROR = 0x7F
    GET_DIGESTS = 0x81
    GET_CERTIFICATE = 0x82
    GET_VERSION = 0x84
    GET_CAPABILITIES = 0xE1
    NEGOTIATE_ALGORITHMS = 0xE3
    KEY_EXCHANGE = 0xE4
    FINISH = 0xE5


@dataclass(frozen=True, slots=True)
class Agreed:
    """What both ends know, and the lengths of messages depend on.

    Attributes:
        hash_size: bytes of a hash.
        exchange_size: bytes of a public key of the key exchange.
        signature_size: bytes of a signature.
        clear_handshake: whether FINISH travels in the clear, so that the answer to the key exchange proves nothing yet.
        multi_key: whether a responder's keys are told apart (1.3).

    """

    hash_size: int
    exchange_size: int
    signature_size: int
    clear_handshake: bool = False
    multi_key: bool = False


@dataclass(frozen=True, slots=True)
class Portion:
    """A piece of a certificate chain, and how much of it is still to come."""

    data: bytes
    remainder: int


class _Reader:
    """Walks through a message, and never beyond it."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.at = 0

    def skip(self, size: int, what: str) -> int:
        """Go over a field; return where it begins."""
        begin, self.at = self.at, self.at + size
        if self.at > len(self.data):
            raise WireError("a message holds its fields", spec=_SPEC, detail=f"{what} ends at byte {self.at}, the "
                                                                             f"message at {len(self.data)}")
        return begin

    def number(self, size: int, what: str) -> int:
        """Read a number."""
        begin = self.skip(size, what)
        return int.from_bytes(self.data[begin:self.at], "little")


def message_size(data: bytes, agreed: Agreed | None = None, request: bytes = b"") -> int:
    """Return how many bytes of `data` are the message that it begins with.

    Args:
        data: the message, and whatever fills it up.
        agreed: what has been agreed on; needed from DIGESTS on.
        request: what it answers; needed for KEY_EXCHANGE_RSP.

    Raises:
        WireError: the message does not fit, or is of a code that sets no session up.

    """
    reader = _Reader(data)
    reader.skip(_HEAD, "the head")
    version, code, first = data[0], data[1], data[2]
    match code:
        case SpdmCode.GET_VERSION | SpdmCode.GET_DIGESTS:
            pass
        case SpdmCode.VERSION:
            reader.skip(1, "what is reserved")
            reader.skip(2 * reader.number(1, "the number of versions"), "the versions")
        case SpdmCode.GET_CAPABILITIES | SpdmCode.CAPABILITIES:
            reader.skip(8 if version < 0x12 else 16, "the capabilities")
        case SpdmCode.NEGOTIATE_ALGORITHMS | SpdmCode.ALGORITHMS:
            length = reader.number(2, "the length")
            if length < reader.at:
                raise WireError("a message is no shorter than its head", spec=_SPEC, detail=f"{length} bytes")
            reader.skip(length - reader.at, "the algorithms")
        case SpdmCode.GET_CERTIFICATE:
            reader.skip(12 if first & _LARGE else 4, "offset and length")
        case SpdmCode.CERTIFICATE:
            return _certificate(data)[1]
        case SpdmCode.ERROR:
            reader.skip(len(data) - _HEAD, "the error's data")
        case _:
            if agreed is None or code not in set(SpdmCode):
                raise WireError("a message has a code that was agreed on how to read", spec=_SPEC, detail=f"{code:#x}")
            _agreed(reader, SpdmCode(code), agreed, request)
    return reader.at


def _agreed(reader: _Reader, code: SpdmCode, agreed: Agreed, request: bytes) -> None:
    version, first, second = reader.data[0], reader.data[2], reader.data[3]
    match code:
        case SpdmCode.DIGESTS:
            each = agreed.hash_size + (_KEY_PAIR if agreed.multi_key else 0)
            reader.skip(second.bit_count() * each, "the digests")
        case SpdmCode.KEY_EXCHANGE:
            reader.skip(4 + _RANDOM + agreed.exchange_size, "the key")
            reader.skip(reader.number(2, "the length of opaque data"), "opaque data")
        case SpdmCode.KEY_EXCHANGE_RSP:
            _answer(reader, agreed, request)
            reader.skip(agreed.signature_size + (0 if agreed.clear_handshake else agreed.hash_size), "the proof")
        case SpdmCode.FINISH | SpdmCode.FINISH_RSP:
            if version >= 0x14:
                reader.skip(reader.number(2, "the length of opaque data"), "opaque data")
            if code is SpdmCode.FINISH:
                reader.skip(agreed.hash_size + (agreed.signature_size if first & 1 else 0), "the proof")
            elif agreed.clear_handshake:
                reader.skip(agreed.hash_size, "the proof")


def _answer(reader: _Reader, agreed: Agreed, request: bytes) -> None:
    """Go over KEY_EXCHANGE_RSP up to its signature; whether a summary of measurements is in it, the request says."""
    if request[1:2] != bytes((SpdmCode.KEY_EXCHANGE,)):
        raise WireError("an answer to a key exchange is read beside its request", spec=_SPEC)
    reader.skip(4 + _RANDOM + agreed.exchange_size, "the key")
    if request[2:3] != b"\0":
        reader.skip(agreed.hash_size, "the summary of measurements")
    reader.skip(reader.number(2, "the length of opaque data"), "opaque data")


def signature_place(answer: bytes, request: bytes, agreed: Agreed) -> int:
    """Return where the signature of KEY_EXCHANGE_RSP begins.

    Raises:
        WireError: the message does not come to it.

    """
    reader = _Reader(answer)
    reader.skip(_HEAD, "the head")
    _answer(reader, agreed, request)
    return reader.skip(agreed.signature_size, "the signature")


def _certificate(data: bytes) -> tuple[Portion, int]:
    reader = _Reader(data)
    reader.skip(_HEAD, "the head")
    width = 4 if data[2] & _LARGE else 2
    if width == 4:
        reader.skip(4, "what is reserved")
    size, remainder = reader.number(width, "the length"), reader.number(width, "the remainder")
    begin = reader.skip(size, "the certificates")
    return Portion(data[begin:reader.at], remainder), reader.at


def certificate_portion(data: bytes) -> Portion:
    """Read CERTIFICATE.

    Raises:
        WireError: it does not hold what it says.

    """
    if data[1:2] != bytes((SpdmCode.CERTIFICATE,)):
        raise WireError("this is CERTIFICATE", spec=_SPEC, detail=data[:2].hex())
    return _certificate(data)[0]
