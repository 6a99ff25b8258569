"""Runs scenarios on user-mode-linux guests, one after another, many on one boot."""

from __future__ import annotations

import hashlib
import random
import re
import time
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, Final

from chamber.attacks.admin import ADMINISTER
from chamber.device.capture import Recorder
from chamber.device.catalogue import make_device
from chamber.device.pci_over_virtio import PciOverVirtio
from chamber.device.sriov_group import owner_of_one
from chamber.device.virtio_pci import VirtioPci
from chamber.lab.agent_guest import GuestDied
from chamber.lab.dma_watch import UNBOUNCED, DmaWatch
from chamber.lab.kernel.places import locate
from chamber.lab.leaks import LeakWatch
from chamber.lab.linux_oracle import judge_console
from chamber.lab.observation import Evidence, Harm, Observation, TargetError
from chamber.lab.pool_watch import PoolWatch
from chamber.lab.slot_table import find_table
from chamber.lab.uml_guest import UmlGuest
from chamber.lab.uml_kernel import UmlKernel
from chamber.link.eventloop import EventLoop
from chamber.wire.errors import DmaFault

if TYPE_CHECKING:
    from collections.abc import Callable

    from chamber.attacks.attack import Attack
    from chamber.device.base import Device
    from chamber.device.capture import CaptureFile
    from chamber.device.chain import Chain
    from chamber.lab.agent_guest import AgentGuest
    from chamber.lab.kernel.places import Place
    from chamber.lab.observation import Scenario
    from chamber.lab.qemu.install import QemuKernel
    from chamber.lab.slot_table import SlotTable
    from chamber.platform.dma import Dma
    from chamber.wire.virtio import DeviceType

__all__ = ("UmlRunner",)

BASELINE_SECONDS: Final = 15.0
"""What an honest run may take at most, on a machine however busy."""
_HANG_FACTOR: Final = 8
_HANG_SECONDS: Final = 2.5
"""Stimuli are called hung after so long, or after so many times what they took with an honest device."""
_GRACE_SECONDS: Final = 2.0
_OFF_SECONDS: Final = 6.0
_CHECK_SECONDS: Final = 10.0
_TRANSCRIPT_LIMIT: Final = 2000
_MOST_MAPPED: Final = 0.25
"""Of the bounce pool, with nobody there to use it: a guest is replaced that has more of it mapped."""
_WAKE_AFTER: Final = 0.06
_WAKE_AGAIN: Final = 1.0
_SPIN_SECONDS: Final = 0.0005

_WAITING: Final = re.compile(
    r"__switch_to|_*schedule|io_sched|wait_|_*wait_for|folio_|filemap_|do_read_cache|read_cache")
"""Where every process waits: not what tells one hang from another."""


