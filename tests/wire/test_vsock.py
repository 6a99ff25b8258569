from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chamber.wire.errors import WireError
from chamber.wire.vsock import CONFIG, EVENT, HDR, HDR_SIZE, Header, VsockOp, VsockType, free_space, newer_count

U32 = st.integers(0, (1 << 32) - 1)
U64 = st.integers(0, (1 << 64) - 1)


def test_sizes_are_the_specifications() -> None:
    assert (HDR_SIZE, CONFIG.size, EVENT.size) == (44, 8, 4)


def test_layout_and_header_agree() -> None:
    header = Header(3, 2, 0x01020304, 7, 5, VsockType.SEQPACKET, VsockOp.RW, 3, 1 << 18, 99)
    assert header.build() == bytes(HDR.pack(**header._asdict()))
    assert header.build()[:8] == b"\3\0\0\0\0\0\0\0"
    assert HDR.unpack(header.build()) == header._asdict()


@given(st.binary(max_size=64))
def test_any_bytes_are_a_header_or_the_typed_error(data: bytes) -> None:
    if len(data) < HDR_SIZE:
        with pytest.raises(WireError, match="44 bytes"):
            Header.parse(data)
        return
    header = Header.parse(data)
    assert header.build() == data[:HDR_SIZE]
    assert str(header.len) in header.brief


def test_numbers_are_cut_to_their_fields() -> None:
    header = Header(-1, 1 << 64, 1 << 32, 0, -1, 1 << 16, 1, 0, 0, 0)
    assert Header.parse(header.build()) == Header((1 << 64) - 1, 0, 0, 0, (1 << 32) - 1, 0, 1, 0, 0, 0)


@given(U32, U32, st.integers(0, 1 << 20))
def test_free_space_is_never_more_than_the_buffer(alloc: int, sent: int, under_way: int) -> None:
    space = free_space(alloc, sent, sent - under_way & 0xFFFFFFFF)
    assert space == max(alloc - under_way, 0)


@given(U32, st.integers(0, 1 << 20), st.integers(0, 1 << 20), st.integers(1, 1 << 20))
def test_counts_go_forward_to_what_was_sent_and_no_further(known: int, under_way: int, step: int, beyond: int) -> None:
    sent = known + under_way & 0xFFFFFFFF
    taken = min(step, under_way)
    assert newer_count(known + taken & 0xFFFFFFFF, known, sent) == known + taken & 0xFFFFFFFF
    assert newer_count(known - step & 0xFFFFFFFF, known, sent) == known
    assert newer_count(sent + beyond & 0xFFFFFFFF, known, sent) is None
