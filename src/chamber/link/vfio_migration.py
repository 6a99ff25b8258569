"""Migration of a function over vfio-user: its states, its data, and the log of pages that it writes.

The states and the arcs between them are Linux's (``enum vfio_device_mig_state``, linux/vfio.h); a way of several arcs
is gone as one, through STOP. There is no PRE_COPY: a virtio device has little state besides guest memory.
"""

from __future__ import annotations

import errno
import struct
from typing import TYPE_CHECKING, Final, Protocol, runtime_checkable

from chamber.wire.errors import WireError
from chamber.wire.function_state import MOST_BYTES
from chamber.wire.vfio_user import Bitmap, DeviceFeature, FeatureIndex, LogReport, LogStart, MigrationState

if TYPE_CHECKING:
    from collections.abc import Iterable

    from chamber.link.vfio_memory import DmaTable

__all__ = ("Migratable", "Migration", "NotPossible")

_S = MigrationState
_STOP_COPY: Final = 1 << 0
"""VFIO_MIGRATION_STOP_COPY, the one way that is known."""
_FLAGS: Final = struct.Struct("=Q")
_STATE: Final = struct.Struct("=Ii")
_NO_DATA: Final = -1
"""Data goes by messages, and no descriptor."""
_KNOWN: Final = frozenset({_S.STOP, _S.RUNNING, _S.STOP_COPY, _S.RESUMING})
_SETTABLE: Final = frozenset({FeatureIndex.MIG_DEVICE_STATE, FeatureIndex.DMA_LOGGING_START,
                              FeatureIndex.DMA_LOGGING_STOP})
_GETTABLE: Final = frozenset({FeatureIndex.MIGRATION, FeatureIndex.MIG_DEVICE_STATE, FeatureIndex.DMA_LOGGING_REPORT})


class NotPossible(Exception):
    """A message that is whole asks for what can't be done; `number` is the errno of the answer."""

    def __init__(self, number: int, why: str) -> None:
        self.number = number
        super().__init__(why)


@runtime_checkable
class Migratable(Protocol):
    """A function that can be halted, and whose state can be had and set."""

    def halt(self) -> None:
        """Touch no memory and raise no interrupt."""
        ...

    def resume(self) -> None:
        """Go on."""
        ...

    def save(self) -> bytes:
        """Its state, while it is halted."""
        ...

    def load(self, data: bytes) -> None:
        """Become what another one was, while halted.

        Raises:
            WireError: the data is no state, or of another function; nothing was changed.

        """
        ...

    def ring_areas(self) -> list[tuple[int, int]]:
        """Address and length of memory that it may write to at any time, and without being asked."""
        ...


