"""Entropy device (virtio 1.3, 5.4)."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, ClassVar, Final

from chamber.device.base import Device
from chamber.device.errors import DriverError
from chamber.wire.rng import CONFIG
from chamber.wire.virtio import DeviceType

if TYPE_CHECKING:
    from collections.abc import Callable

    from chamber.device.chain import Chain
    from chamber.device.hooks import Hooks
    from chamber.device.queue import DeviceQueue

__all__ = ("RngDevice",)

_LIMIT: Final = 1 << 16


class RngDevice(Device):
    """Fills buffers with random bytes, at most 64 KiB of each.

    Args:
        source: gives that many bytes; ``random.Random(seed).randbytes`` makes a device that repeats itself.
        features: feature bits to offer; the device type has none of its own.
        queue_size: descriptors per queue.
        hooks: interference, if any.

    """

    type: ClassVar[DeviceType] = DeviceType.RNG

    def __init__(self, *, source: Callable[[int], bytes] = os.urandom, features: int | None = None,
                 queue_size: int = 256, hooks: Hooks | None = None) -> None:
        super().__init__(features=features or 0, config=CONFIG.pack(), queues=1, queue_size=queue_size, hooks=hooks)
        self._source = source

    def handle(self, queue: DeviceQueue, chain: Chain) -> None:
        """Fill one buffer; the device may use less of it than there is (5.4.6.2)."""
        room = min(chain.writable_size, _LIMIT)
        written = 0
        if room:
            written = self.respond(queue, chain, self._source(room))
        else:
            self.report(DriverError("a buffer for entropy can be written", spec="5.4.6.1"))
        self.complete(queue, chain, written)
