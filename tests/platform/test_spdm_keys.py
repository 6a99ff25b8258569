"""Four sessions of DMTF's emulators, recorded with their secrets: every key derived again, every message opened.

`spdm_sessions.json` has, for SPDM 1.1 to 1.4, the data objects of a session in their order, up to its end, and what the
responder wrote down of its secrets.
"""

from __future__ import annotations

import itertools
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from hypothesis import given
from hypothesis import strategies as st

from chamber.platform.spdm_keys import AEADS, HASHES, Direction, KeySchedule, RecordError
from chamber.wire.doe import DataObject, DoeType
from chamber.wire.spdm import (
    Agreed,
    SpdmCode,
    certificate_portion,
    message_size,
    signature_place,
)
from chamber.wire.spdm_secured import SecuredMessage

_SESSIONS: dict[str, dict[str, Any]] = json.loads(
    (Path(__file__).parent / "spdm_sessions.json").read_text(encoding="utf-8"))
_MULTI_KEY = 0x10
"""Of the other parameters that ALGORITHMS selects, in its byte 7."""


@dataclass
class _Session:
    """A recorded session, with its transcripts as both ends had them."""

    version: str

    def __post_init__(self) -> None:
        self.told = _SESSIONS[self.version]
        objects = [DataObject.decode(bytes.fromhex(text)) for text in self.told["objects"]]
        clear = [o.payload for o in objects if o.type == DoeType.SPDM]
        self.sealed = [o.payload for o in objects if o.type == DoeType.SECURED_SPDM]
        self.begin = b"".join(m[:message_size(m)] for m in clear[:6])
        self.agreed = Agreed(48, 96, 96, clear_handshake=True, multi_key=bool(clear[5][7] & _MULTI_KEY))
        last = {m[1]: m for m in clear}
        self.chain = b""
        for message in clear:
            if message[1] == SpdmCode.CERTIFICATE:
                portion = certificate_portion(message)
                self.chain += portion.data
                if not portion.remainder:
                    break
        digests, request = last[SpdmCode.DIGESTS], last[SpdmCode.KEY_EXCHANGE]
        answer = last[SpdmCode.KEY_EXCHANGE_RSP]
        request = request[:message_size(request, self.agreed)]
        answer = answer[:message_size(answer, self.agreed, request)]
        at = signature_place(answer, request, self.agreed)
        self.signature = answer[at:at + self.agreed.signature_size]
        self.schedule = KeySchedule(int(self.version.replace(".", ""), 16), self.told["hash"],
                                    bytes.fromhex(self.told["dhe_secret"]))
        self.signed = (self.begin + (digests[:message_size(digests, self.agreed)] if self.agreed.multi_key else b"")
                       + self.schedule.digest(self.chain) + request + answer[:at])
        self.th1 = self.schedule.digest(self.signed + self.signature)
        self.finish, self.finished = (m[:message_size(m, self.agreed)]
                                      for m in (last[SpdmCode.FINISH], last[SpdmCode.FINISH_RSP]))
        self.th2 = self.schedule.digest(self.signed + self.signature + self.finish + self.finished)


@pytest.fixture(params=_SESSIONS)
def session(request: pytest.FixtureRequest) -> _Session:
    return _Session(request.param)


def test_every_secret_is_derived_again(session: _Session) -> None:
    told, schedule = session.told, session.schedule
    assert session.th1.hex() == told["th1_hash"]
    request, response = schedule.handshake(session.th1)
    assert (request.hex(), response.hex()) == (told["request_handshake_secret"], told["response_handshake_secret"])
    assert session.th2.hex() == told["th2_hash"]
    secrets = schedule.data(session.th2)
    assert [s.hex() for s in secrets] == [told["request_data_secret"], told["response_data_secret"],
                                          told["export_master_secret"]]


def test_both_ends_have_proved_that_they_know_them(session: _Session) -> None:
    schedule = session.schedule
    request, response = schedule.handshake(session.th1)
    size = schedule.hash_size
    before = session.signed + session.signature
    assert session.finish[-size:] == schedule.verify_data(request, schedule.digest(before + session.finish[:-size]))
    assert session.finished[-size:] == schedule.verify_data(
        response, schedule.digest(before + session.finish + session.finished[:-size]))