class UmlRunner:
    """One worker's guests.

    A subclass may boot guests of another kind, which are as slow as its `slowness` says.

    An attack runs on a guest that others were run on before, flanked by honest runs of the same stimuli. Whatever it
    seems to do is believed only when a guest that nobody else has touched shows it too.

    Args:
        kernel: what to boot.
        options: further words for the kernel's command line; by default those that make it loud.
        make_device: builds the device of a type with the hooks given.
        capture: where to write down what crosses the boundary.
        pci: whether the guest finds its devices on a PCI bus, and bounces all that it lends to them.

    """

    slowness: ClassVar[int] = 1
    """What times are multiplied by after which a guest is given up."""

    def __init__(self, kernel: UmlKernel | QemuKernel, *, options: tuple[str, ...] | None = None,
                 make_device: Callable[..., Device] = make_device, capture: CaptureFile | None = None,
                 pci: bool = False) -> None:
        self.kernel = kernel
        self.boots = 0
        self._options = kernel.options if options is None else options
        self._make_device = make_device
        self._capture = capture
        self._pci = pci
        self._pool: range | None = None
        self._pool_watch: PoolWatch | None = None
        self._slots: SlotTable | None = None
        self._runs = 0
        self._dma_evidence: list[Evidence] = []
        self._loop = EventLoop(spin=_SPIN_SECONDS)
        self._guest: AgentGuest | None = None
        self._pristine = True
        self._used_up = False
        self._waking = False
        self._attack: Attack | None = None
        self._device: Device | None = None
        self._devices: dict[DeviceType, Device] = {}
        self._transcript: list[str] = []
        self._started = 0.0
        self._leaks = LeakWatch(b"")
        self._usual: dict[tuple[DeviceType, tuple[str, ...], str], float] = {}
        self._ring = "split"
        self._owner = False
        self._reached: set[Place] = set()
        self._fresh: list[Place] = []

    # What the guest's kernel reaches.

    def _provide(self, kind: DeviceType) -> Device | None:
        if self._pci and self._guest is None:
            return None  # it boots, and would look at each function only to let go of it
        device = self._make(kind)
        return self._on_a_bus(device) if self._pci else device

    def _make(self, kind: DeviceType) -> Device:
        """Make a device, with the attack of the moment."""
        attack = self._attack
        hooks = attack if self._capture is None else Recorder(self._capture, attack)
        device = self._make_device(kind, hooks=hooks, ring=self._ring)
        device.trace = self._note
        if (before := self._devices.pop(kind, None)) is not None:
            before.close()  # its session has ended: a guest has one of each
        self._device = self._devices[kind] = device
        return device

    def _on_a_bus(self, device: Device) -> Device:
        """Put a device into a PCI function."""
        function = owner_of_one(device, for_linux=True).owner if self._owner else VirtioPci(device)
        return PciOverVirtio(function, lambda dma: self._watched(function, dma), self._left)

    def _watched(self, function: VirtioPci, dma: Dma) -> Dma:
        """Have an eye on what a function reaches, and on what it is lent."""
        assert self._pool is not None
        assert self._pool_watch is not None
        for queue in function.device.queues:
            queue.lent = partial(self._lent, dma)
        if function.device.type in UNBOUNCED:
            return dma
        return DmaWatch(dma, self._pool, function.ring_areas, self._dma_evidence.append)

    def _lent(self, dma: Dma, chain: Chain) -> None:
        """Take note of a chain that the guest lends."""
        assert self._pool_watch is not None
        self._pool_watch.lent(chain)
        if self._slots is not None:
            with suppress(DmaFault):
                self._slots.lent(chain, dma, self._dma_evidence.append)

    def _left(self, dma: Dma) -> None:
        """Look through the pool when the guest has let go of a function."""
        with suppress(DmaFault):  # a guest that ends takes its memory with it
            if self._pool_watch is not None:
                self._pool_watch.scan(dma, self._dma_evidence.append, self._note)
            if self._slots is not None:
                self._slots.finish(dma, self._dma_evidence.append, self._note)

    def _note(self, line: str) -> None:
        if len(self._transcript) < _TRANSCRIPT_LIMIT:
            self._transcript.append(f"{time.monotonic() - self._started:8.4f} {line}")

    def _asked(self, action: str) -> None:
        if action == "wake":
            self._waking = True
            self._loop.call_later(_WAKE_AFTER, self._wake)
        elif action == "awake":
            self._waking = False
        elif self._device is not None:
            self._device.host_action(action)

    def _wake(self, used: float = -1.0) -> None:
        """Press the button once the guest sleeps: earlier it is lost, or hits User-Mode Linux where it holds a lock."""
        if not self._waking or self._guest is None:
            return
        now = self._guest.processor_seconds()
        if now == used:
            self._guest.wake()
            self._loop.call_later(_WAKE_AGAIN, self._wake)
        else:
            self._loop.call_later(_WAKE_AFTER, partial(self._wake, now))

    # Guests.

    def _boot(self) -> AgentGuest:
        assert isinstance(self.kernel, UmlKernel)
        providers = {kind: partial(self._provide, kind) for kind in self.kernel.devices}
        return UmlGuest(self.kernel, self._loop, providers, options=self._options, observer=self._observe,
                        pci=self._pci)

    def guest(self) -> AgentGuest:
        """Return the running guest, booted now if there is none.

        Raises:
            TargetError: the kernel does not boot.

        """
        if self._guest is None:
            self._attack = None
            self._guest = self._boot()
            if self._pci:
                self._pool = self._find_pool(self._guest)
                self._pool_watch = PoolWatch(self._pool)
                self._slots = find_table(self._guest.pid, self.kernel.path, self._pool)
            self._guest.asked = self._asked
            self._waking = self._used_up = False
            self.boots += 1
            self._pristine = True
        return self._guest

    def _find_pool(self, guest: AgentGuest) -> range:
        """Ask the kernel where its bounce pool is: without that, nothing that leaves it would be seen."""
        pool = guest.bounce_pool()
        if pool is None:
            self.discard()
            raise TargetError(f"{self.kernel.path}: its log tells of no bounce pool")
        return pool

    def _observe(self, data: bytes) -> None:
        self._leaks.saw(data)

    def discard(self) -> None:
        """End the guest; the next scenario boots another."""
        guest, self._guest = self._guest, None
        if guest is not None:
            self._note_places(guest)
            guest.close()
        while self._devices:
            self._devices.popitem()[1].close()

    def close(self) -> None:
        """End the guest for good."""
        self.discard()
        self._loop.close()

    # Scenarios.

    def run(self, scenario: Scenario) -> Observation:
        """Run a scenario; one that shows harm on a used guest is run again on a fresh one, whose word counts."""
        begin = time.monotonic()
        if self._used_up:
            self.discard()
        try:
            self.guest()
            alone = self._pristine
            observation = self._once(scenario)
            # Damage may have been done earlier and show now. Hangs, wrong data and leaks come from what happens now.
            doubtful = any(e.harm is Harm.MEMORY or e.signature.startswith("afterwards") for e in observation.evidence)
            if doubtful and scenario.attack is not None and not alone:
                observation = self._confirm(scenario, observation)
        except TargetError as error:
            self.discard()
            observation = Observation(failure=str(error))
        if self._guest is not None:
            self._note_places(self._guest)
        observation.reached, self._fresh = self._fresh, []
        observation.seconds = time.monotonic() - begin
        return observation

    def _note_places(self, guest: AgentGuest) -> None:
        """Read which places of drivers were reached, also by a guest that is no more."""
        if guest.coverage is None:
            return
        located = locate(guest.coverage.places(), guest.sections)
        self._fresh += located - self._reached
        self._reached |= located

    def _confirm(self, scenario: Scenario, first: Observation) -> Observation:
        """Run an attack again on fresh guests: as they are, then with their memory used by an honest run before."""
        for warm in (False, True):
            self.discard()
            if warm:
                self._once(replace(scenario, attack=None))
            second = self._once(scenario)
            if second.evidence:
                return second
        second.transcript.append("not confirmed: only a guest that other attacks had used showed: "
                                 + "; ".join(e.signature for e in first.evidence))
        return second

    def _once(self, scenario: Scenario) -> Observation:
        guest = self.guest()
        self._pristine = False
        self._ring = scenario.ring
        self._owner = ADMINISTER in scenario.stimuli
        self._transcript = []
        self._started = time.monotonic()
        self._runs += 1  # what an earlier run left in memory is not this one's
        marker = random.Random(f"secret {scenario.seed} {self.boots} {self._runs}").randbytes(24)  # noqa: S311 - reproducible on purpose
        self._leaks = LeakWatch(marker)
        if self._pool_watch is not None:
            self._pool_watch.begin(marker)
        if self._slots is not None:
            self._slots.begin(hashlib.sha256(marker).digest())
        observation = Observation(transcript=self._transcript)
        if scenario.attack is not None and (scenario.device, scenario.stimuli, scenario.ring) not in self._usual:
            before = Observation()
            self._stimulate(guest, scenario, before, marker, honest=True)
            if not before.completed:
                self._finish(guest, before)
                return Observation(failure="the honest run before it did not end", console=before.console)
        attack = self._attack = scenario.attack.make() if scenario.attack is not None else None
        honest = attack is None
        self._stimulate(guest, scenario, observation, marker, honest=honest)
        if "shutdown" in scenario.stimuli and guest.alive and observation.completed:
            self._shut_down(guest, observation)
        self._finish(guest, observation)
        if attack is not None:
            observation.strikes = list(attack.strikes)
            self._attack = None
            if self._guest is not None:
                self._aftercare(guest, scenario, observation, marker)
        if any(e.harm is Harm.MEMORY or e.signature.startswith(("afterwards", "hang")) for e in observation.evidence):
            self.discard()
        return observation

    def _stimulate(self, guest: AgentGuest, scenario: Scenario, observation: Observation, marker: bytes, *,
                   honest: bool) -> None:
        # Linux administers by itself, as soon as it probes an owner.
        stimuli = [s for s in scenario.stimuli if s not in {"shutdown", ADMINISTER}]
        usual = self._usual.get((scenario.device, scenario.stimuli, scenario.ring))
        if usual is None:
            limit = self.slowness * BASELINE_SECONDS
        else:
            limit = BASELINE_SECONDS if honest else max(self.slowness * _HANG_SECONDS, _HANG_FACTOR * usual)
        begin = time.monotonic()
        try:
            answer = guest.request(
                limit + _GRACE_SECONDS, do="run", platform=guest.platform[scenario.device],
                device=scenario.device.short, stimuli=stimuli, seconds=limit, marker=marker.hex(),
                stay="shutdown" in scenario.stimuli and (not honest or scenario.attack is None))
        except GuestDied:
            self._died(guest, observation)
            answer = {}
        else:
            observation.completed = answer is not None and "hang" not in answer
            if honest and observation.completed:
                self._usual[scenario.device, scenario.stimuli, scenario.ring] = time.monotonic() - begin
        observation.served = observation.completed
        self._read_steps(guest.steps, observation)
        if answer is None:
            self._spins(guest, observation)
        elif "hang" in answer:
            frames = [f for f in answer["hang"] if not _WAITING.match(f)]
            step = guest.steps[-1]["step"] if guest.steps else "?"
            observation.evidence.append(Evidence(
                Harm.DENIAL, f"hang in {' < '.join(frames[:2]) or 'user space'}",
                f"step '{step}' did not end; kernel stack: {' < '.join(answer['hang'])}"))

    def _read_steps(self, steps: list[dict[str, Any]], observation: Observation) -> None:
        for step in steps:
            outcome, name, detail = step["outcome"], str(step["step"]), str(step.get("detail", ""))
            if outcome != "begin":
                self._note(f"guest: {name}: {outcome}{f' ({detail})' if detail else ''}")
            match outcome:
                case "refused":
                    observation.refusals.append(f"{name}: {detail}")
                    if name.endswith((": connect", ": run")):
                        observation.served = False
                case "wrong":
                    observation.served = False
                    observation.evidence.append(Evidence(Harm.WRONG_DATA, f"wrong data taken: {name}", detail))
                case "silent":
                    observation.served = False
                    observation.evidence.append(Evidence(Harm.DENIAL, f"no answer: {name}", detail))
                case "bug":
                    observation.served = False
                    observation.failure = f"stimulus {name}: {detail}"
                case _:
                    pass

    def _died(self, guest: AgentGuest, observation: Observation) -> None:
        observation.completed = observation.served = False
        status = guest.exit_status
        observation.console = guest.take_console()
        if not judge_console(observation.console):
            # No word from the kernel: a fault that it could not even report.
            harm = Harm.MEMORY if status is not None and status < 0 else Harm.DENIAL
            how = f"signal {-status}" if status is not None and status < 0 else f"status {status}"
            observation.evidence.append(
                Evidence(harm, f"guest ended by {how} without a word", observation.console[-2000:]))

    def _spins(self, guest: AgentGuest, observation: Observation) -> None:
        where = guest.where()
        step = guest.steps[-1]["step"] if guest.steps else "?"
        observation.evidence.append(Evidence(Harm.DENIAL, f"guest stopped answering in {step}",
                                             where or "it takes no interrupts: a loop with interrupts off"))

    def _shut_down(self, guest: AgentGuest, observation: Observation) -> None:
        """Power the guest off with its devices active; it must end, and end well."""
        try:
            guest.request(_OFF_SECONDS * self.slowness, do="off")
        except GuestDied:
            if guest.exit_status:
                self._died(guest, observation)
            return
        observation.completed = observation.served = False
        observation.evidence.append(Evidence(Harm.DENIAL, "guest does not shut down", guest.where()))

    def _finish(self, guest: AgentGuest, observation: Observation) -> None:
        """Let the kernel check its memory, then read its console."""
        hung = any(e.signature.startswith("guest ") for e in observation.evidence)
        if guest.alive and not hung:
            try:
                self._read_check(guest.request(_CHECK_SECONDS * self.slowness, do="check"))
            except GuestDied:
                self._died(guest, observation)
        observation.console += guest.take_console()
        known = {e.signature for e in observation.evidence}
        observation.evidence[:0] = [e for e in judge_console(observation.console) if e.signature not in known]
        observation.evidence += self._leaks.evidence + self._dma_evidence
        self._dma_evidence.clear()
        if not all(e.complaint for e in observation.evidence):
            observation.served = False
        if not guest.alive or hung:
            self.discard()

    def _read_check(self, answer: dict[str, Any] | None) -> None:
        """See how much of the bounce pool is mapped still: what drivers leave is missed by whoever comes next."""
        match answer:
            case {"pool": [int(mapped), int(slots)]}:
                self._note(f"pool: {mapped} of {slots} slots are mapped still")
                self._used_up = mapped > slots * _MOST_MAPPED
            case _:
                pass

    def _aftercare(self, guest: AgentGuest, scenario: Scenario, observation: Observation, marker: bytes) -> None:
        """Run the same stimuli with an honest device: lasting damage shows now, and counts against the attack."""
        if any(e.signature.startswith("hang in") for e in observation.evidence):
            return  # the hung process holds the device; this guest ends here
        self._note("-- the same with an honest device")
        after = Observation()
        self._leaks = LeakWatch(marker)
        self._stimulate(guest, scenario, after, marker, honest=True)
        self._finish(guest, after)
        observation.console += after.console
        # What the attack has shown itself counts as well: it lasts, and whoever comes next would inherit it.
        known = {e.signature for e in observation.evidence if e.complaint}
        observation.evidence += [replace(e, signature=f"afterwards: {e.signature}")
                                 for e in after.evidence if e.signature not in known]
        if not after.served and not after.evidence:
            observation.evidence.append(Evidence(
                Harm.DENIAL, "afterwards: device lost", "; ".join(after.refusals) or after.failure or "not served"))
