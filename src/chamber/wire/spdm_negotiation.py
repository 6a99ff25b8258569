"""What two ends of SPDM agree on: versions, capabilities, algorithms (DMTF DSP0274 1.1 to 1.4, 10.2 to 10.4)."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from typing import Final, Self

from chamber.wire.errors import WireError
from chamber.wire.spdm import Reader, SpdmCode, head

__all__ = (
    "AEADS",
    "ASYMMETRIC",
    "EXCHANGES",
    "HASHES",
    "MEASUREMENT_HASHES",
    "POST_QUANTUM",
    "Algorithms",
    "Capabilities",
    "Capability",
    "OtherParameter",
    "parse_versions",
    "versions",
)

_SPEC: Final = "DSP0274, 10"
_LEAST_TRANSFER: Final = 42
_MOST_TABLES: Final = 8
_FIXED: Final = 0x20
_LOW: Final = 0xFFFFFFFF
"""A table's bits take two bytes, and no external algorithms follow."""
_DMTF: Final = 1
_KEY_SCHEDULE: Final = 1

HASHES: Final = {1: "SHA-256", 2: "SHA-384", 4: "SHA-512", 8: "SHA3-256", 0x10: "SHA3-384", 0x20: "SHA3-512"}
"""Hash algorithms by their bit."""
POST_QUANTUM: Final = 32
"""Bits of post-quantum algorithms, which have fields of their own (1.4), stand behind those of the others here: of each
kind an end chooses one, of whichever."""
_POST_QUANTUM_SINCE: Final = 0x14
ASYMMETRIC: Final = {
    0x1: "RSASSA-2048", 0x2: "RSAPSS-2048", 0x4: "RSASSA-3072", 0x8: "RSAPSS-3072", 0x10: "P-256", 0x20: "RSASSA-4096",
    0x40: "RSAPSS-4096", 0x80: "P-384", 0x100: "P-521", 0x400: "Ed25519",
    1 << POST_QUANTUM: "ML-DSA-44", 2 << POST_QUANTUM: "ML-DSA-65", 4 << POST_QUANTUM: "ML-DSA-87"}
"""Signature algorithms by their bit, of responders and requesters alike."""
EXCHANGES: Final = {0x8: "P-256", 0x10: "P-384", 0x20: "P-521", 2 << POST_QUANTUM: "ML-KEM-768",
                    4 << POST_QUANTUM: "ML-KEM-1024"}
"""Key exchanges, and encapsulations of keys, by their bit."""
AEADS: Final = {1: "AES-128-GCM", 2: "AES-256-GCM", 4: "CHACHA20_POLY1305"}
"""Ciphers by their bit."""
MEASUREMENT_HASHES: Final = {0x2: "SHA-256", 0x4: "SHA-384", 0x8: "SHA-512", 0x10: "SHA3-256", 0x20: "SHA3-384",
                             0x40: "SHA3-512"}
"""Hash algorithms of measurements by their bit; bit 0 is for raw ones."""


class Capability(enum.IntFlag):
    """Flags of GET_CAPABILITIES and CAPABILITIES."""

    CACHE = 1 << 0
    CERT = 1 << 1
    CHAL = 1 << 2
    MEAS_NO_SIG = 1 << 3
    MEAS_SIG = 1 << 4
    MEAS_FRESH = 1 << 5
    ENCRYPT = 1 << 6
    MAC = 1 << 7
    MUT_AUTH = 1 << 8
    KEY_EX = 1 << 9
    PSK = 1 << 10
    PSK_WITH_CONTEXT = 1 << 11
    ENCAP = 1 << 12
    HBEAT = 1 << 13
    KEY_UPD = 1 << 14
    HANDSHAKE_IN_THE_CLEAR = 1 << 15
    PUB_KEY_ID = 1 << 16
    CHUNK = 1 << 17
    ALIAS_CERT = 1 << 18
    MULTI_KEY_ONLY = 1 << 26
    MULTI_KEY_NEGOTIABLE = 1 << 27


class OtherParameter(enum.IntFlag):
    """Other parameters of the algorithms (from 1.2 on)."""

    OPAQUE_FORMAT_1 = 1 << 1
    MULTI_KEY = 1 << 4


def versions(numbers: tuple[int, ...]) -> bytes:
    """Return VERSION with versions as they stand in the head of messages, such as 0x12."""
    return head(0x10, SpdmCode.VERSION) + bytes((0, len(numbers))) + b"".join(bytes((0, n)) for n in numbers)


def parse_versions(data: bytes) -> tuple[int, ...]:
    """Read VERSION.

    Raises:
        WireError: it does not hold what it says.

    """
    reader = Reader(data, SpdmCode.VERSION)
    reader.skip(1, "what is reserved")
    count = reader.number(1, "the number of versions")
    return tuple(reader.number(2, "a version") >> 8 for _ in range(count))


