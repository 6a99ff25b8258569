"""SPDM's messages of identity, measurement and session as values (DMTF DSP0274 1.1 to 1.4, 10.6 to 10.23).

Signatures and proofs come last in a message, and are made of all that precedes: `signed` and `proven` are what that is.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Final, Self

from chamber.wire.errors import WireError
from chamber.wire.spdm import CONTEXT_SIZE, NONCE_SIZE, Agreed, Reader, SpdmCode, head

__all__ = (
    "ALL_MEASUREMENTS",
    "PCI_SIG",
    "ChallengeAuth",
    "Digests",
    "KeyExchange",
    "KeyExchangeAnswer",
    "KeyUpdate",
    "Measurement",
    "MeasurementType",
    "Measurements",
    "Mutual",
    "Protocol",
    "PskExchange",
    "PskExchangeAnswer",
    "Summary",
    "VendorDefined",
    "certificate",
    "certificate_request",
    "challenge",
    "finish",
    "measurement_request",
    "offered_versions",
    "parse_finish",
    "selected_version",
    "version_choice",
    "version_offer",
)

_SPEC: Final = "DSP0274, 10"
_LARGE: Final = 0x80
ALL_MEASUREMENTS: Final = 0xFF
PCI_SIG: Final = (3, b"\x01\x00")
"""Registry and vendor of messages of PCI-SIG."""


class Protocol(enum.IntEnum):
    """What the first byte of such a message says that the rest is (PCIe 6.1, 6.31.3)."""

    IDE_KM = 0
    TDISP = 1


_DMTF: Final = 1
_RAW: Final = 0x80
_OPAQUE_ID: Final = 0x444D5446
"""What opaque data begin with in 1.1."""
_SECURED_1_1: Final = 0x1100
"""Secured messages, version 1.1 (DSP0277)."""


class Mutual(enum.IntEnum):
    """How a requester is asked to prove who it is."""

    NO = 0
    KNOWN = 1
    """Its certificates are known; the slot is named."""
    ENCAPSULATED = 2
    """By requests that it fetches."""
    DIGESTS = 4
    """The same, the first of which need not be fetched: GET_DIGESTS."""


class Summary(enum.IntEnum):
    """What a summary of measurements is of."""

    NONE = 0
    TCB = 1
    ALL = 0xFF


# Identity.


@dataclass(frozen=True, slots=True)
class Digests:
    """DIGESTS: hashes of certificate chains, by slot."""

    version: int
    digests: dict[int, bytes]
    multi_key: bool = False

    def encode(self) -> bytes:
        """Return its bytes; where keys are told apart, slot n has the key pair n + 1, for all uses."""
        mask = sum(1 << slot for slot in self.digests)
        body = head(self.version, SpdmCode.DIGESTS, mask if self.version >= 0x13 else 0, mask)
        body += b"".join(self.digests[slot] for slot in sorted(self.digests))
        if self.multi_key:
            body += bytes(slot + 1 for slot in sorted(self.digests)) + bytes((1,)) * len(self.digests)
            body += (0x000F).to_bytes(2, "little") * len(self.digests)
        return body

    @classmethod
    def decode(cls, data: bytes, agreed: Agreed) -> Self:
        """Read one.

        Raises:
            WireError: it does not hold what it says.

        """
        reader = Reader(data, SpdmCode.DIGESTS)
        slots = [slot for slot in range(8) if data[3] >> slot & 1]
        return cls(data[0], {slot: reader.take(agreed.hash_size, "a digest") for slot in slots}, agreed.multi_key)


def certificate_request(version: int, slot: int, offset: int, length: int) -> bytes:
    """Return GET_CERTIFICATE."""
    return (head(version, SpdmCode.GET_CERTIFICATE, slot) + offset.to_bytes(2, "little")
            + length.to_bytes(2, "little"))


def certificate(version: int, slot: int, portion: bytes, remainder: int) -> bytes:
    """Return CERTIFICATE."""
    return (head(version, SpdmCode.CERTIFICATE, slot) + len(portion).to_bytes(2, "little")
            + remainder.to_bytes(2, "little") + portion)


def challenge(version: int, slot: int, summary: Summary, nonce: bytes, context: bytes) -> bytes:
    """Return CHALLENGE; `context` is there from 1.3 on."""
    return head(version, SpdmCode.CHALLENGE, slot, summary) + nonce + (context if version >= 0x13 else b"")


@dataclass(frozen=True, slots=True)
class ChallengeAuth:
    """CHALLENGE_AUTH.

    Attributes:
        slot: of the certificate chain.
        mask: slots that there are.
        chain_hash: of the chain.
        nonce: of the responder's own.
        summary: hash of measurements; empty without.
        opaque: opaque data.
        context: what the requester added.
        signature: of all that was said.

    """

    version: int
    slot: int
    mask: int
    chain_hash: bytes
    nonce: bytes
    summary: bytes = b""
    opaque: bytes = b""
    context: bytes = b""
    signature: bytes = b""

    @property
    def signed(self) -> bytes:
        """What precedes the signature."""
        return (head(self.version, SpdmCode.CHALLENGE_AUTH, self.slot, self.mask) + self.chain_hash + self.nonce
                + self.summary + len(self.opaque).to_bytes(2, "little") + self.opaque + self.context)

    @classmethod
    def decode(cls, data: bytes, agreed: Agreed, summary: Summary) -> Self:
        """Read one.

        Raises:
            WireError: it does not hold what it says.

        """
        reader = Reader(data, SpdmCode.CHALLENGE_AUTH)
        chain, nonce = reader.take(agreed.hash_size, "the chain's hash"), reader.take(NONCE_SIZE, "the nonce")
        measured = reader.take(agreed.hash_size if summary else 0, "the summary")
        opaque = reader.counted("opaque data")
        context = reader.take(CONTEXT_SIZE if data[0] >= 0x13 else 0, "the context")
        return cls(data[0], data[2] & 0xF, data[3], chain, nonce, measured, opaque, context,
                   reader.take(agreed.signature_size, "the signature"))


# Measurements.


class MeasurementType(enum.IntEnum):
    """What was measured."""

    ROM = 0
    FIRMWARE = 1
    HARDWARE_CONFIG = 2
    FIRMWARE_CONFIG = 3
    MANIFEST = 4
    DEVICE_MODE = 5
    VERSION = 6
    SECURE_VERSION = 7


@dataclass(frozen=True, slots=True)
class Measurement:
    """One block of a record, in DMTF's form.

    Attributes:
        index: its number, from 1 to 254.
        type: what was measured: a `MeasurementType`, or a number that is none.
        value: a hash, or the raw bytes.
        raw: whether they are.

    """

    index: int
    type: int
    value: bytes
    raw: bool = False

    def encode(self) -> bytes:
        """Return its bytes."""
        value = bytes((self.type | _RAW * self.raw,)) + len(self.value).to_bytes(2, "little") + self.value
        return bytes((self.index, _DMTF)) + len(value).to_bytes(2, "little") + value


def _blocks(record: bytes, count: int) -> tuple[Measurement, ...]:
    at, found = 0, []
    for _ in range(count):
        if at + 4 > len(record):
            raise WireError("a record holds its blocks", spec=_SPEC)
        index, form = record[at], record[at + 1]
        size = int.from_bytes(record[at + 2:at + 4], "little")
        body = record[at + 4:at + 4 + size]
        if form != _DMTF or len(body) != size or size < 3 or int.from_bytes(body[1:3], "little") != size - 3:
            raise WireError("a measurement has DMTF's form, and ends in its record", spec=_SPEC)
        found.append(Measurement(index, body[0] & ~_RAW, body[3:], bool(body[0] & _RAW)))
        at += 4 + size
    if at != len(record):
        raise WireError("a record ends with its last block", spec=_SPEC)
    if len({block.index for block in found}) != len(found):
        raise WireError("a measurement is in a record once", spec=_SPEC)
    return tuple(found)


def measurement_request(version: int, operation: int, *, nonce: bytes = b"", slot: int = 0, raw: bool = False,
                        context: bytes = bytes(CONTEXT_SIZE)) -> bytes:
    """Return GET_MEASUREMENTS; with a nonce, the answer is to be signed."""
    return (head(version, SpdmCode.GET_MEASUREMENTS, bool(nonce) | raw << 1, operation)
            + (nonce + bytes((slot,)) if nonce else b"") + (context if version >= 0x13 else b""))


@dataclass(frozen=True, slots=True)
class Measurements:
    """MEASUREMENTS.

    Attributes:
        total: how many there are, where that was asked for.
        slot: of the certificate chain whose key signs.
        blocks: the record.
        nonce: of the responder's own.
        opaque: opaque data.
        context: what the requester added.
        signature: of what was said of measurements; empty without.

    """

    version: int
    total: int
    slot: int
    blocks: tuple[Measurement, ...]
    nonce: bytes
    opaque: bytes = b""
    context: bytes = b""
    signature: bytes = b""

    @property
    def signed(self) -> bytes:
        """What precedes the signature."""
        record = b"".join(block.encode() for block in self.blocks)
        return (head(self.version, SpdmCode.MEASUREMENTS, self.total, self.slot) + bytes((len(self.blocks),))
                + len(record).to_bytes(3, "little") + record + self.nonce + len(self.opaque).to_bytes(2, "little")
                + self.opaque + self.context)

    @classmethod
    def decode(cls, data: bytes, agreed: Agreed, *, signed: bool) -> Self:
        """Read one.

        Raises:
            WireError: it does not hold what it says, or its measurements have another form.

        """
        reader = Reader(data, SpdmCode.MEASUREMENTS)
        count = reader.number(1, "the number of blocks")
        blocks = _blocks(reader.counted("the record", 3), count)
        nonce, opaque = reader.take(NONCE_SIZE, "the nonce"), reader.counted("opaque data")
        context = reader.take(CONTEXT_SIZE if data[0] >= 0x13 else 0, "the context")
        return cls(data[0], data[2], data[3] & 0xF, blocks, nonce, opaque, context,
                   reader.take(agreed.signature_size * signed, "the signature"))


# Opaque data: which version of secured messages (DSP0277, 9).


def _opaque(version: int, element: bytes) -> bytes:
    start = b"\x01\0\0\0" if version >= 0x12 else _OPAQUE_ID.to_bytes(4, "little") + b"\x01\x01\0\0"
    body = b"\0\0" + len(element).to_bytes(2, "little") + element
    return start + body.ljust(-(-len(body) // 4) * 4, b"\0")


def version_offer(version: int) -> bytes:
    """Return opaque data of a requester: the versions of secured messages that it has."""
    return _opaque(version, b"\x01\x01\x01" + _SECURED_1_1.to_bytes(2, "little"))


def version_choice(version: int) -> bytes:
    """Return opaque data of a responder: the version of secured messages that it chose."""
    return _opaque(version, b"\x01\x00" + _SECURED_1_1.to_bytes(2, "little"))


def _element(version: int, opaque: bytes, kind: int) -> bytes:
    """Return the element that speaks of versions of secured messages; empty without."""
    at = 4 if version >= 0x12 else 8
    while at + 4 <= len(opaque):
        vendor = opaque[at + 1]
        begin = at + 4 + vendor
        size = int.from_bytes(opaque[at + 2 + vendor:begin], "little")
        body = opaque[begin:begin + size]
        if not opaque[at] and body[:2] == bytes((1, kind)):
            return body[2:]
        at = begin + size + -(4 + vendor + size) % 4
    return b""


def offered_versions(version: int, opaque: bytes) -> tuple[int, ...]:
    """Read a requester's opaque data; what can't be read offers nothing."""
    body = _element(version, opaque, 1)
    count = body[0] if body else 0
    return tuple(int.from_bytes(body[1 + 2 * n:3 + 2 * n], "little") for n in range(count) if 3 + 2 * n <= len(body))


def selected_version(version: int, opaque: bytes) -> int:
    """Read a responder's opaque data; 0 where it chose nothing that can be read."""
    return int.from_bytes(_element(version, opaque, 0)[:2], "little")


