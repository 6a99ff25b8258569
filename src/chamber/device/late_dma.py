"""Memory that is lent to a device after the device was made."""

from __future__ import annotations

from typing import TYPE_CHECKING

from chamber.platform.dma import NoDma

if TYPE_CHECKING:
    from chamber.platform.dma import Dma

__all__ = ("LateDma",)


class LateDma:
    """Memory that is lent later (implements `chamber.platform.dma.Dma`).

    Attributes:
        target: what is lent.

    """

    def __init__(self) -> None:
        self.target: Dma = NoDma("the function is on no bus")

    def read(self, address: int, length: int) -> bytes:
        """Read what is lent."""
        return self.target.read(address, length)

    def write(self, address: int, data: bytes | bytearray | memoryview) -> None:
        """Write it."""
        self.target.write(address, data)

    def view(self, address: int, length: int) -> memoryview:
        """View it."""
        return self.target.view(address, length)
