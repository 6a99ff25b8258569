"""What a virtio function says of itself in the report of a lock (`chamber.wire.virtio_tdi`)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from chamber.device.tdi import Doors
from chamber.wire.virtio_pci import CAPABILITY, NOTIFY_CAPABILITY, SHARED_MEMORY_CAPABILITY, CapabilityType
from chamber.wire.virtio_tdi import Guarantee, Location, VirtioTdiInfo

if TYPE_CHECKING:
    from chamber.device.virtio_pci import VirtioPci

__all__ = ("describe",)

_IN_MEMORY: Final = (CapabilityType.COMMON_CFG, CapabilityType.NOTIFY_CFG, CapabilityType.ISR_CFG,
                     CapabilityType.DEVICE_CFG, CapabilityType.SHARED_MEMORY_CFG)
_CLOSED: Final = {Doors.WINDOW: Guarantee.WINDOW_INERT, Doors.OWNER: Guarantee.NO_LEGACY | Guarantee.OWNER_REFUSED}
"""What a closed door lets `chamber.device.tdi.Tdi` undertake."""


def describe(virtio: VirtioPci, *, open_doors: Doors = Doors.NONE) -> bytes:
    """Return DEVICE_SPECIFIC_INFO of a function that is being locked; for `Tdi`."""
    device = virtio.device
    # Configuration changes as the device's type says, and as its host makes it: that is not undertaken.
    kept = Guarantee.RESET_BY_LOCK
    for door, guarantee in _CLOSED.items():
        if door not in open_doors:
            kept |= guarantee
    return VirtioTdiInfo(
        device.type, kept, tuple(_location(virtio, kind) for kind in _IN_MEMORY if kind in virtio.capabilities),
        device.offered_features(), (device.queue_size,) * device.queue_count, bytes(device.config)).encode()


def _location(virtio: VirtioPci, kind: CapabilityType) -> Location:
    # From what the device itself put there: what a read of configuration space gets, a host may have its hand in.
    config, at = virtio.function.config, virtio.capabilities[kind]
    offset, length, number, bar = (CAPABILITY.get(config, name, at) for name in ("offset", "length", "id", "bar"))
    multiplier = 0
    if kind is CapabilityType.SHARED_MEMORY_CFG:
        offset |= SHARED_MEMORY_CAPABILITY.get(config, "offset_hi", at) << 32
        length |= SHARED_MEMORY_CAPABILITY.get(config, "length_hi", at) << 32
    elif kind is CapabilityType.NOTIFY_CFG:
        multiplier = NOTIFY_CAPABILITY.get(config, "notify_off_multiplier", at)
    return Location(kind, bar, offset, length, number, multiplier)
