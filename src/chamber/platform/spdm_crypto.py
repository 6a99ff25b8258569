"""Signatures and key exchanges of SPDM (DMTF DSP0274, 15 and 16), made of `cryptography`'s primitives."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, mldsa, mlkem, padding, rsa
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

__all__ = ("Exchange", "Suite", "answer_exchange", "digest_size", "fits", "hash_of", "sign", "signature_algorithms",
           "signature_size", "verify")

_CURVES: Final[dict[str, type[ec.EllipticCurve]]] = {
    "P-256": ec.SECP256R1, "P-384": ec.SECP384R1, "P-521": ec.SECP521R1}
_COORDINATE: Final = {"P-256": 32, "P-384": 48, "P-521": 66}
_LATTICE_SIGNATURES: Final = {"ML-DSA-44": 2420, "ML-DSA-65": 3309, "ML-DSA-87": 4627}
"""Bytes of signatures (FIPS 204, table 2)."""
_LatticeKey = mldsa.MLDSA44PrivateKey | mldsa.MLDSA65PrivateKey | mldsa.MLDSA87PrivateKey
_LatticePublicKey = mldsa.MLDSA44PublicKey | mldsa.MLDSA65PublicKey | mldsa.MLDSA87PublicKey
_Kem = tuple[type[mlkem.MLKEM768PrivateKey | mlkem.MLKEM1024PrivateKey],
             type[mlkem.MLKEM768PublicKey | mlkem.MLKEM1024PublicKey], int, int]
_KEMS: Final[dict[str, _Kem]] = {
    "ML-KEM-768": (mlkem.MLKEM768PrivateKey, mlkem.MLKEM768PublicKey, 1184, 1088),
    "ML-KEM-1024": (mlkem.MLKEM1024PrivateKey, mlkem.MLKEM1024PublicKey, 1568, 1568)}
"""Keys of encapsulations, bytes of a key, and of what a secret is encapsulated in (FIPS 203, table 3)."""
_PREFIX: Final = 64
_CONTEXT: Final = 36


def digest_size(name: str) -> int:
    """Bytes of a hash."""
    return HASHES[name]().digest_size


def signature_size(name: str) -> int:
    """Bytes of a signature."""
    if name in _COORDINATE:
        return 2 * _COORDINATE[name]
    if name in _LATTICE_SIGNATURES:
        return _LATTICE_SIGNATURES[name]
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
        given, taken = _exchange_sizes(self.exchange)
        return Agreed(digest_size(self.hash), given,
                      signature_size(self.asymmetric) if self.asymmetric else 0, self.clear_handshake, self.multi_key,
                      signature_size(self.requester_asymmetric) if self.requester_asymmetric else 0, taken)


# Signatures.


def signature_algorithms(key: PublicKeyTypes) -> tuple[str, ...]:
    """Return the names of what a key can be used for, the better one first."""
    if isinstance(key, ec.EllipticCurvePublicKey):
        return tuple(name for name, curve in _CURVES.items() if isinstance(key.curve, curve))
    if isinstance(key, ed25519.Ed25519PublicKey):
        return ("Ed25519",)
    if isinstance(key, _LatticePublicKey):
        return (f"ML-DSA-{type(key).__name__.removeprefix('MLDSA').removesuffix('PublicKey')}",)
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
    if isinstance(key, _LatticeKey):
        return key.sign(message, f"{role}-{context}".encode())
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
        elif isinstance(key, _LatticePublicKey):
            # What a signature is for is said twice: in what is signed, and by the algorithm's own context (1.4).
            key.verify(signature, message, f"{role}-{context}".encode())
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


def _exchange_sizes(name: str) -> tuple[int, int]:
    """Bytes that a requester gives to an exchange, and that a responder gives; 0 of none."""
    if name in _KEMS:
        return _KEMS[name][2:]
    return (2 * _COORDINATE.get(name, 0),) * 2


class Exchange:
    """A requester's end of a key exchange, good for once.

    Args:
        name: of the exchange.

    Attributes:
        public: what the other end gets: both coordinates of a point, or a key to encapsulate a secret with.

    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._key: ec.EllipticCurvePrivateKey | mlkem.MLKEM768PrivateKey | mlkem.MLKEM1024PrivateKey | None
        if name in _KEMS:
            self._key = _KEMS[name][0].generate()
            self.public = self._key.public_key().public_bytes_raw()
        else:
            self._key = ec.generate_private_key(_CURVES[name]())
            self.public = self._key.public_key().public_bytes(serialization.Encoding.X962,
                                                              serialization.PublicFormat.UncompressedPoint)[1:]

    def agree(self, other: bytes) -> bytearray | None:
        """Return the shared secret; None where what the other end gave is none. It can't be used again."""
        key, self._key = self._key, None
        if key is None:
            return None
        try:
            if isinstance(key, ec.EllipticCurvePrivateKey):
                point = ec.EllipticCurvePublicKey.from_encoded_point(_CURVES[self._name](), b"\x04" + other)
                return bytearray(key.exchange(ec.ECDH(), point))
            return bytearray(key.decapsulate(other))
        except ValueError:
            return None


def answer_exchange(name: str, other: bytes) -> tuple[bytes, bytearray] | None:
    """Answer a requester's end: return what it gets, and the shared secret; None where it gave nothing to answer."""
    if name in _KEMS:
        try:
            secret, capsule = _KEMS[name][1].from_public_bytes(other).encapsulate()
        except ValueError:
            return None
        return capsule, bytearray(secret)
    ours = Exchange(name)
    shared = ours.agree(other)
    return None if shared is None else (ours.public, shared)
