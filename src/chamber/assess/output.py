"""The output folder: reports for people and programs, and a folder per finding."""

from __future__ import annotations

import json
import re
import tempfile
from typing import TYPE_CHECKING, Final

from chamber.assess.html import report_html
from chamber.assess.junit import junit_xml
from chamber.assess.report_json import finding_json, report_json
from chamber.assess.result import group

if TYPE_CHECKING:
    from pathlib import Path

    from chamber.assess.result import Finding, Report

__all__ = ("OutputError", "prepare", "write")

_FINDING_FILES: Final = ("finding.json", "transcript.txt", "console.txt", "replay.txt")
_FINDING_NAME: Final = re.compile(r"[a-z0-9-]+-[0-9a-f]{8}")


class OutputError(Exception):
    """The output folder cannot be written; the message is one line that says why."""


def prepare(out: Path) -> None:
    """Make the folder if it is not there, and try it, so that no long run ends without its report.

    Raises:
        OutputError: it cannot be made or written.

    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=out):
            pass
    except OSError as error:
        raise OutputError(f"{out}: cannot be written ({error.strerror})") from None


def write(report: Report, out: Path) -> None:
    """Write everything; what an earlier run wrote is replaced, what others put there stays.

    Raises:
        OutputError: a file cannot be written.

    """
    try:
        _write_text(out / "report.json", json.dumps(report_json(report), indent=1) + "\n")
        _write_text(out / "report.html", report_html(report))
        _write_text(out / "junit.xml", junit_xml(report))
        _remove_findings(out / "findings")
        for finding in group(report.results):
            _write_finding(finding, out / "findings" / finding.id)
    except OSError as error:
        raise OutputError(f"{error.filename or out}: cannot be written ({error.strerror})") from None


def _write_text(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8", newline="\n")


def _write_finding(finding: Finding, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    first = finding.first
    details = {**finding_json(finding), "spec": first.attack.spec, "summary": first.attack.summary,
               "evidence": first.evidence, "strikes": list(first.strikes), "refusals": list(first.refusals)}
    _write_text(folder / "finding.json", json.dumps(details, indent=1) + "\n")
    _write_text(folder / "transcript.txt", "".join(f"{line}\n" for line in first.transcript))
    _write_text(folder / "console.txt", first.console)
    _write_text(folder / "replay.txt", "".join(f"{result.replay}\n" for result in finding.results))


def _remove_findings(folder: Path) -> None:
    """Remove folders that an earlier run wrote: known by their name and by having a ``finding.json``."""
    if folder.is_symlink() or not folder.is_dir():
        return
    for old in folder.iterdir():
        if old.is_symlink() or not _FINDING_NAME.fullmatch(old.name) or not (old / "finding.json").is_file():
            continue
        for name in _FINDING_FILES:
            (old / name).unlink(missing_ok=True)
        if not any(old.iterdir()):
            old.rmdir()
