"""``chamber replay``: one finding again."""

from __future__ import annotations

import contextlib
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich.text import Text

from chamber.assess.plan import baseline_of, scenario_of
from chamber.assess.printable import printable
from chamber.assess.report_json import ReportError, StoredResult, read_report
from chamber.assess.result import make_result, scenario_name
from chamber.assess.workers import run_safely
from chamber.attacks.catalogue import find
from chamber.cli import targets
from chamber.cli.interrupt import InterruptOnce
from chamber.cli.replay_fuzz import replay_finding
from chamber.cli.terminal import STYLES, make_console
from chamber.guest.policy_file import load_policy

if TYPE_CHECKING:
    from rich.console import Console

    from chamber.assess.result import Result
    from chamber.assess.verdict import Verdict
    from chamber.attacks.attack import AttackSpec
    from chamber.lab.observation import Observation, Target

__all__ = ("replay",)


@dataclass(frozen=True, slots=True)
class _Asked:
    """What to run, and what it is said to come to."""

    target: str
    attack: AttackSpec
    profile: str | None
    seed: int
    reported: Verdict | None


@click.command()
@click.argument("finding")
@click.option("--seed", type=click.IntRange(0, 2**63),
              help="Where random choices come from. Default: as reported, or 1.")
@click.option("--target", type=click.Choice(["uml", "uml-pci", "model"]),
              help="Where to replay what `chamber fuzz` found.")
@click.option("--kernel", type=click.Path(path_type=Path), help="User-mode-linux kernel to boot instead of linux.uml.")
@click.option("--policy", help="The policy that the model's profile hardened keeps.")
@click.option("--capture", "capture_path", type=click.Path(path_type=Path),
              help="Write what crosses the boundary to a pcapng file, and its transcript beside it.")
@click.option("--out", type=click.Path(path_type=Path), default=Path("chamber-out"), show_default=True,
              help="Folder with the report.")
def replay(finding: str, seed: int | None, target: str | None, kernel: Path | None, policy: str | None,
           capture_path: Path | None, out: Path) -> int:
    """Run one scenario again and show everything.

    FINDING is the id of a finding in the report, TARGET:ATTACK[:PROFILE], or the folder of what `chamber fuzz` found.

    Exit status 0 if it comes to the verdict in the report, or if the report does not have it; 1 if it comes to another.
    """
    if Path(finding).is_dir():
        with InterruptOnce():
            return replay_finding(Path(finding), kernel, target)
    if target is not None:
        raise click.UsageError("--target goes with the folder of what `chamber fuzz` found")
    asked = _by_name(finding, seed, out) if ":" in finding else _by_id(finding, seed, kernel, out)
    with InterruptOnce(), contextlib.ExitStack() as stack:
        capture = targets.open_capture(capture_path)
        if capture is not None:
            stack.enter_context(capture)
        chosen = targets.make_target(asked.target, kernel if asked.target in targets.BOOTING else None, capture,
                                     None if policy is None else load_policy(policy))
        stack.callback(chosen.close)
        result = _run(chosen, asked, make_console())
    if asked.reported is None:
        click.echo(f"{out / 'report.json'} has no verdict to compare with")
        return 0
    same = result.verdict is asked.reported
    click.echo(f"as reported: {asked.reported.value}" if same else f"reported was: {asked.reported.value}")
    return 0 if same else 1


def _by_name(name: str, seed: int | None, out: Path) -> _Asked:
    kind, attack, *rest = name.split(":")
    if kind not in targets.KINDS:
        raise targets.unknown("target", kind, targets.KINDS)
    if len(rest) > 1:
        raise click.UsageError(f"{name!r} is not TARGET:ATTACK[:PROFILE]")
    spec = find(attack)
    profile = rest[0] if rest else None
    try:
        stored = read_report(out)
    except ReportError:
        stored = ()  # a replay line stands for itself; a report is only what it is compared with
    matching = [s for s in stored if (s.target, s.attack, s.profile) == (kind, attack, profile)
                and seed in {None, s.seed}]
    if matching:
        return _Asked(kind, spec, profile, matching[0].seed, matching[0].verdict)
    return _Asked(kind, spec, profile, 1 if seed is None else seed, None)


def _by_id(finding: str, seed: int | None, kernel: Path | None, out: Path) -> _Asked:
    stored = read_report(out)
    matching = [s for s in stored if s.finding == finding]
    if not matching:
        raise targets.unknown("finding", finding, dict.fromkeys(s.finding for s in stored if s.finding))
    first = matching[0]
    if first.target not in targets.KINDS:
        raise targets.unknown("target", first.target, targets.KINDS)
    if kernel is None and _names_kernel(first):
        # What to execute is never taken from a file that may have come from somebody else.
        raise click.UsageError(f"it was found on a kernel that --kernel named: {first.replay}")
    return _Asked(first.target, find(first.attack), first.profile, first.seed if seed is None else seed, first.verdict)


def _names_kernel(stored: StoredResult) -> bool:
    try:
        return "--kernel" in shlex.split(stored.replay)
    except ValueError:
        return False


def _run(target: Target, asked: _Asked, console: Console) -> Result:
    known = tuple(profile for profile in targets.profiles_of(target)
                  if profile is None or profile in asked.attack.profiles)
    if asked.profile not in known:
        if asked.profile is None:
            raise click.UsageError(f"say with which protections: {asked.target}:{asked.attack.name}:PROFILE, "
                                   f"where PROFILE is one of {', '.join(map(str, known))}")
        raise targets.unknown("profile", asked.profile, [p for p in known if p])
    scenario = scenario_of(asked.attack, asked.profile, asked.seed)
    console.print(Text(scenario_name(asked.target, asked.attack.name, asked.profile), "bold"))
    console.print(f"{asked.attack.summary} ({asked.attack.surface.value}; {asked.attack.spec})", soft_wrap=True)
    baseline = run_safely(target, baseline_of(scenario))
    observation = run_safely(target, scenario)
    result = make_result(scenario, observation, baseline, target=asked.target)
    _show(observation, result, console)
    return result


def _show(observation: Observation, result: Result, console: Console) -> None:
    for title, lines in (("transcript", observation.transcript), ("console", observation.console.splitlines()),
                         ("refusals", result.refusals), ("evidence", result.evidence.splitlines())):
        if lines:
            console.print(Text(f"\n{title}", "bold"))
            for line in lines:
                console.print(Text(f"  {printable(line)}"), soft_wrap=True)
    console.print()
    console.print(Text.assemble((result.verdict.value, STYLES[result.verdict]),
                                f": {result.signature or result.note}"), soft_wrap=True)
