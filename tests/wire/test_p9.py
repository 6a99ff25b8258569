"""Messages of 9P2000.L against bytes written by hand, and against bytes from anybody."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chamber.wire.errors import WireError
from chamber.wire.p9 import CONFIG, MAX_NAMES, NO_FID, NO_TAG, VERSION, Qid
from chamber.wire.p9_messages import (
    FIELDS,
    HEADER,
    Dirent,
    Kind,
    MessageType,
    decode,
    dirents,
    encode,
    fixed_size,
    offset_of,
    pack_dirent,
)

QIDS = st.builds(Qid, st.integers(0, 255), st.integers(0, 2**32 - 1), st.integers(0, 2**64 - 1))
VALUES: dict[Kind, st.SearchStrategy[Any]] = {
    Kind.U8: st.integers(0, 2**8 - 1),
    Kind.U16: st.integers(0, 2**16 - 1),
    Kind.U32: st.integers(0, 2**32 - 1),
    Kind.U64: st.integers(0, 2**64 - 1),
    Kind.STRING: st.binary(max_size=40),
    Kind.QID: QIDS,
    Kind.DATA: st.binary(max_size=40),
    Kind.STRINGS: st.lists(st.binary(max_size=8), max_size=MAX_NAMES).map(tuple),
    Kind.QIDS: st.lists(QIDS, max_size=MAX_NAMES).map(tuple),
}


@pytest.mark.parametrize(("message", "expected"), [
    (encode(MessageType.TVERSION, NO_TAG, msize=8192, version=VERSION),
     "15000000 64 ffff 00200000 0800 3950323030302e4c"),
    (encode(MessageType.TATTACH, 1, fid=0, afid=NO_FID, uname=b"", aname=b"/x", n_uname=1000),
     "19000000 68 0100 00000000 ffffffff 0000 0200 2f78 e8030000"),
    (encode(MessageType.TWALK, 2, fid=0, newfid=1, names=(b"a", b"bc")),
     "18000000 6e 0200 00000000 01000000 0200 0100 61 0200 6263"),
    (encode(MessageType.RWALK, 2, qids=(Qid(0x80, 1, 2),)),
     "16000000 6f 0200 0100 80 01000000 0200000000000000"),
    (encode(MessageType.RREAD, 3, data=b"data"), "0f000000 75 0300 04000000 64617461"),
    (encode(MessageType.RLERROR, 4, ecode=2), "0b000000 07 0400 02000000"),
    (pack_dirent(Dirent(Qid(0, 1, 2), 3, 8, b"name")),
     "00 01000000 0200000000000000 0300000000000000 08 0400 6e616d65"),
])
def test_messages_are_the_bytes_of_the_protocol(message: bytes, expected: str) -> None:
    assert message == bytes.fromhex(expected)


@pytest.mark.parametrize(("kind", "size"), [
    (MessageType.RGETATTR, 160), (MessageType.RSTATFS, 67), (MessageType.TSETATTR, 67), (MessageType.RREAD, 11),
    (MessageType.RREADDIR, 11), (MessageType.RLOPEN, 24), (MessageType.RLOCK, 8), (MessageType.TLOCK, 38),
])
def test_sizes(kind: MessageType, size: int) -> None:
    assert fixed_size(kind) == size


def test_fields_have_places() -> None:
    assert offset_of(MessageType.RGETATTR, "qid") == 15
    assert offset_of(MessageType.RVERSION, "version") == 11
    for name in ("client_id2", "name"):
        with pytest.raises(KeyError):
            offset_of(MessageType.TLOCK, name)
    with pytest.raises(KeyError):
        offset_of(MessageType.TLCREATE, "mode")


def test_every_request_has_a_reply() -> None:
    for kind in MessageType:
        assert kind.is_request or kind - 1 in set(MessageType) or kind is MessageType.RLERROR
        assert not kind.is_request or kind + 1 in set(MessageType)
    assert set(FIELDS) == set(MessageType)


@settings(max_examples=200)
@given(st.data(), st.sampled_from(list(MessageType)), st.integers(0, NO_TAG))
def test_a_message_comes_back_as_it_was(data: st.DataObject, kind: MessageType, tag: int) -> None:
    values = {member.name: data.draw(VALUES[member.kind]) for member in FIELDS[kind]}
    message = decode(encode(kind, tag, **values))
    assert (message.type, message.tag, dict(message.values)) == (kind, tag, values)


@settings(max_examples=300)
@given(st.binary(max_size=120), st.sampled_from(list(MessageType)), st.booleans())
def test_any_bytes_are_a_message_or_an_error(body: bytes, kind: MessageType, header: bool) -> None:
    data = HEADER.pack(HEADER.size + len(body), kind, 1) + body if header else body
    try:
        message = decode(data)
    except WireError:
        return
    again = encode(message.type, message.tag, **message.values)
    assert again == data or any(m.optional for m in FIELDS[message.type])


@settings(max_examples=200)
@given(st.binary(max_size=120))
def test_any_bytes_are_entries_or_an_error(data: bytes) -> None:
    try:
        entries = list(dirents(data))
    except WireError:
        return
    assert b"".join(map(pack_dirent, entries)) == data


@pytest.mark.parametrize("data", [
    b"", b"\x07\0\0\0\x6d\0", bytes.fromhex("08000000 6d 0000"), bytes.fromhex("08000000 6d 0000 00"),
    bytes.fromhex("07000000 ff 0000"), bytes.fromhex("07000000 6a 0000"), bytes.fromhex("0a000000 6e 0000 000000"),
    bytes.fromhex("12000000 6e 0200 00000000 01000000 ffff 0a"), bytes.fromhex("0b000000 75 0300 ffffffff"),
])
def test_what_is_no_message_is_refused(data: bytes) -> None:
    with pytest.raises(WireError):
        decode(data)


def test_datasync_may_be_missing() -> None:
    short = bytes.fromhex("0b000000 32 0100 05000000")
    assert decode(short).values == {"fid": 5, "datasync": 0}


def test_what_does_not_fit_is_not_sent() -> None:
    with pytest.raises(WireError):
        encode(MessageType.TMKDIR, 1, dfid=0, name=b"x" * 65536, mode=0, gid=0)
    with pytest.raises(WireError):
        encode(MessageType.TWALK, 1, fid=0, newfid=1, names=(b"x",) * 17)
    with pytest.raises(OverflowError):
        encode(MessageType.TCLUNK, 1, fid=1 << 32)


def test_configuration_space() -> None:
    data = CONFIG.pack(tag_len=4, tag=b"root")
    assert bytes(data[:6]) == b"\x04\0root"
    assert CONFIG.size == 34
