"""``chamber fuzz``: search for what no attack of the catalogue does."""

from __future__ import annotations

import os
import re
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from chamber.cli.fuzz_display import FuzzDisplay, coverage_text, finding_text, read_findings
from chamber.cli.interrupt import InterruptOnce
from chamber.cli.terminal import make_console
from chamber.device.catalogue import TYPES
from chamber.fuzz.campaign import Campaign
from chamber.fuzz.settings import Settings
from chamber.guest.profile import UNTRUSTED
from chamber.lab.kernel.store import find_noticing
from chamber.lab.observation import TargetError
from chamber.lab.uml_kernel import find_kernel

if TYPE_CHECKING:
    from rich.console import Console

    from chamber.lab.uml_kernel import UmlKernel

__all__ = ("fuzz",)

_INTERRUPTED: Final = 130
_TURN_SECONDS: Final = 0.5
_UNITS: Final = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}


def _seconds(_context: click.Context, _parameter: click.Parameter, value: str | None) -> float | None:
    if value is None:
        return None
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smhd]?)", value)
    if match is None or not float(match[1]):
        raise click.BadParameter(f"{value!r} is not a time such as 90, 30m or 2h")
    return float(match[1]) * _UNITS[match[2]]


@click.command()
@click.argument("device", type=click.Choice([d.short for d in TYPES]))
@click.option("--target", type=click.Choice(["uml", "uml-pci", "model"]), default="uml", show_default=True,
              help="What to search.")
@click.option("--kernel", type=click.Path(path_type=Path),
              help="Kernel that `chamber lab build` built with coverage. Default: the newest one.")
@click.option("--profile", type=click.Choice(UNTRUSTED), default="hardened", show_default=True,
              help="Set of protections of the model.")
@click.option("--time", "seconds", callback=_seconds, metavar="TIME",
              help="Stop after so long, such as 90, 30m or 2h. Default: go on until Ctrl-C.")
@click.option("--jobs", type=click.IntRange(1, 256), default=os.cpu_count() or 1, show_default="processors",
              help="Searches at once, which exchange what they find.")
@click.option("--corpus", type=click.Path(path_type=Path),
              help="Folder of the campaign; one that is there is gone on with. "
                   "Default: chamber-fuzz/DEVICE-TARGET-KERNEL.")
@click.option("--input", "inputs", type=click.Path(path_type=Path, exists=True, dir_okay=False), multiple=True,
              help="An input to begin with, such as one of another campaign's; may be repeated.")
@click.option("--seed", type=click.IntRange(0, 2**31), default=1, show_default=True,
              help="Where random choices come from.")
def fuzz(device: str, target: str, kernel: Path | None, profile: str, seconds: float | None, jobs: int,
         corpus: Path | None, inputs: tuple[Path, ...], seed: int) -> int:
    """Search for lies of a device that its driver does not get over.

    The device tells the lies that an input describes and is honest otherwise; what inputs cover of the driver guides
    AFL++ to further ones. What is reported is confirmed on a fresh guest and made short, while the search goes on.
    """
    settings, built = _settings(device, target, kernel, profile)
    top = corpus or Path("chamber-fuzz") / "-".join(filter(None, (device, target, settings.kernel or profile)))
    console = make_console()
    more = tuple(path.read_bytes() for path in inputs)
    with InterruptOnce() as interrupt:
        interrupted = False
        with Campaign(top, settings, jobs=jobs, seed=seed, more=more) as campaign:
            try:
                with FuzzDisplay(campaign, None if built is None else built.built, console, seconds) as display:
                    _search(campaign, display, seconds)
            except KeyboardInterrupt:
                interrupted = True
            interrupt.disarm()
        _summary(campaign, built, console, top)
    return _INTERRUPTED if interrupted else 0


def _settings(device: str, target: str, kernel: Path | None, profile: str) -> tuple[Settings, UmlKernel | None]:
    if target == "model":
        if kernel is not None:
            raise click.UsageError("--kernel goes with --target uml and uml-pci")
        return Settings(device, target, "", profile), None
    if kernel is None:
        kernel = Path(find_noticing().name)
    found = find_kernel(kernel)
    if not found.counts or found.built is None:
        raise TargetError(f"{kernel}: it does not count what drivers execute, which guides the search: "
                          "chamber lab build SERIES makes one that does")
    return Settings(device, target, found.built.name), found


def _search(campaign: Campaign, display: FuzzDisplay, seconds: float | None) -> None:
    end = None if seconds is None else time.monotonic() + seconds
    while end is None or time.monotonic() < end:
        campaign.mend()
        display.update("searching")
        time.sleep(_TURN_SECONDS)
    campaign.finish()
    while campaign.confirming:
        display.update("confirming")
        time.sleep(_TURN_SECONDS)
    display.update("done")


def _summary(campaign: Campaign, kernel: UmlKernel | None, console: Console, top: Path) -> None:
    counts = campaign.counts()
    findings = read_findings(campaign)
    console.print(f"{counts.executions:,} executions in {counts.seconds:,.0f} s of searching "
                  f"({counts.executions / max(counts.seconds, 1):.0f} a second and job), {counts.lies:,} lies, "
                  f"{counts.boots:,} guests; corpus {campaign.corpus():,} inputs, {counts.edges:,} edges.")
    console.print(f"Reached: {coverage_text(campaign, None if kernel is None else kernel.built)}.")
    for finding in findings:
        if finding.confirmed:
            console.print(finding_text(finding), soft_wrap=True)
            console.print(f"         chamber replay {top / 'findings' / finding.name}", style="dim", soft_wrap=True)
    unsure = sum(not finding.confirmed for finding in findings)
    pending = sum(1 for _ in campaign.folder.reports.glob("*.json")) - len(findings)
    console.print(f"{sum(f.confirmed for f in findings)} findings confirmed on fresh guests; {unsure} reports that "
                  f"fresh guests do not show, {pending} not looked at. All of it is in {top}.")
