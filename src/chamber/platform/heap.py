"""Objects in guest memory that notice when they are misused, as KASAN's and KMSAN's do."""

from __future__ import annotations

import sys
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from chamber.platform.memory import GuestMemory

__all__ = ("FREED", "Heap", "MemoryReport", "MemoryViolation", "Object")

FREED: Final = 0x6B
_RED_ZONE: Final = 64
_RED: Final = 0xCC
_ALIGN: Final = 16
_QUARANTINE: Final = 64


@dataclass(frozen=True, slots=True)
class MemoryReport:
    """One misuse of memory.

    Attributes:
        kind: such as ``"out-of-bounds write"`` or ``"use after free"``.
        object: name of the object concerned, or of what was taken for one.
        site: guest functions that did it, innermost first.
        detail: sizes and offsets.

    """

    kind: str
    object: str
    site: tuple[str, ...]
    detail: str

    @property
    def signature(self) -> str:
        """What and where, the same in every run."""
        return f"{self.kind}: {self.object}: {' < '.join(self.site)}"


class MemoryViolation(Exception):
    """The guest's processor was about to misuse memory: its kernel stops here."""

    def __init__(self, report: MemoryReport) -> None:
        self.report = report
        super().__init__(f"{report.signature} ({report.detail})")


class Object:
    """A piece of guest memory with a name and bounds; all access by offset is checked.

    Attributes:
        address: where it lies.
        size: bytes.
        name: what it is, for reports.

    """

    __slots__ = ("_heap", "_uninitialised", "address", "live", "name", "size")

    def __init__(self, heap: Heap, address: int, size: int, name: str, *, uninitialised: bool) -> None:
        self._heap = heap
        self.address = address
        self.size = size
        self.name = name
        self.live = True
        self._uninitialised = uninitialised

    def __repr__(self) -> str:
        return f"<Object {self.name}: {self.size} bytes{'' if self.live else ', freed'}>"

    def _check(self, offset: int, length: int, access: str) -> None:
        if not self.live:
            self._heap.report(f"use after free ({access})", self.name, f"{length} bytes at offset {offset}")
        if offset < 0 or length < 0 or offset + length > self.size:
            self._heap.report(f"out-of-bounds {access}", self.name,
                              f"{length} bytes at offset {offset} of {self.size}")

    def read(self, offset: int = 0, length: int | None = None) -> bytes:
        """Read bytes; beyond the bounds or after the end of its life, a `MemoryViolation`."""
        if length is None:
            length = self.size - offset
        self._check(offset, length, "read")
        if self._uninitialised:
            self._heap.report("use of uninitialised memory", self.name, f"{length} bytes at offset {offset}")
        return self._heap.memory.read(self.address + offset, length)

    def write(self, data: bytes | bytearray | memoryview, offset: int = 0) -> None:
        """Write bytes; beyond the bounds or after the end of its life, a `MemoryViolation`."""
        self._check(offset, len(data), "write")
        self._uninitialised = False
        self._heap.memory.write(self.address + offset, data)

    def get(self, offset: int, width: int) -> int:
        """Read a little-endian number."""
        return int.from_bytes(self.read(offset, width), "little")

    def put(self, offset: int, width: int, value: int) -> None:
        """Write a little-endian number."""
        self.write((value & (1 << 8 * width) - 1).to_bytes(width, "little"), offset)


