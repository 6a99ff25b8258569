from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chamber.device.catalogue import make_device
from chamber.device.net import GUEST_MAC, NetDevice
from chamber.device.net_backend import NetBackend, PacketHeader
from chamber.device.net_peer import GUEST_IP, PEER_IP, PEER_MAC
from chamber.wire.ethernet import (
    BROADCAST,
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
from chamber.wire.net import (
    CONFIG,
    CTRL_OFFLOADS,
    HDR_SIZE,
    RSS,
    CtrlClass,
    GsoType,
    HdrFlag,
    MqCommand,
    NetFeature,
    NetStatus,
    RxCommand,
)
from chamber.wire.virtio import DeviceType, bit
from tests.device.driver import Driver

CTRL = 4
GROUP = bytes.fromhex("01005e000123")


class Guest(Driver):
    """A network driver with two pairs."""

    device: NetDevice

    def __init__(self, device: NetDevice | None = None, *, buffers: int = 32, size: int = 1600,
                 without: int = 0) -> None:
        made = make_device(DeviceType.NET) if device is None else device
        assert isinstance(made, NetDevice)
        super().__init__(made, features=made.offered_features() & ~(1 << 29 | without), memory=4 << 20)
        for pair in range(2):
            self.lend(buffers, size, pair=pair)

    def lend(self, count: int, size: int, *, pair: int = 0) -> None:
        for _ in range(count):
            self.add(2 * pair, [], [size])
        self.notify(2 * pair)

    def send(self, frame: bytes, *, pair: int = 0, header: PacketHeader | None = None) -> None:
        self.add(2 * pair + 1, [(header or PacketHeader()).build(), frame], [])
        self.notify(2 * pair + 1)
        assert [data for _, data in self.used(2 * pair + 1)] == [b""]

    def frames(self, *, pair: int = 0) -> list[bytes]:
        """What was received, merged."""
        buffers = [data for _, data in self.used(2 * pair)]
        out = []
        while buffers:
            count = PacketHeader.parse(buffers[0]).num_buffers
            assert 1 <= count <= len(buffers)
            out.append(b"".join(buffers[:count])[HDR_SIZE:])
            del buffers[:count]
        return out

    def exchange(self, frame: bytes, *, pair: int = 0, header: PacketHeader | None = None) -> list[Ethernet]:
        self.send(frame, pair=pair, header=header)
        return [Ethernet.parse(data) for data in self.frames(pair=pair)]

    def ip(self, protocol: int, payload: bytes, *, pair: int = 0, header: PacketHeader | None = None) -> list[Ipv4]:
        frame = Ethernet(PEER_MAC, GUEST_MAC, EtherType.IPV4, Ipv4(GUEST_IP, PEER_IP, protocol, payload).build())
        answers = self.exchange(frame.build(), pair=pair, header=header)
        assert all(a.destination == GUEST_MAC and a.source == PEER_MAC for a in answers)
        return [Ipv4.parse(a.payload) for a in answers]

    def tcp(self, flags: int, sequence: int, acknowledgment: int, payload: bytes = b"", *, mss: int = 0,
            window: int = 0xFFFF) -> list[Tcp]:
        segment = Tcp(40000, 7, sequence, acknowledgment, flags, window, payload, mss)
        return [Tcp.parse(p) for p in self.ip(IpProtocol.TCP, segment.build(GUEST_IP, PEER_IP))]

    def control(self, kind: int, command: int, data: bytes = b"") -> int:
        (answer,) = self.request(CTRL, [bytes((kind, command)), data] if data else [bytes((kind, command))], [1])
        return answer


def echo_request(payload: bytes, sequence: int = 1) -> bytes:
    return IcmpEcho(IcmpEcho.REQUEST, 7, sequence, payload).build()


def test_arp_is_answered_to_whoever_asks() -> None:
    arp = Arp(Arp.REQUEST, GUEST_MAC, GUEST_IP, bytes(6), PEER_IP).build()
    (frame,) = Guest().exchange(Ethernet(BROADCAST, GUEST_MAC, EtherType.ARP, arp).build())
    answer = Arp.parse(frame.payload)
    assert frame.destination == GUEST_MAC
    assert (answer.operation, answer.sender_mac, answer.sender_ip) == (Arp.REPLY, PEER_MAC, PEER_IP)


@pytest.mark.parametrize("size", [0, 1, 56, 1400, 1472])
def test_a_ping_comes_back(size: int) -> None:
    payload = random.Random(size).randbytes(size)
    (packet,) = Guest().ip(IpProtocol.ICMP, echo_request(payload))
    assert IcmpEcho.parse(packet.payload) == IcmpEcho(IcmpEcho.REPLY, 7, 1, payload)


def test_a_fragmented_ping_comes_back_in_fragments() -> None:
    guest = Guest()
    message = echo_request(random.Random(4).randbytes(4000))
    answers = []
    for at in range(0, len(message), 1480):
        part = Ipv4(GUEST_IP, PEER_IP, IpProtocol.ICMP, message[at:at + 1480], 99, offset=at,
                    more=at + 1480 < len(message))
        answers += guest.exchange(Ethernet(PEER_MAC, GUEST_MAC, EtherType.IPV4, part.build()).build())
    parts = [Ipv4.parse(a.payload) for a in answers]
    assert [(p.offset, p.more) for p in parts] == [(0, True), (1480, True), (2960, False)]
    assert IcmpEcho.parse(b"".join(p.payload for p in parts)).payload == message[8:]


def test_a_datagram_with_a_partial_checksum_is_completed_and_echoed() -> None:
    datagram = bytearray(Udp(5000, 7, b"hello").build(GUEST_IP, PEER_IP))
    pseudo = GUEST_IP + PEER_IP + bytes((0, IpProtocol.UDP)) + len(datagram).to_bytes(2, "big")
    datagram[6:8] = (~internet_checksum(pseudo) & 0xFFFF).to_bytes(2, "big")
    (packet,) = Guest().ip(IpProtocol.UDP, bytes(datagram),
                           header=PacketHeader(HdrFlag.NEEDS_CSUM, csum_start=34, csum_offset=6))
    assert Udp.parse(packet) == Udp(7, 5000, b"hello")


def test_a_checksum_beyond_the_frame_is_refused() -> None:
    guest = Guest()
    header = PacketHeader(HdrFlag.NEEDS_CSUM, csum_start=0xFFFF, csum_offset=0xFFFF)
    assert guest.ip(IpProtocol.ICMP, echo_request(b"x"), header=header) == []
    assert len(guest.ip(IpProtocol.ICMP, echo_request(b"x"))) == 1


def test_a_tcp_connection_echoes_and_ends() -> None:
    guest = Guest()
    (answer,) = guest.tcp(TcpFlag.SYN, 100, 0, mss=1000)
    assert answer.flags == TcpFlag.SYN | TcpFlag.ACK
    assert answer.acknowledgment == 101
    peer = answer.sequence + 1
    assert guest.tcp(TcpFlag.ACK, 101, peer) == []
    data = random.Random(1).randbytes(2500)
    # As with segmentation offload: longer than the maximum segment size.
    segments = guest.tcp(TcpFlag.ACK | TcpFlag.PSH, 101, peer, data)
    assert b"".join(s.payload for s in segments) == data
    assert [len(s.payload) for s in segments] == [1000, 1000, 500]
    assert segments[-1].acknowledgment == 101 + 2500
    (last,) = guest.tcp(TcpFlag.ACK | TcpFlag.FIN, 2601, peer + 2500)
    assert last.flags & TcpFlag.FIN
    assert last.acknowledgment == 2602
    assert guest.tcp(TcpFlag.ACK, 2602, peer + 2501) == []
    (reset,) = guest.tcp(TcpFlag.ACK, 2602, peer + 2501)
    assert reset.flags & TcpFlag.RST


def test_tcp_keeps_to_the_window_and_acknowledges_what_comes_again() -> None:
    guest = Guest()
    (answer,) = guest.tcp(TcpFlag.SYN, 0, 0, mss=1000)
    peer = answer.sequence + 1
    (first,) = guest.tcp(TcpFlag.ACK, 1, peer, b"a" * 300, window=100)
    assert first.payload == b"a" * 100
    (again,) = guest.tcp(TcpFlag.ACK, 1, peer, b"a" * 300, window=100)
    assert (again.payload, again.acknowledgment) == (b"", 301)
    (rest,) = guest.tcp(TcpFlag.ACK, 301, peer + 100, window=1000)
    assert rest.payload == b"a" * 200


def test_a_segmentation_frame_of_the_guest_is_taken() -> None:
    guest = Guest(buffers=60)
    (answer,) = guest.tcp(TcpFlag.SYN, 0, 0, mss=1460)
    data = random.Random(2).randbytes(40000)
    segment = Tcp(40000, 7, 1, answer.sequence + 1, TcpFlag.ACK, payload=data).build(GUEST_IP, PEER_IP)
    packets = guest.ip(IpProtocol.TCP, segment, header=PacketHeader(gso_type=GsoType.TCPV4, hdr_len=54, gso_size=1460))
    assert b"".join(Tcp.parse(p).payload for p in packets) == data


def test_small_buffers_are_merged() -> None:
    guest = Guest(size=256)
    (packet,) = guest.ip(IpProtocol.ICMP, echo_request(bytes(range(250)) * 4))
    assert IcmpEcho.parse(packet.payload).payload == bytes(range(250)) * 4


def test_a_frame_waits_until_there_are_buffers_for_all_of_it() -> None:
    guest = Guest(buffers=2, size=256)
    assert guest.ip(IpProtocol.ICMP, echo_request(b"x" * 1000)) == []
    guest.lend(3, 256)
    (frame,) = guest.frames()
    assert len(frame) == 14 + 20 + 8 + 1000


def test_without_merging_a_frame_is_in_one_buffer_and_a_small_one_breaks_the_queue() -> None:
    guest = Guest(size=1530, without=bit(NetFeature.MRG_RXBUF, NetFeature.GUEST_TSO4, NetFeature.GUEST_TSO6))
    (packet,) = guest.ip(IpProtocol.ICMP, echo_request(b"x" * 1000))
    assert len(packet.payload) == 1008
    guest = Guest(size=256, without=bit(NetFeature.MRG_RXBUF))
    assert guest.ip(IpProtocol.ICMP, echo_request(b"x" * 1000)) == []
    assert [error.spec for error in guest.device.violations] == ["5.1.6.3.1, 5.3.6.1"]


def test_frames_that_nobody_takes_are_bounded() -> None:
    guest = Guest(buffers=0)
    for _ in range(300):
        guest.device.receive(GUEST_MAC + bytes(50), PacketHeader())
    assert guest.device.lost == 300 - 128
    guest.lend(60, 1600)
    assert len(guest.frames()) == 60


def test_answers_come_to_the_pair_that_asked() -> None:
    guest = Guest()
    assert guest.control(CtrlClass.MQ, MqCommand.VQ_PAIRS_SET, b"\2\0") == 0
    datagram = Udp(5000, 7, b"hello").build(GUEST_IP, PEER_IP)
    assert len(guest.ip(IpProtocol.UDP, datagram, pair=1)) == 1
    assert len(guest.ip(IpProtocol.UDP, datagram, pair=0)) == 1


def test_receive_modes_and_addresses_filter() -> None:
    guest = Guest()

    def arrives(destination: bytes, tag: bytes = b"") -> bool:
        guest.device.receive(destination + PEER_MAC + tag + b"\x88\xb5" + bytes(46), PacketHeader())
        return bool(guest.frames())

    assert arrives(GROUP)
    assert guest.control(CtrlClass.RX, RxCommand.PROMISC, b"\0") == 0
    assert arrives(GUEST_MAC)
    assert arrives(BROADCAST)
    assert not arrives(PEER_MAC)
    assert not arrives(GROUP)
    assert guest.control(CtrlClass.MAC, 0, bytes(4) + b"\1\0\0\0" + GROUP) == 0
    assert arrives(GROUP)
    assert guest.control(CtrlClass.MAC, 1, PEER_MAC) == 0
    assert arrives(PEER_MAC)
    assert not arrives(GUEST_MAC)
    tag = b"\x81\x00\x20\x05"
    assert not arrives(BROADCAST, tag)
    assert guest.control(CtrlClass.VLAN, 0, b"\5\0") == 0
    assert arrives(BROADCAST, tag)
    assert guest.control(CtrlClass.VLAN, 1, b"\5\0") == 0
    assert not arrives(BROADCAST, tag)


@pytest.mark.parametrize(("kind", "command", "data"), [
    (CtrlClass.RX, RxCommand.PROMISC, b"\2"), (CtrlClass.RX, RxCommand.ALLUNI, b"\1"), (CtrlClass.RX, 9, b"\1"),
    (CtrlClass.MAC, 0, b"\xff\xff\xff\xff" * 2), (CtrlClass.MAC, 0, bytes(3)), (CtrlClass.MAC, 1, bytes(5)),
    (CtrlClass.VLAN, 0, b"\0\x10"), (CtrlClass.VLAN, 0, b"\0"), (CtrlClass.MQ, 0, b"\0\0"), (CtrlClass.MQ, 0, b"\3\0"),
    (CtrlClass.MQ, 1, bytes(60)), (CtrlClass.GUEST_OFFLOADS, 0, b"\xff" * 8), (99, 0, b""),
    (CtrlClass.ANNOUNCE, 1, b""),
])
def test_a_command_that_is_not_right_is_refused(kind: int, command: int, data: bytes) -> None:
    assert Guest().control(kind, command, data) == 1


def test_offloads_are_handed_to_the_wire() -> None:
    class Wire(NetBackend):
        offloads = -1

        def set_offloads(self, features: int) -> None:
            self.offloads = features

    wire = Wire()
    guest = Guest(NetDevice(wire))
    assert wire.offloads == bit(NetFeature.GUEST_CSUM, NetFeature.GUEST_TSO4, NetFeature.GUEST_TSO6)
    offloads = bytes(CTRL_OFFLOADS.pack(offloads=bit(NetFeature.GUEST_CSUM)))
    assert guest.control(CtrlClass.GUEST_OFFLOADS, 0, offloads) == 0
    assert wire.offloads == bit(NetFeature.GUEST_CSUM)


def test_rss_sends_flows_where_its_table_says() -> None:
    features = make_device(DeviceType.NET).offered_features() | bit(NetFeature.RSS)
    guest = Guest(NetDevice(features=features))
    rss = bytes(RSS.pack(hash_types=0x3F, indirection_table_mask=1, unclassified_queue=1))
    command = rss + b"\1\0\1\0" + b"\2\0" + bytes((40,)) + bytes(range(40))
    assert guest.control(CtrlClass.MQ, MqCommand.RSS_CONFIG, command) == 0
    guest.ip(IpProtocol.UDP, Udp(5000, 7, b"hello").build(GUEST_IP, PEER_IP))
    assert len(guest.frames(pair=1)) == 1


def test_announcements_are_asked_for_and_acknowledged() -> None:
    guest = Guest()
    guest.device.host_action("announce")
    assert guest.config_interrupts == 1
    assert CONFIG.get(guest.device.config, "status") == NetStatus.LINK_UP | NetStatus.ANNOUNCE
    assert guest.control(CtrlClass.ANNOUNCE, 0) == 0
    assert CONFIG.get(guest.device.config, "status") == NetStatus.LINK_UP


def test_the_host_takes_the_link_down_and_up() -> None:
    guest = Guest()
    guest.device.host_action("link-down")
    assert CONFIG.get(guest.device.config, "status") == 0
    assert guest.ip(IpProtocol.ICMP, echo_request(b"x")) == []
    guest.device.host_action("link-up")
    assert guest.config_interrupts == 2
    assert len(guest.ip(IpProtocol.ICMP, echo_request(b"x"))) == 1


def test_a_driver_without_multiqueue_has_its_control_queue_behind_one_pair() -> None:
    guest = Guest(without=bit(NetFeature.MQ))
    guest.add(CTRL, [bytes(60)], [])
    guest.notify(CTRL)
    assert [error.spec for error in guest.device.violations] == ["5.1.2"]
    device = make_device(DeviceType.NET)
    plain = Driver(device, features=device.offered_features() & ~bit(29, NetFeature.MQ), queues=3)
    assert plain.request(2, [bytes((CtrlClass.RX, RxCommand.PROMISC)), b"\0"], [1]) == b"\0"
    device.reset()
    assert not any(queue.started for queue in device.queues)


_PARTS = st.lists(st.binary(max_size=64), max_size=3)
_STEPS = st.lists(st.tuples(st.integers(0, 4), _PARTS, st.lists(st.integers(0, 300), max_size=3)), max_size=12)


@settings(max_examples=60, deadline=None)
@given(_STEPS, st.integers(0, (1 << 64) - 1))
def test_no_driver_gets_an_exception_out_of_the_device(
        steps: list[tuple[int, list[bytes], list[int]]], mask: int) -> None:
    device = make_device(DeviceType.NET)
    assert isinstance(device, NetDevice)
    driver = Driver(device, features=device.offered_features() & mask & ~(1 << 29))
    for index, readable, writable in steps:
        if readable or writable:
            driver.add(index, readable, writable)
        driver.notify(index)
        device.receive(BROADCAST + bytes(60), PacketHeader())
    device.reset()
    device.close()
    assert len(device.violations) <= 100


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=120), st.tuples(*(st.integers(0, 255) for _ in range(2)),
                                          *(st.integers(0, 0xFFFF) for _ in range(5))),
       st.sampled_from((b"", b"\x08\x00", b"\x08\x06", b"\x86\xdd", b"\x81\x00")))
def test_no_frame_gets_an_exception_out_of_the_peer(tail: bytes, header: tuple[int, ...], kind: bytes) -> None:
    guest = Guest(buffers=4)
    frame = (PEER_MAC + GUEST_MAC + kind + tail).ljust(14, b"\0")
    guest.send(frame, header=PacketHeader(*header))
    assert all(len(frame) <= 1514 for frame in guest.frames())


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=80))
def test_no_command_gets_an_exception_out_of_the_device(command: bytes) -> None:
    guest = Guest(buffers=0)
    (answer,) = guest.request(CTRL, [command or b"\0"], [1])
    assert answer in {0, 1}
