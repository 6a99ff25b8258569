"""What a host does with a balloon: wishes without end, pages that come back changed, questions without pause."""

from __future__ import annotations

import struct
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from chamber.attacks.attack import EVERYWHERE, MODEL, Aim, Attack, AttackSpec, Surface
from chamber.attacks.roles import AtRole
from chamber.wire.balloon import CMD_ID_DONE, CONFIG, PAGE_SIZE
from chamber.wire.errors import DmaFault
from chamber.wire.virtio import DeviceType

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from chamber.device.chain import Chain
    from chamber.device.queue import DeviceQueue

__all__ = ("balloon_attacks",)

_PLANTED: Final = b"chamber planted this" * 205
_REQUESTS: Final = 64


def _pages(chain: Chain) -> list[int]:
    """Addresses of the pages that a request for inflation or deflation names, or that it offers as free."""
    if chain.writable_size:
        return [address + at for address, length in chain.writable for at in range(0, length, PAGE_SIZE)][:_REQUESTS]
    data = chain.read(0, 4 * _REQUESTS)
    return [number * PAGE_SIZE for number, in struct.iter_unpack("<I", data[:len(data) & ~3])]


class Wish(Attack):
    """Changes what the host wishes for, or commands, at every read.

    Args:
        field: of configuration space.
        values: what it says, one after the other and round again.
        quiet: change only what is read; otherwise say each time that configuration changed.
        times: how often at most.

    """

    def __init__(self, field: str, values: tuple[int, ...], *, quiet: bool = True, times: int = 150) -> None:
        super().__init__()
        self._field = field
        self._values = values
        self._quiet = quiet
        self._left = times
        self._turn = 0

    def config(self, config: bytearray, offset: int, size: int) -> bytearray:
        """Say something else."""
        place = CONFIG[self._field]
        if self._left and offset <= place.offset < offset + size:
            self._left -= 1
            value = self._values[self._turn % len(self._values)]
            self._turn += 1
            CONFIG.put(config, self._field, value)
            self.strike(f"{self._field} = {value:#x}")
            if not self._quiet:
                self.device.schedule(0.001, self.device.config_changed)
        return config


class Peek(AtRole):
    """Reads the pages that it is given: what the guest left there."""

    def popped(self, queue: DeviceQueue, chain: Chain) -> bool:
        """Read them before anything becomes of them."""
        if self.due(queue):
            for address in _pages(chain):
                with suppress(DmaFault):
                    found = chain.dma.read(address, PAGE_SIZE)
                    self.capture(found)
                    self.strike(f"queue {queue.index}: page at {address:#x} holds "
                                f"{PAGE_SIZE - found.count(0)} bytes that are not zero")
        return True


class Plant(AtRole):
    """Writes into pages of the guest.

    Args:
        role: the queue through which they are named.
        delay: seconds after it gave them back; None while it has them.

    """

    def __init__(self, role: str, delay: float | None) -> None:
        super().__init__(role, times=16)
        self._delay = delay

    def popped(self, queue: DeviceQueue, chain: Chain) -> bool:
        """Write now, or plan to."""
        if self.due(queue):
            pages = _pages(chain)
            if self._delay is None:
                self.device.handle(queue, chain)
                self._write(queue, chain, pages)
                return False
            ring = queue.ring

            def later() -> None:
                if queue.ring is ring:
                    self._write(queue, chain, pages)

            self.device.schedule(self._delay, later)
        return True

    def _write(self, queue: DeviceQueue, chain: Chain, pages: list[int]) -> None:
        for address in pages:
            self.strike(f"queue {queue.index}: page at {address:#x} written")
            with suppress(DmaFault):
                chain.dma.write(address, _PLANTED[:PAGE_SIZE])


class Inquisitive(AtRole):
    """Asks for statistics again as soon as it has them."""

    def popped(self, queue: DeviceQueue, chain: Chain) -> bool:
        """Give the buffer back at once."""
        if not self.due(queue):
            return True
        queue.push(chain.head, 0)
        self.strike(f"queue {queue.index}: statistics asked for again at once")
        return False


class AtWrite(AtRole):
    """Keeps buffers back until the driver writes configuration, which it does last when it goes away, too."""

    def __init__(self, role: str, *, times: int) -> None:
        super().__init__(role, times=times)
        self._kept: list[tuple[DeviceQueue, Chain]] = []

    def popped(self, queue: DeviceQueue, chain: Chain) -> bool:
        """Keep it."""
        if not self.due(queue):
            return True
        self._kept.append((queue, chain))
        return False

    def config_written(self, offset: int, data: bytes) -> None:
        """Give all back."""
        for queue, chain in self._kept:
            queue.push(chain.head, 0)
            self.strike(f"queue {queue.index}: buffer given back as {len(data)} bytes are written at {offset}")
            self.device.flush(queue)
        self._kept.clear()

    def queue_stopping(self, queue: DeviceQueue) -> None:
        """Its buffers go away."""
        self._kept = [entry for entry in self._kept if entry[0] is not queue]


