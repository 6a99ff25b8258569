"""Ground truth files: Chamber's own is whole, and a bad one gets one line."""

from __future__ import annotations

from fnmatch import fnmatch
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chamber.assess.truth import read_truth
from chamber.assess.verdict import Verdict
from chamber.cli.bench import KNOWN_BUGS
from chamber.cli.main import run
from chamber.lab.kernel.drivers import BEHIND, CORE, SOURCES
from chamber.lab.observation import TargetError
from chamber.wire.virtio import DeviceType

if TYPE_CHECKING:
    from pathlib import Path

ROW = """
schema = "chamber-truth/1"
[[bug]]
id = "one"
subject = "a fix"
driver = "blk"
fixed = "6.1.1"
source = "6.12"
trigger = "a lie"
undo = [{ file = "a.c", find = "x", put = "y" }]
"""


def written(folder: Path, text: str) -> Path:
    path = folder / "truth.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_a_row_is_read(tmp_path: Path) -> None:
    (bug,) = read_truth(written(tmp_path, ROW)).bugs
    assert (bug.id, bug.device, bug.source, bug.cve) == ("one", DeviceType.BLOCK, "6.12", "")
    assert bug.expected == {Verdict.BROKEN}
    assert bug.undo.changes == (("a.c", "x", "y"),)
    assert read_truth(written(tmp_path, ROW), "7.3").bugs[0].source == "7.3"


def test_chambers_own_rows_are_about_drivers_under_test() -> None:
    truth = read_truth(KNOWN_BUGS)
    assert {bug.device for bug in truth.bugs} == set(SOURCES)
    for bug in truth.bugs:
        for file in bug.undo.files():
            assert any(fnmatch(file, known) for known in (*CORE, *BEHIND, *SOURCES[bug.device])), bug.id


@pytest.mark.parametrize(("text", "why"), [
    ("", "schema"),
    ("schema = 1", "schema"),
    ("not toml", "Expected"),
    (ROW.replace('"one"', '"One!"'), "is no id"),
    (ROW.replace('driver = "blk"', 'driver = "floppy"'), "driver is none of"),
    (ROW.replace('subject = "a fix"', ""), "subject is missing"),
    (ROW.replace('put = "y"', "put = 3"), "put is missing, or no text"),
    (ROW.replace("undo = [", "undo = [1, "), "undo is a list of tables"),
    (ROW + 'expected = ["bad"]\n', "expected lists verdicts"),
    (ROW + "expected = []\n", "names no verdict"),
    (ROW + ROW.partition("\n")[2].partition("\n")[2], "same id"),
    (ROW + '[[open]]\ndriver = "blk"\nsignature = "("\nreason = "x"\n', "signature"),
    ('schema = "chamber-truth/1"\nbug = 3\n', "not a list of tables"),
])
def test_a_bad_file_gets_one_line(tmp_path: Path, text: str, why: str, capsys: pytest.CaptureFixture[str]) -> None:
    path = written(tmp_path, text)
    with pytest.raises(TargetError, match=why):
        read_truth(path)
    assert run(("bench", "recall", "--truth", str(path))) == 2
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize("arguments", [("--truth", "/nonexistent"), ("--bug", "none"), ("--json", "/nonexistent/x")])
def test_bad_options_get_one_line(arguments: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(("bench", "recall", *arguments)) == 2
    assert capsys.readouterr().err.count("\n") == 1


@given(text=st.text(max_size=300))
def test_any_text_is_a_truth_or_refused(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    path = tmp_path_factory.mktemp("truth") / "t.toml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(TargetError):
        read_truth(path)
