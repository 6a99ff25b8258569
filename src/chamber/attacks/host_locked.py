"""What a hypervisor does to the configuration of a function, before and after it is locked.

Configuration requests stay the host's while an interface is locked. A device can't refuse them: it notices those that
matter, and goes to ERROR (PCIe 6.1, 11.2.6).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from chamber.attacks.attack import Aim, Surface
from chamber.attacks.host import HostAttack, host_attack
from chamber.attacks.pci import find_capability
from chamber.host.foreign_queue import ForeignQueue
from chamber.host.ways import Memory
from chamber.platform.memory import HOST_PAGES
from chamber.wire.blk import RequestType
from chamber.wire.pci import EXPRESS, HEADER, MSIX, CapabilityId, ExpressControl
from chamber.wire.tdisp import State

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from chamber.attacks.attack import AttackSpec
    from chamber.host.hypervisor import Hypervisor

__all__ = ("host_locked_attacks",)

_SPEC: Final = "PCIe 6.1, 11.2.6"

Write = tuple[int, bytes]


class ConfigWrite(HostAttack):
    """Writes configuration space.

    Args:
        write: where, and what, given the host.
        locked: when the interface is locked and does not run yet; else when the driver has begun.

    """

    def __init__(self, write: Callable[[Hypervisor], Write], *, locked: bool = False) -> None:
        super().__init__()
        self._write = write
        self._locked = locked
        self._done = False

    def _act(self) -> None:
        if self._done:
            return
        self._done = True
        offset, data = self._write(self.host)
        self.strike(f"{data.hex()} written to configuration space at {offset:#x}")
        self.host.front.write_config(offset, data)

    def state_changed(self, state: State) -> None:
        """Write it to what is locked."""
        if self._locked and state is State.CONFIG_LOCKED:
            self._act()

    def started(self) -> None:
        """Write it to what runs."""
        self._act()


def _head(name: str, value: int | None = None) -> Callable[[Hypervisor], Write]:
    """Write a field of the header; None for what it has."""
    field = HEADER[name]

    def write(host: Hypervisor) -> Write:
        now = host.virtio.function.config[field.offset:field.offset + field.size]
        return field.offset, bytes(now) if value is None else value.to_bytes(field.size, "little")
    return write


def _control(bits: ExpressControl) -> Callable[[Hypervisor], Write]:
    """Write device control."""
    at = EXPRESS["device_control"].offset
    return lambda host: (find_capability(host.virtio, CapabilityId.EXPRESS) + at, bits.to_bytes(2, "little"))


def _msix_off(host: Hypervisor) -> Write:
    return find_capability(host.virtio, CapabilityId.MSIX) + MSIX["control"].offset, bytes(2)


class SetUpBefore(HostAttack):
    """Has the device at work for the host before the guest comes, and hopes that it still is afterwards."""

    def __init__(self) -> None:
        super().__init__()
        self._queue: ForeignQueue | None = None

    def space_written(self, offset: int, data: bytes) -> bool:
        """Set it up once the guest has enabled the function."""
        if offset == HEADER["command"].offset and self._queue is None:
            self.host.front.write_config(offset, data)
            self._queue = ForeignQueue(self.host, Memory(self.host))
            self._queue.add(RequestType.IN, 0, 4096, 64 << 10)
            self.strike("a queue of the host's was set up before the guest came, to write over its memory")
        return True

    def worked(self) -> None:
        """Notify it again: by now the device reaches what is the guest's."""
        if self._queue is not None:
            self._queue.notify()


class VectorsBefore(HostAttack):
    """Has interrupts go to the host's memory, before the guest locks their table."""

    def state_changed(self, state: State) -> None:
        """Write the table."""
        if state is State.CONFIG_LOCKED:
            self.strike("the interrupts' table was the host's before the lock")
            self.host.front.write_bar(1, 0, HOST_PAGES.to_bytes(8, "little") * 2)

    def started(self) -> None:
        """Try again."""
        self.strike("the interrupts' table is written")
        self.host.front.write_bar(1, 0, HOST_PAGES.to_bytes(8, "little") * 2)


_WRITES: Final[tuple[tuple[str, Aim, str, Callable[[Hypervisor], Write]], ...]] = (
    ("bar-moved", Aim.DECEPTION, "moves the registers' base address", _head("bar0", 0x8800_0000)),
    ("bar-written", Aim.DENIAL, "writes a base address with what it is", _head("bar0")),
    ("memory-off", Aim.DENIAL, "switches memory accesses off", _head("command", 4)),
    ("master-off", Aim.DENIAL, "switches bus mastering off", _head("command", 2)),
    ("rom-written", Aim.DENIAL, "writes the base address of a ROM", _head("rom", 0xFFFFFFFF)),
    ("self-test", Aim.DENIAL, "starts the self-test", _head("bist", 0x40)),
    ("function-reset", Aim.DENIAL, "resets the function", _control(ExpressControl.FLR)),
    ("tags", Aim.DENIAL, "changes how many tags the function may use",
     _control(ExpressControl.EXTENDED_TAG)),
    ("msix-off", Aim.DENIAL, "switches its interrupts off", _msix_off),
    ("cache-line", Aim.DENIAL, "writes the cache line size, which means nothing", _head("cache_line", 16)),
)


def host_locked_attacks() -> Iterator[AttackSpec]:
    """All of these attacks."""
    for name, aim, what, write in _WRITES:
        yield host_attack(f"running-{name}", Surface.CONFIG, aim, _SPEC,
                          f"The hypervisor {what} while the driver works.",
                          lambda write=write: ConfigWrite(write))  # type: ignore[misc]
    for name, aim, what, write in (_WRITES[0], _WRITES[2], _WRITES[6]):
        yield host_attack(f"locked-{name}", Surface.CONFIG, aim, _SPEC,
                          f"The hypervisor {what} between lock and start.",
                          lambda write=write: ConfigWrite(write, locked=True))  # type: ignore[misc]
    yield host_attack("set-up-before", Surface.TDISP, Aim.MEMORY, "PCIe 6.1, 11.2",
                      "The hypervisor sets a queue up before the lock, and notifies it after the start.", SetUpBefore)
    yield host_attack("vectors-before", Surface.TDISP, Aim.DENIAL, "PCIe 6.1, 11.3.8",
                      "The hypervisor writes the interrupts' table.", VectorsBefore)
