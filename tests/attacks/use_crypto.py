"""How the scripted victim uses a crypto device."""

from __future__ import annotations

from typing import TYPE_CHECKING

from chamber.wire import crypto as wire
from chamber.wire.crypto import ControlOp, DataOp

if TYPE_CHECKING:
    from tests.attacks.victim import Victim

__all__ = ("use",)

KEYS = (b"k" * 16, b"K" * 16)
EMPTY_TAG = bytes.fromhex("30c77d03eb3cfd95bea565c4e45adcd3")
"""AES-GCM of nothing with the first key and a nonce of zeroes."""


def control(operation: ControlOp, fixed: bytes, key: bytes = b"") -> bytes:
    return bytes(wire.CONTROL_HEADER.pack(opcode=operation)) + fixed.ljust(wire.CONTROL_FIXED, b"\0") + key


def data(operation: DataOp, session: int, fixed: bytes, rest: bytes) -> bytes:
    head = bytes(wire.DATA_HEADER.pack(opcode=operation, session_id=session, flag=wire.FLAG_SESSION_MODE))
    return head + fixed.ljust(wire.DATA_FIXED, b"\0") + rest


def symmetric(layout_bytes: bytes, at: int) -> bytes:
    return layout_bytes.ljust(at, b"\0") + b"\1"


def use(victim: Victim) -> None:
    """Two ciphers, a hash and an authenticated cipher, each a few times."""
    for key in KEYS:
        victim.request(1, [control(ControlOp.CIPHER_CREATE_SESSION, symmetric(bytes(wire.CIPHER_SESSION.pack(
            algo=wire.Cipher.AES_CBC, key_len=16, op=wire.Operation.ENCRYPT)), 48), key)], [16])
    victim.request(1, [control(ControlOp.HASH_CREATE_SESSION, bytes(wire.HASH_SESSION.pack(
        algo=wire.CryptoHash.SHA_256, hash_result_len=32)))], [16])
    victim.request(1, [control(ControlOp.AEAD_CREATE_SESSION, bytes(wire.AEAD_SESSION.pack(
        algo=wire.Aead.GCM, key_len=16, tag_len=16, op=wire.Operation.DECRYPT)), KEYS[0])], [16])
    cipher = symmetric(bytes(wire.CIPHER_REQUEST.pack(iv_len=16, src_data_len=32, dst_data_len=32)), 40)
    for session in (1, 2, 1):
        victim.request(0, [data(DataOp.CIPHER_ENCRYPT, session, cipher, bytes(48))], [32, 1])
        victim.request(0, [data(DataOp.HASH, 3, bytes(wire.DIGEST_REQUEST.pack(
            src_data_len=9, hash_result_len=32)), b"something")], [32, 1])
        victim.request(0, [data(DataOp.AEAD_DECRYPT, 4, bytes(wire.AEAD_REQUEST.pack(
            iv_len=12, src_data_len=20, dst_data_len=4)), bytes(32))], [4, 1])
    # A tag that fits, so that it can be refused.
    victim.request(0, [data(DataOp.AEAD_DECRYPT, 4, bytes(wire.AEAD_REQUEST.pack(
        iv_len=12, src_data_len=16)), bytes(12) + EMPTY_TAG)], [1])
    for session in (1, 2):
        victim.request(1, [control(ControlOp.CIPHER_DESTROY_SESSION,
                                   bytes(wire.DESTROY.pack(session_id=session)))], [1])
