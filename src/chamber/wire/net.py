"""Network device: feature bits, configuration space, packet header, control commands (virtio 1.3, 5.1)."""

from __future__ import annotations

import enum
import struct
from typing import Final

from chamber.wire.layout import Field, Layout, Role

__all__ = (
    "ACK_ERR",
    "ACK_OK",
    "CONFIG",
    "CTRL",
    "CTRL_MAC_TABLE",
    "CTRL_MQ",
    "CTRL_OFFLOADS",
    "CTRL_VLAN",
    "HASH_TYPES",
    "HDR",
    "HDR_HASH",
    "HDR_SIZE",
    "HDR_STRUCT",
    "LEGACY_HDR_SIZE",
    "MAC_SIZE",
    "RSS",
    "AnnounceCommand",
    "CtrlClass",
    "GsoType",
    "HdrFlag",
    "MacCommand",
    "MqCommand",
    "NetFeature",
    "NetStatus",
    "OffloadsCommand",
    "RxCommand",
    "VlanCommand",
    "rx_queue",
    "tx_queue",
)

MAC_SIZE: Final = 6
HASH_TYPES: Final = 0x1FF
"""All hash types that the specification names (5.1.6.4.3)."""


class NetFeature(enum.IntEnum):
    """Feature bit numbers (5.1.3)."""

    CSUM = 0
    GUEST_CSUM = 1
    CTRL_GUEST_OFFLOADS = 2
    MTU = 3
    MAC = 5
    GUEST_TSO4 = 7
    GUEST_TSO6 = 8
    GUEST_ECN = 9
    GUEST_UFO = 10
    HOST_TSO4 = 11
    HOST_TSO6 = 12
    HOST_ECN = 13
    HOST_UFO = 14
    MRG_RXBUF = 15
    STATUS = 16
    CTRL_VQ = 17
    CTRL_RX = 18
    CTRL_VLAN = 19
    CTRL_RX_EXTRA = 20
    GUEST_ANNOUNCE = 21
    MQ = 22
    CTRL_MAC_ADDR = 23
    DEVICE_STATS = 50
    HASH_TUNNEL = 51
    VQ_NOTF_COAL = 52
    NOTF_COAL = 53
    GUEST_USO4 = 54
    GUEST_USO6 = 55
    HOST_USO = 56
    HASH_REPORT = 57
    GUEST_HDRLEN = 59
    RSS = 60
    RSC_EXT = 61
    STANDBY = 62
    SPEED_DUPLEX = 63


class NetStatus(enum.IntEnum):
    """``status`` in configuration space (5.1.4)."""

    LINK_UP = 1
    ANNOUNCE = 2


class HdrFlag(enum.IntEnum):
    """``flags`` of the packet header (5.1.6)."""

    NEEDS_CSUM = 1
    DATA_VALID = 2
    RSC_INFO = 4


class GsoType(enum.IntEnum):
    """``gso_type`` of the packet header (5.1.6); ECN is or-ed to a TCP type."""

    NONE = 0
    TCPV4 = 1
    UDP = 3
    TCPV6 = 4
    UDP_L4 = 5
    ECN = 0x80


CONFIG: Final = Layout(
    "virtio_net_config", "virtio 1.3, 5.1.4",
    Field("mac", "bytes:6", Role.BYTES, NetFeature.MAC),
    Field("status", "le16", Role.FLAGS, NetFeature.STATUS, range(4)),
    Field("max_virtqueue_pairs", "le16", Role.COUNT, NetFeature.MQ, range(1, 0x8001)),
    Field("mtu", "le16", Role.SIZE, NetFeature.MTU, range(68, 0x10000)),
    Field("speed", "le32", Role.VALUE, NetFeature.SPEED_DUPLEX, range(0x80000000)),
    Field("duplex", "u8", Role.ENUM, NetFeature.SPEED_DUPLEX, (0, 1, 0xFF)),
    # RSS or HASH_REPORT exposes the next three.
    Field("rss_max_key_size", "u8", Role.LENGTH, NetFeature.RSS, range(40, 0x100)),
    Field("rss_max_indirection_table_length", "le16", Role.LENGTH, NetFeature.RSS, range(128, 0x10000)),
    Field("supported_hash_types", "le32", Role.FLAGS, NetFeature.RSS, range(HASH_TYPES + 1)),
    Field("supported_tunnel_types", "le32", Role.FLAGS, NetFeature.HASH_TUNNEL),
)

_GSO_TYPES: Final = (GsoType.NONE, GsoType.TCPV4, GsoType.UDP, GsoType.TCPV6, GsoType.UDP_L4,
                     GsoType.TCPV4 | GsoType.ECN, GsoType.TCPV6 | GsoType.ECN)
_HDR_FIELDS: Final = (
    Field("flags", "u8", Role.FLAGS, None, range(8)),
    Field("gso_type", "u8", Role.ENUM, None, _GSO_TYPES),
    Field("hdr_len", "le16", Role.LENGTH),
    Field("gso_size", "le16", Role.SIZE),
    Field("csum_start", "le16", Role.OFFSET),
    Field("csum_offset", "le16", Role.OFFSET),
    Field("num_buffers", "le16", Role.COUNT, None, range(1, 1 << 16)),
)

