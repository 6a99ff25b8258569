"""Certificate chains as SPDM carries them (DSP0274, 10.6.1): one's own, and another's, which may not hold together.

Until a signature is checked with its last key, and its root is one that the guest trusts, a chain is the host's word.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Self

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import Encoding

from chamber.platform.spdm_crypto import digest_size, hash_of

if TYPE_CHECKING:
    from datetime import datetime

    from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes, PublicKeyTypes

__all__ = ("CertificateSlot", "Chain", "ChainError")

_HEAD: Final = 4
_MOST: Final = 8
_LONG_FORM: Final = 0x80
_SEQUENCE: Final = 0x30


class ChainError(Exception):
    """A chain is none, or does not hold together.

    Attributes:
        rule: the broken rule.

    """

    def __init__(self, rule: str) -> None:
        self.rule = rule
        super().__init__(rule)


def _split(data: bytes) -> list[bytes]:
    """Split certificates that stand one behind the other, each a sequence of DER."""
    found: list[bytes] = []
    at = 0
    while at < len(data):
        if len(found) == _MOST:
            raise ChainError(f"a chain has {_MOST} certificates at most")
        if data[at] != _SEQUENCE or at + 2 > len(data):
            raise ChainError("a chain is made of certificates")
        size, begin = data[at + 1], at + 2
        if size & _LONG_FORM:
            width = size & ~_LONG_FORM
            if not 1 <= width <= 3 or begin + width > len(data):
                raise ChainError("a certificate has a length")
            size, begin = int.from_bytes(data[begin:begin + width], "big"), begin + width
        if begin + size > len(data):
            raise ChainError("a certificate ends in its chain")
        found.append(data[at:begin + size])
        at = begin + size
    return found


@dataclass(frozen=True)
class Chain:
    """A chain that was read.

    Attributes:
        data: as SPDM carries it: what is hashed and signed.
        certificates: from the root to the device's own.
        key: the public key of the last one.

    """

    data: bytes = field(repr=False)
    certificates: tuple[x509.Certificate, ...]
    key: PublicKeyTypes = field(repr=False)

    @classmethod
    def parse(cls, data: bytes, algorithm: str) -> Self:
        """Read one.

        Raises:
            ChainError: it is none, or its certificates do not follow from each other.

        """
        start = _HEAD + digest_size(algorithm)
        if len(data) < start or int.from_bytes(data[:_HEAD], "little") != len(data):
            raise ChainError("a chain has the length that it says")
        try:
            certificates = tuple(x509.load_der_x509_certificate(one) for one in _split(data[start:]))
            if not certificates:
                raise ChainError("a chain has a certificate")
            key = certificates[-1].public_key()
            for one in certificates:
                # What is read late fails late: all that is asked for later is asked for here.
                _ = one.issuer, one.subject, one.not_valid_before_utc, one.not_valid_after_utc
        except (ValueError, UnsupportedAlgorithm, TypeError) as error:
            raise ChainError("certificates are X.509's") from error
        chain = cls(data, certificates, key)
        # The root may be left out; what is hashed then is not here, and the verifier has it.
        if chain.has_root and data[_HEAD:start] != hash_of(algorithm, certificates[0].public_bytes(Encoding.DER)):
            raise ChainError("a chain names its root by its hash")
        chain._check_links()
        return chain

    @property
    def has_root(self) -> bool:
        """Whether the first certificate is its own issuer."""
        return self.certificates[0].issuer == self.certificates[0].subject

    def _check_links(self) -> None:
        for place, certificate in enumerate(self.certificates[1:]):
            issuer = self.certificates[place]
            try:
                certificate.verify_directly_issued_by(issuer)
            except (InvalidSignature, ValueError, TypeError, UnsupportedAlgorithm) as error:
                raise ChainError("each certificate is issued by the one before it") from error
        for certificate in self.certificates[:-1]:
            try:
                basic = certificate.extensions.get_extension_for_class(x509.BasicConstraints).value
            except (x509.ExtensionNotFound, ValueError) as error:
                raise ChainError("whoever issues certificates may") from error
            if not basic.ca:
                raise ChainError("whoever issues certificates may")

    def valid_at(self, moment: datetime) -> bool:
        """Whether all certificates are valid at a time."""
        return all(one.not_valid_before_utc <= moment <= one.not_valid_after_utc for one in self.certificates)


@dataclass(frozen=True, slots=True)
class CertificateSlot:
    """A certificate chain, and the key of its last certificate.

    Attributes:
        certificates: from the root to the device's own.
        key: its private key.

    """

    certificates: tuple[x509.Certificate, ...]
    key: PrivateKeyTypes = field(repr=False)

    def chain(self, algorithm: str) -> bytes:
        """Return the chain as SPDM has it: length, hash of the root, certificates."""
        encoded = [one.public_bytes(Encoding.DER) for one in self.certificates]
        root = hash_of(algorithm, encoded[0])
        size = 4 + len(root) + sum(map(len, encoded))
        return size.to_bytes(4, "little") + root + b"".join(encoded)
