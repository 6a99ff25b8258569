"""FUSE codecs: what is built is read back, and any bytes give a value or the typed error."""

from __future__ import annotations

import contextlib
import stat

from hypothesis import given
from hypothesis import strategies as st

from chamber.wire import fuse
from chamber.wire.errors import WireError
from chamber.wire.fuse import Attributes, DirectoryEntry, Entry, InHeader, OpenOut

U32 = st.integers(0, (1 << 32) - 1)
U64 = st.integers(0, (1 << 64) - 1)
NANOSECONDS = st.integers(0, (1 << 62) - 1)
ATTRIBUTES = st.builds(Attributes, U64, U64, U64, NANOSECONDS, NANOSECONDS, NANOSECONDS, U32, U32, U32, U32, U32, U32)
ENTRIES = st.builds(Entry, U64, U64, ATTRIBUTES, U64)
NAMES = st.binary(min_size=1, max_size=255)


def test_sizes_are_those_of_the_kernel_s_header() -> None:
    sizes = {"IN_HEADER": 40, "OUT_HEADER": 16, "ATTR": 88, "ENTRY": 40, "ATTR_OUT": 16, "INIT_OUT": 64, "READ": 40,
             "WRITE": 40, "SETATTR": 88, "STATFS": 80, "DIRENT": 24, "RELEASE": 24, "COPY": 56, "LSEEK": 24}
    assert {name: getattr(fuse, name).size for name in sizes} == sizes
    assert fuse.ENTRY_SIZE == 128


def test_an_attribute_s_mode_lies_where_the_header_says() -> None:
    data = Attributes(1, 2, 3, 4, 5, 6, stat.S_IFDIR | 0o755, 7, 8, 9).build()
    assert int.from_bytes(data[60:64], "little") == stat.S_IFDIR | 0o755
    assert int.from_bytes(data[8:16], "little") == 2


@given(st.builds(InHeader, U32, U32, U64, U64, U32, U32), st.binary(max_size=8))
def test_heads(header: InHeader, rest: bytes) -> None:
    assert InHeader.parse(header.build() + rest) == header


@given(ENTRIES)
def test_entries(entry: Entry) -> None:
    assert Entry.parse(entry.build()) == entry


@given(U64)
def test_answers_to_open(number: int) -> None:
    assert OpenOut.parse(OpenOut(number).build()) == OpenOut(number)


@given(st.booleans(), st.data())
def test_directories(plus: bool, data: st.DataObject) -> None:
    entry = ENTRIES if plus else st.none()
    entries = data.draw(st.lists(st.builds(DirectoryEntry, U64, U64, U32, NAMES, entry), max_size=6))
    assert list(fuse.parse_directory(b"".join(e.build() for e in entries), plus=plus)) == entries


@given(st.lists(NAMES.filter(lambda name: b"\0" not in name), min_size=1, max_size=3), st.binary(max_size=8))
def test_names(names: list[bytes], rest: bytes) -> None:
    assert fuse.split_names(b"".join(name + b"\0" for name in names) + rest, len(names)) == names


@given(st.binary(max_size=400), st.integers(0, 300))
def test_any_bytes(data: bytes, at: int) -> None:
    for parse in (InHeader.parse, lambda d: Attributes.parse(d, at), lambda d: Entry.parse(d, at),
                  lambda d: OpenOut.parse(d, at), lambda d: fuse.split_names(d, 2),
                  lambda d: list(fuse.parse_directory(d, plus=True))):
        with contextlib.suppress(WireError):
            assert parse(data) is not None
    # Each entry takes 24 bytes at least, so that a reply can't name more than there is room for.
    entries = 0
    with contextlib.suppress(WireError):
        for _ in fuse.parse_directory(data, plus=False):
            entries += 1
    assert entries <= len(data) // 24