HDR: Final = Layout("virtio_net_hdr", "virtio 1.3, 5.1.6", *_HDR_FIELDS)
"""What precedes every packet on receive and transmit queues under VERSION_1."""
HDR_SIZE: Final = HDR.size
LEGACY_HDR_SIZE: Final = HDR["num_buffers"].offset
"""Without VERSION_1 and MRG_RXBUF."""
HDR_STRUCT: Final = struct.Struct("<BBHHHHH")
"""The same as `HDR`: flags, gso_type, hdr_len, gso_size, csum_start, csum_offset, num_buffers."""
HDR_HASH: Final = Layout(
    "virtio_net_hdr_v1_hash", "virtio 1.3, 5.1.6", *_HDR_FIELDS,
    Field("hash_value", "le32", Role.VALUE, NetFeature.HASH_REPORT),
    Field("hash_report", "le16", Role.ENUM, NetFeature.HASH_REPORT, range(10)),
    Field("padding_reserved", "le16", Role.VALUE, NetFeature.HASH_REPORT, (0,)),
)
"""The header when HASH_REPORT was negotiated."""


class CtrlClass(enum.IntEnum):
    """``class`` of a control command (5.1.6.5)."""

    RX = 0
    MAC = 1
    VLAN = 2
    ANNOUNCE = 3
    MQ = 4
    GUEST_OFFLOADS = 5
    NOTF_COAL = 6
    STATS = 8


class RxCommand(enum.IntEnum):
    """Commands of class RX; each takes one byte, 0 or 1 (5.1.6.5.1)."""

    PROMISC = 0
    ALLMULTI = 1
    ALLUNI = 2
    NOMULTI = 3
    NOUNI = 4
    NOBCAST = 5


class MacCommand(enum.IntEnum):
    """Commands of class MAC (5.1.6.5.2)."""

    TABLE_SET = 0
    ADDR_SET = 1


class VlanCommand(enum.IntEnum):
    """Commands of class VLAN (5.1.6.5.3)."""

    ADD = 0
    DEL = 1


class AnnounceCommand(enum.IntEnum):
    """Commands of class ANNOUNCE (5.1.6.5.4)."""

    ACK = 0


class MqCommand(enum.IntEnum):
    """Commands of class MQ (5.1.6.5.5 to 5.1.6.5.7)."""

    VQ_PAIRS_SET = 0
    RSS_CONFIG = 1
    HASH_CONFIG = 2


class OffloadsCommand(enum.IntEnum):
    """Commands of class GUEST_OFFLOADS (5.1.6.5.8)."""

    SET = 0


ACK_OK: Final = 0
ACK_ERR: Final = 1

CTRL: Final = Layout(
    "virtio_net_ctrl", "virtio 1.3, 5.1.6.5",
    Field("class", "u8", Role.ENUM, None, tuple(CtrlClass)),
    Field("command", "u8", Role.ENUM),
)
"""What every control command starts with; its data follows, and one writable byte takes ACK_OK or ACK_ERR."""
CTRL_MAC_TABLE: Final = Layout(
    "virtio_net_ctrl_mac", "virtio 1.3, 5.1.6.5.2",
    Field("entries", "le32", Role.COUNT),
)
"""Start of a table of 6-byte addresses; TABLE_SET has two: unicast, then multicast."""
CTRL_VLAN: Final = Layout(
    "virtio_net_ctrl_vlan", "virtio 1.3, 5.1.6.5.3",
    Field("vlan_id", "le16", Role.ID, NetFeature.CTRL_VLAN, range(4096)),
)
CTRL_MQ: Final = Layout(
    "virtio_net_ctrl_mq", "virtio 1.3, 5.1.6.5.5",
    Field("virtqueue_pairs", "le16", Role.COUNT, NetFeature.MQ, range(1, 0x8001)),
)
CTRL_OFFLOADS: Final = Layout(
    "virtio_net_ctrl_guest_offloads", "virtio 1.3, 5.1.6.5.8",
    Field("offloads", "le64", Role.FLAGS, NetFeature.CTRL_GUEST_OFFLOADS),
)
RSS: Final = Layout(
    "virtio_net_rss_config", "virtio 1.3, 5.1.6.5.7.1",
    Field("hash_types", "le32", Role.FLAGS, NetFeature.RSS, range(HASH_TYPES + 1)),
    Field("indirection_table_mask", "le16", Role.SIZE, NetFeature.RSS),
    Field("unclassified_queue", "le16", Role.INDEX, NetFeature.RSS),
)
"""Start of an RSS configuration; table[mask + 1] of le16, max_tx_vq le16, hash_key_length u8 and the key follow."""


def rx_queue(pair: int) -> int:
    """Number of a pair's receive queue (5.1.2)."""
    return 2 * pair


def tx_queue(pair: int) -> int:
    """Number of a pair's transmit queue (5.1.2)."""
    return 2 * pair + 1
