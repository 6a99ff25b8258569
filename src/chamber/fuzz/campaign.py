"""A search that goes on for hours, and can be stopped and resumed: afl-fuzz processes, and what they share."""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import IO, TYPE_CHECKING, Final, Self

import chamber
from chamber.fuzz.lies import Program, Start
from chamber.fuzz.mutator import COSTS, FINDINGS, OCCASIONS, PCI, REPORTS
from chamber.fuzz.progress import Counts, read_counts, read_reached
from chamber.fuzz.settings import CampaignError, Folder
from chamber.lab.child_process import share_niceness

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import TracebackType

    from chamber.fuzz.settings import Settings
    from chamber.lab.kernel.places import Place

__all__ = ("Campaign",)

INSTALL_HINT: Final = "no afl-fuzz here: as root, apt-get install afl++"
_SEEDED_USES: Final = 14
"""As many as any device has."""
_STOP_SECONDS: Final = 10.0
_RESTARTS: Final = 5
_MAX_INPUT: Final = 200
_TIME_OUT_MS: Final = 20_000
"""After which afl-fuzz gives up on an execution; hangs of a guest are seen long before."""
_CONFIRMS_NICE: Final = 10
"""A search goes on while its reports are confirmed, and is what the processors are for."""
_PR_SET_PDEATHSIG: Final = 1


@contextlib.contextmanager
def _uninterrupted() -> Iterator[None]:
    """Put Ctrl-C off: a process that is started just then would be nobody's, and outlive what ends the others."""
    if threading.current_thread() is not threading.main_thread():
        yield  # which it does not interrupt
        return
    came: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, _frame: came.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
        if came:
            signal.raise_signal(signal.SIGINT)


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)


