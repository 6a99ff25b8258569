"""Reports are told apart by where they happened, and kept with what led to them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from chamber.fuzz.execution import Execution
from chamber.fuzz.progress import Progress, read_counts, read_reached
from chamber.fuzz.reports import Report, ReportStore, place_of
from chamber.lab.observation import Evidence, Harm

if TYPE_CHECKING:
    from pathlib import Path


def _memory(signature: str) -> Evidence:
    return Evidence(Harm.MEMORY, signature, "text")


@pytest.mark.parametrize(("one", "other"), [
    ("KASAN slab-use-after-free: free_buf < remove_vqs", "KASAN slab-out-of-bounds: free_buf < remove_vqs"),
    ("WARNING mm/page_alloc.c:4832: add_port < control", "WARNING mm/page_alloc.c:4839: add_port < control")])
def test_one_bug_is_one_report_whatever_lies_there(one: str, other: str) -> None:
    assert place_of(_memory(one)) == place_of(_memory(other))


def test_other_places_and_other_harm_are_other_reports() -> None:
    first = _memory("KASAN double-free: free_buf < remove_vqs")
    assert place_of(first) != place_of(_memory("KASAN double-free: free_buf < init_vqs"))
    assert place_of(first) != place_of(Evidence(Harm.DENIAL, first.signature, "text"))
    assert place_of(Evidence(Harm.DENIAL, "guest stopped answering", "")) == "denial: guest stopped answering"


def test_the_first_of_a_kind_is_kept_with_the_inputs_before_it(tmp_path: Path) -> None:
    store = ReportStore(tmp_path)
    assert not store.seen(b"old", Execution(), fresh=True)
    assert not store.seen(b"one", Execution(), fresh=True)
    for data in (b"two", b"three"):
        assert store.seen(data, Execution(evidence=[_memory("KASAN x: f")], strikes=["a lie"]), fresh=False)
    (path,) = tmp_path.glob("*.json")
    report = Report.read(path)
    assert report.inputs == (b"one", b"two")
    assert (report.signature, report.harm, report.strikes) == ("KASAN x: f", "MEMORY", ("a lie",))
    assert report.name == path.stem
    assert ReportStore(tmp_path).knows(_memory("KASAN y: f"))


def test_processes_see_each_others_reports(tmp_path: Path) -> None:
    one, other = ReportStore(tmp_path), ReportStore(tmp_path)
    one.seen(b"1", Execution(evidence=[_memory("KASAN x: f")]), fresh=True)
    other.seen(b"2", Execution(evidence=[_memory("KASAN x: f")]), fresh=True)
    (path,) = tmp_path.glob("*.json")
    assert Report.read(path).inputs == (b"1",)


def test_what_is_no_report_is_told(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_text("{}", encoding="utf-8")
    with pytest.raises(ValueError, match="no report"):
        Report.read(path)


def test_progress_adds_up_over_searches(tmp_path: Path) -> None:
    for turn in (1, 2):
        progress = Progress(tmp_path, "job1")
        progress.executions += 10
        progress.taken(int.from_bytes(bytes((0, 1, 0, 200)), "little"))
        progress.reached([("virtio_net", ".text", turn)])
        progress.close()
    counts = read_counts(tmp_path / "job1.counts")
    assert (counts.executions, counts.edges) == (20, 2)
    assert read_reached(tmp_path / "job1.reached") == [("virtio_net", ".text", 1), ("virtio_net", ".text", 2)]
    assert (counts + counts).executions == 40
    assert (counts + counts).edges == 2


@pytest.mark.parametrize("content", [b"", b"\xff", b"[]x", b"[[1, 2]]", b"{}"])
def test_damaged_progress_counts_for_nothing(tmp_path: Path, content: bytes) -> None:
    for name in ("job1.counts", "job1.reached"):
        (tmp_path / name).write_bytes(content)
    assert read_counts(tmp_path / "job1.counts").executions == 0
    assert read_reached(tmp_path / "job1.reached") == []
