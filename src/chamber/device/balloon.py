"""Traditional memory balloon device (virtio 1.3, 5.5): memory that the guest gives back to its host."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, ClassVar, Final

from chamber.device.base import Device
from chamber.device.errors import DriverError
from chamber.wire.balloon import (
    CMD_ID_DONE,
    CMD_ID_FIRST,
    CMD_ID_STOP,
    CONFIG,
    PAGE_SIZE,
    STAT,
    BalloonFeature,
    parse_statistics,
    queue_roles,
)
from chamber.wire.errors import DmaFault, WireError
from chamber.wire.virtio import DeviceType, bit

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from chamber.device.chain import Chain
    from chamber.device.hooks import Hooks
    from chamber.device.queue import DeviceQueue

__all__ = ("BalloonDevice",)

_DEFAULT: Final = bit(BalloonFeature.STATS_VQ, BalloonFeature.DEFLATE_ON_OOM, BalloonFeature.FREE_PAGE_HINT,
                      BalloonFeature.PAGE_POISON, BalloonFeature.PAGE_REPORTING)
_PFN_LIMIT: Final = 1 << 16
"""Bytes of page numbers that one request may bring."""
_STAT_LIMIT: Final = 64 * STAT.size
_PAGES_LIMIT: Final = 1 << 20
"""Pages that the balloon keeps account of."""
_REQUEST_PAGES: Final = 1 << 13
"""Free pages that one request may name."""
_ACTUAL: Final = CONFIG["actual"].offset
_HINT_SECONDS: Final = 0.05


class BalloonDevice(Device):
    """Asks for memory and gives it back; reads statistics; is told of free pages.

    A page that the guest gives up loses what it held, as with a host that has another use for it: it reads as zero from
    then on.

    Args:
        config: fields of configuration space to set otherwise, by name.
        features: feature bits to offer instead of the default.
        target: pages that `host_action` asks for.
        queue_size: descriptors per queue.
        hooks: interference, if any.

    Attributes:
        pages: page frame numbers in the balloon.
        statistics: what the driver said last, by tag.
        freed: free pages that were hinted or reported, in all.

    """

    type: ClassVar[DeviceType] = DeviceType.BALLOON

    def __init__(self, *, config: Mapping[str, int | bytes] | None = None, features: int | None = None,
                 target: int = 256, queue_size: int = 128, hooks: Hooks | None = None) -> None:
        self.pages: set[int] = set()
        self.statistics: dict[int, int] = {}
        self.freed = 0
        self._held_statistics: Chain | None = None
        self._command = CMD_ID_FIRST
        self._target = target
        self._hinting = False
        self._told: Callable[[dict[int, int]], None] | None = None
        super().__init__(features=_DEFAULT if features is None else features, config=CONFIG.pack(**(config or {})),
                         queues=5, queue_size=queue_size, hooks=hooks)

    def queue_role(self, index: int) -> str:
        """``inflate``, ``deflate``, ``stats``, ``hint`` or ``report`` (5.5.2)."""
        roles = queue_roles(self.features)
        return roles[index] if index < len(roles) else "none"

    @property
    def actual(self) -> int:
        """Pages that the driver says it has given up."""
        return CONFIG.get(self.config, "actual")

    def set_target(self, pages: int) -> None:
        """Ask the driver for that many pages in all (5.5.6.1)."""
        CONFIG.put(self.config, "num_pages", pages)
        self.config_changed()

    def poll_statistics(self, told: Callable[[dict[int, int]], None] | None = None) -> bool:
        """Ask for fresh statistics; `told` is called with them. False if the driver has given no buffer yet."""
        chain, self._held_statistics = self._held_statistics, None
        if chain is None:
            return False
        self._told = told
        queue = self.queues[queue_roles(self.features).index("stats")]
        self.complete(queue, chain, 0)
        self.flush(queue)
        return True

    def hint(self) -> None:
        """Ask the driver which pages are free (5.5.6.5); the answer ends by itself."""
        if self.has(BalloonFeature.FREE_PAGE_HINT):
            self._command = CMD_ID_FIRST if self._command >= 1 << 31 else self._command + 1
            self._hinting = True
            self._command_is(self._command)

    def _command_is(self, command: int) -> None:
        CONFIG.put(self.config, "free_page_hint_cmd_id", command)
        self.config_changed()

    def host_action(self, action: str) -> None:
        """Take memory, ``inflate``; give it back, ``deflate``; ask, ``statistics`` or ``hint``."""
        match action:
            case "inflate":
                self.set_target(self._target)
            case "deflate":
                self.set_target(0)
            case "statistics":
                self.poll_statistics()
            case "hint":
                self.hint()
            case _:
                pass

    def features_accepted(self) -> None:
        """Begin anew."""
        self._forget()

    def reset(self) -> None:
        """Forget the driver; its pages are its own again."""
        self._forget()
        super().reset()

    def _forget(self) -> None:
        self.pages.clear()
        self._held_statistics = None
        self._hinting = False
        CONFIG.put(self.config, "actual", 0)

    def queue_stopped(self, queue: DeviceQueue) -> None:
        """Forget the buffer for statistics."""
        if self.queue_role(queue.index) == "stats":
            self._held_statistics = None

    def config_written(self, offset: int, data: bytes) -> None:
        """Take `actual` and `poison_val` (5.5.4.1)."""
        for name in ("actual", "poison_val"):
            field = CONFIG[name]
            if offset == field.offset and len(data) == field.size:
                CONFIG.put(self.config, name, int.from_bytes(data, "little"))
                self.log(f"{name} is {int.from_bytes(data, 'little')}")

    def handle(self, queue: DeviceQueue, chain: Chain) -> None:
        """Serve one request."""
        role = self.queue_role(queue.index)
        if role in {"inflate", "deflate"}:
            self._change(queue, chain, inflate=role == "inflate")
        elif role == "stats":
            self._take_statistics(queue, chain)
        elif role == "none":
            raise DriverError("a queue is one of those negotiated", spec="5.5.2", detail=f"queue {queue.index}")
        else:
            self._free_pages(queue, chain, role)

    def _change(self, queue: DeviceQueue, chain: Chain, *, inflate: bool) -> None:
        data = chain.read(0, _PFN_LIMIT)
        if chain.readable_size > _PFN_LIMIT or len(data) % 4:
            self.report(DriverError("a request is page numbers, 64 KiB of them at most", spec="5.5.6",
                                    detail=repr(chain)))
        else:
            for number, in struct.iter_unpack("<I", data):
                self._give(number) if inflate else self.pages.discard(number)
            self.log(f"{'inflated' if inflate else 'deflated'} by {len(data) // 4} pages to {len(self.pages)}")
        self.complete(queue, chain, 0)

    def _give(self, number: int) -> None:
        """Take a page: what it held is gone."""
        if len(self.pages) < _PAGES_LIMIT:
            self.pages.add(number)
        self._drop(self.queues[0], number * PAGE_SIZE, PAGE_SIZE)

    def _drop(self, queue: DeviceQueue, address: int, length: int) -> None:
        if queue.ring is not None:
            try:
                queue.ring.dma.write(address, bytes(length))
            except DmaFault as fault:
                # Nothing is lost: a page that the host can't reach is no use to it.
                self.log(f"page at {address:#x} given and not shared: {fault}")

    def _take_statistics(self, queue: DeviceQueue, chain: Chain) -> None:
        if self._held_statistics is not None:
            raise DriverError("the driver has one statistics buffer", spec="5.5.6.3")
        try:
            self.statistics = parse_statistics(chain.read(0, _STAT_LIMIT))
        except WireError as error:
            self.report(DriverError(error.rule, spec="5.5.6.3", detail=error.detail))
        self._held_statistics = chain
        self.log(f"statistics: {self.statistics}")
        told, self._told = self._told, None
        if told is not None:
            told(self.statistics)
        _ = queue

    def _free_pages(self, queue: DeviceQueue, chain: Chain, role: str) -> None:
        command = chain.read(0, 4)
        if role == "hint" and command:
            self._hint_command(int.from_bytes(command, "little"))
        pages = sum(length for _, length in chain.writable) // PAGE_SIZE
        if pages > _REQUEST_PAGES:
            self.report(DriverError("a request names a bounded number of free pages", spec="5.5.6.6",
                                    detail=repr(chain)))
        else:
            self.freed += pages
            for address, length in chain.writable:
                self._drop(queue, address, length)
        if pages:
            self.log(f"{role}: {pages} free pages")
        self.complete(queue, chain, 0)

    def _hint_command(self, command: int) -> None:
        self.log(f"hint command {command}")
        if command == CMD_ID_STOP and self._hinting:
            self._hinting = False
            # The driver may use its free pages again once the host says that it is done with them.
            self.schedule(_HINT_SECONDS, lambda: self._command_is(CMD_ID_DONE))