class Campaign:
    """A folder that is searched in; entering it starts the search, leaving it ends all that runs.

    Args:
        top: the folder, made if it is not there. What an earlier search has left is gone on with.
        settings: what to search.
        jobs: searches at once, each with a guest of its own on a processor of its own.
        seed: where random choices come from.
        more: inputs to begin with besides honest ones.

    Raises:
        CampaignError: the folder is another campaign's, or one that runs; or there is no afl-fuzz.

    """

    def __init__(self, top: Path, settings: Settings, *, jobs: int = 1, seed: int = 1,
                 more: tuple[bytes, ...] = ()) -> None:
        self.folder = Folder(top)
        self.settings = settings
        self._jobs = [f"job{number}" for number in range(1, jobs + 1)]
        self._seed = seed
        self._more = more
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._confirmation: subprocess.Popen[bytes] | None = None
        self._restarts = 0
        self._lock: IO[bytes] | None = None
        program = shutil.which("afl-fuzz")
        if program is None:
            raise CampaignError(INSTALL_HINT)
        self._program = program

    def __enter__(self) -> Self:
        try:
            self._prepare()
            with _uninterrupted():
                for number, job in enumerate(self._jobs):
                    self._processes[job] = self._start(job, number)
                self._confirmation = self._start_confirmation()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        self.close()

    # The folder.

    def _prepare(self) -> None:
        folder = self.folder
        try:
            for path in (folder.top, folder.seeds, folder.search, folder.reports, folder.findings, folder.progress):
                path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise CampaignError(f"{folder.top}: {error.strerror}") from None
        self._lock = (folder.top / "lock").open("wb")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise CampaignError(f"{folder.top}: a campaign runs there") from None
        if folder.settings.exists():
            before = folder.read_settings()
            if before != self.settings:
                raise CampaignError(f"{folder.top} is a campaign on {before.device}, {before.target} "
                                    f"{before.kernel or before.profile}; another one wants another --corpus")
        else:
            folder.settings.write_text(json.dumps(self.settings.to_json(), indent=1) + "\n", encoding="utf-8")
        # What a search that was killed has left of its guests.
        shutil.rmtree(folder.temporary, ignore_errors=True)
        folder.temporary.mkdir()
        seeds = [Program(start, use) for use in range(_SEEDED_USES) for start in (Start.SESSION, Start.PROBE)]
        for program in (*seeds, Program(Start.CONNECT)):
            path = folder.seeds / f"honest-{program.start.name.lower()}-{program.use:02}"
            path.write_bytes(program.build())
        for number, data in enumerate(self._more):
            (folder.seeds / f"given-{number:04}").write_bytes(data)

    # The processes.

    def _start(self, job: str, number: int) -> subprocess.Popen[bytes]:
        processors = sorted(os.sched_getaffinity(0))
        processor = processors[number % len(processors)]

        def prepare() -> None:
            _die_with_parent()
            # One that searches, its guest and the device take turns: none of them waits for a processor to wake up.
            os.sched_setaffinity(0, {processor})

        source = str(Path(chamber.__file__).resolve().parent.parent)
        environment = {
            **os.environ, "PYTHONPATH": source, "AFL_PYTHON_MODULE": "chamber.fuzz.mutator",
            "AFL_CUSTOM_MUTATOR_ONLY": "1", "AFL_SKIP_BIN_CHECK": "1", "AFL_SKIP_CPUFREQ": "1", "AFL_NO_AFFINITY": "1",
            "AFL_I_DONT_CARE_ABOUT_MISSING_CRASHES": "1", "AFL_NO_UI": "1", "AFL_AUTORESUME": "1", "AFL_FAST_CAL": "1",
            "AFL_FORKSRV_INIT_TMOUT": "120000", "AFL_MAP_SIZE": "65536",
            FINDINGS: str(self.folder.findings.resolve()), REPORTS: str(self.folder.reports.resolve()),
            COSTS: str(self.folder.costs(job).resolve()), OCCASIONS: str(self.folder.occasions(job).resolve()),
            "TMPDIR": str(self.folder.temporary), **({PCI: "1"} if self.settings.pci else {})}
        command = [
            self._program, "-i", str(self.folder.seeds), "-o", str(self.folder.search),
            "-M" if number == 0 else "-S", job, "-t", str(_TIME_OUT_MS), "-m", "none", "-G", str(_MAX_INPUT),
            "-s", str(self._seed + number), "--", sys.executable, "-m", "chamber.fuzz.search_process",
            str(self.folder.top.resolve()), job]
        with (self.folder.progress / f"{job}.log").open("ab") as log:
            return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment,
                                    preexec_fn=prepare, start_new_session=True)  # noqa: PLW1509

    def _start_confirmation(self) -> subprocess.Popen[bytes]:
        def prepare() -> None:
            _die_with_parent()
            os.nice(_CONFIRMS_NICE)
            share_niceness()

        with (self.folder.progress / "confirmation.log").open("ab") as log:
            return subprocess.Popen(
                [sys.executable, "-m", "chamber.fuzz.confirmation", str(self.folder.top.resolve())],
                stdin=subprocess.PIPE, stdout=log, stderr=log, preexec_fn=prepare,  # noqa: PLW1509
                start_new_session=True, env={**os.environ, "TMPDIR": str(self.folder.temporary)})

    def mend(self) -> None:
        """Start again what has ended: a guest may fail to start on a machine that has much to do.

        Raises:
            CampaignError: it ends again and again.

        """
        for number, job in enumerate(self._jobs):
            process = self._processes[job]
            if process.poll() is None:
                continue
            self._restarts += 1
            if self._restarts > _RESTARTS:
                raise CampaignError(f"{job} ends again and again: {self._last_words(job)}")
            self._end([process])
            with _uninterrupted():
                self._processes[job] = self._start(job, number)

    def _last_words(self, job: str) -> str:
        for name, wanted in ((f"{job}.error", ""), (f"{job}.log", "ABORT"), (f"{job}.log", "")):
            with contextlib.suppress(OSError):
                text = (self.folder.progress / name).read_text(encoding="utf-8", errors="replace")
                lines = [line.strip() for line in text.splitlines() if line.strip() and wanted in line]
                if lines:
                    return lines[-1]
        return "it said nothing"

    # What it has come to.

    def counts(self) -> Counts:
        """Add up what all of its processes have done, in this search and before."""
        total = Counts()
        for path in self.folder.progress.glob("*.counts"):
            total += read_counts(path)
        return total

    def reached(self) -> set[Place]:
        """Places of the guest's drivers that were reached."""
        return {place for path in self.folder.progress.glob("*.reached") for place in read_reached(path)}

    def corpus(self) -> int:
        """Inputs that cover something that the others don't, by the largest of the queues, which are exchanged."""
        return max((sum(1 for _ in queue.glob("id:*")) for queue in self.folder.search.glob("*/queue")), default=0)

    # The end.

    def finish(self) -> None:
        """End the search, and say that no more reports come; what is confirmed now goes on to its end."""
        self._end(list(self._processes.values()))
        self._processes.clear()
        if self._confirmation is not None and self._confirmation.stdin is not None:
            self._confirmation.stdin.close()

    @property
    def confirming(self) -> bool:
        """Whether reports are being confirmed still."""
        return self._confirmation is not None and self._confirmation.poll() is None

    @staticmethod
    def _end(processes: list[subprocess.Popen[bytes]]) -> None:
        for process in processes:
            if process.poll() is None:
                process.terminate()
        deadline = time.monotonic() + _STOP_SECONDS
        for process in processes:
            try:
                process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            # Whatever it has left in its group: afl-fuzz kills what executes, which can't clean up then.
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)

    def close(self) -> None:
        """End everything."""
        self._end(list(self._processes.values()))
        self._processes.clear()
        if self._confirmation is not None:
            if self._confirmation.stdin is not None:
                self._confirmation.stdin.close()
            self._end([self._confirmation])
            self._confirmation = None
        if self._lock is not None:
            shutil.rmtree(self.folder.temporary, ignore_errors=True)
            self._lock.close()
            self._lock = None
