"""Hostile requests by the hundred thousand: what a scripted driver sends, spoilt, on rings that are spoilt as well."""

from __future__ import annotations

import dataclasses
import os
import random
import resource
import struct
import sys
from typing import TYPE_CHECKING, Final

from chamber.attacks.attack import Attack
from chamber.device.catalogue import make_device
from chamber.wire.errors import DmaFault
from chamber.wire.packed import DESC as PACKED_DESC
from chamber.wire.packed import DESC_F_AVAIL, DESC_F_USED, PackedLayout
from chamber.wire.split import DESC, DESC_F_INDIRECT, DESC_F_NEXT, DESC_F_WRITE, SplitLayout
from chamber.wire.virtio import DeviceType, Feature, bit

if TYPE_CHECKING:
    from collections.abc import Callable

    from chamber.device.chain import Chain
    from chamber.device.queue import DeviceQueue

__all__ = ("Outcome", "record", "soak")

_SIZE: Final = 32
_RING: Final = 0x1000
"""Room for each queue."""
_BATCH: Final = 8
_SLOT: Final = 0x2000
"""Room for each request of a batch: what the device may read, then what it may write."""
_TIMERS: Final = 64
_FILE_LIMIT: Final = 4 << 20


@dataclasses.dataclass
class Outcome:
    """What a soak came to.

    Attributes:
        requests: how many were made available.
        used: how many came back.
        restarts: how often a queue was begun anew, as it was broken or full.
        violations: rules that the device saw broken, at most 100.
        most_touched: bytes that the device moved for one batch, at most.
        grown_kb: what the process grew by after the first tenth.
        descriptors: open files at the end beyond those of the start.

    """

    requests: int = 0
    used: int = 0
    restarts: int = 0
    violations: int = 0
    most_touched: int = 0
    grown_kb: int = 0
    descriptors: int = 0


class _Recorder(Attack):
    """Keeps what a driver sends."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[int, bytes, int]] = []

    def popped(self, queue: DeviceQueue, chain: Chain) -> bool:
        if len(self.seen) < 2000:
            self.seen.append((queue.index, chain.read(0, min(chain.readable_size, _SLOT // 2)), chain.writable_size))
        return True


def record(kind: DeviceType) -> list[tuple[int, bytes, int]]:
    """Queue, bytes and room for a reply of each request that the scripted driver sends."""
    from tests.attacks.victim import Victim  # noqa: PLC0415 - it needs all devices

    recorder = _Recorder()
    Victim(kind, recorder).run()
    return recorder.seen


class _Memory:
    """Guest memory that counts what is moved; everything beyond it was never shared."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.all = memoryview(bytearray(size))
        self.touched = 0

    def view(self, address: int, length: int) -> memoryview:
        if address < 0 or length < 0 or address + length > self.size:
            raise DmaFault(address, length, "view", "outside of what is shared")
        self.touched += length
        return self.all[address:address + length]

    def read(self, address: int, length: int) -> bytes:
        return bytes(self.view(address, length))

    def write(self, address: int, data: bytes | bytearray | memoryview) -> None:
        self.view(address, len(data))[:] = data


