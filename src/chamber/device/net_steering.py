"""Which queue pair receives a frame (virtio 1.3, 5.1.6.5.6 and 5.1.6.4.3)."""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass
from typing import Final

from chamber.wire.ethernet import EtherType, IpProtocol

__all__ = ("RSS_HASH_TYPES", "RSS_KEY_SIZE", "RSS_TABLE_LIMIT", "Rss", "Steering", "toeplitz")

RSS_KEY_SIZE: Final = 40
RSS_TABLE_LIMIT: Final = 128
RSS_HASH_TYPES: Final = 0x3F
"""IPv4, TCPv4, UDPv4, IPv6, TCPv6, UDPv6 (5.1.6.4.3.1)."""

_FLOWS: Final = 256
_TYPES: Final = struct.Struct(">H")
_PORTS: Final = {IpProtocol.TCP: 1, IpProtocol.UDP: 2}
"""Hash type bits above the one of the IP version."""


def toeplitz(key: bytes, data: bytes) -> int:
    """The Toeplitz hash, 32 bits; the key is 4 bytes longer than the data at least."""
    number = int.from_bytes(key, "big")
    top = 8 * len(key) - 32
    result = 0
    for i, byte in enumerate(data):
        for j in range(8):
            if byte >> (7 - j) & 1:
                result ^= number >> (top - 8 * i - j)
    return result & 0xFFFFFFFF


def _addresses(frame: bytes) -> tuple[int, bytes, bytes]:
    """Bit number of the hash type without ports, both addresses, and both ports of TCP or UDP; -1 if it is not IP."""
    (kind,) = _TYPES.unpack_from(frame, 12)
    if kind == EtherType.IPV4 and len(frame) >= 34:
        end = 14 + 4 * (frame[14] & 15)
        protocol, addresses, first = frame[23], frame[26:34], 0
        if frame[20:22] not in {b"\0\0", b"\x40\0"}:
            return first, addresses, b""  # a fragment
    elif kind == EtherType.IPV6 and len(frame) >= 54:
        end, protocol, addresses, first = 54, frame[20], frame[22:54], 3
    else:
        return -1, b"", b""
    ports = frame[end:end + 4] if protocol in {IpProtocol.TCP, IpProtocol.UDP} else b""
    return first, addresses, ports if len(ports) == 4 else b""


@dataclass(frozen=True, slots=True)
class Rss:
    """A receive-side scaling configuration (5.1.6.5.7).

    Attributes:
        hash_types: what may be hashed.
        table: pair by hash; a power of 2 long.
        unclassified: pair for what is not hashed.
        key: of the Toeplitz hash, `RSS_KEY_SIZE` bytes.

    """

    hash_types: int
    table: tuple[int, ...]
    unclassified: int
    key: bytes

    def pair(self, frame: bytes) -> int:
        """The pair for a frame."""
        first, addresses, ports = _addresses(frame)
        if first < 0:
            return self.unclassified
        protocol = frame[23] if first == 0 else frame[20]
        if ports and self.hash_types >> first + _PORTS[IpProtocol(protocol)] & 1:
            data = addresses + ports
        elif self.hash_types >> first & 1:
            data = addresses
        else:
            return self.unclassified
        return self.table[toeplitz(self.key, data) & len(self.table) - 1]


class Steering:
    """Sends the answers of a flow to the pair that the flow was sent from, or where RSS says.

    Attributes:
        pairs: how many pairs the driver uses.
        rss: its configuration, if RSS is on.

    """

    def __init__(self) -> None:
        self.pairs = 1
        self.rss: Rss | None = None
        self._flows: list[int] = [0] * _FLOWS

    def sent(self, frame: bytes, pair: int) -> None:
        """Remember where a frame of the driver came from."""
        if self.pairs > 1 and len(frame) >= 14:
            self._flows[self._flow(frame)] = pair

    def pair(self, frame: bytes) -> int:
        """The pair that receives a frame, which is an Ethernet header at least; it may be none of those in use."""
        if self.rss is not None:
            return self.rss.pair(frame)
        return self._flows[self._flow(frame)] if self.pairs > 1 else 0

    @staticmethod
    def _flow(frame: bytes) -> int:
        """A number that is the same for both directions of a flow."""
        first, addresses, ports = _addresses(frame)
        if first < 0:
            return 0
        half = len(addresses) // 2
        ends = sorted((addresses[:half] + ports[:2], addresses[half:] + ports[2:]))
        return zlib.crc32(b"".join(ends)) % _FLOWS
