"""What a driver hands to its device: the DMA API, with the bounce pool behind it or nothing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from chamber.guest.bounce import BouncePool, Direction
    from chamber.guest.profile import Profile
    from chamber.platform.heap import Heap, Object

__all__ = ("Buffer", "Dma")


@dataclass(frozen=True, slots=True)
class Buffer:
    """A piece of an object that is lent to the device.

    Attributes:
        memory: the object.
        offset: where the piece starts.
        length: bytes.
        preset: what it holds is the device's to see, and stands where the device writes nothing: for a status that must
            not read as success by itself.

    """

    memory: Object
    offset: int
    length: int
    preset: bool = False

    @classmethod
    def whole(cls, memory: Object) -> Buffer:
        """All of an object."""
        return cls(memory, 0, memory.size)


class Dma:
    """Mappings for one guest.

    Args:
        profile: says whether devices reach the guest's own pages or the bounce pool alone.
        heap: where objects come from.
        coherent: heap in pages that are shared for good: rings, descriptor tables.
        pool: the bounce pool, if the profile has one.

    """

    def __init__(self, profile: Profile, heap: Heap, coherent: Heap, pool: BouncePool | None) -> None:
        self.heap = heap
        self._coherent = coherent
        self._pool = pool
        self._profile = profile
        self._direct: dict[int, int] = {}

    def alloc_coherent(self, size: int, name: str, align: int = 16) -> Object:
        """Allocate memory that guest and device share for as long as it lives; it is cleared."""
        return self._coherent.alloc(size, name, zero=True, align=align)

    def free_coherent(self, memory: Object) -> None:
        """Free shared memory."""
        self._coherent.free(memory)

    def map(self, buffer: Buffer, direction: Direction) -> int:
        """Make a buffer reachable for the device; return its address there.

        What lies in pages that the guest shares anyway goes as it is: it was given away on purpose.

        Raises:
            PoolFull: the bounce pool has no room.

        """
        address = buffer.memory.address + buffer.offset
        if self._pool is None:
            return address
        if self.heap.memory.is_shared(address, buffer.length):
            self._direct[address] = self._direct.get(address, 0) + 1
            return address
        return self._pool.map(buffer.memory, buffer.offset, buffer.length, direction)

    def unmap(self, address: int, written: int) -> None:
        """Take a buffer back; `written` bytes of it came from the device."""
        if address in self._direct:
            self._direct[address] -= 1
            if not self._direct[address]:
                del self._direct[address]
        elif self._pool is not None:
            self._pool.unmap(address, written)
