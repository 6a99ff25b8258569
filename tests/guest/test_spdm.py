"""Both ends of SPDM against each other, with somebody between them."""

from __future__ import annotations

import contextlib
import itertools
import random
from dataclasses import replace
from functools import cache
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from chamber.device.spdm_identity import KEY_KINDS, make_slot
from chamber.device.spdm_responder import SpdmResponder
from chamber.guest.spdm_requester import SpdmRequester, SpdmViolation
from chamber.platform.spdm_chain import CertificateSlot
from chamber.wire.spdm import ErrorCode, SpdmCode
from chamber.wire.spdm_messages import PCI_SIG, Measurement, MeasurementType, Summary
from chamber.wire.spdm_negotiation import AEADS, EXCHANGES, HASHES

if TYPE_CHECKING:
    from collections.abc import Callable

    from chamber.platform.spdm_chain import Chain

VERSIONS = (0x11, 0x12, 0x13, 0x14)
MEASURED = (Measurement(1, MeasurementType.ROM, b"boot code"), Measurement(2, MeasurementType.FIRMWARE, b"firmware"),
            Measurement(3, MeasurementType.FIRMWARE_CONFIG, b"config"),
            Measurement(4, MeasurementType.SECURE_VERSION, (7).to_bytes(8, "little")))
SECRET = bytes(range(32))


_made = cache(make_slot)


def slot(kind: str = "P-384") -> CertificateSlot:
    return _made(kind)


class Pair:
    """A requester and a responder; whoever is between them may change what passes."""

    def __init__(self, kind: str = "P-384", *, version: int = 0x12, clear: bool = False, seed: int = 1,
                 slots: dict[int, CertificateSlot] | None = None,
                 responder: dict[str, Any] | None = None, **offered: Any) -> None:
        self.dice = random.Random(seed)
        self.ended: list[int] = []
        self.lines: list[str] = []
        self.passes: Callable[[bytes, bool, bool], bytes | None] = lambda data, _secured, _up: data
        self.responder = SpdmResponder(
            {0: slot(kind)} if slots is None else slots, random=self.dice.randbytes, measurements=lambda: MEASURED,
            vendor={PCI_SIG: lambda session, said: None if session is None else said[::-1]}, psks={b"hint": SECRET},
            clear_handshake=clear, heartbeat=5, multi_key=True, ended=self.ended.append, log=self.lines.append,
            **responder or {})
        self.requester = SpdmRequester(self._exchange, self.dice.randbytes, spoken=(version,), clear_handshake=clear,
                                       **offered)

    def _exchange(self, data: bytes, secured: bool) -> bytes:
        passed = self.passes(_filled(data), secured, True)
        answer = None if passed is None else self.responder.handle(passed, secured=secured)
        back = None if answer is None else self.passes(_filled(answer[0]), answer[1], False)
        if back is None or answer is None or answer[1] != secured:
            return b""
        return back

    def session(self) -> int:
        self.requester.connect()
        self.requester.digests()
        self.requester.certificates(0)
        return self.requester.start_session(0)[0]


def _filled(data: bytes) -> bytes:
    """A mailbox tells lengths in double words."""
    return data + bytes(-len(data) % 4)


@pytest.mark.parametrize("clear", [False, True])
@pytest.mark.parametrize("version", VERSIONS)
def test_all_that_can_be_asked_is_answered(version: int, clear: bool) -> None:
    pair = Pair(version=version, clear=clear)
    requester = pair.requester
    suite = requester.connect()
    assert (suite.version, suite.hash, suite.asymmetric, suite.exchange, suite.aead) == (
        version, "SHA-384", "P-384", "P-384", "AES-256-GCM")
    digests = requester.digests()
    chain = requester.certificates(0)
    assert list(digests) == [0]
    assert chain.certificates == slot().certificates
    summary = requester.challenge(0, Summary.ALL)
    assert requester.count() == len(MEASURED)
    blocks = requester.measurements()
    assert [(block.index, block.type) for block in blocks] == [(block.index, block.type) for block in MEASURED]
    assert blocks[3].raw
    assert requester.measurements(raw=True) == tuple(
        Measurement(block.index, block.type, block.value, raw=True) for block in MEASURED)
    session, summed = requester.start_session(0)
    assert summed == summary
    assert requester.say(session, PCI_SIG, b"abc") == b"cba"
    for both in (True, False, True):
        requester.update_keys(session, both=both)
        assert requester.say(session, PCI_SIG, b"abc") == b"cba"
    requester.beat(session)
    assert requester.measurements(session=session) == blocks
    assert requester.certificates(0, session).data == chain.data
    other, none = requester.start_psk_session(b"hint", SECRET)
    assert none == b""
    assert requester.say(other, PCI_SIG, b"x") == b"x"
    requester.end_session(session)
    assert not requester.is_open(session)
    assert requester.is_open(other)
    assert pair.ended == [session]
    pair.responder.close()
    assert pair.ended == [session, other]


