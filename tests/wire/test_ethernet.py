from __future__ import annotations

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chamber.wire.errors import WireError
from chamber.wire.ethernet import Arp, Ethernet, IcmpEcho, IpProtocol, Ipv4, Tcp, TcpFlag, Udp, internet_checksum

A, B = bytes((10, 0, 0, 1)), bytes((10, 0, 0, 2))


def test_the_checksum_is_that_of_rfc_1071() -> None:
    assert internet_checksum(bytes.fromhex("0001f203f4f5f6f7")) == 0xFFFF - 0xDDF2


@given(st.binary(max_size=200))
def test_any_bytes_are_a_value_or_an_error(data: bytes) -> None:
    for parse in (Ethernet.parse, Arp.parse, Ipv4.parse, IcmpEcho.parse):
        with suppress(WireError):
            assert parse(data) is not None
    for take in (Udp.parse, Tcp.parse):
        with suppress(WireError):
            assert take(Ipv4(A, B, 0, data)) is not None


@given(st.binary(max_size=200), st.integers(0, 0xFFFF), st.integers(0, 0x1FFF), st.booleans())
def test_ipv4_survives_the_wire(payload: bytes, identification: int, offset: int, more: bool) -> None:
    packet = Ipv4(A, B, 99, payload, identification, offset=8 * offset, more=more)
    assert Ipv4.parse(packet.build() + b"padding") == packet


@given(st.binary(max_size=200), st.integers(0, 0xFFFF), st.integers(0, 0xFFFF))
def test_transport_survives_the_wire(payload: bytes, port: int, mss: int) -> None:
    datagram = Udp(port, 7, payload)
    assert Udp.parse(Ipv4(A, B, IpProtocol.UDP, datagram.build(A, B))) == datagram
    segment = Tcp(port, 7, 1, 2, TcpFlag.SYN, 3, payload, mss)
    assert Tcp.parse(Ipv4(A, B, IpProtocol.TCP, segment.build(A, B))) == segment
    echo = IcmpEcho(IcmpEcho.REQUEST, port, 1, payload)
    assert IcmpEcho.parse(echo.build()) == echo


@given(st.binary(min_size=1, max_size=60), st.integers(0))
def test_a_flipped_bit_is_noticed(payload: bytes, at: int) -> None:
    data = bytearray(Tcp(1, 7, 1, 2, TcpFlag.ACK, payload=payload).build(A, B))
    at %= 8 * len(data)
    data[at // 8] ^= 1 << at % 8
    with pytest.raises(WireError):
        Tcp.parse(Ipv4(A, B, IpProtocol.TCP, bytes(data)))