@dataclass(frozen=True, slots=True)
class Capabilities:
    """GET_CAPABILITIES, or CAPABILITIES.

    Attributes:
        version: of SPDM.
        flags: what the sender can do.
        exponent: its time for cryptography is two to the power of it, in microseconds.
        transfer_size: bytes of the largest message that it takes in one piece (from 1.2 on).
        message_size: bytes of the largest message at all (from 1.2 on).

    """

    version: int
    flags: Capability
    exponent: int = 0
    transfer_size: int = 0x1200
    message_size: int = 0x1200

    def encode(self, code: SpdmCode) -> bytes:
        """Return its bytes."""
        flags = self.flags if self.version >= 0x12 else self.flags & ~Capability.CHUNK
        body = head(self.version, code) + bytes((0, self.exponent, 0, 0)) + int(flags).to_bytes(4, "little")
        if self.version >= 0x12:
            body += self.transfer_size.to_bytes(4, "little") + self.message_size.to_bytes(4, "little")
        return body

    @classmethod
    def decode(cls, data: bytes, code: SpdmCode) -> Self:
        """Read one.

        Raises:
            WireError: it does not hold what it says, or its sizes can't be.

        """
        reader = Reader(data, code)
        reader.skip(1, "what is reserved")
        exponent = reader.number(1, "the time")
        reader.skip(2, "what is reserved")
        flags = Capability(reader.number(4, "the flags"))
        if data[0] < 0x12:
            return cls(data[0], flags, exponent)
        transfer, most = reader.number(4, "the transfer size"), reader.number(4, "the message size")
        if transfer < _LEAST_TRANSFER or most < transfer or (not flags & Capability.CHUNK and most != transfer):
            raise WireError("messages have sizes that can be", spec=_SPEC, detail=f"{transfer} and {most} bytes")
        return cls(data[0], flags, exponent, transfer, most)


@dataclass(frozen=True, slots=True)
class Algorithms:
    """NEGOTIATE_ALGORITHMS, of which an end offers several, or ALGORITHMS, where one of each kind was chosen.

    Attributes:
        version: of SPDM.
        asymmetric: bits of what the responder signs with.
        hash: bits of hashes.
        exchange: bits of key exchanges.
        aead: bits of ciphers.
        requester_asymmetric: bits of what the requester signs with.
        measurement_hash: bits of what measurements are hashed with (ALGORITHMS).
        measurements: whether measurements have DMTF's form.
        other: other parameters.

    """

    version: int
    asymmetric: int = 0
    hash: int = 0
    exchange: int = 0
    aead: int = 0
    requester_asymmetric: int = 0
    measurement_hash: int = 0
    measurements: bool = False
    other: OtherParameter = field(default=OtherParameter(0))

    def _tables(self) -> bytes:
        # Stock ends expect all four, also where nothing was chosen.
        chosen = [(2, self.exchange & _LOW), (3, self.aead), (4, self.requester_asymmetric & _LOW),
                  (5, _KEY_SCHEDULE if self.exchange or self.aead else 0)]
        if self.version >= _POST_QUANTUM_SINCE:
            later = ((6, self.requester_asymmetric >> POST_QUANTUM), (7, self.exchange >> POST_QUANTUM))
            chosen += [(kind, bits) for kind, bits in later if bits]
        return b"".join(bytes((kind, _FIXED)) + bits.to_bytes(2, "little") for kind, bits in chosen)

    def encode(self, code: SpdmCode) -> bytes:
        """Return its bytes."""
        tables = self._tables()
        answer = code == SpdmCode.ALGORITHMS
        size = (36 if answer else 32) + len(tables)
        body = bytearray(head(self.version, code, len(tables) // 4))
        body += size.to_bytes(2, "little") + bytes((_DMTF * self.measurements,
                                                    int(self.other) if self.version >= 0x12 else 0))
        if answer:
            body += self.measurement_hash.to_bytes(4, "little")
        body += (self.asymmetric & _LOW).to_bytes(4, "little") + self.hash.to_bytes(4, "little")
        if self.version >= _POST_QUANTUM_SINCE:
            body += (self.asymmetric >> POST_QUANTUM).to_bytes(4, "little")
        return bytes(body.ljust(size - len(tables), b"\0") + tables)

    @classmethod
    def decode(cls, data: bytes, code: SpdmCode) -> Self:
        """Read one.

        Raises:
            WireError: it does not hold what it says.

        """
        reader = Reader(data, code)
        tables, answer = data[2], code == SpdmCode.ALGORITHMS
        length = reader.number(2, "the length")
        if length > len(data) or tables > _MOST_TABLES:
            raise WireError("a message holds its algorithms", spec=_SPEC, detail=f"{length} bytes, {tables} tables")
        specification, other = reader.number(1, "the form of measurements"), reader.number(1, "other parameters")
        measurement_hash = reader.number(4, "the measurements' hash") if answer else 0
        asymmetric, hashes = reader.number(4, "signatures"), reader.number(4, "hashes")
        later = reader.number(4, "post-quantum signatures")
        reader.skip(8, "what is reserved")
        external = reader.number(1, "external signatures") + reader.number(1, "external hashes")
        reader.skip(2, "what is reserved")
        reader.skip(4 * external, "external algorithms")
        found: dict[int, int] = {}
        for _ in range(tables):
            kind, count = reader.number(1, "a table"), reader.number(1, "its size")
            size, more = count >> 4, count & 0xF
            found[kind] = reader.number(size, "its algorithms")
            reader.skip(4 * more, "its external algorithms")
        exchange, requester = found.get(2, 0), found.get(4, 0)
        if data[0] >= _POST_QUANTUM_SINCE:
            asymmetric |= later << POST_QUANTUM
            requester |= found.get(6, 0) << POST_QUANTUM
            exchange |= found.get(7, 0) << POST_QUANTUM
        return cls(data[0], asymmetric, hashes, exchange, found.get(3, 0), requester, measurement_hash,
                   bool(specification & _DMTF), OtherParameter(other if data[0] >= 0x12 else 0))
