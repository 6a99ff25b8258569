"""A virtio PCI function as a TEE device interface: who may reach what of it, in which state (PCIe 6.1, 11.2).

Decisions that neither TDISP nor virtio makes, and that this device does:

- A lock resets the virtio device. A host may have negotiated features and set up queues before; were they to survive,
  the guest's first trusted access would meet a device that is at work for somebody else.
- While it is locked, the window through configuration space (virtio 1.4, 4.1.4.9) is inert: writes to it are ignored,
  its data reads as zero. It would be a way into the BARs that no T bit guards. Being ignored, a write to it is no
  violation: there is nothing that it could change. So are the commands of the device's owner. A device that has left
  these doors open, as the specifications let it, is to be had as well (`Doors`).
- A virtio reset by the guest (status 0) does not unlock: the access is trusted, and the interface the guest's still.
- Everything in the register BAR is memory of the TEE. So is the interrupts' table, if it was locked; if not, it is not
  reported, and stays the host's.
- Unlocking resets the virtio device and clears its own memory before the state changes.
"""

from __future__ import annotations

import enum
from itertools import pairwise
from typing import TYPE_CHECKING, Final

from chamber.device.tdi_config import VENDOR_ANALYSED, capability_at, violation
from chamber.device.tdisp import Event
from chamber.device.virtio_pci import MSIX_BAR, NOTIFY_PAGE, REGISTER_BAR, SHARED_MEMORY_BAR
from chamber.platform.dma import NoDma
from chamber.wire.pci import HEADER, Command
from chamber.wire.tdi_report import PAGE, InterfaceInfo, InterfaceReport, MmioRange, RangeAttribute
from chamber.wire.tdisp import LockFlag, LockInterface, SetMmioAttribute, State

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from chamber.device.virtio_pci import VirtioPci
    from chamber.platform.dma import Dma
    from chamber.platform.pci import PciFunction

__all__ = ("PLACES", "Doors", "Tdi", "TrustedPath")

_PAGE_NUMBER: Final = (1 << 52) - 1
_PLAIN: Final = RangeAttribute(0)
_REJECTED: Final = NoDma("the interface is locked and does not run")

PLACES: Final = {REGISTER_BAR: 0x8000_0000, MSIX_BAR: 0x8001_0000, SHARED_MEMORY_BAR: 0x8100_0000}
"""Where firmware may place the base addresses of a function that is alone on its bus."""


class Doors(enum.Flag):
    """Ways into a virtio device besides its memory, which a lock may leave open."""

    NONE = 0
    WINDOW = enum.auto()
    """The window in configuration space."""
    OWNER = enum.auto()
    """Administration commands of its owner, and doorbells of legacy drivers."""
    CONTROL = enum.auto()
    """All registers but those for notifications, which are the host's to play (vDPA)."""


