"""Executes inputs on a real kernel: one guest serves many, and is started anew where an input may have harmed it."""

from __future__ import annotations

import enum
import time
from typing import TYPE_CHECKING, Final

from chamber.device.catalogue import RINGS, make_device
from chamber.device.pci_over_virtio import PciOverVirtio
from chamber.device.virtio_pci import VirtioPci
from chamber.fuzz.execution import Execution
from chamber.fuzz.liar import Liar
from chamber.fuzz.lies import Point, Start
from chamber.fuzz.occasions import LearntOccasions
from chamber.lab.dma_watch import UNBOUNCED, DmaWatch
from chamber.lab.kernel.coverage import EDGES
from chamber.lab.linux_oracle import judge_console
from chamber.lab.observation import Evidence, Harm, TargetError
from chamber.lab.uml_guest import GuestDied
from chamber.lab.uml_worker import UmlWorker
from chamber.link.eventloop import EventLoop

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from chamber.device.base import Device
    from chamber.fuzz.lies import Program
    from chamber.lab.uml_kernel import UmlKernel
    from chamber.platform.dma import Dma
    from chamber.wire.virtio import DeviceType

__all__ = ("UmlExecutor",)

_PATIENCE: Final = 0.012
_PATIENCE_FACTOR: Final = 3
"""What the device keeps back is given after so long, and so many times what the same took otherwise."""
_HANG_SECONDS, _SURELY_HANGS_SECONDS = 0.3, 5.0
"""Seconds after which a guest that is served honestly hangs: for a search, which may err, and for who confirms it."""
_MAY_HANG_SECONDS: Final = 0.04
"""Seconds after which a search asks such a guest whether it is where one is known to hang."""
_ANSWERS_SECONDS, _SURELY_ANSWERS_SECONDS = 0.1, 0.4
"""Seconds that such a guest has to say where it is, if it can still: as above."""
_UNKNOWN_SECONDS: Final = 0.1
"""What something is said to take that was not seen to end yet."""
_CHANGE_SECONDS, _SURELY_CHANGED_SECONDS = 1.0, 5.0
"""Seconds that a probe, a removal or an honest session takes at most, a hundred times over: as above."""
_EXECUTIONS: Final = 5000
"""Executions that a guest serves: what they leave behind is not to add up."""
_FAILED: Final = 4
"""Sessions, one after the other, in which more goes wrong than usual, until a search makes sure that the driver has not
given up. A lie that is told makes most sessions fail, and few drivers."""
_NEWEST: Final = 0.02
"""What the last session counts for in what one costs."""
_KNOWN: Final = 200
"""Known reports after which it has had enough, too."""
_WAITS: Final = ("do_nanosleep", "poll_schedule_timeout", "do_sys_poll", "do_select", "wait_woken", "interrupt_end")
"""Where a worker is that just takes its time."""
_TRANSCRIPT: Final = 400
_LASTING: Final = frozenset({Point.USED_ID, Point.USED_AGAIN, Point.USED_AHEAD, Point.DESCRIPTOR})
"""Lies that a driver may not get over even though it works still."""
_POOL_IS_FULL: Final = "swiotlb buffer is full"
"""Drivers that leave buffers mapped when they are removed use the bounce pool up, and nothing works after that."""
_SYSRQ: Final = "sysctl.kernel.sysrq"
_SYSRQ_LOG_LEVEL, _SYSRQ_DUMPS = 2, 8
"""What such keys may do: change what is shown, or show something (SYSRQ_ENABLE_LOG, SYSRQ_ENABLE_DUMP)."""
_QUEUE_SIZE: Final = 32
"""Descriptors of a queue. Drivers fill those that they receive through, which is most of a probe's work."""


class _State(enum.Enum):
    """How far the device is."""

    OUT = "not plugged in"
    ALONE = "plugged in, without a driver"
    BOUND = "with its driver"


_STEPS: Final = {
    (_State.OUT, _State.ALONE): ("connect", "remove"), (_State.OUT, _State.BOUND): ("connect",),
    (_State.ALONE, _State.OUT): ("disconnect",), (_State.ALONE, _State.BOUND): ("probe",),
    (_State.BOUND, _State.OUT): ("disconnect",), (_State.BOUND, _State.ALONE): ("remove",),
}
_FROM: Final = {Start.SESSION: _State.BOUND, Start.PROBE: _State.ALONE, Start.CONNECT: _State.OUT}


