"""Messages that are larger than one end takes at once: they come whole, or not at all."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chamber.guest.spdm_requester import SpdmViolation
from chamber.platform.spdm_chunks import Assembly, Cutter
from chamber.wire.errors import WireError
from chamber.wire.spdm import ErrorCode, SpdmCode, message_size
from chamber.wire.spdm_chunks import Chunk, ChunkAck, ChunkGet
from chamber.wire.spdm_messages import PCI_SIG, Summary
from tests.guest.test_spdm import MEASURED, Pair, slot

SMALL = {"transfer_size": 64}


@pytest.mark.parametrize("version", [0x12, 0x13, 0x14])
@pytest.mark.parametrize(("requester", "responder"), [(42, 42), (64, 0x1200), (0x1200, 64), (100, 250)])
def test_a_whole_connection_goes_in_pieces(version: int, requester: int, responder: int) -> None:
    pair = Pair(version=version, responder={"transfer_size": responder}, transfer_size=requester)
    sizes: dict[bool, int] = {True: 0, False: 0}

    def noted(data: bytes, secured: bool, up: bool) -> bytes:
        if not secured and pair.requester.suite is not None:
            sizes[up] = max(sizes[up], len(data))
        return data

    pair.passes = noted
    session = pair.session()
    assert pair.requester.challenge(0, Summary.ALL)
    assert pair.requester.measurements(session=session) == MEASURED or len(
        pair.requester.measurements(session=session)) == len(MEASURED)
    said = bytes(range(256)) * 8
    assert pair.requester.say(session, PCI_SIG, said) == said[::-1]
    pair.requester.update_keys(session)
    pair.requester.end_session(session)
    assert pair.ended == [session]
    # What fills an object up to double words is not the message's.
    assert sizes[True] <= responder + 3
    assert sizes[False] <= requester + 3


def test_a_guest_that_proves_itself_does_so_in_pieces() -> None:
    pair = Pair(version=0x13, identity=slot("P-384"), responder={"transfer_size": 80}, transfer_size=80)
    pair.responder._admits = lambda _chain: True
    session = pair.session()
    assert pair.requester.say(session, PCI_SIG, b"said") == b"dias"


def test_an_end_without_pieces_is_spoken_to_without() -> None:
    for mine, theirs in ((0, 0x10000), (0x10000, 0)):
        pair = Pair(responder={"largest": theirs}, largest=mine)
        session = pair.session()
        assert pair.requester.say(session, PCI_SIG, b"said") == b"dias"
        with pytest.raises(SpdmViolation):
            pair.requester.say(session, PCI_SIG, bytes(0x1300))


def test_version_1_1_has_no_pieces() -> None:
    pair = Pair(version=0x11)
    session = pair.session()
    assert pair.requester.say(session, PCI_SIG, b"said") == b"dias"


# What comes from outside.


def _opened() -> Pair:
    pair = Pair(responder=SMALL, transfer_size=64)
    pair.session()
    return pair


def _ask(pair: Pair, message: bytes) -> bytes:
    answer = pair.responder.respond(message)
    assert answer is not None
    return answer


def _error(answer: bytes) -> ErrorCode:
    assert answer[1] == SpdmCode.ERROR
    return ErrorCode(answer[2])


def test_pieces_out_of_order_are_refused_and_the_transfer_is_over() -> None:
    pair = _opened()
    first = Chunk(1, 0, bytes(20), last=False, total=60).encode(0x12, SpdmCode.CHUNK_SEND)
    third = Chunk(1, 2, bytes(20), last=True).encode(0x12, SpdmCode.CHUNK_SEND)
    assert _ask(pair, first)[1] == SpdmCode.CHUNK_SEND_ACK
    assert _error(_ask(pair, third)) is ErrorCode.INVALID_REQUEST
    second = Chunk(1, 1, bytes(20), last=False).encode(0x12, SpdmCode.CHUNK_SEND)
    assert _error(_ask(pair, second)) is ErrorCode.UNEXPECTED_REQUEST


@pytest.mark.parametrize("chunk", [
    Chunk(1, 0, bytes(20), last=False, total=1 << 20), Chunk(1, 0, b"", last=False, total=60),
    Chunk(1, 0, bytes(20), last=True, total=60), Chunk(1, 0, bytes(20), last=False, total=20),
    Chunk(1, 0, bytes(20), last=False, total=10)])
def test_sizes_that_do_not_add_up_are_refused(chunk: Chunk) -> None:
    assert _error(_ask(_opened(), chunk.encode(0x12, SpdmCode.CHUNK_SEND))) is ErrorCode.INVALID_REQUEST


def test_a_piece_of_pieces_is_refused() -> None:
    inner = ChunkGet(1, 0).encode(0x12)
    chunk = Chunk(1, 0, inner, last=True, total=len(inner)).encode(0x12, SpdmCode.CHUNK_SEND)
    assert _error(_ask(_opened(), chunk)) is ErrorCode.INVALID_REQUEST


def test_what_is_not_there_can_not_be_fetched() -> None:
    pair = _opened()
    assert _error(_ask(pair, ChunkGet(9, 0).encode(0x12))) is ErrorCode.UNEXPECTED_REQUEST
    large = _ask(pair, bytes((0x12, SpdmCode.GET_CERTIFICATE, 0, 0, 0, 0, 0xFF, 0xFF)))
    assert _error(large) is ErrorCode.LARGE_RESPONSE
    assert _error(_ask(pair, ChunkGet(large[4], 99).encode(0x12))) is ErrorCode.INVALID_REQUEST
    assert _ask(pair, ChunkGet(large[4], 0).encode(0x12))[1] == SpdmCode.CHUNK_RESPONSE


@pytest.mark.parametrize("lie", [
    lambda data: data[:3] + bytes((data[3] ^ 1,)) + data[4:], lambda data: data[:4] + b"\7" + data[5:],
    lambda data: data[:8] + bytes(4) + data[12:], lambda data: data[:12] + b"\xff\xff\xff\x7f" + data[16:],
    lambda data: data[:2] + b"\1" + data[3:], lambda data: data[:7]])
def test_a_device_that_lies_about_pieces_is_given_up(lie: object) -> None:
    pair = Pair(responder=SMALL, transfer_size=64)
    pair.requester.connect()
    pair.passes = lambda data, _secured, up: (
        lie(data) if not up and data[1] == SpdmCode.CHUNK_RESPONSE else data)  # type: ignore[operator]
    with pytest.raises(SpdmViolation):
        pair.requester.certificates(0)


@pytest.mark.parametrize("lie", [
    lambda data: data[:3] + bytes((data[3] ^ 1,)) + data[4:], lambda data: data[:4] + b"\7" + data[5:],
    lambda data: data[:6] + bytes((0x12, 0x7F, 1, 0)), lambda data: data[:5]])
def test_a_device_that_acknowledges_something_else_is_given_up(lie: object) -> None:
    pair = Pair(responder=SMALL)
    pair.requester.connect()
    pair.passes = lambda data, _secured, up: (
        lie(data) if not up and data[1] == SpdmCode.CHUNK_SEND_ACK else data)  # type: ignore[operator]
    pair.requester.digests()
    pair.requester.certificates(0)
    with pytest.raises(SpdmViolation):
        pair.requester.start_session(0)


@pytest.mark.parametrize(("version", "get", "ack", "chunk"), [
    (0x13, "13860005 0201", "13050005 0201 aabb", "13850105 0201 0000 02000000 aabb"),
    (0x14, "14860005 02010000", "14050005 02010000 aabb", "14850105 02010000 02000000 aabb")])
def test_the_width_of_numbers_is_the_versions(version: int, get: str, ack: str, chunk: str) -> None:
    asked, piece = ChunkGet(5, 0x102), Chunk(5, 0x102, b"\xaa\xbb", last=True)
    answer = ChunkAck(5, 0x102, b"\xaa\xbb")
    assert asked.encode(version) == bytes.fromhex(get)
    assert answer.encode(version) == bytes.fromhex(ack)
    assert piece.encode(version, SpdmCode.CHUNK_SEND) == bytes.fromhex(chunk)
    assert ChunkGet.decode(bytes.fromhex(get)) == asked
    assert ChunkAck.decode(bytes.fromhex(ack)) == answer
    assert Chunk.decode(bytes.fromhex(chunk), SpdmCode.CHUNK_SEND) == piece


@given(st.binary(max_size=400), st.integers(42, 120), st.sampled_from([0x12, 0x14]))
def test_what_is_cut_is_put_together_again(data: bytes, size: int, version: int) -> None:
    if not data:
        return
    cutter, assembly = Cutter(7, data, size), Assembly(7, 400)
    sequence = 0
    while True:
        encoded = cutter.piece(sequence).encode(version, SpdmCode.CHUNK_SEND)
        assert len(encoded) <= size
        assert message_size(encoded + bytes(3)) == len(encoded)
        whole = assembly.take(Chunk.decode(encoded, SpdmCode.CHUNK_SEND))
        if whole is not None:
            assert whole == data
            with pytest.raises(WireError):
                cutter.piece(sequence + 1)
            return
        sequence += 1


@given(st.binary(max_size=80), st.sampled_from([SpdmCode.CHUNK_SEND, SpdmCode.CHUNK_RESPONSE, SpdmCode.CHUNK_SEND_ACK,
                                                SpdmCode.CHUNK_GET]), st.sampled_from([0x12, 0x14]))
def test_any_bytes_are_a_piece_or_a_typed_error(data: bytes, code: SpdmCode, version: int) -> None:
    message = bytes((version, code)) + data
    for decode in (lambda: Chunk.decode(message, code), lambda: ChunkAck.decode(message),
                   lambda: ChunkGet.decode(message)):
        try:
            decode()
        except WireError:
            continue


@given(st.lists(st.binary(min_size=1, max_size=60), max_size=12))
@settings(max_examples=60, deadline=None)
def test_any_pieces_are_answered(bodies: list[bytes]) -> None:
    pair = _opened()
    for body in bodies:
        answer = _ask(pair, bytes((0x12, SpdmCode.CHUNK_SEND if body[0] & 1 else SpdmCode.CHUNK_GET)) + body)
        assert answer[1] in {SpdmCode.ERROR, SpdmCode.CHUNK_SEND_ACK, SpdmCode.CHUNK_RESPONSE}