_COMBINATIONS = [(kind, hash_, exchange, aead, version)
                 for kind in KEY_KINDS for hash_, exchange, aead in itertools.chain(
                     ((h, "P-256", "AES-256-GCM") for h in HASHES.values()),
                     (("SHA-256", e, a) for e in EXCHANGES.values() for a in AEADS.values()))
                 for version in ((0x14,) if f"{kind} {exchange}".count("ML-") else (0x12, 0x13))]


@pytest.mark.parametrize(("kind", "hash_", "exchange", "aead", "version"), _COMBINATIONS)
def test_every_algorithm_opens_a_session(kind: str, hash_: str, exchange: str, aead: str, version: int) -> None:
    pair = Pair(kind, version=version, hashes=(hash_,), exchanges=(exchange,), aeads=(aead,))
    session = pair.session()
    suite = pair.requester.suite
    assert suite is not None
    assert (suite.hash, suite.exchange, suite.aead) == (hash_, exchange, aead)
    assert pair.requester.say(session, PCI_SIG, b"said") == b"dias"
    assert pair.requester.measurements(session=session)


def test_both_schemes_of_rsa_sign() -> None:
    for scheme in ("RSASSA", "RSAPSS"):
        pair = Pair("RSA-2048", signatures=(f"{scheme}-2048",))
        pair.session()
        assert pair.requester.suite is not None
        assert pair.requester.suite.asymmetric == f"{scheme}-2048"


def test_without_a_common_algorithm_or_version_nothing_is_agreed_on() -> None:
    with pytest.raises(SpdmViolation, match="INVALID_REQUEST"):
        Pair(signatures=("P-256",)).requester.connect()
    pair = Pair()
    pair.responder._spoken = (0x10,)
    with pytest.raises(SpdmViolation, match="both ends speak a version"):
        pair.requester.connect()


# Somebody in between.

_STEPS: tuple[Callable[[Pair], object], ...] = (
    lambda pair: pair.requester.connect(), lambda pair: pair.requester.digests(),
    lambda pair: pair.requester.certificates(0), lambda pair: pair.requester.challenge(0, Summary.ALL),
    lambda pair: pair.requester.count(), lambda pair: pair.requester.measurements(),
    lambda pair: pair.requester.start_session(0),
    lambda pair: pair.requester.start_psk_session(b"hint", SECRET))


@given(version=st.sampled_from(VERSIONS), clear=st.booleans(), seed=st.integers(0, 1 << 16))
@settings(deadline=None, max_examples=120, suppress_health_check=[HealthCheck.too_slow])
def test_a_byte_that_was_changed_on_the_way_is_noticed_before_a_session_is_open(version: int, clear: bool,
                                                                               seed: int) -> None:
    dice = random.Random(seed)
    pair = Pair(version=version, clear=clear, seed=seed)
    at, changed = dice.randrange(30), list[tuple[bytes, bytes]]()
    count = itertools.count()

    def passes(data: bytes, _secured: bool, _up: bool) -> bytes:
        if next(count) != at:
            return data
        place = dice.randrange(len(data))
        altered = data[:place] + bytes((data[place] ^ 1 << dice.randrange(8),)) + data[place + 1:]
        changed.append((data, altered))
        return altered

    pair.passes = passes
    try:
        for step in _STEPS[:6]:
            step(pair)
        session, _ = pair.requester.start_session(0)
        said = pair.requester.say(session, PCI_SIG, b"abc")
    except SpdmViolation:
        return
    # It went through: then nothing was changed, or what fills a message up, or what neither end looks at: digests and
    # an unsigned count, which a signature later covers, or is not asked for.
    assert said == b"cba"
    if changed:
        before, after = changed[0]
        place = next(n for n, (one, other) in enumerate(zip(before, after, strict=True)) if one != other)
        filling = place >= len(before) - 3
        assert filling or pair.requester.is_open(session)
        assert filling or before[1] in {SpdmCode.GET_DIGESTS, SpdmCode.DIGESTS}, (before[:8].hex(), place)


