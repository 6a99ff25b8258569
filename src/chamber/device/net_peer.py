"""A host on the other end of the wire, without any network: answers ARP, ping, and echo on port 7 over UDP and TCP."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Final

from chamber.device.fragments import Reassembly, fragment
from chamber.device.net_backend import NetBackend, PacketHeader
from chamber.wire.errors import WireError
from chamber.wire.ethernet import (
    Arp,
    Ethernet,
    EtherType,
    IcmpEcho,
    IpProtocol,
    Ipv4,
    Tcp,
    TcpFlag,
    Udp,
    internet_checksum,
)
from chamber.wire.net import HdrFlag

__all__ = ("ECHO_PORT", "GUEST_IP", "PEER_IP", "PEER_MAC", "NetPeer", "complete_checksum")

PEER_IP: Final = bytes((10, 99, 0, 1))
PEER_MAC: Final = bytes.fromhex("525400636801")
GUEST_IP: Final = bytes((10, 99, 0, 2))
"""The address that a guest is meant to give itself, with a prefix of 24 bits; the peer answers any."""
ECHO_PORT: Final = 7

_CONNECTIONS: Final = 64
_WINDOW: Final = 0xFFFF
_FIRST_SEQUENCE: Final = 0x63680000
_HEADERS: Final = 40
"""Bytes of an IPv4 and a TCP header without options."""


def complete_checksum(frame: bytes, header: PacketHeader) -> bytes:
    """Finish a checksum that the guest left to the device (virtio 1.3, 5.1.6.2).

    The field holds the sum over the pseudo header; the one's complement sum from csum_start on replaces it.

    Raises:
        WireError: the checksum would lie outside of the frame.

    """
    if not header.flags & HdrFlag.NEEDS_CSUM:
        return frame
    start, at = header.csum_start, header.csum_start + header.csum_offset
    if at + 2 > len(frame):
        raise WireError("a checksum lies within the frame", spec="virtio 1.3, 5.1.6.2",
                        detail=f"{at} + 2 of {len(frame)}")
    checksum = internet_checksum(frame[start:]) or 0xFFFF
    return frame[:at] + checksum.to_bytes(2, "big") + frame[at + 2:]


@dataclass(slots=True)
class _Connection:
    """One TCP connection; the guest has opened it, and all that it sends goes back."""

    mss: int
    receive_next: int
    window: int
    send_next: int = _FIRST_SEQUENCE + 1
    unacknowledged: int = _FIRST_SEQUENCE
    unsent: bytearray = field(default_factory=bytearray)
    guest_done: bool = False
    done: bool = False


class NetPeer(NetBackend):
    """The peer. It knows no time and sends nothing again: the wire loses nothing while the guest takes what it is sent.

    Args:
        mac: the peer's Ethernet address.
        ip: its IPv4 address.
        mtu: largest IPv4 packet that it sends.

    Attributes:
        refused: what was wrong with frames that were not taken, the last 100.
        taken: count of frames that were.

    """

    def __init__(self, *, mac: bytes = PEER_MAC, ip: bytes = PEER_IP, mtu: int = 1500) -> None:
        super().__init__()
        self.mac = mac
        self.ip = ip
        self.mtu = mtu
        self.refused: list[str] = []
        self.taken = 0
        self._reassembly = Reassembly()
        self._connections: OrderedDict[tuple[bytes, int], _Connection] = OrderedDict()

    def inject(self, frame: bytes, header: PacketHeader | None = None) -> None:
        """Send the guest a frame of the caller's own making."""
        self.receive(frame, PacketHeader() if header is None else header)

    def transmit(self, frame: bytes, header: PacketHeader) -> None:
        """Take a frame from the guest and answer it."""
        try:
            ethernet = Ethernet.parse(complete_checksum(frame, header))
            if ethernet.ethertype == EtherType.ARP:
                self._arp(ethernet)
            elif ethernet.ethertype == EtherType.IPV4:
                self._ipv4(ethernet.source, Ipv4.parse(ethernet.payload))
            self.taken += 1
        except WireError as error:
            self.refused = [*self.refused[-99:], str(error)]

    def _send(self, destination: bytes, ethertype: int, payload: bytes) -> None:
        self.inject(Ethernet(destination, self.mac, ethertype, payload).build())

    def _arp(self, ethernet: Ethernet) -> None:
        arp = Arp.parse(ethernet.payload)
        if arp.operation == Arp.REQUEST and arp.target_ip == self.ip:
            self._send(ethernet.source, EtherType.ARP,
                       Arp(Arp.REPLY, self.mac, self.ip, arp.sender_mac, arp.sender_ip).build())

    def _ipv4(self, mac: bytes, part: Ipv4) -> None:
        packet = self._reassembly.take(part) if part.destination == self.ip else None
        if packet is None:
            return
        answer: bytes
        if packet.protocol == IpProtocol.ICMP:
            echo = IcmpEcho.parse(packet.payload)
            if echo.type != IcmpEcho.REQUEST:
                return
            answer = IcmpEcho(IcmpEcho.REPLY, echo.identifier, echo.sequence, echo.payload).build()
        elif packet.protocol == IpProtocol.UDP:
            datagram = Udp.parse(packet)
            if datagram.destination_port != ECHO_PORT:
                return
            answer = Udp(ECHO_PORT, datagram.source_port, datagram.payload).build(self.ip, packet.source)
        elif packet.protocol == IpProtocol.TCP:
            self._tcp(mac, packet.source, Tcp.parse(packet))
            return
        else:
            return
        whole = Ipv4(self.ip, packet.source, packet.protocol, answer, packet.identification)
        for piece in fragment(whole, self.mtu):
            self._send(mac, EtherType.IPV4, piece.build())

    # TCP (RFC 9293): the passive side of an echo service.

    def _tcp(self, mac: bytes, ip: bytes, segment: Tcp) -> None:
        key = (ip, segment.source_port)
        if segment.flags & TcpFlag.RST:
            self._connections.pop(key, None)
            return
        if segment.flags & TcpFlag.SYN and segment.destination_port == ECHO_PORT:
            self._accept(mac, ip, segment)
            return
        connection = self._connections.get(key)
        if connection is None or segment.destination_port != ECHO_PORT:
            self._reset(mac, ip, segment)
            return
        moved = self._take(connection, segment)
        sent = self._flush(mac, ip, segment.source_port, connection)
        if connection.done and connection.unacknowledged == connection.send_next:
            del self._connections[key]
        elif moved and not sent:
            self._segment(mac, ip, segment.source_port, connection, TcpFlag.ACK)

    def _accept(self, mac: bytes, ip: bytes, segment: Tcp) -> None:
        mss = min(segment.mss or 536, self.mtu - _HEADERS)
        connection = _Connection(max(mss, 1), segment.sequence + 1 & 0xFFFFFFFF, segment.window)
        self._connections[ip, segment.source_port] = connection
        if len(self._connections) > _CONNECTIONS:
            self._connections.popitem(last=False)
        answer = Tcp(ECHO_PORT, segment.source_port, _FIRST_SEQUENCE, connection.receive_next,
                     TcpFlag.SYN | TcpFlag.ACK, _WINDOW, mss=self.mtu - _HEADERS)
        self._send(mac, EtherType.IPV4, Ipv4(self.ip, ip, IpProtocol.TCP, answer.build(self.ip, ip)).build())

    def _reset(self, mac: bytes, ip: bytes, segment: Tcp) -> None:
        if segment.flags & TcpFlag.ACK:
            sequence, flags = segment.acknowledgment, int(TcpFlag.RST)
        else:
            sequence, flags = 0, TcpFlag.RST | TcpFlag.ACK
        length = len(segment.payload) + bool(segment.flags & TcpFlag.SYN) + bool(segment.flags & TcpFlag.FIN)
        answer = Tcp(segment.destination_port, segment.source_port, sequence, segment.sequence + length, flags, 0)
        self._send(mac, EtherType.IPV4, Ipv4(self.ip, ip, IpProtocol.TCP, answer.build(self.ip, ip)).build())

    @staticmethod
    def _take(connection: _Connection, segment: Tcp) -> bool:
        """Take acknowledgment and data of a segment; return whether it calls for an acknowledgment."""
        if segment.flags & TcpFlag.ACK:
            outstanding = connection.send_next - connection.unacknowledged & 0xFFFFFFFF
            if segment.acknowledgment - connection.unacknowledged & 0xFFFFFFFF <= outstanding:
                connection.unacknowledged = segment.acknowledgment
                connection.window = segment.window
        length = len(segment.payload) + bool(segment.flags & TcpFlag.FIN)
        # What was taken before may come again in front of what is new.
        known = connection.receive_next - segment.sequence & 0xFFFFFFFF
        if known <= length and not connection.guest_done:
            fresh = segment.payload[known:][:_WINDOW - len(connection.unsent)]
            connection.unsent += fresh
            connection.receive_next = connection.receive_next + len(fresh) & 0xFFFFFFFF
            if segment.flags & TcpFlag.FIN and known + len(fresh) == len(segment.payload):
                connection.receive_next = connection.receive_next + 1 & 0xFFFFFFFF
                connection.guest_done = True
        # A segment of nothing at an old place asks whether we are still there.
        return length > 0 or known != 0

    def _flush(self, mac: bytes, ip: bytes, port: int, connection: _Connection) -> bool:
        """Send back what the guest's window has room for, and FIN when all is sent; return whether anything was."""
        sent = False
        while connection.unsent:
            flying = connection.send_next - connection.unacknowledged & 0xFFFFFFFF
            room = min(connection.window - flying, connection.mss, len(connection.unsent))
            if room <= 0:
                return sent
            data = bytes(connection.unsent[:room])
            del connection.unsent[:room]
            self._segment(mac, ip, port, connection, TcpFlag.ACK | TcpFlag.PSH, data)
            sent = True
        if connection.guest_done and not connection.done:
            connection.done = True
            self._segment(mac, ip, port, connection, TcpFlag.ACK | TcpFlag.FIN)
            connection.send_next = connection.send_next + 1 & 0xFFFFFFFF
            return True
        return sent

    def _segment(self, mac: bytes, ip: bytes, port: int, connection: _Connection, flags: int,
                 data: bytes = b"") -> None:
        segment = Tcp(ECHO_PORT, port, connection.send_next, connection.receive_next, flags,
                      _WINDOW - len(connection.unsent), data)
        connection.send_next = connection.send_next + len(data) & 0xFFFFFFFF
        self._send(mac, EtherType.IPV4, Ipv4(self.ip, ip, IpProtocol.TCP, segment.build(self.ip, ip)).build())
