"""The few frames that a network test needs: Ethernet, ARP, IPv4, ICMP echo, TCP and UDP.

Every ``parse`` takes bytes from a peer and returns a value or raises `WireError`; every ``build`` fills in lengths and
checksums. Addresses are raw bytes: 6 of a MAC address, 4 of an IPv4 address.
"""

from __future__ import annotations

import enum
import struct
from dataclasses import dataclass
from typing import Final, Self

from chamber.wire.errors import WireError

__all__ = (
    "BROADCAST",
    "Arp",
    "EtherType",
    "Ethernet",
    "IcmpEcho",
    "IpProtocol",
    "Ipv4",
    "Tcp",
    "TcpFlag",
    "Udp",
    "internet_checksum",
)

BROADCAST: Final = b"\xff" * 6

_ETHERNET: Final = struct.Struct(">6s6sH")
_ARP: Final = struct.Struct(">HHBBH6s4s6s4s")
_IPV4: Final = struct.Struct(">BBHHHBBH4s4s")
_ICMP: Final = struct.Struct(">BBHHH")
_UDP: Final = struct.Struct(">HHHH")
_TCP: Final = struct.Struct(">HHIIBBHHH")
_MSS: Final = struct.Struct(">BBH")
_DONT_FRAGMENT: Final = 0x4000
_MORE_FRAGMENTS: Final = 0x2000
_PSEUDO: Final = struct.Struct(">4s4sBBH")


class EtherType(enum.IntEnum):
    """What an Ethernet frame carries."""

    IPV4 = 0x0800
    ARP = 0x0806
    VLAN = 0x8100
    IPV6 = 0x86DD


class IpProtocol(enum.IntEnum):
    """What an IPv4 packet carries."""

    ICMP = 1
    TCP = 6
    UDP = 17


class TcpFlag(enum.IntEnum):
    """Control bits of a TCP segment."""

    FIN = 1
    SYN = 2
    RST = 4
    PSH = 8
    ACK = 16
    URG = 32


def internet_checksum(*parts: bytes | bytearray | memoryview) -> int:
    """The checksum of RFC 1071 over the parts, each but the last of even length; 0 over data that holds a right one."""
    data = b"".join(parts)
    if len(data) & 1:
        data += b"\0"
    # 2**16 is 1 modulo 2**16 - 1, so the remainder of the whole number is the one's complement sum of its 16-bit words.
    number = int.from_bytes(data, "big")
    total = number % 0xFFFF
    if not total and number:
        total = 0xFFFF
    return 0xFFFF - total


def _pseudo_header(source: bytes, destination: bytes, protocol: int, length: int) -> bytes:
    return _PSEUDO.pack(source, destination, 0, protocol, length & 0xFFFF)


@dataclass(frozen=True, slots=True)
class Ethernet:
    """An Ethernet II frame without its check sequence."""

    destination: bytes
    source: bytes
    ethertype: int
    payload: bytes

    @classmethod
    def parse(cls, frame: bytes) -> Self:
        """Take a frame apart."""
        if len(frame) < _ETHERNET.size:
            raise WireError("an Ethernet header is 14 bytes", spec="IEEE 802.3, 3.1.1", detail=f"{len(frame)} bytes")
        destination, source, ethertype = _ETHERNET.unpack_from(frame)
        return cls(destination, source, ethertype, frame[_ETHERNET.size:])

    def build(self) -> bytes:
        """The frame's bytes; not padded to 60, as virtio needs no minimum."""
        return _ETHERNET.pack(self.destination, self.source, self.ethertype) + self.payload


@dataclass(frozen=True, slots=True)
class Arp:
    """An ARP packet for Ethernet and IPv4 (RFC 826)."""

    REQUEST = 1
    REPLY = 2

    operation: int
    sender_mac: bytes
    sender_ip: bytes
    target_mac: bytes
    target_ip: bytes

    @classmethod
    def parse(cls, payload: bytes) -> Self:
        """Take an Ethernet payload apart."""
        if len(payload) < _ARP.size:
            raise WireError("an ARP packet is 28 bytes", spec="RFC 826", detail=f"{len(payload)} bytes")
        hardware, protocol, hlen, plen, operation, sha, spa, tha, tpa = _ARP.unpack_from(payload)
        if (hardware, protocol, hlen, plen) != (1, EtherType.IPV4, 6, 4):
            raise WireError("ARP maps IPv4 to Ethernet addresses", spec="RFC 826")
        return cls(operation, sha, spa, tha, tpa)

    def build(self) -> bytes:
        """The packet's bytes."""
        return _ARP.pack(1, EtherType.IPV4, 6, 4, self.operation, self.sender_mac, self.sender_ip, self.target_mac,
                         self.target_ip)


