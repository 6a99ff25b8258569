"""Which of a device's queues an attack acts on, named by what the queue is for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from chamber.attacks.attack import EVERYWHERE, MODEL, Attack
from chamber.wire.virtio import DeviceType

if TYPE_CHECKING:
    from chamber.device.queue import DeviceQueue

__all__ = ("PLACES", "AtRole", "Place")

@dataclass(frozen=True, slots=True)
class Place:
    """A queue role of a device type.

    Attributes:
        device: device type.
        role: as `Device.queue_role` names it.
        prefix: how names of attacks on it start.
        after: completions to let pass, so that the guest gets as far as its first use of the device.
        targets: where the queue is used within the moments that a stimulus takes.

    """

    device: DeviceType
    role: str
    prefix: str
    after: int
    targets: frozenset[str] = EVERYWHERE


PLACES: Final = {place.prefix: place for place in (
    Place(DeviceType.BLOCK, "requests", "blk", 2),
    Place(DeviceType.RNG, "requests", "rng", 0),
    Place(DeviceType.SCSI, "requests", "scsi", 2),
    Place(DeviceType.SCSI, "control", "scsi-control", 0),
    Place(DeviceType.SCSI, "events", "scsi-events", 0),
    Place(DeviceType.PMEM, "requests", "pmem", 0),
    Place(DeviceType.FS, "requests", "fs", 2),
    Place(DeviceType.INPUT, "events", "input-events", 0),
    Place(DeviceType.INPUT, "status", "input-status", 0),
    Place(DeviceType.SND, "control", "snd-control", 3),
    Place(DeviceType.SND, "events", "snd-events", 0),
    Place(DeviceType.SND, "tx", "snd-tx", 0),
    Place(DeviceType.SND, "rx", "snd-rx", 0),
    Place(DeviceType.TRANSPORT_9P, "requests", "9p", 2),
    Place(DeviceType.FS, "hiprio", "fs-hiprio", 0),
    *(Place(DeviceType.BALLOON, role, f"balloon-{role}", 0)
      for role in ("inflate", "deflate", "stats", "hint")),
    # Linux reports a page when it has been free for two seconds.
    Place(DeviceType.BALLOON, "report", "balloon-report", 0, MODEL),
    Place(DeviceType.CRYPTO, "requests", "crypto", 1),
    Place(DeviceType.CRYPTO, "control", "crypto-control", 1),
    Place(DeviceType.VSOCK, "rx", "vsock-rx", 1),
    Place(DeviceType.VSOCK, "tx", "vsock-tx", 1),
    Place(DeviceType.VSOCK, "event", "vsock-event", 0),
    Place(DeviceType.NET, "rx", "net-rx", 1),
    Place(DeviceType.NET, "tx", "net-tx", 1),
    Place(DeviceType.NET, "ctrl", "net-ctrl", 0),
    Place(DeviceType.CONSOLE, "control", "console-control", 1),
    Place(DeviceType.CONSOLE, "control-tx", "console-control-tx", 1),
    Place(DeviceType.CONSOLE, "rx", "console-rx", 0),
    Place(DeviceType.CONSOLE, "tx", "console-tx", 0),
)}


class AtRole(Attack):
    """An attack on queues of one role, which acts a bounded number of times.

    Args:
        role: as `Device.queue_role` names it.
        after: opportunities to let pass first.
        times: how often to act at most.

    """

    def __init__(self, role: str, *, after: int = 0, times: int = 1) -> None:
        super().__init__()
        self.role = role
        self._after = after
        self._left = times

    def mine(self, queue: DeviceQueue) -> bool:
        """Whether this is a queue to act on."""
        return self.device.queue_role(queue.index) == self.role

    def due(self, queue: DeviceQueue) -> bool:
        """Count an opportunity; whether to act on it."""
        if not self.mine(queue):
            return False
        if self._after:
            self._after -= 1
            return False
        if not self._left:
            return False
        self._left -= 1
        return True
