"""Doors of a locked device that TDISP knows nothing of: the window in configuration space, its owner, and plain memory.

TDISP guards memory requests. A virtio device has other ways in: registers that configuration space leads to (virtio
1.4, 4.1.4.9), and commands that the owner of its group gives (2.12). Whoever can set up a queue of a device that
reaches a guest's private memory can have all of that memory.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from chamber.attacks.attack import Aim, Surface
from chamber.attacks.host import HostAttack, host_attack
from chamber.host.foreign_queue import DATA_AT, ForeignQueue
from chamber.host.ways import Memory, Owner, Way, Window
from chamber.platform.memory import HOST_PAGES
from chamber.wire.blk import SECTOR_SIZE, RequestType
from chamber.wire.virtio_pci import NO_VECTOR

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from chamber.attacks.attack import AttackSpec
    from chamber.host.hypervisor import Hypervisor

__all__ = ("host_door_attacks",)

_PIECE: Final = 64 << 10
_PIECES: Final = range(4096, 4096 + 4 * _PIECE, _PIECE)
"""Where a guest has its memory, a host knows that gave it: some of it."""
_FREE_SECTOR: Final = 6000
"""Where the guest has nothing."""
_ALTERED_SECTORS: Final = 16


class Door(HostAttack):
    """Goes through a door once the driver has begun to use the device.

    Args:
        way: the door.
        act: what to do behind it.

    """

    def __init__(self, way: Callable[[Hypervisor], Way], act: Callable[[Door, Way], None]) -> None:
        super().__init__()
        self._way = way
        self._act = act
        self._acted = False
        self._awaited: list[tuple[ForeignQueue, int, int]] = []

    def await_read(self, queue: ForeignQueue, number: int, at: int) -> None:
        """Look for what a request brings to the host's memory, once it is there."""
        self._awaited.append((queue, number, at))

    def _look(self) -> None:
        for entry in tuple(self._awaited):
            queue, number, at = entry
            if queue.done(number):
                self._awaited.remove(entry)
                self.strike(f"{_PIECE} bytes of the guest's memory have come")
                self.capture(bytes(self.host.memory[at:at + _PIECE]))

    def worked(self) -> None:
        """Look for what has come."""
        self._look()

    def started(self) -> None:
        """Act, once: what is done to registers here looks like a driver's beginning, too."""
        if not self._acted:
            self._acted = True
            self._act(self, self._way(self.host))
            self._look()


def _reset(attack: Door, way: Way) -> None:
    attack.strike("resets the device while its driver uses it")
    way.write("device_status", 0)


def _mute(attack: Door, way: Way) -> None:
    attack.strike("takes the queue's interrupt away")
    way.write("queue_select", 0)
    way.write("queue_msix_vector", NO_VECTOR)


def _ring(attack: Door, way: Way) -> None:
    attack.strike("notifies the device before its driver does")
    way.notify()


def _spy(attack: Door, way: Way) -> None:
    saved = way.save()
    attack.strike(f"reads what the driver has made of the device: {str(saved)[:80]}")
    attack.capture(repr(saved).encode())


def _steal(attack: Door, way: Way) -> None:
    attack.strike("has the device work on a queue of the host's, and read the guest's memory to its disk")
    queue = ForeignQueue(attack.host, way)
    for number, address in enumerate(_PIECES):
        queue.add(RequestType.OUT, _FREE_SECTOR, address, _PIECE)
        at = DATA_AT + number * _PIECE
        attack.await_read(queue, queue.add(RequestType.IN, _FREE_SECTOR, HOST_PAGES + at, _PIECE), at)
    queue.notify()


def _corrupt(attack: Door, way: Way) -> None:
    attack.strike("has the device work on a queue of the host's, and write sectors over the guest's memory")
    queue = ForeignQueue(attack.host, way)
    for address in _PIECES:
        queue.add(RequestType.IN, 0, address, _PIECE)
    queue.notify()


def _alter(attack: Door, way: Way) -> None:
    saved = way.save()
    queue = ForeignQueue(attack.host, way)
    size = _ALTERED_SECTORS * SECTOR_SIZE
    attack.host.memory[DATA_AT:DATA_AT + size] = b"\x5a" * size
    number = queue.add(RequestType.OUT, 0, HOST_PAGES + DATA_AT, size)
    queue.notify()
    way.restore(saved)
    attack.strike(f"sectors written by a queue of the host's: {queue.done(number)}; then the driver's was set up again")


_WAYS: Final[tuple[tuple[str, Callable[[Hypervisor], Way], Surface, str, str], ...]] = (
    ("window", Window, Surface.CONFIG, "virtio 1.4, 4.1.4.9", "through the window in configuration space"),
    ("owner", Owner, Surface.TDISP, "virtio 1.4, 2.12.1.2",
     "by administration commands of its owner"),
    ("memory", Memory, Surface.TDISP, "PCIe 6.1, 11.2.1", "by memory requests without the T bit"),
)
_ACTS: Final[tuple[tuple[str, Callable[[Door, Way], None], Aim, str], ...]] = (
    ("resets", _reset, Aim.DENIAL, "resets the device"),
    ("mutes", _mute, Aim.DENIAL, "takes the queue's interrupt away"),
    ("rings", _ring, Aim.DENIAL, "notifies the queue"),
    ("spies", _spy, Aim.LEAK, "reads the device's state"),
    ("steals", _steal, Aim.LEAK, "has the device read the guest's memory for the host"),
    ("corrupts", _corrupt, Aim.MEMORY, "has the device write over the guest's memory"),
    ("alters", _alter, Aim.DECEPTION, "changes what is on the disk, and leaves no trace"),
)


class OwnerStops(HostAttack):
    """Stops a member, which its owner always can."""

    def started(self) -> None:
        """Stop it."""
        self.strike("stops the device by its mode")
        Owner(self.host).stop()


def host_door_attacks() -> Iterator[AttackSpec]:
    """All of these attacks."""
    for way_name, way, surface, spec, by in _WAYS:
        for name, act, aim, what in _ACTS:
            yield host_attack(f"{way_name}-{name}", surface, aim, spec, f"The hypervisor {what}, {by}.",
                              lambda way=way, act=act: Door(way, act))  # type: ignore[misc]
    yield host_attack("owner-stops", Surface.TDISP, Aim.DENIAL, "virtio 1.4, 2.12.1.5.3",
                      "The hypervisor stops the device, by administration commands of its owner.", OwnerStops)
