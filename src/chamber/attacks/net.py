"""Lies in the network device's own protocol: packet headers, configuration events, the control queue, receive modes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from chamber.attacks.attack import Aim, Attack, AttackSpec, Surface
from chamber.attacks.config import ConfigLie
from chamber.attacks.ring import UsedLie, used_lie
from chamber.wire.net import CONFIG, HDR, GsoType, HdrFlag, NetFeature, NetStatus
from chamber.wire.virtio import DeviceType, bit

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from chamber.device.chain import Chain
    from chamber.device.queue import DeviceQueue

__all__ = ("net_attacks",)

_CSUM: Final = HdrFlag.NEEDS_CSUM
_TCP_CSUM: Final = {"flags": _CSUM, "csum_start": 34, "csum_offset": 16}
"""The checksum of TCP or, at another offset, of what else follows an IPv4 header without options."""
_UDP_CSUM: Final = {"flags": _CSUM, "csum_start": 34, "csum_offset": 6}


class HeaderLie(Attack):
    """Changes the header of each packet that the guest receives.

    Args:
        fields: values by field name.
        corrupt: also change a byte of the packet itself.

    """

    def __init__(self, fields: Mapping[str, int], *, corrupt: bool = False) -> None:
        super().__init__()
        self._fields = fields
        self._corrupt = corrupt
        self._left = 100
        self._continued = 0

    def used(self, queue: DeviceQueue, chain: Chain, length: int) -> Iterable[tuple[int, int]]:
        """Rewrite the header before the driver sees it."""
        honest = ((chain.head, length),)
        if self.device.queue_role(queue.index) != "rx":
            return honest
        if self._continued:
            self._continued -= 1
            return honest
        if length < HDR.size or not self._left:
            return honest
        spans = chain.spans(chain.writable, 0, HDR.size)
        header = bytearray(b"".join(chain.dma.read(a, n) for a, n in spans))
        self._continued = max(HDR.get(header, "num_buffers") - 1, 0)
        for name, value in self._fields.items():
            HDR.put(header, name, value)
        chain.write(header)
        self._left -= 1
        if self._corrupt and length > HDR.size:
            at, size = chain.spans(chain.writable, length - 1, 1)[0]
            chain.dma.write(at, bytes(b ^ 0x01 for b in chain.dma.read(at, size)))
        self.strike(f"queue {queue.index}: packet of {length - HDR.size} bytes with header {HDR.unpack(header)}")
        return honest


class CtrlAck(Attack):
    """Answers control commands with another acknowledgement than the true one.

    Args:
        value: what to write.

    """

    def __init__(self, value: int) -> None:
        super().__init__()
        self._value = value

    def used(self, queue: DeviceQueue, chain: Chain, length: int) -> Iterable[tuple[int, int]]:
        """Rewrite the last byte."""
        if chain.writable_size and self.device.queue_role(queue.index) == "ctrl":
            command = chain.read(0, 2).hex()
            chain.write(bytes((self._value,)), chain.writable_size - 1)
            self.strike(f"control command {command} acknowledged with {self._value}")
        return ((chain.head, length),)


class Events(Attack):
    """Changes configuration at run time again and again, and says so.

    Args:
        rounds: values by field, one set after the other, and round again; none of them stands for the truth.
        count: changes in all.
        interrupts: interrupts for each.
        features: feature bits to offer more.

    """

    def __init__(self, rounds: tuple[Mapping[str, int | bytes], ...], *, count: int = 60, interrupts: int = 1,
                 features: int = 0) -> None:
        super().__init__()
        self._rounds = rounds
        self._count = count
        self._interrupts = interrupts
        self._more = features
        self._done = 0

    def features(self, offered: int) -> int:
        """Offer what exposes the fields."""
        return offered | self._more

    def config(self, config: bytearray, offset: int, size: int) -> bytearray:  # noqa: ARG002 - the hook's signature
        """Serve the round's values."""
        config.extend(bytes(max(CONFIG.size - len(config), 0)))
        if 0 < self._done < self._count:
            for name, value in self._rounds[self._done % len(self._rounds)].items():
                CONFIG.put(config, name, value)
        return config

    def generation(self, generation: int) -> int:
        """Change with each round."""
        return generation + self._done & 0xFF

    def driver_ok(self) -> None:
        """Begin, at each start of the driver until the count is reached."""
        self._next()

    def _next(self) -> None:
        if self._done >= self._count or not any(queue.started for queue in self.device.queues):
            return
        self._done += 1
        self.strike(f"configuration becomes {dict(self._rounds[self._done % len(self._rounds)])}")
        for _ in range(self._interrupts):
            self.device.config_interrupt()
        self.device.schedule(0.005, self._next)


