"""``chamber replay``."""

from __future__ import annotations

import json
import shlex
from typing import TYPE_CHECKING

import pytest

from tests.assess.fakes import REFUSED, SERVED
from tests.cli.conftest import BROKEN, HELD, HOSTILE_ONE

if TYPE_CHECKING:
    from pathlib import Path

    from tests.cli.conftest import Bench


def test_by_id(bench: Bench) -> None:
    bench.assess()
    report = json.loads((bench.out / "report.json").read_text())
    for group in report["groups"]:
        status, out, _ = bench.chamber("replay", group["id"], "--out", str(bench.out))
        assert status == 0
        assert f"as reported: {group['verdict']}" in out


def test_every_replay_line_stands_for_itself(bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bench.assess()
    report = json.loads((bench.out / "report.json").read_text())
    monkeypatch.chdir(tmp_path)
    for result in report["results"]:
        status, out, _ = bench.chamber(*shlex.split(result["replay"])[1:])
        assert status == 0
        assert f"\n{result['verdict']}: " in out
        assert "no verdict to compare with" in out


def test_another_verdict_than_reported(bench: Bench) -> None:
    bench.assess()
    bench.behaviour[BROKEN] = REFUSED
    status, out, _ = bench.chamber("replay", f"model:{BROKEN}:bare", "--out", str(bench.out))
    assert status == 1
    assert "reported was: broken" in out
    bench.behaviour[HELD] = SERVED
    assert bench.chamber("replay", f"model:{HELD}:bare", "--out", str(bench.out))[0] == 0


def test_it_shows_everything_and_nothing_hostile(bench: Bench) -> None:
    status, out, _ = bench.chamber("replay", f"uml:{HOSTILE_ONE}", "--out", str(bench.out))
    assert status == 0
    for word in ("transcript", "ATTACK did it", "console", "evidence", "leaked: "):
        assert word in out
    assert all(c == "\n" or c.isprintable() for c in out)


def test_seed_zero_is_a_seed(bench: Bench) -> None:
    bench.chamber("replay", f"uml:{BROKEN}", "--seed", "0", "--out", str(bench.out))
    assert {s.seed for s in bench.made[0].ran} == {0}


@pytest.mark.parametrize(("finding", "words"), [
    ("no-such-id", "report.json: No such file"),
    ("uml:blk-used-id-sise", "did you mean blk-used-id-size"),
    ("uml2:blk-used-id-size", "there is no target 'uml2'; did you mean uml?"),
    ("model:blk-used-id-size", "PROFILE is one of bare, hardened"),
    ("model:blk-used-id-size:hard", "there is no profile 'hard'"),
    ("uml:blk-used-id-size:bare", "there is no profile 'bare'"),
    ("model:a:b:c", "is not TARGET:ATTACK[:PROFILE]"),
])
def test_wrong_usage_is_one_line(bench: Bench, finding: str, words: str) -> None:
    status, out, err = bench.chamber("replay", finding, "--out", str(bench.out))
    assert (status, out) == (2, "")
    assert words in err
    assert err.count("\n") == 1


def test_an_unknown_id_suggests(bench: Bench) -> None:
    bench.assess()
    report = json.loads((bench.out / "report.json").read_text())
    status, _, err = bench.chamber("replay", report["groups"][0]["id"][:-1], "--out", str(bench.out))
    assert status == 2
    assert f"did you mean {report['groups'][0]['id']}" in err


def test_a_report_does_not_choose_what_is_executed(bench: Bench, tmp_path: Path) -> None:
    kernel = tmp_path / "linux"
    bench.assess("--target", "uml", "--kernel", str(kernel), names=(BROKEN,))
    finding = json.loads((bench.out / "report.json").read_text())["groups"][0]["id"]
    status, _, err = bench.chamber("replay", finding, "--out", str(bench.out))
    assert status == 2
    assert f"--kernel {kernel}" in err
    assert bench.chamber("replay", finding, "--kernel", str(kernel), "--out", str(bench.out))[0] == 0
    assert bench.kernels == [kernel, kernel]


def test_a_damaged_report(bench: Bench) -> None:
    bench.out.mkdir()
    (bench.out / "report.json").write_bytes(b'{"schema": "chamber-report/1", "results": [{"verdict": "\x1b"}]}')
    status, _, err = bench.chamber("replay", "some-id", "--out", str(bench.out))
    assert status == 2
    assert err.count("\n") == 1
    assert bench.chamber("replay", f"uml:{BROKEN}", "--out", str(bench.out))[0] == 0
