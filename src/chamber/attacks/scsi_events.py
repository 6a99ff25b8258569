"""Events of a SCSI host that are none, and disks that go without a word."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from chamber.attacks.attack import Aim, Attack, Surface
from chamber.attacks.scsi_exchange import (
    LOOK,
    READS_BEFORE,
    WILD,
    Exchange,
    Row,
    exchange_of,
    failing,
    is_capacity,
    is_inquiry,
    is_page,
    is_read,
    request_of,
    with_bytes,
    with_capacity,
    with_page,
)
from chamber.device.errors import DriverError
from chamber.wire.errors import DmaFault
from chamber.wire.scsi import (
    EVENT,
    EVENT_QUEUE,
    EVENTS_MISSED,
    EventType,
    ResetReason,
    Response,
    ScsiFeature,
)
from chamber.wire.scsi_commands import Sense, SenseKey, Status
from chamber.wire.virtio import bit

if TYPE_CHECKING:
    from collections.abc import Callable

    from chamber.device.chain import Chain
    from chamber.device.queue import DeviceQueue

__all__ = ("EVENT_ROWS",)

@dataclass(frozen=True, slots=True)
class Msg:
    """An event to send.

    Attributes:
        event: its number.
        lun: what it names; None for the unit that set the attack off.
        reason: its reason.
        claim: used.len instead of the true one.

    """

    event: int
    lun: bytes | None = None
    reason: int = 0
    claim: int = EVENT.size


class Events(Attack):
    """Sends events of its own while the guest reads.

    Args:
        messages: what to send, in order, and round again.
        rounds: how often.
        feature: offer HOTPLUG and CHANGE, or withdraw them.
        lie: what the units say once an event was sent.

    """

    def __init__(self, messages: tuple[Msg, ...], *, rounds: int = 1, feature: bool = True,
                 lie: tuple[Callable[[bytes], bool], Callable[[Exchange], Exchange]] | None = None) -> None:
        super().__init__()
        self._pending = list(messages * rounds)[:self.LIMIT]
        self._reads = 0
        self._feature = feature
        self._lie = lie

    def features(self, offered: int) -> int:
        """Offer what events need, or not."""
        mask = bit(ScsiFeature.HOTPLUG, ScsiFeature.CHANGE)
        return offered | mask if self._feature else offered & ~mask

    def popped(self, queue: DeviceQueue, chain: Chain) -> bool:
        """See the guest read."""
        lun, cdb = request_of(chain)
        if self.device.queue_role(queue.index) == "requests" and is_read(cdb):
            self._reads += 1
            if self._reads == READS_BEFORE:
                self._send(lun, 300)
        return True

    def response(self, queue: DeviceQueue, chain: Chain, data: bytes) -> bytes:
        """Lie about what the event calls attention to."""
        true = exchange_of(self.device, queue, chain, data)
        if self._lie is None or self._reads < READS_BEFORE or true is None or not self._lie[0](true.cdb):
            return data
        return self._lie[1](true).pack()

    def _send(self, lun: bytes, tries: int) -> None:
        queue = self.device.queues[EVENT_QUEUE]
        with suppress(DriverError, DmaFault):
            while self._pending and queue.started and (chain := queue.pop()) is not None:
                message = self._pending.pop(0)
                named = lun if message.lun is None else message.lun
                chain.write(EVENT.pack(message.event, named, message.reason))
                queue.push(chain.head, message.claim)
                self.strike(f"event {message.event:#x} of {named.hex()}, reason {message.reason:#x}, "
                            f"used.len {message.claim}")
        self.device.flush(queue)
        if self._pending and tries and queue.started:
            self.device.schedule(0.005, lambda: self._send(lun, tries - 1))


class Unplug(Attack):
    """Takes a disk away while the guest reads it: from then on it is not there.

    Args:
        told: say so by an event.
        absent: keep the target, and say that the unit is not supported, rather than that there is no target.

    """

    def __init__(self, *, told: bool, absent: bool = False) -> None:
        super().__init__()
        self._told = told
        self._absent = absent
        self._reads = 0
        self._lun = b""

    def popped(self, queue: DeviceQueue, chain: Chain) -> bool:
        """See the guest read, and take the disk away."""
        lun, cdb = request_of(chain)
        if self.device.queue_role(queue.index) == "requests" and is_read(cdb) and not self._lun:
            self._reads += 1
            if self._reads > READS_BEFORE:
                self._lun = lun
                if self._told:
                    events = self.device.queues[EVENT_QUEUE]
                    with suppress(DriverError, DmaFault):
                        gone = events.pop()
                        if gone is not None:
                            gone.write(EVENT.pack(EventType.TRANSPORT_RESET, lun, ResetReason.REMOVED))
                            events.push(gone.head, EVENT.size)
                    self.device.flush(events)
        return True

    def response(self, queue: DeviceQueue, chain: Chain, data: bytes) -> bytes:
        """Answer as if the disk were gone."""
        true = exchange_of(self.device, queue, chain, data)
        if true is None or true.lun != self._lun:
            return data
        self.strike(f"{true.cdb[:10].hex()} of {true.lun[:4].hex()}: the unit is gone")
        if self._absent:
            return failing(Sense(SenseKey.ILLEGAL_REQUEST, 0x25).pack())(true).pack()
        return replace(failing(b"", status=Status.GOOD)(true), response=Response.BAD_TARGET).pack()


_LEN, _PAY, _LIFE = Surface.LENGTH, Surface.PAYLOAD, Surface.LIFECYCLE
_ABSENT: Final = bytes((1, 0, 0, 9)) + bytes(4)
_BEYOND: Final = bytes((1, 0xFF, 0x7F, 0xFF)) + bytes(4)
_NONSENSE: Final = b"\xff" * 8
_RESET, _CHANGED = EventType.TRANSPORT_RESET, EventType.PARAM_CHANGE
_CAPACITY_CHANGED: Final = 0x092A


def _events(name: str, surface: Surface, aim: Aim, summary: str, *messages: Msg, rounds: int = 1,
            feature: bool = True) -> Row:
    return (f"event-{name}", surface, aim, summary, lambda: Events(messages, rounds=rounds, feature=feature), LOOK)


_REMOVED: Final = Msg(_RESET, reason=ResetReason.REMOVED)
_RESCAN: Final = Msg(_RESET, reason=ResetReason.RESCAN)

EVENT_ROWS: Final[tuple[Row, ...]] = (
    *(_events(f"length-{n}", _LEN, Aim.MEMORY, f"sends an event with used.len {n}", Msg(_RESET, reason=1, claim=n))
      for n in (0, 4, 15)),
    _events("length-max", _LEN, Aim.MEMORY, "sends an event with used.len 2**32 - 1", Msg(_RESET, claim=WILD)),
    _events("unknown", _PAY, Aim.MEMORY, "sends events that do not exist",
            *(Msg(n) for n in (4, 5, 0x100, 0x7FFFFFFF, WILD))),
    _events("missed", _PAY, Aim.DENIAL, "says 100 times that events were missed", Msg(EVENTS_MISSED), rounds=100),
    _events("missed-all", _PAY, Aim.MEMORY, "says with every event that others were missed",
            *(Msg(EVENTS_MISSED | n) for n in range(5))),
    _events("removed", _LIFE, Aim.MEMORY, "says that a disk is gone while it is read", _REMOVED),
    _events("removed-repeated", _LIFE, Aim.MEMORY, "says 20 times that a disk is gone", _REMOVED, rounds=20),
    _events("removed-absent", _LIFE, Aim.MEMORY, "says that a disk is gone which never was there",
            Msg(_RESET, _ABSENT, ResetReason.REMOVED)),
    _events("removed-and-added", _LIFE, Aim.MEMORY, "removes and adds a disk 16 times while it is read",
            _REMOVED, _RESCAN, rounds=16),
    _events("added-present", _LIFE, Aim.MEMORY, "says 20 times that a disk appeared which is there", _RESCAN,
            rounds=20),
    _events("added-absent", _LIFE, Aim.MEMORY, "says that a disk appeared where there is none",
            Msg(_RESET, _ABSENT, ResetReason.RESCAN)),
    _events("added-all", _LIFE, Aim.DENIAL, "says that disks appeared at 60 targets and LUNs",
            *(Msg(_RESET, bytes((1, n, 0, n)) + bytes(4), ResetReason.RESCAN) for n in range(4, 64))),
    _events("beyond", _PAY, Aim.MEMORY, "names the highest target and LUN",
            *(Msg(kind, _BEYOND, reason) for kind, reason in ((_RESET, 2), (_RESET, 1), (_CHANGED, 0x092A)))),
    _events("nonsense", _PAY, Aim.MEMORY, "names a unit by eight bytes FFh",
            *(Msg(kind, _NONSENSE, reason) for kind, reason in ((_RESET, 2), (_RESET, 0), (_CHANGED, 0x092A)))),
    _events("reset-reason", _PAY, Aim.MEMORY, "resets units for reasons that there are not",
            *(Msg(_RESET, reason=n) for n in (3, 0x10000, WILD))),
    _events("reset-storm", _PAY, Aim.DENIAL, "says 100 times that a disk was reset", Msg(_RESET), rounds=100),
    _events("change-storm", _PAY, Aim.DENIAL, "says 100 times that a disk changed its size",
            Msg(_CHANGED, reason=_CAPACITY_CHANGED), rounds=100),
    _events("change-unknown", _PAY, Aim.MEMORY, "says that things changed of which nobody has heard",
            *(Msg(_CHANGED, reason=n) for n in (0, 0x2A, 0xFFFF, WILD))),
    _events("change-absent", _PAY, Aim.MEMORY, "says that a disk changed which is not there",
            Msg(_CHANGED, _ABSENT, _CAPACITY_CHANGED)),
    _events("asynchronous", _PAY, Aim.DECEPTION, "reports events that nobody subscribed to",
            Msg(EventType.ASYNC_NOTIFY, reason=16), Msg(EventType.ASYNC_NOTIFY, reason=WILD)),
    _events("not-negotiated", _PAY, Aim.MEMORY, "plugs and unplugs disks without having offered to",
            _REMOVED, _RESCAN, feature=False),
    *((f"event-change-{name}", _PAY, aim, f"says that a disk changed, and then {summary}",
       lambda lie=lie: Events((Msg(_CHANGED, reason=_CAPACITY_CHANGED),), lie=lie), LOOK)
      for name, aim, summary, lie in (
          ("shrunk", Aim.MEMORY, "that it has one block", (is_capacity, with_capacity(0, None))),
          ("block-size", Aim.MEMORY, "that its blocks have 4,096 bytes", (is_capacity, with_capacity(None, 4096))),
          ("block-size-zero", Aim.MEMORY, "that its blocks have no bytes", (is_capacity, with_capacity(None, 0))),
          ("serial", Aim.DECEPTION, "that it has another serial number", (is_page(0x80), with_page(0x80, b"other"))),
          ("type", Aim.MEMORY, "that it is a tape", (is_inquiry, with_bytes(0, b"\1"))))),
    ("unplugged", _LIFE, Aim.MEMORY, "takes a disk away while it is read, and says so",
     lambda: Unplug(told=True), LOOK),
    ("unplugged-untold", _LIFE, Aim.MEMORY, "takes a disk away while it is read, and does not say so",
     lambda: Unplug(told=False), LOOK),
    ("unplugged-unit", _LIFE, Aim.MEMORY, "takes a unit away while it is read, and keeps its target",
     lambda: Unplug(told=False, absent=True), LOOK),
)
"""Attacks by events, and by disks that go."""