class ModeLie(UsedLie):
    """Lies about completions in a receive mode that the honest device would not bring about.

    Args:
        lie: what to claim.
        more: feature bits to offer.
        less: feature bits to withdraw.

    """

    def __init__(self, lie: str, *, more: int, less: int) -> None:
        super().__init__("rx", used_lie(lie), after=1, times=6)
        self._more = more
        self._less = less

    def features(self, offered: int) -> int:
        """Bring the mode about."""
        return (offered | self._more) & ~self._less


def _gso(kind: int, size: int, **more: int) -> dict[str, int]:
    return {"gso_type": kind, "gso_size": size, "hdr_len": 54, **_TCP_CSUM, **more}


_HEADERS: Final[dict[str, tuple[Aim, str, dict[str, int]]]] = {
    "csum-at-start": (Aim.MEMORY, "a checksum over all, stored at the start of the frame",
                      {"flags": _CSUM, "csum_start": 0, "csum_offset": 0}),
    "csum-start-beyond": (Aim.MEMORY, "a checksum that starts beyond the frame",
                          {"flags": _CSUM, "csum_start": 0xFFFF, "csum_offset": 0}),
    "csum-offset-beyond": (Aim.MEMORY, "a checksum to be stored beyond the frame",
                           {"flags": _CSUM, "csum_start": 14, "csum_offset": 0xFFFF}),
    "csum-wraps": (Aim.MEMORY, "a checksum whose place wraps in 16 bits",
                   {"flags": _CSUM, "csum_start": 0xFFF0, "csum_offset": 0x20}),
    "csum-in-addresses": (Aim.DECEPTION, "a checksum to be stored over the IP addresses",
                          {"flags": _CSUM, "csum_start": 14, "csum_offset": 12}),
    "flags-both": (Aim.DECEPTION, "NEEDS_CSUM and DATA_VALID at once", {**_TCP_CSUM, "flags": 3}),
    "flags-rsc": (Aim.MEMORY, "RSC_INFO, which was not negotiated",
                  {"flags": HdrFlag.RSC_INFO, "csum_start": 0xFFFF, "csum_offset": 0xFFFF}),
    "flags-all": (Aim.MEMORY, "all flags", {"flags": 0xFF}),
    "gso-size-zero": (Aim.MEMORY, "TCP segments of size 0", _gso(GsoType.TCPV4, 0)),
    "gso-size-one": (Aim.MEMORY, "TCP segments of size 1", _gso(GsoType.TCPV4, 1)),
    "gso-size-max": (Aim.MEMORY, "TCP segments of size 0xffff, which kernels use for lists of frames",
                     _gso(GsoType.TCPV4, 0xFFFF)),
    "gso-size-unused": (Aim.MEMORY, "a segment size without a type", {"gso_size": 8, "hdr_len": 54}),
    "gso-tcp6": (Aim.MEMORY, "TCP segmentation over IPv6, which the frame is not", _gso(GsoType.TCPV6, 8)),
    "gso-udp": (Aim.MEMORY, "UDP fragmentation of size 8", _gso(GsoType.UDP, 8, csum_offset=6)),
    "gso-udp-l4": (Aim.MEMORY, "UDP segmentation of size 1", {**_gso(GsoType.UDP_L4, 1), **_UDP_CSUM}),
    "gso-udp-l4-tcp-csum": (Aim.MEMORY, "UDP segmentation with the checksum where TCP has it", _gso(GsoType.UDP_L4, 8)),
    "gso-ecn": (Aim.MEMORY, "TCP segmentation with ECN", _gso(GsoType.TCPV4 | GsoType.ECN, 8)),
    "gso-ecn-alone": (Aim.MEMORY, "ECN without a segmentation type", _gso(GsoType.ECN, 8)),
    "gso-unknown": (Aim.MEMORY, "a segmentation type that does not exist", _gso(2, 8)),
    "gso-max": (Aim.MEMORY, "the largest segmentation type", _gso(0xFF, 8)),
    "gso-no-csum": (Aim.MEMORY, "TCP segmentation without a checksum to fill in", _gso(GsoType.TCPV4, 8, flags=0)),
    "gso-data-valid": (Aim.MEMORY, "TCP segmentation with a checksum said to be right",
                       _gso(GsoType.TCPV4, 8, flags=2)),
    "gso-csum-start": (Aim.MEMORY, "TCP segmentation with the checksum starting in the IP header",
                       _gso(GsoType.TCPV4, 8, csum_start=14)),
    "gso-csum-start-beyond": (Aim.MEMORY, "TCP segmentation with the checksum starting in the payload",
                              _gso(GsoType.TCPV4, 8, csum_start=60)),
    "gso-csum-offset": (Aim.MEMORY, "TCP segmentation with the checksum where UDP has it",
                        _gso(GsoType.TCPV4, 8, csum_offset=6)),
    "hdr-len-zero": (Aim.MEMORY, "TCP segmentation with headers of length 0", _gso(GsoType.TCPV4, 8, hdr_len=0)),
    "hdr-len-max": (Aim.MEMORY, "TCP segmentation with headers of length 0xffff",
                    _gso(GsoType.TCPV4, 8, hdr_len=0xFFFF)),
    "num-buffers-zero": (Aim.MEMORY, "a packet in no buffer at all", {"num_buffers": 0}),
    "num-buffers-two": (Aim.MEMORY, "a packet in two buffers that is in one", {"num_buffers": 2}),
    "num-buffers-many": (Aim.MEMORY, "a packet in 40 buffers that is in one", {"num_buffers": 40}),
    "num-buffers-max": (Aim.MEMORY, "a packet in 65,535 buffers", {"num_buffers": 0xFFFF}),
    "all-ones": (Aim.MEMORY, "all bits set in every field", {field.name: field.maximum for field in HDR}),
}

