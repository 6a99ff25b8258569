"""Memory balloon driver (virtio 1.3, 5.5).

A page in the balloon is the host's to read and to write. So it is cleared before it goes, and when it comes back it
holds whatever the host left in it: it is cleared again before anything in the guest may take it for fresh memory.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from chamber.guest.driver import TRANSPORT_FEATURES, DeviceTimeout, VirtioDriver
from chamber.platform.memory import PAGE
from chamber.wire.balloon import (
    CMD_ID_DONE,
    CMD_ID_STOP,
    CONFIG,
    STAT,
    BalloonFeature,
    StatTag,
    pack_pfns,
    queue_roles,
)
from chamber.wire.virtio import DeviceType, bit

if TYPE_CHECKING:
    from chamber.guest.machine import GuestMachine
    from chamber.guest.virtqueue import VirtQueue
    from chamber.platform.heap import Object
    from chamber.platform.transport import Transport

__all__ = ("BalloonDriver",)

_F = BalloonFeature
_BATCH: Final = 8
"""Pages of one request."""
_RESERVE: Final = 8
"""Pages that this guest keeps whatever its host asks for."""
_COMMANDS: Final = 16
"""Hint commands that are answered in one go; more are a host that has lost its mind."""


class BalloonDriver(VirtioDriver):
    """Gives pages to the host and takes them back.

    Attributes:
        held: the pages in the balloon, in the order in which they went.

    """

    type = DeviceType.BALLOON
    known = TRANSPORT_FEATURES | bit(_F.MUST_TELL_HOST, _F.STATS_VQ, _F.DEFLATE_ON_OOM, _F.FREE_PAGE_HINT,
                                     _F.PAGE_POISON, _F.PAGE_REPORTING)
    allowed = known
    config_layout = CONFIG

    def queue_indexes(self) -> list[int]:
        """Return a queue for each thing that was agreed on."""
        self._roles = queue_roles(self.features)
        return list(range(len(self._roles)))

    def __init__(self, machine: GuestMachine, transport: Transport) -> None:
        super().__init__(machine, transport)
        self.held: list[Object] = []
        self._lost: list[Object] = []
        self._statistics: Object | None = None
        self._lent_statistics = False
        self.told = 0
        self._last_command = CMD_ID_STOP

    def initialise(self) -> None:
        """Nothing is in the balloon."""
        self._statistics = self.machine.heap.alloc(STAT.size * 4, "statistics", zero=True)
        self._lent_statistics = False
        self._last_command = CMD_ID_STOP
        if self.has(_F.PAGE_POISON):
            self._say("poison_val", 0)

    def started(self) -> None:
        """Give the device its buffer for statistics."""
        self._send_statistics()

    def free_buffers(self) -> None:
        """Take back all pages, and free what was lent."""
        self._take_pages(self.held + self._lost)
        self.held, self._lost = [], []
        if self._statistics is not None and self._statistics.live:
            self.machine.heap.free(self._statistics)

    def _queue_of(self, role: str) -> int:
        return self._roles.index(role)

    # Pages.

    def adjust(self) -> None:
        """Follow the host's wish, one batch after the other, as far as the guest can afford it."""
        spare = self.machine.spare_pages
        wanted = self.read_config("num_pages").masked(0xFFFFFFFF)
        if self.machine.profile.checked:
            # No rule bounds what a host may wish for; what the guest needs for itself does.
            wanted = min(wanted, max(len(self.held) + len(spare) - _RESERVE, 0))
        while len(self.held) < wanted and spare:
            self.machine.scheduler.step()
            self._inflate(min(wanted - len(self.held), _BATCH))
        while len(self.held) > wanted:
            self.machine.scheduler.step()
            self._deflate(min(len(self.held) - wanted, _BATCH))
        self._say("actual", len(self.held))

    def _say(self, name: str, value: int) -> None:
        """Write what is the driver's to say, and see that it stands."""
        self.transport.write_config(CONFIG[name].offset, value.to_bytes(4, "little"))
        self.read_config(name).equals(value, "what the driver wrote is what is read", "5.5.4")

    def _inflate(self, count: int) -> None:
        pages = [self.machine.spare_pages.pop() for _ in range(min(count, len(self.machine.spare_pages)))]
        self._give_pages(pages)
        self.held += pages
        self._tell("inflate", pages)

    def _deflate(self, count: int) -> None:
        pages, self.held = self.held[-count:], self.held[:-count]
        self._tell("deflate", pages)
        self._take_pages(pages)

    def _tell(self, role: str, pages: list[Object]) -> None:
        pfns = self.machine.heap.alloc(4 * len(pages), "page numbers")
        pfns.write(pack_pfns(page.address for page in pages))
        try:
            self.transact(self.queue(self._queue_of(role)), [pfns], [])
        finally:
            self.release(pfns)

    def _give_pages(self, pages: list[Object]) -> None:
        for page in pages:
            # What the guest kept there until now is none of the host's business.
            page.write(bytes(PAGE))
            if self.machine.profile.private:
                self.machine.memory.share(page.address, PAGE)

    def _take_pages(self, pages: list[Object]) -> None:
        for page in pages:
            if self.machine.profile.private:
                self.machine.memory.unshare(page.address, PAGE)
            if self.machine.profile.checked:
                page.write(bytes(PAGE))
            self.machine.spare_pages.append(page)

    # Statistics.

    def _send_statistics(self) -> None:
        if not self.has(_F.STATS_VQ) or self._lent_statistics or self._statistics is None:
            return
        values = {StatTag.MEMFREE: len(self.machine.spare_pages) * PAGE, StatTag.MEMTOT: self.machine.memory.size,
                  StatTag.AVAIL: len(self.machine.spare_pages) * PAGE, StatTag.MAJFLT: self.told}
        self._statistics.write(b"".join(STAT.pack(tag, value) for tag, value in values.items()))
        queue = self.queues[self._queue_of("stats")]
        self.lend(queue, [self._statistics], [])
        self._lent_statistics = True
        self.kick(queue)

    def answer_statistics(self) -> None:
        """Answer the host if it has asked; once, however often it asks meanwhile."""
        if not self.has(_F.STATS_VQ):
            return
        queue = self.queue(self._queue_of("stats"))
        request = queue.get()
        if request is not None:
            self.machine.heap.free(request.record)
            self._lent_statistics = False
            self.told += 1
            self._send_statistics()

    # Free pages.

    def hint(self) -> None:
        """Answer the host's command to name free pages, if there is one (5.5.6.5)."""
        if not self.has(_F.FREE_PAGE_HINT):
            return
        for _ in range(_COMMANDS):
            command = self.read_config("free_page_hint_cmd_id").masked(0xFFFFFFFF)
            if command in {CMD_ID_STOP, CMD_ID_DONE, self._last_command}:
                return
            self._last_command = command
            self._command(command)
            pages = self.machine.spare_pages[-2:]
            del self.machine.spare_pages[-2:]
            self._offer("hint", pages)
            self._command(CMD_ID_STOP)

    def _command(self, command: int) -> None:
        word = self.machine.heap.alloc(4, "hint command")
        word.put(0, 4, command)
        try:
            self.transact(self.queue(self._queue_of("hint")), [word], [])
        finally:
            self.release(word)

    def report(self) -> None:
        """Tell the host of free pages, and have them back when it has seen them (5.5.6.6)."""
        if not self.has(_F.PAGE_REPORTING):
            return
        pages = self.machine.spare_pages[-2:]
        del self.machine.spare_pages[-2:]
        self._offer("report", pages)

    def _offer(self, role: str, pages: list[Object]) -> None:
        """Lend free pages as buffers that the host may discard."""
        self._give_pages(pages)
        try:
            self.transact(self.queue(self._queue_of(role)), [], pages)
        except DeviceTimeout:
            # An offer that the host never answers stays with it until it is reset: it may write there at any time.
            for request in self._unanswered:
                request.writable = [buffer for buffer in request.writable if buffer.memory not in pages]
            self._lost += pages
            raise
        self._take_pages(pages)

    def used(self, queue: VirtQueue) -> None:
        """Take back what `adjust`, `hint` and `report` wait for; statistics wait for `answer_statistics`."""
        if self._roles[queue.index] != "stats":
            super().used(queue)

    def config_changed(self) -> None:
        """The host wishes for something: `adjust` and `hint` see to it outside of the interrupt."""

