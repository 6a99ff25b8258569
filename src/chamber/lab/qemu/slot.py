"""A slot of a machine's PCI bus: to QEMU always the same function, to the guest whichever is in it, or none."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from chamber.device.pmem import PmemDevice
from chamber.device.virtio_pci import SHARED_MEMORY_BAR, VirtioPci

if TYPE_CHECKING:
    from collections.abc import Callable

    from chamber.device.base import Device
    from chamber.platform.dma import Dma

__all__ = ("PciSlot", "Pluggable")


class Pluggable(Protocol):
    """What can be in a slot: a function, and whoever stands before it."""

    def read_config(self, offset: int, size: int) -> bytes: ...  # noqa: D102 - as VirtioPci's, like those below
    def write_config(self, offset: int, data: bytes) -> None: ...  # noqa: D102
    def read_bar(self, bar: int, offset: int, size: int) -> bytes: ...  # noqa: D102
    def write_bar(self, bar: int, offset: int, data: bytes) -> None: ...  # noqa: D102
    def attach(self, dma: Dma, raise_vector: Callable[[int], None], raise_pin: Callable[[bool], None],  # noqa: D102
               later: Callable[[float, Callable[[], None]], None]) -> None: ...
    def reset(self) -> None: ...  # noqa: D102
    def log(self, line: str) -> None: ...  # noqa: D102


class PciSlot:
    """Implements `chamber.link.vfio_user.ServableFunction`.

    QEMU looks at a function once, when the machine is made, and takes its BARs and vectors for what they are;
    unplugging one ends QEMU (11.1.3, an assertion). So what is plugged and unplugged is what stands behind: after the
    machine's own reset nobody is there, until `plug` puts a function in, which the guest finds when it looks at the
    bus anew.

    Args:
        honest: a device of the type that the slot is for; it is closed with the slot.
        wrap: puts something between every further device and guest memory, if given.
        left: called with guest memory when a further device is taken out, if given.

    """

    def __init__(self, honest: Device, wrap: Callable[[VirtioPci, Dma], Dma] | None = None,
                 left: Callable[[Dma], None] = lambda _dma: None) -> None:
        self._honest = VirtioPci(honest)
        self._wrap = wrap
        self._left = left
        self._inside: Pluggable | None = self._honest
        self._attached: tuple[Dma, Callable[[int], None], Callable[[bool], None],
                              Callable[[float, Callable[[], None]], None]] | None = None

    @property
    def bar_sizes(self) -> list[int]:
        """Bytes of each BAR, whoever is in."""
        return self._honest.bar_sizes

    def mappable(self, bar: int) -> tuple[int, int] | None:
        """The file of a BAR's memory, whoever is in, and how long it is."""
        return self._honest.mappable(bar)

    @property
    def vectors(self) -> int:
        """MSI-X vectors, whoever is in."""
        return self._honest.vectors

    def plug(self, device: Device) -> VirtioPci:
        """Put a device in, in place of whoever is; its own memory is the slot's, which QEMU has mapped for good."""
        memory = self._honest.device.device_memory_file
        if memory is not None and isinstance(device, PmemDevice):
            device.move_to(memory)
        function = VirtioPci(device)
        self.put(function)
        return function

    def put(self, function: Pluggable) -> None:
        """Put a function in, in place of whoever is; its BARs and vectors are those of the slot's own device."""
        self.unplug()
        if self._attached is not None:
            dma, raise_vector, raise_pin, later = self._attached
            if self._wrap is not None and isinstance(function, VirtioPci):
                dma = self._wrap(function, dma)
            function.attach(dma, raise_vector, raise_pin, later)
        self._inside = function

    def unplug(self) -> None:
        """Have nobody there."""
        inside, self._inside = self._inside, None
        if inside is not None:
            inside.reset()
            if inside is not self._honest and self._attached is not None:
                self._left(self._attached[0])

    def read_config(self, offset: int, size: int) -> bytes:
        """Serve a read of configuration space; where nobody is, all bits are one."""
        return b"\xff" * size if self._inside is None else self._inside.read_config(offset, size)

    def write_config(self, offset: int, data: bytes) -> None:
        """Take a write to configuration space."""
        if self._inside is not None:
            self._inside.write_config(offset, data)
            if isinstance(self._inside, VirtioPci) and isinstance(self._inside.device, PmemDevice):
                self._inside.device.show_at(self._inside.function.bar_base(SHARED_MEMORY_BAR))

    def read_bar(self, bar: int, offset: int, size: int) -> bytes:
        """Serve a read of a BAR."""
        return b"\xff" * size if self._inside is None else self._inside.read_bar(bar, offset, size)

    def write_bar(self, bar: int, offset: int, data: bytes) -> None:
        """Take a write to a BAR."""
        if self._inside is not None:
            self._inside.write_bar(bar, offset, data)

    def attach(self, dma: Dma, raise_vector: Callable[[int], None], raise_pin: Callable[[bool], None],
               later: Callable[[float, Callable[[], None]], None]) -> None:
        """Take guest memory, and what raises interrupts."""
        self._attached = dma, raise_vector, raise_pin, later
        if self._inside is not None:
            self._inside.attach(dma, raise_vector, raise_pin, later)

    def reset(self) -> None:
        """Take the machine's reset: whoever was in is gone."""
        self.unplug()

    def close(self) -> None:
        """Close the slot's own device."""
        self._honest.close()

    def pollable(self) -> dict[int, Callable[[], None]]:
        """Devices of a slot wait for nothing."""
        return {}

    def log(self, line: str) -> None:
        """Add a line to the transcript of whoever is in."""
        if self._inside is not None:
            self._inside.log(line)
