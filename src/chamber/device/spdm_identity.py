"""Identities of devices that Chamber plays: a root of a maker that there is not, an issuer, and the device's key."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, mldsa, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID, ObjectIdentifier

from chamber.platform.spdm_chain import CertificateSlot

if TYPE_CHECKING:
    from collections.abc import Callable

    from cryptography.hazmat.primitives.asymmetric.types import CertificateIssuerPrivateKeyTypes

__all__ = ("KEY_KINDS", "Maker", "make_slot")

_DAY: Final = timedelta(days=1)
_YEARS: Final = 20 * 365 * _DAY
_RESPONDER: Final = ObjectIdentifier("1.3.6.1.4.1.412.274.3")
"""id-DMTF-eku-responder-auth (DSP0274, 10.6.1.4)."""
KEY_KINDS: Final[dict[str, Callable[[], CertificateIssuerPrivateKeyTypes]]] = {
    "P-256": lambda: ec.generate_private_key(ec.SECP256R1()), "P-384": lambda: ec.generate_private_key(ec.SECP384R1()),
    "P-521": lambda: ec.generate_private_key(ec.SECP521R1()), "Ed25519": ed25519.Ed25519PrivateKey.generate,
    "ML-DSA-44": mldsa.MLDSA44PrivateKey.generate, "ML-DSA-65": mldsa.MLDSA65PrivateKey.generate,
    "ML-DSA-87": mldsa.MLDSA87PrivateKey.generate,
    "RSA-2048": lambda: rsa.generate_private_key(65537, 2048),
    "RSA-3072": lambda: rsa.generate_private_key(65537, 3072)}
"""Kinds of keys, and what makes one."""


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.ORGANIZATION_NAME, "Chamber"),
                      x509.NameAttribute(NameOID.COMMON_NAME, text)])


class Maker:
    """Whoever makes devices: a root, and an issuer of their certificates.

    Args:
        kind: of keys: one of `KEY_KINDS`.

    """

    def __init__(self, kind: str = "P-384") -> None:
        self._kind = kind
        self._now = datetime.now(UTC)
        (root, top), (self._name, self._key) = ((_name(text), KEY_KINDS[kind]()) for text in ("root", "issuer"))
        self._above = (_certificate(root, top, root, top, self._now, depth=1),
                       _certificate(self._name, self._key, root, top, self._now, depth=0))

    def make_slot(self, name: str = "device") -> CertificateSlot:
        """Make the identity of a device, with a name."""
        key = KEY_KINDS[self._kind]()
        own = _certificate(_name(name), key, self._name, self._key, self._now, depth=None)
        return CertificateSlot((*self._above, own), key)


def make_slot(kind: str = "P-384", *, name: str = "device") -> CertificateSlot:
    """Make an identity of a maker that makes no other.

    Args:
        kind: of keys: one of `KEY_KINDS`.
        name: of the device.

    """
    return Maker(kind).make_slot(name)


def _certificate(subject: x509.Name, key: CertificateIssuerPrivateKeyTypes, issuer: x509.Name,
                 by: CertificateIssuerPrivateKeyTypes, now: datetime, *, depth: int | None) -> x509.Certificate:
    builder = (x509.CertificateBuilder().subject_name(subject).issuer_name(issuer).public_key(key.public_key())
               .serial_number(x509.random_serial_number()).not_valid_before(now - _DAY).not_valid_after(now + _YEARS)
               .add_extension(x509.BasicConstraints(ca=depth is not None, path_length=depth), critical=True))
    if depth is None:
        builder = builder.add_extension(x509.ExtendedKeyUsage([_RESPONDER, ExtendedKeyUsageOID.CLIENT_AUTH]),
                                        critical=False)
    plain = not isinstance(by, ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey)
    return builder.sign(by, None if plain else hashes.SHA384())
