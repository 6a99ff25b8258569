"""What a device reaches of a guest that bounces all DMA: the pool and the rings, and nothing else.

A confidential guest's own pages are private, so that an address outside of what it shares is a mistake: the host could
not read it, and the guest takes the data of a transfer that never was. Where no hardware keeps pages private, as here,
such an address is a leak: the device reads what the guest never meant to share.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from chamber.lab.observation import Evidence, Harm
from chamber.wire.virtio import DeviceType

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from chamber.platform.dma import Dma

__all__ = ("UNBOUNCED", "DmaWatch", "pool_of")

UNBOUNCED: Final = frozenset({DeviceType.BALLOON})
"""Types whose driver in Linux takes ACCESS_PLATFORM back and bounces nothing, also with an honest host."""
_PAGE: Final = 4096
_POOL: Final = re.compile(r"software IO TLB: mapped \[mem 0x([0-9a-f]+)-0x([0-9a-f]+)\]")
_MOST: Final = 8
_SHOWN: Final = 32


def pool_of(log: str) -> range | None:
    """Return where a kernel's bounce pool is, by its own word; None if it has none."""
    found = _POOL.search(log)
    return None if found is None else range(int(found[1], 16), int(found[2], 16))


class DmaWatch:
    """Stands between a device and guest memory (implements `chamber.platform.dma.Dma`).

    Args:
        dma: guest memory.
        pool: addresses of the bounce pool.
        rings: says what else the guest shares: (address, length) of its rings, which lie in pages of their own.
        found: gets evidence of each address outside, the first few.

    """

    def __init__(self, dma: Dma, pool: range, rings: Callable[[], Iterable[tuple[int, int]]],
                 found: Callable[[Evidence], None]) -> None:
        self._dma = dma
        self._pool = pool
        self._rings = rings
        self._found = found
        self._count = 0

    def _is_shared(self, address: int, length: int) -> bool:
        if self._pool.start <= address and address + length <= self._pool.stop:
            return True
        return any(at // _PAGE * _PAGE <= address and address + length <= -(-(at + size) // _PAGE) * _PAGE
                   for at, size in self._rings())

    def _outside(self, what: str, address: int, length: int, data: bytes = b"") -> None:
        self._count += 1
        if self._count <= _MOST:
            self._found(Evidence(
                Harm.LEAK, "address outside of the bounce pool handed to the device",
                f"the device was to {what} {length} bytes at {address:#x}; the pool is {self._pool.start:#x} to "
                f"{self._pool.stop:#x}" + (f"; it read {data[:_SHOWN].hex(' ')}" if data else "")))

    def read(self, address: int, length: int) -> bytes:
        """Read, and look at the address."""
        data = self._dma.read(address, length)
        if not self._is_shared(address, length):
            self._outside("read", address, length, data)
        return data

    def write(self, address: int, data: bytes | bytearray | memoryview) -> None:
        """Write, and look at the address."""
        self._dma.write(address, data)
        if not self._is_shared(address, len(data)):
            self._outside("write", address, len(data))

    def view(self, address: int, length: int) -> memoryview:
        """Return a view, and look at the address."""
        view = self._dma.view(address, length)
        if not self._is_shared(address, length):
            self._outside("reach", address, length)
        return view
