"""What is shown while an assessment runs: a bar on a terminal, a line every few seconds elsewhere."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final, Protocol, Self

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from chamber.assess.result import SEVERITY
from chamber.cli.terminal import STYLES

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager

    from rich.console import Console
    from rich.progress import TaskID

    from chamber.assess.plan import Plan
    from chamber.assess.result import Result
    from chamber.assess.verdict import Verdict

__all__ = ("Bar", "Lines", "Shown", "make_progress")

_LINE_SECONDS: Final = 5.0


class Shown(Protocol):
    """Shows progress."""

    def begin(self, plan: Plan) -> None:
        """A target's turn begins."""
        ...

    def done(self, result: Result | None) -> None:
        """A scenario is done; a baseline comes as None."""
        ...


class _Counts:
    """How far one target's turn has got."""

    def __init__(self, plan: Plan) -> None:
        self.name = plan.target.kind
        self.total = len(plan.scenarios) + len(plan.baselines)
        self.finished = 0
        self.verdicts = dict.fromkeys(SEVERITY, 0)

    def add(self, result: Result | None) -> None:
        self.finished += 1
        if result is not None:
            self.verdicts[result.verdict] += 1

    def seen(self) -> list[tuple[Verdict, int]]:
        return [(verdict, number) for verdict, number in self.verdicts.items() if number]


class Bar:
    """A progress bar per target, with the verdicts so far."""

    def __init__(self, console: Console) -> None:
        self._progress = Progress(
            TextColumn("{task.description}"), BarColumn(40), MofNCompleteColumn(), TimeElapsedColumn(),
            TextColumn("{task.fields[verdicts]}", markup=True), console=console)

    def __enter__(self) -> Self:
        """Start to draw."""
        self._progress.start()
        return self

    def __exit__(self, *_error: object) -> None:
        """Leave the last state on the screen."""
        self._progress.stop()

    def begin(self, plan: Plan) -> None:
        """Add a bar."""
        self._counts = _Counts(plan)
        self._task: TaskID = self._progress.add_task(self._counts.name, total=self._counts.total, verdicts="")

    def done(self, result: Result | None) -> None:
        """Move the bar."""
        self._counts.add(result)
        verdicts = " ".join(f"[{STYLES[v]}]{n} {v.value}[/]" for v, n in self._counts.seen())
        self._progress.update(self._task, advance=1, verdicts=verdicts)


class Lines:
    """A line at a target's begin and end, and every few seconds between."""

    def __init__(self, write: Callable[[str], None], *, clock: Callable[[], float] = time.monotonic) -> None:
        self._write = write
        self._clock = clock
        self._last = 0.0

    def __enter__(self) -> Self:
        """Do nothing."""
        return self

    def __exit__(self, *_error: object) -> None:
        """Do nothing."""

    def begin(self, plan: Plan) -> None:
        """Say what comes."""
        self._counts = _Counts(plan)
        self._last = self._clock()
        self._write(f"{plan.target.kind}: {len(plan.scenarios)} attacks, {len(plan.baselines)} honest baselines")

    def done(self, result: Result | None) -> None:
        """Say how far it has got, if it is time to."""
        counts = self._counts
        counts.add(result)
        now = self._clock()
        if counts.finished == counts.total or now - self._last >= _LINE_SECONDS:
            self._last = now
            verdicts = ", ".join(f"{n} {v.value}" for v, n in counts.seen())
            self._write(f"{counts.name}: {counts.finished}/{counts.total} done; {verdicts}")


def make_progress(console: Console) -> AbstractContextManager[Shown]:
    """Choose by whether `console` is a terminal."""
    if console.is_terminal:
        return Bar(console)
    return Lines(lambda line: console.print(line, soft_wrap=True))
