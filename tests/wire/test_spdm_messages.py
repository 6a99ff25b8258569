"""SPDM's messages as values, held against recorded sessions, and any bytes."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chamber.wire.doe import DataObject, DoeType
from chamber.wire.errors import WireError
from chamber.wire.spdm import Agreed, SpdmCode, message_size
from chamber.wire.spdm_messages import (
    ChallengeAuth,
    Digests,
    KeyExchange,
    KeyExchangeAnswer,
    Measurement,
    Measurements,
    PskExchange,
    PskExchangeAnswer,
    VendorDefined,
    offered_versions,
    parse_finish,
    selected_version,
    version_choice,
    version_offer,
)
from chamber.wire.spdm_negotiation import Algorithms, Capabilities, Capability, parse_versions, versions

if TYPE_CHECKING:
    from collections.abc import Callable

_SESSIONS = json.loads((Path(__file__).parent.parent / "platform" / "spdm_sessions.json").read_text(encoding="utf-8"))
AGREED = Agreed(48, 96, 96)


def _clear(version: str) -> dict[int, bytes]:
    """Return the last message of each code that a session said in the clear."""
    objects = [DataObject.decode(bytes.fromhex(text)) for text in _SESSIONS[version]["objects"]]
    messages = [o.payload for o in objects if o.type == DoeType.SPDM]
    agreed = Agreed(48, 96, 96, clear_handshake=True,
                    multi_key=bool(next(m for m in messages if m[1] == SpdmCode.ALGORITHMS)[7] & 0x10))
    found: dict[int, bytes] = {}
    for message in messages:
        request = found.get(SpdmCode.KEY_EXCHANGE, b"") if message[1] == SpdmCode.KEY_EXCHANGE_RSP else b""
        found[message[1]] = message[:message_size(message, agreed, request)]
    return found


@pytest.mark.parametrize("version", _SESSIONS)
def test_a_stock_ends_messages_are_read_and_said_again(version: str) -> None:
    said = _clear(version)
    number = int(version.replace(".", ""), 16)
    assert number in parse_versions(said[SpdmCode.VERSION])
    for code in (SpdmCode.GET_CAPABILITIES, SpdmCode.CAPABILITIES):
        made = Capabilities.decode(said[code], code)
        assert made.version == number
        assert made.flags & Capability.KEY_EX
        assert made.encode(code)[4:] == said[code][4:]
    chosen = Algorithms.decode(said[SpdmCode.ALGORITHMS], SpdmCode.ALGORITHMS)
    assert (chosen.hash, chosen.asymmetric, chosen.exchange, chosen.aead) == (2, 0x80, 0x10, 2)
    agreed = Agreed(48, 96, 96, clear_handshake=True, multi_key=bool(chosen.other & 0x10))
    request = KeyExchange.decode(said[SpdmCode.KEY_EXCHANGE], agreed)
    assert request.encode() == said[SpdmCode.KEY_EXCHANGE]
    assert 0x1100 in offered_versions(number, request.opaque)
    answer = KeyExchangeAnswer.decode(said[SpdmCode.KEY_EXCHANGE_RSP], agreed, request.summary)
    assert answer.signed + answer.signature + answer.proof == said[SpdmCode.KEY_EXCHANGE_RSP]
    assert selected_version(number, answer.opaque) >> 12 == 1
    digests = Digests.decode(said[SpdmCode.DIGESTS], agreed)
    assert 0 in digests.digests
    _, proof = parse_finish(said[SpdmCode.FINISH_RSP], SpdmCode.FINISH_RSP, proof_size=48)
    assert len(proof) == 48


@pytest.mark.parametrize("version", [0x11, 0x12, 0x13, 0x14])
def test_what_was_made_is_read_again(version: int) -> None:
    assert parse_versions(versions((0x11, 0x12))) == (0x11, 0x12)
    context = bytes(8) if version >= 0x13 else b""
    blocks = (Measurement(1, 0, b"h" * 48), Measurement(0xFE, 5, b"raw", raw=True))
    measured = Measurements(version, 0, 2, blocks, b"n" * 32, b"op", context, b"s" * 96)
    assert Measurements.decode(measured.signed + measured.signature, AGREED, signed=True) == measured
    auth = ChallengeAuth(version, 1, 3, b"c" * 48, b"n" * 32, b"m" * 48, b"", context, b"s" * 96)
    assert ChallengeAuth.decode(auth.signed + auth.signature, AGREED, summary=1) == auth  # type: ignore[arg-type]
    asked = PskExchange(version, 0, 5, b"hint", b"c" * 48, version_offer(version))
    assert PskExchange.decode(asked.encode()) == asked
    answered = PskExchangeAnswer(version, 9, 6, b"m" * 48, b"c" * 48, version_choice(version), b"p" * 48)
    assert PskExchangeAnswer.decode(answered.proven + answered.proof, AGREED, 1) == answered
    digests = Digests(version, {0: b"0" * 48, 3: b"3" * 48})
    assert Digests.decode(digests.encode(), AGREED) == digests
    assert offered_versions(version, version_offer(version)) == (0x1100,)
    assert selected_version(version, version_choice(version)) == 0x1100
    said = VendorDefined(version, 3, b"\x01\0", b"payload")
    assert VendorDefined.decode(said.encode(SpdmCode.VENDOR_DEFINED_REQUEST), SpdmCode.VENDOR_DEFINED_REQUEST) == said


def test_the_large_form_of_a_vendors_message_is_read() -> None:
    data = bytes((0x14, 0xFE, 0x80, 0)) + b"\x03\0\x02\x01\0" + b"\0\0" + (4).to_bytes(4, "little") + b"said"
    assert VendorDefined.decode(data, SpdmCode.VENDOR_DEFINED_REQUEST).payload == b"said"


@pytest.mark.parametrize(("record", "count"), [
    (b"\x01\x01\x04\x00\x00\x01\x00", 1), (b"\x01\x02\x04\x00\x00\x01\x00x", 1), (b"\x01\x01\x04\x00\x00\x02\x00x", 1),
    (b"\x01\x01\x02\x00\x00\x00", 1), (b"\x01\x01\x04\x00\x00\x01\x00xy", 1), (b"", 1),
    (b"\x01\x01\x04\x00\x00\x01\x00x" * 2, 2)])
def test_a_record_that_does_not_hold_together_is_refused(record: bytes, count: int) -> None:
    data = bytes((0x12, 0x60, 0, 0, count)) + len(record).to_bytes(3, "little") + record + bytes(34)
    with pytest.raises(WireError):
        Measurements.decode(data, AGREED, signed=False)


@pytest.mark.parametrize(("flags", "transfer", "message"), [(0, 41, 41), (0, 100, 101), (1 << 17, 100, 99)])
def test_sizes_that_can_not_be_are_refused(flags: int, transfer: int, message: int) -> None:
    made = Capabilities(0x12, Capability(flags), 0, transfer, message).encode(SpdmCode.CAPABILITIES)
    with pytest.raises(WireError):
        Capabilities.decode(made, SpdmCode.CAPABILITIES)


_DECODERS: dict[SpdmCode, Callable[[bytes], object]] = {
    SpdmCode.VERSION: parse_versions,
    SpdmCode.CAPABILITIES: lambda d: Capabilities.decode(d, SpdmCode.CAPABILITIES),
    SpdmCode.ALGORITHMS: lambda d: Algorithms.decode(d, SpdmCode.ALGORITHMS),
    SpdmCode.NEGOTIATE_ALGORITHMS: lambda d: Algorithms.decode(d, SpdmCode.NEGOTIATE_ALGORITHMS),
    SpdmCode.DIGESTS: lambda d: Digests.decode(d, AGREED),
    SpdmCode.CHALLENGE_AUTH: lambda d: ChallengeAuth.decode(d, AGREED, 1),  # type: ignore[arg-type]
    SpdmCode.MEASUREMENTS: lambda d: Measurements.decode(d, AGREED, signed=True),
    SpdmCode.KEY_EXCHANGE: lambda d: KeyExchange.decode(d, AGREED),
    SpdmCode.KEY_EXCHANGE_RSP: lambda d: KeyExchangeAnswer.decode(d, AGREED, 1),
    SpdmCode.PSK_EXCHANGE: PskExchange.decode,
    SpdmCode.PSK_EXCHANGE_RSP: lambda d: PskExchangeAnswer.decode(d, AGREED, 1),
    SpdmCode.VENDOR_DEFINED_RESPONSE: lambda d: VendorDefined.decode(d, SpdmCode.VENDOR_DEFINED_RESPONSE),
    SpdmCode.FINISH_RSP: lambda d: parse_finish(d, SpdmCode.FINISH_RSP, proof_size=48)}


@given(st.sampled_from(list(_DECODERS)), st.integers(0x10, 0x15), st.binary(max_size=400))
def test_any_bytes_give_a_value_or_that_error(code: SpdmCode, version: int, data: bytes) -> None:
    with contextlib.suppress(WireError):
        assert _DECODERS[code](bytes((version, code)) + data) is not None


@given(st.sampled_from([0x11, 0x12]), st.binary(max_size=60))
def test_any_opaque_data_give_versions(version: int, opaque: bytes) -> None:
    assert all(0 <= number < 1 << 16 for number in offered_versions(version, opaque))
    assert 0 <= selected_version(version, opaque) < 1 << 16


@given(st.sampled_from(list(SpdmCode)), st.integers(0x10, 0x14), st.binary(max_size=300), st.booleans())
def test_any_message_has_a_length_or_is_refused(code: SpdmCode, version: int, data: bytes, clear: bool) -> None:
    message = bytes((version, code)) + data
    request = bytes((version, SpdmCode.KEY_EXCHANGE, 1, 1))
    with contextlib.suppress(WireError):
        assert 4 <= message_size(message, Agreed(48, 96, 96, clear_handshake=clear), request) <= len(message)
