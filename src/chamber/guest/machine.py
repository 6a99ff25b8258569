"""The guest as its drivers see it: memory, DMA, interrupts, time."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from chamber.guest.bounce import SEGMENT_SLOTS, SLOT, BouncePool
from chamber.guest.dma import Dma
from chamber.guest.untrusted import ENFORCING, TRUSTING
from chamber.platform.heap import Heap
from chamber.platform.interrupts import InterruptController
from chamber.platform.memory import PAGE, GuestMemory
from chamber.platform.scheduler import Scheduler
from chamber.platform.secrets import Secrets

if TYPE_CHECKING:
    from collections.abc import Callable

    from chamber.guest.profile import Profile
    from chamber.platform.heap import Object

__all__ = ("GuestMachine",)

_POOL_SEGMENTS: Final = 4
_POOL_AREAS: Final = 2
_COHERENT: Final = 256 << 10
_PRIVATE: Final = 1 << 20
_STEPS: Final = 150_000
_SPARE_PAGES: Final = 24
_SPARE: Final = (2 * _SPARE_PAGES + 1) * PAGE
"""Room for them, a red zone around each."""


class GuestMachine:
    """One guest.

    Args:
        profile: which protections it has.
        seed: decides its secrets.
        queue_size: descriptors that its drivers ask for, where the device has as many.
        steps: after so many, a guest that still runs is taken for one that goes round in circles.

    """

    def __init__(self, profile: Profile, seed: int, *, queue_size: int = 64, steps: int = _STEPS) -> None:
        pool_bytes = _POOL_SEGMENTS * SEGMENT_SLOTS * SLOT
        self.profile = profile
        self.queue_size = queue_size
        self.checks = ENFORCING if profile.checked else TRUSTING
        self.secrets = Secrets(seed)
        self.scheduler = Scheduler(steps)
        self.interrupts = InterruptController()
        spare_at = PAGE + _PRIVATE + _COHERENT + pool_bytes
        self.memory = GuestMemory(spare_at + _SPARE, private=profile.private)
        # Page 0 belongs to nobody, so that a null address is never a valid one.
        self.heap = Heap(self.memory, PAGE, _PRIVATE, stale=self.secrets.marker)
        coherent_at = PAGE + _PRIVATE
        self.coherent = Heap(self.memory, coherent_at, _COHERENT, stale=b"\0")
        self.coherent.reports = self.heap.reports
        pool = None
        if profile.bounced:
            self.memory.share(coherent_at, _COHERENT)
            pool = BouncePool(self.memory, coherent_at + _COHERENT, _POOL_SEGMENTS, _POOL_AREAS, self.heap,
                              checked=profile.checked)
        self.pool = pool
        self.dma = Dma(profile, self.heap, self.coherent, pool)
        # Pages that nobody uses now; what they held before is as secret as anything.
        spare = Heap(self.memory, spare_at, _SPARE, stale=self.secrets.marker)
        spare.reports = self.heap.reports
        self.spare_pages: list[Object] = [spare.alloc(PAGE, "spare page", align=PAGE) for _ in range(_SPARE_PAGES)]
        keep = self.heap.alloc(len(self.secrets.marker) * 8, "key of the disk")
        keep.write(self.secrets.marker * 8)

    def wait(self, done: Callable[[], bool], seconds: float) -> bool:
        """Take interrupts and let virtual time pass until `done()`, for `seconds` at most; return whether it was."""
        deadline = self.scheduler.now + seconds
        while not done():
            self.scheduler.step()
            if self.interrupts.deliver():
                continue
            if not self.scheduler.advance(deadline):
                self.interrupts.deliver()
                return done()
        return True

    def settle(self, seconds: float) -> None:
        """Take whatever comes for a while."""
        self.wait(lambda: False, seconds)

    def close(self) -> None:
        """Give the memory back."""
        self.memory.close()
