"""Entropy device: no configuration, no feature bits of its own, one queue of buffers to fill (virtio 1.3, 5.4)."""

from __future__ import annotations

from typing import Final

from chamber.wire.layout import Layout

__all__ = ("CONFIG", "REQUEST_QUEUE")

REQUEST_QUEUE: Final = 0

CONFIG: Final = Layout("virtio_rng_config", "virtio 1.3, 5.4.4")
