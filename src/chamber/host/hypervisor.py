"""The hypervisor between a guest and a device: every path of the one to the other goes through it.

It answers for configuration space, carries what goes through the mailbox, maps the device's memory, and has the link in
its hands. What it can't do is the platform's to enforce, not its own to refrain from: set the T bit, read the guest's
private memory, open what is sealed. `Doors` of the device that are open it may go through whenever it wants
(`chamber.host.ways`).
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import TYPE_CHECKING, Final, Protocol

from chamber.device.virtio_pci import NOTIFY_PAGE
from chamber.host.hooks import HostHooks
from chamber.platform.doe import DoeMailbox
from chamber.platform.ide import PREFIX
from chamber.platform.memory import WithHostPages
from chamber.platform.pci import PciFunction
from chamber.platform.pci_bus import PciBus
from chamber.wire.doe import MAILBOX, PCI_SIG, DataObject, DoeType
from chamber.wire.errors import WireError
from chamber.wire.pci import HEADER
from chamber.wire.tlp import MemoryRead, MemoryWrite, decode_packet
from chamber.wire.virtio_pci import COMMON

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager

    from chamber.device.base import Device
    from chamber.device.tdi import Tdi
    from chamber.device.trusted_function import TrustedFunction
    from chamber.device.virtio_pci import VirtioPci
    from chamber.platform.dma import Dma
    from chamber.platform.interrupts import InterruptController
    from chamber.platform.root_port import RootPort
    from chamber.wire.spdm_messages import Measurement
    from chamber.wire.tdisp import State

__all__ = ("HOST_MEMORY", "PREFIX_SIZE", "Hypervisor", "Session", "request_of")

HOST_MEMORY: Final = 512 << 10
"""Bytes of memory of the host's own that devices reach."""
_SLOT: Final = 0
PREFIX_SIZE: Final = PREFIX.size
"""Bytes of the prefix before a packet's header."""
_PAGE: Final = 4096
_REGISTERS: Final = 4 * _PAGE


class Session(Protocol):
    """A session that the host has opened with the device for itself."""

    def say(self, payload: bytes) -> bytes:
        """Send a message of PCI-SIG's in it; return the answer's payload, empty for none."""
        ...


def request_of(packet: bytes) -> MemoryRead | MemoryWrite | None:
    """Return a memory request as far as its header shows it to anybody, its data aside; None of anything else."""
    header = packet[PREFIX_SIZE:PREFIX_SIZE + (16 if packet[PREFIX_SIZE:PREFIX_SIZE + 1] in {b"\x20", b"\x60"} else 12)]
    words = int.from_bytes(header[:4], "big") & 0x3FF if header[:1] in {b"\x40", b"\x60"} else 0
    try:
        request = decode_packet(header, bytes(4 * words))
    except WireError:
        return None
    return request if isinstance(request, MemoryRead | MemoryWrite) else None


