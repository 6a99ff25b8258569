"""What is shown while a campaign runs: a table that is drawn anew on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import functools
import time
from typing import TYPE_CHECKING, Final, Self

from rich.console import Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from chamber.assess.printable import printable
from chamber.assess.verdict import Verdict
from chamber.cli.terminal import STYLES
from chamber.fuzz.finding import read_finding
from chamber.fuzz.settings import CampaignError
from chamber.lab.kernel.places import read_places

if TYPE_CHECKING:
    from rich.console import Console

    from chamber.fuzz.campaign import Campaign
    from chamber.fuzz.finding import FuzzFinding
    from chamber.fuzz.progress import Counts
    from chamber.lab.kernel.store import BuiltKernel

__all__ = ("FuzzDisplay", "coverage_text", "finding_text", "read_findings")

_LINE_SECONDS: Final = 10.0
_COVERAGE_SECONDS: Final = 5.0
_read_places = functools.lru_cache(maxsize=1)(read_places)
"""It takes a fifth of a second, and does not change."""
_SHOWN: Final = 12


class FuzzDisplay:
    """Shows a campaign.

    Args:
        campaign: what is shown.
        kernel: the kernel whose drivers are searched, if it is one that counts.
        console: where.
        seconds: for how long it is to go on; None for ever.

    """

    def __init__(self, campaign: Campaign, kernel: BuiltKernel | None, console: Console,
                 seconds: float | None) -> None:
        self._campaign = campaign
        self._kernel = kernel
        self._console = console
        self._seconds = seconds
        self._begin = time.monotonic()
        self._last: tuple[float, Counts] = (self._begin, campaign.counts())
        self._rates = (0.0, 0.0)
        self._coverage = ""
        self._coverage_at = 0.0
        self._line_at = self._begin + _LINE_SECONDS
        self._told: set[str] = set()
        self._live = Live(console=console, auto_refresh=False) if console.is_terminal else None

    def __enter__(self) -> Self:
        """Start to draw."""
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, *_error: object) -> None:
        """Leave the last state on the screen."""
        if self._live is not None:
            self._live.stop()

    def update(self, doing: str) -> None:
        """Show how things are; `doing` says what goes on."""
        now = time.monotonic()
        counts = self._campaign.counts()
        since, before = self._last
        if now - since >= 2:
            self._rates = ((counts.executions - before.executions) / (now - since),
                           (counts.lies - before.lies) / (now - since))
            self._last = now, counts
        if now >= self._coverage_at:
            self._coverage_at = now + _COVERAGE_SECONDS
            self._coverage = coverage_text(self._campaign, self._kernel)
        findings = read_findings(self._campaign)
        if self._live is not None:
            self._live.update(self._draw(doing, counts, findings), refresh=True)
            return
        for finding in findings:
            if finding.name not in self._told:
                self._told.add(finding.name)
                self._console.print(finding_text(finding), soft_wrap=True)
        if now >= self._line_at:
            self._line_at = now + _LINE_SECONDS
            self._console.print(self._line(doing, counts, findings), soft_wrap=True)

    def _line(self, doing: str, counts: Counts, findings: list[FuzzFinding]) -> str:
        confirmed = sum(f.confirmed for f in findings)
        return (f"{doing}, {_clock(time.monotonic() - self._begin)}: {counts.executions:,} executions "
                f"({self._rates[0]:.0f}/s), {counts.lies:,} lies ({self._rates[1]:.0f}/s), corpus "
                f"{self._campaign.corpus()}, {counts.edges:,} edges, {confirmed} findings. {self._coverage}")

    def _draw(self, doing: str, counts: Counts, findings: list[FuzzFinding]) -> Group:
        settings = self._campaign.settings
        table = Table.grid(padding=(0, 2))
        elapsed = _clock(time.monotonic() - self._begin)
        of = f" of {_clock(self._seconds)}" if self._seconds is not None else ""
        sure = [finding for finding in findings if finding.confirmed]
        reports = sum(1 for _ in self._campaign.folder.reports.glob("*.json"))
        for name, value in (
                ("searched", f"{settings.device} on {settings.target} {settings.kernel or settings.profile}"),
                ("time", f"{elapsed}{of}, {doing}; Ctrl-C stops, the same command goes on"),
                ("executions", f"{counts.executions:,}  {self._rates[0]:,.0f} a second, {counts.boots:,} guests"),
                ("lies", f"{counts.lies:,}  {self._rates[1]:,.0f} a second"),
                ("corpus", f"{self._campaign.corpus():,} inputs, {counts.edges:,} edges"),
                ("coverage", self._coverage),
                ("findings", ", ".join((f"{len(sure)} confirmed", f"{len(findings) - len(sure)} not",
                                        f"{reports - len(findings)} to look at")))):
            table.add_row(Text(name, "bold"), value)
        return Group(table, *(finding_text(finding) for finding in sure[-_SHOWN:]))


def _clock(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}"


def finding_text(finding: FuzzFinding) -> Text:
    """One finding in a line."""
    style = STYLES[Verdict(finding.verdict)] if finding.confirmed else "dim"
    more = f" (+{len(finding.lies) - 1})" if len(finding.lies) > 1 else ""
    what = finding.lies[0] + more if finding.lies else "no lie"
    if not finding.confirmed:
        what = f"not confirmed: {finding.note}"
    return Text.assemble((f"{finding.verdict:9}", style),
                         (printable(finding.signature), "bold" if finding.confirmed else "dim"),
                         f"\n         {printable(what)}")


def read_findings(campaign: Campaign) -> list[FuzzFinding]:
    """What the campaign has confirmed, or has not, oldest first."""
    found = []
    for path in sorted(campaign.folder.findings.glob("*/finding.json"), key=lambda path: path.stat().st_mtime):
        try:
            found.append(read_finding(path.parent))
        except CampaignError:
            continue
    return found


def coverage_text(campaign: Campaign, kernel: BuiltKernel | None) -> str:
    """How much of its driver a campaign has reached, in words."""
    if kernel is None:
        return "of the model's drivers, by edges alone"
    wanted = campaign.settings.type
    for driver in _read_places(kernel).report(campaign.reached()):
        if driver.device is wanted:
            covered, lines, reached, sites = driver.counts()
            return f"{covered} of {lines} lines, {reached} of {sites} host-input sites"
    return "the kernel has no such driver"
