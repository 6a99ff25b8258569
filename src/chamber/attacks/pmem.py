"""Lies about persistent memory: where it is, what it holds, whether it lasts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from chamber.attacks.answer import Answer, Claim
from chamber.attacks.attack import MODEL, Aim, Attack, AttackSpec, Surface
from chamber.device.pmem import PmemDevice
from chamber.wire.pmem import CONFIG, RESPONSE, PmemFeature
from chamber.wire.virtio import DeviceType, bit

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from chamber.device.chain import Chain
    from chamber.device.queue import DeviceQueue

__all__ = ("pmem_attacks",)

_TARGETS: Final = MODEL | {"qemu"}
"""User-Mode Linux sees no memory of a device's."""
_EVERY_READ: Final = {"length-race"}
"""What takes a host that sees every read of a guest's: that of the model."""


class Range(Attack):
    """Says that the memory is somewhere else, or of another size.

    Args:
        lie: makes start and size from the true ones.

    """

    def __init__(self, lie: Callable[[int, int], tuple[int, int]]) -> None:
        super().__init__()
        self._lie = lie

    def features(self, offered: int) -> int:
        """Have configuration space say it."""
        return offered & ~bit(PmemFeature.SHMEM_REGION)

    def config(self, config: bytearray, offset: int, size: int) -> bytearray:
        """Lie."""
        start, length = self._lie(CONFIG.get(config, "start"), CONFIG.get(config, "size"))
        CONFIG.put(config, "start", start)
        CONFIG.put(config, "size", length)
        self.strike(f"{length:#x} bytes at {start:#x}, read at {offset}, {size} bytes")
        return config


class _Content(Attack):
    """Something done to the memory itself."""

    @property
    def memory(self) -> memoryview:
        """What the guest reads and writes."""
        assert isinstance(self.device, PmemDevice)
        return self.device.medium.live


class NoFlush(_Content):
    """Says that it flushed, and did not."""

    def popped(self, queue: DeviceQueue, chain: Chain) -> bool:
        """Answer at once."""
        queue.push(chain.head, chain.write(bytes(RESPONSE.pack(ret=0))))
        self.strike("flush acknowledged and not done")
        return False


class Rewrite(_Content):
    """Changes the memory when the guest flushes it.

    Args:
        change: changes it, given what it held at the first flush.

    """

    def __init__(self, change: Callable[[memoryview, bytes], None]) -> None:
        super().__init__()
        self._change = change
        self._past: bytes | None = None

    def popped(self, queue: DeviceQueue, chain: Chain) -> bool:  # noqa: ARG002 - the hook's signature
        """Change it."""
        if self._past is None:
            self._past = bytes(len(self.memory))
        before = bytes(self.memory)
        self._change(self.memory, self._past)
        if bytes(self.memory) != before:
            self.strike("memory changed behind the guest's back")
        return True


class Race(_Content):
    """Changes what the guest has just read, before it reads it again.

    Args:
        value: what lengths become.

    """

    def __init__(self, value: int) -> None:
        super().__init__()
        self._value = value
        self._undo: tuple[int, bytes] | None = None
        self._left = 32

    def guest_read(self, address: int, length: int) -> None:
        """Rewrite after the first read of a length, put right after the second."""
        assert isinstance(self.device, PmemDevice)
        offset = address - self.device.start
        if not 0 <= offset <= len(self.memory) - 4 or length != 4:
            return
        if self._undo is not None and self._undo[0] == offset:
            self.memory[offset:offset + 4] = self._undo[1]
            self._undo = None
        elif self._left:
            self._left -= 1
            self._undo = (offset, bytes(self.memory[offset:offset + 4]))
            self.memory[offset:offset + 4] = self._value.to_bytes(4, "little")
            self.strike(f"a length at {offset} becomes {self._value} between two reads")


def _lengths(value: int) -> Callable[[memoryview, bytes], None]:
    def change(memory: memoryview, _past: bytes) -> None:
        for offset in range(0, 4096, 1024):
            memory[offset:offset + 4] = value.to_bytes(4, "little")

    return change


def _flip(memory: memoryview, _past: bytes) -> None:
    memory[4] ^= 0x80


def _roll_back(memory: memoryview, past: bytes) -> None:
    memory[:] = past


