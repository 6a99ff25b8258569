"""``chamber assess``: the main job."""

from __future__ import annotations

import fnmatch
import os
import time
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click

from chamber import __version__
from chamber.assess.engine import run_plan
from chamber.assess.output import prepare, write
from chamber.assess.plan import Plan, make_plan
from chamber.assess.result import Report
from chamber.assess.verdict import Verdict
from chamber.attacks.catalogue import catalogue, find
from chamber.cli import targets as lab
from chamber.cli.interrupt import InterruptOnce
from chamber.cli.progress import make_progress
from chamber.cli.summary import print_summary
from chamber.cli.terminal import make_console
from chamber.device.catalogue import TYPES
from chamber.guest.policy_file import load_policy
from chamber.lab.observation import TargetError

if TYPE_CHECKING:
    from collections.abc import Callable

    from chamber.assess.engine import Outcome
    from chamber.attacks.attack import AttackSpec
    from chamber.guest.policy import Policy
    from chamber.lab.observation import Target

__all__ = ("assess",)

INTERRUPTED = 130


def _verdicts(_context: click.Context, _parameter: click.Parameter, value: str) -> frozenset[Verdict]:
    known = [v.value for v in Verdict]
    names = [name.strip() for name in value.split(",") if name.strip()]
    for name in names:
        if name not in known:
            raise lab.unknown("verdict", name, known)
    return frozenset(Verdict(name) for name in names)


@click.command()
@click.option("--target", "kinds", multiple=True, type=click.Choice(lab.KINDS),
              help="What to attack; may be repeated. Default: model, and uml if it can be had here.")
@click.option("--kernel", type=click.Path(path_type=Path), help="User-mode-linux kernel to boot instead of linux.uml.")
@click.option("--device", "devices", multiple=True, type=click.Choice([d.short for d in TYPES]),
              help="Only attacks in this device; may be repeated.")
@click.option("--attack", "names", multiple=True,
              help="Only this attack, or all that a pattern such as blk-host-* matches; may be repeated.")
@click.option("--profile", "profiles", multiple=True,
              help="Only this set of protections of the model; may be repeated.")
@click.option("--policy", "policy_name", help="A policy that the model's profile hardened keeps (chamber filter list).")
@click.option("--jobs", type=click.IntRange(1, 256), default=os.cpu_count() or 1, show_default="processors",
              help="Scenarios to run at once.")
@click.option("--seed", type=click.IntRange(0, 2**63), default=1, show_default=True,
              help="Where all random choices come from.")
@click.option("--repeat", type=click.IntRange(1, 10_000), default=1, show_default=True,
              help="Times to run everything, each time with the next seed.")
@click.option("--out", type=click.Path(path_type=Path), default=Path("chamber-out"), show_default=True,
              help="Folder for the reports.")
@click.option("--matrix", "by_attack", is_flag=True,
              help="Print a row for each attack, with its verdict in each column.")
@click.option("--fail-on", "fail_on", default="", callback=_verdicts, metavar="VERDICTS",
              help="Exit with status 1 if one of these occurs, such as broken,leaked,deceived.")
def assess(kinds: tuple[str, ...], kernel: Path | None, devices: tuple[str, ...], names: tuple[str, ...],
           profiles: tuple[str, ...], policy_name: str | None, jobs: int, seed: int, repeat: int, out: Path,
           by_attack: bool, fail_on: frozenset[Verdict]) -> int:
    """Attack guests with every malicious device of the catalogue and report what happened."""
    chosen = _choose(devices, names)
    if kernel is not None and kinds and not lab.BOOTING & set(kinds):
        raise click.UsageError(f"--kernel goes with --target {' or '.join(sorted(lab.BOOTING))}")
    with InterruptOnce() as interrupt:
        policy = None if policy_name is None else load_policy(policy_name)
        open_targets = _open_targets(kinds, kernel, policy)
        try:
            plans = _plan(open_targets, chosen, profiles, range(seed, seed + repeat), kernel, policy_name)
            prepare(out)
            report = _run(plans, jobs, seed, kernel, policy)
        finally:
            for target in open_targets:
                target.close()
        interrupt.disarm()
        write(report, out)
        print_summary(report, out, make_console(), by_attack=by_attack)
    if report.interrupted:
        return INTERRUPTED
    return int(any(result.verdict in fail_on for result in report.results))


