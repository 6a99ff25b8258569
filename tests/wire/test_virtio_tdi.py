"""DEVICE_SPECIFIC_INFO of virtio: the vector of its specification, its rules, and any bytes."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chamber.wire.errors import WireError
from chamber.wire.virtio_tdi import Guarantee, Location, VirtioTdiInfo

_CHAPTER = Path(__file__).parents[2] / "docs" / "device-specific-info.md"

_U64 = st.integers(0, 2**64 - 1)
_LOCATIONS = st.builds(Location, st.integers(0, 255), st.integers(0, 255), _U64, _U64, st.integers(0, 255),
                       st.integers(0, 2**32 - 1))
_INFOS = st.builds(VirtioTdiInfo, st.integers(0, 0xFFFF), st.builds(Guarantee, st.integers(0, 31)),
                   st.lists(_LOCATIONS, max_size=6).map(tuple), st.integers(0, 2**128 - 1),
                   st.lists(st.integers(0, 0xFFFF), max_size=6).map(tuple), st.binary(max_size=50))

VECTOR = VirtioTdiInfo(
    4, Guarantee(0xF),
    (Location(1, 0, 0, 64), Location(2, 0, 0x3000, 4, multiplier=4), Location(3, 0, 0x1000, 1),
     Location(4, 0, 0x2000, 4)),
    1 << 32 | 1 << 33, (256,), b"")


def test_the_vector_of_the_chapter() -> None:
    (block,) = re.findall(r"```vector\n(.*?)```", _CHAPTER.read_text(encoding="utf-8"), re.DOTALL)
    data = bytes.fromhex("".join(line.split("#")[0] for line in block.splitlines()))
    assert VirtioTdiInfo.decode(data) == VECTOR
    assert VECTOR.encode() == data


@given(_INFOS)
def test_what_is_built_is_read_again(info: VirtioTdiInfo) -> None:
    assert VirtioTdiInfo.decode(info.encode()) == info


@given(st.binary(max_size=120) | st.builds(
    lambda info, at, byte: (data := info.encode())[:at % len(data)] + bytes((byte,)) + data[at % len(data) + 1:],
    _INFOS, st.integers(0, 1000), st.integers(0, 255)))
def test_any_bytes_are_information_or_break_a_rule(data: bytes) -> None:
    try:
        read = VirtioTdiInfo.decode(data)
    except WireError:
        return
    assert VirtioTdiInfo.decode(read.encode()).structures == read.structures


def _with(data: bytes, more: bytes, at: int | None = None) -> bytes:
    """Put a record in, at the end by default, with the length made right."""
    at = len(data) if at is None else at
    data = data[:at] + more + data[at:]
    return data[:8] + len(data).to_bytes(4, "little") + data[12:]


def test_a_record_of_a_later_version_is_left_out() -> None:
    later = _with(VECTOR.encode(), bytes.fromhex("09000500 0102030405 000000"))
    assert VirtioTdiInfo.decode(later) == VECTOR


@pytest.mark.parametrize(("data", "rule"), [
    (b"", "is 16 bytes"),
    (b"\0" * 4 + VECTOR.encode()[4:], "virtio's"),
    (VECTOR.encode()[:4] + b"\2" + VECTOR.encode()[5:], "major version"),
    (VECTOR.encode() + bytes(4), "as long as it says"),
    (_with(VECTOR.encode(), bytes.fromhex("09800000")), "must be understood"),
    (_with(VECTOR.encode(), bytes.fromhex("04800000")), "each once"),
    (_with(VECTOR.encode(), bytes.fromhex("02000000")), "each once"),
    (_with(VECTOR.encode(), bytes.fromhex("09000500 0102030405 000001")), "zero"),
    (_with(VECTOR.encode(), bytes.fromhex("0900ff00 01")), "ends in"),
    (_with(VECTOR.encode(), b"\x09\0"), "has a head"),
    (VECTOR.encode()[:8] + (16).to_bytes(4, "little") + VECTOR.encode()[12:16], "is there"),
], ids=["empty", "magic", "version", "longer", "mandatory", "twice", "twice, of another kind", "padding", "beyond",
        "cut", "none"])
def test_broken_rules_are_named(data: bytes, rule: str) -> None:
    with pytest.raises(WireError, match=rule):
        VirtioTdiInfo.decode(data)