# Sessions.


@dataclass(frozen=True, slots=True)
class KeyExchange:
    """KEY_EXCHANGE.

    Attributes:
        summary: which summary of measurements is asked for.
        slot: of the responder's certificate chain; 0xFF for a key that is known without one.
        session_id: the requester's half.
        random: its random bytes.
        exchange: its public key of the exchange.
        opaque: opaque data.
        policy: session policy.

    """

    version: int
    summary: int
    slot: int
    session_id: int
    random: bytes
    exchange: bytes
    opaque: bytes
    policy: int = 0

    def encode(self) -> bytes:
        """Return its bytes."""
        return (head(self.version, SpdmCode.KEY_EXCHANGE, self.summary, self.slot)
                + self.session_id.to_bytes(2, "little") + bytes((self.policy, 0)) + self.random + self.exchange
                + len(self.opaque).to_bytes(2, "little") + self.opaque)

    @classmethod
    def decode(cls, data: bytes, agreed: Agreed) -> Self:
        """Read one.

        Raises:
            WireError: it does not hold what it says.

        """
        reader = Reader(data, SpdmCode.KEY_EXCHANGE)
        session_id, policy = reader.number(2, "the session's id"), reader.number(1, "the policy")
        reader.skip(1, "what is reserved")
        random, exchange = reader.take(NONCE_SIZE, "random bytes"), reader.take(agreed.exchange_size, "the key")
        return cls(data[0], data[2], data[3], session_id, random, exchange, reader.counted("opaque data"), policy)


