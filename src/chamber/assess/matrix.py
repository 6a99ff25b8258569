"""The matrix: what each attack came to in each column, and how often each verdict was reached."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from chamber.assess.result import SEVERITY, count
from chamber.assess.verdict import Verdict

if TYPE_CHECKING:
    from collections.abc import Iterable

    from chamber.assess.result import Result
    from chamber.attacks.attack import AttackSpec

__all__ = ("Row", "Tally", "matrix", "tallies", "unproven")


@dataclass(frozen=True, slots=True)
class Row:
    """One attack.

    Attributes:
        attack: the entry of the catalogue.
        cells: by column: the result, the worst one where it was repeated; None where it was not run.

    """

    attack: AttackSpec
    cells: tuple[Result | None, ...]


def matrix(results: Iterable[Result], columns: tuple[str, ...]) -> tuple[Row, ...]:
    """Rows by device, then surface, then name."""
    rows: dict[AttackSpec, dict[str, Result]] = {}
    for result in results:
        cells = rows.setdefault(result.attack, {})
        other = cells.get(result.column)
        if other is None or SEVERITY.index(result.verdict) < SEVERITY.index(other.verdict):
            cells[result.column] = result
    order = sorted(rows, key=lambda spec: (spec.device.short, spec.surface.value, spec.name))
    return tuple(Row(spec, tuple(rows[spec].get(column) for column in columns)) for spec in order)


@dataclass(frozen=True, slots=True)
class Tally:
    """How often each verdict was reached in one column on one device.

    Attributes:
        column: target and profile.
        device: short name of the device type.
        counts: by verdict.

    """

    column: str
    device: str
    counts: dict[Verdict, int]


def tallies(results: Iterable[Result]) -> tuple[Tally, ...]:
    """Count by column, in the order of the results, and device."""
    columns: dict[str, dict[str, list[Result]]] = {}
    for result in results:
        columns.setdefault(result.column, {}).setdefault(result.device, []).append(result)
    return tuple(Tally(column, device, count(of_device))
                 for column, devices in columns.items() for device, of_device in sorted(devices.items()))


def unproven(results: Iterable[Result]) -> dict[tuple[str, str], tuple[str, ...]]:
    """Attacks that say nothing, by column and reason, those with the most attacks first."""
    reasons: dict[tuple[str, str], list[str]] = {}
    for result in results:
        if result.verdict is Verdict.INCONCLUSIVE:
            reasons.setdefault((result.column, result.note), []).append(result.attack.name)
    return {key: tuple(reasons[key]) for key in sorted(reasons, key=lambda key: -len(reasons[key]))}
