"""A virtual function as a hypervisor hands it to a guest.

The guest sees a function of its own: base addresses are emulated, as a virtual function has none in its configuration
space; all else is passed through. To put another member in its place is the hypervisor's to do as well: the state of
the virtio device goes by device parts, that of PCI by hand (virtio 1.4, 2.14.2).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from chamber.platform.pci import PciFunction
from chamber.wire.pci import BAR_COUNT, HEADER, Command

if TYPE_CHECKING:
    from collections.abc import Callable

    from chamber.device.virtio_pci import VirtioPci
    from chamber.platform.pci import Bar

__all__ = ("AssignedFunction",)

_COMMAND: Final = range(HEADER["command"].offset, HEADER["command"].offset + 2)
_BARS: Final = range(HEADER["bar0"].offset, HEADER["bar0"].offset + 4 * BAR_COUNT)


class _Shown(PciFunction):
    """What of the function is emulated: base addresses, and whether memory answers."""

    def __init__(self, forward: Callable[[Callable[[int, int], None]], None], bars: list[Bar | None]) -> None:
        self._forward = forward
        super().__init__(vendor=0, device=0, class_code=0)
        for index, bar in enumerate(bars):
            if bar is not None:
                self.add_bar(index, bar)

    def __setattr__(self, name: str, value: object) -> None:
        """Have the member send where whoever has this on a bus wants it to."""
        super().__setattr__(name, value)
        if name == "send" and callable(value):
            self._forward(value)


class AssignedFunction:
    """What is put on the guest's bus (implements `chamber.platform.pci_bus.Occupant`).

    Args:
        member: the virtual function behind it.

    Attributes:
        member: as given, or its successor.
        function: what of it is emulated.

    """

    def __init__(self, member: VirtioPci) -> None:
        self.member = member
        self.function: PciFunction = _Shown(self._send_to, member.function.bars)

    def _send_to(self, send: Callable[[int, int], None]) -> None:
        self.member.function.send = send

    def read_config(self, offset: int, size: int) -> bytes:
        """Serve a read of configuration space."""
        data = bytearray(self.member.read_config(offset, size))
        shown = self.function.config
        for place in range(len(data)):
            if offset + place in _BARS or offset + place in _COMMAND:
                data[place] = shown[offset + place]
        return bytes(data)

    def write_config(self, offset: int, data: bytes) -> None:
        """Take a write to configuration space."""
        touched = range(offset, offset + len(data))
        if any(at in _BARS or at in _COMMAND for at in (touched.start, touched.stop - 1)):
            self.function.write_config(offset, data)
        if touched.start not in _BARS:
            self.member.write_config(offset, data)

    def read_bar(self, bar: int, offset: int, size: int) -> bytes:
        """Serve a read of a BAR."""
        return self.member.read_bar(bar, offset, size) if self._answers else b"\xff" * size

    def write_bar(self, bar: int, offset: int, data: bytes) -> None:
        """Take a write to a BAR."""
        if self._answers:
            self.member.write_bar(bar, offset, data)

    @property
    def _answers(self) -> bool:
        return bool(self.function.command & Command.MEMORY)

    def move_to(self, member: VirtioPci) -> None:
        """Put another member behind it, with what the guest has made of PCI; device parts are the owner's affair."""
        old, self.member = self.member, member
        member.dma = old.dma
        member.device.schedule = old.device.schedule
        member.function.send, member.function.wire = old.function.send, old.function.wire
        table = old.function.msix
        member.restore_pci(bytes(old.function.config), b"" if table is None else table.read(0, table.size))