@pytest.mark.parametrize("what", ["drop", "replay", "swap"])
def test_a_session_ends_with_a_message_that_is_not_the_next(what: str) -> None:
    pair = Pair()
    session = pair.session()
    kept: list[bytes] = []

    def keep(data: bytes, _secured: bool, up: bool) -> bytes:
        if up:
            kept.append(data)
        return data

    pair.passes = keep
    pair.requester.say(session, PCI_SIG, b"first")

    def interfere(data: bytes, _secured: bool, up: bool) -> bytes | None:
        if not up:
            return data
        return {"drop": None, "replay": kept[0], "swap": data[:-4] + kept[0][-4:]}[what]

    pair.passes = interfere
    with pytest.raises(SpdmViolation):
        pair.requester.say(session, PCI_SIG, b"second")
    assert not pair.requester.is_open(session)
    pair.passes = lambda data, _secured, _up: data
    with pytest.raises(SpdmViolation, match="a session is there before"):
        pair.requester.say(session, PCI_SIG, b"third")
    assert pair.ended == ([] if what == "drop" else [session])


def test_another_device_in_the_place_of_the_first_has_not_its_key() -> None:
    pair = Pair()
    pair.requester.connect()
    pair.requester.certificates(0)
    pair.responder._slots[0] = CertificateSlot(slot().certificates, make_slot().key)
    with pytest.raises(SpdmViolation, match="signs what was said"):
        pair.requester.challenge(0)
    with pytest.raises(SpdmViolation, match="signs what was said"):
        pair.requester.start_session(0)
    with pytest.raises(SpdmViolation, match="signs what was said"):
        pair.requester.measurements()


def test_a_secret_that_is_another_proves_nothing() -> None:
    pair = Pair()
    pair.requester.connect()
    with pytest.raises(SpdmViolation, match="proves that it has"):
        pair.requester.start_psk_session(b"hint", bytes(32))
    with pytest.raises(SpdmViolation, match="INVALID_REQUEST"):
        pair.requester.start_psk_session(b"other", SECRET)


# What a responder refuses.


def _code(pair: Pair, message: bytes) -> int:
    answer = pair.responder.respond(message)
    assert answer is not None
    assert answer[1] == SpdmCode.ERROR
    return answer[2]


def test_the_order_of_requests_is_kept() -> None:
    pair = Pair()
    assert _code(pair, bytes((0x12, SpdmCode.GET_CAPABILITIES)) + bytes(18)) == ErrorCode.UNEXPECTED_REQUEST
    assert _code(pair, bytes((0x12, SpdmCode.GET_VERSION, 0, 0))) == ErrorCode.VERSION_MISMATCH
    pair.requester.connect()
    assert _code(pair, bytes((0x12, SpdmCode.GET_CAPABILITIES)) + bytes(18)) == ErrorCode.UNEXPECTED_REQUEST
    assert _code(pair, bytes((0x13, SpdmCode.GET_DIGESTS, 0, 0))) == ErrorCode.VERSION_MISMATCH
    assert _code(pair, bytes((0x12, SpdmCode.HEARTBEAT, 0, 0))) == ErrorCode.SESSION_REQUIRED
    assert _code(pair, bytes((0x12, 0xF0, 0, 0))) == ErrorCode.UNSUPPORTED_REQUEST
    assert _code(pair, bytes((0x12, SpdmCode.GET_CERTIFICATE, 5, 0)) + bytes(4)) == ErrorCode.INVALID_REQUEST
    assert _code(pair, bytes((0x12,))) == ErrorCode.INVALID_REQUEST


