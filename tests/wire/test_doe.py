"""Data objects: those that DMTF's emulator sends, and any bytes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chamber.wire.doe import (
    MOST_WORDS,
    PCI_SIG,
    DataObject,
    DiscoveryRequest,
    DiscoveryResponse,
    DoeType,
    object_words,
)
from chamber.wire.errors import WireError


def test_discovery_as_it_was_seen() -> None:
    request = DataObject(PCI_SIG, DoeType.DISCOVERY, DiscoveryRequest(0).encode())
    assert request.encode() == bytes.fromhex("01000000 03000000 00000000")
    response = DataObject.decode(bytes.fromhex("01000000 03000000 01000001"))
    assert DiscoveryResponse.decode(response.payload) == DiscoveryResponse(PCI_SIG, DoeType.DISCOVERY, 1)


@given(st.integers(0, 0xFFFF), st.integers(0, 0xFF), st.binary(max_size=70))
def test_what_is_built_is_read_again_but_for_its_padding(vendor: int, kind: int, payload: bytes) -> None:
    data = DataObject(vendor, kind, payload).encode()
    assert not len(data) % 4
    assert DataObject.decode(data) == DataObject(vendor, kind, payload.ljust(-(-len(payload) // 4) * 4, b"\0"))


@given(st.binary(max_size=40))
def test_any_bytes_are_an_object_or_break_a_rule(data: bytes) -> None:
    try:
        read = DataObject.decode(data)
    except WireError:
        return
    assert DataObject.decode(read.encode()) == read


@given(st.binary(max_size=8))
def test_any_payload_is_discovery_or_breaks_a_rule(payload: bytes) -> None:
    for kind in (DiscoveryRequest, DiscoveryResponse):
        if len(payload) == 4:
            kind.decode(payload)
        else:
            with pytest.raises(WireError, match="one double word"):
                kind.decode(payload)


def test_the_longest_object_says_that_its_length_is_0() -> None:
    longest = DataObject(1, 1, bytes((MOST_WORDS - 2) * 4))
    data = longest.encode()
    assert data[4:8] == bytes(4)
    assert DataObject.decode(data) == longest
    with pytest.raises(ValueError, match="double words"):
        DataObject(1, 1, bytes((MOST_WORDS - 1) * 4)).encode()


@pytest.mark.parametrize(("second", "words"), [(0, MOST_WORDS), (2, 2), (0xFFF << 20 | 5, 5), (1, None)])
def test_reserved_bits_of_a_length_are_none_of_it(second: int, words: int | None) -> None:
    if words is None:
        with pytest.raises(WireError, match="no shorter"):
            object_words(second)
    else:
        assert object_words(second) == words