_GUEST_OFFLOADS: Final = bit(NetFeature.GUEST_TSO4, NetFeature.GUEST_TSO6, NetFeature.GUEST_ECN, NetFeature.GUEST_UFO,
                             NetFeature.GUEST_USO4, NetFeature.GUEST_USO6)
_MERGEABLE: Final = bit(NetFeature.MRG_RXBUF)
_BIG: Final = bit(NetFeature.GUEST_CSUM, NetFeature.GUEST_TSO4, NetFeature.GUEST_TSO6)

_MODES: Final[tuple[tuple[str, str, int, int, tuple[str, ...], tuple[str, ...]], ...]] = (
    ("small", "to a driver with single buffers for single packets", 0, _MERGEABLE | _GUEST_OFFLOADS, ("use",),
     ("used-len-zero", "used-len-one", "used-len-full", "used-len-beyond", "used-len-page-beyond", "used-len-max")),
    ("big", "to a driver with chains of pages for big packets", _BIG, _MERGEABLE, ("use",),
     ("used-len-zero", "used-len-one", "used-len-full", "used-len-beyond", "used-len-page-beyond", "used-len-max")),
    ("xdp", "to a driver with an XDP program", 0, 0, ("use", "xdp"),
     ("used-len-one", "used-len-full", "used-len-beyond", "used-len-max")),
    ("xdp-small", "to a driver with an XDP program and single buffers", 0, _MERGEABLE | _GUEST_OFFLOADS, ("use", "xdp"),
     ("used-len-one", "used-len-full", "used-len-beyond", "used-len-max")),
)

