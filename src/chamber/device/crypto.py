"""Crypto device (virtio 1.3, 5.9)."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Final

from chamber.device import crypto_algorithms as compute
from chamber.device.base import Device
from chamber.device.errors import DriverError
from chamber.wire import crypto as wire
from chamber.wire.crypto import (
    CONFIG,
    CONTROL_FIXED,
    CONTROL_HEADER,
    DATA_FIXED,
    DATA_HEADER,
    SESSION_INPUT,
    ControlOp,
    CryptoStatus,
    DataOp,
    Service,
)
from chamber.wire.virtio import DeviceType, bit

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from chamber.device.chain import Chain
    from chamber.device.hooks import Hooks
    from chamber.device.queue import DeviceQueue
    from chamber.wire.layout import Layout

__all__ = ("CryptoDevice",)

_SESSIONS: Final = 256
_MAX_KEY: Final = 4096
_MAX_SIZE: Final = 1 << 20
_OP_BYTES: Final = DATA_HEADER.size + DATA_FIXED


class _Refuse(Exception):
    """A request ends with a status other than OK."""

    def __init__(self, status: CryptoStatus) -> None:
        super().__init__(status.name)
        self.status = status


class CryptoDevice(Device):
    """Computes ciphers, hashes, codes, authenticated ciphers and signatures in sessions that hold the keys.

    Args:
        data_queues: how many; the control queue comes after them.
        config: fields of configuration space to set otherwise, by name.
        features: feature bits to offer; none of the device type's own are served.
        queue_size: descriptors per queue.
        hooks: interference, if any. An answer is the data, then the status byte; of the control queue, the session.

    """

    type: ClassVar[DeviceType] = DeviceType.CRYPTO

    def __init__(self, *, data_queues: int = 1, config: Mapping[str, int | bytes] | None = None,
                 features: int | None = None, queue_size: int = 256, hooks: Hooks | None = None) -> None:
        values: dict[str, int | bytes] = {
            "status": wire.STATUS_HW_READY,
            "max_dataqueues": data_queues,
            "crypto_services": bit(*Service),
            "cipher_algo_l": bit(*wire.Cipher),
            "hash_algo": bit(*wire.CryptoHash),
            "mac_algo_l": bit(*wire.Mac),
            "aead_algo": bit(*wire.Aead),
            "max_cipher_key_len": 64,
            "max_auth_key_len": 128,
            "akcipher_algo": bit(*wire.Akcipher),
            "max_size": _MAX_SIZE,
            **(config or {}),
        }
        self._control = data_queues
        self._sessions: dict[int, tuple[Service, Callable[[DataOp, list[bytes]], bytes]]] = {}
        self._next_session = 1
        super().__init__(features=features or 0, config=CONFIG.pack(**values), queues=data_queues + 1,
                         queue_size=queue_size, hooks=hooks)

    def queue_role(self, index: int) -> str:
        """``requests`` or ``control`` (5.9.2)."""
        return "control" if index == self._control else "requests"

    def reset(self) -> None:
        """Forget the driver and its keys."""
        self._sessions.clear()
        super().reset()

    def handle(self, queue: DeviceQueue, chain: Chain) -> None:
        """Serve one request."""
        if queue.index == self._control:
            self._serve_control(queue, chain)
        else:
            self._serve_data(queue, chain)

    # The control queue.

    def _serve_control(self, queue: DeviceQueue, chain: Chain) -> None:
        request = chain.read(0, CONTROL_HEADER.size + CONTROL_FIXED + _MAX_KEY)
        if len(request) < CONTROL_HEADER.size + CONTROL_FIXED or not chain.writable_size:
            self.report(DriverError("a control request has a header, parameters and room for an answer", spec="5.9.7.2",
                                    detail=repr(chain)))
            self.complete(queue, chain, 0)
            return
        header = CONTROL_HEADER.unpack(request)
        fixed = request[CONTROL_HEADER.size:][:CONTROL_FIXED]
        key = request[CONTROL_HEADER.size + CONTROL_FIXED:]
        number, status = 0, CryptoStatus.OK
        try:
            operation = ControlOp(header["opcode"])
            if operation in _DESTROY:
                self._destroy(wire.DESTROY.get(fixed, "session_id"), _DESTROY[operation])
            else:
                number = self._create(_CREATE[operation], fixed, key)
        except ValueError:
            status = CryptoStatus.NOTSUPP
        except _Refuse as refusal:
            status = refusal.status
        self.log(f"control {header['opcode']:#x}: {status.name}, session {number}")
        destroys = header["opcode"] in set(_DESTROY)
        answer = bytes((status,)) if destroys else bytes(SESSION_INPUT.pack(session_id=number, status=status))
        self.complete(queue, chain, self.respond(queue, chain, answer))

    def _destroy(self, number: int, service: Service) -> None:
        if self._sessions.get(number, (None,))[0] is not service:
            raise _Refuse(CryptoStatus.INVSESS)
        del self._sessions[number]

    def _create(self, service: Service, fixed: bytes, key: bytes) -> int:
        if len(self._sessions) >= _SESSIONS:
            raise _Refuse(CryptoStatus.NOSPC)
        make = {Service.CIPHER: _make_cipher, Service.HASH: _make_hash, Service.MAC: _make_mac,
                Service.AEAD: _make_aead, Service.AKCIPHER: _make_akcipher}[service]
        computation = make(fixed, key)
        number = self._next_session
        self._next_session += 1
        self._sessions[number] = (service, computation)
        return number

    # Data queues.

    def _serve_data(self, queue: DeviceQueue, chain: Chain) -> None:
        head = chain.read(0, _OP_BYTES)
        room = chain.writable_size - 1
        if len(head) < _OP_BYTES or room < 0:
            self.report(DriverError("a request has a header, parameters and room for a status", spec="5.9.7.3",
                                    detail=repr(chain)))
            self.complete(queue, chain, 0)
            return
        status, data = CryptoStatus.OK, b""
        try:
            data = self._compute(head, chain, room)
        except compute.BadMessage:
            status = CryptoStatus.BADMSG
        except _Refuse as refusal:
            status = refusal.status
        except (ValueError, OverflowError):
            status = CryptoStatus.ERR
        self.log(f"data {DATA_HEADER.get(head, 'opcode'):#x}, session {DATA_HEADER.get(head, 'session_id')}: "
                 f"{status.name}")
        if room > _MAX_SIZE:
            chain.write(bytes((status,)), room)
            self.complete(queue, chain, 0)
            return
        if 0 < len(data) < room and DATA_HEADER.get(head, "opcode") >> 8 == Service.CIPHER:
            # Linux (7.3 and before) lists the last pieces of a scattered buffer more than once: what is written behind
            # the data would go over it.
            written = self.respond(queue, chain, data)
            chain.write(bytes((status,)), room)
            self.complete(queue, chain, written)
            return
        # The status byte stands at the end of what is writable, so all before it is written (5.9.7.3).
        self.complete(queue, chain, self.respond(queue, chain, data.ljust(room, b"\0") + bytes((status,))))

    def _compute(self, head: bytes, chain: Chain, room: int) -> bytes:
        header = DATA_HEADER.unpack(head)
        try:
            operation = DataOp(header["opcode"])
        except ValueError:
            raise _Refuse(CryptoStatus.NOTSUPP) from None
        # `flag` tells sessions from stateless modes, and those are not offered: Linux leaves it at 0 then.
        service, computation = self._sessions.get(header["session_id"], (None, None))
        if computation is None or service != operation >> 8:
            raise _Refuse(CryptoStatus.INVSESS)
        fixed = head[DATA_HEADER.size:]
        layout, names = _REQUESTS[service]
        sizes = layout.unpack(fixed)
        parts: list[bytes] = []
        at = _OP_BYTES
        for name in names:
            if sizes[name] > _MAX_SIZE:
                raise _Refuse(CryptoStatus.ERR)
            part = chain.read(at, sizes[name])
            if len(part) != sizes[name]:
                raise _Refuse(CryptoStatus.ERR)
            parts.append(part)
            at += len(part)
        if service is Service.CIPHER and fixed[wire.SYM_TYPE_AT[DATA_FIXED]] != wire.OP_TYPE_CIPHER:
            raise _Refuse(CryptoStatus.NOTSUPP)
        data = computation(operation, parts)
        wanted = sizes["hash_result_len" if service in {Service.HASH, Service.MAC} else "dst_data_len"]
        if len(data) > min(wanted, room):
            raise _Refuse(CryptoStatus.NOSPC)
        return data


_REQUESTS: Final[dict[Service, tuple[Layout, tuple[str, ...]]]] = {
    Service.CIPHER: (wire.CIPHER_REQUEST, ("iv_len", "src_data_len")),
    Service.HASH: (wire.DIGEST_REQUEST, ("src_data_len",)),
    Service.MAC: (wire.DIGEST_REQUEST, ("src_data_len",)),
    Service.AEAD: (wire.AEAD_REQUEST, ("iv_len", "src_data_len", "aad_len")),
    Service.AKCIPHER: (wire.AKCIPHER_REQUEST, ("src_data_len",)),
}
"""For each service: the parameters of a request, and the lengths of what follows them, in order."""

_CREATE: Final = {op: Service(op >> 8) for op in ControlOp if op.name.endswith("CREATE_SESSION")}
_DESTROY: Final = {op: Service(op >> 8) for op in ControlOp if op.name.endswith("DESTROY_SESSION")}


def _key(data: bytes, size: int) -> bytes:
    if size > len(data):
        raise _Refuse(CryptoStatus.ERR)
    return data[:size]


def _make_cipher(fixed: bytes, key: bytes) -> Callable[[DataOp, list[bytes]], bytes]:
    if fixed[wire.SYM_TYPE_AT[CONTROL_FIXED]] != wire.OP_TYPE_CIPHER:
        raise _Refuse(CryptoStatus.NOTSUPP)
    values = wire.CIPHER_SESSION.unpack(fixed)
    kind, operation = wire.Cipher(values["algo"]), wire.Operation(values["op"])
    run = _keyed(lambda: compute.cipher(kind, operation, _key(key, values["key_len"])))

    def serve(asked: DataOp, parts: list[bytes]) -> bytes:
        if asked != (DataOp.CIPHER_ENCRYPT if operation is wire.Operation.ENCRYPT else DataOp.CIPHER_DECRYPT):
            raise _Refuse(CryptoStatus.INVSESS)
        return run(*parts)

    return serve


def _make_hash(fixed: bytes, _: bytes) -> Callable[[DataOp, list[bytes]], bytes]:
    values = wire.HASH_SESSION.unpack(fixed)
    kind = wire.CryptoHash(values["algo"])
    if values["hash_result_len"] != compute.HASHES[kind]().digest_size:
        raise _Refuse(CryptoStatus.ERR)
    return lambda _asked, parts: compute.digest(kind, parts[0])


def _make_mac(fixed: bytes, key: bytes) -> Callable[[DataOp, list[bytes]], bytes]:
    values = wire.MAC_SESSION.unpack(fixed)
    kind = wire.Mac(values["algo"])
    size = values["hash_result_len"]
    if not 0 < size <= compute.MACS[kind]:
        raise _Refuse(CryptoStatus.ERR)
    run = _keyed(lambda: compute.mac(kind, _key(key, values["auth_key_len"])))
    return lambda _asked, parts: run(parts[0])[:size]


def _make_aead(fixed: bytes, key: bytes) -> Callable[[DataOp, list[bytes]], bytes]:
    values = wire.AEAD_SESSION.unpack(fixed)
    kind, operation = wire.Aead(values["algo"]), wire.Operation(values["op"])
    run = _keyed(lambda: compute.aead(kind, operation, _key(key, values["key_len"]), values["tag_len"]))

    def serve(asked: DataOp, parts: list[bytes]) -> bytes:
        if asked != (DataOp.AEAD_ENCRYPT if operation is wire.Operation.ENCRYPT else DataOp.AEAD_DECRYPT):
            raise _Refuse(CryptoStatus.INVSESS)
        return run(*parts)

    return serve


def _make_akcipher(fixed: bytes, key: bytes) -> Callable[[DataOp, list[bytes]], bytes]:
    values = wire.AKCIPHER_SESSION.unpack(fixed)
    kind, key_type = wire.Akcipher(values["algo"]), wire.KeyType(values["key_type"])
    first, second = values["first"], values["second"]
    if kind is wire.Akcipher.RSA:
        scheme, hash_kind = wire.RsaPadding(first), wire.RsaHash(second)
        run = _keyed(lambda: compute.rsa_key(key_type, _key(key, values["key_len"]), scheme, hash_kind))
    else:
        curve = wire.Curve(first)
        run = _keyed(lambda: compute.ecdsa(key_type, _key(key, values["key_len"]), curve))
    return lambda asked, parts: run(asked, parts[0])


def _keyed(make: Callable[[], Callable[..., bytes]]) -> Callable[..., bytes]:
    try:
        return make()
    except (ValueError, TypeError):
        raise _Refuse(CryptoStatus.KEY_REJECTED) from None
