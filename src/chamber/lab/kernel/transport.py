"""What is changed about virtio_uml, the transport, so that it does for a driver what PCI does."""

from __future__ import annotations

from typing import Final

__all__ = ("TRANSPORT", "change_transport", "unchanged_parts")

TRANSPORT: Final = "arch/um/drivers/virtio_uml.c"
"""Which file it is."""

_CHANGES: Final = (
    # User-mode-linux tells nobody of a reset (7.3 and before), so that a device would go on with buffers that are none.
    (b"\tvu_dev->status = 0;\n", b"""\
\tif (vu_dev->status & VIRTIO_CONFIG_S_DRIVER) {
\t\tstruct virtqueue *vq;
\t\tu64 features;

\t\t/* As over PCI, the device is told: after a reset the driver has all buffers back, and frees them. */
\t\tlist_for_each_entry_reverse(vq, &vdev->vqs, list)
\t\t\tvhost_user_set_vring_enable(vu_dev, vq->index, false);
\t\tvhost_user_get_features(vu_dev, &features);
\t}
\tvu_dev->status = 0;
"""),
    # The length of queues is the device's choice; over vhost-user it has none.
    (b"#define MAX_SUPPORTED_QUEUE_SIZE\t256\n", b"""\
extern unsigned int chamber_queue_size;
#define MAX_SUPPORTED_QUEUE_SIZE\tchamber_queue_size
"""),
)


def change_transport(text: bytes) -> bytes:
    """Return the file as it is built.

    Raises:
        ValueError: it is another file than those of Linux 6.1 to 7.3.

    """
    for old, new in _CHANGES:
        if text.count(old) != 1:
            raise ValueError(f"{TRANSPORT} has {text.count(old)} of {old.decode().strip()}")
        text = text.replace(old, new)
    return text


def unchanged_parts() -> bytes:
    """Return just what is replaced, as it was: for telling whether two kernels are built with the same changes."""
    return b"".join(old for old, _ in _CHANGES)
