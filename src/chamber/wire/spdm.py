"""SPDM's codes, and how long its messages are (DMTF DSP0274 1.1 to 1.4).

A mailbox for data objects tells lengths in double words. What fills one up is no part of a message, and must enter no
transcript: the length of a message is read from the message itself.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Final

from chamber.wire.errors import WireError

__all__ = (
    "CONTEXT_SIZE", "ENCAPSULATED_MORE", "ENCAPSULATED_SLOT", "NONCE_SIZE", "Agreed", "ErrorCode", "Portion", "Reader",
    "SpdmCode", "certificate_portion", "head", "message_size", "piece_number_size",
    "signature_place")

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
    CHALLENGE_AUTH = 0x03
    VERSION = 0x04
    CHUNK_SEND_ACK = 0x05
    CHUNK_RESPONSE = 0x06
    MEASUREMENTS = 0x60
    CAPABILITIES = 0x61
    ALGORITHMS = 0x63
    KEY_EXCHANGE_RSP = 0x64
    FINISH_RSP = 0x65
    PSK_EXCHANGE_RSP = 0x66
    PSK_FINISH_RSP = 0x67
    HEARTBEAT_ACK = 0x68
    KEY_UPDATE_ACK = 0x69
    ENCAPSULATED_REQUEST = 0x6A
    ENCAPSULATED_RESPONSE_ACK = 0x6B
    END_SESSION_ACK = 0x6C
    VENDOR_DEFINED_RESPONSE = 0x7E
    ERROR = 0x7F
    GET_DIGESTS = 0x81
    GET_CERTIFICATE = 0x82
    CHALLENGE = 0x83
    GET_VERSION = 0x84
    CHUNK_SEND = 0x85
    CHUNK_GET = 0x86
    GET_MEASUREMENTS = 0xE0
    GET_CAPABILITIES = 0xE1
    NEGOTIATE_ALGORITHMS = 0xE3
    KEY_EXCHANGE = 0xE4
    FINISH = 0xE5
    PSK_EXCHANGE = 0xE6
    PSK_FINISH = 0xE7
    HEARTBEAT = 0xE8
    KEY_UPDATE = 0xE9
    GET_ENCAPSULATED_REQUEST = 0xEA
    DELIVER_ENCAPSULATED_RESPONSE = 0xEB
    END_SESSION = 0xEC
    VENDOR_DEFINED_REQUEST = 0xFE


class ErrorCode(enum.IntEnum):
    """First parameter of ERROR."""

    INVALID_REQUEST = 0x01
    BUSY = 0x03
    UNEXPECTED_REQUEST = 0x04
    UNSPECIFIED = 0x05
    DECRYPT_ERROR = 0x06
    UNSUPPORTED_REQUEST = 0x07
    SESSION_LIMIT_EXCEEDED = 0x0A
    SESSION_REQUIRED = 0x0B
    RESPONSE_TOO_LARGE = 0x0D
    REQUEST_TOO_LARGE = 0x0E
    LARGE_RESPONSE = 0x0F
    VERSION_MISMATCH = 0x41
    REQUEST_RESYNCH = 0x43


_PLAIN: Final = frozenset({
    SpdmCode.GET_VERSION, SpdmCode.GET_DIGESTS, SpdmCode.HEARTBEAT, SpdmCode.HEARTBEAT_ACK, SpdmCode.KEY_UPDATE,
    SpdmCode.KEY_UPDATE_ACK, SpdmCode.END_SESSION, SpdmCode.END_SESSION_ACK, SpdmCode.GET_ENCAPSULATED_REQUEST})
"""Messages that are a head and nothing else."""
_ENCAPSULATING: Final = frozenset({SpdmCode.ENCAPSULATED_REQUEST, SpdmCode.DELIVER_ENCAPSULATED_RESPONSE,
                                   SpdmCode.ENCAPSULATED_RESPONSE_ACK})
CONTEXT_SIZE: Final = 8
"""Bytes that a requester adds of its own to some requests, for the answer to repeat (from 1.3 on)."""
NONCE_SIZE: Final = 32
ENCAPSULATED_MORE: Final = 1
"""Payload of ENCAPSULATED_RESPONSE_ACK: another request."""
ENCAPSULATED_SLOT: Final = 2
"""Payload of it: which of the requester's certificate chains it is to be."""


def head(version: int, code: SpdmCode, first: int = 0, second: int = 0) -> bytes:
    """Return the four bytes that a message begins with."""
    return bytes((version, code, first, second))