class Tdi:
    """A virtio function that a guest can lock; implements `chamber.device.tdisp.Interface`.

    What is called here directly is what a host does: configuration requests, and memory requests without the T bit.
    A guest's own memory requests come over `trusted`.

    Args:
        virtio: the function. Nobody else hands it accesses any more.
        shared: memory that the device reaches by requests without the T bit.
        private: memory that it reaches by requests with it.
        device_info: makes the report's DEVICE_SPECIFIC_INFO.
        open_doors: what the lock does not close.

    Attributes:
        trusted: the guest's way to it.
        state: as the manager has set it.
        happened: told of what a host did to it while it was locked; the manager's `Dsm.happened`.

    """

    def __init__(self, virtio: VirtioPci, *, shared: Dma, private: Dma,
                 device_info: Callable[[VirtioPci], bytes] = lambda _virtio: b"",
                 open_doors: Doors = Doors.NONE) -> None:
        self.virtio = virtio
        self._open = open_doors
        self.trusted = TrustedPath(self)
        self.state = State.CONFIG_UNLOCKED
        self.happened: Callable[[Event], None] = lambda _event: None
        self._shared, self._private = shared, private
        self._device_info = device_info
        self._ranges: dict[int, MmioRange] = {}
        self._non_tee: set[int] = set()
        self._offset = 0
        virtio.dma = shared
        self._was_reset = virtio.function.was_reset
        virtio.function.was_reset = self._function_reset

    @property
    def function(self) -> PciFunction:
        """The function."""
        return self.virtio.function

    @property
    def _locked(self) -> bool:
        return self.state is not State.CONFIG_UNLOCKED

    @property
    def _msix_locked(self) -> bool:
        return MSIX_BAR in self._ranges

    # What a manager says (`chamber.device.tdisp.Interface`).

    def obstacle(self, lock: LockInterface) -> str | None:
        """Return why it can't be locked as it is configured now."""
        function = self.function
        wanted = Command.MEMORY | Command.BUS_MASTER
        if function.command & wanted != wanted:
            return "the function is not enabled"
        if lock.mmio_reporting_offset % PAGE:
            return "the reporting offset is not one of pages"
        spans = sorted((function.bar_base(index), bar.size) for index, bar in enumerate(function.bars)
                       if bar is not None)
        if any(base == 0 or base % PAGE for base, _ in spans):
            return "a BAR is nowhere, or on no page of its own"
        if any(before + size > after for (before, size), (after, _) in pairwise(spans)):
            return "BARs overlap"
        return None

    def lock(self, lock: LockInterface) -> InterfaceReport:
        """Reset the device, and hold its configuration from now on."""
        self._quiesce(State.CONFIG_LOCKED)
        self._offset = lock.mmio_reporting_offset
        self._non_tee.clear()
        self._ranges = {self.virtio.register_bar: self._range(self.virtio.register_bar)}
        msix_control = 0
        if lock.flags & LockFlag.LOCK_MSIX and self.function.msix is not None:
            self._ranges[MSIX_BAR] = self._range(MSIX_BAR, RangeAttribute.MSIX_TABLE | RangeAttribute.MSIX_PBA)
            msix_control = self.function.msix_control
        if self.function.bars[SHARED_MEMORY_BAR] is not None:
            self._ranges[SHARED_MEMORY_BAR] = self._range(SHARED_MEMORY_BAR, RangeAttribute.IS_MEM_ATTR_UPDATABLE)
        info = InterfaceInfo.DMA_WITHOUT_PASID | (
            InterfaceInfo.NO_FW_UPDATE if lock.flags & LockFlag.NO_FW_UPDATE else InterfaceInfo(0))
        return InterfaceReport(info, tuple(self._ranges[bar] for bar in sorted(self._ranges)),
                               self._device_info(self.virtio), msix_control=msix_control)

    def _range(self, bar: int, attributes: RangeAttribute = _PLAIN) -> MmioRange:
        size = self.function.bars[bar]
        assert size is not None
        skip, pages = 0, max(1, size.size // PAGE)
        if bar == self.virtio.register_bar and Doors.CONTROL in self._open:
            skip, pages = NOTIFY_PAGE, 1
        first = (self.function.bar_base(bar) + self._offset) // PAGE + skip & _PAGE_NUMBER
        return MmioRange(first, pages, attributes, bar)

    def run(self) -> None:
        """Reach the guest's private memory from now on."""
        self.state = State.RUN
        self.virtio.dma = self._private

    def fail(self) -> None:
        """Reach nothing, and be reached by nobody."""
        self._quiesce(State.ERROR)

    def unlock(self) -> None:
        """Forget what the guest left, then be anybody's."""
        memory = self.virtio.device.device_memory
        if memory is not None and self._locked:
            memory[1][:] = bytes(len(memory[1]))
        self._quiesce(State.CONFIG_UNLOCKED)
        self._ranges.clear()
        self._non_tee.clear()
        self.virtio.dma = self._shared

    def set_non_tee(self, request: SetMmioAttribute) -> bool:
        """Change a reported range that may be changed, if it is named whole."""
        found = self._ranges.get(request.range_id)
        if (found is None or not found.attributes & RangeAttribute.IS_MEM_ATTR_UPDATABLE
                or (found.first_page, found.pages) != (request.first_page, request.pages)):
            return False
        (self._non_tee.add if request.non_tee else self._non_tee.discard)(request.range_id)
        return True

    def _quiesce(self, state: State) -> None:
        self.state = state
        self.virtio.dma = _REJECTED
        locked = state is not State.CONFIG_UNLOCKED
        self.virtio.held = locked and Doors.OWNER not in self._open
        self.virtio.window_open = not locked or Doors.WINDOW in self._open
        self.virtio.reset_device()

    # What a host does.

    def place(self, bases: Mapping[int, int] = PLACES) -> None:
        """Place its base addresses and switch it on, as firmware does: one that is not can't be locked."""
        for bar, base in bases.items():
            self.write_config(HEADER[f"bar{bar}"].offset, base.to_bytes(4, "little"))
        self.write_config(HEADER["command"].offset, (Command.MEMORY | Command.BUS_MASTER).to_bytes(2, "little"))

    def read_config(self, offset: int, size: int) -> bytes:
        """Serve a read of configuration space."""
        return self.virtio.read_config(offset, size)

    def write_config(self, offset: int, data: bytes) -> None:
        """Take a write to configuration space, and notice what it does to a locked interface."""
        if self.state in {State.CONFIG_LOCKED, State.RUN}:
            reason = violation(self.function, offset, data, msix_locked=self._msix_locked)
            if reason is not None:
                self.virtio.log(f"while locked: {reason}")
                self.happened(Event.CONFIGURATION)
        owner = capability_at(self.function, offset)
        # An access is a double word at most, as capabilities are aligned to: it is in one of them, or in none.
        if self.virtio.window_open or owner is None or owner[0] not in VENDOR_ANALYSED:
            self.virtio.write_config(offset, data)

    def read_bar(self, bar: int, offset: int, size: int) -> bytes:
        """Serve a read without the T bit."""
        return self.access_read(bar, offset, size, trusted=False)

    def write_bar(self, bar: int, offset: int, data: bytes) -> None:
        """Take a write without the T bit."""
        self.access_write(bar, offset, data, trusted=False)

    # Memory requests.

    def admits(self, bar: int, offset: int, *, trusted: bool) -> bool:
        """Whether a request may go on: what is the TEE's is reached with the T bit and in RUN, all else without it."""
        if not self._locked:
            return not trusted
        is_tee = bar in self._ranges and bar not in self._non_tee
        if bar == self.virtio.register_bar and Doors.CONTROL in self._open:
            is_tee = offset // PAGE == NOTIFY_PAGE
        if not is_tee:
            return not trusted
        return trusted and self.state is State.RUN

    def access_read(self, bar: int, offset: int, size: int, *, trusted: bool) -> bytes:
        """Serve a read; one that is rejected has all bits set, as an unsupported request has at its requester."""
        return self.virtio.read_bar(bar, offset, size) if self.admits(bar, offset, trusted=trusted) else b"\xff" * size

    def access_write(self, bar: int, offset: int, data: bytes, *, trusted: bool) -> None:
        """Take a write; one that is rejected is dropped."""
        if self.admits(bar, offset, trusted=trusted):
            self.virtio.write_bar(bar, offset, data)

    def _function_reset(self) -> None:
        self._was_reset()
        if self._locked:
            self.happened(Event.FUNCTION_RESET)


class TrustedPath:
    """Memory requests with the T bit: what the guest itself does to its device."""

    def __init__(self, tdi: Tdi) -> None:
        self._tdi = tdi

    def read_bar(self, bar: int, offset: int, size: int) -> bytes:
        """Read a BAR."""
        return self._tdi.access_read(bar, offset, size, trusted=True)

    def write_bar(self, bar: int, offset: int, data: bytes) -> None:
        """Write it."""
        self._tdi.access_write(bar, offset, data, trusted=True)