@dataclass(frozen=True, slots=True)
class KeyExchangeAnswer:
    """KEY_EXCHANGE_RSP.

    Attributes:
        heartbeat: seconds after which a session without a word ends; 0 for never.
        session_id: the responder's half.
        mutual: how the requester is to prove who it is; 0 for not at all.
        requester_slot: of its certificate chain.
        random: random bytes.
        exchange: the responder's public key of the exchange.
        summary: hash of measurements; empty without.
        opaque: opaque data.
        signature: of all that was said.
        proof: that the secret is known; empty where the handshake is in the clear.

    """

    version: int
    heartbeat: int
    session_id: int
    random: bytes
    exchange: bytes
    summary: bytes
    opaque: bytes
    mutual: int = 0
    requester_slot: int = 0
    signature: bytes = b""
    proof: bytes = b""

    @property
    def signed(self) -> bytes:
        """What precedes the signature."""
        return (head(self.version, SpdmCode.KEY_EXCHANGE_RSP, self.heartbeat) + self.session_id.to_bytes(2, "little")
                + bytes((self.mutual, self.requester_slot)) + self.random + self.exchange + self.summary
                + len(self.opaque).to_bytes(2, "little") + self.opaque)

    @classmethod
    def decode(cls, data: bytes, agreed: Agreed, summary: int) -> Self:
        """Read one.

        Raises:
            WireError: it does not hold what it says.

        """
        reader = Reader(data, SpdmCode.KEY_EXCHANGE_RSP)
        session_id, mutual, slot = (reader.number(size, "the session's id") for size in (2, 1, 1))
        random, exchange = reader.take(NONCE_SIZE, "random bytes"), reader.take(agreed.exchanged, "the key")
        measured = reader.take(agreed.hash_size if summary else 0, "the summary")
        opaque = reader.counted("opaque data")
        signature = reader.take(agreed.signature_size, "the signature")
        proof = reader.take(0 if agreed.clear_handshake else agreed.hash_size, "the proof")
        return cls(data[0], data[2], session_id, random, exchange, measured, opaque, mutual, slot, signature, proof)


