"""User-Mode Linux's PCI bus: a virtio device whose requests are accesses to a PCI function (`chamber.wire.pcidev`).

The guest's kernel finds the function, and in it a virtio device, as on any PCI bus. Memory is reached by guest-physical
addresses: those of the one device are those of the other.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Protocol

from chamber.device.base import Device
from chamber.wire.errors import WireError
from chamber.wire.pci import MSIX_ENTRY
from chamber.wire.pcidev import COMMAND_QUEUE, EVENT_QUEUE, Message, Operation

if TYPE_CHECKING:
    from collections.abc import Callable

    from chamber.device.chain import Chain
    from chamber.device.queue import DeviceQueue
    from chamber.platform.dma import Dma
    from chamber.platform.pci import PciFunction

__all__ = ("Carried", "PciOverVirtio")

_COMMAND_LIMIT: Final = 8192
_MOST_UNREAD: Final = 32
"""Writes after which the guest is interrupted, to take their buffers back: while it reads, it does so by itself."""
_MOST_EVENTS: Final = 256
_PIN: Final = 1


class Carried(Protocol):
    """What is carried: a `chamber.device.virtio_pci.VirtioPci`, or somebody who stands before one."""

    dma: Dma

    @property
    def device(self) -> Device:
        """The virtio device."""
        ...

    @property
    def function(self) -> PciFunction:
        """The function that it is in."""
        ...

    def read_config(self, offset: int, size: int) -> bytes: ...  # noqa: D102 - as VirtioPci's, like those below
    def write_config(self, offset: int, data: bytes) -> None: ...  # noqa: D102
    def read_bar(self, bar: int, offset: int, size: int) -> bytes: ...  # noqa: D102
    def write_bar(self, bar: int, offset: int, data: bytes) -> None: ...  # noqa: D102
    def reset(self) -> None: ...  # noqa: D102


class PciOverVirtio(Device):
    """Carries one function.

    Args:
        function: the function; nobody else has it on a bus.
        watch: stands between the function and guest memory, if given.
        left: called when the guest has taken the bus away, with its memory, which is within reach for the last time.

    """

    def __init__(self, function: Carried, watch: Callable[[Dma], Dma] = lambda dma: dma,
                 left: Callable[[Dma], None] = lambda _dma: None) -> None:
        super().__init__(features=0, config=b"", queues=2, queue_size=256)
        self.carried = function
        self._watch = watch
        self._left = left
        self._memory: Dma | None = None
        self._events: list[bytes] = []
        self._unread = 0
        function.function.send = self._send
        function.function.wire = self._wire
        # The transport sets these of the device that it serves, which is this one.
        function.device.schedule = self._schedule

    def _schedule(self, delay: float, call: Callable[[], None]) -> None:
        self.schedule(delay, call)

    # What becomes of the bus.

    def start_queue(self, index: int, dma: Dma, *, size: int, desc: int, driver: int, device: int,
                    interrupt: Callable[[], None], base: int = 0) -> None:
        """Take a queue over; the function reaches the memory that it lies in."""
        self._memory = dma
        self.carried.dma = self._watch(dma)
        super().start_queue(index, dma, size=size, desc=desc, driver=driver, device=device, interrupt=interrupt,
                            base=base)

    def queue_stopped(self, queue: DeviceQueue) -> None:  # noqa: ARG002 - either of the two
        """The guest takes the bus away, and with it the function."""
        self._events.clear()
        self.carried.reset()
        memory, self._memory = self._memory, None
        if memory is not None:
            self._left(memory)

    def close(self) -> None:
        """Close the device."""
        self.carried.device.close()

    def pollable(self) -> dict[int, Callable[[], None]]:
        """What the device waits for."""
        return self.carried.device.pollable()

    def host_action(self, action: str) -> None:
        """Hand it on to the device."""
        self.carried.device.host_action(action)

    # Commands.

    def available(self, queue: DeviceQueue) -> bool:
        """Serve commands; buffers for events are taken when there is one."""
        if queue.index == EVENT_QUEUE:
            self._say(queue)
            return False
        return super().available(queue)

    def handle(self, queue: DeviceQueue, chain: Chain) -> None:
        """Do an access. One that can't be told is answered by nothing, which reads as if nobody was there."""
        try:
            command = Message.parse_command(chain.read(0, min(chain.readable_size, _COMMAND_LIMIT)))
        except WireError as error:
            self.log(str(error))
            self.complete(queue, chain, 0)
            return
        written = 0
        if command.reads:
            written = chain.write(self._read(command))
            self._unread = 0
        else:
            self._write(command)
            self._unread += 1
        self.complete(queue, chain, written)

    def _read(self, command: Message) -> bytes:
        carried = self.carried
        if command.operation is Operation.CFG_READ:
            return carried.read_config(command.address, command.size)
        return carried.read_bar(command.bar, command.address, command.size)

    def _write(self, command: Message) -> None:
        carried = self.carried
        match command.operation:
            case Operation.CFG_WRITE:
                carried.write_config(command.address, command.data)
            case Operation.MMIO_WRITE:
                carried.write_bar(command.bar, command.address, command.data)
            case _:
                carried.write_bar(command.bar, command.address, command.data * command.size)

    def flush(self, queue: DeviceQueue) -> None:
        """Show what was completed. A guest that reads waits for it without an interrupt."""
        if queue.index != COMMAND_QUEUE:
            super().flush(queue)
        elif queue.unpublished:
            queue.publish()
            if self._unread >= _MOST_UNREAD:
                self._unread = 0
                queue.interrupt()

    # Events.

    def _send(self, address: int, data: int) -> None:
        width = MSIX_ENTRY["data"].size
        self._event(Message(Operation.MSI, size=width, address=address, data=data.to_bytes(width, "little")))

    def _wire(self, asserted: bool) -> None:
        if asserted:
            self._event(Message(Operation.INT, address=_PIN))

    def _event(self, message: Message) -> None:
        data = message.pack()
        # The same said twice is no more than said once, as long as the guest has heard neither.
        if data not in self._events and len(self._events) < _MOST_EVENTS:
            self._events.append(data)
            self.pump(self.queues[EVENT_QUEUE])

    def _say(self, queue: DeviceQueue) -> None:
        while self._events:
            chain = self.take_buffer(queue)
            if chain is None:
                return
            self.complete(queue, chain, chain.write(self._events.pop(0)))