@dataclass(frozen=True, slots=True)
class Ipv4:
    """An IPv4 packet (RFC 791), or a fragment of one. Options are skipped.

    Attributes:
        source: address.
        destination: address.
        protocol: what the payload is.
        payload: behind the header.
        identification: the same for all fragments of a packet.
        ttl: time to live.
        offset: of a fragment's payload in that of the packet, in bytes; a multiple of 8.
        more: whether further fragments follow.

    """

    source: bytes
    destination: bytes
    protocol: int
    payload: bytes
    identification: int = 0
    ttl: int = 64
    offset: int = 0
    more: bool = False

    @classmethod
    def parse(cls, packet: bytes) -> Self:
        """Take an Ethernet payload apart; padding behind the packet is dropped."""
        if len(packet) < _IPV4.size:
            raise WireError("an IPv4 header is at least 20 bytes", spec="RFC 791, 3.1", detail=f"{len(packet)} bytes")
        first, _, total, identification, fragment, ttl, protocol, _, source, destination = _IPV4.unpack_from(packet)
        header = 4 * (first & 15)
        if first >> 4 != 4:
            raise WireError("the version of IPv4 is 4", spec="RFC 791, 3.1", detail=str(first >> 4))
        if not _IPV4.size <= header <= total <= len(packet):
            raise WireError("header length, total length and packet agree", spec="RFC 791, 3.1",
                            detail=f"{header}, {total}, {len(packet)}")
        if internet_checksum(packet[:header]):
            raise WireError("the header checksum is right", spec="RFC 791, 3.1")
        return cls(source, destination, protocol, packet[header:total], identification, ttl,
                   8 * (fragment & 0x1FFF), bool(fragment & _MORE_FRAGMENTS))

    def build(self) -> bytes:
        """The packet's bytes, header checksum included.

        Raises:
            WireError: the payload is too long for one packet.

        """
        total = _IPV4.size + len(self.payload)
        if total > 0xFFFF:
            raise WireError("an IPv4 packet is at most 65,535 bytes", spec="RFC 791, 3.1", detail=str(total))
        fragment = self.offset // 8 | (_MORE_FRAGMENTS if self.more else 0) or _DONT_FRAGMENT
        header = bytearray(_IPV4.pack(0x45, 0, total, self.identification, fragment, self.ttl, self.protocol, 0,
                                      self.source, self.destination))
        header[10:12] = internet_checksum(header).to_bytes(2, "big")
        return bytes(header) + self.payload


@dataclass(frozen=True, slots=True)
class IcmpEcho:
    """An ICMP echo request or reply (RFC 792)."""

    REPLY = 0
    REQUEST = 8

    type: int
    identifier: int
    sequence: int
    payload: bytes

    @classmethod
    def parse(cls, packet: bytes) -> Self:
        """Take an IPv4 payload apart."""
        if len(packet) < _ICMP.size:
            raise WireError("an ICMP echo is at least 8 bytes", spec="RFC 792", detail=f"{len(packet)} bytes")
        kind, code, _, identifier, sequence = _ICMP.unpack_from(packet)
        if kind not in {cls.REPLY, cls.REQUEST} or code:
            raise WireError("only echo requests and replies are taken", spec="RFC 792", detail=f"type {kind}")
        if internet_checksum(packet):
            raise WireError("the ICMP checksum is right", spec="RFC 792")
        return cls(kind, identifier, sequence, packet[_ICMP.size:])

    def build(self) -> bytes:
        """The message's bytes, checksum included."""
        header = bytearray(_ICMP.pack(self.type, 0, 0, self.identifier, self.sequence))
        header[2:4] = internet_checksum(header, self.payload).to_bytes(2, "big")
        return bytes(header) + self.payload


