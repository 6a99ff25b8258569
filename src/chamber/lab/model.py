"""The target ``model``: Chamber's own guest, in as many sets of protections as there are profiles."""

from __future__ import annotations

import random
import time
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from chamber.attacks.admin import ADMINISTER
from chamber.device.capture import Recorder
from chamber.device.catalogue import make_device
from chamber.device.sriov_group import owner_of_one
from chamber.device.virtio_pci import VirtioPci
from chamber.guest.bounce import PoolFull
from chamber.guest.driver import DeviceTimeout, Refused
from chamber.guest.filter import admit
from chamber.guest.machine import GuestMachine
from chamber.guest.policy import Admissions
from chamber.guest.profile import PROFILES
from chamber.guest.untrusted import DeviceViolation
from chamber.guest.virtio_pci import PciTransport
from chamber.guest.virtqueue import QueueDead, QueueFull
from chamber.lab.model_hosted import join_hosted
from chamber.lab.model_stimuli import DRIVERS, STIMULI
from chamber.lab.model_transport import ModelTransport
from chamber.lab.model_use.owner import administer
from chamber.lab.model_use.right_data import WrongData
from chamber.lab.observation import Evidence, Harm, Observation
from chamber.platform.heap import MemoryViolation
from chamber.platform.pci_bus import PciBus
from chamber.platform.scheduler import BudgetExhausted
from chamber.wire.virtio import DeviceType

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from chamber.attacks.attack import Attack
    from chamber.device.base import Device
    from chamber.device.capture import CaptureFile
    from chamber.guest.driver import VirtioDriver
    from chamber.guest.policy import Policy
    from chamber.guest.profile import Profile
    from chamber.lab.observation import Scenario
    from chamber.platform.transport import Transport

__all__ = ("ModelTarget",)

_TRANSCRIPT: Final = 2000
_AFTER_SECONDS: Final = 1.0
_REST_SECONDS: Final = 0.1
_REBINDS: Final = 3
_BALLOON_PAGES: Final = 12
_HOST_PORT: Final = 1 << 30
_NULL: Final = "null pointer"


class ModelTarget:
    """Runs scenarios on Chamber's own guest, each on a fresh one.

    A subclass may join guest and device in a way of its own, such as over a socket.

    Args:
        capture: where to write down what crosses the boundary, on the guest's clock.
        policy: which devices the guest probes, and how, in profiles that filter.

    """

    kind: Final = "model"
    profiles: Final = tuple(PROFILES)

    def __init__(self, capture: CaptureFile | None = None, policy: Policy | None = None) -> None:
        self._capture = capture
        self.policy = policy

    def describe(self) -> dict[str, object]:
        """What the report says about this target."""
        known = {} if self.policy is None else {"policy": self.policy.name}
        return {"kind": self.kind, "profiles": list(self.profiles), **known}

    def make_machine(self, profile: Profile, seed: int) -> GuestMachine:
        """A fresh guest."""
        return GuestMachine(profile, seed)

    @contextmanager
    def joined(self, machine: GuestMachine, device: Device, *, pci: bool = False, hosted: bool = False,
               owner: bool = False, attack: Attack | None = None) -> Iterator[Transport]:
        """Join a guest to a device, for as long as the block lasts.

        Args:
            machine: the guest.
            device: the device.
            pci: by a PCI bus.
            hosted: by one that a hypervisor has between it and the guest.
            owner: whether the device owns another one.
            attack: what the hypervisor does.

        """
        if hosted:
            with join_hosted(machine, device, attack) as transport:
                yield transport
        elif pci:
            group = owner_of_one(device) if owner else None
            function = VirtioPci(device) if group is None else group.owner
            function.dma = machine.memory.host
            device.schedule = machine.scheduler.call_later
            if device.device_memory is not None:
                machine.memory.show_device_memory(*device.device_memory)
            bus = PciBus(machine.interrupts)
            if group is None:
                bus.plug(0, function)
            else:
                group.plug(bus, 0)
            yield PciTransport(machine, bus)
        else:
            yield ModelTransport(machine, device)

    def run(self, scenario: Scenario) -> Observation:
        """Run a scenario to its end, whatever guest and attack do."""
        begin = time.perf_counter()
        run = _Run(scenario, self._capture, self)
        try:
            run.attack()
            if scenario.attack is not None and not run.observation.unprobed:
                run.afterwards()
        finally:
            run.close()
        run.observation.seconds = time.perf_counter() - begin
        return run.observation

    def close(self) -> None:
        """Nothing is held."""


