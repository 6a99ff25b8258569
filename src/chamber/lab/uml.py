"""The targets ``uml`` and ``uml-pci``: a Linux kernel as a process.

The one is a stock kernel (Debian's user-mode-linux) or one that was built here, with its devices on a bus of their own.
The other finds them on a PCI bus, and bounces all DMA: it has to be built here.
"""

from __future__ import annotations

import ctypes
import itertools
import multiprocessing
import os
import signal
from functools import partial
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import TYPE_CHECKING, Final

from chamber.attacks.catalogue import find
from chamber.lab.child_process import end_in_order
from chamber.lab.kernel.places import read_places
from chamber.lab.kernel.store import find_noticing
from chamber.lab.observation import Observation, Scenario, TargetError
from chamber.lab.uml_kernel import UmlKernel, find_kernel
from chamber.lab.uml_runner import UmlRunner

if TYPE_CHECKING:
    from collections.abc import Callable
    from multiprocessing.process import BaseProcess

    from chamber.device.capture import CaptureFile
    from chamber.lab.agent_guest import AgentGuest
    from chamber.lab.kernel.places import Place
    from chamber.lab.qemu.install import QemuKernel
    from chamber.wire.virtio import DeviceType

__all__ = ("UmlPciTarget", "UmlTarget")

_PR_SET_PDEATHSIG: Final = 1
_Task = tuple[int, "DeviceType", tuple[str, ...], str | None, int, str]


class UmlTarget:
    """A stock kernel under attack; several guests at once, each in a worker process of its own.

    Args:
        kernel: the binary, or None for Debian's ``linux.uml``.
        options: words for the kernel's command line; the default makes silent corruption loud.
        capture: where `run` writes down what crosses the boundary; `run_all` writes nothing down.

    Raises:
        TargetError: there is no such kernel.

    """

    kind = "uml"
    pci = False
    guests_per_job = 2

    def __init__(self, kernel: Path | None = None, *, options: tuple[str, ...] | None = None,
                 capture: CaptureFile | None = None) -> None:
        found = find_kernel(kernel)
        self._use(found, found.options if options is None else options, capture)

    def _use(self, kernel: UmlKernel | QemuKernel, options: tuple[str, ...], capture: CaptureFile | None) -> None:
        self.kernel = kernel
        self.devices = kernel.devices
        self.options = options
        self._capture = capture
        self._runner: UmlRunner | None = None
        self._reached: set[Place] = set()

    def describe(self) -> dict[str, object]:
        """What the report says about this target."""
        about: dict[str, object] = {"kind": self.kind, "kernel": self.kernel.release, "path": str(self.kernel.path),
                                    "options": list(self.options), "memory_mb": self.kernel.memory_mb}
        if self._reached and isinstance(self.kernel, UmlKernel) and self.kernel.built is not None:
            about["coverage"] = {
                lines.device.short: dict(zip(("lines", "of", "sites", "of_sites"), lines.counts(), strict=True))
                for lines in read_places(self.kernel.built).report(self._reached) if any(lines.covered.values())}
        return about

    def run(self, scenario: Scenario) -> Observation:
        """Run one scenario here and now."""
        observation = self._own_runner().run(scenario)
        self._reached.update(observation.reached)
        return observation

    def guest(self) -> AgentGuest:
        """Return the guest that `run` uses, booted if there is none; `close` ends it.

        Raises:
            TargetError: it does not boot.

        """
        return self._own_runner().guest()

    def _own_runner(self) -> UmlRunner:
        if self._runner is None:
            self._runner = self._make_runner(self._capture)()
        return self._runner

    def _make_runner(self, capture: CaptureFile | None = None) -> Callable[[], UmlRunner]:
        """Return what makes a runner, here or in a process that it is sent to."""
        return partial(UmlRunner, self.kernel, options=self.options, capture=capture, pci=self.pci)

    def run_all(self, scenarios: list[Scenario], on_result: Callable[[Scenario, Observation], None],
                jobs: int = os.cpu_count() or 1) -> None:
        """Run scenarios on a few guests a job, as a guest under attack mostly waits; results come as they are ready.

        Raises:
            KeyboardInterrupt: passed on after all guests are gone.

        """
        # Shutting down costs a boot: those scenarios come last, when no others can share it.
        # The others go in the order given, so that a run that is cut short has its baselines, which are first.
        todo = sorted(range(len(scenarios)), key=lambda i: ("shutdown" in scenarios[i].stimuli, i), reverse=True)
        workers: dict[Connection, _Worker] = {}
        processors = itertools.cycle(sorted(os.sched_getaffinity(0)))
        try:
            for _, processor in zip(range(min(self.guests_per_job * jobs, len(scenarios))), processors, strict=False):
                worker = _Worker(self._make_runner(), processor)
                workers[worker.connection] = worker
                worker.give(todo.pop(), scenarios)
            while workers:
                for ready in wait(list(workers)):
                    assert isinstance(ready, Connection)
                    worker = workers[ready]
                    observation = worker.result()
                    self._reached.update(observation.reached)
                    on_result(scenarios[worker.task], observation)
                    if todo and worker.alive:
                        worker.give(todo.pop(), scenarios)
                    else:
                        workers.pop(ready).close()
                        if todo:  # it died; its place is taken by another
                            fresh = _Worker(self._make_runner(), worker.processor)
                            workers[fresh.connection] = fresh
                            fresh.give(todo.pop(), scenarios)
        finally:
            for worker in workers.values():
                worker.close()

    def close(self) -> None:
        """End the guest that `run` left."""
        runner, self._runner = self._runner, None
        if runner is not None:
            runner.close()


