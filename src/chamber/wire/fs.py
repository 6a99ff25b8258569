"""File system device: tag, queues (virtio 1.3, 5.11). What goes through the queues is FUSE (`chamber.wire.fuse`)."""

from __future__ import annotations

from typing import Final

from chamber.wire.layout import Field, Layout, Role

__all__ = ("CONFIG", "HIPRIO_QUEUE", "REQUEST_QUEUE", "TAG_SIZE")

HIPRIO_QUEUE: Final = 0
REQUEST_QUEUE: Final = 1
"""The first request queue of a device without NOTIFICATION (5.11.2)."""
TAG_SIZE: Final = 36


# What follows these, `notify_buf_size`, is there with the feature NOTIFICATION alone (5.11.3), which neither Linux nor
# Chamber has.
CONFIG: Final = Layout(
    "virtio_fs_config", "virtio 1.3, 5.11.4",
    Field("tag", f"bytes:{TAG_SIZE}", Role.BYTES),
    Field("num_request_queues", "le32", Role.COUNT, None, range(1, 1 << 16)),
)
