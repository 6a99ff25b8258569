"""What each device type has of its own: names of its feature bits, and its configuration space (virtio 1.3, 5)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from chamber.wire import balloon, blk, console, crypto, fs, net, p9, pmem, scsi, snd, vsock
from chamber.wire import input as virtio_input
from chamber.wire.virtio import DeviceType, Feature

if TYPE_CHECKING:
    import enum

    from chamber.wire.layout import Layout

__all__ = ("CONFIGS", "FEATURES", "feature_number")

FEATURES: Final[dict[DeviceType, type[enum.IntEnum]]] = {
    DeviceType.NET: net.NetFeature, DeviceType.BLOCK: blk.BlkFeature, DeviceType.CONSOLE: console.ConsoleFeature,
    DeviceType.BALLOON: balloon.BalloonFeature, DeviceType.SCSI: scsi.ScsiFeature,
    DeviceType.TRANSPORT_9P: p9.P9Feature, DeviceType.VSOCK: vsock.VsockFeature, DeviceType.SND: snd.SndFeature,
    DeviceType.PMEM: pmem.PmemFeature}
"""Types that are not here have no feature of their own."""

CONFIGS: Final[dict[DeviceType, Layout]] = {
    DeviceType.NET: net.CONFIG, DeviceType.BLOCK: blk.CONFIG, DeviceType.CONSOLE: console.CONFIG,
    DeviceType.BALLOON: balloon.CONFIG, DeviceType.SCSI: scsi.CONFIG, DeviceType.TRANSPORT_9P: p9.CONFIG,
    DeviceType.INPUT: virtio_input.CONFIG, DeviceType.VSOCK: vsock.CONFIG, DeviceType.CRYPTO: crypto.CONFIG,
    DeviceType.SND: snd.CONFIG, DeviceType.FS: fs.CONFIG, DeviceType.PMEM: pmem.CONFIG}


def feature_number(kind: DeviceType, name: str) -> int | None:
    """Return the number of a feature of a device type, or one that all have; None if there is none of that name."""
    for space in (FEATURES.get(kind), Feature):
        if space is not None and name in space.__members__:
            return int(space[name])
    return None