@dataclass(frozen=True, slots=True)
class Agreed:
    """What both ends know, and the lengths of messages depend on.

    Attributes:
        hash_size: bytes of a hash.
        exchange_size: bytes of what a requester gives to the key exchange.
        signature_size: bytes of a responder's signature.
        clear_handshake: whether FINISH travels in the clear, so that the answer to the key exchange proves nothing yet.
        multi_key: whether a responder's keys are told apart (1.3).
        requester_signature_size: bytes of a requester's signature.
        answer_size: bytes of what a responder gives to the key exchange; 0 for as many as the requester.

    """

    hash_size: int
    exchange_size: int
    signature_size: int
    clear_handshake: bool = False
    multi_key: bool = False
    requester_signature_size: int = 0
    answer_size: int = 0

    @property
    def exchanged(self) -> int:
        """Bytes of what a responder gives to the key exchange."""
        return self.answer_size or self.exchange_size


@dataclass(frozen=True, slots=True)
class Portion:
    """A piece of a certificate chain, and how much of it is still to come."""

    data: bytes
    remainder: int


class Reader:
    """Walks through a message, and never beyond it.

    Args:
        data: the message.
        code: what it has to be, if that matters.

    Raises:
        WireError: it is another message, or ends in its head.

    """

    def __init__(self, data: bytes, code: SpdmCode | None = None) -> None:
        self.data = data
        self.at = 0
        self.skip(_HEAD, "the head")
        if code is not None and data[1] != code:
            raise WireError(f"this is {code.name}", spec=_SPEC, detail=data[:_HEAD].hex())

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

    def take(self, size: int, what: str) -> bytes:
        """Read bytes."""
        begin = self.skip(size, what)
        return self.data[begin:self.at]

    def counted(self, what: str, width: int = 2) -> bytes:
        """Read bytes behind their number."""
        return self.take(self.number(width, f"the length of {what}"), what)


def message_size(data: bytes, agreed: Agreed | None = None, request: bytes = b"") -> int:
    """Return how many bytes of `data` are the message that it begins with.

    Args:
        data: the message, and whatever fills it up.
        agreed: what has been agreed on; needed from DIGESTS on.
        request: what it answers; needed for KEY_EXCHANGE_RSP.

    Raises:
        WireError: the message does not fit, or is of a code that sets no session up.

    """
    reader = Reader(data)
    version, code, first = data[0], data[1], data[2]
    match code:
        case _ if code in _PLAIN:
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
        case _ if code in _ENCAPSULATING:
            _encapsulated(reader, code, agreed)
        case SpdmCode.CHALLENGE | SpdmCode.GET_MEASUREMENTS:
            nonce = NONCE_SIZE if code == SpdmCode.CHALLENGE else (NONCE_SIZE + 1) * (first & 1)
            reader.skip(nonce + (CONTEXT_SIZE if version >= 0x13 else 0), "the nonce")
        case SpdmCode.VENDOR_DEFINED_REQUEST | SpdmCode.VENDOR_DEFINED_RESPONSE:
            reader.skip(2, "the registry")
            reader.counted("the vendor's id", 1)
            reader.counted("the payload")
        case SpdmCode.CHUNK_SEND | SpdmCode.CHUNK_RESPONSE | SpdmCode.CHUNK_GET:
            _piece(reader, code)
        case SpdmCode.ERROR | SpdmCode.CHUNK_SEND_ACK:
            reader.skip(len(data) - _HEAD, "what follows")
        case _:
            if agreed is None or code not in set(SpdmCode):
                raise WireError("a message has a code that was agreed on how to read", spec=_SPEC, detail=f"{code:#x}")
            _agreed(reader, SpdmCode(code), agreed, request)
    return reader.at


def piece_number_size(version: int) -> int:
    """Return the bytes of a piece's number: in DMTF's libspdm (`spdm_chunk_send_request_14_t`) as in spdm-rs."""
    return 4 if version >= 0x14 else 2


def _piece(reader: Reader, code: int) -> None:
    """Go over a piece of a message, or the question for one."""
    width = piece_number_size(reader.data[0])
    sequence = reader.number(width, "the number of the piece")
    if code != SpdmCode.CHUNK_GET:
        reader.skip(4 - width, "what is reserved")
        size = reader.number(4, "the size of the piece")
        reader.skip((0 if sequence else 4) + size, "the piece")


def _encapsulated(reader: Reader, code: int, agreed: Agreed | None) -> None:
    """Go over a message that is around another one."""
    data = reader.data
    if code == SpdmCode.ENCAPSULATED_RESPONSE_ACK:
        reader.skip(4 if data[0] >= 0x12 else 0, "the request that is acknowledged")
    reader.skip(_inner_size(data[reader.at:], code, data[3], agreed), "what is encapsulated")


