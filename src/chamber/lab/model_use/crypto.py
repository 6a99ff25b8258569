"""What the model guest does with a crypto device: published test vectors, there and back."""

from __future__ import annotations

import hashlib
import hmac
from typing import TYPE_CHECKING, Final

from chamber.guest.driver import Refused
from chamber.lab.model_use.right_data import PAUSE, WrongData, compare
from chamber.wire.crypto import Aead, Akcipher, Cipher, CryptoHash, Curve, DataOp, KeyType, Mac, Operation

if TYPE_CHECKING:
    from collections.abc import Callable

    from chamber.guest.drivers.crypto import CryptoDriver
    from chamber.guest.machine import GuestMachine

__all__ = ("STIMULI",)

# NIST SP 800-38A, F.2.1 and F.5.1: AES-128 in CBC and CTR mode, first block.
_AES_KEY: Final = bytes.fromhex("2b7e151628aed2a6abf7158809cf4f3c")
_PLAIN: Final = bytes.fromhex("6bc1bee22e409f96e93d7e117393172a")
_IV: Final = bytes(range(16))
_COUNTER: Final = bytes(range(0xF0, 0x100))
_MODES: Final = ((Cipher.AES_CBC, _IV, bytes.fromhex("7649abac8119b246cee98e9b12e9197d")),
                 (Cipher.AES_CTR, _COUNTER, bytes.fromhex("874d6191b620e3261bef6864990db6ce")))

# RFC 4231, test case 2.
_MAC_KEY: Final = b"Jefe"
_MESSAGE: Final = b"what do ya want for nothing?"
_MAC: Final = bytes.fromhex("5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843")

# The Galois/Counter Mode of Operation (McGrew, Viega), test case 3.
_GCM_KEY: Final = bytes.fromhex("feffe9928665731c6d6a8f9467308308")
_NONCE: Final = bytes.fromhex("cafebabefacedbaddecaf888")
_GCM_PLAIN: Final = bytes.fromhex(
    "d9313225f88406e5a55909c5aff5269a86a7a9531534f7da2e4c303d8a318a721c3c0c95956809532fcf0e2449a6b525b16aedf5aa0de657"
    "ba637b391aafd255")
_GCM_SEALED: Final = bytes.fromhex(
    "42831ec2217774244b7221b784d0d49ce3aa212f2c02a4e035c17e2329aca12e21d514b25466931c7d8f6a5aac84aa051ba30b396a0aac97"
    "3d58e091473f59854d5c2af327cd64a62cf35abd2ba6fab4")
_TAG: Final = 16

# NIST P-256: the public key and the signature of RFC 6979, A.2.5, of "sample" with SHA-256; signature in DER.
_POINT: Final = bytes.fromhex(
    "0460fed4ba255a9d31c961eb74c6356d68c049b8923b61fa6ce669622e60f29fb67903fe1008b8bc99a41ae9e95628bc64f2f1b20c2d7e9f"
    "5177a3c294d4462299")
_SIGNATURE: Final = bytes.fromhex(
    "3046022100efd48b2aacb6a8fd1140dd9cd45e81d69d2c877b56aaf991c34d0ea84eaf3716022100f7cb1c942d657c41d436c7a1b6e29f65"
    "f3e900dbb9aff4064dc4ab2f843acda8")


def use(driver: CryptoDriver, machine: GuestMachine, ask: Callable[[str], None]) -> None:  # noqa: ARG001
    """Encrypt, hash, authenticate, verify, and compare with what was published."""
    for mode, iv, right in _MODES:
        there = driver.cipher(mode, Operation.ENCRYPT, _AES_KEY)
        back = driver.cipher(mode, Operation.DECRYPT, _AES_KEY)
        compare(driver.encrypt(there, iv, _PLAIN), right, "ciphertext")
        compare(driver.encrypt(back, iv, right, decrypt=True), _PLAIN, "plaintext")
        machine.settle(PAUSE)
        driver.close(there)
        driver.close(back)
    digest = driver.hash(CryptoHash.SHA_256, 32)
    compare(driver.digest(digest, _MESSAGE, 32), hashlib.sha256(_MESSAGE).digest(), "digest")
    driver.close(digest)
    code = driver.mac(Mac.HMAC_SHA_256, 32, _MAC_KEY)
    compare(driver.digest(code, _MESSAGE, 32), _MAC, "authentication code")
    long = bytes(range(256)) * 8
    compare(driver.digest(code, long, 32), hmac.digest(_MAC_KEY, long, "sha256"), "authentication code")
    driver.close(code)
    _sealed(driver)
    machine.settle(PAUSE)
    _signed(driver)


def _sealed(driver: CryptoDriver) -> None:
    seal = driver.aead(Aead.GCM, Operation.ENCRYPT, _GCM_KEY, _TAG)
    unseal = driver.aead(Aead.GCM, Operation.DECRYPT, _GCM_KEY, _TAG)
    compare(driver.seal(seal, _NONCE, _GCM_PLAIN, b"", _TAG), _GCM_SEALED, "sealed text")
    compare(driver.unseal(unseal, _NONCE, _GCM_SEALED, b"", _TAG), _GCM_PLAIN, "unsealed text")
    forged = _GCM_SEALED[:-1] + bytes((_GCM_SEALED[-1] ^ 1,))
    try:
        driver.unseal(unseal, _NONCE, forged, b"", _TAG)
    except Refused:
        pass
    else:
        raise WrongData("a forged tag passes")
    driver.close(seal)
    driver.close(unseal)


def _signed(driver: CryptoDriver) -> None:
    session = driver.akcipher(Akcipher.ECDSA, KeyType.PUBLIC, _POINT, Curve.NIST_P256)
    right = hashlib.sha256(b"sample").digest()
    driver.public_key(session, DataOp.AKCIPHER_VERIFY, _SIGNATURE + right, 0)
    try:
        driver.public_key(session, DataOp.AKCIPHER_VERIFY, _SIGNATURE + hashlib.sha256(b"forged").digest(), 0)
    except Refused:
        pass
    else:
        raise WrongData("a forged signature passes")
    driver.close(session)


def inspect(driver: CryptoDriver, machine: GuestMachine, ask: Callable[[str], None]) -> None:  # noqa: ARG001
    """Ask whether it works, and open more sessions than one."""
    driver.config_changed()
    sessions = [driver.cipher(Cipher.AES_CBC, Operation.ENCRYPT, bytes([i]) * 16) for i in range(4)]
    results = {driver.encrypt(session, _IV, _PLAIN) for session in sessions}
    if len(results) != len(sessions):
        raise WrongData("sessions share a key")
    for session in sessions:
        driver.close(session)


STIMULI: Final[dict[str, Callable[..., None]]] = {"use": use, "inspect": inspect}
