"""The administration virtqueue of an owner device (virtio 1.4, 2.13)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from chamber.device.errors import DriverError
from chamber.device.queue import DeviceQueue
from chamber.wire.admin import MOST_PARTS_BYTES, STATUS
from chamber.wire.errors import DmaFault

if TYPE_CHECKING:
    from collections.abc import Callable

    from chamber.device.admin_commands import AdminCommands
    from chamber.device.base import Device
    from chamber.platform.dma import Dma

__all__ = ("AdminQueue",)

_MOST_BYTES: Final = MOST_PARTS_BYTES + 4096


class AdminQueue:
    """One queue behind those of the device, in whose name it reads and writes, so that its hooks have a say.

    Args:
        device: the owner.
        commands: what commands do.

    Attributes:
        index: its number.
        queue: the queue.

    """

    def __init__(self, device: Device, commands: AdminCommands) -> None:
        self.index = device.queue_count
        self.queue = DeviceQueue(self.index)
        self._device = device
        self._commands = commands

    def start(self, index: int, dma: Dma, *, size: int, desc: int, driver: int, device: int,  # noqa: ARG002
              interrupt: Callable[[], None], base: int = 0) -> None:
        """Take it over; an illegal one stays stopped, and the broken rule is reported."""
        try:
            self.queue.start(dma, size, desc, driver, device, features=self._device.features, interrupt=interrupt,
                             base=base)
        except DriverError as error:
            self._device.report(error)

    def reset(self) -> None:
        """Forget the driver, and all that it made by commands."""
        self.queue.stop()
        self._commands.reset()

    def pump(self) -> bool:
        """Execute what is available, in order, one queue's length at most; return whether more may be left."""
        queue, device = self.queue, self._device
        ring = queue.ring
        if ring is None:
            return False
        more = True
        try:
            for _ in range(ring.size):
                chain = device.take(queue)
                if chain is None:
                    more = queue.broken is None and queue.ring is not None and not ring.arm_kick()
                    break
                # A buffer may be shorter or longer than the structures: what is missing is zero (2.13).
                command = chain.read(0, _MOST_BYTES)
                answer = self._commands.execute(command, max(chain.writable_size - STATUS.size, 0))
                device.complete(queue, chain, device.respond(queue, chain, answer[:chain.writable_size]))
        except (DriverError, DmaFault) as error:
            queue.broken = error if isinstance(error, DriverError) else DriverError(
                "a descriptor names shared memory", spec="2.7.5", detail=str(error))
            device.report(queue.broken)
            more = False
        device.flush(queue)
        return more
