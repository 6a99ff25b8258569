"""Virtual functions of a PCI function: the capability of their owner, and what they have of it (PCIe 6.0, 9)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from chamber.platform.pci import PciFunction, Window
from chamber.wire.pci import BAR_COUNT, SRIOV, Command, ExtendedId, SriovControl

if TYPE_CHECKING:
    from collections.abc import Callable

    from chamber.platform.pci import Bar

__all__ = ("Sriov", "VirtualFunction")

_PAGES_4K: Final = 1
_HEADER: Final = 4
_LOW_BITS: Final = 0xF


class Sriov:
    """The capability of an owner.

    Args:
        owner: the physical function, which gets the capability.
        total: virtual functions that there can be.
        device: their device id.
        offset: routing id of the first one, from the owner's on.
        stride: from one to the next.

    Attributes:
        changed: called when functions have come or gone.

    """

    def __init__(self, owner: PciFunction, *, total: int, device: int, offset: int = 1, stride: int = 1) -> None:
        self.changed: Callable[[], None] = lambda: None
        self.total = total
        self.offset = offset
        self.stride = stride
        self._owner = owner
        self._bars: dict[int, Bar] = {}
        body = SRIOV.pack(initial_vfs=total, total_vfs=total, first_vf_offset=offset, vf_stride=stride,
                          vf_device_id=device, supported_page_sizes=_PAGES_4K, system_page_size=_PAGES_4K)
        mask = SRIOV.pack(control=SriovControl.VF_ENABLE | SriovControl.MEMORY | SriovControl.ARI, num_vfs=0xFFFF,
                          system_page_size=_PAGES_4K)
        self.at = owner.add_extended(ExtendedId.SRIOV, 1, bytes(body[_HEADER:]), bytes(mask[_HEADER:]))
        self._before = self._shown()
        field = SRIOV["control"]
        owner.add_window(Window(self.at + field.offset, self.at + field.offset + field.size,
                                written=lambda _offset, _data: self.look()))

    def _get(self, name: str) -> int:
        return SRIOV.get(self._owner.config, name, self.at)

    def _shown(self) -> tuple[int, bool]:
        return self.count, self.memory

    def look(self) -> None:
        """See whether functions have come or gone: the control register was written, or the owner reset."""
        before, self._before = self._before, self._shown()
        if before != self._before:
            self.changed()

    @property
    def count(self) -> int:
        """Virtual functions that there are; none where there are to be more than there can be (9.3.3.7)."""
        wanted = self._get("num_vfs")
        return wanted if self._get("control") & SriovControl.VF_ENABLE and wanted <= self.total else 0

    @property
    def memory(self) -> bool:
        """Whether they answer for their memory."""
        return bool(self._get("control") & SriovControl.MEMORY)

    def add_bar(self, index: int, bar: Bar) -> None:
        """All virtual functions have such a BAR, one behind the other's (9.2.1.1.1).

        Raises:
            ValueError: they have another one there.

        """
        known = self._bars.setdefault(index, bar)
        if (known.size, known.wide) != (bar.size, bar.wide):
            raise ValueError(f"virtual functions differ in BAR {index}")
        mask = -bar.size & (1 << 64) - 1
        config, masked = self._owner.config, self._owner.mask
        SRIOV.put(config, f"vf_bar{index}", bar.flags | self._get(f"vf_bar{index}") & ~_LOW_BITS, self.at)
        SRIOV.put(masked, f"vf_bar{index}", mask & ~_LOW_BITS & 0xFFFFFFFF, self.at)
        if bar.wide:
            SRIOV.put(masked, f"vf_bar{index + 1}", mask >> 32, self.at)

    def bar_base(self, index: int) -> int:
        """Where the first function's BAR is."""
        bar = self._bars.get(index)
        if bar is None or index >= BAR_COUNT:
            return 0
        low = self._get(f"vf_bar{index}") & ~_LOW_BITS
        return low | (self._get(f"vf_bar{index + 1}") << 32 if bar.wide else 0)


class VirtualFunction(PciFunction):
    """One of them: its BARs are where the owner's capability says, and answer when that does.

    Its configuration space shows its own ids, as whoever presents it to a guest has them shown (9.3.4.1).

    Args:
        sriov: its owner's capability.
        number: which one, from 1 on.

    """

    def __init__(self, sriov: Sriov, number: int, *, vendor: int, device: int, class_code: int,
                 subsystem_vendor: int = 0, subsystem: int = 0) -> None:
        super().__init__(vendor=vendor, device=device, class_code=class_code, subsystem_vendor=subsystem_vendor,
                         subsystem=subsystem)
        self.number = number
        self._sriov = sriov

    def add_bar(self, index: int, bar: Bar) -> None:
        """Give it a base address, the same as all others have."""
        self._sriov.add_bar(index, bar)
        self.bars[index] = bar

    def bar_base(self, index: int) -> int:
        """Where a BAR of it is."""
        bar = self.bars[index]
        return 0 if bar is None else self._sriov.bar_base(index) + (self.number - 1) * bar.size

    @property
    def command(self) -> Command:
        """The command register; whether memory answers is for the owner to say."""
        own = super().command & ~Command.MEMORY
        return own | (Command.MEMORY if self._sriov.memory and self.number <= self._sriov.count else Command(0))
