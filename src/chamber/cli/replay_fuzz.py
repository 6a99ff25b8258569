"""``chamber replay`` for what ``chamber fuzz`` found: a finding's folder, or inputs."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from rich.text import Text

from chamber.assess.printable import printable
from chamber.cli.terminal import make_console
from chamber.fuzz.confirmation import replay
from chamber.fuzz.finding import read_finding
from chamber.fuzz.lies import Program
from chamber.fuzz.reports import place_of

if TYPE_CHECKING:
    from pathlib import Path

    from rich.console import Console

    from chamber.fuzz.execution import Execution

__all__ = ("replay_finding",)


def replay_finding(folder: Path, kernel: Path | None, target: str | None) -> int:
    """Replay a finding on a fresh guest; return 0 if it shows the same, 1 if it does not.

    Args:
        folder: the finding's.
        kernel: another kernel than the one where it was found.
        target: another target, ``uml``, ``uml-pci`` or ``model``.

    Raises:
        CampaignError: there is no finding.
        TargetError: the target can't be had.

    """
    finding = read_finding(folder)
    settings = finding.settings
    if target is not None:
        settings = replace(settings, target=target)
    if kernel is not None:
        settings = replace(settings, target=settings.target if settings.pci else "uml",
                           kernel=str(kernel.resolve()) if kernel.exists() else str(kernel))
    console = make_console()
    console.print(Text(f"{settings.device} on {settings.target} {settings.kernel or settings.profile}", "bold"))
    executor = settings.executor(trace=True)
    try:
        executions = replay(executor, [Program.parse(data) for data in finding.inputs])
    finally:
        executor.close()
    for execution in executions:
        _show(execution, console)
    seen = [e for execution in executions for e in execution.evidence]
    same = any(place_of(e) == finding.place for e in seen)
    for evidence in seen:
        console.print(Text.assemble(("shown: ", "bold"), printable(evidence.signature)), soft_wrap=True)
    console.print(f"as reported: {finding.verdict}" if same
                  else f"reported was: {finding.verdict}: {printable(finding.signature)}", soft_wrap=True)
    return 0 if same else 1


def _show(execution: Execution, console: Console) -> None:
    for title, lines in (("transcript", execution.transcript), ("console", execution.console.splitlines()),
                         ("lies", [f"{execution.use}: {strike}" for strike in execution.strikes])):
        if lines:
            console.print(Text(f"\n{title}", "bold"))
            for line in lines:
                console.print(Text(f"  {printable(line)}"), soft_wrap=True)
    console.print()
