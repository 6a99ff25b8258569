"""Which frames a network device passes on to its driver (virtio 1.3, 5.1.6.5.1 to 5.1.6.5.3)."""

from __future__ import annotations

from typing import Final

from chamber.wire.ethernet import BROADCAST, EtherType
from chamber.wire.net import RxCommand

__all__ = ("TABLE_LIMIT", "ReceiveFilter")

TABLE_LIMIT: Final = 256
"""Addresses in a table; a driver that needs more has to ask for all."""

_VLAN: Final = EtherType.VLAN.to_bytes(2, "big")


class ReceiveFilter:
    """The receive filter as the driver sets it up; all passes until it does.

    Attributes:
        modes: what was turned on by RX commands.
        mac: the address that unicast frames come to.
        unicast: further addresses.
        multicast: groups.
        vlans: VLANs that pass; None for all.

    """

    def __init__(self, mac: bytes, *, by_vlan: bool = False) -> None:
        self.modes = {RxCommand.PROMISC}
        self.mac = mac
        self.unicast: frozenset[bytes] = frozenset()
        self.multicast: frozenset[bytes] = frozenset()
        self.vlans: set[int] | None = set() if by_vlan else None

    def passes(self, frame: bytes) -> bool:
        """Whether the driver wants a frame, which is an Ethernet header at least."""
        modes = self.modes
        # Tag 0 gives a priority and no VLAN.
        if self.vlans is not None and frame[12:14] == _VLAN and len(frame) >= 16:
            vlan = int.from_bytes(frame[14:16], "big") & 0xFFF
            if vlan and vlan not in self.vlans:
                return False
        if RxCommand.PROMISC in modes:
            return True
        destination = frame[:6]
        if destination == BROADCAST:
            return RxCommand.NOBCAST not in modes
        if destination[0] & 1:
            return RxCommand.NOMULTI not in modes and (RxCommand.ALLMULTI in modes or destination in self.multicast)
        return RxCommand.NOUNI not in modes and (
            RxCommand.ALLUNI in modes or destination == self.mac or destination in self.unicast)
