"""``chamber assess``: what is run, what is said, with which status."""

from __future__ import annotations

import io
import json
import signal
from typing import TYPE_CHECKING, Any

import pytest
from rich.console import Console

from chamber.assess.engine import run_plan
from chamber.assess.plan import make_plan
from chamber.attacks.catalogue import catalogue
from chamber.cli.interrupt import InterruptOnce
from chamber.cli.progress import Bar, Lines, make_progress
from chamber.cli.summary import print_summary
from tests.assess.fakes import ATTACKS, FakeTarget, make_report
from tests.cli.conftest import BROKEN, BROKEN_TOO, DENIED, HELD, HOSTILE_ONE

if TYPE_CHECKING:
    from pathlib import Path

    from chamber.lab.observation import Scenario
    from tests.cli.conftest import Bench


def _report(bench: Bench) -> dict[str, Any]:
    report: dict[str, Any] = json.loads((bench.out / "report.json").read_text())
    return report


def test_everything_by_default(bench: Bench) -> None:
    status, out, err = bench.assess()
    assert status == 0
    report = _report(bench)
    assert [(t["kind"]) for t in report["targets"]] == ["model", "uml"]
    assert len(report["results"]) == 5 * 2 + 5
    assert report["summary"] == {"held": 6 + 1, "broken": 4, "leaked": 2, "deceived": 0, "denied": 2, "inconclusive": 0}
    for name in ("report.html", "junit.xml", "findings"):
        assert (bench.out / name).exists()
    assert f"Report: {bench.out / 'report.html'}" in out
    assert "model: 10 attacks, 8 honest baselines" in err
    assert f"{BROKEN_TOO}, {BROKEN}\n" in out
    assert f"chamber replay uml:{BROKEN_TOO} --seed 1" in out
    assert "uml: 6.1.0 held 1 of 5 attacks, fell to 3, lost service to 1." in out


def test_a_matrix_has_a_row_for_each_attack(bench: Bench) -> None:
    status, out, _ = bench.assess("--matrix", names=(BROKEN, HELD))
    assert status == 0
    rows = {line.split()[0]: line.split()[1:] for line in out.splitlines() if line.startswith((BROKEN, HELD))}
    assert set(rows) == {BROKEN, HELD}
    assert "broken" in rows[BROKEN]
    assert set(rows[HELD]) == {"held"}


def test_a_pattern_names_several_attacks(bench: Bench) -> None:
    status, _, _ = bench.assess("--target", "model", names=("blk-used-id-*",))
    assert status == 0
    expected = {spec.name for spec in catalogue() if spec.name.startswith("blk-used-id-")}
    assert len(expected) > 3
    assert {result["attack"] for result in _report(bench)["results"]} == expected


def test_hostile_words_do_not_reach_the_terminal(bench: Bench) -> None:
    _, out, err = bench.assess(names=(HOSTILE_ONE,))
    assert "[red]x[/red]" in out
    assert all(c == "\n" or c.isprintable() for c in out + err)


def test_a_terminal_gets_no_foreign_control_sequence(tmp_path: Path) -> None:
    stream = io.StringIO()
    console = Console(file=stream, force_terminal=True, markup=False, highlight=False, emoji=False, width=100)
    print_summary(make_report(), tmp_path, console)
    text = stream.getvalue()
    assert "\x1b]0;" not in text
    assert "\x1b[2J" not in text
    assert "\\x1b]0;owned\\x07" in text


@pytest.mark.parametrize(("fail_on", "status"), [
    ("broken", 1), ("leaked,broken", 1), ("deceived", 0), ("denied", 1), ("", 0)])
def test_status_by_verdict(bench: Bench, fail_on: str, status: int) -> None:
    assert bench.assess("--fail-on", fail_on)[0] == status


@pytest.mark.parametrize(("arguments", "words"), [
    (["--attack", "blk-used-id-sise"], "did you mean blk-used-id-size"),
    (["--attack", "blk-nosuch-*"], "no attack's name matches 'blk-nosuch-*'"),
    (["--device", "gpu"], "'gpu' is not one of"),
    (["--profile", "hardend"], "did you mean hardened?"),
    (["--fail-on", "brokn"], "did you mean broken?"),
    (["--target", "xen"], "'xen' is not one of"),
    (["--jobs", "0"], "0 is not in the range"),
    (["--target", "model", "--kernel", "/bin/true"], "--kernel goes with --target qemu or uml"),
    (["--device", "rng", "--attack", "blk-used-id-size"], "none of these attacks is in device rng"),
    (["--nonsense"], "No such option"),
])
def test_wrong_usage_is_one_line(bench: Bench, arguments: list[str], words: str) -> None:
    status, out, err = bench.chamber("assess", "--out", str(bench.out), *arguments)
    assert status == 2
    assert not out
    assert words in err
    assert err.count("\n") == 1
    assert err.startswith("chamber: ")


