"""Packets of PCI Express: written and read alike, and any bytes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chamber.wire.errors import WireError
from chamber.wire.tlp import MAX_PAYLOAD, Completion, CompletionStatus, MemoryRead, MemoryWrite, decode_packet

_ADDRESSES = st.one_of(st.integers(0, 1 << 34), st.integers(0, (1 << 64) - 1))


@st.composite
def _spans(draw: st.DrawFn) -> tuple[int, int]:
    address = draw(_ADDRESSES)
    return address, draw(st.integers(1, MAX_PAYLOAD - address % MAX_PAYLOAD))


@given(_spans(), st.integers(0, 0xFFFF), st.integers(0, 0xFF))
def test_a_memory_request_is_read_back(span: tuple[int, int], requester: int, tag: int) -> None:
    address, length = span
    for packet in (MemoryRead(requester, tag, address, length), MemoryWrite(requester, address, bytes(length))):
        header, payload = packet.encode()
        assert len(header) == (16 if address >> 32 else 12)
        assert decode_packet(header, payload) == packet


@given(st.binary(max_size=300), st.integers(0, 0x7F), st.sampled_from(CompletionStatus))
def test_a_completion_is_read_back(data: bytes, lower: int, status: CompletionStatus) -> None:
    packet = Completion(0x100, 8, 3, data, status, lower)
    assert decode_packet(*packet.encode()) == packet


def test_a_write_of_two_bytes_across_words_names_them_by_byte_enables() -> None:
    header, payload = MemoryWrite(0x0100, 0x1003, b"ab").encode()
    # Two double words, first byte enables 1000b, last 0001b (2.2.5).
    assert header == bytes.fromhex("40000002 01000018 00001000")
    assert payload == b"\0\0\0ab\0\0\0"


@pytest.mark.parametrize(("address", "length"), [(0xFFF, 2), (0, 0), (1, MAX_PAYLOAD)])
def test_no_packet_is_made_that_is_none(address: int, length: int) -> None:
    with pytest.raises(ValueError, match="crosses no page"):
        MemoryRead(0, 0, address, length).encode()


@pytest.mark.parametrize(("header", "payload", "why"), [
    ("40000001 0000000f", "", "three or four"), ("44000001 0000000f 00000000", "00000000", "no known type"),
    ("60000001 0000000f 00000000", "00000000", "as long as its form"),
    ("40000002 000000ff 00000000", "00000000", "as long as the header"),
    ("00000001 000000ff 00000000", "", "fit the length"), ("00000002 0000000f 00000000", "", "fit the length"),
    ("00000001 00000000 00000000", "", "fit the length"), ("00000001 00000005 00000000", "", "gaps"),
    ("00000002 00000017 00000000", "", "gaps"),
    ("00000002 000000ff 00000ffc", "", "crosses a page"),
    ("4a000001 00006004 00000000", "00000000", "reserved"),
    ("4a000001 00000008 00000000", "00000000", "byte count")])
def test_what_is_no_packet_is_refused(header: str, payload: str, why: str) -> None:
    with pytest.raises(WireError, match=why):
        decode_packet(bytes.fromhex(header), bytes.fromhex(payload))


@given(st.binary(min_size=12, max_size=16), st.binary(max_size=40))
def test_any_bytes_are_a_packet_or_an_error(header: bytes, payload: bytes) -> None:
    try:
        packet = decode_packet(header, payload)
    except WireError:
        return
    assert decode_packet(*packet.encode()) == packet
