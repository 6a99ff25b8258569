"""Confirms reports on fresh guests and makes them short, beside the search; ends when no more can come.

Run as ``python -m chamber.fuzz.confirmation FOLDER``; no more come once standard input ends.
"""

from __future__ import annotations

import select
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

from chamber.assess.verdict import verdict_of
from chamber.fuzz.finding import FuzzFinding, write_finding
from chamber.fuzz.lies import Program
from chamber.fuzz.reports import Report, place_of
from chamber.fuzz.settings import Folder
from chamber.lab.child_process import end_in_order
from chamber.lab.observation import Harm, TargetError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from chamber.fuzz.execution import Execution, Executor
    from chamber.fuzz.settings import Settings
    from chamber.lab.observation import Evidence

__all__ = ("confirm", "main", "replay")

_DEPTHS: Final = (1, 1, 4, 40)
"""How many of a report's inputs are tried, from the last one back."""
_TRIALS: Final = 120
"""Fresh guests that making one finding short may take."""
_POLL_SECONDS: Final = 0.5


def replay(executor: Executor, inputs: Sequence[Program]) -> list[Execution]:
    """Execute inputs one after the other on a guest that nothing was executed on before."""
    executor.restart()
    executions = []
    for program in inputs:
        executions.append(executor.run(program))
        if executions[-1].evidence:
            break  # the guest is ended by that
    return executions


def _shown(executions: Sequence[Execution], place: str) -> Evidence | None:
    """What of the kind was seen, if it was."""
    return next((e for execution in executions for e in execution.evidence if place_of(e) == place), None)


class _Shortening:
    """Leaves out what a finding does not need."""

    def __init__(self, executor: Executor, place: str) -> None:
        self._executor = executor
        self._place = place
        self._left = _TRIALS

    def _shows(self, inputs: Sequence[Program]) -> bool:
        if self._left <= 0:
            return False
        self._left -= 1
        return _shown(replay(self._executor, inputs), self._place) is not None

    def shorten(self, inputs: list[Program], *, hurried: bool) -> list[Program]:
        """Return fewer inputs with fewer lies that show the same, as far as one can say, perhaps in a hurry."""
        self._executor.hurried = hurried
        try:
            return self._shorten(inputs)
        finally:
            self._executor.hurried = False

    def _shorten(self, inputs: list[Program]) -> list[Program]:
        at = len(inputs) - 2
        while at >= 0:  # whole halves first would miss that the last one matters most
            fewer = inputs[:at] + inputs[at + 1:]
            if self._shows(fewer):
                inputs = fewer
            at -= 1
        for number in range(len(inputs)):
            inputs = self._without_lies(inputs, number)
        return inputs

    def _without_lies(self, inputs: list[Program], number: int) -> list[Program]:
        at = len(inputs[number].lies) - 1
        while at >= 0:
            program = inputs[number]
            shorter = replace(program, lies=program.lies[:at] + program.lies[at + 1:])
            attempt = [*inputs[:number], shorter, *inputs[number + 1:]]
            if self._shows(attempt):
                inputs = attempt
            at -= 1
        for at, lie in enumerate(inputs[number].lies):
            program = inputs[number]
            if lie.times != 1:
                once = replace(program, lies=(*program.lies[:at], lie._replace(times=1), *program.lies[at + 1:]))
                attempt = [*inputs[:number], once, *inputs[number + 1:]]
                if self._shows(attempt):
                    inputs = attempt
        return inputs


def confirm(report: Report, settings: Settings, executor: Executor) -> FuzzFinding:
    """See whether a fresh guest shows a report again, and what of its inputs it takes.

    Raises:
        TargetError: the target can't be had.

    """
    verdict = verdict_of(Harm[report.harm]).value
    inputs: list[Program] = []
    for depth in _DEPTHS:
        inputs = [Program.parse(data) for data in report.inputs[-depth:]]
        if _shown(replay(executor, inputs), report.place) is not None:
            break
    else:
        return FuzzFinding(report.name, settings, executor.release, verdict, report.place, report.signature, False,
                           f"the same {len(report.inputs)} inputs do not show it on a fresh guest", report.inputs,
                           report.strikes, report.text)
    whole, executions, evidence = inputs, [], None
    for hurried in (True, False):  # what hangs takes its time to be sure of
        if evidence is None:
            inputs = _Shortening(executor, report.place).shorten(whole, hurried=hurried)
            executions = replay(executor, inputs)
            evidence = _shown(executions, report.place)
    honest = _shown(replay(executor, [replace(program, lies=()) for program in inputs]), report.place)
    note = ""
    if honest is not None:
        note = "an honest device shows it as well"
    elif evidence is None:
        note = "a fresh guest shows it now and then"
    return FuzzFinding(
        report.name, settings, executor.release, verdict, report.place,
        report.signature if evidence is None else evidence.signature, not note, note,
        tuple(program.build() for program in inputs),
        tuple(f"{execution.use}: {strike}" for execution in executions for strike in execution.strikes),
        report.text if evidence is None else evidence.text,
        tuple(line for execution in executions for line in execution.transcript),
        "".join(execution.console for execution in executions))


def _pending(folder: Folder) -> list[Path]:
    return [path for path in sorted(folder.reports.glob("*.json"), key=lambda path: path.stat().st_mtime)
            if not (folder.findings / path.stem / "finding.json").exists()]


def main(arguments: list[str]) -> int:
    """Confirm a campaign's reports as they come."""
    folder = Folder(Path(arguments[0]))
    end_in_order()
    settings = folder.read_settings()
    executor = settings.executor(folder=folder.temporary, trace=True)
    last = False
    try:
        while True:
            pending = _pending(folder)
            for path in pending:
                try:
                    finding = confirm(Report.read(path), settings, executor)
                except TargetError as error:
                    sys.stderr.write(f"{path}: {error}\n")
                    return 1
                write_finding(finding, folder.findings / path.stem)
                executor.restart()  # it may be a while until the next
            if not pending:
                if last:
                    return 0
                last = bool(select.select([sys.stdin], [], [], _POLL_SECONDS)[0])
    finally:
        executor.close()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
