"""``report.json``: written for programs, and read again by ``chamber replay``."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from chamber.assess.result import count, group
from chamber.assess.verdict import Verdict

if TYPE_CHECKING:
    from pathlib import Path

    from chamber.assess.result import Baseline, Finding, Report, Result

__all__ = ("SCHEMA", "ReportError", "StoredResult", "finding_json", "parse_report", "read_report", "report_json")

SCHEMA: Final = "chamber-report/1"


def _result(result: Result, finding: str | None) -> dict[str, object]:
    return {
        "target": result.target, "device": result.device, "attack": result.attack.name,
        "surface": result.attack.surface.value, "profile": result.profile, "verdict": result.verdict.value,
        "signature": result.signature, "spec": result.attack.spec, "evidence": result.evidence,
        "seconds": round(result.seconds, 3), "replay": result.replay, "seed": result.seed, "note": result.note,
        "aim": result.attack.aim.value, "summary": result.attack.summary, "known": result.attack.known,
        "stimuli": list(result.attack.stimuli), "strikes": list(result.strikes[:20]),
        "refusals": list(result.refusals[:20]), "finding": finding,
    }


def _baseline(baseline: Baseline) -> dict[str, object]:
    return {"target": baseline.target, "device": baseline.device, "stimuli": list(baseline.stimuli),
            "profile": baseline.profile, "seed": baseline.seed, "ring": baseline.ring,
            "served": not baseline.fault, "note": baseline.fault, "complaints": list(baseline.complaints),
            "seconds": round(baseline.seconds, 3)}


def finding_json(finding: Finding) -> dict[str, object]:
    """One finding with the results that show it."""
    first = finding.first
    return {"id": finding.id, "target": first.target, "profile": first.profile, "device": first.device,
            "verdict": first.verdict.value, "signature": first.signature, "attacks": list(finding.attacks),
            "replay": first.replay}


def report_json(report: Report) -> dict[str, object]:
    """The whole report, by the schema ``chamber-report/1``."""
    findings = group(report.results)
    of_result = {id(result): finding.id for finding in findings for result in finding.results}
    return {
        "schema": SCHEMA, "version": report.version, "seed": report.seed, "started": report.started,
        "seconds": round(report.seconds, 3), "interrupted": report.interrupted,
        "targets": list(report.targets),
        "results": [_result(result, of_result.get(id(result))) for result in report.results],
        "baselines": [_baseline(baseline) for baseline in report.baselines],
        "groups": [finding_json(finding) for finding in findings],
        "summary": {verdict.value: number for verdict, number in count(report.results).items()},
    }


class ReportError(Exception):
    """A ``report.json`` cannot be read; the message is one line that says why."""


@dataclass(frozen=True, slots=True)
class StoredResult:
    """What a replay needs of a result: what to run, and what it came to."""

    target: str
    attack: str
    profile: str | None
    seed: int
    verdict: Verdict
    replay: str
    finding: str | None


def _take(entry: object) -> StoredResult:
    if not isinstance(entry, dict):
        raise ReportError("a result is not an object")

    def text(key: str) -> str:
        value = entry.get(key)
        if not isinstance(value, str):
            raise ReportError(f"{key!r} of a result is not a string")
        return value

    seed = entry.get("seed", 1)
    if not isinstance(seed, int):
        raise ReportError("'seed' of a result is not a number")
    try:
        verdict = Verdict(text("verdict"))
    except ValueError:
        raise ReportError("a verdict is none of the six") from None
    return StoredResult(text("target"), text("attack"), text("profile") if entry.get("profile") is not None else None,
                        seed, verdict, text("replay"), text("finding") if entry.get("finding") is not None else None)


def parse_report(data: bytes) -> tuple[StoredResult, ...]:
    """Read the results of a report.

    Raises:
        ReportError: it is not a report of this schema.

    """
    try:
        report: Any = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise ReportError(f"not JSON ({str(error)[:80]})") from None
    if not isinstance(report, dict) or report.get("schema") != SCHEMA:
        raise ReportError(f"not a report of schema {SCHEMA}")
    results = report.get("results")
    if not isinstance(results, list):
        raise ReportError("it has no list of results")
    return tuple(_take(entry) for entry in results)


def read_report(out: Path) -> tuple[StoredResult, ...]:
    """Read the results of the report in an output folder.

    Raises:
        ReportError: there is none, or it cannot be read.

    """
    path = out / "report.json"
    try:
        return parse_report(path.read_bytes())
    except OSError as error:
        raise ReportError(f"{path}: {error.strerror}") from None
    except ReportError as error:
        raise ReportError(f"{path}: {error}") from None
