"""What all virtio devices share: device types, status bits, feature bits (virtio 1.3, sections 2.1, 2.2, 5 and 6)."""

from __future__ import annotations

import enum

__all__ = ("DeviceType", "Feature", "Status", "bit", "feature_names")


class DeviceType(enum.IntEnum):
    """Virtio device ids (virtio 1.3, 5)."""

    NET = 1
    BLOCK = 2
    CONSOLE = 3
    RNG = 4
    BALLOON = 5
    SCSI = 8
    TRANSPORT_9P = 9
    INPUT = 18
    VSOCK = 19
    CRYPTO = 20
    SND = 25
    FS = 26
    PMEM = 27

    @property
    def short(self) -> str:
        """The name used on the command line and in reports: net, blk, 9p, and the others' own in lower case."""
        return {DeviceType.BLOCK: "blk", DeviceType.TRANSPORT_9P: "9p"}.get(self, self.name.lower())


class Status(enum.IntFlag):
    """Device status field (virtio 1.3, 2.1)."""

    RESET = 0
    ACKNOWLEDGE = 1
    DRIVER = 2
    DRIVER_OK = 4
    FEATURES_OK = 8
    DEVICE_NEEDS_RESET = 64
    FAILED = 128


class Feature(enum.IntEnum):
    """Reserved feature bit numbers (virtio 1.3, 6)."""

    NOTIFY_ON_EMPTY = 24
    ANY_LAYOUT = 27
    RING_INDIRECT_DESC = 28
    RING_EVENT_IDX = 29
    VERSION_1 = 32
    ACCESS_PLATFORM = 33
    RING_PACKED = 34
    IN_ORDER = 35
    ORDER_PLATFORM = 36
    SR_IOV = 37
    NOTIFICATION_DATA = 38
    NOTIF_CONFIG_DATA = 39
    RING_RESET = 40
    ADMIN_VQ = 41


def bit(*numbers: int) -> int:
    """Return a mask with the named feature bits set."""
    mask = 0
    for number in numbers:
        mask |= 1 << number
    return mask


def feature_names(features: int, *namespaces: type[enum.IntEnum]) -> list[str]:
    """Name the bits of a feature word, lowest first; unnamed bits come as ``bit N``."""
    names: list[str] = []
    for number in range(features.bit_length()):
        if features >> number & 1:
            spaces: tuple[type[enum.IntEnum], ...] = (*namespaces, Feature)
            known = [member.name for space in spaces for member in space if member == number]
            names.append(known[0] if known else f"bit {number}")
    return names