class _Run:
    """One scenario."""

    def __init__(self, scenario: Scenario, capture: CaptureFile | None, target: ModelTarget) -> None:
        self.observation = Observation()
        self._target = target
        self._scenario = scenario
        self._machine = target.make_machine(PROFILES[scenario.profile or "hardened"], scenario.seed)
        self._halted = False
        self._seen: set[str] = set()
        self._device: Device | None = None
        self._bare: Transport | None = None
        self._capture = capture
        if capture is not None:
            capture.clock = lambda: self._machine.scheduler.now

    def close(self) -> None:
        if self._device is not None:
            self._device.reset()
            self._device.close()
        self._machine.close()

    def _log(self, line: str) -> None:
        if len(self.observation.transcript) < _TRANSCRIPT:
            self.observation.transcript.append(f"{self._machine.scheduler.now:8.4f} {line}")

    def _found(self, harm: Harm, signature: str, text: str, prefix: str = "") -> None:
        signature = prefix + signature
        if signature not in self._seen:
            self._seen.add(signature)
            self.observation.evidence.append(Evidence(harm, signature, text))

    # The attack.

    def attack(self) -> None:
        """Use the device while it is attacked."""
        spec = self._scenario.attack
        attack = spec.make() if spec is not None else None
        self._use(attack)
        if attack is not None:
            self.observation.strikes = list(attack.strikes)

    def afterwards(self) -> None:
        """Use it once more with an honest device: what does not work now is lost for good."""
        if self._halted:
            return
        self._log("-- the same with an honest device")
        before, evidence = self.observation, len(self.observation.evidence)
        self.observation = Observation(evidence=before.evidence, transcript=before.transcript)
        self._use(None, prefix="afterwards: ")
        if not self.observation.served and len(before.evidence) == evidence:
            self._found(Harm.DENIAL, "afterwards: device lost", "; ".join(self.observation.refusals) or "not served")
        self.observation = before

    def _use(self, attack: Attack | None, prefix: str = "") -> None:
        scenario, machine, observation = self._scenario, self._machine, self.observation
        known = len(observation.evidence)
        # A seed shall decide the whole run, and a host ask for what a small guest can give.
        dice = random.Random(f"{prefix}{scenario.seed}")  # noqa: S311 - as above
        own: dict[DeviceType, dict[str, Any]] = {
            DeviceType.RNG: {"source": dice.randbytes}, DeviceType.BALLOON: {"target": _BALLOON_PAGES},
            DeviceType.VSOCK: {"first_port": _HOST_PORT}}
        options = own.get(scenario.device, {})
        hooks = attack if self._capture is None else Recorder(self._capture, attack)
        device = make_device(scenario.device, hooks=hooks, ring=scenario.ring, **options)
        if self._device is not None:
            self._device.close()
        self._device = device
        device.trace = self._log
        machine.memory.watch = None if attack is None else attack.guest_read
        seen_by_device = _Watch(machine)
        machine.memory.host.observer = seen_by_device.saw
        owner = ADMINISTER in scenario.stimuli
        with self._target.joined(machine, device, pci=scenario.pci, hosted=scenario.hosted, owner=owner,
                                 attack=attack) as transport:
            self._bare = transport
            driver = DRIVERS[scenario.device](machine, transport)
            if owner:
                driver.own_others()
            admitted = self._admitted(driver, prefix)
            served = admitted and self._step("probe", driver.probe, prefix)
            if served:
                for name in scenario.stimuli:
                    served = self._stimulus(name, driver, device, prefix) and served
            if admitted and not self._halted and "shutdown" not in scenario.stimuli:
                served = self._step("remove", driver.remove, prefix) and served
            self._step("wait", lambda: machine.settle(_AFTER_SECONDS), prefix)
        machine.heap.check_all()
        self._judge(driver, attack, seen_by_device, prefix)
        observation.completed = not self._halted
        observation.served = served and len(observation.evidence) == known and not driver.violations

    def _admitted(self, driver: VirtioDriver, prefix: str) -> bool:
        """Whether the guest's policy lets the driver at its device; if so, it stands between them from now on."""
        policy = self._target.policy
        if policy is None or not self._machine.profile.filtered:
            return True
        admissions = Admissions(policy)

        def look() -> None:
            driver.transport = admit(admissions, driver.transport, driver.config_layout)

        self.observation.unprobed = not self._step("look at the device", look, prefix)
        return not self.observation.unprobed

    def _stimulus(self, name: str, driver: VirtioDriver, device: Device, prefix: str) -> bool:
        if self._halted:
            return False
        if name == "shutdown":
            # What an honest device still had to say is said by then.
            return (self._step("rest", lambda: self._machine.settle(_REST_SECONDS), prefix)
                    and self._step("shutdown", driver.shutdown, prefix))
        if name == "rebind":
            return all(self._step("remove", driver.remove, prefix) and self._step("probe again", driver.probe, prefix)
                       for _ in range(_REBINDS))
        if name == "rescan":
            bare = self._bare
            if isinstance(bare, PciTransport) and self._step("remove", driver.remove, prefix):
                bare.forget()
                driver.transport = bare
                return self._admitted(driver, prefix) and self._step("look again", driver.probe, prefix)
            return not self._halted
        if name == ADMINISTER:
            owner = self._bare
            return isinstance(owner, PciTransport) and self._step(name, lambda: administer(driver, owner), prefix)
        if name == "reset":
            return all(self._step(f"reset queue {index}", partial(driver.reset_queue, index), prefix)
                       for index in driver.queues)
        stimulus = STIMULI[driver.type].get(name)
        if stimulus is None:
            self._log(f"the model has no {name}")
            return True
        return self._step(name, lambda: stimulus(driver, self._machine, device.host_action), prefix)

    def _step(self, name: str, call: Callable[[], object], prefix: str) -> bool:
        """Do one thing; tell what came of it, and return whether all went well."""
        if self._halted:
            return False
        try:
            call()
        except DeviceViolation as violation:
            self._refused(name, str(violation))
        except (Refused, QueueDead, QueueFull, PoolFull) as refusal:
            self._refused(name, str(refusal))
        except DeviceTimeout as silence:
            self._log(f"guest: {name}: silent ({silence})")
            self._found(Harm.DENIAL, f"no answer: {name}", str(silence), prefix)
        except WrongData as wrong:
            self._log(f"guest: {name}: wrong ({wrong})")
            self._found(Harm.WRONG_DATA, f"wrong data taken: {name}: {wrong}", str(wrong), prefix)
        except MemoryViolation as oops:
            self._halted = True
            self._log(f"guest: {name}: {oops}")
        except BudgetExhausted as circles:
            self._halted = True
            self._found(Harm.DENIAL, f"hang: {name}", str(circles), prefix)
        except (ArithmeticError, LookupError, MemoryError, OverflowError, TypeError, ValueError) as crash:
            # What stops a kernel: a division by zero, an allocation that can't be had, a state that nobody foresaw.
            self._halted = True
            self._log(f"guest: {name}: panic: {crash!r}")
            self._found(Harm.DENIAL, f"panic: {type(crash).__name__}: {name}", repr(crash), prefix)
        else:
            return True
        return False

    def _refused(self, name: str, why: str) -> None:
        self._log(f"guest: {name}: refused ({why})")
        self.observation.refusals.append(f"{name}: {why}")

    # Oracles.

    def _judge(self, driver: VirtioDriver, attack: Attack | None, seen: _Watch, prefix: str) -> None:
        machine = self._machine
        for report in machine.heap.reports:
            harm = Harm.DENIAL if report.kind == _NULL else Harm.MEMORY
            known = prefix and report.signature in self._seen
            if not known:
                self._found(harm, report.signature, report.detail, prefix)
        if attack is not None:
            seen.saw(bytes(attack.captured))
        if machine.profile.private:
            for address, length in machine.memory.shared_ranges():
                seen.saw(machine.memory.peek(address, length))
        if seen.leaked:
            self._found(Harm.LEAK, f"secret in {driver.type.short} memory that the host sees", seen.leaked, prefix)
        for violation in driver.violations:
            self._refused("interrupt", str(violation))
        for fault in machine.memory.faults[:3]:
            self._log(f"host: {fault}")
        machine.memory.faults.clear()


class _Watch:
    """Looks for the guest's secret in bytes that the host sees."""

    def __init__(self, machine: GuestMachine) -> None:
        self._secrets = machine.secrets
        self.leaked = ""

    def saw(self, data: bytes) -> None:
        if not self.leaked:
            at = self._secrets.found_in(data)
            if at is not None:
                self.leaked = f"at byte {at} of {len(data)}: {data[at:at + 32].hex(' ')}"

