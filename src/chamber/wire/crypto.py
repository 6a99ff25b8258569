"""Crypto device: services, sessions, requests (virtio 1.3, 5.9).

The fixed parts of requests have the sizes of devices without VIRTIO_CRYPTO_F_REVISION_1, 56 bytes on the control queue
and 48 on data queues, which every driver speaks.
"""

from __future__ import annotations

import enum
from typing import Final

from chamber.wire.layout import Field, Layout, Role

__all__ = (
    "AEAD_REQUEST",
    "AEAD_SESSION",
    "AKCIPHER_REQUEST",
    "AKCIPHER_SESSION",
    "CIPHER_REQUEST",
    "CIPHER_SESSION",
    "CONFIG",
    "CONTROL_FIXED",
    "CONTROL_HEADER",
    "DATA_FIXED",
    "DATA_HEADER",
    "DESTROY",
    "DIGEST_REQUEST",
    "FLAG_SESSION_MODE",
    "HASH_SESSION",
    "MAC_SESSION",
    "OP_TYPE_CIPHER",
    "SESSION_INPUT",
    "STATUS_HW_READY",
    "SYM_TYPE_AT",
    "Aead",
    "Akcipher",
    "Cipher",
    "ControlOp",
    "CryptoHash",
    "CryptoStatus",
    "Curve",
    "DataOp",
    "KeyType",
    "Mac",
    "Operation",
    "RsaHash",
    "RsaPadding",
    "Service",
)

_SPEC: Final = "virtio 1.3, 5.9"
STATUS_HW_READY: Final = 1
FLAG_SESSION_MODE: Final = 1
OP_TYPE_CIPHER: Final = 1
CONTROL_FIXED: Final = 56
DATA_FIXED: Final = 48
SYM_TYPE_AT: Final = {CONTROL_FIXED: 48, DATA_FIXED: 40}
"""Where op_type of a symmetric request stands in its fixed part (5.9.7.2.1.3, 5.9.7.3)."""


class Service(enum.IntEnum):
    """Bits of crypto_services, and the upper byte of opcodes (5.9.5)."""

    CIPHER = 0
    HASH = 1
    MAC = 2
    AEAD = 3
    AKCIPHER = 4


class ControlOp(enum.IntEnum):
    """Opcodes of the control queue (5.9.7.2)."""

    CIPHER_CREATE_SESSION = 0x002
    CIPHER_DESTROY_SESSION = 0x003
    HASH_CREATE_SESSION = 0x102
    HASH_DESTROY_SESSION = 0x103
    MAC_CREATE_SESSION = 0x202
    MAC_DESTROY_SESSION = 0x203
    AEAD_CREATE_SESSION = 0x302
    AEAD_DESTROY_SESSION = 0x303
    AKCIPHER_CREATE_SESSION = 0x404
    AKCIPHER_DESTROY_SESSION = 0x405


class DataOp(enum.IntEnum):
    """Opcodes of data queues (5.9.7.3)."""

    CIPHER_ENCRYPT = 0x000
    CIPHER_DECRYPT = 0x001
    HASH = 0x100
    MAC = 0x200
    AEAD_ENCRYPT = 0x300
    AEAD_DECRYPT = 0x301
    AKCIPHER_ENCRYPT = 0x400
    AKCIPHER_DECRYPT = 0x401
    AKCIPHER_SIGN = 0x402
    AKCIPHER_VERIFY = 0x403


class CryptoStatus(enum.IntEnum):
    """Status of a request (5.9.7.1)."""

    OK = 0
    ERR = 1
    BADMSG = 2
    NOTSUPP = 3
    INVSESS = 4
    NOSPC = 5
    KEY_REJECTED = 6


class Operation(enum.IntEnum):
    """What a cipher session is for."""

    ENCRYPT = 1
    DECRYPT = 2


class KeyType(enum.IntEnum):
    """Which half of a key pair a session has."""

    PUBLIC = 1
    PRIVATE = 2


class Cipher(enum.IntEnum):
    """Ciphers (5.9.5.1); those that devices here serve."""

    AES_ECB = 2
    AES_CBC = 3
    AES_CTR = 4
    TRIPLE_DES_CBC = 8
    AES_XTS = 13


class CryptoHash(enum.IntEnum):
    """Hashes (5.9.5.2)."""

    MD5 = 1
    SHA1 = 2
    SHA_224 = 3
    SHA_256 = 4
    SHA_384 = 5
    SHA_512 = 6
    SHA3_224 = 7
    SHA3_256 = 8
    SHA3_384 = 9
    SHA3_512 = 10


class Mac(enum.IntEnum):
    """Message authentication codes (5.9.5.3)."""

    HMAC_MD5 = 1
    HMAC_SHA1 = 2
    HMAC_SHA_224 = 3
    HMAC_SHA_256 = 4
    HMAC_SHA_384 = 5
    HMAC_SHA_512 = 6
    CMAC_AES = 26


class Aead(enum.IntEnum):
    """Authenticated ciphers (5.9.5.4)."""

    GCM = 1
    CCM = 2
    CHACHA20_POLY1305 = 3


class Akcipher(enum.IntEnum):
    """Asymmetric algorithms (5.9.5.5)."""

    RSA = 1
    ECDSA = 2


class RsaPadding(enum.IntEnum):
    """Padding of RSA (5.9.7.2.1.7)."""

    RAW = 0
    PKCS1 = 1


