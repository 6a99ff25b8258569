"""Lies in the crypto device's protocol: sessions, statuses, results."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from chamber.attacks.answer import Answer, Claim
from chamber.attacks.attack import Aim, Attack, AttackSpec, Surface
from chamber.wire.crypto import CONTROL_HEADER, DATA_FIXED, DATA_HEADER, SESSION_INPUT, ControlOp, CryptoStatus, DataOp
from chamber.wire.virtio import DeviceType

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from chamber.device.chain import Chain
    from chamber.device.queue import DeviceQueue

__all__ = ("crypto_attacks",)

_HEAD: Final = DATA_HEADER.size + DATA_FIXED
_CREATE: Final = frozenset(op for op in ControlOp if op.name.endswith("CREATE_SESSION"))
_DESTROY: Final = frozenset(ControlOp) - _CREATE


def _session(change: Callable[[int, int], tuple[int, int]]) -> Callable[[bytes, bytes], bytes | None]:
    """Change session id and status of the answer to a request that opens a session."""
    def answer(request: bytes, honest: bytes) -> bytes | None:
        if CONTROL_HEADER.get(request, "opcode") not in _CREATE or len(honest) < SESSION_INPUT.size:
            return None
        number, status = change(SESSION_INPUT.get(honest, "session_id"), SESSION_INPUT.get(honest, "status"))
        return bytes(SESSION_INPUT.pack(session_id=number, status=status))

    return answer


def _result(operations: frozenset[DataOp],
            change: Callable[[bytes, int], bytes]) -> Callable[[bytes, bytes], bytes | None]:
    """Change data and status byte of the answers to some operations."""
    def answer(request: bytes, honest: bytes) -> bytes | None:
        if DATA_HEADER.get(request, "opcode") not in operations or not honest:
            return None
        return change(honest[:-1], honest[-1])

    return answer


_ALL: Final = frozenset(DataOp)
_CIPHERS: Final = frozenset({DataOp.CIPHER_ENCRYPT, DataOp.CIPHER_DECRYPT})
_DIGESTS: Final = frozenset({DataOp.HASH, DataOp.MAC})
_CHECKS: Final = frozenset({DataOp.AEAD_DECRYPT, DataOp.AKCIPHER_VERIFY})


class KeyThief(Attack):
    """Keeps the keys that it is given."""

    def popped(self, queue: DeviceQueue, chain: Chain) -> bool:
        """Look at what opens a session."""
        request = chain.read(0, 1024)
        if self.device.queue_role(queue.index) == "control" and CONTROL_HEADER.get(request, "opcode") in _CREATE:
            self.capture(request)
            self.strike(f"{len(request)} bytes that open a session kept")
        return True


class OtherKey(Attack):
    """Computes in the session that was opened first, whichever is asked for."""

    def __init__(self) -> None:
        super().__init__()
        self._first: dict[int, bytes] = {}

    def response(self, queue: DeviceQueue, chain: Chain, data: bytes) -> bytes:
        """Answer with the result that an earlier session gave for the same operation."""
        if self.device.queue_role(queue.index) != "requests":
            return data
        operation = DATA_HEADER.get(chain.read(0, _HEAD), "opcode")
        earlier = self._first.setdefault(operation, bytes(data))
        if earlier != data and len(earlier) == len(data):
            self.strike(f"operation {operation:#x} answered with the result of another session or input")
            return earlier
        return data


Row = tuple[str, Surface, Aim, str, str, "Callable[[], Attack]"]

_ROWS: Final[tuple[Row, ...]] = (
    ("session-id-repeated", Surface.PAYLOAD, Aim.DECEPTION, "5.9.7.2.1", "gives every session the same id",
     lambda: Answer("control", _session(lambda _n, s: (1, s)))),
    ("session-id-max", Surface.PAYLOAD, Aim.DENIAL, "5.9.7.2.1", "gives sessions ids that it does not know",
     lambda: Answer("control", _session(lambda _n, s: ((1 << 64) - 1, s)))),
    ("session-status-unknown", Surface.PAYLOAD, Aim.MEMORY, "5.9.7.2.1", "opens sessions with a status beyond the last",
     lambda: Answer("control", _session(lambda n, _s: (n, 0x70000)))),
    ("session-status-max", Surface.PAYLOAD, Aim.MEMORY, "5.9.7.2.1", "opens sessions with status 2**32 - 1",
     lambda: Answer("control", _session(lambda n, _s: (n, 0xFFFFFFFF)))),
    ("session-refused", Surface.PAYLOAD, Aim.DENIAL, "5.9.7.2.1", "refuses every session, for lack of room",
     lambda: Answer("control", _session(lambda _n, _s: (0, CryptoStatus.NOSPC)))),
    ("session-unwritten", Surface.LENGTH, Aim.LEAK, "5.9.7.2.1", "claims to have written a session, and did not",
     lambda: Claim("control", lambda true, _room: true, keep=lambda _n: 0)),
    ("session-short", Surface.LENGTH, Aim.MEMORY, "5.9.7.2.1", "writes half of a session",
     lambda: Claim("control", lambda true, _room: true // 2, keep=lambda n: n // 2)),
    ("destroy-refused", Surface.PAYLOAD, Aim.DENIAL, "5.9.7.2.1", "refuses to end sessions",
     lambda: Answer("control", lambda request, _h: bytes((CryptoStatus.INVSESS,))
                    if CONTROL_HEADER.get(request, "opcode") in _DESTROY else None)),
    ("keys-kept", Surface.CONTENT, Aim.LEAK, "5.9.7.2.1", "keeps the keys that it is given", KeyThief),
    ("status-unknown", Surface.PAYLOAD, Aim.MEMORY, "5.9.7.1", "ends requests with status 7",
     lambda: Answer("requests", _result(_ALL, lambda data, _s: data + b"\7"))),
    ("status-max", Surface.PAYLOAD, Aim.MEMORY, "5.9.7.1", "ends requests with status 255",
     lambda: Answer("requests", _result(_ALL, lambda data, _s: data + b"\xff"))),
    ("status-error", Surface.PAYLOAD, Aim.DENIAL, "5.9.7.1", "fails every request",
     lambda: Answer("requests", _result(_ALL, lambda data, _s: data + bytes((CryptoStatus.ERR,))))),
    ("forgery-accepted", Surface.CONTENT, Aim.DECEPTION, "5.9.7.7", "finds every tag and every signature right",
     lambda: Answer("requests", _result(_CHECKS, lambda data, _s: data + bytes((CryptoStatus.OK,))))),
    ("genuine-refused", Surface.CONTENT, Aim.DENIAL, "5.9.7.7", "finds no tag and no signature right",
     lambda: Answer("requests", _result(_CHECKS, lambda data, _s: data + bytes((CryptoStatus.BADMSG,))))),
    ("plaintext-returned", Surface.CONTENT, Aim.DECEPTION, "5.9.7.6", "returns what it should encrypt",
     lambda: Answer("requests", lambda request, honest: None if DATA_HEADER.get(request, "opcode") not in _CIPHERS
                    else request[-(len(honest) - 1):] + honest[-1:])),
    ("result-flipped", Surface.CONTENT, Aim.DECEPTION, "5.9.7.6", "turns a bit of every ciphertext and plaintext",
     lambda: Answer("requests", _result(_CIPHERS, lambda data, s: bytes((data[0] ^ 1,)) + data[1:] + bytes((s,))))),
    ("digest-zero", Surface.CONTENT, Aim.DECEPTION, "5.9.7.4", "says that every hash and code is zero",
     lambda: Answer("requests", _result(_DIGESTS, lambda data, s: bytes(len(data)) + bytes((s,))))),
    ("other-session", Surface.CONTENT, Aim.DECEPTION, "5.9.7.3", "computes with another session's key", OtherKey),
    ("result-unwritten", Surface.LENGTH, Aim.LEAK, "5.9.7.3", "claims results that it did not write",
     lambda: Claim("requests", lambda true, _room: true, keep=lambda _n: 0)),
    ("result-half", Surface.LENGTH, Aim.DECEPTION, "5.9.7.3", "writes and claims half of every result",
     lambda: Claim("requests", lambda true, _room: true // 2, keep=lambda n: n // 2)),
    ("result-longer", Surface.LENGTH, Aim.MEMORY, "5.9.7.3", "claims 64 bytes more than there is room for",
     lambda: Claim("requests", lambda _true, room: room + 64)),
)


def crypto_attacks() -> Iterator[AttackSpec]:
    """Attacks on the crypto device's protocol."""
    for what, surface, aim, spec, summary, make in _ROWS:
        yield AttackSpec(f"crypto-{what}", DeviceType.CRYPTO, surface, aim, f"virtio 1.3, {spec}",
                         f"The device {summary}.", make, stimuli=("use", "inspect"))