class _Soak:
    """One device, and the driver that torments it."""

    def __init__(self, kind: DeviceType, seed: int, *, packed: bool) -> None:
        self.corpus = record(kind)
        self.dice = random.Random(seed)
        self.packed = packed
        self.outcome = Outcome()
        self.timers: list[Callable[[], None]] = []
        self.device = make_device(kind)
        self.device.offer(bit(Feature.RING_PACKED) if packed else 0)
        self.device.schedule = self._later
        self.queues = self.device.queue_count
        self.buffers = self.queues * _RING
        self.memory = _Memory(self.buffers + _BATCH * _SLOT)
        self.heads = [0] * self.queues
        self._begin()

    def _later(self, _delay: float, call: Callable[[], None]) -> None:
        if len(self.timers) < _TIMERS:
            self.timers.append(call)

    def _begin(self) -> None:
        device = self.device
        features = device.offered_features() & ~bit(Feature.IN_ORDER)
        device.accept_features(features if self.packed else features & ~bit(Feature.RING_PACKED))
        for index in range(self.queues):
            self._start(index)
        device.driver_ok()

    def _start(self, index: int) -> None:
        at = index * _RING
        self.memory.all[at:at + _RING] = bytes(_RING)
        layout = PackedLayout(_SIZE) if self.packed else SplitLayout(_SIZE)
        driver, used = ((layout.driver_offset, layout.device_offset) if isinstance(layout, PackedLayout)
                        else (layout.avail_offset, layout.used_offset))
        self.heads[index] = 0
        self.device.start_queue(index, self.memory, size=_SIZE, desc=at, driver=at + driver, device=at + used,
                                interrupt=lambda: None, base=0x80008000 if self.packed else 0)

    def _restart(self, index: int) -> None:
        self.outcome.restarts += 1
        self.device.stop_queue(index)
        self._start(index)

    def run(self, requests: int) -> Outcome:
        """Send so many."""
        outcome = self.outcome
        descriptors = len(os.listdir("/proc/self/fd"))
        early = 0
        while outcome.requests < requests:
            self._batch()
            if not early and outcome.requests >= requests // 10:
                early = _resident_kb()
        outcome.violations = len(self.device.violations)
        for index in range(self.queues):
            self.device.stop_queue(index)
        self.device.reset()
        outcome.grown_kb = _resident_kb() - early
        outcome.descriptors = len(os.listdir("/proc/self/fd")) - descriptors
        self.device.close()
        return outcome

    def _batch(self) -> None:
        dice, outcome, device = self.dice, self.outcome, self.device
        index = dice.randrange(self.queues)
        chosen = [entry for entry in (dice.choice(self.corpus) for _ in range(_BATCH)) if entry[0] == index]
        for slot in range(_BATCH):
            nothing = (index, dice.randbytes(dice.choice((0, 8, 40))), 64)
            _, data, room = chosen[slot % len(chosen)] if chosen else nothing
            self._add(index, slot, self._spoilt(data), min(room, _SLOT // 2))
        outcome.requests += _BATCH
        if not dice.randrange(100):
            device.write_config(dice.randrange(300), dice.randbytes(dice.choice((1, 2, 4, 8))))
        self.memory.touched = 0
        again = True
        for _ in range(4):
            again = again and device.notify(index)
        outcome.most_touched = max(outcome.most_touched, self.memory.touched)
        for call in [self.timers.pop() for _ in range(min(len(self.timers), 4))]:
            call()
        queue = device.queues[index]
        pending = queue.ring is None or queue.broken is not None or device.pending(index)
        if pending or self.heads[index] >= _SIZE // 2:
            outcome.used += self._used(index)
            self._restart(index)

    def _spoilt(self, data: bytes) -> bytes:
        dice = self.dice
        kind = dice.randrange(10)
        if kind < 3 or not data:
            return data
        out = bytearray(data)
        for _ in range(dice.choice((1, 1, 2, 4))):
            at = dice.randrange(len(out)) if out else 0
            how = dice.randrange(6)
            if how == 0:
                out[at:at + 1] = dice.randbytes(1)
            elif how == 1:
                width = dice.choice((1, 2, 4, 8))
                edge = dice.choice((0, 1, (1 << 8 * width) - 1, 1 << 8 * width - 1, dice.randrange(1 << 8 * width)))
                out[at - at % width:at - at % width + width] = edge.to_bytes(width, "little")
            elif how == 2:
                del out[at:]
            elif how == 3:
                other = dice.choice(self.corpus)[1]
                out[at:at + 16] = other[at:at + 16]
            elif how == 4:
                out += dice.randbytes(dice.choice((1, 7, 64)))
            else:
                out[at:at] = out[:at][:32]
        return bytes(out[:_SLOT // 2])

    def _add(self, index: int, slot: int, data: bytes, room: int) -> None:
        """Make one request available: one or two parts to read, one or two to write, now and then no sound chain."""
        dice = self.dice
        at = self.buffers + slot * _SLOT
        self.memory.all[at:at + len(data)] = data
        parts: list[tuple[int, int, int]] = []
        for start, size, flag in ((at, len(data), 0), (at + _SLOT // 2, room, DESC_F_WRITE)):
            if size > 1 and not dice.randrange(3):
                cut = dice.randrange(1, size)
                parts += [(start, cut, flag), (start + cut, size - cut, flag)]
            elif size:
                parts.append((start, size, flag))
        if not parts:
            parts = [(at, 0, 0)]
        wild = dice.randrange(12)
        if wild == 0:
            where = dice.randrange(len(parts))
            address, size, flag = parts[where]
            parts[where] = dice.choice((
                (dice.randrange(1 << 64), size, flag), (address, 0xFFFFFFFF, flag),
                (address, size, flag ^ DESC_F_WRITE),
                (address, 16 * dice.randrange(5), DESC_F_INDIRECT), (0, self.memory.size, flag),
                (address, size, dice.randrange(1 << 16) & ~(DESC_F_AVAIL | DESC_F_USED))))
        (self._add_packed if self.packed else self._add_split)(index, parts, loop=wild == 1)

    def _add_split(self, index: int, parts: list[tuple[int, int, int]], *, loop: bool) -> None:
        memory, base, layout = self.memory.all, index * _RING, SplitLayout(_SIZE)
        first = 4 * self.heads[index] % _SIZE
        for i, (address, size, flag) in enumerate(parts):
            last = i == len(parts) - 1
            follow = (first + (i + 1 if not last else 0)) % _SIZE
            DESC.pack_into(memory, base + 16 * ((first + i) % _SIZE), address, size,
                           flag | (DESC_F_NEXT if not last or loop else 0), follow)
        idx = self.heads[index]
        struct.pack_into("<H", memory, base + layout.avail_offset + 4 + 2 * (idx % _SIZE), first)
        self.heads[index] = idx + 1
        struct.pack_into("<H", memory, base + layout.avail_offset + 2, self.heads[index])

    def _add_packed(self, index: int, parts: list[tuple[int, int, int]], *, loop: bool) -> None:
        memory, base = self.memory.all, index * _RING
        first = self.heads[index]
        for i, (address, size, flag) in enumerate(parts):
            if first + i >= _SIZE:
                break
            last = i == len(parts) - 1
            PACKED_DESC.pack_into(memory, base + 16 * (first + i), address, size, self.dice.randrange(_SIZE),
                                  flag | DESC_F_AVAIL | (DESC_F_NEXT if not last or loop else 0))
        self.heads[index] = first + len(parts)

    def _used(self, index: int) -> int:
        base = index * _RING
        if self.packed:
            flags = (int.from_bytes(self.memory.all[base + 16 * i + 14:base + 16 * i + 16], "little")
                     for i in range(_SIZE))
            return sum(f & DESC_F_USED and f & DESC_F_AVAIL != 0 for f in flags)
        at = base + SplitLayout(_SIZE).used_offset + 2
        return int.from_bytes(self.memory.all[at:at + 2], "little")


def _resident_kb() -> int:
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * resource.getpagesize() // 1024


def soak(kind: DeviceType, requests: int, *, packed: bool, seed: int = 1) -> Outcome:
    """Send so many hostile requests to a device of this kind."""
    return _Soak(kind, seed, packed=packed).run(requests)


if __name__ == "__main__":
    # What a guest makes a device write must not fill the disk of who tests it.
    resource.setrlimit(resource.RLIMIT_FSIZE, (_FILE_LIMIT, _FILE_LIMIT))
    name, count, ring = sys.argv[1:]
    result = soak(DeviceType[name], int(count), packed=ring == "packed")
    sys.stdout.write(" ".join(str(value) for value in dataclasses.astuple(result)) + "\n")