def test_the_answer_was_signed_by_the_device_of_the_certificate(session: _Session) -> None:
    # A chain: four bytes of length, the root's hash, and certificates down to the device's.
    data, leaf = session.chain[4 + session.schedule.hash_size:], None
    while data:
        size = 4 + int.from_bytes(data[2:4], "big")
        leaf, data = x509.load_der_x509_certificate(data[:size]), data[size:]
    assert leaf is not None
    key = leaf.public_key()
    assert isinstance(key, ec.EllipticCurvePublicKey)
    signed = session.signed
    if session.version != "1.1":
        context = b"responder-key_exchange_rsp signing"
        prefix = f"dmtf-spdm-v{session.version}.*".encode() * 4
        signed = prefix + bytes(100 - len(prefix) - len(context)) + context + session.schedule.digest(signed)
    half = len(session.signature) // 2
    r, s = (int.from_bytes(part, "big") for part in (session.signature[:half], session.signature[half:]))
    key.verify(encode_dss_signature(r, s), signed, ec.ECDSA(hashes.SHA384()))


def test_every_message_of_the_session_opens_in_its_order(session: _Session) -> None:
    request, response, _ = session.schedule.data(session.th2)
    ident = SecuredMessage.decode(session.sealed[0]).session_id
    ways = [session.schedule.direction(secret, session.told["aead"], ident) for secret in (request, response)]
    opened = [way.open(data) for way, data in zip(itertools.cycle(ways), session.sealed)]
    assert len(opened) > 80
    # The first is IDE key management's QUERY of port 1, in a message that a vendor defines: the PCI-SIG, here.
    assert opened[0][:2] == bytes((int(session.version.replace(".", ""), 16), 0xFE))
    assert opened[0][4:9] == bytes.fromhex("0300020100")
    assert opened[0][-4:] == b"\0\0\0\1"


def test_what_fills_a_double_word_up_is_no_part_of_a_message() -> None:
    session = _Session("1.2")
    assert message_size(session.finish + b"\0\0\0", session.agreed) == len(session.finish)


@pytest.mark.parametrize("name", HASHES)
@pytest.mark.parametrize("aead", AEADS)
def test_two_ends_that_agree_understand_each_other(name: str, aead: str) -> None:
    one, other = (KeySchedule(0x12, name, b"shared") for _ in range(2))
    secret, _, _ = one.data(one.digest(b"transcript"))
    again, _, _ = other.data(other.digest(b"transcript"))
    assert secret == again
    sender, receiver = one.direction(secret, aead, 7), other.direction(again, aead, 7)
    for number in range(3):
        assert receiver.open(sender.seal(bytes(number)) + bytes(number)) == bytes(number)
    assert one.updated(secret) == other.updated(again) != secret


def test_a_secret_that_was_shared_before_gives_other_keys_since_1_3() -> None:
    schedules = [KeySchedule(version, "SHA-256", b"shared", psk=psk)
                 for version in (0x12, 0x13) for psk in (False, True)]
    first = [bytes(schedule.expand(schedule.handshake(b"")[0], 8, "x")) for schedule in schedules]
    assert first[0] == first[1]
    assert first[2] != first[3]


def _pair() -> tuple[Direction, Direction]:
    return (Direction("AES-256-GCM", bytes(32), bytes(12), 1), Direction("AES-256-GCM", bytes(32), bytes(12), 1))


@given(st.integers(0, 29), st.integers(1, 255))
def test_a_message_that_was_changed_closes_the_direction(at: int, bits: int) -> None:
    sender, receiver = _pair()
    data = bytearray(sender.seal(b"message."))
    data[at] ^= bits
    with pytest.raises(RecordError):
        receiver.open(bytes(data))
    with pytest.raises(RecordError, match="closed"):
        receiver.open(sender.seal(b"message"))


@pytest.mark.parametrize("order", [(1,), (0, 0), (0, 2)], ids=["one lost", "one twice", "one lost later"])
def test_messages_come_once_and_in_their_order(order: tuple[int, ...]) -> None:
    sender, receiver = _pair()
    sent = [sender.seal(b"message") for _ in range(3)]
    for number in order[:-1]:
        receiver.open(sent[number])
    with pytest.raises(RecordError, match="being the next"):
        receiver.open(sent[order[-1]])


@given(st.binary(max_size=60))
def test_any_bytes_open_or_close_the_direction(data: bytes) -> None:
    _, receiver = _pair()
    with pytest.raises(RecordError):
        receiver.open(data)


def test_secrets_are_overwritten() -> None:
    schedule = KeySchedule(0x12, "SHA-384", b"shared")
    schedule.close()
    assert not any(schedule._handshake)