class RsaHash(enum.IntEnum):
    """Hashes inside of PKCS #1 signatures (5.9.7.2.1.7); those that devices here serve."""

    NONE = 0
    SHA1 = 5
    SHA256 = 6
    SHA384 = 7
    SHA512 = 8
    SHA224 = 9


class Curve(enum.IntEnum):
    """Curves of ECDSA (5.9.7.2.1.7); those that devices here serve."""

    NIST_P224 = 2
    NIST_P256 = 3
    NIST_P384 = 4
    NIST_P521 = 5


CONFIG: Final = Layout(
    "virtio_crypto_config", "virtio 1.3, 5.9.4",
    Field("status", "le32", Role.FLAGS, None, (0, STATUS_HW_READY)),
    Field("max_dataqueues", "le32", Role.COUNT, None, range(1, 64)),
    Field("crypto_services", "le32", Role.FLAGS),
    Field("cipher_algo_l", "le32", Role.FLAGS),
    Field("cipher_algo_h", "le32", Role.FLAGS),
    Field("hash_algo", "le32", Role.FLAGS),
    Field("mac_algo_l", "le32", Role.FLAGS),
    Field("mac_algo_h", "le32", Role.FLAGS),
    Field("aead_algo", "le32", Role.FLAGS),
    Field("max_cipher_key_len", "le32", Role.LENGTH),
    Field("max_auth_key_len", "le32", Role.LENGTH),
    Field("akcipher_algo", "le32", Role.FLAGS),
    Field("max_size", "le64", Role.LENGTH),
)

CONTROL_HEADER: Final = Layout(
    "virtio_crypto_ctrl_header", f"{_SPEC}.7.2",
    Field("opcode", "le32", Role.ENUM), Field("algo", "le32", Role.ENUM), Field("flag", "le32", Role.FLAGS),
    Field("queue_id", "le32", Role.INDEX))

SESSION_INPUT: Final = Layout(
    "virtio_crypto_session_input", f"{_SPEC}.7.2.1",
    Field("session_id", "le64", Role.ID), Field("status", "le32", Role.ENUM, None, tuple(CryptoStatus)),
    Field("padding", "le32"))

CIPHER_SESSION: Final = Layout(
    "virtio_crypto_cipher_session_para", f"{_SPEC}.7.2.1.3",
    Field("algo", "le32", Role.ENUM), Field("key_len", "le32", Role.LENGTH), Field("op", "le32", Role.ENUM),
    Field("padding", "le32"))

HASH_SESSION: Final = Layout(
    "virtio_crypto_hash_session_para", f"{_SPEC}.7.2.1.1",
    Field("algo", "le32", Role.ENUM), Field("hash_result_len", "le32", Role.LENGTH))

MAC_SESSION: Final = Layout(
    "virtio_crypto_mac_session_para", f"{_SPEC}.7.2.1.2",
    Field("algo", "le32", Role.ENUM), Field("hash_result_len", "le32", Role.LENGTH),
    Field("auth_key_len", "le32", Role.LENGTH), Field("padding", "le32"))

AEAD_SESSION: Final = Layout(
    "virtio_crypto_aead_session_para", f"{_SPEC}.7.2.1.4",
    Field("algo", "le32", Role.ENUM), Field("key_len", "le32", Role.LENGTH), Field("tag_len", "le32", Role.LENGTH),
    Field("aad_len", "le32", Role.LENGTH), Field("op", "le32", Role.ENUM), Field("padding", "le32"))

AKCIPHER_SESSION: Final = Layout(
    "virtio_crypto_akcipher_session_para", f"{_SPEC}.7.2.1.5",
    Field("algo", "le32", Role.ENUM), Field("key_type", "le32", Role.ENUM), Field("key_len", "le32", Role.LENGTH),
    # RSA: padding_algo and hash_algo. ECDSA: curve_id and padding.
    Field("first", "le32", Role.ENUM), Field("second", "le32", Role.ENUM))

DESTROY: Final = Layout(
    "virtio_crypto_destroy_session_flf", f"{_SPEC}.7.2.1", Field("session_id", "le64", Role.ID))

DATA_HEADER: Final = Layout(
    "virtio_crypto_op_header", f"{_SPEC}.7.3",
    Field("opcode", "le32", Role.ENUM), Field("algo", "le32", Role.ENUM), Field("session_id", "le64", Role.ID),
    Field("flag", "le32", Role.FLAGS), Field("padding", "le32"))

CIPHER_REQUEST: Final = Layout(
    "virtio_crypto_cipher_para", f"{_SPEC}.7.6",
    Field("iv_len", "le32", Role.LENGTH), Field("src_data_len", "le32", Role.LENGTH),
    Field("dst_data_len", "le32", Role.LENGTH), Field("padding", "le32"))

DIGEST_REQUEST: Final = Layout(
    "virtio_crypto_hash_para", f"{_SPEC}.7.4",
    Field("src_data_len", "le32", Role.LENGTH), Field("hash_result_len", "le32", Role.LENGTH))

AEAD_REQUEST: Final = Layout(
    "virtio_crypto_aead_para", f"{_SPEC}.7.7",
    Field("iv_len", "le32", Role.LENGTH), Field("aad_len", "le32", Role.LENGTH),
    Field("src_data_len", "le32", Role.LENGTH), Field("dst_data_len", "le32", Role.LENGTH))

AKCIPHER_REQUEST: Final = Layout(
    "virtio_crypto_akcipher_para", f"{_SPEC}.7.8",
    Field("src_data_len", "le32", Role.LENGTH), Field("dst_data_len", "le32", Role.LENGTH))
