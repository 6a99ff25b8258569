"""``chamber bench``: how much Chamber finds."""

from __future__ import annotations

import json
import os
from dataclasses import fields, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from chamber.assess.recall import Recall, Row, Search, measure_recall
from chamber.assess.truth import read_truth
from chamber.attacks.catalogue import catalogue
from chamber.lab.kernel.config import KernelOptions

if TYPE_CHECKING:
    from collections.abc import Sequence

    from chamber.assess.recall import Alarm
    from chamber.assess.truth import Truth
    from chamber.attacks.attack import AttackSpec

__all__ = ("KNOWN_BUGS", "bench")

KNOWN_BUGS = Path(__file__).parent.parent / "assess" / "known_bugs.toml"


@click.group()
def bench() -> None:
    """Measure how much Chamber finds."""


@bench.command()
@click.option("--truth", "path", type=click.Path(path_type=Path), default=KNOWN_BUGS,
              help="File of known bugs. Default: Chamber's own.")
@click.option("--source", help="Kernel tree, or series, to bring all of them back in, instead of what each row names.")
@click.option("--bug", "ids", multiple=True, help="Only this bug; may be repeated.")
@click.option("--attack", "patterns", multiple=True, metavar="PATTERN",
              help="Only attacks with such a name, with * and ?; may be repeated. Default: all.")
@click.option("--all", "every", is_flag=True, help="Run all attacks on each, also after one that shows the bug.")
@click.option("--earlier", type=click.Path(path_type=Path, exists=True, dir_okay=False),
              help="What --json wrote: what showed a bug then is tried first.")
@click.option("--json", "out", type=click.Path(path_type=Path), help="Write the result there as well.")
@click.option("--jobs", type=click.IntRange(1, 256), default=os.cpu_count() or 1, help="Default: (processors).")
def recall(path: Path, source: str | None, ids: tuple[str, ...], patterns: tuple[str, ...],
           out: Path | None, earlier: Path | None, jobs: int, *, every: bool) -> int:
    """Bring known bugs back, one at a time, and count those that the attacks show.

    Each is undone in a kernel that has the fix, and both kernels are attacked: found is what the one shows and the
    other does not, twice. What a fixed kernel shows and the file does not call open is a false alarm.
    """
    truth = _chosen(read_truth(path, source), ids)
    attacks = _matching(patterns)
    if out is not None:
        _writable(out)
    search = Search(jobs, every, {} if earlier is None else _first(earlier))
    result = measure_recall(truth, KernelOptions(), attacks, search,
                            tell=lambda line: click.echo(line, err=True), on_row=_print_row)
    back = sum(row.brought_back for row in result.rows)
    click.echo(f"Found {result.found} of {len(result.rows)} bugs, {result.found} of {back} that could be "
               f"brought back; {len(result.alarms)} false alarms, {len(result.unrepeated)} that did not come again.")
    for alarm in result.alarms:
        click.echo(f"false alarm: {alarm.source} {alarm.device.short}, {alarm.attack}: {alarm.signature}")
    for alarm in result.unrepeated:
        click.echo(f"not again: {alarm.source} {alarm.device.short}, {alarm.attack}: {alarm.signature}")
    if out is not None:
        out.write_text(json.dumps(_as_json(result), indent=1) + "\n", encoding="utf-8")
    return 130 if result.interrupted else 0


def _chosen(truth: Truth, ids: tuple[str, ...]) -> Truth:
    known = [bug.id for bug in truth.bugs]
    for name in ids:
        if name not in known:
            raise click.BadParameter(f"{name} is none of {', '.join(known)}", param_hint="--bug")
    return replace(truth, bugs=tuple(bug for bug in truth.bugs if not ids or bug.id in ids))


def _matching(patterns: tuple[str, ...]) -> list[AttackSpec]:
    for pattern in patterns:
        if not any(fnmatchcase(spec.name, pattern) for spec in catalogue()):
            raise click.BadParameter(f"no attack has a name like {pattern}", param_hint="--attack")
    return [spec for spec in catalogue() if not patterns or any(fnmatchcase(spec.name, p) for p in patterns)]


def _first(path: Path) -> dict[str, list[str]]:
    """Read which attacks showed each bug in an earlier run."""
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))["rows"]
        return {str(row["id"]): [str(name) for name in row["attacks"]] for row in rows}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise click.BadParameter(f"{path} is not what --json writes: {error!r}", param_hint="--earlier") from None


def _writable(path: Path) -> None:
    try:
        path.touch()
    except OSError as error:
        raise click.BadParameter(f"{path}: {error.strerror}", param_hint="--json") from None


def _print_row(row: Row) -> None:
    what = f"{row.signature} ({len(row.attacks)} attacks, {row.attacks[0]})" if row.found else row.reason
    click.echo(f"{'found ' if row.found else 'missed'}  {row.bug.device.short:8} {row.bug.id:32} {what}")


def _as_json(result: Recall) -> dict[str, Any]:
    rows = []
    for row in result.rows:
        bug = {field.name: getattr(row.bug, field.name) for field in fields(row.bug)
               if field.name not in {"undo", "device", "expected"}}
        rows.append({**bug, "driver": row.bug.device.short, "expected": sorted(v.value for v in row.bug.expected),
                     "found": row.found, "attacks": list(row.attacks), "signature": row.signature,
                     "reason": row.reason, "seconds": round(row.seconds, 1)})
    return {"schema": "chamber-recall/1", "found": result.found, "rows": rows, "interrupted": result.interrupted,
            "false_alarms": _alarms(result.alarms), "not_again": _alarms(result.unrepeated)}


def _alarms(alarms: Sequence[Alarm]) -> list[dict[str, str]]:
    return [{"source": a.source, "driver": a.device.short, "attack": a.attack, "signature": a.signature}
            for a in alarms]