def test_sessions_are_limited_and_the_version_ends_them_all() -> None:
    pair = Pair()
    sessions = [pair.session()] + [pair.requester.start_session(0)[0] for _ in range(3)]
    with pytest.raises(SpdmViolation, match="SESSION_LIMIT_EXCEEDED"):
        pair.requester.start_session(0)
    pair.requester.connect()
    assert sorted(pair.ended) == sorted(sessions)


def test_a_vendors_message_outside_of_a_session_gets_no_answer() -> None:
    pair = Pair()
    pair.requester.connect()
    assert pair.responder.respond(b"\x12\xfe\0\0\x03\0\x02\x01\0\x01\0x") is None
    assert _code(pair, b"\x12\xfe\0\0\x04\0\x00\x01\0x") == ErrorCode.UNSUPPORTED_REQUEST


def test_nothing_secret_is_in_the_log_and_secrets_are_overwritten() -> None:
    pair = Pair()
    session = pair.session()
    held = pair.responder._sessions[session]
    secrets = list(held._secrets)
    assert all(any(secret) for secret in secrets)
    text = "\n".join(pair.lines)
    assert not any(bytes(secret).hex() in text for secret in secrets)
    pair.requester.end_session(session)
    assert not any(any(secret) for secret in secrets)


@given(st.lists(st.tuples(st.booleans(), st.binary(max_size=120)), max_size=6), st.booleans())
@settings(deadline=None, max_examples=60)
def test_any_bytes_are_answered_or_dropped_and_a_session_survives_what_is_outside(
        said: list[tuple[bool, bytes]], headed: bool) -> None:
    pair = Pair()
    session = pair.session()
    pair.requester.say(session, PCI_SIG, b"x")
    for secured, data in said:
        payload = bytes((0x12,)) + data if headed and not secured else data
        if payload[1:2] == bytes((SpdmCode.GET_VERSION,)) or (
                secured and payload[:4] == session.to_bytes(4, "little")):
            continue
        answer = pair.responder.handle(payload, secured=secured)
        assert answer is None or answer[0][1] in set(SpdmCode)
    assert pair.requester.say(session, PCI_SIG, b"yz") == b"zy"


@given(st.binary(max_size=200), st.integers(0, 7), st.booleans())
@settings(deadline=None, max_examples=100)
def test_any_answer_is_taken_or_refused_with_its_rule(data: bytes, at: int, headed: bool) -> None:
    pair = Pair()
    for step in _STEPS[:at]:
        step(pair)
    pair.passes = lambda honest, _secured, up: honest if up else (honest[:2] + data if headed else data)
    with contextlib.suppress(SpdmViolation):
        _STEPS[at](pair)


@pytest.mark.parametrize("clear", [False, True])
@pytest.mark.parametrize("version", VERSIONS)
def test_keys_that_are_told_apart_are_part_of_what_is_signed(version: int, clear: bool) -> None:
    pair = Pair(version=version, clear=clear, slots={0: slot(), 2: make_slot()}, multi_key=True)
    suite = pair.requester.connect()
    assert suite.multi_key == (version >= 0x13)
    pair.requester.certificates(0)
    pair.requester.certificates(2)
    if suite.multi_key:
        with pytest.raises(SpdmViolation, match="before a session"):
            pair.requester.start_session(2)
    assert sorted(pair.requester.digests()) == [0, 2]
    session, _ = pair.requester.start_session(2)
    assert pair.requester.say(session, PCI_SIG, b"abc") == b"cba"
    pair.requester.measurements(slot=2)
    with pytest.raises(SpdmViolation, match="beside the certificates"):
        pair.requester.challenge(1)


def test_an_answer_that_the_other_end_can_not_take_is_refused() -> None:
    pair = Pair()
    pair.requester.connect()
    pair.responder._pieces.requester = replace(pair.responder._requester, transfer_size=42, message_size=42)
    with pytest.raises(SpdmViolation, match="RESPONSE_TOO_LARGE"):
        pair.requester.digests()


