"""Runs scenarios in worker processes, for targets that are nothing but Python."""

from __future__ import annotations

import contextlib
import multiprocessing
import signal
import time
import traceback
from multiprocessing.connection import Connection, wait
from typing import TYPE_CHECKING, Final

from chamber.attacks.catalogue import find
from chamber.lab.observation import Observation, Scenario, TargetError

if TYPE_CHECKING:
    from collections.abc import Callable
    from multiprocessing.process import BaseProcess

    from chamber.attacks.attack import AttackSpec
    from chamber.lab.observation import Target
    from chamber.wire.virtio import DeviceType

__all__ = ("LIMIT_SECONDS", "run_in_workers", "run_safely")

LIMIT_SECONDS: Final = 120.0
"""A scenario that takes longer ends with its worker. The guest has limits of its own, which are far below."""

_Task = tuple["DeviceType", tuple[str, ...], str | None, str | None, int, str, bool, bool]


def run_safely(target: Target, scenario: Scenario) -> Observation:
    """Run a scenario; an error in the harness makes it a failed one and stops no other."""
    begin = time.monotonic()
    try:
        return target.run(scenario)
    except TargetError as error:
        failure = str(error)
    except Exception as error:  # whatever it is, the verdict is that nothing was learned
        where = traceback.extract_tb(error.__traceback__)[-1]
        failure = f"{type(error).__name__}: {error} ({where.name}, line {where.lineno})"
    return Observation(failure=failure, seconds=time.monotonic() - begin)


def run_in_workers(make_target: Callable[[], Target], scenarios: list[Scenario],
                   on_result: Callable[[Scenario, Observation], None], jobs: int, *,
                   find_attack: Callable[[str], AttackSpec] = find, limit: float = LIMIT_SECONDS) -> None:
    """Run scenarios in up to `jobs` processes; results come in the order in which they are ready.

    Args:
        make_target: builds the target in a worker; like `find_attack` it is found there by name.
        scenarios: what to run.
        on_result: gets each scenario with what was seen.
        jobs: worker processes.
        find_attack: gives the attack of a name; attacks themselves cannot be sent.
        limit: seconds for one scenario.

    Raises:
        KeyboardInterrupt: passed on after all workers are gone.

    """
    todo = list(reversed(scenarios))
    workers: dict[Connection, _Worker] = {}
    try:
        while todo or workers:
            while todo and len(workers) < jobs:
                worker = _Worker(make_target, find_attack, todo.pop(), limit)
                workers[worker.connection] = worker
            patience = min(worker.deadline for worker in workers.values()) - time.monotonic()
            ready = [c for c in wait(list(workers), max(0.0, patience)) if isinstance(c, Connection)]
            late = [c for c, worker in workers.items() if c not in ready and worker.deadline <= time.monotonic()]
            for connection in (*ready, *late):
                worker = workers[connection]
                scenario, observation = worker.scenario, worker.result() if connection in ready else None
                if observation is None:
                    workers.pop(connection).close()
                    observation = Observation(failure=f"no result within {limit:.0f} s" if connection in late
                                              else "the worker that ran it died")
                elif todo:
                    worker.give(todo.pop())
                else:
                    workers.pop(connection).close()
                on_result(scenario, observation)
    finally:
        for worker in workers.values():
            worker.close()


class _Worker:
    """A process with a target of its own.

    It starts with SIGINT blocked: Ctrl-C goes to all processes of the terminal, and the parent alone decides.
    """

    def __init__(self, make_target: Callable[[], Target], find_attack: Callable[[str], AttackSpec],
                 scenario: Scenario, limit: float) -> None:
        context = multiprocessing.get_context("spawn")
        self.connection, inner = context.Pipe()
        self._limit = limit
        self._process: BaseProcess = context.Process(target=_work, args=(inner, make_target, find_attack), daemon=True)
        blocked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            self._process.start()
        finally:
            inner.close()
            signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
        self.give(scenario)

    def give(self, scenario: Scenario) -> None:
        """Send the next scenario."""
        self.scenario = scenario
        self.deadline = time.monotonic() + self._limit
        task: _Task = (scenario.device, scenario.stimuli, scenario.attack.name if scenario.attack else None,
                       scenario.profile, scenario.seed, scenario.ring, scenario.pci, scenario.hosted)
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # it is gone: `result` tells
            self.connection.send(task)

    def result(self) -> Observation | None:
        """Receive what was seen; None if the worker is gone."""
        try:
            observation: Observation = self.connection.recv()
        except (EOFError, OSError):
            return None
        return observation

    def close(self) -> None:
        """End the process, whatever it is doing; all that it has goes with it."""
        self.connection.close()
        self._process.terminate()
        self._process.join(5)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()
        self._process.close()


def _work(connection: Connection, make_target: Callable[[], Target], find_attack: Callable[[str], AttackSpec]) -> None:
    """Run what comes until the other end closes."""
    target = make_target()
    try:
        while True:
            device, stimuli, attack, *rest = connection.recv()
            scenario = Scenario(device, stimuli, find_attack(attack) if attack else None, *rest)
            connection.send(run_safely(target, scenario))
    except (EOFError, BrokenPipeError, ConnectionResetError):
        pass
    finally:
        target.close()
