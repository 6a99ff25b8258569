"""Surprise removal: a PCI function that is pulled out at a certain step of its driver's work.

From then on all bits of all reads are one, writes are lost, no buffer is answered and no interrupt comes (PCIe 6.0,
6.7). What a driver waits for then never happens, and what it computes with is all ones.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from chamber.attacks.attack import PCI, Aim, Attack, AttackSpec, Surface
from chamber.attacks.pci import PCI_DEVICES
from chamber.device.virtio_pci import REGISTER_BAR
from chamber.wire.virtio import Status
from chamber.wire.virtio_pci import COMMON

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from chamber.device.chain import Chain
    from chamber.device.queue import DeviceQueue
    from chamber.device.virtio_pci import VirtioPci

__all__ = ("pci_removal_attacks",)

_CHAINS: Final = 3


class Pulled(Attack):
    """Is gone from one access on.

    Args:
        read: the field of the common configuration whose read is the first to find nobody, if given.
        written: the field whose write is the first to be lost, if given, when `when` says so of the value.
        when: asked with the value and whether the driver was ready before.
        taken: the write still arrives; what comes after it does not.
        chains: chains after which it is gone, if given.

    """

    def __init__(self, *, read: str = "", written: str = "",
                 when: Callable[[int, bool], bool] = lambda _value, _ready: True, taken: bool = False,
                 chains: int = 0) -> None:
        super().__init__()
        self._read = COMMON[read].offset if read else -1
        self._written = COMMON[written].offset if written else -1
        self._when = when
        self._taken = taken
        self._chains = chains
        self._ready = False
        self._gone = False

    def _leave(self, where: str) -> None:
        if not self._gone:
            self._gone = True
            self.strike(f"gone at {where}")

    def config_space(self, function: VirtioPci, offset: int, data: bytes) -> bytes:  # noqa: ARG002 - the hook's signature
        """Answer as nobody."""
        return b"\xff" * len(data) if self._gone else data

    def config_space_written(self, function: VirtioPci, offset: int, data: bytes) -> bool:  # noqa: ARG002 - as above
        """Lose it."""
        return not self._gone

    def register(self, function: VirtioPci, bar: int, offset: int, data: bytes) -> bytes:  # noqa: ARG002 - as above
        """Leave at the read, or answer as nobody."""
        if bar == REGISTER_BAR and offset == self._read:
            self._leave("a read")
        return b"\xff" * len(data) if self._gone else data

    def register_written(self, function: VirtioPci, bar: int, offset: int, data: bytes) -> bool:  # noqa: ARG002 - as above
        """Leave at the write, or lose it."""
        if self._gone:
            return False
        if bar != REGISTER_BAR or offset != self._written:
            return True
        if not self._when(int.from_bytes(data, "little"), self._ready):
            return True
        self._leave("a write")
        return self._taken

    def driver_ok(self) -> None:
        """What is reset from now on was in use."""
        self._ready = True

    def popped(self, queue: DeviceQueue, chain: Chain) -> bool:  # noqa: ARG002 - the hook's signature
        """Leave in the middle of the work."""
        if self._chains:
            self._chains -= 1
            if not self._chains:
                self._leave("a buffer")
        return not self._gone

    def interrupt(self, queue: DeviceQueue, wanted: bool) -> bool:  # noqa: ARG002 - the hook's signature
        """Say nothing."""
        return wanted and not self._gone

    def vectors(self, function: VirtioPci, vector: int) -> Iterable[int]:  # noqa: ARG002 - the hook's signature
        """Say nothing."""
        return () if self._gone else (vector,)


def _reset_in_use(value: int, ready: bool) -> bool:
    return not value and ready


_PHASES: Final[tuple[tuple[str, str, Callable[[], Attack]], ...]] = (
    ("probe", "as the driver first looks at its status", lambda: Pulled(read="device_status")),
    ("features", "while features are read", lambda: Pulled(read="device_feature")),
    ("features-ok", "when the driver has chosen its features",
     lambda: Pulled(written="device_status", when=lambda value, _ready: bool(value & Status.FEATURES_OK))),
    ("queue-size", "when the size of a queue is asked for", lambda: Pulled(read="queue_size")),
    ("vector", "when a vector is given to a queue", lambda: Pulled(written="queue_msix_vector")),
    ("queue-enable", "when a queue is enabled", lambda: Pulled(written="queue_enable")),
    ("ready", "when the driver is ready",
     lambda: Pulled(written="device_status", when=lambda value, _ready: bool(value & Status.DRIVER_OK))),
    ("use", "while it is used", lambda: Pulled(chains=_CHAINS)),
    ("reset", "when it is reset after use", lambda: Pulled(written="device_status", when=_reset_in_use)),
    ("remove", "once it was reset after use", lambda: Pulled(written="device_status", when=_reset_in_use, taken=True)),
)


def pci_removal_attacks() -> Iterator[AttackSpec]:
    """Attacks by being pulled out."""
    for device in PCI_DEVICES:
        for phase, summary, make in _PHASES:
            yield AttackSpec(f"{device.short}-pci-pulled-{phase}", device, Surface.LIFECYCLE, Aim.DENIAL,
                             "PCIe 6.0, 6.7", f"The function is pulled out {summary}.", make,
                             stimuli=("use", "rebind", "rescan"), targets=PCI, pci=True)
