"""The commands on a real kernel."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from chamber.cli.main import run

pytestmark = [pytest.mark.uml,
              pytest.mark.skipif(shutil.which("linux.uml") is None, reason="no user-mode-linux here")]

BUG = "blk-config-writeback-beyond"


def test_assess_and_replay(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    assert run(["assess", "--target", "uml", "--attack", BUG, "--out", str(out), "--fail-on", "denied"]) == 1
    assert "cache_type_show" in capsys.readouterr().out
    (result,) = json.loads((out / "report.json").read_text())["results"]
    assert result["verdict"] == "denied"
    assert run(["replay", result["finding"], "--out", str(out)]) == 0
    assert "as reported: denied" in capsys.readouterr().out


def _belongs_to(pid: str, session: int) -> bool:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return False
    state, _parent, _group, of_session = stat.rpartition(")")[2].split()[:4]
    return int(of_session) == session and state != "Z"


def test_interruption_leaves_a_report_and_no_process(tmp_path: Path) -> None:
    out, scratch = tmp_path / "out", tmp_path / "tmp"
    scratch.mkdir()
    command = [sys.executable, "-c", "from chamber.cli.main import main; main()", "assess", "--target", "uml",
               "--device", "blk", "--jobs", "2", "--out", str(out)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
                          env={**os.environ, "TMPDIR": str(scratch)}) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        for line in process.stderr:
            if " held" in line:  # baselines are done first
                break
        os.killpg(process.pid, signal.SIGINT)
        os.killpg(process.pid, signal.SIGINT)
        said = process.stdout.read()
        errors = process.stderr.read()
        assert process.wait() == 130
    assert "Interrupted" in said
    assert "Traceback" not in errors
    report = json.loads((out / "report.json").read_text())
    assert report["interrupted"]
    assert report["results"]
    # The last to go is multiprocessing's resource tracker, which sees by its pipe that its master has gone.
    deadline = time.monotonic() + 10
    while left := [pid for pid in os.listdir("/proc") if pid.isdigit() and _belongs_to(pid, process.pid)]:
        assert time.monotonic() < deadline, left
        time.sleep(0.01)
    assert list(scratch.iterdir()) == []
