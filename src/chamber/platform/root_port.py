"""The root port of a confidential guest: which memory requests carry the T bit, and what stands behind those that come.

The trusted firmware of the platform (the TSM) sets it up: which addresses are an interface's that the guest has
accepted, and with which keys the stream to the device is encrypted. Everything else goes to the host, to answer as it
likes; and so does the link itself, over which a host may do to packets what it can (PCIe 6.1, 11.2 and 6.33).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Protocol

from chamber.platform.ide import IdeFailure
from chamber.platform.pci_bus import MSI_ADDRESS, Bus
from chamber.wire.errors import DmaFault
from chamber.wire.tlp import Completion, CompletionStatus, MemoryRead, MemoryWrite

if TYPE_CHECKING:
    from chamber.platform.dma import Dma
    from chamber.platform.ide import IdeStream
    from chamber.platform.interrupts import InterruptController

__all__ = ("Path", "RootPort")

_TAGS: Final = 256


class Path(Bus, Protocol):
    """What is below the port: all of it the host's."""

    def down(self, packet: bytes) -> list[bytes]:
        """Carry a packet towards the device; return what comes back."""
        ...


class RootPort:
    """One port with one device below it (implements `chamber.platform.pci_bus.Bus`).

    Args:
        below: where accesses go that are not the TEE's.
        stream: this end of the encrypted stream.
        private: memory that requests with the T bit reach.
        shared: memory that those without it reach.
        interrupts: takes messages that are interrupts.

    Attributes:
        stream: as given.
        lost: why a request of the TEE's came to nothing, in order.

    """

    def __init__(self, below: Path, stream: IdeStream, *, private: Dma, shared: Dma,
                 interrupts: InterruptController) -> None:
        self._below = below
        self.stream = stream
        self._private, self._shared = private, shared
        self._interrupts = interrupts
        self._accepted: list[range] = []
        self._tag = 0
        self.lost: list[str] = []

    def accept(self, address: int, length: int) -> None:
        """Have accesses to a range carry the T bit: the guest has found it to be the interface's."""
        self._accepted.append(range(address, address + length))

    def release(self) -> None:
        """Have none any more."""
        self._accepted.clear()

    def _is_private(self, address: int, size: int) -> bool:
        return any(address in span and address + size <= span.stop for span in self._accepted)

    # What the guest does.

    def read_config(self, slot: int, offset: int, size: int) -> bytes:
        """Read configuration space, by the host's leave."""
        return self._below.read_config(slot, offset, size)

    def write_config(self, slot: int, offset: int, data: bytes) -> None:
        """Write it, by the host's leave."""
        self._below.write_config(slot, offset, data)

    def read(self, address: int, size: int) -> bytes:
        """Read a device's memory; all bits are one where no answer came that the stream takes."""
        if not self._is_private(address, size):
            return self._below.read(address, size)
        tag = self._tag = (self._tag + 1) % _TAGS
        found = None
        try:
            for answer in self._below.down(self.stream.send(MemoryRead(0, tag, address, size), trusted=True)):
                packet = self.stream.receive(answer).packet
                if isinstance(packet, Completion) and packet.tag == tag:
                    found = packet
        except IdeFailure as failure:
            self.lost.append(failure.reason)
        if found is None or found.status is not CompletionStatus.SUCCESS or len(found.data) != size:
            return b"\xff" * size
        return found.data

    def write(self, address: int, data: bytes) -> None:
        """Write a device's memory; what the stream does not take is lost."""
        if not self._is_private(address, len(data)):
            self._below.write(address, data)
            return
        try:
            self._below.down(self.stream.send(MemoryWrite(0, address, data), trusted=True))
        except IdeFailure as failure:
            self.lost.append(failure.reason)

    # What the device does.

    def up(self, packet: bytes) -> bytes | None:
        """Take what comes from below as a packet of the stream; return what goes back, None where nothing does."""
        try:
            received = self.stream.receive(packet)
            request = received.packet
            memory = self._private if received.trusted else self._shared
            if isinstance(request, MemoryWrite) and request.address == MSI_ADDRESS:
                self._interrupts.assert_vector(int.from_bytes(request.data, "little"))
            elif isinstance(request, MemoryWrite):
                memory.write(request.address, request.data)
            elif isinstance(request, MemoryRead):
                answer = Completion(0, request.requester, request.tag, memory.read(request.address, request.length),
                                    lower_address=request.address & 0x7F)
                return self.stream.send(answer, trusted=received.trusted)
        except IdeFailure as failure:
            self.lost.append(failure.reason)
        except DmaFault as fault:
            self.lost.append(str(fault))
        return None