def _swap(memory: memoryview, _past: bytes) -> None:
    first, second = bytes(memory[:1024]), bytes(memory[1024:2048])
    memory[:1024], memory[1024:2048] = second, first


def _ret(value: int) -> Callable[[], Attack]:
    return lambda: Answer("requests", lambda _request, _honest: bytes(RESPONSE.pack(ret=value)))


Row = tuple[str, Surface, Aim, str, str, "Callable[[], Attack]"]

_ROWS: Final[tuple[Row, ...]] = (
    ("range-own-memory", Surface.CONFIG, Aim.MEMORY, "5.19.4", "says that its memory lies where the guest's own is",
     lambda: Range(lambda _start, size: (0x2000, size))),
    ("range-overlap", Surface.CONFIG, Aim.MEMORY, "5.19.4", "says that its memory ends behind the guest's own",
     lambda: Range(lambda start, _size: (0x1000, start))),
    ("range-wraps", Surface.CONFIG, Aim.MEMORY, "5.19.4", "says that its memory goes round the end of all addresses",
     lambda: Range(lambda start, _size: (start, (1 << 64) - start + 0x2000))),
    ("range-unaligned", Surface.CONFIG, Aim.MEMORY, "5.19.4", "says that its memory starts in the middle of a page",
     lambda: Range(lambda start, size: (start + 0x321, size))),
    ("range-elsewhere", Surface.CONFIG, Aim.DENIAL, "5.19.4", "says that its memory is where nothing is",
     lambda: Range(lambda start, size: (start * 4, size))),
    ("range-larger", Surface.CONFIG, Aim.DENIAL, "5.19.4", "says that its memory is twice as large as it is",
     lambda: Range(lambda start, size: (start, 2 * size))),
    ("flush-dropped", Surface.CONTENT, Aim.DECEPTION, "5.19.7.1", "acknowledges flushes that it does not do", NoFlush),
    ("flush-failed", Surface.PAYLOAD, Aim.DENIAL, "5.19.6", "fails every flush", _ret(0xFFFFFFFF)),
    ("flush-ret-one", Surface.PAYLOAD, Aim.DECEPTION, "5.19.6", "answers flushes with 1", _ret(1)),
    ("flush-ret-sign", Surface.PAYLOAD, Aim.DECEPTION, "5.19.6", "answers flushes with 2**31", _ret(1 << 31)),
    ("flush-short", Surface.LENGTH, Aim.DECEPTION, "5.19.6", "answers flushes with one byte",
     lambda: Claim("requests", lambda _true, _room: 1, keep=lambda _n: 1)),
    ("flush-unwritten", Surface.LENGTH, Aim.DECEPTION, "5.19.6", "answers flushes without writing the answer",
     lambda: Claim("requests", lambda true, _room: true, keep=lambda _n: 0)),
    ("content-flipped", Surface.CONTENT, Aim.DECEPTION, "5.19.2", "turns a bit of what the guest stored",
     lambda: Rewrite(_flip)),
    ("content-rolled-back", Surface.CONTENT, Aim.DECEPTION, "5.19.2", "puts back what the memory held before",
     lambda: Rewrite(_roll_back)),
    ("content-swapped", Surface.CONTENT, Aim.DECEPTION, "5.19.2", "exchanges two parts of the memory",
     lambda: Rewrite(_swap)),
    ("length-beyond", Surface.CONTENT, Aim.MEMORY, "5.19.2", "makes lengths in its memory larger than any record",
     lambda: Rewrite(_lengths(0x4000))),
    ("length-max", Surface.CONTENT, Aim.MEMORY, "5.19.2", "makes lengths in its memory 2**32 - 1",
     lambda: Rewrite(_lengths(0xFFFFFFFF))),
    ("length-race", Surface.CONTENT, Aim.MEMORY, "5.19.2", "changes lengths between two reads of the guest",
     lambda: Race(0x4000)),
)


def pmem_attacks() -> Iterator[AttackSpec]:
    """Attacks on persistent memory."""
    for what, surface, aim, spec, summary, make in _ROWS:
        targets = MODEL if what in _EVERY_READ else _TARGETS
        yield AttackSpec(f"pmem-{what}", DeviceType.PMEM, surface, aim, f"virtio 1.3, {spec}",
                         f"The device {summary}.", make, stimuli=("use", "inspect"), targets=targets)