class EarlyDone(AtRole):
    """Says that it is done with hints, and writes into the pages that are hinted afterwards."""

    def popped(self, queue: DeviceQueue, chain: Chain) -> bool:  # noqa: ARG002 - the hook's signature
        """Say so at each command."""
        if self.due(queue):
            CONFIG.put(self.device.config, "free_page_hint_cmd_id", CMD_ID_DONE)
            self.device.config_changed()
            self.strike("hints are declared done while they are given")
        return True


Row = tuple[str, Surface, Aim, str, str, "Callable[[], Attack]", frozenset[str]]

_ROWS: Final[tuple[Row, ...]] = (
    ("pages-oscillating", Surface.CONFIG, Aim.DENIAL, "5.5.6.1", "wishes for all pages and for none, by turns",
     lambda: Wish("num_pages", (512, 0)), EVERYWHERE),
    ("pages-growing", Surface.CONFIG, Aim.DENIAL, "5.5.6.1", "wishes for more at every read",
     lambda: Wish("num_pages", tuple(range(8, 4096, 64))), EVERYWHERE),
    ("pages-storm", Surface.CONFIG, Aim.DENIAL, "5.5.6.1", "changes its wish and says so, without pause",
     lambda: Wish("num_pages", (16, 0, 32, 8), quiet=False), EVERYWHERE),
    ("pages-all", Surface.CONFIG, Aim.DENIAL, "5.5.6.1", "wishes for more pages than the guest has",
     lambda: Wish("num_pages", (0xFFFFFFFF,)), MODEL),
    ("inflated-read", Surface.PAYLOAD, Aim.LEAK, "5.5.6", "reads pages as they come into the balloon",
     lambda: Peek("inflate", times=8), EVERYWHERE),
    ("deflated-planted", Surface.CONTENT, Aim.DECEPTION, "5.5.6", "returns pages with something in them",
     lambda: Plant("deflate", None), EVERYWHERE),
    ("deflated-written-late", Surface.DMA, Aim.MEMORY, "5.5.6", "writes into pages after it returned them",
     lambda: Plant("deflate", 0.02), MODEL),
    ("inflated-written", Surface.CONTENT, Aim.DECEPTION, "5.5.6", "writes into the pages that it has",
     lambda: Plant("inflate", 0.005), EVERYWHERE),
    ("reported-read", Surface.PAYLOAD, Aim.LEAK, "5.5.6.6", "reads free pages that are reported to it",
     lambda: Peek("report", times=8), MODEL),
    ("reported-planted", Surface.CONTENT, Aim.DECEPTION, "5.5.6.6", "returns reported pages with something in them",
     lambda: Plant("report", None), MODEL),
    ("reported-written-late", Surface.DMA, Aim.MEMORY, "5.5.6.6", "writes into reported pages after it returned them",
     lambda: Plant("report", 0.02), MODEL),
    ("hinted-read", Surface.PAYLOAD, Aim.LEAK, "5.5.6.5", "reads free pages that are hinted to it",
     lambda: Peek("hint", times=8), EVERYWHERE),
    ("hinted-planted", Surface.CONTENT, Aim.DECEPTION, "5.5.6.5", "returns hinted pages with something in them",
     lambda: Plant("hint", None), EVERYWHERE),
    ("hint-commands", Surface.CONFIG, Aim.DENIAL, "5.5.6.5", "commands hints under another number at every read",
     lambda: Wish("free_page_hint_cmd_id", tuple(range(2, 200))), EVERYWHERE),
    ("hint-command-max", Surface.CONFIG, Aim.DENIAL, "5.5.6.5", "commands hints under number 2**32 - 1, then 2**31",
     lambda: Wish("free_page_hint_cmd_id", (0xFFFFFFFF, 1 << 31)), EVERYWHERE),
    ("hint-storm", Surface.CONFIG, Aim.DENIAL, "5.5.6.5", "commands, stops and ends hints without pause",
     lambda: Wish("free_page_hint_cmd_id", (5, 0, 6, 1), quiet=False), EVERYWHERE),
    ("hint-done-early", Surface.LIFECYCLE, Aim.MEMORY, "5.5.6.5", "declares hints done while they are given",
     lambda: EarlyDone("hint", times=8), EVERYWHERE),
    ("statistics-storm", Surface.NOTIFICATION, Aim.DENIAL, "5.5.6.3",
     "asks for statistics again as soon as it has them",
     lambda: Inquisitive("stats", times=100), EVERYWHERE),
    ("statistics-at-write", Surface.LIFECYCLE, Aim.MEMORY, "5.5.6.3",
     "asks for statistics whenever the driver writes configuration, as on its removal",
     lambda: AtWrite("stats", times=100), EVERYWHERE),
)


def balloon_attacks() -> Iterator[AttackSpec]:
    """Attacks on the balloon's protocol."""
    for what, surface, aim, spec, summary, make, targets in _ROWS:
        yield AttackSpec(f"balloon-{what}", DeviceType.BALLOON, surface, aim, f"virtio 1.3, {spec}",
                         f"The device {summary}.", make, targets=targets,
                         stimuli=("use", "rebind") if surface is Surface.LIFECYCLE else ("use",))