def finish(version: int, code: SpdmCode, *, signed: bool = False, slot: int = 0) -> bytes:
    """Return FINISH, FINISH_RSP, PSK_FINISH or PSK_FINISH_RSP up to its signature, if it has one, and proof."""
    return head(version, code, int(signed), slot if signed else 0) + (bytes(2) if version >= 0x14 else b"")


def parse_finish(data: bytes, code: SpdmCode, *, proof_size: int, signature_size: int = 0) -> tuple[bytes, bytes]:
    """Return signature and proof of such a message; what precedes them is the rest.

    Raises:
        WireError: it does not hold what it says.

    """
    reader = Reader(data, code)
    if data[0] >= 0x14:
        reader.counted("opaque data")
    signature = reader.take(signature_size, "the signature")
    return signature, reader.take(proof_size, "the proof")


@dataclass(frozen=True, slots=True)
class PskExchange:
    """PSK_EXCHANGE.

    Attributes:
        summary: which summary of measurements is asked for.
        session_id: the requester's half.
        hint: which secret.
        context: random bytes.
        opaque: opaque data.

    """

    version: int
    summary: int
    session_id: int
    hint: bytes
    context: bytes
    opaque: bytes

    def encode(self) -> bytes:
        """Return its bytes."""
        sizes = (self.session_id, len(self.hint), len(self.context), len(self.opaque))
        return (head(self.version, SpdmCode.PSK_EXCHANGE, self.summary)
                + b"".join(size.to_bytes(2, "little") for size in sizes) + self.hint + self.context + self.opaque)

    @classmethod
    def decode(cls, data: bytes) -> Self:
        """Read one.

        Raises:
            WireError: it does not hold what it says.

        """
        reader = Reader(data, SpdmCode.PSK_EXCHANGE)
        session_id, *sizes = (reader.number(2, "a length") for _ in range(4))
        hint, context, opaque = (reader.take(size, "hint, context and opaque data") for size in sizes)
        return cls(data[0], data[2], session_id, hint, context, opaque)


