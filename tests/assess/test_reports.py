"""What an output folder holds."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from typing import TYPE_CHECKING
from xml.etree import ElementTree as ET

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chamber.assess.html import report_html
from chamber.assess.junit import junit_xml
from chamber.assess.matrix import matrix, tallies, unproven
from chamber.assess.output import OutputError, prepare, write
from chamber.assess.plan import make_plan
from chamber.assess.report_json import SCHEMA, ReportError, parse_report, read_report, report_json
from chamber.assess.result import group, make_result
from chamber.assess.verdict import Verdict

from .fakes import BROKEN, SERVED, FakeTarget, make_report

if TYPE_CHECKING:
    from pathlib import Path

REPORT = make_report()


def test_findings_are_results_that_show_the_same() -> None:
    findings = group(REPORT.results)
    assert [(f.first.column, f.first.verdict.value, f.attacks) for f in findings] == [
        ("model bare", "broken", ("blk-broken", "blk-broken-too")), ("uml", "broken", ("blk-broken", "blk-broken-too")),
        ("model bare", "leaked", ("rng-hostile",)), ("model bare", "denied", ("net-denied",)),
        ("uml", "denied", ("net-denied",))]
    assert len({f.id for f in findings}) == len(findings)
    assert findings[0].surfaces == ("length", "ring")
    assert [f.id for f in group(make_report().results)] == [f.id for f in findings]


def test_matrix_rows_and_tallies() -> None:
    rows = matrix(REPORT.results, REPORT.columns)
    assert REPORT.columns == ("model bare", "model hardened", "uml")
    assert [row.attack.name for row in rows] == [
        "blk-broken", "blk-broken-too", "blk-held", "net-denied", "net-idle", "rng-hostile"]
    assert [cell and cell.verdict.value for cell in rows[0].cells] == ["broken", "held", "broken"]
    assert rows[-1].cells[2] is None
    assert [(t.column, t.device, t.counts[Verdict.BROKEN]) for t in tallies(REPORT.results)][:2] == [
        ("model bare", "blk", 2), ("model bare", "net", 0)]


def test_reasons_for_saying_nothing() -> None:
    assert unproven(REPORT.results) == {
        ("model bare", "the attack did not get to act"): ("net-idle",),
        ("uml", "the attack did not get to act"): ("net-idle",)}
    assert "Why 2 runs are inconclusive" in report_html(REPORT)


def test_json_has_the_schema() -> None:
    data = json.loads(json.dumps(report_json(REPORT)))
    assert data["schema"] == SCHEMA == "chamber-report/1"
    assert {"version", "seed", "targets", "results", "summary", "baselines", "groups"} <= set(data)
    for result in data["results"]:
        assert {"target", "device", "attack", "surface", "profile", "verdict", "signature", "spec", "evidence",
                "seconds", "replay"} <= set(result)
        assert (result["finding"] is not None) == (result["verdict"] not in {"held", "inconclusive"})
    assert set(data["summary"]) == {"held", "broken", "leaked", "deceived", "denied", "inconclusive"}
    assert sum(data["summary"].values()) == len(data["results"])
    assert data["results"][0]["replay"] == "chamber replay model:blk-broken:bare --seed 1"
    assert data["results"][-1]["replay"] == "chamber replay uml:net-idle --seed 1"


def test_json_is_read_again() -> None:
    stored = parse_report(json.dumps(report_json(REPORT)).encode())
    assert [(s.target, s.attack, s.profile, s.verdict) for s in stored] == [
        (r.target, r.attack.name, r.profile, r.verdict) for r in REPORT.results]
    assert stored[0].finding == group(REPORT.results)[0].id


_JSON = st.recursive(st.none() | st.booleans() | st.integers() | st.text(max_size=5),
                     lambda inner: st.lists(inner, max_size=3) | st.dictionaries(
                         st.sampled_from(["schema", "results", "verdict", "target", "seed", "profile", "x"]), inner))
_REPORTS = st.fixed_dictionaries({"schema": st.just(SCHEMA), "results": _JSON | st.lists(_JSON)})


@settings(max_examples=150)
@given(st.binary() | _JSON.map(lambda v: json.dumps(v).encode()) | _REPORTS.map(lambda v: json.dumps(v).encode()))
def test_any_bytes_are_a_report_or_a_typed_error(data: bytes) -> None:
    try:
        stored = parse_report(data)
    except ReportError:
        stored = ()
    assert all(isinstance(s.verdict, Verdict) for s in stored)


def test_a_report_nested_too_deep_is_an_error() -> None:
    with pytest.raises(ReportError):
        parse_report(b"[" * 200_000)


def test_junit_shape() -> None:
    root = ET.fromstring(junit_xml(REPORT))
    suites = {s.attrib["name"]: s for s in root.findall("testsuite")}
    assert list(suites) == ["model bare", "model hardened", "uml"]
    bare = suites["model bare"]
    assert (bare.attrib["tests"], bare.attrib["failures"], bare.attrib["skipped"]) == ("6", "3", "1")
    cases = {c.attrib["name"]: c for c in bare.findall("testcase")}
    assert cases["blk-broken"].attrib["classname"] == "chamber.model-bare.blk.length"
    failure = cases["blk-broken"].find("failure")
    assert failure is not None
    assert failure.attrib == {"type": "broken", "message": "memory in f"}
    denied = cases["net-denied"]
    assert denied.find("failure") is None
    assert "denied: denial in f" in (denied.findtext("system-out") or "")
    assert cases["net-idle"].find("skipped") is not None
    assert [e.tag for e in cases["blk-held"]] == ["properties"]


class _Page(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))


def test_html_is_self_contained_and_safe() -> None:
    text = report_html(REPORT)
    page = _Page(text)
    assert sum(tag == "script" for tag, _ in page.tags) == 1
    assert not [tag for tag, _ in page.tags if tag in {"img", "link", "iframe", "object", "embed", "base"}]
    ids = [attrs["id"] for _, attrs in page.tags if "id" in attrs]
    assert len(ids) == len(set(ids))
    for _, attrs in page.tags:
        assert "src" not in attrs
        assert not [name for name in attrs if name.startswith("on")]
        href = attrs.get("href")
        assert href is None or (href.startswith("#") and href[1:] in ids)
    assert "url(" not in text
    assert "@import" not in text
    assert "alert(1)</script>" not in text
    assert "&lt;/pre&gt;&lt;script&gt;alert(1)" in text
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202e\ud800]", text)


def test_html_names_each_verdict_in_words() -> None:
    text = report_html(REPORT)
    for result in REPORT.results:
        assert result.attack.name in text
        assert f">{result.verdict.value}</" in text
    assert "chamber replay uml:blk-broken --seed 1" in text
    assert "interrupted" not in text
    assert "interrupted" in report_html(make_report(interrupted=True))


def test_folder_of_an_earlier_run_is_replaced_and_foreign_files_stay(tmp_path: Path) -> None:
    out = tmp_path / "deep" / "out"
    prepare(out)
    write(REPORT, out)
    findings = {f.id for f in group(REPORT.results)}
    assert {p.name for p in (out / "findings").iterdir()} == findings
    (out / "notes.txt").write_text("mine")
    (out / "findings" / "my-notes").mkdir()
    kept = out / "findings" / sorted(findings)[0]
    (kept / "notes.txt").write_text("mine")
    (out / "findings" / "link-00000000").symlink_to(kept, target_is_directory=True)
    held = tuple(r for r in REPORT.results if r.verdict is Verdict.HELD)
    write(type(REPORT)("0.0", 1, REPORT.started, 1.0, False, REPORT.targets, held, ()), out)
    assert {p.name for p in (out / "findings").iterdir()} == {"my-notes", kept.name, "link-00000000"}
    assert [p.name for p in kept.iterdir()] == ["notes.txt"]
    assert (out / "notes.txt").read_text() == "mine"
    assert len(read_report(out)) == len(held)


def test_a_finding_has_its_own_folder(tmp_path: Path) -> None:
    write(REPORT, tmp_path)
    finding = group(REPORT.results)[1]
    folder = tmp_path / "findings" / finding.id
    assert {p.name for p in folder.iterdir()} == {"finding.json", "transcript.txt", "console.txt", "replay.txt"}
    assert json.loads((folder / "finding.json").read_text())["attacks"] == ["blk-broken", "blk-broken-too"]
    assert (folder / "replay.txt").read_text().splitlines() == [
        "chamber replay uml:blk-broken --seed 1", "chamber replay uml:blk-broken-too --seed 1"]
    assert "ATTACK did it" in (folder / "transcript.txt").read_text()


def test_a_folder_that_cannot_be_made_is_said_at_once(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for out in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(OutputError, match="cannot be written"):
            prepare(out)
    (tmp_path / "report.json").mkdir()
    with pytest.raises(OutputError, match=r"report\.json"):
        write(REPORT, tmp_path)


def test_an_empty_report_can_be_written(tmp_path: Path) -> None:
    write(type(REPORT)("0.0", 1, REPORT.started, 1.0, True, (), (), ()), tmp_path)
    assert read_report(tmp_path) == ()


def test_repeats_are_told_apart() -> None:
    target = FakeTarget()
    plan = make_plan(target, (BROKEN,), profiles=("bare",), seeds=(1, 2))
    results = tuple(make_result(s, target.run(s), SERVED, target="model") for s in plan.scenarios)
    report = type(REPORT)("0.0", 1, REPORT.started, 1.0, False, (), results, ())
    assert [r.replay[-1] for r in results] == ["1", "2"]
    assert len(group(results)) == 1
    names = [c.attrib["name"] for c in ET.fromstring(junit_xml(report)).iter("testcase")]
    assert names == ["blk-broken", "blk-broken (seed 2)"]
