"""A virtio device that owns others: a physical function, its virtual functions, and the commands between them.

The owner is whoever has the physical function: the hypervisor, as a rule, while members belong to guests. What it may
do to a member by commands is the specification's (virtio 1.4, 2.12): to stop it, to read its state, to set another.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from chamber.device.admin_commands import AdminCommands
from chamber.device.catalogue import make_device
from chamber.device.legacy_interface import LEGACY_TYPES
from chamber.device.virtio_pci import VirtioPci, identity_of
from chamber.platform.sriov import Sriov, VirtualFunction
from chamber.wire.virtio import Feature, bit
from chamber.wire.virtio_pci import DEVICE_ID_BASE

if TYPE_CHECKING:
    from collections.abc import Sequence

    from chamber.device.base import Device
    from chamber.platform.pci_bus import PciBus

__all__ = ("SriovGroup", "owner_of_one")


class SriovGroup:
    """The functions, made of devices of one type.

    Args:
        owner: the device of the physical function.
        members: those of the virtual ones, which a guest finds once the owner's driver has enabled them.
        legacy: whether the owner reaches members by their legacy interface, for guests with legacy drivers.
        for_linux: as of `AdminCommands`.

    Attributes:
        owner: its function.
        members: theirs, the first of which has the identifier 1.
        sriov: the owner's capability.

    Raises:
        ValueError: they are of different types: virtual functions share an id; or have no legacy interface.

    """

    def __init__(self, owner: Device, members: Sequence[Device], *, legacy: bool = False,
                 for_linux: bool = False) -> None:
        if any(device.type is not owner.type for device in members):
            raise ValueError("virtual functions are what the physical one is")
        if legacy and owner.type not in LEGACY_TYPES:
            raise ValueError(f"{owner.type.short} has no legacy interface")
        self._for_linux = for_linux
        owner.offer(bit(Feature.SR_IOV))
        self.owner = VirtioPci(owner, commands=AdminCommands(self, legacy=legacy, for_linux=for_linux),
                               doorbells=self._rung if legacy else None)
        function = self.owner.function
        self.sriov = Sriov(function, total=len(members), device=DEVICE_ID_BASE + owner.type)
        self.members = tuple(VirtioPci(device, function=VirtualFunction(self.sriov, number, **identity_of(device.type)),
                                       doorbells=partial(self._rung_at, number) if legacy else None)
                             for number, device in enumerate(members, 1))
        self._bus: PciBus | None = None
        self._slot = 0
        self._plugged = 0
        self.sriov.changed = self._changed
        reset = function.was_reset

        def was_reset() -> None:
            reset()
            self.sriov.look()
        function.was_reset = was_reset

    @property
    def exist(self) -> bool:
        """Whether there is a group: the owner's driver has enabled functions (2.12, SR-IOV group type).

        Linux asks for its lists before it could have enabled any.
        """
        return self._for_linux or self.sriov.count > 0

    def member(self, number: int) -> VirtioPci | None:
        """The member with such an identifier, if it is enabled."""
        return self.members[number - 1] if 1 <= number <= self.sriov.count else None

    def _rung(self, doorbell: int, queue: int) -> None:
        """The owner's doorbells are the members', one behind the other."""
        self._rung_at(doorbell + 1, 0, queue)

    def _rung_at(self, number: int, doorbell: int, queue: int) -> None:
        member = self.member(number)
        if member is not None and not doorbell and not member.held:
            member.notified(queue)

    def plug(self, bus: PciBus, slot: int) -> None:
        """Put the owner on a bus, and members once there are any."""
        self._bus, self._slot = bus, slot
        bus.plug(slot, self.owner)
        self._changed()

    def _changed(self) -> None:
        count = self.sriov.count
        for number, member in enumerate(self.members, 1):
            slot = self._slot + self.sriov.offset + (number - 1) * self.sriov.stride
            if self._plugged < number <= count and self._bus is not None:
                self._bus.plug(slot, member)
            elif count < number <= self._plugged:
                member.resume()
                member.reset()
                if self._bus is not None:
                    self._bus.unplug(slot)
        self._plugged = count

    def close(self) -> None:
        """Close all devices."""
        for function in (self.owner, *self.members):
            function.close()


def owner_of_one(device: Device, *, for_linux: bool = False) -> SriovGroup:
    """Have a device own another one of its type, honest and of memory alone, with all that can be done to it."""
    return SriovGroup(device, [make_device(device.type)], legacy=device.type in LEGACY_TYPES, for_linux=for_linux)
