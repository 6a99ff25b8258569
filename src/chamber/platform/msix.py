"""The MSI-X table of a PCI function, and the interrupts that wait while they are masked (PCIe 6.0, 6.1.4.2, 7.7.2)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from chamber.wire.pci import MSIX_ENTRY

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ("MsixTable", "PendingBits")

_MASKED: Final = 1


class MsixTable:
    """Entries that the guest fills with an address and data each (implements `chamber.platform.pci.Registers`).

    Args:
        vectors: how many.
        send: writes data to an address.

    Attributes:
        enabled: the guest has switched MSI-X on.

    """

    def __init__(self, vectors: int, send: Callable[[int, int], None]) -> None:
        self.vectors = vectors
        self.size = vectors * MSIX_ENTRY.size
        self.enabled = False
        self._send = send
        self._function_masked = False
        self._entries = bytearray()
        self._pending: set[int] = set()
        self.reset()

    def reset(self) -> None:
        """Forget what the guest wrote: all entries are masked."""
        self.enabled = self._function_masked = False
        self._entries[:] = bytes(MSIX_ENTRY.pack(control=_MASKED)) * self.vectors
        self._pending.clear()

    def set_control(self, *, enabled: bool, masked: bool) -> None:
        """Take what the guest wrote to message control."""
        self.enabled, self._function_masked = enabled, masked
        self._deliver()

    def read(self, offset: int, size: int) -> bytes:
        """Serve a read."""
        return bytes(self._entries[offset:offset + size])

    def write(self, offset: int, data: bytes) -> None:
        """Take a write."""
        self._entries[offset:offset + len(data)] = data
        self._deliver()

    def signal(self, vector: int) -> None:
        """Raise an interrupt, now or once it is no longer masked; several until then are one."""
        if self.enabled and vector < self.vectors:
            self._pending.add(vector)
            self._deliver()

    def message(self, vector: int) -> tuple[int, int]:
        """Return address and data of an entry."""
        base = vector * MSIX_ENTRY.size
        return MSIX_ENTRY.get(self._entries, "address", base), MSIX_ENTRY.get(self._entries, "data", base)

    def _deliver(self) -> None:
        if not self.enabled or self._function_masked:
            return
        for vector in sorted(self._pending):
            if not MSIX_ENTRY.get(self._entries, "control", vector * MSIX_ENTRY.size) & _MASKED:
                self._pending.discard(vector)
                self._send(*self.message(vector))

    def pending_bits(self) -> bytes:
        """Return the pending bit array, whole quadwords."""
        word = sum(1 << vector for vector in self._pending)
        return word.to_bytes((self.vectors + 63) // 64 * 8, "little")


class PendingBits:
    """The array that shows what waits; read only (implements `chamber.platform.pci.Registers`)."""

    def __init__(self, table: MsixTable) -> None:
        self._table = table
        self.size = len(table.pending_bits())

    def read(self, offset: int, size: int) -> bytes:
        """Serve a read."""
        return self._table.pending_bits()[offset:offset + size]

    def write(self, offset: int, data: bytes) -> None:
        """Nothing is taken."""
