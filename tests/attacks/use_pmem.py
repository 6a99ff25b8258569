"""How the scripted victim uses persistent memory."""

from __future__ import annotations

from typing import TYPE_CHECKING

from chamber.device.pmem import PmemDevice
from chamber.wire.pmem import FLUSH, REQUEST

if TYPE_CHECKING:
    from tests.attacks.victim import Victim

__all__ = ("use",)


def use(victim: Victim) -> None:
    """Store records and flush, a few times; read lengths twice."""
    device = victim.device
    assert isinstance(device, PmemDevice)
    for turn in range(6):
        for offset in range(0, 4096, 1024):
            device.medium.live[offset:offset + 8] = (4).to_bytes(4, "little") + bytes([turn, offset >> 10, 1, 1])
            for _ in range(2):
                victim.attack.guest_read(device.start + offset, 4)
        victim.request(0, [bytes(REQUEST.pack(type=FLUSH))], [4])