@dataclass(frozen=True, slots=True)
class PskExchangeAnswer:
    """PSK_EXCHANGE_RSP.

    Attributes:
        heartbeat: seconds after which a session without a word ends; 0 for never.
        session_id: the responder's half.
        summary: hash of measurements; empty without.
        context: random bytes; empty for a responder that has none.
        opaque: opaque data.
        proof: that the secret is known.

    """

    version: int
    heartbeat: int
    session_id: int
    summary: bytes
    context: bytes
    opaque: bytes
    proof: bytes = b""

    @property
    def proven(self) -> bytes:
        """What precedes the proof."""
        return (head(self.version, SpdmCode.PSK_EXCHANGE_RSP, self.heartbeat) + self.session_id.to_bytes(2, "little")
                + bytes(2) + len(self.context).to_bytes(2, "little") + len(self.opaque).to_bytes(2, "little")
                + self.summary + self.context + self.opaque)

    @classmethod
    def decode(cls, data: bytes, agreed: Agreed, summary: int) -> Self:
        """Read one.

        Raises:
            WireError: it does not hold what it says.

        """
        reader = Reader(data, SpdmCode.PSK_EXCHANGE_RSP)
        session_id, _, context_size, opaque_size = (reader.number(2, "a length") for _ in range(4))
        measured = reader.take(agreed.hash_size if summary else 0, "the summary")
        context, opaque = reader.take(context_size, "the context"), reader.take(opaque_size, "opaque data")
        return cls(data[0], data[2], session_id, measured, context, opaque, reader.take(agreed.hash_size, "the proof"))


class KeyUpdate(enum.IntEnum):
    """Operations of KEY_UPDATE."""

    UPDATE = 1
    UPDATE_ALL = 2
    VERIFY = 3


@dataclass(frozen=True, slots=True)
class VendorDefined:
    """VENDOR_DEFINED_REQUEST or VENDOR_DEFINED_RESPONSE.

    Attributes:
        registry: whose ids vendors have.
        vendor: the id.
        payload: what it says.

    """

    version: int
    registry: int
    vendor: bytes
    payload: bytes

    def encode(self, code: SpdmCode) -> bytes:
        """Return its bytes, in the form for payloads below 64 KiB, which stock peers of 1.4 use as well."""
        return (head(self.version, code) + self.registry.to_bytes(2, "little") + bytes((len(self.vendor),))
                + self.vendor + len(self.payload).to_bytes(2, "little") + self.payload)

    @classmethod
    def decode(cls, data: bytes, code: SpdmCode) -> Self:
        """Read one, in either form.

        Raises:
            WireError: it does not hold what it says.

        """
        reader = Reader(data, code)
        registry, vendor = reader.number(2, "the registry"), reader.counted("the vendor's id", 1)
        if data[0] >= 0x14 and data[2] & _LARGE:
            reader.skip(2, "what is reserved")
            return cls(data[0], registry, vendor, reader.counted("the payload", 4))
        return cls(data[0], registry, vendor, reader.counted("the payload"))
