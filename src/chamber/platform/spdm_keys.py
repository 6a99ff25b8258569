"""Keys of an SPDM session, and what is sealed with them (DMTF DSP0274, 12; DSP0277).

Both ends come to the same keys from what they exchanged and from the hash of all that they said before: whoever stands
between them and changed a byte has them come to different ones.

Secrets are kept in byte arrays and overwritten when they are done with. Python may have copied them meanwhile, and the
ciphers of `cryptography` keep a copy of their key until they are collected: nobody can promise more here.
"""

from __future__ import annotations

import hmac
from typing import TYPE_CHECKING, Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM, ChaCha20Poly1305
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand

from chamber.wire.errors import WireError
from chamber.wire.spdm_secured import SecuredMessage

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ("AEADS", "HASHES", "Direction", "KeySchedule", "RecordError", "wipe")

_IV_SIZE: Final = 12
_SEQUENCE_SIZE: Final = 8
_LAST: Final = (1 << 64) - 1
_PSK_SALT_SINCE: Final = 0x13

HASHES: Final[dict[str, Callable[[], hashes.HashAlgorithm]]] = {
    "SHA-256": hashes.SHA256, "SHA-384": hashes.SHA384, "SHA-512": hashes.SHA512, "SHA3-256": hashes.SHA3_256,
    "SHA3-384": hashes.SHA3_384, "SHA3-512": hashes.SHA3_512}
"""Hash algorithms by name."""
AEADS: Final[dict[str, tuple[int, Callable[[bytes], AESGCM | ChaCha20Poly1305]]]] = {
    "AES-128-GCM": (16, AESGCM), "AES-256-GCM": (32, AESGCM), "CHACHA20_POLY1305": (32, ChaCha20Poly1305)}
"""Ciphers by name: bytes of a key, and what makes one."""


class RecordError(Exception):
    """A secured message is none of this session and direction, or not the next; nothing comes through any more.

    Attributes:
        rule: the broken rule.

    """

    def __init__(self, rule: str) -> None:
        self.rule = rule
        super().__init__(f"{rule} [DSP0277, 8]")


def wipe(*secrets: bytearray) -> None:
    """Overwrite secrets."""
    for secret in secrets:
        secret[:] = bytes(len(secret))


class KeySchedule:
    """From a shared secret to the secrets of each direction and phase.

    Args:
        version: of SPDM, as in the head of messages: 0x11 to 0x14.
        algorithm: name of the hash.
        shared: what was exchanged, or shared before.
        psk: whether it was shared before.

    """

    def __init__(self, version: int, algorithm: str, shared: bytes, *, psk: bool = False) -> None:
        self._version = version
        self._hash = HASHES[algorithm]
        self._name = self._hash().name
        self.hash_size = self._hash().digest_size
        salt = b"\xff" if psk and version >= _PSK_SALT_SINCE else b"\0"
        self._handshake = self._extract(salt * self.hash_size, shared)

    def digest(self, data: bytes) -> bytes:
        """Hash a transcript."""
        context = hashes.Hash(self._hash())
        context.update(data)
        return context.finalize()

    def _extract(self, salt: bytes, secret: bytes) -> bytearray:
        return bytearray(hmac.digest(salt, secret, self._digest_name))

    @property
    def _digest_name(self) -> str:
        return self._name.replace("sha3-", "sha3_").replace("-", "_")

    def expand(self, secret: bytes | bytearray, size: int, label: str, context: bytes = b"") -> bytearray:
        """Derive `size` bytes under a label (12.2)."""
        info = (size.to_bytes(2, "little") + f"spdm{self._version >> 4}.{self._version & 15} ".encode()
                + label.encode() + context)
        return bytearray(HKDFExpand(self._hash(), size, info).derive(bytes(secret)))

    def handshake(self, th1: bytes) -> tuple[bytearray, bytearray]:
        """Return the handshake's secrets, of requests and responses, by the hash up to the key exchange's answer."""
        return self._pair("hs data", self._handshake, th1)

    def data(self, th2: bytes) -> tuple[bytearray, bytearray, bytearray]:
        """Return those of the session's data, and the one to export, by the hash up to the handshake's end."""
        salt = self.expand(self._handshake, self.hash_size, "derived")
        master = self._extract(bytes(salt), bytes(self.hash_size))
        request, response = self._pair("app data", master, th2)
        exported = self.expand(master, self.hash_size, "exp master", th2)
        wipe(salt, master)
        return request, response, exported

    def _pair(self, label: str, secret: bytearray, transcript: bytes) -> tuple[bytearray, bytearray]:
        return (self.expand(secret, self.hash_size, f"req {label}", transcript),
                self.expand(secret, self.hash_size, f"rsp {label}", transcript))

    def verify_data(self, secret: bytes | bytearray, transcript: bytes) -> bytes:
        """Return what proves that a direction's secret is known, and the transcript (its hash) the same."""
        finished = self.expand(secret, self.hash_size, "finished")
        proof = hmac.digest(bytes(finished), transcript, self._digest_name)
        wipe(finished)
        return proof

    def updated(self, secret: bytes | bytearray) -> bytearray:
        """Return the secret that follows one (KEY_UPDATE)."""
        return self.expand(secret, self.hash_size, "traffic upd")

    def direction(self, secret: bytes | bytearray, aead: str, session_id: int, sequence_size: int = 0) -> Direction:
        """Make one direction of a session."""
        size, _ = AEADS[aead]
        key, iv = self.expand(secret, size, "key"), self.expand(secret, _IV_SIZE, "iv")
        made = Direction(aead, key, iv, session_id, sequence_size)
        wipe(key, iv)
        return made

    def close(self) -> None:
        """Forget the secret."""
        wipe(self._handshake)


