"""A virtual function that a hypervisor shows to a guest as a transitional device, for drivers of the legacy interface.

Its I/O ports are emulated: whoever plays the hypervisor turns each access into a command to the owner device. A
doorbell goes to the member itself (virtio 1.4, 2.12.1.2; Linux's ``vfio-virtio`` does the same).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Protocol

from chamber.device.assigned import AssignedFunction
from chamber.platform.pci import Bar
from chamber.wire.admin import NotifyFlags
from chamber.wire.pci import HEADER, Command
from chamber.wire.virtio import DeviceType
from chamber.wire.virtio_pci import LEGACY, TRANSITIONAL_IDS

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from chamber.device.virtio_pci import VirtioPci
    from chamber.platform.dma import Dma

__all__ = ("LegacyAccess", "TransitionalFunction")

_PORTS_BAR: Final = 0
_PORTS: Final = 128
"""I/O ports: more than a device of any type has registers."""
_IDS: Final = {DeviceType.NET: TRANSITIONAL_IDS[0], DeviceType.BLOCK: TRANSITIONAL_IDS[1]}
_NOTIFY: Final = LEGACY["queue_notify"].offset


class LegacyAccess(Protocol):
    """The owner's driver: reaches a member's legacy registers."""

    def read_legacy(self, member: int, offset: int, size: int, *, device: bool = False) -> bytes: ...  # noqa: D102
    def write_legacy(self, member: int, offset: int, data: bytes, *, device: bool = False) -> None: ...  # noqa: D102
    def legacy_doorbells(self, member: int) -> Sequence[tuple[NotifyFlags, int, int]]: ...  # noqa: D102


class TransitionalFunction(AssignedFunction):
    """What is put on the guest's bus, or before a monitor (implements `chamber.link.vfio_user.ServableFunction`).

    Args:
        member: the virtual function behind it.
        number: its identifier in its group.
        owner: reaches its legacy registers.

    Raises:
        ValueError: the device is of a type without a transitional one here, or there is no doorbell in the member.

    """

    def __init__(self, member: VirtioPci, number: int, owner: LegacyAccess) -> None:
        super().__init__(member)
        kind = member.device.type
        doorbell = next(((bar, offset) for flags, bar, offset in owner.legacy_doorbells(number)
                         if flags is NotifyFlags.MEMBER), None)
        if kind not in _IDS or doorbell is None:
            raise ValueError(f"{kind.short} has no legacy interface")
        self._doorbell = doorbell
        self._number = number
        self._owner = owner
        self._said = {HEADER["device"].offset: _IDS[kind].to_bytes(2, "little"), HEADER["revision"].offset: b"\0",
                      HEADER["subsystem"].offset: kind.to_bytes(2, "little")}
        self.function.add_bar(_PORTS_BAR, Bar(_PORTS, (), ports=True))

    def read_config(self, offset: int, size: int) -> bytes:
        """Serve a read of configuration space, with the ids of a transitional device (4.1.2.1, 4.1.2.3)."""
        data = bytearray(super().read_config(offset, size))
        for start, value in self._said.items():
            for at, byte in enumerate(value, start):
                if offset <= at < offset + size:
                    data[at - offset] = byte
        return bytes(data)

    def read_bar(self, bar: int, offset: int, size: int) -> bytes:
        """Serve a read of a BAR, or of ports."""
        if bar != _PORTS_BAR:
            return super().read_bar(bar, offset, size)
        if not self.function.command & Command.IO:
            return b"\xff" * size
        common = self._common_size
        if offset < common:
            return self._owner.read_legacy(self._number, offset, min(size, common - offset)).ljust(size, b"\xff")
        room = min(size, len(self.member.device.config) - (offset - common))
        return (self._owner.read_legacy(self._number, offset - common, room, device=True) if room > 0 else b"").ljust(
            size, b"\xff")

    def write_bar(self, bar: int, offset: int, data: bytes) -> None:
        """Take a write to a BAR, or to ports."""
        if bar != _PORTS_BAR:
            super().write_bar(bar, offset, data)
        elif self.function.command & Command.IO:
            common = self._common_size
            if offset == _NOTIFY:
                at, place = self._doorbell
                self.member.write_bar(at, place, data)
            elif offset + len(data) <= common:
                self._owner.write_legacy(self._number, offset, data)
            elif 0 <= offset - common <= len(self.member.device.config) - len(data):
                self._owner.write_legacy(self._number, offset - common, data, device=True)

    @property
    def _common_size(self) -> int:
        """Bytes before the device's own registers: those of MSI-X are there while it is enabled (4.1.4.10)."""
        return LEGACY.size if self.member.function.has_msix else LEGACY["config_msix_vector"].offset

    # What puts it before a monitor.

    @property
    def bar_sizes(self) -> list[int]:
        """Bytes of each BAR, 0 where there is none."""
        return [0 if bar is None else bar.size for bar in self.function.bars]

    @property
    def vectors(self) -> int:
        """MSI-X vectors."""
        return self.member.vectors

    def attach(self, dma: Dma, raise_vector: Callable[[int], None], raise_pin: Callable[[bool], None],
               later: Callable[[float, Callable[[], None]], None]) -> None:
        """Take guest memory, and what raises interrupts and calls back after a delay."""
        self.member.attach(dma, raise_vector, raise_pin, later)

    def reset(self) -> None:
        """Take the machine's reset."""
        self.function.reset()
        self.member.reset()

    def close(self) -> None:
        """Members are their group's to close."""

    def pollable(self) -> dict[int, Callable[[], None]]:
        """What the device waits for."""
        return self.member.pollable()

    def log(self, line: str) -> None:
        """Add a line to the device's transcript."""
        self.member.log(line)
