"""A guest's network stack, as small as will do: address resolution, echo both ways, datagrams."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Final

from chamber.guest.driver import DeviceTimeout
from chamber.wire.errors import WireError
from chamber.wire.ethernet import (
    BROADCAST,
    Arp,
    Ethernet,
    EtherType,
    IcmpEcho,
    IpProtocol,
    Ipv4,
    Udp,
    internet_checksum,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from chamber.guest.drivers.net import NetDriver
    from chamber.guest.machine import GuestMachine

__all__ = ("Stack",)

_GUEST: Final = bytes([10, 99, 0, 2])
_PEER: Final = bytes([10, 99, 0, 1])
_ECHO: Final = 7
_PORT: Final = 40000
_SECONDS: Final = 1.0
_ICMP: Final = 8
_IDENT: Final = 99


class Stack:
    """Sends and answers on one interface.

    What comes in is parsed strictly, but like any stack it answers an echo request with as many bytes as the packet
    says that it has: if the driver lets a length pass that the device made up, memory that nobody wrote goes with it.
    """

    def __init__(self, driver: NetDriver, machine: GuestMachine) -> None:
        self._driver = driver
        self._machine = machine
        self._peer_mac = BROADCAST
        self._dice = random.Random(3)  # noqa: S311 - test data
        self._sequence = 0

    def _until(self, found: Callable[[Ethernet], bytes | None], what: str) -> bytes:
        """Handle frames until `found` makes something of one."""
        answer: list[bytes] = []

        def arrived() -> bool:
            while not answer and (received := self._driver.receive()) is not None:
                raw, vouched = received
                try:
                    frame = Ethernet.parse(raw)
                    self._respond(frame, vouched=vouched)
                    got = found(frame)
                except WireError:
                    continue  # what can't be parsed is dropped, as ever
                if got is not None:
                    answer.append(got)
            return bool(answer) or self._driver.dead

        self._machine.wait(arrived, _SECONDS)
        if not answer:
            self._driver.raise_if_dead()
            raise DeviceTimeout(f"no answer to {what}")
        return answer[0]

    def _respond(self, frame: Ethernet, *, vouched: bool) -> None:
        if frame.ethertype == EtherType.ARP:
            arp = Arp.parse(frame.payload)
            if arp.operation == Arp.REQUEST and arp.target_ip == _GUEST:
                answer = Arp(Arp.REPLY, self._driver.mac, _GUEST, arp.sender_mac, arp.sender_ip)
                self._driver.send(Ethernet(frame.source, self._driver.mac, EtherType.ARP, answer.build()).build())
        elif frame.ethertype == EtherType.IPV4:
            ip = Ipv4.parse(frame.payload)
            if ip.protocol != IpProtocol.ICMP or ip.destination != _GUEST or len(ip.payload) < _ICMP:
                return
            if ip.payload[0] == IcmpEcho.REQUEST and (vouched or not internet_checksum(ip.payload)):
                ident, sequence = (int.from_bytes(ip.payload[at:at + 2], "big") for at in (4, 6))
                back = IcmpEcho(IcmpEcho.REPLY, ident, sequence, ip.payload[_ICMP:])
                self._send_ip(IpProtocol.ICMP, back.build())

    def _send_ip(self, protocol: IpProtocol, payload: bytes) -> None:
        packet = Ipv4(_GUEST, _PEER, protocol, payload).build()
        self._driver.send(Ethernet(self._peer_mac, self._driver.mac, EtherType.IPV4, packet).build())

    def resolve(self) -> None:
        """Learn the peer's hardware address."""
        request = Arp(Arp.REQUEST, self._driver.mac, _GUEST, bytes(6), _PEER)
        self._driver.send(Ethernet(BROADCAST, self._driver.mac, EtherType.ARP, request.build()).build())

        def found(frame: Ethernet) -> bytes | None:
            if frame.ethertype != EtherType.ARP:
                return None
            arp = Arp.parse(frame.payload)
            return arp.sender_mac if arp.operation == Arp.REPLY and arp.sender_ip == _PEER else None

        self._peer_mac = self._until(found, "address resolution")

    def ping(self, size: int) -> tuple[bytes, bytes]:
        """Send an echo request; return what came back, and what should."""
        self._sequence += 1
        sequence, payload = self._sequence, self._dice.randbytes(size)
        request = IcmpEcho(IcmpEcho.REQUEST, _IDENT, sequence, payload)
        self._send_ip(IpProtocol.ICMP, request.build())

        def found(frame: Ethernet) -> bytes | None:
            if frame.ethertype != EtherType.IPV4:
                return None
            ip = Ipv4.parse(frame.payload)
            if ip.protocol != IpProtocol.ICMP or ip.source != _PEER:
                return None
            echo = IcmpEcho.parse(ip.payload)
            ours = (echo.type, echo.identifier, echo.sequence) == (IcmpEcho.REPLY, _IDENT, sequence)
            return echo.payload if ours else None

        return self._until(found, "a ping"), payload

    def datagram(self, size: int) -> tuple[bytes, bytes]:
        """Send a datagram to the echo port; return what came back, and what should."""
        payload = self._dice.randbytes(size)
        self._send_ip(IpProtocol.UDP, Udp(_PORT, _ECHO, payload).build(_GUEST, _PEER))

        def found(frame: Ethernet) -> bytes | None:
            if frame.ethertype != EtherType.IPV4:
                return None
            ip = Ipv4.parse(frame.payload)
            if ip.protocol != IpProtocol.UDP or ip.source != _PEER:
                return None
            udp = Udp.parse(ip)
            return udp.payload if udp.destination_port == _PORT else None

        return self._until(found, "a datagram"), payload