class UmlExecutor:
    """Executes inputs for one type of device.

    Args:
        kernel: what to boot.
        device: the type.
        known: whether a report is known: the guest goes on after such, if it can.
        folder: where guests' files go for as long as they live.
        trace: keep a transcript of each execution; without one, it is hurried.
        pci: the guest finds the device on a PCI bus, and bounces all that it lends to it.

    Attributes:
        boots: guests started.
        executions: inputs executed on the guest that there is now.
        costs: seconds that a session of each use takes, by the number that inputs have for it.
        occasions: what came up to lie about.
        hurried: a guest that takes long is taken for one that hangs sooner, and now and then wrongly; one that is
            started notes not who allocates and releases memory.

    """

    def __init__(self, kernel: UmlKernel, device: DeviceType, *, known: Callable[[Evidence], bool] = lambda _e: False,
                 folder: Path | None = None, trace: bool = False, pci: bool = False) -> None:
        self.boots = 0
        self.executions = 0
        self.costs: dict[int, float] = {}
        self.occasions = LearntOccasions()
        self._kernel = kernel.for_device(device)
        self._type = device
        self._known = known
        self._folder = folder
        self._trace = trace
        self.hurried = not trace
        self._pci = pci
        self._pool: range | None = None
        self._outside: list[Evidence] = []
        self._loop = EventLoop()
        self._worker: UmlWorker | None = None
        self._state = _State.OUT
        self._ring = "split"
        self._liar: Liar | None = None
        self._device: Device | None = None
        self._transcript: list[str] = []
        self._begin = 0.0
        self._reports = 0
        self._over = False
        self._hung: Evidence | None = None
        self._failures: dict[str, int] = {}
        self._failed = 0
        self._usual: dict[tuple[Start, str], float] = {}
        self._no_edges = memoryview(bytes(EDGES))
        self._taken = 0

    # The guest.

    @property
    def edges(self) -> memoryview:
        """What the last execution covered; nothing where the kernel does not count."""
        coverage = None if self._worker is None else self._worker.guest.coverage
        return self._no_edges if coverage is None else coverage.edges

    def taken(self) -> int:
        """Return which edges were taken by any execution so far, as `Executor` says; guests keep count of theirs."""
        coverage = None if self._worker is None else self._worker.guest.coverage
        if coverage is not None:
            self._taken |= int.from_bytes(coverage.ever(), "little")
        return self._taken

    @property
    def pid(self) -> int:
        """The guest's kernel."""
        return self._ready().guest.pid

    @property
    def release(self) -> str:
        """What the kernel says that it is."""
        return self._kernel.release

    @property
    def uses(self) -> tuple[str, ...]:
        """What the guest can do with the device."""
        return self._ready().uses

    def reached(self) -> tuple[set[int], dict[str, dict[str, int]]]:
        """The addresses that the guest's drivers have reached, and where its modules are: see `locate`."""
        guest = None if self._worker is None else self._worker.guest
        if guest is None or guest.coverage is None:
            return set(), {}
        return guest.coverage.places(), guest.sections

    def _ready(self) -> UmlWorker:
        if self._worker is None:
            self._liar = None
            # A host that types on a console may ask for a crash, and gets it: nothing to be found out here. What allows
            # a crash allows what who confirms asks for (`UmlGuest.where`).
            words = (*self._kernel.options, f"chamber.queue_size={_QUEUE_SIZE}", "scsi_mod.scan=sync",
                     *(("chamber.stacks=0", f"{_SYSRQ}={_SYSRQ_LOG_LEVEL}") if self.hurried
                       else (f"{_SYSRQ}={_SYSRQ_DUMPS}",)),
                     *(("swiotlb=force",) if self._pci else ()))
            self._worker = UmlWorker(self._kernel, self._loop, self._type, self._provide, options=words,
                                     folder=self._folder, pci=self._pci)
            self._worker.asked = self._asked
            if self._pci:
                self._pool = self._find_pool(self._worker)
            self._count(on=False)
            self.boots += 1
            self.executions = self._reports = 0
            self._state = _State.OUT
        return self._worker

    def _find_pool(self, worker: UmlWorker) -> range:
        """Ask the kernel where its bounce pool is: without that, nothing that leaves it would be seen."""
        pool = worker.guest.bounce_pool()
        if pool is None:
            self.restart()
            raise TargetError(f"{self._kernel.path}: its log tells of no bounce pool")
        return pool

    def _provide(self) -> Device | None:
        if self._pci and self._worker is None:
            return None  # it boots, and would look at the function only to let go of it
        if self._device is not None:
            self._device.close()
        self._device = device = make_device(self._type, hooks=self._liar, ring=self._ring)
        if self._trace:
            device.trace = self._note
        if not self._pci:
            return device
        function = VirtioPci(device)
        return PciOverVirtio(function, lambda dma: self._watched(function, dma))

    def _watched(self, function: VirtioPci, dma: Dma) -> Dma:
        """Have an eye on what a function reaches: a bouncing guest lends it the pool and the rings."""
        if self._pool is None or function.device.type in UNBOUNCED:
            return dma
        return DmaWatch(dma, self._pool, function.ring_areas, self._outside.append)

    def _note(self, line: str) -> None:
        if len(self._transcript) < _TRANSCRIPT:
            self._transcript.append(f"{time.monotonic() - self._begin:8.4f} {line}")

    def _asked(self, action: str) -> None:
        if self._device is not None:
            self._device.host_action(action)

    def _count(self, *, on: bool) -> None:
        coverage = None if self._worker is None else self._worker.guest.coverage
        if coverage is not None:
            coverage.count(on=on)

    def restart(self) -> None:
        """End the guest; the next execution begins with a fresh one."""
        self.taken()
        worker, self._worker = self._worker, None
        if worker is not None:
            worker.close()
        device, self._device = self._device, None
        if device is not None:
            device.close()

    def close(self) -> None:
        """End the guest for good."""
        self.restart()
        self._loop.close()

    # Executions.

    def run(self, program: Program) -> Execution:
        """Execute an input.

        Raises:
            TargetError: the guest does not start, or its device does not work with an honest host.

        """
        start = program.least_start
        self._transcript = []
        self._begin = time.monotonic()
        if self.executions >= _EXECUTIONS or self._reports >= _KNOWN:
            self.restart()
        self._change(_FROM[start])
        worker = self._ready()
        number = program.use % len(worker.uses)
        use = worker.uses[number]
        execution = Execution(use, transcript=self._transcript)
        occasions = self.occasions.look(start, number)
        liar = self._liar = Liar(program.lies, occasions)
        if start is Start.CONNECT:
            self._ring = tuple(RINGS)[program.ring % len(RINGS)]
        elif self._device is not None:
            self._device.hooks = liar
            liar.attach(self._device)
        steps = {Start.SESSION: [use], Start.PROBE: ["probe", use, "remove"],
                 Start.CONNECT: ["connect", use, "disconnect"]}[start]
        coverage = worker.guest.coverage
        if coverage is not None:
            coverage.clear_edges()
            coverage.count(on=True)
        self.executions += 1
        begin = time.monotonic()
        try:
            self._do(worker, liar, start, steps, execution)
        except GuestDied:
            self._died(worker, execution)
        self._count(on=False)
        execution.strikes, execution.told = liar.strikes, dict(liar.told)
        if occasions is not None:
            self.occasions.add(start, number, occasions)
        self._judge(worker, execution)
        if start is Start.SESSION and self._worker is worker:  # one that ends its guest costs what any such does
            seconds = time.monotonic() - begin
            self.costs[number] = self.costs.get(number, seconds) * (1 - _NEWEST) + seconds * _NEWEST
        if self._device is not None:
            self._device.hooks = None
        self._liar = None
        self._ring = "split"
        return execution

    def _do(self, worker: UmlWorker, liar: Liar, start: Start, steps: list[str], execution: Execution) -> None:
        if start is Start.SESSION:
            liar.begin()
        key = start, execution.use
        usual = self._usual.get(key, _UNKNOWN_SECONDS)
        begin = time.monotonic()
        answer = worker.do(steps, _PATIENCE + _PATIENCE_FACTOR * usual, stalled=lambda: liar.owes)
        if answer is not None:
            self._usual[key] = (7 * self._usual.get(key, usual) + time.monotonic() - begin) / 8
        else:
            liar.honest()
            answer = self._go_on(worker, steps, _HANG_SECONDS if self.hurried else _SURELY_HANGS_SECONDS)
        self._note(f"guest: {' '.join(steps)}: {'does not end' if answer is None else answer or 'done'}")
        if answer is None:
            self._hangs(worker, steps, execution)
            return
        liar.honest()
        # Where it can't be said how far things got, the next execution finds out.
        self._state = {Start.SESSION: _State.BOUND, Start.PROBE: _State.ALONE, Start.CONNECT: _State.OUT}[start]
        if start is Start.SESSION:
            lasting = any(lie.point in _LASTING and number in liar.told for number, lie in liar.numbered)
            if lasting or self._gave_up(worker, execution):
                self._leave(worker, execution)

    def _gave_up(self, worker: UmlWorker, execution: Execution) -> bool:
        """Whether the driver does not serve any more, as far as can be said without using the device too often."""
        self._failed = self._failed + 1 if self._fails(worker, execution) else 0
        if self._failed < (_FAILED if self.hurried else 1):
            return False
        self._failed = 0
        return self._fails_again(worker, execution)

    def _fails(self, worker: UmlWorker, execution: Execution) -> bool:
        """Whether more went wrong in the last session than goes wrong with an honest device."""
        usually = self._failures[execution.use] = min(self._failures.get(execution.use, worker.failed), worker.failed)
        return worker.failed > usually

    def _fails_again(self, worker: UmlWorker, execution: Execution) -> bool:
        """Use the device once more, which is honest now: an error is over then, a driver that gave up has to go."""
        self._count(on=False)
        if self._do_honestly(worker, execution.use) is None:
            self._hangs(worker, [execution.use], execution)
            return False
        return self._fails(worker, execution)

    def _go_on(self, worker: UmlWorker, steps: Sequence[str], seconds: float) -> str | None:
        """Wait for steps to end after all; not for long where the guest is known to hang."""
        if self.hurried:
            self._hung = None
            answer = worker.go_on(_MAY_HANG_SECONDS)
            if answer is not None:
                return answer
            evidence = self._hang(worker, steps)
            if evidence is not None and self._known(evidence):
                self._hung = evidence
                return None
        return worker.go_on(seconds)

    def _do_honestly(self, worker: UmlWorker, *steps: str) -> str | None:
        """Have steps done with a host that is honest, which nothing that takes long is expected of."""
        answer = worker.do(steps, 0.0)
        seconds = _CHANGE_SECONDS if self.hurried else _SURELY_CHANGED_SECONDS
        return self._go_on(worker, steps, seconds) if answer is None else answer

    def _hangs(self, worker: UmlWorker, steps: Sequence[str], execution: Execution) -> None:
        """Tell where the guest is that does not get on, and be done with it."""
        self._over = True
        evidence = self._hung or self._hang(worker, steps)
        if evidence is not None:
            execution.evidence.append(evidence)

    def _hang(self, worker: UmlWorker, steps: Sequence[str]) -> Evidence | None:
        """Look where the guest is that does not get on; None where it just takes its time."""
        stack = worker.where(_ANSWERS_SECONDS if self.hurried else _SURELY_ANSWERS_SECONDS)
        where = [frame for frame in stack if not frame.startswith(("__switch_to", "schedule", "__schedule"))]
        if where and where[0].startswith(_WAITS):
            return None
        return Evidence(
            Harm.DENIAL, f"hang in {' < '.join(where[:2])}" if where else "guest stopped answering",
            f"'{' '.join(steps)}' did not end with a device that was honest again; kernel stack: "
            f"{' < '.join(stack) or ('not asked for' if self.hurried else worker.guest.where())}")

    def _leave(self, worker: UmlWorker, execution: Execution) -> None:
        """Remove the driver: what an execution has done to it is over then, or shows now."""
        if self._state is _State.BOUND:
            if self._do_honestly(worker, "remove") is None:
                self._hangs(worker, ["remove"], execution)
            self._state = _State.ALONE

    def _change(self, wanted: _State) -> None:
        """Bring the device to where an execution begins, with an honest host."""
        for attempt in range(3):
            worker = self._ready()
            if self._state is wanted:
                return
            try:
                answer = self._do_honestly(worker, *_STEPS[self._state, wanted])
                if answer == "":
                    self._state = wanted
                    return
                # The driver did not want the device, or lost it: from the beginning, then with another guest.
                if not attempt and answer is not None and self._do_honestly(worker, "disconnect") == "":
                    self._state = _State.OUT
                    continue
            except GuestDied:
                pass
            self.restart()
        raise TargetError("a fresh guest does not take the honest device: " + (
            self._worker.guest.last_words() if self._worker is not None else "it does not start"))

    def _died(self, worker: UmlWorker, execution: Execution) -> None:
        status = worker.guest.exit_status
        execution.console = worker.guest.take_console()
        if not judge_console(execution.console):
            if status is not None and status < 0:
                signature, harm = f"guest ended by signal {-status} without a word", Harm.MEMORY
            else:
                signature, harm = f"guest ended by status {status} without a word", Harm.DENIAL
            execution.evidence.append(Evidence(harm, signature, execution.console[-2000:]))

    def _judge(self, worker: UmlWorker, execution: Execution) -> None:
        """Read what the kernel says, and decide whether the guest is good for another execution."""
        execution.console += worker.guest.take_console()
        if execution.console:
            known = {e.signature for e in execution.evidence}
            execution.evidence[:0] = [e for e in judge_console(execution.console) if e.signature not in known]
        execution.evidence += worker.leaks.evidence + self._outside
        worker.leaks.evidence = []
        self._outside.clear()
        if self._over or _POOL_IS_FULL in execution.console:
            self._over = False
            self._keep_edges()
            self.restart()
            return
        if not execution.evidence:
            return
        self._reports += 1
        if not worker.guest.alive or not self._known(execution.evidence[0]):
            self._keep_edges()
            self.restart()
        else:
            try:
                self._leave(worker, execution)
            except GuestDied:
                self.restart()

    def _keep_edges(self) -> None:
        self._no_edges = memoryview(bytes(self.edges))