def _inner_size(inner: bytes, code: int, kind: int, agreed: Agreed | None) -> int:
    """Return how long what is encapsulated is; it encapsulates nothing itself."""
    if code == SpdmCode.ENCAPSULATED_RESPONSE_ACK and kind != ENCAPSULATED_MORE:
        return int(kind == ENCAPSULATED_SLOT)
    if len(inner) > 1 and inner[1] in _ENCAPSULATING:
        raise WireError("what is encapsulated encapsulates nothing", spec=_SPEC)
    return message_size(inner, agreed)


def _agreed(reader: Reader, code: SpdmCode, agreed: Agreed, request: bytes) -> None:
    version, first, second = reader.data[0], reader.data[2], reader.data[3]
    match code:
        case SpdmCode.DIGESTS:
            each = agreed.hash_size + (_KEY_PAIR if agreed.multi_key else 0)
            reader.skip(second.bit_count() * each, "the digests")
        case SpdmCode.CHALLENGE_AUTH | SpdmCode.MEASUREMENTS:
            _attested(reader, code, agreed, request)
        case SpdmCode.PSK_EXCHANGE | SpdmCode.PSK_EXCHANGE_RSP | SpdmCode.PSK_FINISH | SpdmCode.PSK_FINISH_RSP:
            _shared(reader, code, agreed, request)
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
                reader.skip(agreed.hash_size + (agreed.requester_signature_size if first & 1 else 0), "the proof")
            elif agreed.clear_handshake:
                reader.skip(agreed.hash_size, "the proof")


def _shared(reader: Reader, code: SpdmCode, agreed: Agreed, request: bytes) -> None:
    """Go over a message of a session whose secret was shared before."""
    match code:
        case SpdmCode.PSK_EXCHANGE:
            sizes = [reader.number(2, "a length") for _ in range(4)]
            reader.skip(sum(sizes[1:]), "hint, context and opaque data")
        case SpdmCode.PSK_EXCHANGE_RSP:
            reader.skip(4, "the session's id")
            sizes = [reader.number(2, "a length") for _ in range(2)]
            if request[2:3] not in {b"", b"\0"}:
                reader.skip(agreed.hash_size, "the summary of measurements")
            reader.skip(sum(sizes) + agreed.hash_size, "context, opaque data and proof")
        case SpdmCode.PSK_FINISH | SpdmCode.PSK_FINISH_RSP:
            if reader.data[0] >= 0x14:
                reader.counted("opaque data")
            if code is SpdmCode.PSK_FINISH:
                reader.skip(agreed.hash_size, "the proof")


def _attested(reader: Reader, code: SpdmCode, agreed: Agreed, request: bytes) -> None:
    """Go over an answer that says what a device is, or what runs on it."""
    signed = code is SpdmCode.CHALLENGE_AUTH or bool(request[2:3] and request[2] & 1)
    if code is SpdmCode.CHALLENGE_AUTH:
        reader.skip(agreed.hash_size + NONCE_SIZE, "the nonce")
        if request[3:4] not in {b"", b"\0"}:
            reader.skip(agreed.hash_size, "the summary of measurements")
    else:
        reader.skip(1, "the number of blocks")
        reader.counted("the record", 3)
        reader.skip(NONCE_SIZE, "the nonce")
    reader.counted("opaque data")
    context = CONTEXT_SIZE if reader.data[0] >= 0x13 else 0
    reader.skip(context + agreed.signature_size * signed, "the signature")


def _answer(reader: Reader, agreed: Agreed, request: bytes) -> None:
    """Go over KEY_EXCHANGE_RSP up to its signature; whether a summary of measurements is in it, the request says."""
    if request[1:2] != bytes((SpdmCode.KEY_EXCHANGE,)):
        raise WireError("an answer to a key exchange is read beside its request", spec=_SPEC)
    reader.skip(4 + _RANDOM + agreed.exchanged, "the key")
    if request[2:3] != b"\0":
        reader.skip(agreed.hash_size, "the summary of measurements")
    reader.skip(reader.number(2, "the length of opaque data"), "opaque data")


def signature_place(answer: bytes, request: bytes, agreed: Agreed) -> int:
    """Return where the signature of KEY_EXCHANGE_RSP begins.

    Raises:
        WireError: the message does not come to it.

    """
    reader = Reader(answer)
    _answer(reader, agreed, request)
    return reader.skip(agreed.signature_size, "the signature")


def _certificate(data: bytes) -> tuple[Portion, int]:
    reader = Reader(data)
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
