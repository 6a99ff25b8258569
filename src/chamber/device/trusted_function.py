"""A virtio function that a guest can prove: SPDM, key management and TDISP behind one mailbox, the lock, the stream."""

from __future__ import annotations

import os
from functools import partial
from typing import TYPE_CHECKING, Final

from chamber.device.ide_km import IdePort
from chamber.device.ide_link import IdeLink
from chamber.device.late_dma import LateDma
from chamber.device.spdm_responder import SpdmResponder
from chamber.device.tdi import Doors, Tdi
from chamber.device.tdisp import Dsm, Event
from chamber.device.virtio_tdi import describe
from chamber.platform.doe import DoeMailbox
from chamber.platform.ide import IdeStream
from chamber.platform.ide_capability import IdeCapability
from chamber.wire.doe import PCI_SIG as DOE_VENDOR
from chamber.wire.doe import DoeType
from chamber.wire.pci import DEVICE_TEE_IO, EXPRESS
from chamber.wire.spdm_messages import PCI_SIG, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from chamber.device.base import Device
    from chamber.device.virtio_pci import VirtioPci
    from chamber.platform.dma import Dma
    from chamber.platform.pci import PciFunction
    from chamber.platform.spdm_chain import CertificateSlot
    from chamber.wire.spdm_messages import Measurement
    from chamber.wire.tdisp import State

__all__ = ("BehindPort", "BehindRootPort", "TrustedFunction")

_ALL_VERSIONS: Final = (0x12, 0x13, 0x14)
"""TDISP takes SPDM from 1.2 on (PCIe 6.1, 11.2.2)."""


def _nothing(_virtio: VirtioPci) -> bytes:
    return b""


class TrustedFunction:
    """The whole device.

    Args:
        virtio: the function; nobody else hands it accesses any more.
        identity: its certificates.
        measurements: what is measured, read anew each time.
        shared: memory that it reaches by requests without the T bit.
        private: memory that it reaches by requests with it.
        routing_id: bus, device and function.
        stream_id: of the stream to its port; None for a device that needs none, being part of the processor's package.
        configured: whether its host gives the stream its number and switches it on (`IdeCapability`). Behind no root
            port Linux 7.3 does not survive such a device.
        random: returns so many random bytes.
        spoken: versions of SPDM.
        clear_handshake: whether FINISH may travel in the clear.
        sequence_size: bytes of a secured message's number, where it is not a mailbox that brings it.
        described: whether its report says what it is as a virtio device.
        open_doors: ways into it that a lock does not close.
        log: gets lines of all that is said, without anything that is secret.

    Attributes:
        tdi: its interface; what a host does to it.
        dsm: its manager.
        responder: its end of SPDM.
        stream: its end of the encrypted stream, if there is one.
        link: what comes over the stream, if there is one.
        mailbox: what brings it objects.
        mailbox_at: where that is in configuration space.

    """

    def __init__(self, virtio: VirtioPci, identity: CertificateSlot, *, shared: Dma, private: Dma,
                 measurements: Callable[[], Sequence[Measurement]] = tuple, routing_id: int = 0,
                 stream_id: int | None = 0, configured: bool = False, random: Callable[[int], bytes] = os.urandom,
                 spoken: Sequence[int] = _ALL_VERSIONS, clear_handshake: bool = False,
                 sequence_size: int = 0, described: bool = True, open_doors: Doors = Doors.NONE,
                 log: Callable[[str], None] = lambda _line: None) -> None:
        info = partial(describe, open_doors=open_doors) if described else _nothing
        EXPRESS.put(virtio.function.config, "device_capabilities", EXPRESS.get(
            virtio.function.config, "device_capabilities", virtio.function.express_at) | DEVICE_TEE_IO,
            virtio.function.express_at)
        self.tdi = Tdi(virtio, shared=shared, private=private, device_info=info, open_doors=open_doors)
        self._routing_id = routing_id
        self.stream = None if stream_id is None else IdeStream(stream_id)
        registers = IdeCapability(virtio.function, self.stream) if self.stream is not None and configured else None
        self._port = IdePort([] if self.stream is None else [self.stream],
                             lambda _function: stream_id if registers is None else registers.default,
                             routing_id=routing_id, registers=lambda: () if registers is None else registers.registers,
                             log=log)
        self.dsm = Dsm({routing_id: self.tdi}, random, streams=None if self.stream is None else self._port, log=log)
        self.tdi.happened = lambda event: self.dsm.happened(routing_id, event)
        self.link = None
        if self.stream is not None:
            self.stream.failed = self._stream_failed
            self.link = IdeLink(self.stream, [self.tdi], completer=routing_id)
        self.responder = SpdmResponder({0: identity}, random=random, measurements=measurements,
                                       vendor={PCI_SIG: self._said}, spoken=spoken, clear_handshake=clear_handshake,
                                       sequence_size=sequence_size, ended=self._ended, log=log)
        self.mailbox = DoeMailbox(
            {(DOE_VENDOR, int(kind)): self._through(secured=secured)
             for kind, secured in ((DoeType.SPDM, False), (DoeType.SECURED_SPDM, True))}, log=log)
        self.mailbox_at = self.mailbox.add_to(virtio.function)

    def _stream_failed(self, _reason: str) -> None:
        assert self.stream is not None
        self.dsm.stream_failed(self.stream.stream_id)

    @property
    def state(self) -> State:
        """State of the interface."""
        return self.dsm.state(self._routing_id)

    @property
    def routing_id(self) -> int:
        """Bus, device and function."""
        return self._routing_id

    def update_firmware(self) -> bool:
        """Whether it takes other firmware now: not while a guest has it locked against that (PCIe 6.1, 11.3.8).

        If it does, what is locked is in ERROR: it is not what its guest has measured.
        """
        if self.dsm.holds_firmware(self._routing_id):
            return False
        self.dsm.happened(self._routing_id, Event.FIRMWARE)
        return True

    def _through(self, *, secured: bool) -> Callable[[bytes], bytes | None]:
        def answer(payload: bytes) -> bytes | None:
            made = self.responder.handle(payload, secured=secured)
            # An object is answered by one of its kind: what opened no session has no answer in one.
            return made[0] if made is not None and made[1] == secured else None
        return answer

    def _said(self, session: int | None, payload: bytes) -> bytes | None:
        """Answer a message of PCI-SIG's, by the protocol that its first byte names."""
        if payload[:1] == bytes((Protocol.TDISP,)):
            answer = self.dsm.respond(session, payload[1:])
        elif payload[:1] == bytes((Protocol.IDE_KM,)):
            answer = self._port.respond(session, payload[1:])
        else:
            return None
        return None if answer is None else payload[:1] + answer

    def _ended(self, session: int) -> None:
        # First the interfaces: that their stream fails with the session is the same event to them.
        self.dsm.session_ended(session)
        self._port.session_ended(session)

    def reset(self) -> None:
        """Reset it conventionally: everything is forgotten."""
        self.responder.close()
        self.dsm.reset()
        self.tdi.virtio.reset()

    def close(self) -> None:
        """End all sessions, and close the device."""
        self.responder.close()
        if self.stream is not None:
            self.stream.close()
        self.tdi.virtio.close()


