"""Commands of the network device's control queue (virtio 1.3, 5.1.6.5)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from chamber.device.net_filter import TABLE_LIMIT, ReceiveFilter
from chamber.device.net_steering import RSS_HASH_TYPES, RSS_KEY_SIZE, RSS_TABLE_LIMIT, Rss, Steering
from chamber.wire.errors import WireError
from chamber.wire.net import (
    CTRL,
    CTRL_MAC_TABLE,
    CTRL_MQ,
    CTRL_OFFLOADS,
    CTRL_VLAN,
    MAC_SIZE,
    RSS,
    AnnounceCommand,
    CtrlClass,
    MacCommand,
    MqCommand,
    NetFeature,
    OffloadsCommand,
    RxCommand,
    VlanCommand,
)
from chamber.wire.virtio import bit

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ("COMMAND_LIMIT", "GUEST_OFFLOADS", "NetControl")

COMMAND_LIMIT: Final = CTRL.size + 2 * (CTRL_MAC_TABLE.size + MAC_SIZE * TABLE_LIMIT)
"""Bytes of the longest command that is carried out."""
GUEST_OFFLOADS: Final = bit(NetFeature.GUEST_CSUM, NetFeature.GUEST_TSO4, NetFeature.GUEST_TSO6)


class NetControl:
    """What the driver sets up by control commands.

    Args:
        mac: the device's address.
        max_pairs: queue pairs that there are.
        features: what was negotiated.

    Attributes:
        filter: which frames pass.
        steering: where they go.
        offloads: GUEST_ feature bits in force.
        announced: called when the driver has sent its announcements.
        offloads_changed: called with `offloads`.

    """

    def __init__(self, mac: bytes, max_pairs: int, features: int) -> None:
        self.filter = ReceiveFilter(mac, by_vlan=bool(features >> NetFeature.CTRL_VLAN & 1))
        self.steering = Steering()
        self.offloads = features & GUEST_OFFLOADS
        self.announced: Callable[[], None] = lambda: None
        self.offloads_changed: Callable[[int], None] = lambda _offloads: None
        self._max_pairs = max_pairs
        self._features = features
        self._classes: dict[int, tuple[int, Callable[[int, bytes], bool]]] = {
            CtrlClass.RX: (bit(NetFeature.CTRL_RX, NetFeature.CTRL_RX_EXTRA), self._rx),
            CtrlClass.MAC: (bit(NetFeature.CTRL_RX, NetFeature.CTRL_MAC_ADDR), self._mac),
            CtrlClass.VLAN: (bit(NetFeature.CTRL_VLAN), self._vlan),
            CtrlClass.ANNOUNCE: (bit(NetFeature.GUEST_ANNOUNCE), self._announce),
            CtrlClass.MQ: (bit(NetFeature.MQ, NetFeature.RSS), self._mq),
            CtrlClass.GUEST_OFFLOADS: (bit(NetFeature.CTRL_GUEST_OFFLOADS), self._offloads),
        }

    def command(self, data: bytes) -> bool:
        """Carry out a command; False if it cannot be, and nothing has changed then."""
        if not CTRL.size <= len(data) <= COMMAND_LIMIT:
            return False
        kind, command = data[0], data[1]
        needed, call = self._classes.get(kind, (0, None))
        if call is None or not self._features & needed:
            return False
        try:
            return call(command, data[CTRL.size:])
        except WireError:
            return False

    def _rx(self, command: int, data: bytes) -> bool:
        needed = NetFeature.CTRL_RX if command <= RxCommand.ALLMULTI else NetFeature.CTRL_RX_EXTRA
        if command > RxCommand.NOBCAST or len(data) != 1 or data[0] > 1 or not self._features >> needed & 1:
            return False
        if data[0]:
            self.filter.modes.add(RxCommand(command))
        else:
            self.filter.modes.discard(RxCommand(command))
        return True

    def _mac(self, command: int, data: bytes) -> bool:
        if command == MacCommand.ADDR_SET:
            if len(data) != MAC_SIZE or not self._features >> NetFeature.CTRL_MAC_ADDR & 1:
                return False
            self.filter.mac = data
            return True
        if command != MacCommand.TABLE_SET or not self._features >> NetFeature.CTRL_RX & 1:
            return False
        tables: list[frozenset[bytes]] = []
        for _ in range(2):
            entries = CTRL_MAC_TABLE.get(data, "entries")
            end = CTRL_MAC_TABLE.size + MAC_SIZE * entries
            if entries > TABLE_LIMIT or end > len(data):
                return False
            tables.append(frozenset(data[at:at + MAC_SIZE] for at in range(CTRL_MAC_TABLE.size, end, MAC_SIZE)))
            data = data[end:]
        if data:
            return False
        self.filter.unicast, self.filter.multicast = tables
        return True

    def _vlan(self, command: int, data: bytes) -> bool:
        vlan = CTRL_VLAN.get(data, "vlan_id")
        if len(data) != CTRL_VLAN.size or vlan > 0xFFF or self.filter.vlans is None:
            return False
        if command == VlanCommand.ADD:
            self.filter.vlans.add(vlan)
        elif command == VlanCommand.DEL:
            self.filter.vlans.discard(vlan)
        else:
            return False
        return True

    def _announce(self, command: int, data: bytes) -> bool:
        if command != AnnounceCommand.ACK or data:
            return False
        self.announced()
        return True

    def _mq(self, command: int, data: bytes) -> bool:
        if command == MqCommand.VQ_PAIRS_SET and self._features >> NetFeature.MQ & 1:
            pairs = CTRL_MQ.get(data, "virtqueue_pairs")
            if len(data) != CTRL_MQ.size or not 1 <= pairs <= self._max_pairs:
                return False
            self.steering.pairs, self.steering.rss = pairs, None
            return True
        if command == MqCommand.RSS_CONFIG and self._features >> NetFeature.RSS & 1:
            return self._rss(data)
        return False

    def _rss(self, data: bytes) -> bool:
        types, mask, unclassified = RSS.unpack(data).values()
        entries = mask + 1
        at = RSS.size + 2 * entries
        if entries & mask or entries > RSS_TABLE_LIMIT or types & ~RSS_HASH_TYPES or len(data) < at + 3:
            return False
        table = tuple(int.from_bytes(data[i:i + 2], "little") for i in range(RSS.size, at, 2))
        pairs = int.from_bytes(data[at:at + 2], "little")
        key = data[at + 3:]
        if (len(key) != data[at + 2] or len(key) > RSS_KEY_SIZE or not 1 <= pairs <= self._max_pairs
                or max(*table, unclassified) >= self._max_pairs):
            return False
        self.steering.pairs = pairs
        self.steering.rss = Rss(types, table, unclassified, key.ljust(RSS_KEY_SIZE, b"\0"))
        return True

    def _offloads(self, command: int, data: bytes) -> bool:
        offloads = CTRL_OFFLOADS.get(data, "offloads")
        if command != OffloadsCommand.SET or len(data) != CTRL_OFFLOADS.size:
            return False
        if offloads & ~(self._features & GUEST_OFFLOADS):
            return False
        self.offloads = offloads
        self.offloads_changed(offloads)
        return True
