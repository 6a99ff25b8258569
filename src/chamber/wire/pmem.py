"""Persistent memory device (virtio 1.3, 5.19)."""

from __future__ import annotations

import enum
from typing import Final

from chamber.wire.layout import Field, Layout, Role

__all__ = ("CONFIG", "FLUSH", "REQUEST", "REQUEST_QUEUE", "RESPONSE", "SHARED_MEMORY_ID", "PmemFeature")

REQUEST_QUEUE: Final = 0
FLUSH: Final = 0
SHARED_MEMORY_ID: Final = 0
"""The shared memory region that SHMEM_REGION puts in the place of `start` and `size` (5.19.4)."""


class PmemFeature(enum.IntEnum):
    """Feature bits (5.19.3)."""

    SHMEM_REGION = 0


CONFIG: Final = Layout(
    "virtio_pmem_config", "virtio 1.3, 5.19.4",
    Field("start", "le64", Role.OFFSET),
    Field("size", "le64", Role.LENGTH),
)

REQUEST: Final = Layout("virtio_pmem_req", "virtio 1.3, 5.19.6", Field("type", "le32", Role.ENUM, None, (FLUSH,)))

RESPONSE: Final = Layout("virtio_pmem_resp", "virtio 1.3, 5.19.6", Field("ret", "le32", Role.VALUE))
