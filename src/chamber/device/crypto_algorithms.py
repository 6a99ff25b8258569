"""What a crypto device computes, by the ``cryptography`` library.

Each function of the tables makes a computation from a key; the computation takes and returns bytes. A key or an input
that does not fit is a ValueError.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from cryptography.exceptions import InvalidSignature, InvalidTag
from cryptography.hazmat.decrepit.ciphers.algorithms import TripleDES
from cryptography.hazmat.primitives import cmac, hashes, hmac, serialization
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa, utils
from cryptography.hazmat.primitives.ciphers import Cipher as SymmetricCipher
from cryptography.hazmat.primitives.ciphers import algorithms, modes
from cryptography.hazmat.primitives.ciphers.aead import AESCCM, AESGCM, ChaCha20Poly1305

from chamber.wire.crypto import Aead, Cipher, CryptoHash, Curve, DataOp, KeyType, Mac, Operation, RsaHash, RsaPadding

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ("HASHES", "IV_SIZES", "MACS", "BadMessage", "aead", "cipher", "digest", "ecdsa", "mac", "rsa_key")

IV_SIZES: Final = {Cipher.AES_ECB: 0, Cipher.AES_CBC: 16, Cipher.AES_CTR: 16, Cipher.TRIPLE_DES_CBC: 8,
                   Cipher.AES_XTS: 16}
"""Bytes of initialisation vector."""

HASHES: Final[dict[CryptoHash, Callable[[], hashes.HashAlgorithm]]] = {
    CryptoHash.MD5: hashes.MD5, CryptoHash.SHA1: hashes.SHA1, CryptoHash.SHA_224: hashes.SHA224,
    CryptoHash.SHA_256: hashes.SHA256, CryptoHash.SHA_384: hashes.SHA384, CryptoHash.SHA_512: hashes.SHA512,
    CryptoHash.SHA3_224: hashes.SHA3_224, CryptoHash.SHA3_256: hashes.SHA3_256, CryptoHash.SHA3_384: hashes.SHA3_384,
    CryptoHash.SHA3_512: hashes.SHA3_512}

_HMACS: Final[dict[Mac, Callable[[], hashes.HashAlgorithm]]] = {
    Mac.HMAC_MD5: hashes.MD5, Mac.HMAC_SHA1: hashes.SHA1, Mac.HMAC_SHA_224: hashes.SHA224,
    Mac.HMAC_SHA_256: hashes.SHA256, Mac.HMAC_SHA_384: hashes.SHA384, Mac.HMAC_SHA_512: hashes.SHA512}

_CURVES: Final[dict[Curve, Callable[[], ec.EllipticCurve]]] = {
    Curve.NIST_P224: ec.SECP224R1, Curve.NIST_P256: ec.SECP256R1, Curve.NIST_P384: ec.SECP384R1,
    Curve.NIST_P521: ec.SECP521R1}
_RSA_HASHES: Final[dict[RsaHash, Callable[[], hashes.HashAlgorithm]]] = {
    RsaHash.SHA1: hashes.SHA1, RsaHash.SHA256: hashes.SHA256, RsaHash.SHA384: hashes.SHA384,
    RsaHash.SHA512: hashes.SHA512, RsaHash.SHA224: hashes.SHA224}
_DIGESTS: Final[dict[int, Callable[[], hashes.HashAlgorithm]]] = {
    20: hashes.SHA1, 28: hashes.SHA224, 32: hashes.SHA256, 48: hashes.SHA384, 64: hashes.SHA512}
_MAX_RSA_BITS: Final = 8192
_MAX_EXPONENT_BITS: Final = 64


class BadMessage(Exception):
    """A tag or a signature does not fit (VIRTIO_CRYPTO_BADMSG)."""


def digest(kind: CryptoHash, data: bytes) -> bytes:
    """Hash."""
    context = hashes.Hash(HASHES[kind]())
    context.update(data)
    return context.finalize()


def mac(kind: Mac, key: bytes) -> Callable[[bytes], bytes]:
    """Make a message authentication code."""
    def compute(data: bytes) -> bytes:
        context: cmac.CMAC | hmac.HMAC
        context = cmac.CMAC(algorithms.AES(key)) if kind is Mac.CMAC_AES else hmac.HMAC(key, _HMACS[kind]())
        context.update(data)
        return context.finalize()

    compute(b"")  # a key that does not fit shows now
    return compute


MACS: Final = {kind: 16 if kind is Mac.CMAC_AES else _HMACS[kind]().digest_size for kind in Mac}
"""Bytes of each code."""


def cipher(kind: Cipher, operation: Operation, key: bytes) -> Callable[[bytes, bytes], bytes]:
    """Make a cipher: initialisation vector and data in, data of the same length out."""
    algorithm: algorithms.AES | TripleDES
    algorithm = TripleDES(key) if kind is Cipher.TRIPLE_DES_CBC else algorithms.AES(key)
    mode: dict[Cipher, Callable[[bytes], modes.ECB | modes.CBC | modes.CTR | modes.XTS]] = {
        Cipher.AES_ECB: lambda _: modes.ECB(),  # noqa: S305 - the driver asks for it
        Cipher.AES_CBC: modes.CBC, Cipher.AES_CTR: modes.CTR,
        Cipher.TRIPLE_DES_CBC: modes.CBC, Cipher.AES_XTS: modes.XTS}

    def compute(iv: bytes, data: bytes) -> bytes:
        if len(iv) != IV_SIZES[kind]:
            raise ValueError("initialisation vector")
        context = SymmetricCipher(algorithm, mode[kind](iv))
        run = context.encryptor() if operation is Operation.ENCRYPT else context.decryptor()
        return run.update(data) + run.finalize()

    SymmetricCipher(algorithm, mode[kind](bytes(IV_SIZES[kind])))
    return compute


def aead(kind: Aead, operation: Operation, key: bytes, tag_size: int) -> Callable[[bytes, bytes, bytes], bytes]:
    """Make an authenticated cipher: nonce, data and associated data in; the tag stands behind the ciphertext."""
    context: AESGCM | AESCCM | ChaCha20Poly1305
    if kind is Aead.CCM:
        context = AESCCM(key, tag_size)
    elif tag_size != 16:
        raise ValueError("tags have 16 bytes")
    else:
        context = AESGCM(key) if kind is Aead.GCM else ChaCha20Poly1305(key)

    def compute(nonce: bytes, data: bytes, associated: bytes) -> bytes:
        if operation is Operation.ENCRYPT:
            return context.encrypt(nonce, data, associated)
        try:
            return context.decrypt(nonce, data, associated)
        except InvalidTag:
            raise BadMessage("tag") from None

    return compute


def rsa_key(key_type: KeyType, key: bytes, padding_kind: RsaPadding, digest_kind: RsaHash,
            ) -> Callable[[DataOp, bytes], bytes]:
    """Make an RSA computation from a DER key as PKCS #1 has it.

    Raw RSA with a private key takes a time that depends on the key; a device for tests may, a real one must not.
    """
    private, public = _rsa_pair(key_type, key)
    if public.key_size > _MAX_RSA_BITS or public.public_numbers().e.bit_length() > _MAX_EXPONENT_BITS:
        raise ValueError("key size")
    size = (public.key_size + 7) // 8

    def compute(operation: DataOp, data: bytes) -> bytes:
        if operation in {DataOp.AKCIPHER_DECRYPT, DataOp.AKCIPHER_SIGN} and private is None:
            raise ValueError("it takes a private key")
        if padding_kind is RsaPadding.RAW:
            return _raw(operation, data)
        scheme = padding.PKCS1v15()
        if operation is DataOp.AKCIPHER_ENCRYPT:
            return public.encrypt(data, scheme)
        if operation is DataOp.AKCIPHER_VERIFY:
            return _verify(data)
        assert private is not None
        if operation is DataOp.AKCIPHER_DECRYPT:
            return private.decrypt(data, scheme)
        return private.sign(data, scheme, utils.Prehashed(_RSA_HASHES[digest_kind]()))

    def _raw(operation: DataOp, data: bytes) -> bytes:
        numbers = public.public_numbers()
        if operation is DataOp.AKCIPHER_VERIFY:
            raise ValueError("raw RSA verifies nothing")
        value = int.from_bytes(data, "big")
        if value >= numbers.n:
            raise ValueError("data beyond the modulus")
        exponent = numbers.e
        if operation is not DataOp.AKCIPHER_ENCRYPT:
            assert private is not None
            exponent = private.private_numbers().d
        return pow(value, exponent, numbers.n).to_bytes(size, "big")

    def _verify(data: bytes) -> bytes:
        try:
            public.verify(data[:size], data[size:], padding.PKCS1v15(), utils.Prehashed(_RSA_HASHES[digest_kind]()))
        except InvalidSignature:
            raise BadMessage("signature") from None
        return b""

    return compute


def _rsa_pair(key_type: KeyType, key: bytes) -> tuple[rsa.RSAPrivateKey | None, rsa.RSAPublicKey]:
    if key_type is KeyType.PUBLIC:
        public = serialization.load_der_public_key(key)
        if not isinstance(public, rsa.RSAPublicKey):
            raise ValueError("not an RSA key")
        return None, public
    private = serialization.load_der_private_key(key, None)
    if not isinstance(private, rsa.RSAPrivateKey):
        raise ValueError("not an RSA key")
    return private, private.public_key()


def ecdsa(key_type: KeyType, key: bytes, curve_id: Curve) -> Callable[[DataOp, bytes], bytes]:
    """Make an ECDSA computation: a public key is a point, a private one a DER ECPrivateKey.

    Signing takes a digest; verifying takes signature and digest, the signature being DER and telling its own length.
    """
    curve = _CURVES[curve_id]()
    private = None
    if key_type is KeyType.PUBLIC:
        public = ec.EllipticCurvePublicKey.from_encoded_point(curve, key)
    else:
        loaded = serialization.load_der_private_key(key, None)
        if not isinstance(loaded, ec.EllipticCurvePrivateKey) or not isinstance(loaded.curve, type(curve)):
            raise ValueError("not a key of that curve")
        private, public = loaded, loaded.public_key()

    def compute(operation: DataOp, data: bytes) -> bytes:
        if operation is DataOp.AKCIPHER_SIGN and private is not None:
            return private.sign(data, ec.ECDSA(utils.Prehashed(_digest_of(data))))
        if operation is DataOp.AKCIPHER_VERIFY:
            end = 2 + data[1] if len(data) > 1 and data[1] < 0x80 else 3 + data[2] if len(data) > 2 else 0
            try:
                public.verify(data[:end], data[end:], ec.ECDSA(utils.Prehashed(_digest_of(data[end:]))))
            except InvalidSignature:
                raise BadMessage("signature") from None
            return b""
        raise ValueError("ECDSA signs and verifies")

    return compute


def _digest_of(data: bytes) -> hashes.HashAlgorithm:
    if len(data) not in _DIGESTS:
        raise ValueError("not the length of a digest")
    return _DIGESTS[len(data)]()