def test_out_that_cannot_be_written(bench: Bench) -> None:
    bench.out.write_text("a file")
    status, _, err = bench.assess()
    assert status == 2
    assert "cannot be written" in err.splitlines()[-1]
    assert all(not target.ran for target in bench.made)


def test_a_target_that_nobody_named_may_be_missing(bench: Bench) -> None:
    bench.missing["uml"] = "no user-mode-linux kernel here: as root, apt-get install user-mode-linux"
    status, _, err = bench.assess()
    assert status == 0
    assert "going on without target uml: no user-mode-linux kernel here" in err
    assert [t["kind"] for t in _report(bench)["targets"]] == ["model"]


@pytest.mark.parametrize("arguments", [["--target", "uml"], ["--kernel", "/no/kernel"]])
def test_a_target_that_was_asked_for_must_be_there(bench: Bench, arguments: list[str]) -> None:
    bench.missing["uml"] = "no user-mode-linux kernel here"
    status, _, err = bench.assess(*arguments)
    assert status == 2
    assert err == "chamber: no user-mode-linux kernel here\n"


def test_no_target_at_all(bench: Bench) -> None:
    bench.missing.update(model="no model", uml="no kernel")
    assert bench.assess()[0] == 2


def test_kernel_stands_in_the_replay_line(bench: Bench, tmp_path: Path) -> None:
    kernel = tmp_path / "my linux"
    bench.assess("--target", "uml", "--kernel", str(kernel), names=(BROKEN,))
    assert bench.kernels == [kernel]
    assert _report(bench)["results"][0]["replay"] == f"chamber replay uml:{BROKEN} --seed 1 --kernel '{kernel}'"


def test_profile_and_repeat(bench: Bench) -> None:
    bench.assess("--target", "model", "--profile", "hardened", "--seed", "7", "--repeat", "3", names=(BROKEN,))
    assert [(r["profile"], r["seed"]) for r in _report(bench)["results"]] == [
        ("hardened", 7), ("hardened", 8), ("hardened", 9)]


def test_interruption_reports_what_was_done(bench: Bench) -> None:
    handler = signal.getsignal(signal.SIGINT)

    def before(scenario: Scenario) -> None:
        if scenario.attack is not None and scenario.attack.name == DENIED:
            signal.raise_signal(signal.SIGINT)

    bench.before = before
    status, out, _ = bench.assess("--target", "model", "--fail-on", "broken")
    assert status == 130
    report = _report(bench)
    assert report["interrupted"]
    assert BROKEN in {r["attack"] for r in report["results"]}
    assert HELD not in {r["attack"] for r in report["results"]}
    assert "Interrupted" in out
    assert "Interrupted" not in (bench.out / "junit.xml").read_text()
    assert signal.getsignal(signal.SIGINT) is handler


def test_only_the_first_signal_interrupts() -> None:
    with InterruptOnce() as interrupt:
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGINT)
        interrupt.disarm()
    with InterruptOnce() as interrupt:
        interrupt.disarm()
        signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_lines_of_progress() -> None:
    said: list[str] = []
    times = iter([0.0, 1.0, 6.0, 7.0, *[7.5] * 20])
    plan = make_plan(FakeTarget(), ATTACKS, profiles=("bare",))
    with Lines(said.append, clock=lambda: next(times)) as lines:
        lines.begin(plan)
        run_plan(plan, on_done=lines.done)
    assert said == ["model: 6 attacks, 3 honest baselines", "model: 2/9 done; ",
                    "model: 9/9 done; 2 broken, 1 leaked, 1 denied, 1 inconclusive, 1 held"]


def test_bar_of_progress() -> None:
    stream = io.StringIO()
    plan = make_plan(FakeTarget(), ATTACKS, profiles=("bare",))
    console = Console(file=stream, force_terminal=True, width=160)
    with make_progress(console) as progress:
        assert isinstance(progress, Bar)
        progress.begin(plan)
        run_plan(plan, on_done=progress.done)
    assert "9/9" in stream.getvalue()
    assert "2 broken" in stream.getvalue()


def test_a_policy_goes_to_the_model_and_into_the_replay_line(bench: Bench) -> None:
    status, out, _ = bench.assess("--target", "model", "--policy", "minimal", names=(BROKEN,))
    assert status == 0
    assert [policy.name for policy in bench.policies if policy is not None] == ["minimal"] * len(bench.policies)
    assert f"chamber replay model:{BROKEN}:bare --seed 1 --policy minimal" in out
    bench.policies.clear()
    assert bench.chamber("replay", f"model:{BROKEN}:hardened", "--policy", "minimal", "--out", str(bench.out))[0] == 0
    assert [policy.name for policy in bench.policies if policy is not None] == ["minimal"]
    status, _, err = bench.assess("--policy", "nonesuch")
    assert status == 2
    assert "policies that come with Chamber are" in err
