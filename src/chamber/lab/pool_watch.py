"""Looks through a guest's whole bounce pool for what the guest never meant to share.

A host sees all of the pool at all times, not only what a device reads of it. Linux copies a buffer into its slots when
it maps it, whichever way the data are to go, and clears nothing when it unmaps (kernel/dma/swiotlb.c): what was copied
by mistake stays until its slots are used again, so that a look when the driver has gone finds it.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from chamber.lab.observation import Evidence, Harm
from chamber.lab.slot_table import SLOT

if TYPE_CHECKING:
    from collections.abc import Callable

    from chamber.device.chain import Chain
    from chamber.platform.dma import Dma

__all__ = ("PoolWatch",)

_UNLENT, _READABLE, _WRITABLE = range(3)
_CONTEXT: Final = 16


class PoolWatch:
    """Knows which bytes of the pool were lent by a descriptor, and what must not be in it.

    A secret in bytes that were lent to be read is a leak. In bytes that were lent to be written it is what the buffer
    held before: Linux shows it to the host by design, with an honest host as well. Where no descriptor led that was
    seen, it may be the same: a driver maps a whole page and lends it piece by piece, or a device under attack never
    looks at a ring. Both are noted, and not held against an attack.

    Args:
        pool: addresses of the bounce pool.

    """

    def __init__(self, pool: range) -> None:
        self._pool = pool
        self._lent = bytearray(len(pool))
        self._marker = b""
        self._signatures: set[str] = set()

    def begin(self, marker: bytes) -> None:
        """Forget what was lent; from now on look for `marker`, which was never in the pool."""
        self._lent = bytearray(len(self._pool))
        self._marker = marker
        self._signatures.clear()

    def lent(self, chain: Chain) -> None:
        """Take note of a chain."""
        for parts, way in ((chain.readable, _READABLE), (chain.writable, _WRITABLE)):
            for address, length in parts:
                begin = max(address, self._pool.start) - self._pool.start
                end = min(address + length, self._pool.stop) - self._pool.start
                if begin < end:
                    self._lent[begin:end] = bytes((way,)) * (end - begin)

    def scan(self, dma: Dma, found: Callable[[Evidence], None], note: Callable[[str], None]) -> None:
        """Look through the pool: tell evidence of each kind of leak once, and note how much it holds.

        Raises:
            DmaFault: the pool is not within reach.

        """
        # A view: this is no read of the device's, and those who watch what it reads are not to see it.
        data = bytes(dma.view(self._pool.start, len(self._pool)))
        stale = unseen = 0
        for match in re.finditer(re.escape(self._marker), data) if self._marker else ():
            ways = set(self._lent[match.start():match.end()])
            if _READABLE in ways:
                self._tell(match.start(), data, found)
            elif _UNLENT in ways:
                unseen += 1
            else:
                stale += 1
        held = sum(data.count(0, at, at + SLOT) < SLOT for at in range(0, len(data), SLOT))
        note(f"pool: {held} of {len(data) // SLOT} slots hold data; "
             f"the planted secret lies {stale} times in buffers lent to be written, "
             f"{unseen} times where no descriptor led")

    def _tell(self, at: int, data: bytes, found: Callable[[Evidence], None]) -> None:
        signature = "planted secret in the bounce pool in bytes lent to be read"
        if signature not in self._signatures:
            self._signatures.add(signature)
            begin = max(0, at - _CONTEXT)
            found(Evidence(Harm.LEAK, signature, f"at {self._pool.start + at:#x}: "
                           + data[begin:at + len(self._marker) + _CONTEXT].hex(" ")))