class Migration:
    """The state of one function.

    Args:
        function: the function.
        memory: guest memory as the client mapped it.

    """

    def __init__(self, function: Migratable, memory: DmaTable) -> None:
        self._function = function
        self._memory = memory
        self._state = _S.RUNNING
        self._data = bytearray()
        self._read_at = 0
        self._watched: LogStart | None = None
        self._dirty: set[int] = set()

    def close(self) -> None:
        """Forget the client, or begin anew after a reset: the function runs, and nothing is watched."""
        self._function.resume()
        self._state = _S.RUNNING
        self._data.clear()
        self._watch(None)

    # Features.

    def feature(self, asked: DeviceFeature) -> DeviceFeature:
        """Answer DEVICE_FEATURE.

        Raises:
            NotPossible: there is no such feature, or not like that.
            WireError: its data is malformed.

        """
        getting, setting = bool(asked.flags & asked.GET), bool(asked.flags & asked.SET)
        known = (_GETTABLE if getting else frozenset()) | (_SETTABLE if setting else frozenset())
        if not (getting or setting):
            known = _GETTABLE | _SETTABLE
        if asked.index not in known:
            raise NotPossible(errno.ENOTTY, f"no feature {asked.index} of that kind")
        data = asked.data if asked.flags & asked.PROBE else (self._get if getting else self._set)(
            FeatureIndex(asked.index), asked.data)
        answer = DeviceFeature(asked.index, asked.flags, data, asked.argsz)
        if len(answer.pack()) > asked.argsz:
            raise NotPossible(errno.ENOSPC, f"{asked.argsz} bytes have no room for the answer")
        return answer

    def _get(self, index: FeatureIndex, data: bytes) -> bytes:
        match index:
            case FeatureIndex.MIGRATION:
                return _FLAGS.pack(_STOP_COPY)
            case FeatureIndex.MIG_DEVICE_STATE:
                return _STATE.pack(self._state, _NO_DATA)
            case _:
                return self._report(LogReport.unpack(data)).pack()

    def _set(self, index: FeatureIndex, data: bytes) -> bytes:
        match index:
            case FeatureIndex.MIG_DEVICE_STATE:
                if len(data) < _STATE.size:
                    raise NotPossible(errno.EINVAL, "a state has eight bytes")
                self._go_to(_STATE.unpack_from(data)[0])
                return _STATE.pack(self._state, _NO_DATA)
            case FeatureIndex.DMA_LOGGING_START:
                if self._watched is not None:
                    raise NotPossible(errno.EINVAL, "pages are watched already")
                self._watch(LogStart.unpack(data))
            case _:
                if self._watched is None:
                    raise NotPossible(errno.EINVAL, "no pages are watched")
                self._watch(None)
        return data

    # States.

    def _go_to(self, number: int) -> None:
        if number not in _KNOWN or self._state is _S.ERROR:
            raise NotPossible(errno.EINVAL, f"no way from {self._state.name} to {number}")
        wanted = MigrationState(number)
        if wanted is self._state:
            return
        if self._state is not _S.STOP:
            self._stop()
        if wanted is _S.RUNNING:
            self._function.resume()
        elif wanted is _S.STOP_COPY:
            self._data[:] = self._function.save()
            self._read_at = 0
        self._state = wanted

    def _stop(self) -> None:
        """Go to STOP, from any other."""
        before, self._state = self._state, _S.STOP
        if before is _S.RUNNING:
            self._function.halt()
        elif before is _S.RESUMING and self._data:
            data, self._data = bytes(self._data), bytearray()
            try:
                self._function.load(data)
            except WireError as error:
                self._state = _S.ERROR
                raise NotPossible(errno.EINVAL, str(error)) from None
        self._data.clear()

    def read(self, size: int) -> bytes:
        """Answer MIG_DATA_READ: the next bytes of the state, fewer at its end."""
        if self._state is not _S.STOP_COPY:
            raise NotPossible(errno.EINVAL, f"there is no state to be read while {self._state.name}")
        piece = bytes(self._data[self._read_at:self._read_at + size])
        self._read_at += len(piece)
        return piece

    def write(self, data: bytes) -> None:
        """Take MIG_DATA_WRITE: the next bytes of a state, which takes effect when the function leaves RESUMING."""
        if self._state is not _S.RESUMING:
            raise NotPossible(errno.EINVAL, f"no state is taken while {self._state.name}")
        if len(self._data) + len(data) > MOST_BYTES:
            raise NotPossible(errno.ENOSPC, f"a state has {MOST_BYTES} bytes at most")
        self._data += data

    # The log of pages that the function writes.

    def _watch(self, wanted: LogStart | None) -> None:
        self._watched = wanted
        self._dirty.clear()
        self._memory.dirty = None if wanted is None else self._wrote

    def _wrote(self, address: int, length: int) -> None:
        assert self._watched is not None
        self._dirty.update(_pages(address, length, self._watched.page_size))

    def _report(self, asked: LogReport) -> Bitmap:
        """Say which pages of a range were written since the last time; with rings, which are written to unseen."""
        watched = self._watched
        if watched is None:
            raise NotPossible(errno.EINVAL, "no pages are watched")
        rings = {page for address, length in self._function.ring_areas()
                 for page in _pages(address, length, watched.page_size)}
        bits = bytearray(asked.bitmap_bytes)
        end = asked.address + asked.size
        for page in self._dirty | rings:
            start = page * watched.page_size
            if any(r.address < start + watched.page_size and start < r.address + r.size for r in watched.ranges):
                _mark(bits, asked, max(start, asked.address), min(start + watched.page_size, end))
        self._dirty = {page for page in self._dirty
                       if not asked.address <= page * watched.page_size < end}
        return Bitmap(asked, bytes(bits))


def _pages(address: int, length: int, size: int) -> Iterable[int]:
    return range(address // size, -(-(address + length) // size))


def _mark(bits: bytearray, asked: LogReport, start: int, end: int) -> None:
    """Set the bits of the pages of a report that lie between two addresses."""
    for page in _pages(start - asked.address, end - start, asked.page_size) if start < end else ():
        bits[page // 8] |= 1 << page % 8
