"""A trusted function behind a root port whose stream to it is encrypted: all that passes, passes in packets.

Both are on a bus that carries functions (`PciOverVirtio`), the port in a slot of its own. A guest's kernel configures
them; keys, and what is the TEE's, come from its TSM (`chamber.platform.port_keys`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from chamber.device.base import Device
from chamber.device.late_dma import LateDma
from chamber.device.link_dma import LinkDma
from chamber.device.trusted_function import BehindPort
from chamber.platform.ide import IdeStream
from chamber.platform.interrupts import InterruptController
from chamber.platform.root_port import RootPort
from chamber.platform.root_port_function import make_root_port_function
from chamber.wire.ide_capability import NO_STREAM_ID

if TYPE_CHECKING:
    from collections.abc import Callable

    from chamber.device.chain import Chain
    from chamber.device.queue import DeviceQueue
    from chamber.device.trusted_function import TrustedFunction
    from chamber.device.virtio_pci import VirtioPci
    from chamber.platform.dma import Dma

__all__ = ("BehindIdePort", "PortFunction")


class BehindIdePort(BehindPort):
    """The function (implements `chamber.device.pci_over_virtio.Carried`).

    Interrupts do not go over the stream: their table is not locked (docs/tsm.md).

    Args:
        virtio: the function.
        make: makes the device, given its function, and memory that it reaches without the T bit and with it.

    Attributes:
        port: what is above it.
        packets: how many went over the stream, down and up.

    """

    def __init__(self, virtio: VirtioPci, make: Callable[[VirtioPci, Dma, Dma], TrustedFunction]) -> None:
        self._link = LinkDma(self.up, requester=0)
        self.packets = 0
        super().__init__(virtio, lambda function, memory: make(function, memory, self._link))
        assert self.trusted.link is not None
        self._link.stream, self.trusted.link.working = self.trusted.stream, self._link.working
        self.port = RootPort(_Below(self), IdeStream(NO_STREAM_ID), private=self._lent, shared=self._lent,
                             interrupts=InterruptController())
        self._later: Callable[[float, Callable[[], None]], None] | None = None

    def _lend(self, memory: Dma) -> None:
        super()._lend(memory)
        if self._later is None:
            self._later, self.device.schedule = self.device.schedule, self._work_later

    def _work_later(self, seconds: float, call: Callable[[], None]) -> None:
        def work() -> None:
            with self._link.working():
                call()
        assert self._later is not None
        self._later(seconds, work)

    def read_bar(self, bar: int, offset: int, size: int) -> bytes:
        """Serve a read of a BAR, by the port."""
        return self.port.read(self.function.bar_base(bar) + offset, size)

    def write_bar(self, bar: int, offset: int, data: bytes) -> None:
        """Take a write to a BAR, by the port."""
        self.port.write(self.function.bar_base(bar) + offset, data)

    def up(self, packet: bytes) -> list[bytes]:
        """Carry a packet of the device's to the port; return what comes back."""
        self.packets += 1
        answer = self.port.up(packet)
        return [] if answer is None else [answer]


class _Below:
    """What is below the port: the function alone (implements `chamber.platform.root_port.Path`)."""

    def __init__(self, function: BehindIdePort) -> None:
        self._behind = function

    def read_config(self, _slot: int, offset: int, size: int) -> bytes:
        """Read configuration space."""
        return self._behind.read_config(offset, size)

    def write_config(self, _slot: int, offset: int, data: bytes) -> None:
        """Write it."""
        self._behind.write_config(offset, data)

    def read(self, address: int, size: int) -> bytes:
        """Read without the T bit, outside of the stream."""
        found = self._behind.function.find_bar(address, size)
        return b"\xff" * size if found is None else self._behind.trusted.tdi.read_bar(*found, size)

    def write(self, address: int, data: bytes) -> None:
        """Write in the same way."""
        found = self._behind.function.find_bar(address, len(data))
        if found is not None:
            self._behind.trusted.tdi.write_bar(*found, data)

    def down(self, packet: bytes) -> list[bytes]:
        """Carry a packet to the device; return what comes back."""
        link = self._behind.trusted.link
        assert link is not None
        self._behind.packets += 1
        answer = link.deliver(packet)
        return [] if answer is None else [answer]


class _Nothing(Device):
    """A port is no virtio device."""

    def __init__(self) -> None:
        super().__init__(features=0, config=b"", queues=0)

    def handle(self, queue: DeviceQueue, chain: Chain) -> None:
        """Have no queue."""
        raise AssertionError(queue.index, chain)


class PortFunction:
    """The port's own function on the bus (implements `chamber.device.pci_over_virtio.Carried`).

    Args:
        port: the port.

    """

    def __init__(self, port: RootPort) -> None:
        self.function = make_root_port_function(port)
        self.device: Device = _Nothing()
        self.dma: Dma = LateDma()
        self._port = port

    def read_config(self, offset: int, size: int) -> bytes:
        """Serve a read of configuration space."""
        return self.function.read_config(offset, size)

    def write_config(self, offset: int, data: bytes) -> None:
        """Take a write to it."""
        self.function.write_config(offset, data)

    def read_bar(self, bar: int, offset: int, size: int) -> bytes:
        """Have no BAR."""
        return self.function.read_bar(bar, offset, size)

    def write_bar(self, bar: int, offset: int, data: bytes) -> None:
        """Have none."""
        self.function.write_bar(bar, offset, data)

    def reset(self) -> None:
        """Take the bus's reset: no keys, and nothing is the TEE's."""
        self._port.stream.close()
        self._port.release()
        self.function.reset()
