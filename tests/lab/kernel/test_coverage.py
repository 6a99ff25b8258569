"""The shared map, and the way from addresses to lines."""

from __future__ import annotations

import re
import struct
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chamber.lab.kernel import places
from chamber.lab.kernel.coverage import EDGES, CoverageMap
from chamber.lab.kernel.places import SITE, Places, locate
from chamber.wire.virtio import DeviceType

if TYPE_CHECKING:
    from collections.abc import Iterator

HEADER = Path(places.__file__).parent / "tree/coverage.h"


@pytest.fixture
def shared(tmp_path: Path) -> Iterator[CoverageMap]:
    with CoverageMap(tmp_path / "map") as opened:
        yield opened
    assert not (tmp_path / "map").exists()


def defined(name: str) -> str:
    found = re.search(rf"#define {name} (.*?)(?: /\*.*)?$", HEADER.read_text(encoding="ascii"), re.MULTILINE)
    assert found is not None
    return found[1]


def test_both_sides_agree_on_the_file(shared: CoverageMap) -> None:
    assert defined("CHAMBER_EDGES") == f"(1 << {EDGES.bit_length() - 1})"
    words = {name: int(defined(f"CHAMBER_WORD_{name}")) for name in ("MAGIC", "ON", "LOST")}
    with shared.path.open("r+b") as kernel:
        kernel.seek(8 * words["MAGIC"])
        kernel.write(int(defined("CHAMBER_MAGIC").removesuffix("ULL"), 16).to_bytes(8, "little"))
        kernel.seek(8 * words["LOST"])
        kernel.write(struct.pack("<Q", 3))
        kernel.flush()
        assert shared.attached
        assert shared.lost == 3
        shared.count(on=True)
        kernel.seek(8 * words["ON"])
        assert kernel.read(8) == struct.pack("<Q", 1)


@given(content=st.binary(max_size=4096))
def test_any_bytes_are_counts_and_addresses(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    with CoverageMap(tmp_path_factory.mktemp("map") / "map") as shared:
        with shared.path.open("r+b") as kernel:
            kernel.write(content)
            kernel.seek(4096 + EDGES)
            kernel.write(content)
        assert len(shared.places()) <= 4096 // 8 + 1
        shared.clear_edges()
        assert not any(shared.edges)
        shared.clear_places()
        assert shared.places() == set()


def test_an_address_belongs_to_the_section_before_it() -> None:
    sections = {"virtio_net": {".text": 0x1000_0000, ".init.text": 0x1800_0000}, "virtio_blk": {".text": 0x2000_0000}}
    assert locate([0x1000_0010, 0x1800_0004, 0x2000_0000, 0x10, 0x7000_0000], sections) == {
        ("virtio_net", ".text", 0x10), ("virtio_net", ".init.text", 4), ("virtio_blk", ".text", 0)}


def test_a_line_is_reached_with_any_of_its_blocks() -> None:
    file = "drivers/block/virtio_blk.c"
    known = Places({("virtio_blk", ".text", 0): [(file, 1), (file, 2)], ("virtio_blk", ".text", 8): [(file, 2)],
                    ("virtio_blk", ".text", 16): [(file, 3)]}, {file: [2, 3, 99]})
    (blk,) = known.report([("virtio_blk", ".text", 8)])
    assert blk.device is DeviceType.BLOCK
    assert blk.counts() == (1, 3, 1, 2)  # line 99 has no code


@pytest.mark.parametrize(("line", "is_site"), [
    ("	virtio_cread(vdev, struct virtio_blk_config, capacity, &n);", True),
    ("	buf = virtqueue_get_buf(vq, &len);", True),
    ("	if (virtio_has_feature(vdev, VIRTIO_NET_F_MQ))", True),
    ("	len = le32_to_cpu(hdr->len);", True),
    ("	hdr->len = cpu_to_le32(len);", False),
    ("	return 0;", False),
])
def test_sites_are_where_a_value_comes_from_the_device(line: str, *, is_site: bool) -> None:
    assert bool(SITE.search(line)) is is_site


LISTING = """
0000000010000000 <probe>:
    10000000:\t55                   \tpush   %rbp
    10000001:\t49 bc 00 00 00 08 00 \tmovabs $0x8000000,%r12
    10000008:\t00 00 00
    1000000b:\t41 ff d4             \tcall   *%r12
    1000000e:\t85 c0                \ttest   %eax,%eax
    10000010:\t74 05                \tje     10000020 <probe+0x20>
    10000012:\t41 ff d4             \tcall   *%r12
    10000015:\t41 5c                \tpop    %r12
    10000017:\tc3                   \tret
    10000018:\t90                   \tnop
    10000020:\t41 ff d4             \tcall   *%r12
    10000023:\tff d0                \tcall   *%rax
    10000025:\teb f0                \tjmp    10000015 <probe+0x15>
    10000027:\te8 00 00 00 00       \tcall   1000002c <__asan_report_load4_noabort>

0000000010000030 <other>:
    10000030:\t41 ff d4             \tcall   *%r12
    10000033:\tc3                   \tret
"""


def test_blocks_are_found_in_a_disassembly() -> None:
    assert places._extents(LISTING.splitlines()) == [
        (0x10000000, 0x10000015, 0x1000000E), (0x10000015, 0x10000018, 0x10000015),
        (0x10000023, 0x10000026, 0x10000023)]


@given(text=st.text(alphabet="0123456789abcdef<>: \t%$*,\nmovcalret", max_size=400))
def test_any_listing_is_read(text: str) -> None:
    for start, end, place in places._extents(text.splitlines()):
        assert start <= end
        assert place
