"""Entropy source driver (virtio 1.3, 5.4)."""

from __future__ import annotations

from typing import Final

from chamber.guest.driver import TRANSPORT_FEATURES, VirtioDriver
from chamber.wire.rng import CONFIG, REQUEST_QUEUE
from chamber.wire.virtio import DeviceType

__all__ = ("RngDriver",)

_SPEC: Final = "5.4.6"


class RngDriver(VirtioDriver):
    """Reads random bytes. What the device calls random is all that a guest can know of it."""

    type = DeviceType.RNG
    known = allowed = TRANSPORT_FEATURES
    config_layout = CONFIG

    def queue_indexes(self) -> list[int]:
        """Return the one queue."""
        return [REQUEST_QUEUE]

    def initialise(self) -> None:
        """Nothing is needed."""

    def read(self, size: int) -> bytes:
        """Return up to `size` random bytes; fewer where the device wrote fewer.

        Raises:
            DeviceViolation: nothing was written, or more than there was room for.

        """
        buffer = self.machine.heap.alloc(size, "random bytes")
        try:
            written = self.transact(self.queue(REQUEST_QUEUE), [], [buffer])
            length = self.checks.number(written).between(1, size, "the device writes one byte at least", _SPEC)
            # Only what the device wrote: the rest of the buffer holds what the guest's memory held before.
            return buffer.read(0, length)
        finally:
            self.release(buffer)
