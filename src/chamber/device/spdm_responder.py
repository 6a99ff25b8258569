"""A device's end of SPDM (DMTF DSP0274 1.1 to 1.4): who it is, what runs on it, and sessions with whoever asks.

Whoever asks is not known, and may be the host. What breaks a rule is answered by ERROR and changes nothing, but for
what comes in a session: there, what does not open, or proves nothing, ends it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from chamber.device.spdm_pieces import Pieces, Refusal
from chamber.device.spdm_requester_proof import Denied, RequesterProof
from chamber.platform.spdm_chunks import LARGEST, PIECES_SINCE, TRANSFER_SIZE
from chamber.platform.spdm_crypto import Suite, answer_exchange, digest_size, fits, hash_of, sign
from chamber.platform.spdm_keys import RecordError
from chamber.platform.spdm_session import Phase, SpdmSession
from chamber.wire.errors import WireError
from chamber.wire.spdm import (
    CONTEXT_SIZE,
    NONCE_SIZE,
    ErrorCode,
    SpdmCode,
    head,
    message_size,
)
from chamber.wire.spdm_messages import (
    ALL_MEASUREMENTS,
    ChallengeAuth,
    Digests,
    KeyExchange,
    KeyExchangeAnswer,
    KeyUpdate,
    Measurement,
    Measurements,
    MeasurementType,
    Mutual,
    PskExchange,
    PskExchangeAnswer,
    Summary,
    VendorDefined,
    certificate,
    finish,
    offered_versions,
    parse_finish,
    version_choice,
)
from chamber.wire.spdm_negotiation import (
    AEADS,
    ASYMMETRIC,
    EXCHANGES,
    HASHES,
    MEASUREMENT_HASHES,
    Algorithms,
    Capabilities,
    Capability,
    OtherParameter,
    versions,
)
from chamber.wire.spdm_secured import SecuredMessage

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from chamber.platform.spdm_chain import CertificateSlot, Chain
    from chamber.wire.spdm import Agreed

__all__ = ("SpdmResponder",)

_ALL_VERSIONS: Final = (0x11, 0x12, 0x13, 0x14)
_MOST_SESSIONS: Final = 4
_SECURED_MAJOR: Final = 0x1100
_TCB: Final = frozenset({MeasurementType.ROM, MeasurementType.FIRMWARE, MeasurementType.HARDWARE_CONFIG})
_PREFERRED_HASHES: Final = ("SHA-384", "SHA-256", "SHA-512", "SHA3-384", "SHA3-256", "SHA3-512")
_PREFERRED_SIGNATURES: Final = ("P-384", "P-256", "P-521", "Ed25519", "RSAPSS-3072", "RSAPSS-2048", "RSAPSS-4096",
                                 "ML-DSA-87", "ML-DSA-65", "ML-DSA-44")
_LOW: Final = 0xFFFFFFFF
"""Bits of algorithms that are not post-quantum."""
_PIECES: Final = frozenset({SpdmCode.CHUNK_SEND_ACK, SpdmCode.CHUNK_RESPONSE})
_PREFERRED_EXCHANGES: Final = ("P-384", "P-256", "P-521", "ML-KEM-1024", "ML-KEM-768")
_PREFERRED_AEADS: Final = ("AES-256-GCM", "CHACHA20_POLY1305", "AES-128-GCM")
_ENCAPSULATION: Final = frozenset({SpdmCode.GET_ENCAPSULATED_REQUEST, SpdmCode.DELIVER_ENCAPSULATED_RESPONSE})
_MULTI_KEY_SINCE: Final = 0x13
_SIGNED: Final = 1
_RAW: Final = 2


class SpdmResponder:
    """The responder.

    Args:
        slots: certificate chains, by slot.
        measurements: what is measured, as raw bytes: read anew each time.
        vendor: who answers messages of vendors, by registry and id: called with the session, None outside of one, and
            the payload; None as an answer is no answer at all.
        admits: whether a requester's certificate chain is one to talk to; where it is given, whoever opens a session
            has to prove that it has the chain's key.
        psks: secrets that were shared before, by their hint.
        random: returns so many random bytes.
        spoken: versions.
        clear_handshake: whether FINISH may travel in the clear.
        sequence_size: bytes of a secured message's number that the transport has.
        multi_key: whether several keys are told apart, for whoever wants it (1.3).
        transfer_size: bytes of a message that it takes at once.
        largest: bytes of a message at all; what is larger than it takes at once comes, and goes, in pieces (1.2).
        heartbeat: seconds after which a session without a word is to be taken for dead; 0 for never.
        ended: called with the id of a session that ends, however it does.
        log: gets a line for each message, without anything that is secret.

    Attributes:
        suite: what the connection runs with; None before that is agreed on.

    """

    def __init__(self, slots: Mapping[int, CertificateSlot], *, random: Callable[[int], bytes],
                 measurements: Callable[[], Sequence[Measurement]] = tuple,
                 vendor: Mapping[tuple[int, bytes], Callable[[int | None, bytes], bytes | None]] | None = None,
                 admits: Callable[[Chain], bool] | None = None, psks: Mapping[bytes, bytes] | None = None,
                 spoken: Sequence[int] = _ALL_VERSIONS,
                 clear_handshake: bool = False, sequence_size: int = 0, multi_key: bool = False, heartbeat: int = 0,
                 transfer_size: int = TRANSFER_SIZE, largest: int = LARGEST,
                 ended: Callable[[int], None] = lambda _session: None,
                 log: Callable[[str], None] = lambda _line: None) -> None:
        self._slots = dict(slots)
        self._measurements = measurements
        self._vendor = dict(vendor or {})
        self._admits = admits
        self._psks = dict(psks or {})
        self._random = random
        self._spoken = tuple(spoken)
        self._clear_handshake = clear_handshake
        self._sequence_size = sequence_size
        self._multi_key = multi_key and bool(self._slots)
        self._heartbeat = heartbeat
        self._pieces = Pieces(transfer_size, largest)
        self._ended = ended
        self._log = log
        self._handlers: dict[SpdmCode, Callable[[bytes, SpdmSession | None], bytes | None]] = {
            SpdmCode.GET_VERSION: self._version, SpdmCode.GET_CAPABILITIES: self._capabilities,
            SpdmCode.NEGOTIATE_ALGORITHMS: self._algorithms, SpdmCode.GET_DIGESTS: self._digests,
            SpdmCode.GET_CERTIFICATE: self._certificate, SpdmCode.CHALLENGE: self._challenge,
            SpdmCode.GET_MEASUREMENTS: self._measure, SpdmCode.KEY_EXCHANGE: self._exchange,
            SpdmCode.FINISH: self._finish, SpdmCode.PSK_EXCHANGE: self._psk_exchange,
            SpdmCode.PSK_FINISH: self._psk_finish, SpdmCode.HEARTBEAT: self._beat,
            SpdmCode.GET_ENCAPSULATED_REQUEST: self._begin_encapsulated,
            SpdmCode.DELIVER_ENCAPSULATED_RESPONSE: self._take_encapsulated, SpdmCode.KEY_UPDATE: self._update,
            SpdmCode.END_SESSION: self._end, SpdmCode.CHUNK_SEND: self._take_piece,
            SpdmCode.CHUNK_GET: self._give_piece,
            SpdmCode.VENDOR_DEFINED_REQUEST: self._say}
        self._sessions: dict[int, SpdmSession] = {}
        self.suite: Suite | None = None
        self._forget()

    def _forget(self) -> None:
        """Be as before the first word: also sessions end."""
        for session in tuple(self._sessions.values()):
            self._close(session)
        self.suite = None
        self._expected: SpdmCode | None = SpdmCode.GET_CAPABILITIES
        self._negotiated = bytearray()
        self._identity = bytearray()
        self._measured: dict[int, bytearray] = {}
        self._version_said = 0
        self._measurement_hash = ""
        self._pending: int | None = None
        self._told_apart = b""
        self._requesters: dict[int, RequesterProof] = {}
        self._psk_sessions: set[int] = set()
        self._pieces.forget()
        self._whole = b""

    @property
    def _requester(self) -> Capabilities:
        return self._pieces.requester

    def close(self) -> None:
        """End all sessions."""
        self._forget()

    def _close(self, session: SpdmSession) -> None:
        session.close()
        if self._sessions.pop(session.id, None) is not None:
            self._measured.pop(session.id, None)
            self._psk_sessions.discard(session.id)
            self._requesters.pop(session.id, None)
            self._pieces.end(session.id)
            self._ended(session.id)

    # What comes from outside.

    def handle(self, payload: bytes, *, secured: bool) -> tuple[bytes, bool] | None:
        """Answer what a mailbox brings: payload of an object, and whether it is secured; None is no answer at all."""
        if not secured:
            answer = self.respond(payload)
            return None if answer is None else (answer, False)
        try:
            session = self._sessions.get(SecuredMessage.decode(payload, self._sequence_size).session_id)
        except WireError:
            session = None
        if session is None:
            # Nothing can be said in a session that there is not, and nothing outside would be believed.
            self._log("a secured message of no session: dropped")
            return None
        try:
            message = session.open(payload)
        except RecordError as error:
            self._log(f"session {session.id:#x} ends: {error.rule}")
            self._close(session)
            return None
        return self._in_session(session, message)

    def _in_session(self, session: SpdmSession, message: bytes) -> tuple[bytes, bool] | None:
        # With UPDATE_ALL the answer is sealed with the new key already (11.8).
        answer = self.respond(message, session)
        if answer is None:
            return None
        try:
            sealed = session.seal(answer)
        except RecordError:
            return None
        # What was answered may be a piece's acknowledgement around it, or say that the whole is to be fetched.
        whole = self._whole
        if session.phase is Phase.HANDSHAKE and whole[1] in {SpdmCode.FINISH_RSP, SpdmCode.PSK_FINISH_RSP}:
            session.establish()
        unproven = whole[1] == SpdmCode.ERROR and whole[2] == ErrorCode.DECRYPT_ERROR
        if unproven or whole[1] == SpdmCode.END_SESSION_ACK:
            self._close(session)
        return sealed, True

    def respond(self, message: bytes, session: SpdmSession | None = None) -> bytes | None:
        """Answer a message, of a session or of none; None is no answer at all."""
        version = self._version_said or 0x10
        try:
            if len(message) < 4:
                raise Refusal(ErrorCode.INVALID_REQUEST)
            code = message[1]
            handler = self._handlers.get(SpdmCode(code)) if code in set(SpdmCode) else None
            if handler is None:
                raise Refusal(ErrorCode.UNSUPPORTED_REQUEST, code)
            self._check_order(SpdmCode(code), message[0], session)
            agreed = self.suite.agreed if self.suite is not None else None
            answer = handler(message[:message_size(message, agreed)], session)
            if answer is not None and answer[1] not in _PIECES:
                self._whole = answer
                answer = self._pieces.fitted(answer, _number(session))
        except WireError as error:
            self._log(f"refused: {error}")
            self._whole = answer = head(version, SpdmCode.ERROR, ErrorCode.INVALID_REQUEST)
        except Refusal as error:
            self._log(f"refused: {error.code.name}")
            self._whole = answer = head(version, SpdmCode.ERROR, error.code, error.data)
        if answer is not None:
            said = SpdmCode(answer[1]).name
            self._log(f"{'session ' + hex(session.id) + ': ' if session is not None else ''}{said}")
        return answer

    # Messages that are too large for one piece.

    def _take_piece(self, message: bytes, session: SpdmSession | None) -> bytes | None:
        key = _number(session)
        chunk, large = self._pieces.take(message, key)
        if large is None:
            self._whole = ack = self._pieces.acknowledge(message[0], chunk, key)
            return ack
        answer = self.respond(large, session)
        return None if answer is None else self._pieces.acknowledge(message[0], chunk, key, answer)

    def _give_piece(self, message: bytes, session: SpdmSession | None) -> bytes:
        self._whole = piece = self._pieces.give(message, _number(session))
        return piece

    def _check_order(self, code: SpdmCode, version: int, session: SpdmSession | None) -> None:
        if code is SpdmCode.GET_VERSION:
            if session is not None:
                raise Refusal(ErrorCode.UNEXPECTED_REQUEST)
            return
        if self._version_said and version != self._version_said:
            raise Refusal(ErrorCode.VERSION_MISMATCH)
        if code in {SpdmCode.CHUNK_SEND, SpdmCode.CHUNK_GET}:
            if not self._pieces.allowed:
                raise Refusal(ErrorCode.UNEXPECTED_REQUEST)
            return  # what it is a piece of is looked at when it is whole
        if not self._negotiated or (self.suite is None and code is not self._expected) or (
                self.suite is not None and code in {SpdmCode.GET_CAPABILITIES, SpdmCode.NEGOTIATE_ALGORITHMS}):
            raise Refusal(ErrorCode.UNEXPECTED_REQUEST)
        if session is None:
            needs_session = code in {SpdmCode.HEARTBEAT, SpdmCode.KEY_UPDATE, SpdmCode.END_SESSION,
                                     SpdmCode.PSK_FINISH}
            if needs_session:
                raise Refusal(ErrorCode.SESSION_REQUIRED)
        elif session.phase is Phase.HANDSHAKE:
            if code not in {SpdmCode.FINISH, SpdmCode.PSK_FINISH, *_ENCAPSULATION}:
                raise Refusal(ErrorCode.UNEXPECTED_REQUEST)
        elif code in {SpdmCode.FINISH, SpdmCode.PSK_FINISH, SpdmCode.KEY_EXCHANGE, SpdmCode.PSK_EXCHANGE,
                      SpdmCode.CHALLENGE}:
            raise Refusal(ErrorCode.UNEXPECTED_REQUEST)
        if code is not SpdmCode.GET_MEASUREMENTS:
            self._measured.pop(_number(session), None)

    def _agreed(self) -> tuple[Suite, Agreed]:
        assert self.suite is not None  # no other request comes before
        return self.suite, self.suite.agreed

    # What is agreed on.

    def _version(self, message: bytes, _session: SpdmSession | None) -> bytes:
        if message[0] != 0x10:
            raise Refusal(ErrorCode.VERSION_MISMATCH)
        self._forget()
        answer = versions(self._spoken)
        self._negotiated += message + answer
        return answer

    def _capabilities(self, message: bytes, _session: SpdmSession | None) -> bytes:
        if message[0] not in self._spoken:
            raise Refusal(ErrorCode.VERSION_MISMATCH)
        self._pieces.requester = Capabilities.decode(message, SpdmCode.GET_CAPABILITIES)
        self._version_said = message[0]
        flags = Capability.ENCRYPT | Capability.MAC | Capability.HBEAT * bool(self._heartbeat) | Capability.KEY_UPD
        if self._slots:
            flags |= Capability.CERT | Capability.CHAL | Capability.KEY_EX | Capability.MEAS_SIG | Capability.MEAS_FRESH
        else:
            flags |= Capability.MEAS_NO_SIG
        if self._psks:
            flags |= Capability.PSK_WITH_CONTEXT
        if self._clear_handshake:
            flags |= Capability.HANDSHAKE_IN_THE_CLEAR
        if self._admits is not None:
            flags |= Capability.MUT_AUTH | Capability.ENCAP
        if self._multi_key and message[0] >= _MULTI_KEY_SINCE:
            flags |= Capability.MULTI_KEY_NEGOTIABLE
        pieces = self._pieces
        most = pieces.transfer_size
        if pieces.largest > most and message[0] >= PIECES_SINCE:
            flags |= Capability.CHUNK
            most = pieces.largest
        answer = Capabilities(message[0], flags, transfer_size=pieces.transfer_size,
                              message_size=most).encode(SpdmCode.CAPABILITIES)
        self._negotiated += message + answer
        self._expected = SpdmCode.NEGOTIATE_ALGORITHMS
        return answer

    def _algorithms(self, message: bytes, _session: SpdmSession | None) -> bytes:
        offered = Algorithms.decode(message, SpdmCode.NEGOTIATE_ALGORITHMS)
        chosen_hash = _first(HASHES, offered.hash, _PREFERRED_HASHES)
        signed = _first(ASYMMETRIC, offered.asymmetric, self._signatures()) if self._slots else 0
        secured = self._requester.flags & (Capability.KEY_EX | Capability.PSK)
        if not chosen_hash or (self._slots and not signed):
            raise Refusal(ErrorCode.INVALID_REQUEST)
        self._measurement_hash = HASHES[chosen_hash]
        measured = next((bit for bit, name in MEASUREMENT_HASHES.items() if name == self._measurement_hash), 0)
        other = OtherParameter.OPAQUE_FORMAT_1 & offered.other
        if self._multi_key and message[0] >= _MULTI_KEY_SINCE:
            other |= OtherParameter.MULTI_KEY & offered.other
        wanted = Capability.MUT_AUTH | Capability.ENCAP | Capability.CERT
        proves = self._admits is not None and self._requester.flags & wanted == wanted
        chosen = Algorithms(
            message[0], signed, chosen_hash,
            # Who signs with what a quantum computer does not break agrees on keys so, too.
            _first(EXCHANGES, offered.exchange,
                   sorted(_PREFERRED_EXCHANGES, key=lambda name: name.startswith("ML-") != (signed > _LOW))
                   ) if secured else 0,
            _first(AEADS, offered.aead, _PREFERRED_AEADS) if secured else 0,
            _first(ASYMMETRIC, offered.requester_asymmetric, _PREFERRED_SIGNATURES) if proves else 0,
            measurement_hash=measured if offered.measurements else 0, measurements=offered.measurements, other=other)
        answer = chosen.encode(SpdmCode.ALGORITHMS)
        self._negotiated += message + answer
        clear = self._clear_handshake and bool(self._requester.flags & Capability.HANDSHAKE_IN_THE_CLEAR)
        self.suite = Suite.of(chosen, clear_handshake=clear, multi_key=bool(other & OtherParameter.MULTI_KEY),
                              sequence_size=self._sequence_size)
        self._expected = None
        return answer

    def _signatures(self) -> tuple[str, ...]:
        """Return what all slots' keys can sign with."""
        return tuple(name for name in ASYMMETRIC.values()
                     if all(fits(slot.key.public_key(), name) for slot in self._slots.values()))

    # Who it is.

    def _chain(self, slot: int) -> bytes:
        if slot not in self._slots:
            raise Refusal(ErrorCode.INVALID_REQUEST)
        return self._slots[slot].chain(self._agreed()[0].hash)

    def _digests(self, message: bytes, session: SpdmSession | None) -> bytes:
        suite, _ = self._agreed()
        if not self._slots:
            raise Refusal(ErrorCode.UNSUPPORTED_REQUEST, message[1])
        digests = {slot: hash_of(suite.hash, self._chain(slot)) for slot in self._slots}
        answer = Digests(suite.version, digests, suite.multi_key).encode()
        if suite.multi_key:
            self._told_apart = answer
        if session is None:
            self._identity[:] = message + answer
        return answer

    def _certificate(self, message: bytes, session: SpdmSession | None) -> bytes:
        suite, _ = self._agreed()
        chain = self._chain(message[2] & 0xF)
        offset, length = (int.from_bytes(message[at:at + 2], "little") for at in (4, 6))
        room = self._pieces.room - 8
        if offset >= len(chain):
            raise Refusal(ErrorCode.INVALID_REQUEST)
        portion = chain[offset:offset + min(length, room)]
        answer = certificate(suite.version, message[2] & 0xF, portion, len(chain) - offset - len(portion))
        if session is None:
            self._identity += message + answer
        return answer

    def _challenge(self, message: bytes, _session: SpdmSession | None) -> bytes:
        suite, _ = self._agreed()
        if message[2] not in self._slots:
            raise Refusal(ErrorCode.INVALID_REQUEST)
        slot = self._slots[message[2]]
        context = message[4 + NONCE_SIZE:] if suite.version >= 0x13 else b""
        made = ChallengeAuth(suite.version, message[2], sum(1 << number for number in self._slots),
                             hash_of(suite.hash, self._chain(message[2])), self._random(NONCE_SIZE),
                             self._summary(message[3]), context=context)
        transcript = bytes(self._negotiated + self._identity) + message + made.signed
        self._identity.clear()
        return made.signed + sign(slot.key, suite.asymmetric, suite, "challenge_auth signing", transcript)

    # What runs on it.

    def _blocks(self, *, raw: bool) -> tuple[Measurement, ...]:
        """Return the record: hashes, but for what has no hash, and for what is asked for as it is."""
        plain = {MeasurementType.VERSION, MeasurementType.SECURE_VERSION, MeasurementType.DEVICE_MODE}
        return tuple(
            Measurement(block.index, block.type, block.value, raw=True) if raw or block.type in plain else
            Measurement(block.index, block.type, hash_of(self._measurement_hash, block.value))
            for block in self._measurements())

    def _summary(self, kind: int) -> bytes:
        """Return the hash over all measurements, or those of the trusted computing base; empty for none."""
        suite, _ = self._agreed()
        if kind not in set(Summary):
            raise Refusal(ErrorCode.INVALID_REQUEST)
        if kind == Summary.NONE:
            return b""
        blocks = self._blocks(raw=False)
        return hash_of(suite.hash, b"".join(block.encode() for block in blocks
                                            if kind == Summary.ALL or block.type in _TCB))

    def _measure(self, message: bytes, session: SpdmSession | None) -> bytes:
        suite, _ = self._agreed()
        signed, raw, operation = message[2] & _SIGNED, bool(message[2] & _RAW), message[3]
        slot = message[4 + NONCE_SIZE] & 0xF if signed else 0
        if signed and slot not in self._slots:
            raise Refusal(ErrorCode.INVALID_REQUEST)
        blocks = self._blocks(raw=raw)
        chosen = () if not operation else blocks if operation == ALL_MEASUREMENTS else tuple(
            block for block in blocks if block.index == operation)
        if operation not in {0, ALL_MEASUREMENTS} and not chosen:
            raise Refusal(ErrorCode.INVALID_REQUEST)
        context = message[-CONTEXT_SIZE:] if suite.version >= 0x13 else b""
        made = Measurements(suite.version, 0 if operation else len(blocks), slot, chosen, self._random(NONCE_SIZE),
                            context=context)
        key = _number(session)
        transcript = self._measured.setdefault(key, bytearray(self._negotiated if suite.version >= 0x12 else b""))
        transcript += message + made.signed
        if not signed:
            return made.signed
        del self._measured[key]
        return made.signed + sign(self._slots[slot].key, suite.asymmetric, suite, "measurements signing",
                                  bytes(transcript))

    # Sessions.

    def _new_id(self, theirs: int) -> int:
        if len(self._sessions) >= _MOST_SESSIONS:
            raise Refusal(ErrorCode.SESSION_LIMIT_EXCEEDED)
        while True:
            mine = int.from_bytes(self._random(2), "little")
            session = theirs | mine << 16
            if mine not in {0, 0xFFFF} and session not in self._sessions:
                return session

    def _exchange(self, message: bytes, _session: SpdmSession | None) -> bytes:
        suite, agreed = self._agreed()
        request = KeyExchange.decode(message, agreed)
        slot = self._slots.get(request.slot)
        if slot is None or not suite.exchange or not suite.aead or not self._requester.flags & Capability.KEY_EX:
            raise Refusal(ErrorCode.UNEXPECTED_REQUEST if slot else ErrorCode.INVALID_REQUEST)
        offered = offered_versions(suite.version, request.opaque)
        if offered and not any(number == _SECURED_MAJOR for number in offered):
            raise Refusal(ErrorCode.INVALID_REQUEST)
        if self._admits is not None and not suite.requester_asymmetric:
            # Whoever can't prove who it is opens no session.
            raise Refusal(ErrorCode.UNEXPECTED_REQUEST)
        summary = self._summary(request.summary)
        session_id = self._new_id(request.session_id)
        exchanged = answer_exchange(suite.exchange, request.exchange)
        if exchanged is None:
            raise Refusal(ErrorCode.INVALID_REQUEST)
        public, shared = exchanged
        made = KeyExchangeAnswer(suite.version, self._heartbeat, session_id >> 16, self._random(NONCE_SIZE), public,
                                 summary, version_choice(suite.version) if offered else b"",
                                 Mutual.NO if self._admits is None else Mutual.ENCAPSULATED)
        if suite.multi_key and not self._told_apart:
            raise Refusal(ErrorCode.UNEXPECTED_REQUEST)
        transcript = (bytes(self._negotiated) + self._told_apart + hash_of(suite.hash, self._chain(request.slot))
                      + message + made.signed)
        signature = sign(slot.key, suite.asymmetric, suite, "key_exchange_rsp signing", transcript)
        session = SpdmSession(suite, session_id, shared, transcript + signature, requester=False)
        self._sessions[session_id] = session
        if self._admits is not None:
            self._requesters[session_id] = RequesterProof(suite, self._admits)
        self._pending = session_id if suite.clear_handshake else None
        answer = made.signed + signature
        if not suite.clear_handshake:
            proof = session.proof(of_requester=False)
            session.transcript += proof
            answer += proof
        return answer

    def _finish(self, message: bytes, session: SpdmSession | None) -> bytes:
        session = self._in_handshake(session)
        if session.id in self._psk_sessions:
            raise Refusal(ErrorCode.INVALID_REQUEST)
        requester = self._requesters.get(session.id)
        if bool(message[2] & _SIGNED) != (requester is not None) or (requester is not None and requester.chain is None):
            raise Refusal(ErrorCode.INVALID_REQUEST)
        return self._prove(message, session, SpdmCode.FINISH, SpdmCode.FINISH_RSP)

    def _in_handshake(self, session: SpdmSession | None) -> SpdmSession:
        """Return the session whose handshake a message is of."""
        suite, _ = self._agreed()
        if session is None:
            # In the clear it is the session of the last exchange, and nothing but the proof says whose it is.
            session = self._sessions.get(self._pending) if self._pending is not None else None
            if session is None or session.phase is not Phase.HANDSHAKE:
                raise Refusal(ErrorCode.SESSION_REQUIRED)
        elif suite.clear_handshake and session.id not in self._psk_sessions:
            raise Refusal(ErrorCode.UNEXPECTED_REQUEST)
        return session

    # Who asks.

    def _begin_encapsulated(self, _message: bytes, session: SpdmSession | None) -> bytes:
        requester = self._requesters.get(self._in_handshake(session).id)
        if requester is None or not requester.is_new:
            raise Refusal(ErrorCode.UNEXPECTED_REQUEST)
        return requester.begin()

    def _take_encapsulated(self, message: bytes, session: SpdmSession | None) -> bytes:
        session = self._in_handshake(session)
        requester = self._requesters.get(session.id)
        if requester is None or requester.is_new or requester.chain is not None:
            raise Refusal(ErrorCode.UNEXPECTED_REQUEST)
        try:
            return requester.take(message)
        except Denied:
            self._deny(session)
            raise

    def _deny(self, session: SpdmSession) -> None:
        """End a session whose requester proves nothing, or is not admitted."""
        self._requesters.pop(session.id, None)
        if self._agreed()[0].clear_handshake:
            self._close(session)
        raise Refusal(ErrorCode.DECRYPT_ERROR)

    def _prove(self, message: bytes, session: SpdmSession, asked: SpdmCode, answered: SpdmCode) -> bytes:
        """Take the requester's proof, and give the responder's where that is still to come."""
        suite, agreed = self._agreed()
        size = digest_size(suite.hash)
        requester = self._requesters.pop(session.id, None)
        signed = agreed.requester_signature_size if requester is not None else 0
        signature, proof = parse_finish(message, asked, proof_size=size, signature_size=signed)
        if requester is not None:
            if not requester.proves(bytes(session.transcript), message[:-size - signed], signature):
                self._deny(session)
            session.transcript += requester.chain_hash
        session.transcript += message[:-size]
        if not session.proves(proof, of_requester=True):
            self._deny(session)
        session.transcript += proof
        answer = finish(suite.version, answered)
        session.transcript += answer
        if asked is SpdmCode.FINISH and agreed.clear_handshake:
            ours = session.proof(of_requester=False)
            session.transcript += ours
            answer += ours
            self._pending = None
            session.establish()
        return answer

    def _psk_exchange(self, message: bytes, _session: SpdmSession | None) -> bytes:
        suite, _ = self._agreed()
        request = PskExchange.decode(message)
        secret = self._psks.get(request.hint)
        if secret is None or not suite.aead or not self._requester.flags & Capability.PSK:
            raise Refusal(ErrorCode.INVALID_REQUEST)
        summary = self._summary(request.summary)
        session_id = self._new_id(request.session_id)
        offered = offered_versions(suite.version, request.opaque)
        made = PskExchangeAnswer(suite.version, self._heartbeat, session_id >> 16, summary,
                                 self._random(digest_size(suite.hash)),
                                 version_choice(suite.version) if offered else b"")
        session = SpdmSession(suite, session_id, bytearray(secret), bytes(self._negotiated) + message + made.proven,
                              psk=True, requester=False)
        self._sessions[session_id] = session
        self._psk_sessions.add(session_id)
        proof = session.proof(of_requester=False)
        session.transcript += proof
        return made.proven + proof

    def _psk_finish(self, message: bytes, session: SpdmSession | None) -> bytes:
        if session is None or session.id not in self._psk_sessions:
            raise Refusal(ErrorCode.INVALID_REQUEST)
        return self._prove(message, session, SpdmCode.PSK_FINISH, SpdmCode.PSK_FINISH_RSP)

    def _beat(self, message: bytes, _session: SpdmSession | None) -> bytes:
        if not self._heartbeat:
            raise Refusal(ErrorCode.UNSUPPORTED_REQUEST, message[1])
        return head(message[0], SpdmCode.HEARTBEAT_ACK)

    def _update(self, message: bytes, session: SpdmSession | None) -> bytes:
        assert session is not None  # by order
        operation = message[2]
        if operation not in set(KeyUpdate):
            raise Refusal(ErrorCode.INVALID_REQUEST)
        if operation != KeyUpdate.VERIFY:
            session.update(of_requester=True)
        if operation == KeyUpdate.UPDATE_ALL:
            session.update(of_requester=False)
        return head(message[0], SpdmCode.KEY_UPDATE_ACK, operation, message[3])

    def _end(self, message: bytes, session: SpdmSession | None) -> bytes:
        assert session is not None  # by order
        return head(message[0], SpdmCode.END_SESSION_ACK)

    def _say(self, message: bytes, session: SpdmSession | None) -> bytes | None:
        said = VendorDefined.decode(message, SpdmCode.VENDOR_DEFINED_REQUEST)
        answers = self._vendor.get((said.registry, said.vendor))
        if answers is None:
            raise Refusal(ErrorCode.UNSUPPORTED_REQUEST, message[1])
        payload = answers(None if session is None else session.id, said.payload)
        if payload is None:
            return None
        return VendorDefined(said.version, said.registry, said.vendor, payload).encode(
            SpdmCode.VENDOR_DEFINED_RESPONSE)


def _first(names: Mapping[int, str], offered: int, preferred: Sequence[str]) -> int:
    """Return the bit of the first of the preferred ones that is offered; 0 if none is."""
    bits = {name: bit for bit, name in names.items()}
    return next((bits[name] for name in preferred if name in bits and bits[name] & offered), 0)


def _number(session: SpdmSession | None) -> int:
    """Return by what a session is told from others, 0 for none."""
    return 0 if session is None else session.id
