"""What is changed in the kernel's own files, so that its transport does for a driver what PCI does, and is quick."""

from __future__ import annotations

from typing import Final

__all__ = ("CHANGED", "change", "unchanged_parts")

_CHANGES: Final[dict[str, tuple[tuple[bytes, bytes], ...]]] = {
    "arch/um/drivers/virtio_uml.c": (
        # User-mode-linux tells nobody of a reset (7.3 and before): a device would go on with buffers that are none.
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
        # No machine takes its drivers away when it is off. Here those on the PCI bus would wait for good: from 6.12.114
        # on shutting down breaks the queues that carry the bus.
        (b"__uml_exitcall(virtio_uml_exit);\n", b"/* Drivers stay when the machine is off. */\n"),
    ),
    # Removing a driver waits for the next tick, and for the one after: hundredths of a second each.
    "arch/um/Kconfig": ((b"config HZ\n\tint\n\tdefault 100\n", b"config HZ\n\tint\n\tdefault 1000\n"),),
}

CHANGED: Final = tuple(_CHANGES)
"""Which files these are."""


def change(path: str, text: bytes) -> bytes:
    """Return one of the files as it is built.

    Raises:
        ValueError: it is another file than those of Linux 6.1 to 7.3.

    """
    for old, new in _CHANGES[path]:
        if text.count(old) != 1:
            raise ValueError(f"{path} has {text.count(old)} of {old.decode().strip()}")
        text = text.replace(old, new)
    return text


def unchanged_parts(path: str) -> bytes:
    """Return just what is replaced, as it was: for telling whether two kernels are built with the same changes."""
    return b"".join(old for old, _ in _CHANGES.get(path, ()))
