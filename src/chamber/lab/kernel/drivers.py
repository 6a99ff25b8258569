"""Which source files of a kernel are under test, by device type."""

from __future__ import annotations

from typing import Final

from chamber.wire.virtio import DeviceType

__all__ = ("BEHIND", "CORE", "SOURCES")

SOURCES: Final[dict[DeviceType, tuple[str, ...]]] = {
    DeviceType.NET: ("drivers/net/virtio_net.c", "drivers/net/virtio/*.c"),
    DeviceType.BLOCK: ("drivers/block/virtio_blk.c",),
    DeviceType.CONSOLE: ("drivers/char/virtio_console.c",),
    DeviceType.RNG: ("drivers/char/hw_random/virtio-rng.c",),
    DeviceType.BALLOON: ("drivers/virtio/virtio_balloon.c",),
    DeviceType.SCSI: ("drivers/scsi/virtio_scsi.c",),
    DeviceType.TRANSPORT_9P: ("net/9p/trans_virtio.c", "net/9p/client.c", "net/9p/protocol.c"),
    DeviceType.INPUT: ("drivers/virtio/virtio_input.c",),
    DeviceType.VSOCK: ("net/vmw_vsock/virtio_transport.c", "net/vmw_vsock/virtio_transport_common.c"),
    DeviceType.CRYPTO: ("drivers/crypto/virtio/*.c",),
    DeviceType.SND: ("sound/virtio/*.c",),
    DeviceType.FS: ("fs/fuse/virtio_fs.c", "fs/fuse/dev.c", "fs/fuse/dir.c", "fs/fuse/file.c", "fs/fuse/inode.c",
                    "fs/fuse/readdir.c"),
    DeviceType.PMEM: ("drivers/nvdimm/virtio_pmem.c", "drivers/nvdimm/nd_virtio.c"),
}
"""The drivers, and the layers behind them that parse what a device says; patterns below the tree."""

CORE: Final = ("drivers/virtio/virtio.c", "drivers/virtio/virtio_ring.c", "drivers/virtio/virtio_pci_*.c")
"""What all of them stand on."""

BEHIND: Final = (
    "include/linux/virtio_net.h", "drivers/input/input.c", "drivers/input/input-mt.c", "block/blk-settings.c",
    "drivers/scsi/scsi.c", "drivers/scsi/scsi_scan.c", "drivers/scsi/sd.c")
"""Where else a device's word is checked; not under test, as most of what is there is about something else."""