class Hypervisor:
    """One host with one device for its guest (implements `chamber.platform.root_port.Path`).

    Args:
        virtio: the function.
        interrupts: the guest's, which messages of the device reach.
        shared: the guest's memory as devices reach it that nobody trusts.
        hooks: what it does; None for an honest one.
        open_session: opens a session with a device for the host itself, given what carries messages to it; None where
            that can't be done.

    Attributes:
        virtio: as given.
        memory: memory of its own.
        device: the device, if it can prove itself; set by `take`.
        front: who takes accesses to the function.
        notifications: how often the driver has notified a queue.
        firmware: what is on the device, as it is measured.
        build: makes a function of another device that is as good as the one that the guest expects.

    """

    def __init__(self, virtio: VirtioPci, interrupts: InterruptController, shared: Dma, hooks: HostHooks | None, *,
                 open_session: Callable[[Callable[[bytes, bool], bytes]], Session | None] | None = None) -> None:
        self.virtio = virtio
        self.memory = bytearray(HOST_MEMORY)
        self.device: TrustedFunction | None = None
        self.front: Tdi | VirtioPci = virtio
        self.notifications = 0
        self.firmware: tuple[Measurement, ...] = ()
        self.build: Callable[[Device], tuple[VirtioPci, TrustedFunction | None]] | None = None
        self._hooks = hooks = HostHooks() if hooks is None else hooks
        self._interrupts = interrupts
        self._said: dict[bytes, bytes] = {}
        self._open_session = open_session
        self._bus = PciBus(interrupts)
        self._port: RootPort | None = None
        self._looked = self._set_up = False
        self._state: State | None = None
        self.shared = WithHostPages(_Watched(shared, hooks), self.memory)
        virtio.dma = self.shared
        self._bus.plug(_SLOT, virtio)
        # The registers of a mailbox are trapped like the rest: what the guest meets is the host's own, and honest or
        # not, it carries objects on.
        self._relay = PciFunction(vendor=0, device=0, class_code=0)
        self._relay_at = DoeMailbox({(PCI_SIG, int(kind)): self._relaying(kind) for kind in (
            DoeType.SPDM, DoeType.SECURED_SPDM)}).add_to(self._relay)
        hooks.host = self

    def take(self, device: TrustedFunction, port: RootPort) -> None:
        """Have the function be one that proves itself, below a root port."""
        self._port = port
        self._state = device.state
        self._plug(self.virtio, device)

    def _plug(self, virtio: VirtioPci, device: TrustedFunction | None) -> None:
        self.virtio, self.device, self.front = virtio, device, virtio if device is None else device.tdi
        send = virtio.function.send
        self._bus.plug(_SLOT, self.front)
        if device is not None:
            virtio.function.send = send  # messages of a device with a stream go by it

    def flash(self, firmware: tuple[Measurement, ...]) -> bool:
        """Have other firmware on the device; return whether it took it."""
        if self.device is not None and not self.device.update_firmware():
            return False
        self.firmware = firmware
        return True

    def put_in_place(self, virtio: VirtioPci, device: TrustedFunction | None) -> None:
        """Have another function in the slot; the guest's end of everything stays as it is."""
        for at in range(HEADER["bar0"].offset, HEADER["bar0"].offset + 24, 4):
            virtio.function.write_config(at, bytes(self.virtio.function.config[at:at + 4]))
        virtio.function.write_config(HEADER["command"].offset, bytes(self.virtio.function.config[4:6]))
        self._plug(virtio, device)

    # Configuration space.

    def read_config(self, slot: int, offset: int, size: int) -> bytes:
        """Serve a read of the guest's."""
        if not self._looked:
            self._looked = True
            self._hooks.looked()
        mailbox = self._in_mailbox(offset)
        if mailbox is not None:
            data = self._relay.read_config(mailbox, size)
        else:
            data = self._bus.read_config(slot, offset, size)
        return self._hooks.space_read(offset, data)

    def write_config(self, slot: int, offset: int, data: bytes) -> None:
        """Take a write of the guest's."""
        if not self._hooks.space_written(offset, data):
            return
        mailbox = self._in_mailbox(offset)
        if mailbox is not None:
            self._relay.write_config(mailbox, data)
        else:
            self._bus.write_config(slot, offset, data)
        self._look()

    def _in_mailbox(self, offset: int) -> int | None:
        """Where in the host's own mailbox an access goes; None if it goes elsewhere."""
        if self.device is None:
            return None
        at = offset - self.device.mailbox_at
        return self._relay_at + at if MAILBOX["capabilities"].offset <= at < MAILBOX.size else None

    def _look(self) -> None:
        """Tell of a change of the interface's state, which whoever has it in hand can see by what it does."""
        if self.device is not None and self.device.state is not self._state:
            self._state = self.device.state
            self._hooks.state_changed(self._state)

    # The mailbox.

    def _relaying(self, kind: DoeType) -> Callable[[bytes], bytes | None]:
        secured = kind is DoeType.SECURED_SPDM

        def relay(payload: bytes) -> bytes | None:
            asked = self._hooks.asked(payload, secured=secured)
            answer = None if asked is None else self.ask(asked, secured=secured)
            if answer is not None and not secured:
                self._said[payload] = answer
            return self._hooks.answered(answer, secured=secured)
        return relay

    def ask(self, payload: bytes, *, secured: bool) -> bytes | None:
        """Ask the device something; return the answer, None for none."""
        if self.device is None:
            return None
        kind = DoeType.SECURED_SPDM if secured else DoeType.SPDM
        return self.device.mailbox.answer(DataObject(PCI_SIG, kind, payload))

    def open_session(self) -> Session | None:
        """Open a session with the device, as anybody can; None if it does not let itself.

        A device that was asked for its version once more would end all sessions. What the guest has negotiated is
        negotiated, and the host has read it.
        """
        if self._open_session is None or self.device is None:
            return None

        def exchange(payload: bytes, secured: bool) -> bytes:
            known = None if secured else self._said.get(payload)
            return (self.ask(payload, secured=secured) or b"") if known is None else known
        return self._open_session(exchange)

    def interrupt(self, vector: int) -> None:
        """Interrupt the guest."""
        self._interrupts.assert_vector(vector)

    # Memory of the device, without the T bit.

    def mapped(self, bar: int, address: int) -> int:
        """Where a BAR is mapped."""
        return self._hooks.mapped(bar, address)

    def read(self, address: int, size: int) -> bytes:
        """Serve a read of the guest's."""
        data = self._bus.read(address, size)
        return self._hooks.memory_read(address, data)

    def write(self, address: int, data: bytes) -> None:
        """Take a write of the guest's."""
        self._before(address)
        changed = self._hooks.memory_written(address, data)
        if changed is not None:
            self._bus.write(address, changed)
        self._after(address)

    def register(self, address: int | None) -> int:
        """Return where an address is among the device's registers, which no encryption hides; -1 if it is elsewhere."""
        at = -1 if address is None else address - self.virtio.function.bar_base(self.virtio.register_bar)
        return at if at < _REGISTERS else -1

    def _before(self, address: int | None) -> None:
        """Notice a notification that is to come."""
        if self.register(address) // _PAGE == NOTIFY_PAGE:
            self.notifications += 1
            self._hooks.working(self.notifications)

    def _after(self, address: int | None) -> None:
        """Notice what the driver has done to the device."""
        at = self.register(address)
        if at // _PAGE == NOTIFY_PAGE:
            self._hooks.worked()
        elif at == COMMON["queue_enable"].offset:
            self._set_up = True
        elif at == COMMON["device_status"].offset and self._set_up:
            self._set_up = False
            self._hooks.started()

    # The link.

    def down(self, packet: bytes) -> list[bytes]:
        """Carry a packet to the device; return what comes back."""
        request = request_of(packet)
        self._before(None if request is None else request.address)
        device = self.device
        if device is None or device.link is None:
            return []
        answers = [device.link.deliver(each) for each in self._carried(packet, down=True)]
        self._look()
        if isinstance(request, MemoryWrite):
            self._after(request.address)
        return [each for answer in answers if answer is not None for each in self._carried(answer, down=False)]

    def up(self, packet: bytes) -> list[bytes]:
        """Carry a packet of the device's to the root port; return what comes back."""
        if self._port is None:
            return []
        answers = [self._port.up(each) for each in self._carried(packet, down=False)]
        return [each for answer in answers if answer is not None for each in self._carried(answer, down=True)]

    def _carried(self, packet: bytes, *, down: bool) -> list[bytes]:
        return self._hooks.carried(packet, down=down)

    def working(self) -> AbstractContextManager[None]:
        """What is around anything that has the device do its work."""
        return nullcontext() if self.device is None or self.device.link is None else self.device.link.working()


class _Watched:
    """Shared memory with a host at it (implements `chamber.platform.dma.Dma`)."""

    def __init__(self, memory: Dma, hooks: HostHooks) -> None:
        self._memory = memory
        self._hooks = hooks

    def read(self, address: int, length: int) -> bytes:
        return self._hooks.dma_read(address, self._memory.read(address, length))

    def write(self, address: int, data: bytes | bytearray | memoryview) -> None:
        self._memory.write(address, self._hooks.dma_written(address, bytes(data)))

    def view(self, address: int, length: int) -> memoryview:
        return self._memory.view(address, length)