@dataclass(frozen=True, slots=True)
class Udp:
    """A UDP datagram (RFC 768)."""

    source_port: int
    destination_port: int
    payload: bytes

    @classmethod
    def parse(cls, ip: Ipv4) -> Self:
        """Take an IPv4 packet's payload apart; a checksum of zero means that there is none."""
        data = ip.payload
        if len(data) < _UDP.size:
            raise WireError("a UDP header is 8 bytes", spec="RFC 768", detail=f"{len(data)} bytes")
        source, destination, length, checksum = _UDP.unpack_from(data)
        if not _UDP.size <= length <= len(data):
            raise WireError("the UDP length lies within the packet", spec="RFC 768", detail=f"{length} of {len(data)}")
        data = data[:length]
        if checksum and internet_checksum(_pseudo_header(ip.source, ip.destination, IpProtocol.UDP, length), data):
            raise WireError("the UDP checksum is right", spec="RFC 768")
        return cls(source, destination, data[_UDP.size:])

    def build(self, source: bytes, destination: bytes) -> bytes:
        """The datagram's bytes, checksum included, for these two IPv4 addresses."""
        length = _UDP.size + len(self.payload)
        header = bytearray(_UDP.pack(self.source_port, self.destination_port, length, 0))
        pseudo = _pseudo_header(source, destination, IpProtocol.UDP, length)
        header[6:8] = (internet_checksum(pseudo, header, self.payload) or 0xFFFF).to_bytes(2, "big")
        return bytes(header) + self.payload


def _mss(options: bytes) -> int:
    """The maximum segment size among TCP options; 0 if it is not there."""
    at = 0
    while at < len(options) and options[at]:
        if options[at] == 1:
            at += 1
            continue
        length = options[at + 1] if at + 1 < len(options) else 0
        if length < 2 or at + length > len(options):
            raise WireError("a TCP option lies within the header", spec="RFC 9293, 3.1")
        if options[at] == 2 and length == _MSS.size:
            return int.from_bytes(options[at + 2:at + 4], "big")
        at += length
    return 0


@dataclass(frozen=True, slots=True)
class Tcp:
    """A TCP segment (RFC 9293). Of the options only the maximum segment size is known; 0 stands for none."""

    source_port: int
    destination_port: int
    sequence: int
    acknowledgment: int
    flags: int
    window: int = 0xFFFF
    payload: bytes = b""
    mss: int = 0

    @classmethod
    def parse(cls, ip: Ipv4) -> Self:
        """Take an IPv4 packet's payload apart."""
        data = ip.payload
        if len(data) < _TCP.size:
            raise WireError("a TCP header is at least 20 bytes", spec="RFC 9293, 3.1", detail=f"{len(data)} bytes")
        source, destination, sequence, acknowledgment, offset, flags, window, _, _ = _TCP.unpack_from(data)
        header = 4 * (offset >> 4)
        if not _TCP.size <= header <= len(data):
            raise WireError("the data offset lies within the segment", spec="RFC 9293, 3.1",
                            detail=f"{header} of {len(data)}")
        if internet_checksum(_pseudo_header(ip.source, ip.destination, IpProtocol.TCP, len(data)), data):
            raise WireError("the TCP checksum is right", spec="RFC 9293, 3.1")
        return cls(source, destination, sequence, acknowledgment, flags & 0x3F, window, data[header:],
                   _mss(data[_TCP.size:header]))

    def build(self, source: bytes, destination: bytes) -> bytes:
        """The segment's bytes, checksum included, for these two IPv4 addresses."""
        options = _MSS.pack(2, 4, self.mss) if self.mss else b""
        words = (_TCP.size + len(options)) // 4
        header = bytearray(_TCP.pack(self.source_port, self.destination_port, self.sequence & 0xFFFFFFFF,
                                     self.acknowledgment & 0xFFFFFFFF, words << 4, self.flags, self.window, 0, 0))
        header += options
        pseudo = _pseudo_header(source, destination, IpProtocol.TCP, len(header) + len(self.payload))
        header[16:18] = internet_checksum(pseudo, header, self.payload).to_bytes(2, "big")
        return bytes(header) + self.payload