class Heap:
    """An allocator that surrounds objects with red zones, and keeps the freed ones for a while.

    Fresh objects hold whatever the memory held before, as kmalloc's do: here, what `stale` gives.

    Args:
        memory: where.
        start: first byte.
        size: bytes.
        stale: what memory that nobody has written looks like, repeated.

    Attributes:
        reports: misuses seen so far.

    """

    def __init__(self, memory: GuestMemory, start: int, size: int, *, stale: bytes) -> None:
        self.memory = memory
        self.reports: list[MemoryReport] = []
        self._stale = stale
        self._next = start
        self._end = start + size
        self._free: dict[int, list[int]] = {}
        self._objects: dict[int, Object] = {}
        self._quarantine: deque[Object] = deque()

    def alloc(self, size: int, name: str, *, zero: bool = False, align: int = _ALIGN, track: bool = False) -> Object:
        """Allocate an object.

        Args:
            size: bytes.
            name: for reports.
            zero: clear it, as kzalloc does.
            align: alignment of its address.
            track: report a read before the first write.

        """
        room = (max(size, 1) + _ALIGN - 1) & -_ALIGN
        recycled = self._free.get(room, []) if align <= _ALIGN else []
        if recycled:
            address = recycled.pop()
        else:
            address = (self._next + _RED_ZONE + align - 1) & -align
            if address + room + _RED_ZONE > self._end:
                raise MemoryError("the guest is out of memory")
            self._next = address + room
        self.memory.write(address - _RED_ZONE, bytes([_RED]) * _RED_ZONE)
        self.memory.write(address + size, bytes([_RED]) * (room - size + _RED_ZONE))
        content = bytes(size) if zero else (self._stale * (size // len(self._stale) + 1))[:size]
        self.memory.write(address, content)
        self._next = max(self._next, address + room + _RED_ZONE)
        thing = Object(self, address, size, name, uninitialised=track and not zero)
        self._objects[address] = thing
        return thing

    def free(self, thing: Object) -> None:
        """Free an object: it is checked, poisoned, and its place is not used again for a while."""
        if not thing.live:
            self.report("double free", thing.name, f"{thing.size} bytes")
        self.check(thing)
        thing.live = False
        self.memory.write(thing.address, bytes([FREED]) * thing.size)
        self._quarantine.append(thing)
        if len(self._quarantine) > _QUARANTINE:
            self._release(self._quarantine.popleft())

    def _release(self, thing: Object) -> None:
        self._check_freed(thing)
        self._objects.pop(thing.address, None)
        self._free.setdefault((max(thing.size, 1) + _ALIGN - 1) & -_ALIGN, []).append(thing.address)

    def check(self, thing: Object) -> None:
        """See whether somebody wrote around an object: a device can, where it reaches the page."""
        room = (max(thing.size, 1) + _ALIGN - 1) & -_ALIGN
        before = self.memory.peek(thing.address - _RED_ZONE, _RED_ZONE)
        after = self.memory.peek(thing.address + thing.size, room - thing.size + _RED_ZONE)
        if before.strip(bytes([_RED])) or after.strip(bytes([_RED])):
            self._note("red zone overwritten", thing.name, f"around {thing.size} bytes")

    def _check_freed(self, thing: Object) -> None:
        if self.memory.peek(thing.address, thing.size).strip(bytes([FREED])):
            self._note("freed memory overwritten", thing.name, f"{thing.size} bytes")

    def check_all(self) -> None:
        """Check every object, live or in quarantine, as slab validation does."""
        for thing in list(self._objects.values()):
            if thing.live:
                self.check(thing)
            else:
                self._check_freed(thing)

    def report(self, kind: str, name: str, detail: str) -> None:
        """Record a misuse, and stop the guest.

        Raises:
            MemoryViolation: always.

        """
        raise MemoryViolation(self._note(kind, name, detail))

    def _note(self, kind: str, name: str, detail: str) -> MemoryReport:
        found = MemoryReport(kind, name, _guest_functions(), detail)
        if found.signature not in {r.signature for r in self.reports}:
            self.reports.append(found)
        return found


def _guest_functions() -> tuple[str, ...]:
    """Name the innermost functions of the guest that are running now."""
    names: list[str] = []
    frame = sys._getframe(1)  # noqa: SLF001 - the interpreter's own call stack is what a kernel's would be
    while frame is not None and len(names) < 3:
        module = str(frame.f_globals.get("__name__", ""))
        if module.startswith("chamber.guest"):
            name = frame.f_code.co_qualname
            if not names or names[-1] != name:
                names.append(name)
        frame = frame.f_back  # type: ignore[assignment]
    return tuple(names)