def _choose(devices: tuple[str, ...], names: tuple[str, ...]) -> tuple[AttackSpec, ...]:
    wanted = {name for pattern in names for name in _matching(pattern)}
    chosen = tuple(spec for spec in catalogue()
                   if (not wanted or spec.name in wanted) and (not devices or spec.device.short in devices))
    if not chosen:
        raise click.UsageError(f"none of these attacks is in device {', '.join(devices)}")
    return chosen


def _matching(pattern: str) -> list[str]:
    """Names of the attacks that a pattern is for, which may be one of them."""
    if not any(letter in pattern for letter in "*?["):
        return [find(pattern).name]
    found = fnmatch.filter((spec.name for spec in catalogue()), pattern)
    if not found:
        raise click.UsageError(f"no attack's name matches {pattern!r}; `chamber attacks` lists them all")
    return found


def _open_targets(kinds: tuple[str, ...], kernel: Path | None, policy: Policy | None) -> list[Target]:
    """Make the targets; one that nobody asked for by name may be missing."""
    opened: list[Target] = []
    try:
        for kind in lab.KINDS:
            if kind not in (kinds or lab.USUAL):
                continue
            asked = kind in kinds or (kind == "uml" and kernel is not None)
            try:
                opened.append(lab.make_target(kind, kernel if kind in lab.BOOTING else None, policy=policy))
            except TargetError as error:
                if asked:
                    raise
                click.echo(f"chamber: going on without target {kind}: {error}", err=True)
    except BaseException:
        for target in opened:
            target.close()
        raise
    if not opened:
        raise click.UsageError("there is no target here; `chamber lab list` says why")
    return opened


def _plan(opened: list[Target], chosen: tuple[AttackSpec, ...], profiles: tuple[str, ...], seeds: range,
          kernel: Path | None, policy_name: str | None) -> list[Plan]:
    known = [str(p) for target in opened for p in lab.profiles_of(target) if p is not None]
    for profile in profiles:
        if profile not in known:
            raise lab.unknown("profile", profile, known)
    plans = []
    for target in opened:
        columns = [p for p in lab.profiles_of(target) if p is None or not profiles or p in profiles]
        options: tuple[str, ...] = ()
        if kernel is not None and target.kind in lab.BOOTING:
            options = _path_option("--kernel", str(kernel))
        elif policy_name is not None and target.kind not in lab.BOOTING:
            options = _path_option("--policy", policy_name)
        plan = make_plan(target, chosen, profiles=columns, seeds=seeds, replay_options=options)
        if plan.scenarios:
            plans.append(plan)
    if not plans:
        where = f" with profile {', '.join(profiles)}" if profiles else ""
        raise click.UsageError(f"none of these attacks can act on {', '.join(t.kind for t in opened)}{where}")
    return plans


def _path_option(option: str, value: str) -> tuple[str, ...]:
    """Return an option that names a file from wherever it is given, or what Chamber itself has under that name."""
    path = Path(value)
    return option, str(path.resolve()) if path.exists() else value


def _run(plans: list[Plan], jobs: int, seed: int, kernel: Path | None, policy: Policy | None) -> Report:
    started = datetime.now(UTC).isoformat(timespec="seconds")
    begin = time.monotonic()
    outcomes: list[Outcome] = []
    interrupted = False
    try:
        with make_progress(make_console(stderr=True)) as progress:
            for plan in plans:
                progress.begin(plan)
                make: Callable[[], Target] = partial(lab.make_target, plan.target.kind, kernel, policy=policy)
                outcomes.append(run_plan(plan, jobs=jobs, make_target=make, on_done=progress.done))
                if outcomes[-1].interrupted:
                    interrupted = True
                    break
    except KeyboardInterrupt:
        interrupted = True
    return Report(
        __version__, seed, started, time.monotonic() - begin, interrupted,
        tuple(plan.target.describe() for plan in plans),
        tuple(r for outcome in outcomes for r in outcome.results),
        tuple(b for outcome in outcomes for b in outcome.baselines))
