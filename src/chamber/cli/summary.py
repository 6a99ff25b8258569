"""What ``chamber assess`` says at its end."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from rich.table import Table
from rich.text import Text

from chamber.assess.matrix import matrix, tallies, unproven
from chamber.assess.result import SEVERITY, count, group
from chamber.assess.verdict import FAILURES, Verdict
from chamber.cli.terminal import STYLES

if TYPE_CHECKING:
    from pathlib import Path

    from rich.console import Console

    from chamber.assess.result import Finding, Report

__all__ = ("print_summary",)

_NAMES: Final = 4
_MODEL_FINDINGS: Final = 10
"""The model is there to fall: attacked with all there is, its findings fill pages, and stay in the report."""
_FINDINGS: Final = 60
_REASONS: Final = 6


def print_summary(report: Report, out: Path, console: Console, *, by_attack: bool = False) -> None:
    """Print the matrix, the findings, a sentence per target, and where the report is.

    Args:
        report: what to print.
        out: where it was written.
        console: where to print.
        by_attack: whether the matrix has a row for each attack.

    """
    console.print()
    if report.results:
        console.print(_rows(report) if by_attack else _matrix(report))
        _findings(report, console)
    for line in _sentences(report):
        console.print(line, soft_wrap=True)
    reasons = list(unproven(report.results).items())
    for (column, note), names in reasons[:_REASONS]:
        console.print(f"{column}: {len(names)} inconclusive, {note}.", soft_wrap=True)
    if reasons[_REASONS:]:
        console.print(f"{len(reasons) - _REASONS} more reasons for inconclusive ones are in the report.")
    if report.interrupted:
        console.print("Interrupted: this is what was done until then.")
    console.print(f"Report: {out / 'report.html'}", soft_wrap=True)


def _matrix(report: Report) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    table.add_column("target")
    table.add_column("device")
    for verdict in SEVERITY:
        table.add_column(verdict.value, justify="right")
    last = ""
    for tally in tallies(report.results):
        cells = [Text(str(n), STYLES[v]) if (n := tally.counts[v]) else Text("-", "dim") for v in SEVERITY]
        table.add_row(Text(tally.column if tally.column != last else ""), Text(tally.device), *cells)
        last = tally.column
    return table


def _rows(report: Report) -> Table:
    columns = tuple(dict.fromkeys(result.column for result in report.results))
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    table.add_column("attack", no_wrap=True)
    for column in columns:
        table.add_column(column)
    for row in matrix(report.results, columns):
        table.add_row(row.attack.name, *(Text("", "dim") if cell is None else
                                         Text(cell.verdict.value, STYLES[cell.verdict]) for cell in row.cells))
    return table


def _findings(report: Report, console: Console) -> None:
    findings = group(report.results)
    model = [f for f in findings if f.first.target == "model"]
    shown = [f for f in findings if f.first.target != "model"]
    if len(model) <= _MODEL_FINDINGS:
        shown += model
        model = []
    console.print()
    for finding in shown[:_FINDINGS]:
        _finding(finding, console)
    if shown[_FINDINGS:]:
        console.print(f"{len(shown) - _FINDINGS} more findings are in the report.")
    if model:
        console.print(f"{len(model)} findings in the model are in the report.")
    if shown or model:
        console.print()


def _finding(finding: Finding, console: Console) -> None:
    first = finding.first
    console.print(Text.assemble((f"{first.verdict.value:9}", STYLES[first.verdict]),
                                f"{first.column}  {first.device}  ", (first.signature, "bold")), soft_wrap=True)
    names = ", ".join(finding.attacks[:_NAMES])
    more = f" and {len(finding.attacks) - _NAMES} more" if finding.attacks[_NAMES:] else ""
    console.print(f"         {names}{more}", soft_wrap=True)
    console.print(Text(f"         {first.replay}", "dim"), soft_wrap=True)


def _sentences(report: Report) -> list[str]:
    lines = []
    for about in report.targets:
        kind = str(about.get("kind"))
        of_target = [r for r in report.results if r.target == kind]
        if not of_target:
            lines.append(f"{kind}: no attack was run to its end.")
            continue
        clauses = []
        for column in dict.fromkeys(r.column for r in of_target):
            results = [r for r in of_target if r.column == column]
            counts = count(results)
            fell = sum(counts[v] for v in FAILURES)
            name = results[0].profile or str(about.get("kernel", "it"))
            clauses.append(f"{name} held {counts[Verdict.HELD]} of {len(results)} attacks, fell to {fell}, lost "
                           f"service to {counts[Verdict.DENIED]}")
        lines.append(f"{kind}: {'; '.join(clauses)}.")
        covered = about.get("coverage")
        if isinstance(covered, dict):
            lines.append(f"{kind}: reached in drivers: " + "; ".join(
                f"{device} {n['lines']} of {n['of']} lines, {n['sites']} of {n['of_sites']} host-input sites"
                for device, n in covered.items()) + ".")
    return lines
