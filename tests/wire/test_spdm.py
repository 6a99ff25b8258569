"""How long SPDM messages are: any bytes have a length or break a rule."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chamber.wire.errors import WireError
from chamber.wire.spdm import Agreed, SpdmCode, certificate_portion, message_size
from chamber.wire.spdm_secured import SecuredMessage

_CODES = st.sampled_from([*SpdmCode, 0, 0x55, 0xFF])
_AGREED = st.builds(Agreed, st.sampled_from([32, 48, 64]), st.sampled_from([64, 96, 132]),
                    st.sampled_from([64, 96, 256]), st.booleans(), st.booleans())


@given(st.sampled_from([0x10, 0x11, 0x12, 0x14, 0xFF]), _CODES, st.binary(max_size=400), st.none() | _AGREED,
       st.binary(max_size=8) | st.just(bytes((0x12, SpdmCode.KEY_EXCHANGE, 0xFF, 0))))
def test_any_bytes_have_a_length_or_break_a_rule(
        version: int, code: int, rest: bytes, agreed: Agreed | None, request: bytes) -> None:
    data = bytes((version, code)) + rest
    try:
        size = message_size(data, agreed, request)
    except WireError:
        return
    assert 4 <= size <= len(data)
    # What fills it up does not change it, but an error is as long as what carries it.
    assert code == SpdmCode.ERROR or message_size(data[:size], agreed, request) == size


@given(st.binary(max_size=60))
def test_any_bytes_are_a_portion_or_break_a_rule(data: bytes) -> None:
    try:
        portion = certificate_portion(b"\x12\x02" + data)
    except WireError:
        return
    assert len(portion.data) <= len(data)


@given(st.binary(max_size=60))
def test_any_bytes_are_a_secured_message_or_break_a_rule(data: bytes) -> None:
    try:
        message = SecuredMessage.decode(data)
    except WireError:
        return
    assert data.startswith(message.encode())


def test_a_message_that_needs_more_to_be_known_is_not_guessed_at() -> None:
    with pytest.raises(WireError, match="agreed"):
        message_size(bytes((0x12, SpdmCode.FINISH, 0, 0)) + bytes(60))
    with pytest.raises(WireError, match="beside its request"):
        message_size(bytes((0x12, SpdmCode.KEY_EXCHANGE_RSP, 0, 0)) + bytes(600), Agreed(48, 96, 96))
