"""The framing of DMTF's emulators, and what carries SPDM in it."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chamber.wire.errors import WireError
from chamber.wire.spdm_emulator import CLIENT_HELLO, HEAD_SIZE, Frame, FrameCommand, Transport


def test_a_frame_is_what_the_emulators_send() -> None:
    frame = Frame(FrameCommand.TEST, Transport.DOE.number, CLIENT_HELLO)
    assert frame.encode() == bytes.fromhex("0000dead000000020000000e") + b"Client Hello!\0"
    assert Frame.decode(frame.encode()) == frame


@pytest.mark.parametrize(("transport", "secured", "data"), [
    (Transport.DOE, False, "010001000300000010840000"), (Transport.DOE, True, "010002000300000010840000"),
    (Transport.MCTP, False, "0510840000"), (Transport.MCTP, True, "0610840000"),
    (Transport.TCP, False, "0600010510840000"), (Transport.TCP, True, "0600010610840000")])
def test_a_message_is_wrapped_as_its_transport_has_it(transport: Transport, secured: bool, data: str) -> None:
    payload = b"\x10\x84\0\0"
    assert transport.wrap(payload, secured=secured) == bytes.fromhex(data)
    assert transport.unwrap(bytes.fromhex(data)) == (payload, secured)


@pytest.mark.parametrize(("transport", "data"), [
    (Transport.DOE, "010000000300000010840000"), (Transport.DOE, "0200010003000000108400"), (Transport.MCTP, ""),
    (Transport.MCTP, "07"), (Transport.TCP, "06000105108400"), (Transport.TCP, "0600010710840000")])
def test_what_carries_something_else_is_refused(transport: Transport, data: str) -> None:
    with pytest.raises(WireError):
        transport.unwrap(bytes.fromhex(data))


@given(st.binary(max_size=64))
def test_any_bytes_are_a_frame_or_refused(data: bytes) -> None:
    with contextlib.suppress(WireError):
        assert Frame.decode(data).encode() == data
    with contextlib.suppress(WireError):
        assert len(Frame.head(data)) == 3
    assert HEAD_SIZE == 12


@given(st.sampled_from(Transport), st.binary(max_size=64))
def test_any_message_carries_spdm_or_is_refused(transport: Transport, data: bytes) -> None:
    with contextlib.suppress(WireError):
        payload, secured = transport.unwrap(data)
        assert transport.unwrap(transport.wrap(payload, secured=secured))[1] is secured
