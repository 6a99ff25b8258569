"""Campaigns with the real afl-fuzz: they find what is planted, and go on after any end."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from chamber.cli.main import run
from chamber.fuzz.campaign import Campaign
from chamber.fuzz.finding import read_finding
from chamber.fuzz.progress import read_counts
from chamber.fuzz.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = pytest.mark.skipif(shutil.which("afl-fuzz") is None, reason="no afl-fuzz here: apt-get install afl++")

_DEADLINE = 90.0


def _command(top: Path, *more: str) -> list[str]:
    # The bare guest has bugs enough: whatever length the device claims, it believes.
    return [sys.executable, "-m", "chamber", "fuzz", "rng", "--target", "model", "--profile", "bare", "--jobs", "1",
            "--corpus", str(top), *more]


def _processes(top: Path) -> list[str]:
    """Command lines of processes that have to do with a campaign."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if str(top) in line and int(path.parent.name) != os.getpid():
            found.append(line)
    return found


def _wait_for(what: str, true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + _DEADLINE
    while not true():
        assert time.monotonic() < deadline, what
        time.sleep(0.1)


def _executions(top: Path) -> int:
    return sum(read_counts(path).executions for path in (top / "progress").glob("*.counts"))


def _queue(top: Path) -> set[str]:
    return {path.name.split(",")[0] for path in (top / "search").glob("*/queue/id:*")}


def test_a_planted_bug_is_found_confirmed_and_shortened(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    top = tmp_path / "campaign"
    assert run(_command(top, "--time", "15")[3:]) == 0
    out = capsys.readouterr().out
    findings = [read_finding(path.parent) for path in top.glob("findings/*/finding.json")]
    sure = [finding for finding in findings if finding.confirmed]
    assert any(finding.verdict == "broken" for finding in sure)
    assert all(len(finding.inputs) == 1 for finding in sure)
    assert any(len(finding.lies) == 1 for finding in sure)
    assert f"{len(sure)} findings confirmed" in out
    finding = next(finding for finding in sure if finding.verdict == "broken")
    assert finding.signature in out
    assert not _processes(top)
    assert not (top / "tmp").exists()

    # One command replays it; on the hardened guest it shows nothing.
    folder = top / "findings" / finding.name
    assert run(["replay", str(folder)]) == 0
    assert f"shown: {finding.signature}" in capsys.readouterr().out
    about = json.loads((folder / "finding.json").read_text(encoding="utf-8"))
    (folder / "finding.json").write_text(json.dumps({**about, "profile": "hardened"}), encoding="utf-8")
    assert run(["replay", str(folder)]) == 1
    assert "reported was: broken" in capsys.readouterr().out


@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGKILL])
def test_a_campaign_that_is_ended_goes_on(tmp_path: Path, end: signal.Signals) -> None:
    top = tmp_path / "campaign"
    with subprocess.Popen(_command(top), stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process:
        _wait_for("it finds something", lambda: any(top.glob("findings/*/finding.json")) and len(_queue(top)) > 22)
        process.send_signal(end)
        out, _ = process.communicate(timeout=60)
    assert process.returncode == (130 if end is signal.SIGINT else -end), out
    _wait_for("nothing is left of it", lambda: not _processes(top))
    executions, queue = _executions(top), _queue(top)
    findings = {path.parent.name: path.read_bytes() for path in top.glob("findings/*/finding.json")}
    assert executions
    assert findings

    done = subprocess.run(_command(top, "--time", "5"), capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert _queue(top) >= queue
    assert _executions(top) > executions
    for name, content in findings.items():
        assert (top / "findings" / name / "finding.json").read_bytes() == content
    assert not _processes(top)


def test_a_folder_is_one_campaigns(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    top = tmp_path / "campaign"
    top.mkdir()
    (top / "campaign.json").write_text(json.dumps(
        {"schema": "chamber-campaign/1", "device": "net", "target": "model", "kernel": "", "profile": "bare"}),
        encoding="utf-8")
    assert run(_command(top, "--time", "1")[3:]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "is a campaign on net, model bare" in error


def test_two_campaigns_do_not_share_a_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    top = tmp_path / "campaign"
    with subprocess.Popen(_command(top), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as first:
        _wait_for("the first has begun", (top / "campaign.json").exists)
        assert run(_command(top, "--time", "1")[3:]) == 2
        assert "a campaign runs there" in capsys.readouterr().err
        first.send_signal(signal.SIGINT)
        first.wait(60)
    # What afl-fuzz has just started, and not yet taken note of, ends when it finds afl-fuzz gone.
    _wait_for("nothing is left of it", lambda: not _processes(top))


def test_an_interrupt_while_a_process_is_started_leaves_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C comes when the process is there, and whoever starts it does not know that yet."""
    start: Callable[..., None] = subprocess.Popen._execute_child  # type: ignore[attr-defined]

    def interrupted(self: subprocess.Popen[bytes], *arguments: Any) -> None:
        start(self, *arguments)
        os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(subprocess.Popen, "_execute_child", interrupted)
    top = tmp_path / "campaign"
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # which those who share tests out ignore
    try:
        with pytest.raises(KeyboardInterrupt), Campaign(top, Settings("rng", "model", "", "bare"), jobs=2):
            pytest.fail("it began")
    finally:
        signal.signal(signal.SIGINT, before)
    _wait_for("nothing is left of it", lambda: not _processes(top))


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"schema": "chamber-campaign/1"}'])
def test_what_is_no_campaign_is_told_in_a_line(tmp_path: Path, capsys: pytest.CaptureFixture[str],
                                              content: str) -> None:
    (tmp_path / "campaign.json").write_text(content, encoding="utf-8")
    assert run(_command(tmp_path, "--time", "1")[3:]) == 2
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize("arguments", [
    ["fuzz", "rng", "--time", "soon"], ["fuzz", "rng", "--time", "0"], ["fuzz", "gpu"],
    ["fuzz", "rng", "--target", "model", "--kernel", "x"], ["fuzz", "rng", "--kernel", "nothing-like-it"],
    ["replay", "/proc"], ["replay", "model:rng-used-len-max:bare", "--target", "model"]])
def test_wrong_usage_is_told_in_a_line(capsys: pytest.CaptureFixture[str], arguments: list[str]) -> None:
    assert run(arguments) == 2
    assert capsys.readouterr().err.count("\n") == 1