class UmlPciTarget(UmlTarget):
    """The same with devices on a PCI bus, and all that is lent to them bounced: a confidential guest's whole path.

    Args:
        kernel: the binary, or None for the newest one built here that notices (`chamber lab build`).
        options: words for the kernel's command line besides those that force the bounce pool.
        capture: as for `UmlTarget`.

    Raises:
        TargetError: there is no such kernel, or it has no PCI bus.

    """

    kind = "uml-pci"
    pci = True

    def __init__(self, kernel: Path | None = None, *, options: tuple[str, ...] | None = None,
                 capture: CaptureFile | None = None) -> None:
        super().__init__(Path(find_noticing().name) if kernel is None else kernel, options=options, capture=capture)
        if not isinstance(self.kernel, UmlKernel) or self.kernel.built is None:
            raise TargetError(f"{self.kernel.path}: no kernel with a PCI bus: chamber lab build 7.3 makes one")
        self.options = (*self.options, "swiotlb=force")


class _Worker:
    """A process that runs scenarios; attacks go to it by name.

    It keeps to one processor, and so does its guest: the two take turns, and neither waits for a processor to wake up.
    """

    def __init__(self, make_runner: Callable[[], UmlRunner], processor: int) -> None:
        context = multiprocessing.get_context("spawn")
        self.processor = processor
        self.connection, inner = context.Pipe()
        self._process: BaseProcess = context.Process(target=_work, args=(inner, make_runner, processor, os.getpid()))
        self._process.start()
        inner.close()
        self.task = -1
        self.alive = True

    def give(self, index: int, scenarios: list[Scenario]) -> None:
        scenario = scenarios[index]
        self.task = index
        task: _Task = (index, scenario.device, scenario.stimuli,
                       None if scenario.attack is None else scenario.attack.name, scenario.seed, scenario.ring)
        self.connection.send(task)

    def result(self) -> Observation:
        try:
            observation: Observation = self.connection.recv()
        except (EOFError, OSError):
            self.alive = False
            return Observation(failure="the worker that ran it died")
        return observation

    def close(self) -> None:
        self._process.terminate()
        self._process.join(10)
        self.connection.close()
        if self._process.is_alive():
            self._process.kill()
            self._process.join()
        self._process.close()


def _work(connection: Connection, make_runner: Callable[[], UmlRunner], processor: int, parent: int) -> None:
    """Run scenarios until the other end closes; the guest ends with this process, however it ends."""
    end_in_order()
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
    if os.getppid() != parent:
        return
    os.sched_setaffinity(0, {processor})
    runner = make_runner()
    try:
        try:
            while True:
                _, device, stimuli, attack, seed, ring = connection.recv()
                scenario = Scenario(device, stimuli, None if attack is None else find(attack), None, seed, ring)
                connection.send(runner.run(scenario))
        except (EOFError, BrokenPipeError, ConnectionResetError):
            pass
        finally:
            # The end may come by the connection and by a signal at once; neither must cut the other short.
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
    finally:
        runner.close()
