"""Keys of the kernel's own: a key pair in a keyring, and what can be done with it (keyctl(2), asymmetric keys)."""

from __future__ import annotations

import ctypes
import errno
import os
import struct
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ("KEY_PAIR", "PLAIN", "SEALED", "decrypt", "key_pair")

_ADD_KEY, _KEYCTL = 248, 250
_PROCESS_KEYRING: Final = -2
_UNLINK, _PKEY_DECRYPT = 9, 26
_PARAMETERS: Final = struct.Struct("=iII28x")

# Made for this; nothing else uses it.
KEY_PAIR: Final = bytes.fromhex(
    "30820276020100300d06092a864886f70d0101010500048202603082025c02010002818100b5254477de732a8f7d3b1db3f42f907e5b"
    "7324284a8c91d1f212c6c459bab01c567d7ca99f582187b2c89c7077607db46d9573074d00e759e8a83e55e2e4110869ebb22a734dc5"
    "a8e863596f9dba1accbc528d0e0dcf010e213609ae8ef8ba042a42d15353e308a4f185b46e719a536a70a318b4a8fde8665e0a4cd6a1"
    "db2cb90203010001028181009d84cbb624b526d461c4af3e95df6a99c63228c5f495aa13d399ea4841f2aa43ea1df2f299428cddb064"
    "ec4c8c3256fd37b196b6498ab8a3214273fa4173ab2e9b4f68bc0a8ee5978045ab0b0714327aef74d807f002ce7d9b0b9d23920b9638"
    "929b6b410e3fd23f857cd7973c30f2ce531148dec50e34ad976b0e76b899e2d5024100e7ac9b439453052602f8c0b4ed9a8eb08640e4"
    "03db3ff6e2f3e7d13a8ff699bb12055ef4292b107b96cd6dfaf4db4dbf6616cfed32edc7e4affd24380ba9c8eb024100c82a73dbf680"
    "1962b84ae3d57de440ee0e229ff098cba5127c6b59d6687a3d3228a89eaa89979c4f6505e71a00519dff92f29d4fa72158ac111dfdb7"
    "6b2ff7eb02400e6333c9409edf44fb0e43b978c00e787bfdefab25a4954a86e730a1386b922481fbff679e5ee44928965d6c2664b031"
    "60bfadee0729a92e54979df63513383d02402e0a25aff858aa7e1c698d51f3ace68a5ad1f7fbbd094a24a05d88c25a319395cfe848e6"
    "6cd3646e968bef05fa00cbd897121ac0d16e4818fbaeec469deee09502405b3ec809801b2421ad3aec1e1c79bb315ff304dabfbb0f7b"
    "bc82b6347ec4bf9e4a22d49e814f26dc02211fe35c3fc4c5261a5e11ba7ba817149296359f9d0686")
"""An RSA key of 1,024 bits, PKCS #8."""
PLAIN: Final = b"a secret that was agreed upon..."
SEALED: Final = bytes.fromhex(
    "6c4f6bb65ef86864878559e8a04b1f986c924cb83ecab3d2e51ebe32ca8f3ca730cf58d3447de395bfc2749c0cfa12dea5e8c20aabf9"
    "02b6350913992ceb53c674c728cf510ac0ca1e0d0708414ba82bbeca48a9a3d3cbac966da2d844e3378c38f708c2d506729d76bbc77b"
    "43c6d10d034d8befc1e4e7187a3a84b18d96e4a2")
"""`PLAIN` for that key, padded as PKCS #1 1.5 has it."""

_LIBC: Final = ctypes.CDLL(None, use_errno=True)


def _call(number: int, *arguments: object) -> int:
    result = int(_LIBC.syscall(number, *arguments))
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result


@contextmanager
def key_pair(data: bytes) -> Iterator[int | None]:
    """Hold a key pair; None in a kernel that has no such keys."""
    try:
        key = _call(_ADD_KEY, b"asymmetric", b"chamber", data, ctypes.c_size_t(len(data)), _PROCESS_KEYRING)
    except OSError as error:
        if error.errno not in {errno.ENODEV, errno.ENOSYS, errno.EBADMSG, errno.ENOPKG}:
            raise
        yield None
        return
    try:
        yield key
    finally:
        _call(_KEYCTL, _UNLINK, key, _PROCESS_KEYRING)


def decrypt(key: int, data: bytes, room: int) -> bytes:
    """Decrypt with the private key of a pair, to so many bytes at most.

    The kernel writes as many bytes as the key has (Linux 7.3), however many there is said to be room for.
    """
    out = ctypes.create_string_buffer(len(data))
    length = _call(_KEYCTL, _PKEY_DECRYPT, _PARAMETERS.pack(key, len(data), len(data)), b"enc=pkcs1", data, out)
    return out.raw[:min(length, room)]
