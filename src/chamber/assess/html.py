"""``report.html``: one file for people, with nothing fetched from elsewhere."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape

from chamber.assess.matrix import Row, matrix, unproven
from chamber.assess.result import SEVERITY, Finding, count, group
from chamber.assess.verdict import Verdict

if TYPE_CHECKING:
    from collections.abc import Sequence

    from chamber.assess.result import Report, Result

__all__ = ("report_html",)

_TRANSCRIPT: Final = (20, 40)
_CONSOLE: Final = (0, 60)
_STRIKES: Final = 12

_MEANING: Final = {
    Verdict.BROKEN: "memory safety lost",
    Verdict.LEAKED: "bytes never meant to be shared reached the host",
    Verdict.DECEIVED: "wrong, stale or foreign data taken for genuine",
    Verdict.DENIED: "hang, BUG or WARN, panic or a device lost: a host can always deny service",
    Verdict.INCONCLUSIVE: "the attack did not get to act, or its honest baseline failed",
    Verdict.HELD: "refused with a clean error, or survived with the right data",
}


@dataclass(frozen=True, slots=True)
class _Column:
    """One column of the matrix, or the findings of one.

    Attributes:
        name: as in the results.
        target: kind of target.
        profile: set of protections, or empty.
        what: version of what is attacked.
        counts: results by verdict, worst first, verdicts that never occurred left out.
        total: results.
        findings: what was found there.

    """

    name: str
    target: str
    profile: str
    what: str
    counts: tuple[tuple[Verdict, int], ...]
    total: int
    findings: tuple[Finding, ...]


@dataclass(frozen=True, slots=True)
class _Part:
    """Rows of the matrix that belong together: one device, or one surface of it."""

    name: str
    rows: tuple[Row, ...]
    parts: tuple[_Part, ...] = ()

    def counts(self, column: int) -> tuple[tuple[Verdict, int], ...]:
        """Results in a column by verdict."""
        return _present([cell for row in self.rows if (cell := row.cells[column]) is not None])


def _present(results: Sequence[Result]) -> tuple[tuple[Verdict, int], ...]:
    counts = count(results)
    return tuple((verdict, counts[verdict]) for verdict in SEVERITY if counts[verdict])


def _columns(report: Report, findings: Sequence[Finding]) -> tuple[_Column, ...]:
    versions = {str(t.get("kind")): str(t.get("kernel") or t.get("version") or "") for t in report.targets}
    columns = []
    for name in report.columns:
        results = [r for r in report.results if r.column == name]
        first = results[0]
        columns.append(_Column(name, first.target, first.profile or "", versions.get(first.target, ""),
                               _present(results), len(results),
                               tuple(f for f in findings if f.first.column == name)))
    return tuple(columns)


def _parts(rows: Sequence[Row]) -> tuple[_Part, ...]:
    devices: dict[str, dict[str, list[Row]]] = {}
    for row in rows:
        devices.setdefault(row.attack.device.short, {}).setdefault(row.attack.surface.value, []).append(row)
    return tuple(
        _Part(device, tuple(row for members in surfaces.values() for row in members),
              tuple(_Part(surface, tuple(members)) for surface, members in surfaces.items()))
        for device, surfaces in devices.items())


def _excerpt(lines: Sequence[str], ends: tuple[int, int]) -> str:
    """Return the first and the last lines, and how many are missing between them."""
    head, tail = ends
    if len(lines) <= head + tail + 1:
        return "\n".join(lines)
    return "\n".join([*lines[:head], f"[{len(lines) - head - tail} lines left out]", *lines[len(lines) - tail:]])


def report_html(report: Report) -> str:
    """Render a report as one self-contained page."""
    environment = Environment(
        loader=PackageLoader("chamber.assess"), autoescape=select_autoescape(default=True, default_for_string=True),
        undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    findings = group(report.results)
    columns = _columns(report, findings)
    return environment.get_template("report.html").render(
        report=report, columns=columns, findings=findings,
        # What was found in real guests comes before what was found in the model.
        found=sorted((c for c in columns if c.findings), key=lambda c: c.target == "model"),
        parts=_parts(matrix(report.results, report.columns)),
        surfaces=sorted({r.attack.surface.value for r in report.results}),
        totals=_present(report.results),
        finding_of={id(result): finding.id for finding in findings for result in finding.results}, id=id,
        verdicts=SEVERITY, meaning=_MEANING, strikes=_STRIKES,
        attacks=len({r.attack.name for r in report.results}),
        complaining=[baseline for baseline in report.baselines if baseline.complaints],
        unserved=[baseline for baseline in report.baselines if baseline.fault],
        unproven=unproven(report.results),
        transcript=lambda result: _excerpt(result.transcript, _TRANSCRIPT),
        console=lambda result: _excerpt(result.console.splitlines(), _CONSOLE))
