"""Signatures and key exchanges of SPDM (DMTF DSP0274, 15 and 16), made of `cryptography`'s primitives."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import (
    Prehashed,
    decode_dss_signature,
    encode_dss_signature,
)

from chamber.platform.spdm_keys import HASHES
from chamber.wire.spdm import Agreed
from chamber.wire.spdm_negotiation import AEADS, ASYMMETRIC, EXCHANGES
from chamber.wire.spdm_negotiation import HASHES as HASH_BITS

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes, PublicKeyTypes

    from chamber.wire.spdm_negotiation import Algorithms

__all__ = ("Exchange", "Suite", "digest_size", "fits", "hash_of", "sign", "signature_algorithms", "signature_size",
           "verify")

_CURVES: Final[dict[str, type[ec.EllipticCurve]]] = {
    "P-256": ec.SECP256R1, "P-384": ec.SECP384R1, "P-521": ec.SECP521R1}
_COORDINATE: Final = {"P-256": 32, "P-384": 48, "P-521": 66}
_PREFIX: Final = 64
_CONTEXT: Final = 36


def digest_size(name: str) -> int:
    """Bytes of a hash."""
    return HASHES[name]().digest_size


def signature_size(name: str) -> int:
    """Bytes of a signature."""
    if name in _COORDINATE:
        return 2 * _COORDINATE[name]
    return 64 if name == "Ed25519" else int(name.rpartition("-")[2]) // 8


@dataclass(frozen=True, slots=True)
class Suite:
    """What a connection runs with.

    Attributes:
        version: of SPDM.
        hash: name of the hash.
        asymmetric: what the responder signs with; empty where it has no key of its own.
        exchange: the key exchange; empty without.
        aead: the cipher; empty without.
        requester_asymmetric: what the requester signs with; empty where it does not.
        clear_handshake: whether FINISH travels in the clear.
        multi_key: whether a responder's keys are told apart.
        sequence_size: bytes of a secured message's number that go with it.

    """

    version: int
    hash: str
    asymmetric: str = ""
    exchange: str = ""
    aead: str = ""
    requester_asymmetric: str = ""
    clear_handshake: bool = False
    multi_key: bool = False
    sequence_size: int = 0

    @classmethod
    def of(cls, chosen: Algorithms, *, clear_handshake: bool, multi_key: bool, sequence_size: int) -> Suite:
        """Make one of ALGORITHMS, whose bits are single ones that there are names for, or none."""
        return cls(chosen.version, HASH_BITS[chosen.hash], ASYMMETRIC.get(chosen.asymmetric, ""),
                   EXCHANGES.get(chosen.exchange, ""), AEADS.get(chosen.aead, ""),
                   ASYMMETRIC.get(chosen.requester_asymmetric, ""), clear_handshake, multi_key, sequence_size)

    @property
    def agreed(self) -> Agreed:
        """What lengths of messages depend on."""
        return Agreed(digest_size(self.hash), 2 * _COORDINATE.get(self.exchange, 0),
                      signature_size(self.asymmetric) if self.asymmetric else 0, self.clear_handshake, self.multi_key,
                      signature_size(self.requester_asymmetric) if self.requester_asymmetric else 0)


# Signatures.


def signature_algorithms(key: PublicKeyTypes) -> tuple[str, ...]:
    """Return the names of what a key can be used for, the better one first."""
    if isinstance(key, ec.EllipticCurvePublicKey):
        return tuple(name for name, curve in _CURVES.items() if isinstance(key.curve, curve))
    if isinstance(key, ed25519.Ed25519PublicKey):
        return ("Ed25519",)
    if isinstance(key, rsa.RSAPublicKey):
        return tuple(f"{scheme}-{key.key_size}" for scheme in ("RSAPSS", "RSASSA"))
    return ()


def fits(key: PublicKeyTypes, name: str) -> bool:
    """Whether a key is one of an algorithm."""
    return name in signature_algorithms(key)


def _message(version: int, algorithm: str, role: str, context: str, transcript: bytes) -> bytes:
    """Return what is signed: in 1.1 a transcript's hash, later one that says besides what it is for (15.1)."""
    digest = hash_of(algorithm, transcript)
    if version < 0x12:
        return digest
    prefix = f"dmtf-spdm-v1.{version & 0xF}.*".encode() * 4
    purpose = f"{role}-{context}".encode()
    return prefix[:_PREFIX] + bytes(_CONTEXT - len(purpose)) + purpose + digest


