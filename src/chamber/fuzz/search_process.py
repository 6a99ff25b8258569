"""What afl-fuzz runs: executes inputs, and writes down what they reported and covered.

Run as ``python -m chamber.fuzz.search_process FOLDER JOB``.
"""

from __future__ import annotations

import contextlib
import sys
import time
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Final

from chamber.fuzz import forkserver
from chamber.fuzz.live_json import write_live_json
from chamber.fuzz.progress import Progress
from chamber.fuzz.reports import ReportStore
from chamber.fuzz.settings import Folder
from chamber.fuzz.uml_executor import UmlExecutor
from chamber.lab.child_process import end_in_order
from chamber.lab.kernel.places import locate
from chamber.lab.observation import TargetError

if TYPE_CHECKING:
    from chamber.fuzz.execution import Execution, Executor

__all__ = ("main",)

_WRITE_SECONDS: Final = 1.0
_PLACES_SECONDS: Final = 5.0


class _Watch:
    """Sees every execution."""

    def __init__(self, folder: Folder, job: str) -> None:
        self._store = ReportStore(folder.reports)
        self._progress = Progress(folder.progress, job)
        self._costs, self._occasions = folder.costs(job), folder.occasions(job)
        self._write_at = self._places_at = 0.0
        self.knows = self._store.knows
        self.executor: Executor | None = None

    def seen(self, data: bytes, execution: Execution) -> bool:
        assert self.executor is not None
        progress = self._progress
        progress.executions += 1
        progress.lies += sum(execution.told.values())
        if self.executor.executions == 1:
            progress.boots += 1
        reported = self._store.seen(data, execution, fresh=self.executor.executions == 1)
        progress.reports += reported
        now = time.monotonic()
        if now >= self._write_at:
            self._write_at = now + _WRITE_SECONDS
            if now >= self._places_at:
                self._places_at = now + _PLACES_SECONDS
                write_live_json(self._occasions, self.executor.occasions.to_json())
                if isinstance(self.executor, UmlExecutor):
                    write_live_json(self._costs, self.executor.costs)
                    progress.reached(locate(*self.executor.reached()))
            progress.taken(self.executor.taken())
            progress.write()
        return reported

    def close(self) -> None:
        if self.executor is not None:
            self._progress.taken(self.executor.taken())
        self._progress.close()


def main(arguments: list[str]) -> int:
    """Serve afl-fuzz with a campaign's executions."""
    folder, job = Folder(Path(arguments[0])), arguments[1]
    end_in_order()
    # afl-fuzz throws away what this process prints.
    with (folder.progress / f"{job}.error").open("w", encoding="utf-8") as errors, contextlib.redirect_stderr(errors):
        try:
            _search(folder, job)
        except TargetError as error:
            errors.write(f"{error}\n")
            return 1
        except Exception:
            traceback.print_exc()
            return 1
    return 0


def _search(folder: Folder, job: str) -> None:
    watch = _Watch(folder, job)
    try:
        executor = watch.executor = folder.read_settings().executor(known=watch.knows, folder=folder.temporary)
        try:
            forkserver.serve(executor, watch.seen)
        finally:
            executor.close()
    finally:
        watch.close()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