class Direction:
    """One direction of a session: seals messages one after the other, or opens them.

    Messages have no number on a mailbox: each end counts, so that one which was lost, said twice or in another order
    does not open. Then the direction is closed: whoever could go on could try.

    Args:
        aead: name of the cipher.
        key: its key.
        iv: what numbers are mixed with.
        session_id: half of each end.
        sequence_size: bytes of a message's number that go with it.

    """

    def __init__(self, aead: str, key: bytes | bytearray, iv: bytes | bytearray, session_id: int,
                 sequence_size: int = 0) -> None:
        _, make = AEADS[aead]
        self._cipher: AESGCM | ChaCha20Poly1305 | None = make(bytes(key))
        self._iv = bytearray(iv)
        self._session_id = session_id
        self._sequence_size = sequence_size
        self._next = 0

    @property
    def _sequence(self) -> bytes:
        """What goes with the next message of its number."""
        return self._next.to_bytes(_SEQUENCE_SIZE, "little")[:self._sequence_size]

    def _take(self) -> tuple[AESGCM | ChaCha20Poly1305, bytes]:
        if self._cipher is None:
            raise RecordError("a direction that is closed takes no message")
        if self._next > _LAST:
            self.close()
            raise RecordError("a key seals no more messages than it has numbers for")
        number = int.from_bytes(self._iv[:_SEQUENCE_SIZE], "little") ^ self._next
        self._next += 1
        return self._cipher, number.to_bytes(_SEQUENCE_SIZE, "little") + bytes(self._iv[_SEQUENCE_SIZE:])

    def seal(self, message: bytes) -> bytes:
        """Seal a message; return what to send.

        Raises:
            RecordError: the direction is closed.
            ValueError: the message is too long.

        """
        plain = len(message).to_bytes(2, "little") + message
        sequence = self._sequence
        cipher, nonce = self._take()
        head = SecuredMessage(self._session_id, bytes(len(plain) + 16), sequence).head
        return SecuredMessage(self._session_id, cipher.encrypt(nonce, plain, head), sequence).encode()

    def open(self, data: bytes) -> bytes:
        """Open a message.

        Raises:
            RecordError: it is not the next of this direction; the direction is closed.

        """
        try:
            message = SecuredMessage.decode(data, self._sequence_size)
        except WireError as error:
            self.close()
            raise RecordError(error.rule) from error
        if message.session_id != self._session_id or message.sequence != self._sequence:
            self.close()
            raise RecordError("a message is of the session that it comes in, and has the next number")
        cipher, nonce = self._take()
        try:
            plain = cipher.decrypt(nonce, message.sealed, message.head)
        except InvalidTag:
            self.close()
            raise RecordError("a message opens, being the next") from None
        size = int.from_bytes(plain[:2], "little")
        if len(plain) < 2 or size > len(plain) - 2:
            self.close()
            raise RecordError("a message holds what it says")
        return plain[2:2 + size]

    def close(self) -> None:
        """Take no more, and forget the key."""
        self._cipher = None
        wipe(self._iv)
