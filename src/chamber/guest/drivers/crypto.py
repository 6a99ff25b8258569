"""Crypto device driver (virtio 1.3, 5.9).

A device that computes for the guest is given its keys and its plaintext: it is for guests that trust it with both. What
the driver can do is to take nothing from it but answers of the right shape to questions that it asked.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from chamber.guest.driver import TRANSPORT_FEATURES, Refused, VirtioDriver
from chamber.wire import crypto as wire
from chamber.wire.crypto import (
    CONFIG,
    CONTROL_FIXED,
    CONTROL_HEADER,
    DATA_FIXED,
    DATA_HEADER,
    FLAG_SESSION_MODE,
    SESSION_INPUT,
    ControlOp,
    CryptoStatus,
    DataOp,
    Service,
)
from chamber.wire.virtio import DeviceType

if TYPE_CHECKING:
    from chamber.platform.heap import Object

__all__ = ("CryptoDriver", "CryptoSession")

_UNANSWERED: Final = 0xFF
_QUEUES: Final = 64
_KEY_LIMIT: Final = 4096
_SIZE_LIMIT: Final = 1 << 16
_ERRORS: Final = (0, 5, 74, 95, 22, 28, 129)
"""errno of each status."""


@dataclass(slots=True)
class CryptoSession:
    """A session of the device.

    Attributes:
        service: what it is for.
        number: what the device calls it.
        close_with: the request that ends it.

    """

    service: Service
    number: int
    close_with: ControlOp


class CryptoDriver(VirtioDriver):
    """Asks for computations, one at a time.

    Attributes:
        max_size: bytes of the longest request that the device takes.

    """

    type = DeviceType.CRYPTO
    known = allowed = TRANSPORT_FEATURES
    config_layout = CONFIG

    def queue_indexes(self) -> list[int]:
        """Return the first data queue and the control queue, which comes after all data queues."""
        count = self.read_config("max_dataqueues").between(1, _QUEUES, "there are 1 to 64 data queues here", "5.9.4")
        self._control = count
        return [0, count]

    def initialise(self) -> None:
        """Read what the device can do."""
        heap = self.machine.heap
        self.sessions: list[CryptoSession] = []
        self._errors = heap.alloc(len(_ERRORS), "errors by status")
        self._errors.write(bytes(_ERRORS))
        ready = self.read_config("status").masked(wire.STATUS_HW_READY)
        if not ready:
            raise Refused("the device is not ready")
        self.services = self.read_config("crypto_services").masked(0xFFFFFFFF)
        self._read_limits()
        key_size = self.read_config("max_cipher_key_len").at_most(_KEY_LIMIT, "a key fits into a page", "5.9.4")
        self._key = heap.alloc(key_size, "key", zero=True)

    def _read_limits(self) -> None:
        # Whatever bits are set: an algorithm that is not there fails when it is asked for.
        self.algorithms = {
            Service.CIPHER: self._mask("cipher_algo_l") | self._mask("cipher_algo_h") << 32,
            Service.HASH: self._mask("hash_algo"),
            Service.MAC: self._mask("mac_algo_l") | self._mask("mac_algo_h") << 32,
            Service.AEAD: self._mask("aead_algo"),
            Service.AKCIPHER: self._mask("akcipher_algo"),
        }
        self.max_auth_key = self.read_config("max_auth_key_len").masked(0xFFFFFFFF)
        self.max_size = self.read_config("max_size").masked((1 << 64) - 1)

    def _mask(self, name: str) -> int:
        return self.read_config(name).masked(0xFFFFFFFF)

    def config_changed(self) -> None:
        """See whether the device still works, and what it does now."""
        self.ready = bool(self.read_config("status").masked(wire.STATUS_HW_READY))
        self.read_config("max_dataqueues").equals(self._control, "queues do not come and go", "5.9.4")
        self.read_config("max_cipher_key_len").at_most(_KEY_LIMIT, "a key fits into a page", "5.9.4")
        self._read_limits()

    def free_buffers(self) -> None:
        """Free the tables."""
        for name in ("_errors", "_key"):
            memory = getattr(self, name, None)
            if memory is not None and memory.live:
                self.machine.heap.free(memory)

    # Sessions.

    def cipher(self, kind: wire.Cipher, operation: wire.Operation, key: bytes) -> CryptoSession:
        """Open a session for a cipher."""
        if len(key) > self._key.size:
            raise Refused("the device takes no key that long")
        self._key.write(key)
        fixed = bytes(wire.CIPHER_SESSION.pack(algo=kind, key_len=len(key), op=operation))
        fixed = fixed.ljust(wire.SYM_TYPE_AT[CONTROL_FIXED], b"\0") + bytes((wire.OP_TYPE_CIPHER,))
        return self._open(Service.CIPHER, kind, fixed, key)

    def hash(self, kind: wire.CryptoHash, size: int) -> CryptoSession:
        """Open a session for a hash of `size` bytes."""
        return self._open(Service.HASH, kind, bytes(wire.HASH_SESSION.pack(algo=kind, hash_result_len=size)), b"")

    def mac(self, kind: wire.Mac, size: int, key: bytes) -> CryptoSession:
        """Open a session for a message authentication code."""
        return self._open(Service.MAC, kind, bytes(wire.MAC_SESSION.pack(
            algo=kind, hash_result_len=size, auth_key_len=len(key))), key)

    def aead(self, kind: wire.Aead, operation: wire.Operation, key: bytes, tag_size: int) -> CryptoSession:
        """Open a session for an authenticated cipher."""
        return self._open(Service.AEAD, kind, bytes(wire.AEAD_SESSION.pack(
            algo=kind, key_len=len(key), tag_len=tag_size, op=operation)), key)

    def akcipher(self, kind: wire.Akcipher, key_type: wire.KeyType, key: bytes, first: int,
                 second: int = 0) -> CryptoSession:
        """Open a session for a key pair: padding and hash of RSA, or the curve of ECDSA."""
        return self._open(Service.AKCIPHER, kind, bytes(wire.AKCIPHER_SESSION.pack(
            algo=kind, key_type=key_type, key_len=len(key), first=first, second=second)), key)

    def _open(self, service: Service, algorithm: int, fixed: bytes, key: bytes) -> CryptoSession:
        if not self.services >> service & self.algorithms[service] >> algorithm & 1:
            raise Refused(f"the device does not serve {service.name} {algorithm}")
        if service is Service.MAC and len(key) > self.max_auth_key:
            raise Refused("the device takes no key that long")
        create = ControlOp[f"{service.name}_CREATE_SESSION"]
        answer = self.machine.heap.alloc(SESSION_INPUT.size, "session input")
        answer.write(bytes(SESSION_INPUT.pack(status=_UNANSWERED)))
        try:
            written = self._ask(create, algorithm, fixed, key, answer)
            self.checks.number(written).equals(SESSION_INPUT.size, "an answer has its own size", "5.9.7.2.1")
            found = answer.read(0, SESSION_INPUT.size)
            self._require_ok(SESSION_INPUT.get(found, "status"))
            number = SESSION_INPUT.get(found, "session_id")
        finally:
            self.release(answer)
        # A session that is open already would be given two owners, and two keys.
        self.checks.require(all(number != s.number for s in self.sessions), "a session id is given once", "5.9.7.2.1",
                            str(number))
        session = CryptoSession(service, number, ControlOp[f"{service.name}_DESTROY_SESSION"])
        self.sessions.append(session)
        return session

    def close(self, session: CryptoSession) -> None:
        """End a session; whether the device forgets the key nobody can know."""
        self.sessions.remove(session)
        answer = self.machine.heap.alloc(1, "status")
        answer.put(0, 1, _UNANSWERED)
        try:
            written = self._ask(session.close_with, 0, bytes(wire.DESTROY.pack(session_id=session.number)), b"", answer)
            self.checks.number(written).equals(1, "an answer has its own size", "5.9.7.2.1")
            self._require_ok(answer.get(0, 1))
        finally:
            self.release(answer)

    def _ask(self, operation: ControlOp, algorithm: int, fixed: bytes, key: bytes, answer: Object) -> int:
        request = self.machine.heap.alloc(CONTROL_HEADER.size + CONTROL_FIXED + len(key), "control request")
        request.write(bytes(CONTROL_HEADER.pack(opcode=operation, algo=algorithm)) + fixed.ljust(CONTROL_FIXED, b"\0")
                      + key)
        try:
            return self.transact(self.queue(self._control), [request], [], answer)
        finally:
            self.release(request)

    # Requests.

    def encrypt(self, session: CryptoSession, iv: bytes, data: bytes, *, decrypt: bool = False) -> bytes:
        """Encrypt, or decrypt, with a cipher session."""
        fixed = bytes(wire.CIPHER_REQUEST.pack(iv_len=len(iv), src_data_len=len(data), dst_data_len=len(data)))
        fixed = fixed.ljust(wire.SYM_TYPE_AT[DATA_FIXED], b"\0") + bytes((wire.OP_TYPE_CIPHER,))
        return self._compute(session, DataOp.CIPHER_DECRYPT if decrypt else DataOp.CIPHER_ENCRYPT, fixed,
                             iv + data, len(data))

    def digest(self, session: CryptoSession, data: bytes, size: int) -> bytes:
        """Compute a hash or a code."""
        fixed = bytes(wire.DIGEST_REQUEST.pack(src_data_len=len(data), hash_result_len=size))
        return self._compute(session, DataOp(session.service << 8), fixed, data, size)

    def seal(self, session: CryptoSession, nonce: bytes, data: bytes, associated: bytes, tag_size: int) -> bytes:
        """Encrypt and authenticate; the tag stands at the end."""
        return self._aead(session, DataOp.AEAD_ENCRYPT, nonce, data, associated, len(data) + tag_size)

    def unseal(self, session: CryptoSession, nonce: bytes, data: bytes, associated: bytes, tag_size: int) -> bytes:
        """Decrypt what `seal` made.

        Raises:
            Refused: the tag does not fit, says the device.

        """
        return self._aead(session, DataOp.AEAD_DECRYPT, nonce, data, associated, len(data) - tag_size)

    def _aead(self, session: CryptoSession, operation: DataOp, nonce: bytes, data: bytes, associated: bytes,
              size: int) -> bytes:
        fixed = bytes(wire.AEAD_REQUEST.pack(iv_len=len(nonce), aad_len=len(associated), src_data_len=len(data),
                                             dst_data_len=size))
        return self._compute(session, operation, fixed, nonce + data + associated, size)

    def public_key(self, session: CryptoSession, operation: DataOp, data: bytes, size: int) -> bytes:
        """Encrypt, decrypt, sign or verify; the answer has at most `size` bytes."""
        fixed = bytes(wire.AKCIPHER_REQUEST.pack(src_data_len=len(data), dst_data_len=size))
        return self._compute(session, operation, fixed, data, size)

    def _compute(self, session: CryptoSession, operation: DataOp, fixed: bytes, data: bytes, size: int) -> bytes:
        if len(data) > min(self.max_size, _SIZE_LIMIT):
            raise Refused("too long a request for the device")
        heap = self.machine.heap
        head = DATA_HEADER.pack(opcode=operation, session_id=session.number, flag=FLAG_SESSION_MODE)
        request = heap.alloc(len(head) + DATA_FIXED + len(data), "crypto request")
        request.write(bytes(head) + fixed.ljust(DATA_FIXED, b"\0") + data)
        into = heap.alloc(size, "crypto result")
        status = heap.alloc(1, "request status")
        status.put(0, 1, _UNANSWERED)
        try:
            written = self.transact(self.queue(0), [request], [into] if size else [], status)
            self._require_ok(status.get(0, 1))
            # What the device did not write is what the guest's memory held before.
            length = self.checks.number(written).equals(size + 1, "a request that succeeded was answered in full",
                                                        "5.9.7.3")
            return into.read(0, length - 1) if size else b""
        finally:
            self.release(request, into, status)

    def _require_ok(self, raw: int) -> None:
        status = self.checks.number(raw).index(len(CryptoStatus), "a status is one of seven", "5.9.7.1")
        error = self._errors.get(status, 1)
        if error:
            raise Refused(f"the device answers with status {status}, error {error}")
