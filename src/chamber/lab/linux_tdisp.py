"""A PCI function as a program in its Linux guest reaches it: configuration space by sysfs, and which driver has it.

Whoever runs this is root in the guest. What it reads comes from the guest's host, as all of configuration space does.
"""

from __future__ import annotations

import contextlib
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Final

from chamber.guest.doe import find_mailbox
from chamber.lab.observation import TargetError
from chamber.wire.pci import BAR_COUNT, HEADER, Command

if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self

__all__ = ("SysfsFunction",)

_WORD: Final = 4
_ADDRESS: Final = re.compile(r"[0-9a-f]{4}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]")
_MEMORY: Final = 0x200
"""Flag of a resource that is memory (IORESOURCE_MEM)."""
_NOBODY: Final = "chamber-nobody"


class SysfsFunction:
    """One function.

    Args:
        address: domain, bus, device and function, as sysfs names it.
        sysfs: where sysfs is.

    Raises:
        TargetError: there is no such function, or its configuration space is not within reach.

    """

    def __init__(self, address: str, sysfs: Path = Path("/sys")) -> None:
        if not _ADDRESS.fullmatch(address):
            raise TargetError(f"{address!r} is no PCI function, such as 0000:00:01.0")
        self.address = address
        self._bus = sysfs / "bus" / "pci"
        self._folder = self._bus / "devices" / address
        try:
            self._config = os.open(self._folder / "config", os.O_RDWR)
        except OSError as error:
            raise TargetError(f"{address}: {error.strerror}") from None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        os.close(self._config)

    @property
    def requester_id(self) -> int:
        """Bus, device and function, as TDISP has them."""
        bus, device = self.address[5:].split(":")
        slot, function = device.split(".")
        return int(bus, 16) << 8 | int(slot, 16) << 3 | int(function)

    def read(self, offset: int) -> int:
        """Read a double word of configuration space; all bits are one where there is none."""
        return int.from_bytes(os.pread(self._config, _WORD, offset).ljust(_WORD, b"\xff"), "little")

    def write(self, offset: int, value: int) -> None:
        """Write one."""
        os.pwrite(self._config, value.to_bytes(_WORD, "little"), offset)

    def find_mailbox(self) -> int:
        """Return where the first mailbox for data objects is.

        Raises:
            TargetError: there is none.

        """
        at = find_mailbox(self.read)
        if at is None:
            raise TargetError(f"{self.address} has no mailbox for data objects")
        return at

    def bars(self) -> dict[int, int]:
        """Where the guest has its base addresses, by their number."""
        lines = (self._folder / "resource").read_text(encoding="ascii").splitlines()[:BAR_COUNT]
        found = (tuple(int(word, 16) for word in line.split()) for line in lines)
        return {bar: start for bar, (start, _, flags) in enumerate(found) if flags & _MEMORY}

    def enable(self) -> None:
        """Have its memory answer, and let it master the bus: what it takes to lock it."""
        field = HEADER["command"].offset
        command = self.read(field) & 0xFFFF | Command.MEMORY | Command.BUS_MASTER
        os.pwrite(self._config, command.to_bytes(2, "little"), field)

    @property
    def driver(self) -> str:
        """The driver that has it; empty for none."""
        link = self._folder / "driver"
        return link.resolve().name if link.exists() else ""

    def _tell(self, path: Path, text: str) -> None:
        try:
            path.write_text(text, encoding="ascii")
        except OSError as error:
            raise TargetError(f"{path}: {error.strerror}") from None

    def keep_from_drivers(self) -> None:
        """Have no driver, now or by itself later."""
        self._tell(self._folder / "driver_override", _NOBODY)
        if self.driver:
            self._tell(self._folder / "driver" / "unbind", self.address)

    def give_to_driver(self) -> None:
        """Have the driver that it is for.

        Raises:
            TargetError: none took it.

        """
        self._tell(self._folder / "driver_override", "\n")
        with contextlib.suppress(TargetError):  # whoever probes says by the link whether it took it
            self._tell(self._bus / "drivers_probe", self.address)
        if not self.driver:
            raise TargetError(f"{self.address}: no driver took it")