_RSS: Final = bit(NetFeature.RSS, NetFeature.CTRL_VQ, NetFeature.MQ)
_Row = tuple[str, Surface, Aim, str, str, "Callable[[], Attack]", tuple[str, ...]]

_ROWS: Final[tuple[_Row, ...]] = (
    ("rss-indirection-overflow", Surface.CONFIG, Aim.MEMORY, "5.1.4",
     "offers RSS with an indirection table of 4,096 entries",
     lambda: ConfigLie(CONFIG, {"rss_max_indirection_table_length": 4096}, features=_RSS), ("use", "configure")),
    ("rss-key-overflow", Surface.CONFIG, Aim.MEMORY, "5.1.4", "offers RSS with a key of 255 bytes",
     lambda: ConfigLie(CONFIG, {"rss_max_key_size": 255}, features=_RSS), ("use", "configure")),
    ("hash-key-overflow", Surface.CONFIG, Aim.MEMORY, "5.1.4", "offers HASH_REPORT with a key of 255 bytes",
     lambda: ConfigLie(CONFIG, {"rss_max_key_size": 255}, features=_RSS | bit(NetFeature.HASH_REPORT)),
     ("use", "configure")),
    ("rss-and-pairs", Surface.CONFIG, Aim.MEMORY, "5.1.4", "offers RSS with a table of 129 entries for 16 queue pairs",
     lambda: ConfigLie(CONFIG, {"rss_max_indirection_table_length": 129, "max_virtqueue_pairs": 16}, features=_RSS),
     ("use", "configure")),
    *((f"mac-{name}", Surface.CONFIG, Aim.DENIAL, "5.1.5", f"has a {name} MAC address",
       lambda mac=mac: ConfigLie(CONFIG, {"mac": mac}), ("use", "configure"))
      for name, mac in (("zero", bytes(6)), ("broadcast", b"\xff" * 6), ("multicast", b"\1\0\x5e\0\0\1"))),
    ("status-down", Surface.CONFIG, Aim.DENIAL, "5.1.4", "says that its link is down",
     lambda: ConfigLie(CONFIG, {"status": 0}), ("use",)),
    ("announce-storm", Surface.NOTIFICATION, Aim.DENIAL, "5.1.6.5.4", "asks for announcements 100 times",
     lambda: Events(({"status": NetStatus.LINK_UP | NetStatus.ANNOUNCE},), count=100, interrupts=2,
                    features=bit(NetFeature.STATUS, NetFeature.GUEST_ANNOUNCE)), ("use", "rebind")),
    ("link-flaps", Surface.NOTIFICATION, Aim.MEMORY, "5.1.4", "takes its link down and up 30 times",
     lambda: Events(({"status": NetStatus.LINK_UP}, {"status": 0}), features=bit(NetFeature.STATUS)),
     ("use", "rebind")),
    ("status-garbage", Surface.CONFIG, Aim.MEMORY, "5.1.4", "shows reserved status bits, other ones each time",
     lambda: Events(tuple({"status": 1 << n | 1} for n in range(1, 16)), features=bit(NetFeature.STATUS)),
     ("use", "inspect")),
    ("mtu-change", Surface.CONFIG, Aim.MEMORY, "5.1.4", "changes its MTU at run time",
     lambda: Events(({"mtu": 68}, {"mtu": 0xFFFF}, {"mtu": 0}), features=bit(NetFeature.MTU)), ("use", "configure")),
    ("mac-change", Surface.CONFIG, Aim.MEMORY, "5.1.4", "changes its MAC address at run time",
     lambda: Events(({"mac": bytes(6)}, {"mac": b"\xff" * 6}, {"mac": b"\2\0\0\0\0\x63"})), ("use", "configure")),
    ("pairs-change", Surface.CONFIG, Aim.MEMORY, "5.1.4", "changes its number of queue pairs at run time",
     lambda: Events(({"max_virtqueue_pairs": 1}, {"max_virtqueue_pairs": 0x8000}, {"max_virtqueue_pairs": 0})),
     ("use", "configure")),
    ("speed-change", Surface.CONFIG, Aim.MEMORY, "5.1.4", "changes speed and duplex at run time, to none that exist",
     lambda: Events(({"speed": 0xFFFFFFFE, "duplex": 0x7F}, {"speed": 0, "duplex": 2}),
                    features=bit(NetFeature.SPEED_DUPLEX)), ("use", "inspect")),
    *((f"ctrl-ack-{name}", Surface.PAYLOAD, aim, "5.1.6.5", f"acknowledges control commands with {value}",
       lambda value=value: CtrlAck(value), ("use", "configure"))
      for name, value, aim in (("err", 1, Aim.DENIAL), ("unknown", 2, Aim.DECEPTION), ("max", 0xFF, Aim.DECEPTION))),
)

