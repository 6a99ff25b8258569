"""What a guest does with a network interface."""

from __future__ import annotations

import fcntl
import random
import socket
import struct
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Final

from chamber.lab.agent import kernel
from chamber.lab.agent.report import Silence, WrongData

if TYPE_CHECKING:
    from collections.abc import Callable

    from chamber.lab.agent.report import Report

__all__ = ("STIMULI",)

GUEST: Final = "10.99.0.2"
PEER: Final = "10.99.0.1"
_ECHO: Final = 7
_SIOCSIFADDR, _SIOCSIFNETMASK, _SIOCSIFFLAGS, _SIOCGIFFLAGS = 0x8916, 0x891C, 0x8914, 0x8913
_IFF_UP: Final = 1
_TIMEOUT: Final = 0.5
_TRIES: Final = 2


def interface(virtio: str) -> str:
    """Name of the interface that a virtio device became."""
    folder = Path("/sys/bus/virtio/devices") / virtio / "net"
    kernel.wait_for("the interface", folder)
    return next(entry.name for entry in folder.iterdir())


def _ifreq(name: str, rest: bytes) -> bytes:
    return struct.pack("16s", name.encode()) + rest.ljust(24, b"\0")


def _address(ip: str) -> bytes:
    return struct.pack("<HH", socket.AF_INET, 0) + socket.inet_aton(ip)


def _flags(control: socket.socket, name: str) -> int:
    return int.from_bytes(fcntl.ioctl(control, _SIOCGIFFLAGS, _ifreq(name, b""))[16:18], "little")


def up(name: str) -> None:
    """Give the interface its address and bring it up."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        fcntl.ioctl(control, _SIOCSIFADDR, _ifreq(name, _address(GUEST)))
        fcntl.ioctl(control, _SIOCSIFNETMASK, _ifreq(name, _address("255.255.255.0")))
        fcntl.ioctl(control, _SIOCSIFFLAGS, _ifreq(name, struct.pack("<H", _flags(control, name) | _IFF_UP)))


def down(name: str) -> None:
    """Take the interface down."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        fcntl.ioctl(control, _SIOCSIFFLAGS, _ifreq(name, struct.pack("<H", _flags(control, name) & ~_IFF_UP)))


def _checksum(data: bytes) -> int:
    if len(data) % 2:
        data += b"\0"
    total: int = sum(struct.unpack(f">{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def ping(size: int, dice: random.Random) -> None:
    """Send one echo request and see its payload come back."""
    payload = dice.randbytes(size)
    ident, sequence = dice.getrandbits(16), dice.getrandbits(16)
    head = struct.pack(">BBHHH", 8, 0, 0, ident, sequence)
    packet = struct.pack(">BBHHH", 8, 0, _checksum(head + payload), ident, sequence) + payload
    with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP) as raw:
        raw.settimeout(_TIMEOUT)
        for _ in range(_TRIES):
            raw.sendto(packet, (PEER, 0))
            try:
                while True:
                    answer = raw.recv(65536)
                    start = (answer[0] & 15) * 4
                    kind, _, _, got_ident, got_sequence = struct.unpack_from(">BBHHH", answer, start)
                    if (kind, got_ident, got_sequence) == (0, ident, sequence):
                        break
            except TimeoutError:
                continue
            if answer[start + 8:] != payload:
                raise WrongData(f"an echo of {size} bytes came back as {len(answer) - start - 8} other bytes")
            return
    raise Silence(f"no echo of {size} bytes")


def udp_echo(size: int, dice: random.Random) -> None:
    """Send a datagram to the peer's echo port and see it come back."""
    payload = dice.randbytes(size)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as datagram:
        datagram.settimeout(_TIMEOUT)
        datagram.connect((PEER, _ECHO))
        for _ in range(_TRIES):
            datagram.send(payload)
            try:
                answer = datagram.recv(65536)
            except TimeoutError:
                continue
            if answer != payload:
                raise WrongData(f"a datagram of {size} bytes came back as {len(answer)} other bytes")
            return
    raise Silence(f"no datagram of {size} bytes came back")


def tcp_echo(size: int, dice: random.Random) -> None:
    """Send a stream to the peer's echo port and compare what comes back."""
    payload = dice.randbytes(size)
    back = bytearray()
    sent = 0
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as stream:
        stream.settimeout(4 * _TIMEOUT)
        stream.connect((PEER, _ECHO))
        while len(back) < size:
            if sent < size and sent - len(back) < 16384:
                sent += stream.send(payload[sent:sent + 8192])
            else:
                part = stream.recv(65536)
                if not part:
                    break
                back += part
    if len(back) < size:
        raise Silence(f"{len(back)} of {size} bytes came back")
    if zlib.crc32(back) != zlib.crc32(payload):
        raise WrongData(f"a stream of {size} bytes came back changed")


def use(virtio: str, report: Report) -> None:
    """Bring the interface up, ping, exchange datagrams and a stream."""
    name = interface(virtio)
    dice = random.Random(name)  # noqa: S311 - test data
    with report.step("up"):
        up(name)
    for size in (56, 8, 1400):
        report.attempt(f"ping, {size} bytes", ping, size, dice)
    report.attempt("ping in fragments", ping, 4000, dice)
    for size in (1, 1400):
        report.attempt(f"datagram of {size} bytes", udp_echo, size, dice)
    report.attempt("stream of 64 KiB", tcp_echo, 65536, dice)
    with report.step("down"):
        down(name)


STIMULI: Final[dict[str, Callable[[str, Report], None]]] = {"use": use}
