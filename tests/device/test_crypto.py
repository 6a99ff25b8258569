"""The crypto device against published vectors, and against drivers that ask for nonsense."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from chamber.device.crypto import CryptoDevice
from chamber.wire import crypto as wire
from chamber.wire.crypto import (
    Aead,
    Akcipher,
    Cipher,
    ControlOp,
    CryptoHash,
    CryptoStatus,
    Curve,
    DataOp,
    KeyType,
    Mac,
    Operation,
    RsaHash,
    RsaPadding,
)
from tests.attacks.use_crypto import control, data, symmetric
from tests.device.driver import Driver

if TYPE_CHECKING:
    from collections.abc import Iterator

DATA, CONTROL = 0, 1


class Guest:
    """Asks a device for sessions and computations."""

    def __init__(self) -> None:
        self.device = CryptoDevice()
        self.driver = Driver(self.device, memory=1 << 24)

    def open(self, operation: ControlOp, fixed: bytes, key: bytes = b"") -> tuple[int, int]:
        """Return session and status."""
        answer = self.driver.request(CONTROL, [control(operation, fixed, key)], [16])
        return wire.SESSION_INPUT.get(answer, "session_id"), wire.SESSION_INPUT.get(answer, "status")

    def cipher(self, kind: int, operation: Operation, key: bytes) -> tuple[int, int]:
        return self.open(ControlOp.CIPHER_CREATE_SESSION, symmetric(bytes(wire.CIPHER_SESSION.pack(
            algo=kind, key_len=len(key), op=operation)), 48), key)

    def aead(self, kind: Aead, operation: Operation, key: bytes, tag: int) -> tuple[int, int]:
        return self.open(ControlOp.AEAD_CREATE_SESSION, bytes(wire.AEAD_SESSION.pack(
            algo=kind, key_len=len(key), tag_len=tag, op=operation)), key)

    def akcipher(self, kind: Akcipher, key_type: KeyType, key: bytes, *options: int) -> int:
        session, status = self.open(ControlOp.AKCIPHER_CREATE_SESSION, bytes(wire.AKCIPHER_SESSION.pack(
            algo=kind, key_type=key_type, key_len=len(key), first=options[0], second=options[1])), key)
        assert status == CryptoStatus.OK
        return session

    def run(self, operation: DataOp, session: int, fixed: bytes, rest: bytes, room: int) -> tuple[bytes, int]:
        """Return data and status."""
        answer = self.driver.request(DATA, [data(operation, session, fixed, rest)], [room, 1] if room else [1])
        return answer[:-1], answer[-1]

    def crypt(self, operation: DataOp, session: int, iv: bytes, text: bytes) -> tuple[bytes, int]:
        fixed = symmetric(bytes(wire.CIPHER_REQUEST.pack(iv_len=len(iv), src_data_len=len(text),
                                                         dst_data_len=len(text))), 40)
        return self.run(operation, session, fixed, iv + text, len(text))

    def public(self, operation: DataOp, session: int, text: bytes, room: int) -> tuple[bytes, int]:
        fixed = bytes(wire.AKCIPHER_REQUEST.pack(src_data_len=len(text), dst_data_len=room))
        return self.run(operation, session, fixed, text, room)


@pytest.fixture
def guest() -> Iterator[Guest]:
    guest = Guest()
    yield guest
    assert not guest.device.violations
    guest.device.close()


# NIST SP 800-38A, F.1.1; SP 800-67 example in CBC; IEEE 1619, vector 2.
@pytest.mark.parametrize(("kind", "key", "iv", "plain", "right"), [
    (Cipher.AES_ECB, "2b7e151628aed2a6abf7158809cf4f3c", "", "6bc1bee22e409f96e93d7e117393172a",
     "3ad77bb40d7a3660a89ecaf32466ef97"),
    (Cipher.AES_XTS, "11" * 16 + "22" * 16, "33333333330000000000000000000000", "44" * 32,
     "c454185e6a16936e39334038acef838bfb186fff7480adc4289382ecd6d394f0"),
])
def test_ciphers(guest: Guest, kind: Cipher, key: str, iv: str, plain: str, right: str) -> None:
    there, _ = guest.cipher(kind, Operation.ENCRYPT, bytes.fromhex(key))
    back, _ = guest.cipher(kind, Operation.DECRYPT, bytes.fromhex(key))
    vector, text = bytes.fromhex(iv), bytes.fromhex(plain)
    sealed, status = guest.crypt(DataOp.CIPHER_ENCRYPT, there, vector, text)
    assert (sealed.hex(), status) == (right, CryptoStatus.OK)
    assert guest.crypt(DataOp.CIPHER_DECRYPT, back, vector, sealed) == (text, CryptoStatus.OK)
    assert guest.crypt(DataOp.CIPHER_DECRYPT, there, vector, sealed)[1] == CryptoStatus.INVSESS


@pytest.mark.parametrize("kind", CryptoHash)
def test_hashes(guest: Guest, kind: CryptoHash) -> None:
    right = hashlib.new(kind.name.lower().replace("sha_", "sha"), b"abc").digest()
    fixed = bytes(wire.HASH_SESSION.pack(algo=kind, hash_result_len=len(right)))
    session, status = guest.open(ControlOp.HASH_CREATE_SESSION, fixed)
    assert status == CryptoStatus.OK
    request = bytes(wire.DIGEST_REQUEST.pack(src_data_len=3, hash_result_len=len(right)))
    assert guest.run(DataOp.HASH, session, request, b"abc", len(right)) == (right, CryptoStatus.OK)


def test_cmac(guest: Guest) -> None:
    """RFC 4493, example 2."""
    key = bytes.fromhex("2b7e151628aed2a6abf7158809cf4f3c")
    session, _ = guest.open(ControlOp.MAC_CREATE_SESSION, bytes(wire.MAC_SESSION.pack(
        algo=Mac.CMAC_AES, hash_result_len=16, auth_key_len=16)), key)
    request = bytes(wire.DIGEST_REQUEST.pack(src_data_len=16, hash_result_len=16))
    got, _ = guest.run(DataOp.MAC, session, request, bytes.fromhex("6bc1bee22e409f96e93d7e117393172a"), 16)
    assert got.hex() == "070a16b46b4d4144f79bdd9dd04a287c"


def test_authenticated_ciphers(guest: Guest) -> None:
    """RFC 8439, 2.8.2, by its tag; CCM of RFC 3610, packet vector 1."""
    key = bytes(range(0x80, 0xA0))
    nonce = bytes.fromhex("070000004041424344454647")
    associated = bytes.fromhex("50515253c0c1c2c3c4c5c6c7")
    text = (b"Ladies and Gentlemen of the class of '99: If I could offer you only one tip for the future, sunscreen "
            b"would be it.")
    session, _ = guest.aead(Aead.CHACHA20_POLY1305, Operation.ENCRYPT, key, 16)
    fixed = bytes(wire.AEAD_REQUEST.pack(iv_len=12, aad_len=12, src_data_len=len(text), dst_data_len=len(text) + 16))
    sealed, status = guest.run(DataOp.AEAD_ENCRYPT, session, fixed, nonce + text + associated, len(text) + 16)
    assert (sealed[-16:].hex(), status) == ("1ae10b594f09e26a7e902ecbd0600691", CryptoStatus.OK)
    key, nonce = bytes(range(0xC0, 0xD0)), bytes.fromhex("00000003020100a0a1a2a3a4a5")
    session, _ = guest.aead(Aead.CCM, Operation.DECRYPT, key, 8)
    sealed = bytes.fromhex("588c979a61c663d2f066d0c2c0f989806d5f6b61dac38417e8d12cfdf926e0")
    fixed = bytes(wire.AEAD_REQUEST.pack(iv_len=13, aad_len=8, src_data_len=len(sealed), dst_data_len=23))
    assert guest.run(DataOp.AEAD_DECRYPT, session, fixed, nonce + sealed + bytes(range(8)), 23) == (
        bytes(range(8, 31)), CryptoStatus.OK)
    forged = bytes((sealed[0] ^ 1,)) + sealed[1:]
    assert guest.run(DataOp.AEAD_DECRYPT, session, fixed, nonce + forged + bytes(range(8)), 23)[1] == (
        CryptoStatus.BADMSG)


def test_rsa(guest: Guest) -> None:
    pair = rsa.generate_private_key(65537, 2048)
    private = pair.private_bytes(serialization.Encoding.DER, serialization.PrivateFormat.TraditionalOpenSSL,
                                 serialization.NoEncryption())
    public = pair.public_key().public_bytes(serialization.Encoding.DER, serialization.PublicFormat.PKCS1)
    padded = (RsaPadding.PKCS1, RsaHash.SHA256)
    ours = guest.akcipher(Akcipher.RSA, KeyType.PRIVATE, private, *padded)
    theirs = guest.akcipher(Akcipher.RSA, KeyType.PUBLIC, public, *padded)
    sealed, _ = guest.public(DataOp.AKCIPHER_ENCRYPT, theirs, b"secret", 256)
    opened, status = guest.public(DataOp.AKCIPHER_DECRYPT, ours, sealed, 256)
    assert (opened.rstrip(b"\0"), status) == (b"secret", CryptoStatus.OK)
    digest = hashlib.sha256(b"message").digest()
    signature, _ = guest.public(DataOp.AKCIPHER_SIGN, ours, digest, 256)
    assert guest.public(DataOp.AKCIPHER_VERIFY, theirs, signature + digest, 0)[1] == CryptoStatus.OK
    assert guest.public(DataOp.AKCIPHER_VERIFY, theirs, signature + bytes(32), 0)[1] == CryptoStatus.BADMSG
    assert guest.public(DataOp.AKCIPHER_SIGN, theirs, digest, 256)[1] == CryptoStatus.ERR
    raw = guest.akcipher(Akcipher.RSA, KeyType.PRIVATE, private, RsaPadding.RAW, RsaHash.NONE)
    there, _ = guest.public(DataOp.AKCIPHER_ENCRYPT, raw, (7).to_bytes(256, "big"), 256)
    back, _ = guest.public(DataOp.AKCIPHER_DECRYPT, raw, there, 256)
    assert int.from_bytes(back, "big") == 7
    assert guest.public(DataOp.AKCIPHER_ENCRYPT, raw, b"\xff" * 256, 256)[1] == CryptoStatus.ERR


def test_ecdsa(guest: Guest) -> None:
    pair = ec.generate_private_key(ec.SECP384R1())
    private = pair.private_bytes(serialization.Encoding.DER, serialization.PrivateFormat.TraditionalOpenSSL,
                                 serialization.NoEncryption())
    point = pair.public_key().public_bytes(serialization.Encoding.X962, serialization.PublicFormat.UncompressedPoint)
    ours = guest.akcipher(Akcipher.ECDSA, KeyType.PRIVATE, private, Curve.NIST_P384, 0)
    theirs = guest.akcipher(Akcipher.ECDSA, KeyType.PUBLIC, point, Curve.NIST_P384, 0)
    digest = hashlib.sha384(b"message").digest()
    signature, _ = guest.public(DataOp.AKCIPHER_SIGN, ours, digest, 128)
    signature = signature[:2 + signature[1]]
    assert guest.public(DataOp.AKCIPHER_VERIFY, theirs, signature + digest, 0)[1] == CryptoStatus.OK
    assert guest.public(DataOp.AKCIPHER_VERIFY, theirs, signature + bytes(48), 0)[1] == CryptoStatus.BADMSG


def test_what_makes_no_sense_has_a_status(guest: Guest) -> None:
    assert guest.cipher(Cipher.AES_CBC, Operation.ENCRYPT, b"short")[1] == CryptoStatus.KEY_REJECTED
    assert guest.cipher(99, Operation.ENCRYPT, bytes(16))[1] == CryptoStatus.NOTSUPP
    assert guest.crypt(DataOp.CIPHER_ENCRYPT, 77, bytes(16), bytes(16))[1] == CryptoStatus.INVSESS
    session, _ = guest.cipher(Cipher.AES_CBC, Operation.ENCRYPT, bytes(16))
    assert guest.crypt(DataOp.CIPHER_ENCRYPT, session, bytes(15), bytes(16))[1] == CryptoStatus.ERR
    assert guest.crypt(DataOp.CIPHER_ENCRYPT, session, bytes(16), bytes(15))[1] == CryptoStatus.ERR
    assert guest.crypt(DataOp.HASH, session, bytes(16), bytes(16))[1] == CryptoStatus.INVSESS
    beyond = symmetric(bytes(wire.CIPHER_REQUEST.pack(iv_len=16, src_data_len=1 << 31, dst_data_len=16)), 40)
    assert guest.run(DataOp.CIPHER_ENCRYPT, session, beyond, bytes(32), 16)[1] == CryptoStatus.ERR
    destroy = bytes(wire.DESTROY.pack(session_id=session))
    asked = [control(ControlOp.HASH_DESTROY_SESSION, destroy)]
    assert guest.driver.request(CONTROL, asked, [1]) == bytes((CryptoStatus.INVSESS,))
    asked = [control(ControlOp.CIPHER_DESTROY_SESSION, destroy)]
    assert guest.driver.request(CONTROL, asked, [1]) == bytes((CryptoStatus.OK,))
    assert guest.crypt(DataOp.CIPHER_ENCRYPT, session, bytes(16), bytes(16))[1] == CryptoStatus.INVSESS


def test_sessions_are_bounded(guest: Guest) -> None:
    statuses = [guest.cipher(Cipher.AES_CBC, Operation.ENCRYPT, bytes(16))[1] for _ in range(300)]
    assert statuses.count(CryptoStatus.OK) == 256
    assert statuses[-1] == CryptoStatus.NOSPC


def test_linux_lists_the_end_of_a_scattered_buffer_twice(guest: Guest) -> None:
    """What is written behind the data would go over it, so nothing is but the status, in the last byte."""
    key, iv, text = bytes(16), bytes(16), bytes(range(32))
    session, _ = guest.cipher(Cipher.AES_CBC, Operation.ENCRYPT, key)
    right, _ = guest.crypt(DataOp.CIPHER_ENCRYPT, session, iv, text)
    fixed = symmetric(bytes(wire.CIPHER_REQUEST.pack(iv_len=16, src_data_len=32, dst_data_len=32)), 40)
    guest.driver.add(DATA, [data(DataOp.CIPHER_ENCRYPT, session, fixed, iv + text)], [16, 16, 16, 1])
    (buffers,) = guest.driver.queues[DATA].buffers.values()
    guest.driver.notify(DATA)
    first, second, again, status = (guest.driver.memory.read(address, size) for address, size in buffers)
    assert (first + second, again, status) == (right, b"\xee" * 16, bytes([CryptoStatus.OK]))


def test_linux_leaves_the_flag_alone(guest: Guest) -> None:
    session, _ = guest.cipher(Cipher.AES_CBC, Operation.ENCRYPT, bytes(16))
    fixed = symmetric(bytes(wire.CIPHER_REQUEST.pack(iv_len=16, src_data_len=16, dst_data_len=16)), 40)
    head = bytearray(data(DataOp.CIPHER_ENCRYPT, session, fixed, bytes(32)))
    wire.DATA_HEADER.put(head, "flag", 0)
    assert guest.driver.request(DATA, [bytes(head)], [16, 1])[-1] == CryptoStatus.OK