def hash_of(name: str, data: bytes) -> bytes:
    """Hash bytes."""
    context = hashes.Hash(HASHES[name]())
    context.update(data)
    return context.finalize()


def sign(key: PrivateKeyTypes, name: str, suite: Suite, context: str, transcript: bytes, *,
         role: str = "responder") -> bytes:
    """Sign a transcript.

    Raises:
        ValueError: the key is none of the algorithm's.

    """
    message = _message(suite.version, suite.hash, role, context, transcript)
    # From 1.2 on what is signed is hashed again; before, it is the hash.
    how = HASHES[suite.hash]() if suite.version >= 0x12 else Prehashed(HASHES[suite.hash]())
    if isinstance(key, ec.EllipticCurvePrivateKey):
        size = _COORDINATE[name]
        first, second = decode_dss_signature(key.sign(message, ec.ECDSA(how)))
        return first.to_bytes(size, "big") + second.to_bytes(size, "big")
    if isinstance(key, ed25519.Ed25519PrivateKey):
        return key.sign(message)
    if isinstance(key, rsa.RSAPrivateKey):
        return key.sign(message, _padding(name, suite), how)
    raise ValueError(f"no key of {name}")


def verify(key: PublicKeyTypes, name: str, suite: Suite, context: str, transcript: bytes, signature: bytes, *,
           role: str = "responder") -> bool:
    """Whether a signature of a transcript is a key's; False as well for a key that is none of the algorithm's."""
    if not fits(key, name) or len(signature) != signature_size(name):
        return False
    message = _message(suite.version, suite.hash, role, context, transcript)
    how = HASHES[suite.hash]() if suite.version >= 0x12 else Prehashed(HASHES[suite.hash]())
    try:
        if isinstance(key, ec.EllipticCurvePublicKey):
            half = len(signature) // 2
            encoded = encode_dss_signature(*(int.from_bytes(part, "big") for part in (signature[:half],
                                                                                     signature[half:])))
            key.verify(encoded, message, ec.ECDSA(how))
        elif isinstance(key, ed25519.Ed25519PublicKey):
            key.verify(signature, message)
        elif isinstance(key, rsa.RSAPublicKey):
            key.verify(signature, message, _padding(name, suite), how)
    except (InvalidSignature, ValueError):
        return False
    return True


def _padding(name: str, suite: Suite) -> padding.AsymmetricPadding:
    if name.startswith("RSASSA"):
        return padding.PKCS1v15()
    algorithm = HASHES[suite.hash]()
    return padding.PSS(padding.MGF1(algorithm), algorithm.digest_size)


# Key exchanges.


class Exchange:
    """One end of a key exchange, good for once.

    Args:
        name: of the exchange.

    Attributes:
        public: what the other end gets: both coordinates.

    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._key: ec.EllipticCurvePrivateKey | None = ec.generate_private_key(_CURVES[name]())
        point = self._key.public_key().public_bytes(serialization.Encoding.X962,
                                                    serialization.PublicFormat.UncompressedPoint)
        self.public = point[1:]

    def agree(self, other: bytes) -> bytearray | None:
        """Return the shared secret; None where the other end's key is no point of the curve. It can't be used again."""
        key, self._key = self._key, None
        if key is None:
            return None
        try:
            point = ec.EllipticCurvePublicKey.from_encoded_point(_CURVES[self._name](), b"\x04" + other)
            return bytearray(key.exchange(ec.ECDH(), point))
        except ValueError:
            return None
