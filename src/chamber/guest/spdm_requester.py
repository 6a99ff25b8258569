"""The guest's end of SPDM (DMTF DSP0274 1.1 to 1.4): asks a device who it is and what runs on it, and opens a session.

All that comes back is the host's until a signature says otherwise, and the device's then. An answer is taken only if it
is the one to the question; everything else raises `SpdmViolation`, and nothing that was asked for is had. Whether the
device may be what it proves to be is for the verifier to say.
"""

from __future__ import annotations

import hmac
from typing import TYPE_CHECKING, Final, TypeVar

from chamber.platform.spdm_chain import CertificateSlot, Chain, ChainError
from chamber.platform.spdm_chunks import LARGEST, PIECES_SINCE, TRANSFER_SIZE, Assembly, Cutter
from chamber.platform.spdm_crypto import Exchange, Suite, digest_size, hash_of, sign, signature_algorithms, verify
from chamber.platform.spdm_keys import RecordError
from chamber.platform.spdm_session import Phase, SpdmSession
from chamber.wire.errors import WireError
from chamber.wire.spdm import (
    CONTEXT_SIZE,
    ENCAPSULATED_MORE,
    NONCE_SIZE,
    ErrorCode,
    Portion,
    Reader,
    SpdmCode,
    certificate_portion,
    head,
    message_size,
)
from chamber.wire.spdm_chunks import Chunk, ChunkAck, ChunkGet
from chamber.wire.spdm_messages import (
    ALL_MEASUREMENTS,
    ChallengeAuth,
    Digests,
    KeyExchange,
    KeyExchangeAnswer,
    KeyUpdate,
    Measurement,
    Measurements,
    Mutual,
    PskExchange,
    PskExchangeAnswer,
    Summary,
    VendorDefined,
    certificate,
    certificate_request,
    challenge,
    finish,
    measurement_request,
    parse_finish,
    selected_version,
    version_offer,
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
    parse_versions,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence

__all__ = ("SpdmRequester", "SpdmViolation")

_T = TypeVar("_T")
_KNOWN: Final = (0x14, 0x13, 0x12, 0x11)
_MULTI_KEY_SINCE: Final = 0x13
_MOST_ENCAPSULATED: Final = 80
_OWN_SLOT: Final = 0
_MOST_CHAIN: Final = 0xFFFF
_LEAST_PORTION: Final = 64
_SECURED_1_1: Final = 0x1100
_DEFAULT: Final = (Capability.CERT | Capability.CHAL | Capability.ENCRYPT | Capability.MAC | Capability.KEY_EX
                   | Capability.PSK | Capability.HBEAT | Capability.KEY_UPD)


class SpdmViolation(Exception):
    """The device's answer is none that it may give.

    Attributes:
        rule: the broken rule.
        code: of ERROR, where the device refused; None otherwise.

    """

    def __init__(self, rule: str, detail: str = "", code: int | None = None) -> None:
        self.rule = rule
        self.code = code
        super().__init__(f"{rule}{f' ({detail})' if detail else ''} [DSP0274]")


class SpdmRequester:
    """A requester, and its way to one device.

    Args:
        exchange: sends a payload, which is secured or not, and returns the answer's.
        random: returns so many random bytes.
        spoken: versions, the one that is liked best first.
        hashes: names of hashes to offer; so with the following.
        signatures: of what the device may sign with.
        exchanges: of key exchanges.
        aeads: of ciphers. TDISP takes AES-256-GCM alone.
        clear_handshake: whether FINISH may travel in the clear.
        sequence_size: bytes of a secured message's number that the transport has.
        identity: certificates of the guest's own, for devices that ask who it is; None for a guest without.
        multi_key: whether a device with several keys is to tell them apart (1.3).
        transfer_size: bytes of a message that it takes at once.
        largest: bytes of a message at all; what is larger than one end takes at once comes, and goes, in pieces (1.2).

    Attributes:
        suite: what the connection runs with; None before `connect`.
        capabilities: what the device can do.

    """

    def __init__(self, exchange: Callable[[bytes, bool], bytes], random: Callable[[int], bytes], *,
                 spoken: Sequence[int] = _KNOWN, hashes: Collection[str] = tuple(HASHES.values()),
                 signatures: Collection[str] = tuple(ASYMMETRIC.values()),
                 exchanges: Collection[str] = tuple(EXCHANGES.values()),
                 aeads: Collection[str] = tuple(AEADS.values()), clear_handshake: bool = False,
                 sequence_size: int = 0, identity: CertificateSlot | None = None, multi_key: bool = False,
                 transfer_size: int = TRANSFER_SIZE, largest: int = LARGEST) -> None:
        self._exchange = exchange
        self._random = random
        self._spoken = tuple(spoken)
        self._sequence_size = sequence_size
        self._offered = {"hash": _bits(HASHES, hashes), "asymmetric": _bits(ASYMMETRIC, signatures),
                         "exchange": _bits(EXCHANGES, exchanges), "aead": _bits(AEADS, aeads)}
        self._flags = _DEFAULT | Capability.HANDSHAKE_IN_THE_CLEAR * clear_handshake
        self._identity_slot = identity
        if identity is not None:
            self._flags |= Capability.MUT_AUTH | Capability.ENCAP
            names = signature_algorithms(identity.key.public_key())
            self._offered["requester_asymmetric"] = _bits(ASYMMETRIC, names)
        self._multi_key = multi_key
        self._transfer_size, self._largest = transfer_size, max(transfer_size, largest)
        if self._largest > transfer_size:
            self._flags |= Capability.CHUNK
        self._transfers = 0
        self._told_apart = b""
        self.suite: Suite | None = None
        self.capabilities = Capabilities(0, Capability(0))
        self._measurement_hash = ""
        self._negotiated = b""
        self._identity = bytearray()
        self._measured: dict[int, bytearray] = {}
        self._chains: dict[int, Chain] = {}
        self._sessions: dict[int, SpdmSession] = {}

    # Asking.

    def _ask(self, request: bytes, expected: SpdmCode, session: SpdmSession | None = None) -> bytes:
        """Ask; return the answer, without what fills it up.

        Raises:
            SpdmViolation: it is none to the question, or the device refuses.

        """
        code = request[1]
        key = 0 if session is None else session.id
        if code != SpdmCode.GET_MEASUREMENTS:
            self._measured.pop(key, None)
        try:
            cut = self._in_pieces and len(request) > self.capabilities.transfer_size
            answer = self._send_pieces(request, session) if cut else self._once(request, session)
            if self._in_pieces and answer[1:3] == bytes((SpdmCode.ERROR, ErrorCode.LARGE_RESPONSE)):
                answer = self._fetch_pieces(answer, session)
            return self._read(answer, request, expected)
        except RecordError as error:
            self._lose(session)
            raise SpdmViolation(error.rule) from None
        except WireError as error:
            raise SpdmViolation(error.rule, error.detail) from None

    def _once(self, request: bytes, session: SpdmSession | None) -> bytes:
        if session is None:
            return self._exchange(request, False)
        return session.open(self._exchange(session.seal(request), True))

    @property
    def _in_pieces(self) -> bool:
        both = self._flags & self.capabilities.flags & Capability.CHUNK
        return bool(both) and self.capabilities.version >= PIECES_SINCE

    def _send_pieces(self, request: bytes, session: SpdmSession | None) -> bytes:
        """Send what is too large for one piece; return the answer."""
        self._transfers = self._transfers + 1 & 0xFF
        cutter = Cutter(self._transfers, request, self.capabilities.transfer_size)
        sequence = 0
        while True:
            chunk = cutter.piece(sequence)
            sent = chunk.encode(request[0], SpdmCode.CHUNK_SEND)
            ack = ChunkAck.decode(self._read(self._once(sent, session), sent, SpdmCode.CHUNK_SEND_ACK))
            # Zeros behind it fill up whatever brought it.
            early = not chunk.last and not ack.early and any(ack.answer)
            if (ack.handle, ack.sequence) != (chunk.handle, sequence) or early:
                raise SpdmViolation("a piece is acknowledged as it was sent")
            if chunk.last or ack.early:
                return ack.answer
            sequence += 1

    def _fetch_pieces(self, told: bytes, session: SpdmSession | None) -> bytes:
        """Fetch an answer that is too large for one piece: no more of it than was agreed on."""
        handle = Reader(told, SpdmCode.ERROR).number(1, "the handle")
        assembly = Assembly(handle, self._largest)
        sequence = 0
        while True:
            asked = ChunkGet(handle, sequence).encode(told[0])
            answer = self._read(self._once(asked, session), asked, SpdmCode.CHUNK_RESPONSE)
            whole = assembly.take(Chunk.decode(answer, SpdmCode.CHUNK_RESPONSE))
            if whole is not None:
                return whole
            sequence += 1

    def _read(self, answer: bytes, request: bytes, expected: SpdmCode) -> bytes:
        if len(answer) < 4:
            raise SpdmViolation("an answer has a head", f"{len(answer)} bytes")
        if answer[1] == SpdmCode.ERROR:
            name = ErrorCode(answer[2]).name if answer[2] in set(ErrorCode) else f"{answer[2]:#x}"
            raise SpdmViolation("the device refuses", f"{SpdmCode(request[1]).name}: {name}", answer[2])
        if answer[1] != expected or answer[0] != request[0]:
            raise SpdmViolation("an answer is the one to its question, in its version",
                                f"{answer[:2].hex()} where {expected.name} is due")
        return answer[:message_size(answer, None if self.suite is None else self.suite.agreed, request)]

    @staticmethod
    def _decoded(decode: Callable[[], _T]) -> _T:
        """Decode an answer's body."""
        try:
            return decode()
        except WireError as error:
            raise SpdmViolation(error.rule, error.detail) from None

    def _ready(self) -> Suite:
        if self.suite is None:
            raise SpdmViolation("a device is asked who it is before anything else")
        return self.suite

    # What is agreed on.

    def connect(self) -> Suite:
        """Agree on version and algorithms; whatever was before is forgotten.

        Raises:
            SpdmViolation: there is nothing to agree on, or the device chose what was not offered.

        """
        self.close()
        self.capabilities = Capabilities(0, Capability(0))
        request = head(0x10, SpdmCode.GET_VERSION)
        answer = self._ask(request, SpdmCode.VERSION)
        spoken = self._decoded(lambda: parse_versions(answer))
        version = next((number for number in self._spoken if number in spoken), None)
        if version is None:
            raise SpdmViolation("both ends speak a version", " ".join(f"{number:#x}" for number in spoken[:8]))
        self._negotiated = request + answer
        self._take_capabilities(version)
        chosen = self._choose(version)
        clear = bool(self._flags & self.capabilities.flags & Capability.HANDSHAKE_IN_THE_CLEAR)
        self.suite = Suite.of(chosen, clear_handshake=clear,
                              multi_key=bool(chosen.other & OtherParameter.MULTI_KEY),
                              sequence_size=self._sequence_size)
        return self.suite

    def _take_capabilities(self, version: int) -> None:
        most = self._largest if version >= PIECES_SINCE else self._transfer_size
        request = Capabilities(version, self._flags, transfer_size=self._transfer_size,
                               message_size=most).encode(SpdmCode.GET_CAPABILITIES)
        answer = self._ask(request, SpdmCode.CAPABILITIES)
        self._negotiated += request + answer
        self.capabilities = self._decoded(lambda: Capabilities.decode(answer, SpdmCode.CAPABILITIES))

    def _choose(self, version: int) -> Algorithms:
        apart = self._multi_key and version >= _MULTI_KEY_SINCE and bool(
            self.capabilities.flags & Capability.MULTI_KEY_NEGOTIABLE)
        other = OtherParameter.OPAQUE_FORMAT_1 | OtherParameter.MULTI_KEY * apart
        wanted = Algorithms(version, **self._offered, measurements=True, other=other)
        request = wanted.encode(SpdmCode.NEGOTIATE_ALGORITHMS)
        answer = self._ask(request, SpdmCode.ALGORITHMS)
        self._negotiated += request + answer
        chosen = self._decoded(lambda: Algorithms.decode(answer, SpdmCode.ALGORITHMS))
        for name, offered in self._offered.items():
            bits = getattr(chosen, name)
            needed = name == "hash" or (name == "asymmetric" and bool(self.capabilities.flags & Capability.CERT))
            if bits & ~offered or bits.bit_count() > 1 or (needed and not bits):
                # Two, or what was not offered, would be a downgrade to whatever the host likes.
                raise SpdmViolation("a device chooses one of each kind that was offered", f"{name}: {bits:#x}")
        if chosen.other & ~other:
            raise SpdmViolation("a device chooses other parameters of those that were offered")
        self._measurement_hash = MEASUREMENT_HASHES.get(chosen.measurement_hash, "")
        return chosen

    # Who it is.

    def digests(self, session: int | None = None) -> dict[int, bytes]:
        """Return hashes of certificate chains, by slot."""
        suite = self._ready()
        request = head(suite.version, SpdmCode.GET_DIGESTS)
        answer = self._ask(request, SpdmCode.DIGESTS, self._session(session))
        if suite.multi_key:
            self._told_apart = answer
        if session is None:
            self._identity[:] = request + answer
        return self._decoded(lambda: Digests.decode(answer, suite.agreed)).digests

    def certificates(self, slot: int, session: int | None = None) -> Chain:
        """Fetch a certificate chain; return it, which proves nothing yet.

        Raises:
            SpdmViolation: it is none, or what it says of its length does not hold.

        """
        suite = self._ready()
        data = bytearray()
        while True:
            request = certificate_request(suite.version, slot, len(data), min(0x400, _MOST_CHAIN - len(data)))
            answer = self._ask(request, SpdmCode.CERTIFICATE, self._session(session))
            if session is None:
                self._identity += request + answer
            portion = self._portion(answer)
            data += portion.data
            enough = len(portion.data) >= _LEAST_PORTION or not portion.remainder
            if not enough or len(data) + portion.remainder > _MOST_CHAIN or answer[2] & 0xF != slot:
                raise SpdmViolation("a certificate chain comes in pieces that are some use, and ends")
            if not portion.remainder:
                break
        try:
            chain = Chain.parse(bytes(data), suite.hash)
        except ChainError as error:
            raise SpdmViolation(error.rule) from None
        self._chains[slot] = chain
        return chain

    def _portion(self, answer: bytes) -> Portion:
        return self._decoded(lambda: certificate_portion(answer))

    def _key(self, slot: int) -> Chain:
        if slot not in self._chains:
            raise SpdmViolation("a signature is looked at beside the certificates of its slot")
        return self._chains[slot]

    def challenge(self, slot: int, summary: Summary = Summary.NONE) -> bytes:
        """Have the device sign all that was said so far, and something new; return its summary of measurements.

        Raises:
            SpdmViolation: it does not.

        """
        suite, chain = self._ready(), self._key(slot)
        context = self._random(CONTEXT_SIZE)
        request = challenge(suite.version, slot, summary, self._random(NONCE_SIZE), context)
        answer = self._ask(request, SpdmCode.CHALLENGE_AUTH)
        made = self._decoded(lambda: ChallengeAuth.decode(answer, suite.agreed, summary))
        if made.slot != slot or not hmac.compare_digest(made.chain_hash, hash_of(suite.hash, chain.data)) or (
                suite.version >= 0x13 and made.context != context):
            raise SpdmViolation("an answer is about the certificates, and the context, that it was asked for")
        transcript = self._negotiated + bytes(self._identity) + request + _without(answer, made.signature)
        self._identity.clear()
        self._check(chain, "challenge_auth signing", transcript, made.signature)
        return made.summary

    def _check(self, chain: Chain, context: str, transcript: bytes, signature: bytes) -> None:
        suite = self._ready()
        if not verify(chain.key, suite.asymmetric, suite, context, transcript, signature):
            raise SpdmViolation("the device signs what was said, with the key of its certificate", context)

    # What runs on it.

    def measurements(self, *, slot: int = 0, raw: bool = False, operation: int = ALL_MEASUREMENTS,
                     session: int | None = None) -> tuple[Measurement, ...]:
        """Return what was measured, signed.

        Raises:
            SpdmViolation: the signature is not the device's, or hashes are no hashes.

        """
        suite, chain = self._ready(), self._key(slot)
        within = self._session(session)
        context = self._random(CONTEXT_SIZE)
        request = measurement_request(suite.version, operation, nonce=self._random(NONCE_SIZE), slot=slot, raw=raw,
                                      context=context)
        answer = self._ask(request, SpdmCode.MEASUREMENTS, within)
        made = self._decoded(lambda: Measurements.decode(answer, suite.agreed, signed=True))
        if made.slot != slot or (suite.version >= 0x13 and made.context != context):
            raise SpdmViolation("an answer is of the slot, and repeats the context, that it was asked for")
        before = self._measured.pop(session or 0, self._before_measuring())
        self._check(chain, "measurements signing", bytes(before) + request + _without(answer, made.signature),
                    made.signature)
        size = digest_size(self._measurement_hash) if self._measurement_hash else 0
        if any(not block.raw and len(block.value) != size for block in made.blocks):
            raise SpdmViolation("a measurement that is not raw is a hash of the algorithm that was chosen")
        return made.blocks

    def _before_measuring(self) -> bytearray:
        """Return what is signed before measurements: in 1.1 nothing, later what was agreed on (10.11.1)."""
        return bytearray(self._negotiated if self._ready().version >= 0x12 else b"")

    def count(self, session: int | None = None) -> int:
        """Return how many measurements there are, unsigned."""
        suite = self._ready()
        request = measurement_request(suite.version, 0, context=self._random(CONTEXT_SIZE))
        answer = self._ask(request, SpdmCode.MEASUREMENTS, self._session(session))
        made = self._decoded(lambda: Measurements.decode(answer, suite.agreed, signed=False))
        # What was said so far is signed with the next ones that are.
        key = session or 0
        self._measured.setdefault(key, self._before_measuring())
        self._measured[key] += request + answer
        return made.total

    # Sessions.

    def _session(self, number: int | None) -> SpdmSession | None:
        if number is None:
            return None
        if number not in self._sessions:
            raise SpdmViolation("a session is there before anything is said in it", f"{number:#x}")
        return self._sessions[number]

    def _half(self) -> int:
        taken = {session & 0xFFFF for session in self._sessions}
        while True:
            mine = int.from_bytes(self._random(2), "little")
            if mine not in taken | {0, 0xFFFF}:
                return mine

    def _add(self, session: SpdmSession) -> None:
        if session.id in self._sessions or session.id >> 16 in {0, 0xFFFF}:
            session.close()
            raise SpdmViolation("a session has an id of its own")
        self._sessions[session.id] = session

    def start_session(self, slot: int, summary: Summary = Summary.ALL) -> tuple[int, bytes]:
        """Exchange keys with the device; return the session's id, and the summary of measurements.

        Raises:
            SpdmViolation: the device is not the one of the certificates, or does not prove that it has the key.

        """
        suite, chain = self._ready(), self._key(slot)
        if not suite.exchange or not suite.aead:
            raise SpdmViolation("a session has a key exchange and a cipher")
        if suite.multi_key and not self._told_apart:
            raise SpdmViolation("a device that tells its keys apart has said so before a session")
        ours = Exchange(suite.exchange)
        asked = KeyExchange(suite.version, summary, slot, self._half(), self._random(NONCE_SIZE), ours.public,
                            version_offer(suite.version))
        request = asked.encode()
        answer = self._ask(request, SpdmCode.KEY_EXCHANGE_RSP)
        made = self._decoded(lambda: KeyExchangeAnswer.decode(answer, suite.agreed, summary))
        if made.mutual and (made.mutual not in set(Mutual) or self._identity_slot is None
                            or not suite.requester_asymmetric):
            raise SpdmViolation("a guest that has no certificate is not asked for one")
        if selected_version(suite.version, made.opaque) != _SECURED_1_1:
            raise SpdmViolation("secured messages have the version that was offered")
        transcript = (self._negotiated + self._told_apart + hash_of(suite.hash, chain.data) + request
                      + _without(answer, made.signature + made.proof))
        self._check(chain, "key_exchange_rsp signing", transcript, made.signature)
        shared = ours.agree(made.exchange)
        if shared is None:
            raise SpdmViolation("what a device gives to the key exchange is of its kind")
        session = SpdmSession(suite, asked.session_id | made.session_id << 16, shared, transcript + made.signature,
                              requester=True)
        self._add(session)
        if not suite.clear_handshake:
            self._must_prove(session, made.proof)
        if made.mutual in {Mutual.ENCAPSULATED, Mutual.DIGESTS}:
            self._answer_encapsulated(session, fetched=made.mutual == Mutual.DIGESTS)
        self._finish(session, SpdmCode.FINISH, SpdmCode.FINISH_RSP, signed=bool(made.mutual))
        return session.id, made.summary

    def _answer_encapsulated(self, session: SpdmSession, *, fetched: bool) -> None:
        """Answer what the device asks about the guest, which is its certificates alone, and not for ever."""
        suite = self._ready()
        within = None if suite.clear_handshake else session
        try:
            number, inner = 0, head(suite.version, SpdmCode.GET_DIGESTS)
            if not fetched:
                answer = self._ask(head(suite.version, SpdmCode.GET_ENCAPSULATED_REQUEST),
                                   SpdmCode.ENCAPSULATED_REQUEST, within)
                number, inner = answer[2], answer[4:]
            for _ in range(_MOST_ENCAPSULATED):
                request = (head(suite.version, SpdmCode.DELIVER_ENCAPSULATED_RESPONSE, number)
                           + self._encapsulated(inner))
                answer = self._ask(request, SpdmCode.ENCAPSULATED_RESPONSE_ACK, within)
                begin = 8 if suite.version >= 0x12 else 4
                if answer[3] != ENCAPSULATED_MORE:
                    return
                number, inner = answer[2], answer[begin:]
            raise SpdmViolation("a device asks for certificates, and then has them")
        except SpdmViolation:
            self._lose(session)
            raise

    def _encapsulated(self, inner: bytes) -> bytes:
        suite = self._ready()
        assert self._identity_slot is not None  # nobody is asked who has none
        chain = self._identity_slot.chain(suite.hash)
        if inner[0] != suite.version or inner[1] not in {SpdmCode.GET_DIGESTS, SpdmCode.GET_CERTIFICATE}:
            raise SpdmViolation("a device asks a guest for its certificates, and for nothing else")
        if inner[1] == SpdmCode.GET_DIGESTS:
            return Digests(suite.version, {_OWN_SLOT: hash_of(suite.hash, chain)}).encode()
        offset, length = (int.from_bytes(inner[at:at + 2], "little") for at in (4, 6))
        most = self.capabilities.message_size if self._in_pieces else self.capabilities.transfer_size
        portion = chain[offset:offset + min(length, most - 16)]
        if inner[2] & 0xF != _OWN_SLOT or not portion:
            raise SpdmViolation("a device asks for a part of a certificate chain that there is")
        return certificate(suite.version, _OWN_SLOT, portion, len(chain) - offset - len(portion))

    def start_psk_session(self, hint: bytes, secret: bytes, summary: Summary = Summary.NONE) -> tuple[int, bytes]:
        """Open a session with a secret that was shared before; return its id, and the summary of measurements.

        Raises:
            SpdmViolation: the device does not prove that it has the secret.

        """
        suite = self._ready()
        if not suite.aead:
            raise SpdmViolation("a session has a cipher")
        asked = PskExchange(suite.version, summary, self._half(), hint, self._random(digest_size(suite.hash)),
                            version_offer(suite.version))
        request = asked.encode()
        answer = self._ask(request, SpdmCode.PSK_EXCHANGE_RSP)
        made = self._decoded(lambda: PskExchangeAnswer.decode(answer, suite.agreed, summary))
        if selected_version(suite.version, made.opaque) != _SECURED_1_1:
            raise SpdmViolation("secured messages have the version that was offered")
        session = SpdmSession(suite, asked.session_id | made.session_id << 16, bytearray(secret),
                              self._negotiated + request + _without(answer, made.proof), psk=True, requester=True)
        self._add(session)
        self._must_prove(session, made.proof)
        self._finish(session, SpdmCode.PSK_FINISH, SpdmCode.PSK_FINISH_RSP)
        return session.id, made.summary

    def _must_prove(self, session: SpdmSession, proof: bytes) -> None:
        if not session.proves(proof, of_requester=False):
            self._lose(session)
            raise SpdmViolation("the device proves that it has the session's secret")
        session.transcript += proof

    def _finish(self, session: SpdmSession, code: SpdmCode, expected: SpdmCode, *, signed: bool = False) -> None:
        suite = self._ready()
        clear = suite.clear_handshake and code is SpdmCode.FINISH
        request = finish(suite.version, code, signed=signed, slot=_OWN_SLOT)
        if signed and self._identity_slot is not None:
            session.transcript += hash_of(suite.hash, self._identity_slot.chain(suite.hash))
            request += sign(self._identity_slot.key, suite.requester_asymmetric, suite, "finish signing",
                            bytes(session.transcript) + request, role="requester")
        session.transcript += request
        proof = session.proof(of_requester=True)
        session.transcript += proof
        try:
            answer = self._ask(request + proof, expected, None if clear else session)
            size = digest_size(suite.hash) if clear else 0
            _, theirs = self._decoded(lambda: parse_finish(answer, expected, proof_size=size))
            session.transcript += answer[:len(answer) - size]
            if clear:
                self._must_prove(session, theirs)
        except SpdmViolation:
            self._lose(session)
            raise
        session.establish()

    def _lose(self, session: SpdmSession | None) -> None:
        if session is not None:
            session.close()
            self._sessions.pop(session.id, None)
            self._measured.pop(session.id, None)

    def say(self, session: int, registry: tuple[int, bytes], payload: bytes) -> bytes:
        """Say something that a vendor defines, in a session; return the answer's payload.

        Raises:
            SpdmViolation: the answer is of somebody else, or none.

        """
        suite = self._ready()
        request = VendorDefined(suite.version, *registry, payload).encode(SpdmCode.VENDOR_DEFINED_REQUEST)
        answer = self._ask(request, SpdmCode.VENDOR_DEFINED_RESPONSE, self._session(session))
        made = self._decoded(lambda: VendorDefined.decode(answer, SpdmCode.VENDOR_DEFINED_RESPONSE))
        if (made.registry, made.vendor) != registry:
            raise SpdmViolation("an answer is of the vendor that was asked")
        return made.payload

    def beat(self, session: int) -> None:
        """Say that the session lives."""
        self._ask(head(self._ready().version, SpdmCode.HEARTBEAT), SpdmCode.HEARTBEAT_ACK, self._session(session))

    def update_keys(self, session: int, *, both: bool = True) -> None:
        """Go on with new keys, of both directions or of the guest's alone.

        Raises:
            SpdmViolation: the device does not; the session is over.

        """
        suite, within = self._ready(), self._session(session)
        assert within is not None  # a number was given
        operation = KeyUpdate.UPDATE_ALL if both else KeyUpdate.UPDATE
        try:
            for what in (operation, KeyUpdate.VERIFY):
                tag = self._random(1)[0]
                request = head(suite.version, SpdmCode.KEY_UPDATE, what, tag)
                sealed = within.seal(request)
                if what is not KeyUpdate.VERIFY:
                    within.update(of_requester=True)
                if what is KeyUpdate.UPDATE_ALL:
                    # The answer is sealed with the new key already (11.8).
                    within.update(of_requester=False)
                answer = within.open(self._exchange(sealed, True))
                if self._read(answer, request, SpdmCode.KEY_UPDATE_ACK)[2:4] != request[2:4]:
                    raise SpdmViolation("an answer repeats the operation and its tag")
        except (RecordError, SpdmViolation, WireError) as error:
            self._lose(within)
            raise SpdmViolation(getattr(error, "rule", "keys are updated")) from None

    def end_session(self, session: int) -> None:
        """End a session; it is over whatever the device answers."""
        within = self._session(session)
        try:
            self._ask(head(self._ready().version, SpdmCode.END_SESSION), SpdmCode.END_SESSION_ACK, within)
        finally:
            self._lose(within)

    def is_open(self, session: int) -> bool:
        """Whether a session is there, and established."""
        return session in self._sessions and self._sessions[session].phase is Phase.ESTABLISHED

    def close(self) -> None:
        """Forget everything: all sessions' secrets are overwritten, and no device is told."""
        for session in tuple(self._sessions.values()):
            self._lose(session)
        self.suite = None
        self._negotiated = b""
        self._told_apart = b""
        self._identity.clear()
        self._measured.clear()
        self._chains.clear()


def _bits(names: dict[int, str], wanted: Collection[str]) -> int:
    return sum(bit for bit, name in names.items() if name in wanted)


def _without(answer: bytes, end: bytes) -> bytes:
    """Return an answer without what it ends with: bytes as they came, also those that nobody looks at, are signed."""
    return answer[:len(answer) - len(end)]