_KNOWN: Final = {
    "net-rss-indirection-overflow": "virtio_net: dynamic RSS indirection table, Linux 6.1.178",
    "net-rss-key-overflow": "CVE-2024-53082",
    "net-hash-key-overflow": "CVE-2024-53082",
    "net-hdr-gso-size-one": "virtio-net: TCP packets overflow gso_segs, Linux 6.1.188",
    "net-hdr-gso-csum-start": "CVE-2024-43897",
    "net-hdr-gso-csum-start-beyond": "CVE-2024-43897",
    "net-hdr-gso-csum-offset": "net: tighten bad gso csum offset check in virtio_net_hdr, Linux 6.1.111",
    "net-hdr-gso-no-csum": "CVE-2024-43817",
    "net-hdr-data-valid": "virtio_net: checksum offloading handling fix, Linux 6.1.96",
    "net-small-len-beyond": "CVE-2025-38375",
    "net-xdp-small-len-beyond": "CVE-2025-38375",
    "net-xdp-len-beyond": "CVE-2025-38375",
    "net-big-len-beyond": "CVE-2025-40292",
    "net-big-len-page-beyond": "CVE-2025-40292",
}


def _spec(name: str, surface: Surface, aim: Aim, clause: str, summary: str, make: Callable[[], Attack],
          stimuli: tuple[str, ...]) -> AttackSpec:
    return AttackSpec(name, DeviceType.NET, surface, aim, f"virtio 1.3, {clause}", f"The device {summary}.", make,
                      stimuli=stimuli, known=_KNOWN.get(name, ""))


def net_attacks() -> Iterator[AttackSpec]:
    """Attacks on the network device's protocol."""
    for what, (aim, summary, fields) in _HEADERS.items():
        surface = Surface.LENGTH if "num-buffers" in what or "hdr-len" in what else Surface.PAYLOAD
        yield _spec(f"net-hdr-{what}", surface, aim, "5.1.6.4", f"says of packets: {summary}",
                    lambda fields=fields: HeaderLie(fields), ("use", "forward"))  # type: ignore[misc]
    yield _spec("net-hdr-data-valid", Surface.PAYLOAD, Aim.DECEPTION, "5.1.6.4",
                "changes packets and says that their checksums are right",
                lambda: HeaderLie({"flags": HdrFlag.DATA_VALID}, corrupt=True), ("use", "forward"))
    for mode, where, more, less, stimuli, lies in _MODES:
        for lie in lies:
            what = lie.removeprefix("used-")
            yield _spec(f"net-{mode}-{what}", Surface.LENGTH, Aim.MEMORY, "2.7.8.2",
                        f"lies about used.len ({what.removeprefix('len-')}) {where}",
                        lambda lie=lie, more=more, less=less:  # type: ignore[misc]
                        ModeLie(lie, more=more, less=less), stimuli)
    for row in _ROWS:
        yield _spec(f"net-{row[0]}", *row[1:])
