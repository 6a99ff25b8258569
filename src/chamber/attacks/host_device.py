"""What a hypervisor puts in the place of a device, and how it lies about registers where they are its own to play.

A guest that trusts a device trusts its maker, and what runs on it. Of two devices of one make it can't tell which it
has. In vDPA the control path is the host's by design: features, configuration and queues are its word, whatever
protects the data path.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Final

from chamber.attacks.attack import Aim, Surface
from chamber.attacks.host import HostAttack, flipped, host_attack
from chamber.device.blk import BlkDevice
from chamber.device.catalogue import DISK_SIZE
from chamber.device.disk import MemoryDisk
from chamber.host.hypervisor import PREFIX_SIZE, request_of
from chamber.platform.ide import TAG_SIZE
from chamber.wire.blk import CONFIG, BlkFeature
from chamber.wire.tlp import MemoryRead, MemoryWrite
from chamber.wire.virtio import Status, bit
from chamber.wire.virtio_pci import COMMON

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from chamber.attacks.attack import AttackSpec

__all__ = ("host_device_attacks",)

_SPEC: Final = "virtio 1.4, 4.1.4.3"
_DEVICE_AT: Final = 0x2000
_COMPLETIONS: Final = frozenset({b"\x4a"})


class InItsPlace(HostAttack):
    """Puts another device of the same make in the place of the one that the guest expects.

    Args:
        late: once the driver has begun; else before the guest comes.

    """

    def __init__(self, *, late: bool) -> None:
        super().__init__()
        self._late = late
        self._done = False

    def _replace(self) -> None:
        if self._done or self.host.build is None:
            return
        self._done = True
        disk = MemoryDisk(bytearray(b"\x5a" * DISK_SIZE))
        self.host.put_in_place(*self.host.build(BlkDevice(disk=disk)))
        self.strike("another disk of the same make is in the place of the guest's")

    def looked(self) -> None:
        """Do it early."""
        if not self._late:
            self._replace()

    def started(self) -> None:
        """Do it late."""
        if self._late:
            self._replace()


class RegisterLie(HostAttack):
    """Says something else than a register.

    Where reads are encrypted, the host sees which register is read, and turns bits of the answer.

    Args:
        offset: where it is among the registers.
        size: its bytes.
        change: makes what is said, of what is true.
        select: of ``device_feature`` or a queue's field: for which selection.

    """

    def __init__(self, offset: int, size: int, change: Callable[[int], int], *, select: int | None = None) -> None:
        super().__init__()
        self._offset = offset
        self._size = size
        self._change = change
        self._select = select
        self._selected = 0
        self._asked = False

    def memory_read(self, address: int, data: bytes) -> bytes:
        """Say it in the place of the register."""
        if self.host.register(address) != self._offset or self._select not in {None, self._selected}:
            return data
        true = int.from_bytes(data, "little")
        lie = self._change(true) & (1 << 8 * len(data)) - 1
        if lie == true:
            return data
        self.strike(f"register {self._offset:#x} reads as {lie:#x}, not {true:#x}")
        return lie.to_bytes(len(data), "little")

    def memory_written(self, address: int, data: bytes) -> bytes | None:
        """Remember what is selected."""
        if self.host.register(address) == COMMON["device_feature_select"].offset:
            self._selected = int.from_bytes(data, "little")
        return data

    def carried(self, packet: bytes, *, down: bool) -> list[bytes]:
        """Turn bits of the answer, where it is sealed."""
        if down:
            request = request_of(packet)
            self._asked = isinstance(request, MemoryRead) and self.host.register(request.address) == self._offset
        elif self._asked and packet[PREFIX_SIZE:PREFIX_SIZE + 1] in _COMPLETIONS:
            self._asked = False
            self.strike(f"bits of the sealed answer of register {self._offset:#x} were turned")
            return [flipped(packet, len(packet) - TAG_SIZE - 4)]
        return [packet]


class QueueElsewhere(HostAttack):
    """Has a queue's area elsewhere than where the driver has it.

    Args:
        name: of the register that says where.
        place: where instead.

    """

    def __init__(self, name: str, place: int) -> None:
        super().__init__()
        self._offset = COMMON[name].offset
        self._place = place

    def memory_written(self, address: int, data: bytes) -> bytes | None:
        """Write another place."""
        if self.host.register(address) != self._offset:
            return data
        self.strike(f"a queue's area is at {self._place:#x}, not at {int.from_bytes(data, 'little'):#x}")
        return self._place.to_bytes(len(data), "little")

    def carried(self, packet: bytes, *, down: bool) -> list[bytes]:
        """Turn bits of it, where it is sealed."""
        request = request_of(packet) if down else None
        if not isinstance(request, MemoryWrite) or self.host.register(request.address) != self._offset:
            return [packet]
        self.strike("bits of the sealed address of a queue's area were turned")
        return [flipped(packet, len(packet) - TAG_SIZE - 7)]


def _to(value: int) -> Callable[[int], int]:
    return lambda _true: value


def _common(name: str, change: Callable[[int], int], *, select: int | None = None) -> Callable[[], HostAttack]:
    field = COMMON[name]
    return lambda: RegisterLie(field.offset, field.size, change, select=select)


def _device(name: str, change: Callable[[int], int]) -> Callable[[], HostAttack]:
    field = CONFIG[name]
    return lambda: RegisterLie(_DEVICE_AT + field.offset, field.size, change)


def _unsettled() -> HostAttack:
    count = itertools.count(1)
    field = COMMON["config_generation"]
    return RegisterLie(field.offset, field.size, lambda _true: next(count))


_LIES: Final[tuple[tuple[str, Surface, Aim, str, Callable[[], HostAttack]], ...]] = (
    ("no-flush", Surface.FEATURES, Aim.DECEPTION, "takes away that writes can be flushed",
     _common("device_feature", lambda true: true & ~bit(BlkFeature.FLUSH), select=0)),
    ("read-only", Surface.FEATURES, Aim.DECEPTION, "says that the disk can't be written",
     _common("device_feature", lambda true: true | bit(BlkFeature.RO), select=0)),
    ("no-version", Surface.FEATURES, Aim.DENIAL, "takes VERSION_1 and ACCESS_PLATFORM away",
     _common("device_feature", lambda true: true & ~3, select=1)),
    ("capacity-more", Surface.CONFIG, Aim.DECEPTION, "says that the disk is twice as large",
     _device("capacity", lambda true: true * 2)),
    ("capacity-less", Surface.CONFIG, Aim.DECEPTION, "says that the disk is half as large",
     _device("capacity", lambda true: true // 2)),
    ("block-size", Surface.CONFIG, Aim.DECEPTION, "says that a block has 4096 bytes", _device("blk_size", _to(4096))),
    ("refuses-features", Surface.CONFIG, Aim.DENIAL, "says that the device does not take its own features",
     _common("device_status", lambda true: true & ~Status.FEATURES_OK)),
    ("never-reset", Surface.CONFIG, Aim.DENIAL, "says that a reset does not end",
     _common("device_status", lambda true: true or 1)),
    ("queue-larger", Surface.CONFIG, Aim.MEMORY, "says that a queue has 32,768 entries",
     _common("queue_size", _to(32768))),
    ("queues-many", Surface.CONFIG, Aim.MEMORY, "says that there are 65,535 queues",
     _common("num_queues", _to(0xFFFF))),
    ("notify-far", Surface.CONFIG, Aim.MEMORY, "says that a queue is notified far away",
     _common("queue_notify_off", _to(0xFFF))),
    ("generation", Surface.CONFIG, Aim.DENIAL, "has configuration change all the time", _unsettled),
)


_AREAS: Final = (("queue_desc", "descriptors"), ("queue_driver", "available ring"), ("queue_device", "used ring"))
_ELSEWHERE: Final = 0x2000
"""Where a guest has memory of its own, and its driver no queue."""


def host_device_attacks() -> Iterator[AttackSpec]:
    """All of these attacks."""
    for name, late, what in (("sibling", False, "before the guest comes"), ("swapped", True, "while the driver works")):
        yield host_attack(f"device-{name}", Surface.DISCOVERY, Aim.DECEPTION, "PCIe 6.1, 11.2.7",
                          f"The hypervisor puts another device of the same make in the place of the guest's, {what}.",
                          lambda late=late: InItsPlace(late=late))  # type: ignore[misc]
    for name, surface, aim, what, make in _LIES:
        yield host_attack(f"control-{name}", surface, aim, _SPEC, f"The hypervisor {what}.", make)
    for register, what in _AREAS:
        yield host_attack(f"control-{register.removeprefix('queue_')}-elsewhere", Surface.CONFIG, Aim.MEMORY, _SPEC,
                          f"The hypervisor has the device take other memory of the guest's for the {what}.",
                          lambda register=register: QueueElsewhere(register, _ELSEWHERE))  # type: ignore[misc]
