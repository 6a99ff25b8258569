"""How a device reaches guest memory, whoever provides it."""

from __future__ import annotations

from typing import Protocol

from chamber.wire.errors import DmaFault

__all__ = ("Dma", "DmaFault", "NoDma")


class Dma(Protocol):
    """Guest memory as a device sees it: addresses are those that the driver put into descriptors.

    Every method raises `DmaFault` for memory that the guest did not share.
    """

    def read(self, address: int, length: int) -> bytes:
        """Return a copy of `length` bytes."""
        ...

    def write(self, address: int, data: bytes | bytearray | memoryview) -> None:
        """Store bytes."""
        ...

    def view(self, address: int, length: int) -> memoryview:
        """Return a live, writable view; what the guest stores there shows at once."""
        ...


class NoDma:
    """Memory for a device that reaches none.

    Args:
        why: what the fault says.

    """

    def __init__(self, why: str) -> None:
        self._why = why

    def read(self, address: int, length: int) -> bytes:
        """Fail."""
        raise DmaFault(address, length, "read", self._why)

    def write(self, address: int, data: bytes | bytearray | memoryview) -> None:
        """Fail."""
        raise DmaFault(address, len(data), "write", self._why)

    def view(self, address: int, length: int) -> memoryview:
        """Fail."""
        raise DmaFault(address, length, "view", self._why)