class BehindPort:
    """A trusted function below a root port, as far as that has nothing to do with it: configuration, and a reset.

    Args:
        virtio: the function.
        make: makes the device, given its function and memory.

    Attributes:
        trusted: the device.

    """

    def __init__(self, virtio: VirtioPci, make: Callable[[VirtioPci, Dma], TrustedFunction]) -> None:
        self._lent = LateDma()
        self._virtio = virtio
        self.trusted = make(virtio, self._lent)

    @property
    def device(self) -> Device:
        """The virtio device."""
        return self._virtio.device

    @property
    def function(self) -> PciFunction:
        """The function."""
        return self._virtio.function

    @property
    def dma(self) -> Dma:
        """Guest memory, lent by whoever has the function on a bus."""
        return self._lent

    @dma.setter
    def dma(self, memory: Dma) -> None:
        self._lend(memory)

    def _lend(self, memory: Dma) -> None:
        self._lent.target = memory

    def read_config(self, offset: int, size: int) -> bytes:
        """Serve a read of configuration space."""
        return self.trusted.tdi.read_config(offset, size)

    def write_config(self, offset: int, data: bytes) -> None:
        """Take a write to configuration space."""
        self.trusted.tdi.write_config(offset, data)

    def reset(self) -> None:
        """Take the bus's reset, a conventional one."""
        self.trusted.reset()


class BehindRootPort(BehindPort):
    """A trusted function before a guest whose memory is not encrypted; what a bus of `PciOverVirtio` carries.

    The root port, which the guest trusts, sets the T bit of requests to what the guest has accepted; a host that goes
    past it has none. Where no memory is private the device reaches the same by requests of either kind.

    Args and attributes are those of `BehindPort`.
    """

    def read_bar(self, bar: int, offset: int, size: int) -> bytes:
        """Serve a read of a BAR by the guest."""
        tdi = self.trusted.tdi
        return tdi.access_read(bar, offset, size, trusted=tdi.admits(bar, offset, trusted=True))

    def write_bar(self, bar: int, offset: int, data: bytes) -> None:
        """Take a write to a BAR by the guest."""
        tdi = self.trusted.tdi
        tdi.access_write(bar, offset, data, trusted=tdi.admits(bar, offset, trusted=True))

    def attach(self, dma: Dma, raise_vector: Callable[[int], None], raise_pin: Callable[[bool], None],
               later: Callable[[float, Callable[[], None]], None]) -> None:
        """Take guest memory, and what raises interrupts and calls back after a delay."""
        self.dma = dma
        function = self._virtio.function
        function.raise_vector, function.wire = raise_vector, raise_pin
        self._virtio.device.schedule = later

    @property
    def bar_sizes(self) -> list[int]:
        """Bytes of each BAR, 0 where there is none."""
        return self._virtio.bar_sizes

    @property
    def vectors(self) -> int:
        """MSI-X vectors."""
        return self._virtio.vectors

    def pollable(self) -> dict[int, Callable[[], None]]:
        """What the device waits for."""
        return self._virtio.pollable()

    def close(self) -> None:
        """End all sessions, and close the device."""
        self.trusted.close()

    def log(self, line: str) -> None:
        """Add a line to the device's transcript."""
        self._virtio.log(line)