# A device that asks who the guest is.


def _mutual(version: int = 0x12, *, clear: bool = False, kind: str = "P-256",
            admits: Callable[[Chain], bool] = lambda _chain: True, identity: bool = True) -> Pair:
    pair = Pair(version=version, clear=clear, identity=slot(kind) if identity else None)
    pair.responder._admits = admits
    return pair


@pytest.mark.parametrize("kind", ["P-256", "P-384", "Ed25519", "RSA-3072"])
@pytest.mark.parametrize("clear", [False, True])
@pytest.mark.parametrize("version", VERSIONS[1:])
def test_a_guest_proves_who_it_is(version: int, clear: bool, kind: str) -> None:
    seen: list[Chain] = []

    def admits(chain: Chain) -> bool:
        seen.append(chain)
        return True

    pair = _mutual(version, clear=clear, kind=kind, admits=admits)
    session = pair.session()
    assert pair.requester.say(session, PCI_SIG, b"abc") == b"cba"
    assert [chain.certificates for chain in seen] == [slot(kind).certificates]


def test_a_guest_proves_who_it_is_in_the_first_version() -> None:
    pair = _mutual(0x11)
    assert pair.requester.say(pair.session(), PCI_SIG, b"abc") == b"cba"


@pytest.mark.parametrize("clear", [False, True])
def test_a_guest_that_is_not_admitted_has_no_session(clear: bool) -> None:
    pair = _mutual(clear=clear, admits=lambda _chain: False)
    with pytest.raises(SpdmViolation):
        pair.session()
    assert len(pair.ended) == 1
    assert not pair.responder._sessions


def test_a_guest_without_certificates_has_no_session_with_a_device_that_asks() -> None:
    with pytest.raises(SpdmViolation, match="UNEXPECTED_REQUEST"):
        _mutual(identity=False).session()


@pytest.mark.parametrize("clear", [False, True])
def test_a_guest_that_shows_certificates_of_another_has_not_their_key(clear: bool) -> None:
    pair = _mutual(clear=clear)
    pair.requester._identity_slot = CertificateSlot(slot("P-256").certificates, make_slot("P-256").key)
    with pytest.raises(SpdmViolation):
        pair.session()
    assert len(pair.ended) == 1


def test_a_device_that_asks_for_certificates_for_ever_is_given_up() -> None:
    pair = _mutual(clear=True)
    endless = bytes((0x12, SpdmCode.ENCAPSULATED_RESPONSE_ACK, 1, 1, 1, 0, 0, 0)) + bytes(
        (0x12, SpdmCode.GET_CERTIFICATE, 0, 0, 0, 0, 0, 1))
    pair.passes = lambda data, _secured, up: (
        endless if not up and data[1] == SpdmCode.ENCAPSULATED_RESPONSE_ACK else data)
    with pytest.raises(SpdmViolation):
        pair.session()


@pytest.mark.parametrize("inner", [b"", b"\x12\x83\0\0" + bytes(32), b"\x12\x82\x01\0\0\0\0\1", b"\x13\x81\0\0",
                                   b"\x12\xeb\0\0\x12\x81\0\0", b"\x12\x82\0\0\xff\xff\0\1"])
def test_a_device_that_asks_for_something_else_gets_nothing(inner: bytes) -> None:
    pair = _mutual(clear=True)
    pair.passes = lambda data, _secured, up: (
        bytes((0x12, SpdmCode.ENCAPSULATED_REQUEST, 1, 0)) + inner
        if not up and data[1] == SpdmCode.ENCAPSULATED_REQUEST else data)
    with pytest.raises(SpdmViolation):
        pair.session()


def test_finish_without_the_proof_that_was_asked_for_is_refused() -> None:
    pair = _mutual()
    pair.requester._answer_encapsulated = lambda *_args, **_kw: None  # type: ignore[method-assign]
    with pytest.raises(SpdmViolation, match="INVALID_REQUEST"):
        pair.session()
