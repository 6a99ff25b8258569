"""What a guest does with a crypto device: a published test vector, there and back, through AF_ALG."""

from __future__ import annotations

import mmap
import socket
from pathlib import Path
from typing import TYPE_CHECKING, Final

from chamber.lab.agent import kernel, keys
from chamber.lab.agent.disk import compare
from chamber.lab.agent.patience import patient

if TYPE_CHECKING:
    from collections.abc import Callable

    from chamber.lab.agent.report import Report

__all__ = ("STIMULI", "decrypt_with_key_pair", "encrypt")

_DRIVER: Final = "virtio_crypto_aes_cbc"
_SECONDS: Final = 0.5
_TIMES: Final = 4
"""How often a key pair is used where nothing else can be."""
# NIST SP 800-38A, F.2.1: AES-128 in CBC mode.
_KEY: Final = bytes.fromhex("2b7e151628aed2a6abf7158809cf4f3c")
_IV: Final = bytes(range(16))
_PLAIN: Final = bytes.fromhex("6bc1bee22e409f96e93d7e117393172aae2d8a571e03ac9c9eb76fac45af8e51")
_SEALED: Final = bytes.fromhex("7649abac8119b246cee98e9b12e9197d5086cb9b507219ee95db113a917678b2")


def _crypt(key: bytes, data: bytes, op: int) -> bytes:
    with socket.socket(socket.AF_ALG, socket.SOCK_SEQPACKET) as algorithm:
        algorithm.bind(("skcipher", _DRIVER))
        algorithm.setsockopt(socket.SOL_ALG, socket.ALG_SET_KEY, key)
        operation, _ = algorithm.accept()
        with operation:
            operation.settimeout(patient(_SECONDS))
            operation.sendmsg_afalg([data], op=op, iv=_IV)
            with mmap.mmap(-1, len(data)) as room:  # it begins with a page: a piece for each page, and no more
                return room[:operation.recv_into(room, len(data))]


def _reached() -> bool:
    """Whether programs reach the driver; from Linux 7.x on they reach none of hardware (AF_ALG_CRYPTOAPI_MASK)."""
    with socket.socket(socket.AF_ALG, socket.SOCK_SEQPACKET) as algorithm:
        try:
            algorithm.bind(("skcipher", _DRIVER))
        except FileNotFoundError:
            return False
    return True


def encrypt() -> None:
    """Encrypt two blocks, and compare with what was published."""
    compare(_crypt(_KEY, _PLAIN, socket.ALG_OP_ENCRYPT), _SEALED, "ciphertext")


def decrypt_with_key_pair(report: Report) -> None:
    """Decrypt with a key pair, where the kernel has such keys."""
    with report.step("decrypt with a key pair"), keys.key_pair(keys.KEY_PAIR) as pair:
        if pair is None:
            report.note("the kernel has no asymmetric keys")
        else:
            compare(keys.decrypt(pair, keys.SEALED, len(keys.PLAIN)), keys.PLAIN, "plaintext")


def use(virtio: str, report: Report) -> None:  # noqa: ARG001 - one signature for all stimuli
    """Encrypt and decrypt, compare with what was published; then more than a page, and with a key pair."""
    if not _reached():
        for _ in range(_TIMES):
            decrypt_with_key_pair(report)
        return
    if not report.attempt("encrypt", encrypt):
        return
    with report.step("decrypt"):
        compare(_crypt(_KEY, _SEALED, socket.ALG_OP_DECRYPT), _PLAIN, "plaintext")
    with report.step("there and back"):
        # Linux (6.12) lists the pieces of a scattered buffer more than once. On a PCI bus each is bounced by itself,
        # and those that no device wrote are copied back over the result: wrong data, however honest the device.
        data = bytes(range(256)) * (4 if kernel.pci_functions() else 48)
        compare(_crypt(_KEY, _crypt(_KEY, data, socket.ALG_OP_ENCRYPT), socket.ALG_OP_DECRYPT), data, "plaintext")
    decrypt_with_key_pair(report)


def inspect(virtio: str, report: Report) -> None:
    """Ask what the kernel tells, and use keys of other lengths."""
    report.attempt("algorithms", Path("/proc/crypto").read_bytes)
    report.attempt("device attributes", kernel.read_tree, Path("/sys/bus/virtio/devices") / virtio, depth=0)
    for size in (24, 32):
        with report.step(f"a key of {size} bytes"):
            sealed = _crypt(bytes(size), _PLAIN, socket.ALG_OP_ENCRYPT)
            compare(_crypt(bytes(size), sealed, socket.ALG_OP_DECRYPT), _PLAIN, "plaintext")


STIMULI: Final[dict[str, Callable[[str, Report], None]]] = {"use": use, "inspect": inspect}
