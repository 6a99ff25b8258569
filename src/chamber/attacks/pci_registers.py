"""Lies in the registers of a virtio PCI function, and interrupts that nobody asked for (virtio 1.4, 4.1.4)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from chamber.attacks.attack import MODEL, PCI, PCI_LINUX, Aim, Attack, AttackSpec, Surface
from chamber.attacks.config import lies_about
from chamber.attacks.features import Offer
from chamber.attacks.pci import PCI_DEVICES, find_capability
from chamber.device.virtio_pci import REGISTER_BAR
from chamber.wire.pci import CapabilityId
from chamber.wire.virtio import Feature, Status, bit
from chamber.wire.virtio_pci import CAPABILITY, COMMON, NO_VECTOR, CapabilityType

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from chamber.device.queue import DeviceQueue
    from chamber.device.virtio_pci import VirtioPci
    from chamber.wire.virtio import DeviceType

__all__ = ("pci_register_attacks",)

_SPEC: Final = "virtio 1.4, 4.1.4.3"
_QUIET_READS: Final = 300
"""Lies of one kind: whoever polls a register is let go in the end."""


class RegisterLie(Attack):
    """Says another value than the true one in a field of the common configuration.

    Args:
        name: the field.
        lie: makes the value, given the true one and the number of reads of the field before.
        features: more feature bits to offer.
        times: reads to lie at, at most.

    """

    def __init__(self, name: str, lie: Callable[[int, int], int], *, features: int = 0,
                 times: int = _QUIET_READS) -> None:
        super().__init__()
        self._field = COMMON[name]
        self._lie = lie
        self._features = features
        self._times = times
        self._reads = 0

    def features(self, offered: int) -> int:
        """Offer what brings the field."""
        if self._features & ~offered:
            self.strike(f"features {self._features & ~offered:#x} offered besides")
        return offered | self._features

    def register(self, function: VirtioPci, bar: int, offset: int, data: bytes) -> bytes:  # noqa: ARG002 - the hook's
        """Lie to who reads the field."""
        field = self._field
        if bar != REGISTER_BAR or not offset <= field.offset or offset + len(data) < field.offset + field.size:
            return data
        at = field.offset - offset
        true = int.from_bytes(data[at:at + field.size], "little")
        value = self._lie(true, self._reads) & field.maximum
        self._reads += 1
        if value == true or self._reads > self._times:
            return data
        self.strike(f"{field.name}: {value:#x} where {true:#x} is true")
        return data[:at] + value.to_bytes(field.size, "little") + data[at + field.size:]


class WrongVectors(Attack):
    """Raises other vectors than the driver chose.

    Args:
        choose: makes them, given the true one and how many there are.

    """

    def __init__(self, choose: Callable[[int, int], Iterable[int]]) -> None:
        super().__init__()
        self._choose = choose

    def vectors(self, function: VirtioPci, vector: int) -> Iterable[int]:
        """Choose."""
        table = function.function.msix
        chosen = list(self._choose(vector, 0 if table is None else table.vectors))
        if chosen != [vector]:
            self.strike(f"vectors {chosen[:8]} raised for {vector}")
        return chosen


class VectorStorm(Attack):
    """Raises every vector again and again, as soon as there is a queue."""

    def queue_started(self, queue: DeviceQueue) -> None:
        """Begin with the first one."""
        if not queue.index:
            self._storm(40)

    def _storm(self, left: int) -> None:
        for queue in self.device.queues:
            queue.interrupt()
        self.device.config_interrupt()
        self.strike("all vectors")
        if left:
            self.device.schedule(0.005, lambda: self._storm(left - 1))


class NoMsix(Attack):
    """Has no MSI-X, so that the pin and the ISR register tell of interrupts; and tells of them whenever it is asked.

    Args:
        storm: reads of the register that say that there is one.

    """

    def __init__(self, storm: int) -> None:
        super().__init__()
        self._left = storm

    def config_space(self, function: VirtioPci, offset: int, data: bytes) -> bytes:
        """Hide MSI-X: its id is one that nobody knows."""
        at = find_capability(function, CapabilityId.MSIX)
        if not offset <= at < offset + len(data):
            return data
        self.strike("no MSI-X")
        return data[:at - offset] + b"\xfe" + data[at - offset + 1:]

    def register(self, function: VirtioPci, bar: int, offset: int, data: bytes) -> bytes:
        """Say that there is something, of both kinds."""
        isr = CAPABILITY.get(function.function.config, "offset", function.capabilities[CapabilityType.ISR_CFG])
        if bar == REGISTER_BAR and offset == isr and self._left > 0:
            self._left -= 1
            self.strike("ISR: everything")
            if self._left:
                self.device.schedule(0.0, lambda: function.function.intx(asserted=True))
            return b"\x03" * len(data)
        return data


def _constant(value: int) -> Callable[[int, int], int]:
    return lambda _true, _reads: value


_BEHAVIOURS: Final[tuple[tuple[str, str, str, Callable[[], Attack], Aim], ...]] = (
    ("reset-never", "device_status", "never finishes a reset",
     lambda: RegisterLie("device_status", lambda true, _reads: true or Status.ACKNOWLEDGE, times=400), Aim.DENIAL),
    ("needs-reset", "device_status", "needs to be reset at all times",
     lambda: RegisterLie("device_status", lambda true, _reads: true | Status.DEVICE_NEEDS_RESET), Aim.DENIAL),
    ("features-not-ok", "device_status", "does not take the features",
     lambda: RegisterLie("device_status", lambda true, _reads: true & ~Status.FEATURES_OK), Aim.DENIAL),
    ("generation-never", "config_generation", "changes the generation at every read",
     lambda: RegisterLie("config_generation", lambda _true, reads: reads, times=1000), Aim.DENIAL),
    ("vector-refused", "queue_msix_vector", "refuses a vector for each queue",
     lambda: RegisterLie("queue_msix_vector", _constant(NO_VECTOR)), Aim.MEMORY),
    ("vector-refused-second", "queue_msix_vector", "refuses a vector for each queue but the first",
     lambda: RegisterLie("queue_msix_vector", lambda true, reads: NO_VECTOR if reads else true), Aim.MEMORY),
    ("config-vector-refused", "config_msix_vector", "refuses a vector for changes of configuration",
     lambda: RegisterLie("config_msix_vector", _constant(NO_VECTOR)), Aim.MEMORY),
    ("queue-enabled-already", "queue_enable", "says that queues are enabled already",
     lambda: RegisterLie("queue_enable", _constant(1)), Aim.MEMORY),
    ("queue-reset-never", "queue_reset", "never finishes the reset of a queue",
     lambda: RegisterLie("queue_reset", _constant(1)), Aim.DENIAL),
    ("size-raised", "queue_size", "has larger queues at every second read",
     lambda: RegisterLie("queue_size", lambda true, reads: true << 1 if reads % 2 else true), Aim.MEMORY),
    ("size-odd", "queue_size", "has queues of 255 descriptors",
     lambda: RegisterLie("queue_size", lambda true, _reads: true and 255), Aim.MEMORY),
    ("size-32768", "queue_size", "has queues of 32,768 descriptors",
     lambda: RegisterLie("queue_size", lambda true, _reads: true and 32768), Aim.MEMORY),
    ("notify-off-second", "queue_notify_off", "has all queues but the first notified far outside",
     lambda: RegisterLie("queue_notify_off", lambda true, reads: 0x3FFF if reads else true), Aim.MEMORY),
    ("admin-queue", "admin_queue_index", "has an administration queue that is one of its others",
     lambda: RegisterLie("admin_queue_num", _constant(1), features=bit(Feature.ADMIN_VQ)), Aim.MEMORY),
    ("admin-queue-odd", "admin_queue_index", "has administration queues at an index far beyond its queues",
     lambda: RegisterLie("admin_queue_index", _constant(0xFFFE), features=bit(Feature.ADMIN_VQ)), Aim.MEMORY),
)

_OFFERS: Final = (
    ("no-access-platform", "withdraws ACCESS_PLATFORM, so that addresses are physical ones",
     lambda honest: honest & ~bit(Feature.ACCESS_PLATFORM)),
    ("legacy", "withdraws VERSION_1 and ACCESS_PLATFORM",
     lambda honest: honest & ~bit(Feature.VERSION_1, Feature.ACCESS_PLATFORM)),
)

_INTERRUPTS: Final[tuple[tuple[str, str, Callable[[], Attack]], ...]] = (
    ("vector-next", "raises the vector after the one that was chosen",
     lambda: WrongVectors(lambda vector, count: [(vector + 1) % max(count, 1)])),
    ("vector-all", "raises all vectors for each interrupt", lambda: WrongVectors(lambda _vector, count: range(count))),
    ("vector-beyond", "raises vectors that there are not",
     lambda: WrongVectors(lambda _vector, count: [count, 0xFFFF])),
    ("vector-storm", "raises all vectors again and again", VectorStorm),
    ("isr-storm", "has no MSI-X, and says in its ISR that there is an interrupt each time", lambda: NoMsix(60)),
    ("no-msix", "has no MSI-X", lambda: NoMsix(0)),
)

_SELECTORS: Final = frozenset({"device_feature_select", "driver_feature_select", "driver_feature", "queue_select",
                               "device_feature", "queue_desc", "queue_driver", "queue_device",
                               "queue_notif_config_data"})
"""Fields that are written and not believed, or lied about elsewhere."""
_TRUE: Final = frozenset({"config-generation-zero", "config-msix-vector-zero", "queue-notify-off-zero"})
"""Lies that are none."""


def _where(what: str) -> tuple[tuple[str, ...], frozenset[str]]:
    """Return stimuli and targets: who resets single queues, and who knows of administration queues."""
    if what.startswith("queue-reset"):
        return ("use", "reset"), MODEL
    return ("use", "rebind"), PCI_LINUX if what.startswith("admin") or what == "queue-enabled-already" else PCI


def pci_register_attacks() -> Iterator[AttackSpec]:
    """Attacks by the registers of a function."""
    for device in PCI_DEVICES:

        def spec(what: str, surface: Surface, summary: str, make: Callable[[], Attack], *, aim: Aim = Aim.MEMORY,
                 clause: str = _SPEC, device: DeviceType = device) -> AttackSpec:
            stimuli, targets = _where(what)
            return AttackSpec(f"{device.short}-pci-{what}", device, surface, aim, clause, f"The function {summary}.",
                              make, stimuli=stimuli, targets=targets, pci=True)

        for field in COMMON:
            if field.name in _SELECTORS:
                continue
            for edge, value in lies_about(field).items():
                name = field.name.replace("_", "-")
                if f"{name}-{edge}" in _TRUE:
                    continue
                features = bit(Feature.ADMIN_VQ) if name.startswith("admin") else 0
                yield spec(f"{name}-{edge}", Surface.CONFIG, f"says {field.name} = {value:#x}",
                           lambda name=field.name, value=value, features=features:  # type: ignore[misc]
                           RegisterLie(name, _constant(value), features=features))
        for what, _, summary, make, aim in _BEHAVIOURS:
            yield spec(what, Surface.CONFIG, summary, make, aim=aim)
        for what, summary, change in _OFFERS:
            yield spec(what, Surface.FEATURES, summary,
                       lambda change=change: Offer(lambda honest, _reads: change(honest)),  # type: ignore[misc]
                       aim=Aim.LEAK, clause="virtio 1.4, 6")
        for what, summary, make in _INTERRUPTS:
            yield spec(what, Surface.NOTIFICATION, summary, make, clause="virtio 1.4, 4.1.5")
