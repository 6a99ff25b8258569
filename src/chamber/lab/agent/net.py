"""What a guest does with a network interface."""

from __future__ import annotations

import contextlib
import fcntl
import os
import random
import socket
import struct
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Final

from chamber.lab.agent import ethtool, kernel, routing, xdp
from chamber.lab.agent.control_socket import control_socket
from chamber.lab.agent.limited_socket import LimitedSocket
from chamber.lab.agent.patience import patient
from chamber.lab.agent.report import Silence, WrongData

if TYPE_CHECKING:
    from collections.abc import Callable

    from chamber.lab.agent.report import Report

__all__ = (
    "ECHO", "PEER", "STIMULI", "change_address", "change_filters", "change_lengths", "change_link", "change_queues",
    "down", "interface", "is_up", "ping", "tcp_echo", "udp_echo", "up",
)

GUEST: Final = "10.99.0.2"
PEER: Final = "10.99.0.1"
ECHO: Final = 7
_SIOCSIFADDR, _SIOCSIFNETMASK, _SIOCSIFFLAGS, _SIOCGIFFLAGS = 0x8916, 0x891C, 0x8914, 0x8913
_SIOCSIFMTU, _SIOCSIFHWADDR, _SIOCADDMULTI, _SIOCDELMULTI, _SIOCSIFTXQLEN = 0x8922, 0x8924, 0x8931, 0x8932, 0x8943
_IFF_UP, _IFF_PROMISC, _IFF_ALLMULTI = 1, 0x100, 0x200
_ARPHRD_ETHER: Final = 1
_TIMEOUT: Final = 0.3
_TRIES: Final = 5
"""So many that a second passes: Linux looks at links that have come up once a second, and drops packets before."""


def interface(virtio: str) -> str:
    """Name of the interface that a virtio device became."""
    folder = Path("/sys/bus/virtio/devices") / virtio / "net"
    kernel.wait_for("the interface", folder)
    return os.listdir(folder)[0]


def is_up(name: str) -> bool:
    """Whether an interface is up."""
    return bool(_flags(name) & _IFF_UP)


def _ifreq(name: str, rest: bytes) -> bytes:
    return struct.pack("16s", name.encode()) + rest.ljust(24, b"\0")


def _address(ip: str) -> bytes:
    return struct.pack("<HH", socket.AF_INET, 0) + socket.inet_aton(ip)


def _flags(name: str) -> int:
    return int.from_bytes(fcntl.ioctl(control_socket(), _SIOCGIFFLAGS, _ifreq(name, b""))[16:18], "little")


def up(name: str) -> None:
    """Give the interface its address and bring it up; its receive buffers come from memory that held secrets."""
    kernel.plant()
    _set(name, _SIOCSIFADDR, _address(GUEST))
    _set(name, _SIOCSIFNETMASK, _address("255.255.255.0"))
    _set(name, _SIOCSIFFLAGS, struct.pack("<H", _flags(name) | _IFF_UP))


def down(name: str) -> None:
    """Take the interface down."""
    _set(name, _SIOCSIFFLAGS, struct.pack("<H", _flags(name) & ~_IFF_UP))


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
    with LimitedSocket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP).limit(_TIMEOUT) as raw:
        for _ in range(max(1, round(patient(_TRIES)))):
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
    with LimitedSocket(socket.AF_INET, socket.SOCK_DGRAM).limit(_TIMEOUT) as datagram:
        datagram.connect((PEER, ECHO))
        for _ in range(max(1, round(patient(_TRIES)))):
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
    with LimitedSocket(socket.AF_INET, socket.SOCK_STREAM).limit(3 * _TIMEOUT) as stream:
        stream.connect((PEER, ECHO))
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


def exchange(report: Report, dice: random.Random) -> None:
    """Exchange traffic of each kind with the peer, up to the first that is not answered."""
    steps: tuple[tuple[str, Callable[[int, random.Random], None], int], ...] = (
        ("ping", ping, 56), ("ping", ping, 8), ("ping", ping, 1400), ("fragmented ping", ping, 4000),
        ("datagram", udp_echo, 1), ("datagram", udp_echo, 1400), ("stream", tcp_echo, 65536),
    )
    for name, call, size in steps:
        if not report.attempt(f"{name} of {size} bytes", call, size, dice):
            return


def use(virtio: str, report: Report) -> None:
    """Bring the interface up, ping, exchange datagrams and a stream."""
    name = interface(virtio)
    dice = random.Random(name)  # noqa: S311 - test data
    with report.step("up"):
        up(name)
    exchange(report, dice)
    with report.step("down"):
        down(name)


def inspect(virtio: str, report: Report) -> None:
    """Ask everything that the kernel tells of the interface."""
    name = interface(virtio)
    report.attempt("sysfs", kernel.read_tree, Path("/sys/class/net").resolve() / name)
    ethtool.read_all(name, report)
    with report.step("up"):
        up(name)
    report.attempt("sysfs while up", kernel.read_tree, Path("/sys/class/net").resolve() / name)
    report.attempt("proc", Path("/proc/net/dev").read_bytes)
    report.attempt("ethtool statistics while up", ethtool.read_all, name, report)
    report.attempt("device attributes", kernel.read_tree, Path("/sys/bus/virtio/devices") / virtio, depth=0)
    with report.step("down"):
        down(name)


def _set(name: str, request: int, rest: bytes) -> None:
    fcntl.ioctl(control_socket(), request, _ifreq(name, rest))


def _set_flag(name: str, flag: int) -> None:
    before = _flags(name)
    _set(name, _SIOCSIFFLAGS, struct.pack("<H", before | flag))
    _set(name, _SIOCSIFFLAGS, struct.pack("<H", before))


def change_filters(name: str, report: Report) -> None:
    """Change what the device lets through."""
    report.attempt("promiscuous", _set_flag, name, _IFF_PROMISC)
    report.attempt("all multicast", _set_flag, name, _IFF_ALLMULTI)
    group = struct.pack("<H6s", 0, bytes.fromhex("01005e000123"))
    report.attempt("join a group", _set, name, _SIOCADDMULTI, group)
    report.attempt("leave a group", _set, name, _SIOCDELMULTI, group)


def change_address(name: str, report: Report) -> None:
    """Change the hardware address and back."""
    with report.step("hardware address"):
        mac = bytes.fromhex(kernel.read(f"/sys/class/net/{name}/address").decode().strip().replace(":", ""))
        _set(name, _SIOCSIFHWADDR, struct.pack("<H6s", _ARPHRD_ETHER, mac[:5] + bytes([mac[5] ^ 1])))
        _set(name, _SIOCSIFHWADDR, struct.pack("<H6s", _ARPHRD_ETHER, mac))


def change_lengths(name: str, report: Report) -> None:
    """Change the MTU and the length of the transmit queue."""
    report.attempt("MTU", _set, name, _SIOCSIFMTU, struct.pack("<i", 1280))
    report.attempt("queue length", _set, name, _SIOCSIFTXQLEN, struct.pack("<i", 100))


def change_queues(name: str, report: Report) -> None:
    """Use more and fewer queue pairs."""
    for pairs in (2, 1, 2):
        report.attempt(f"{pairs} queue pairs", ethtool.set_channels, name, pairs)
    report.attempt("RSS", ethtool.restore_rss, name)


def change_link(name: str, report: Report) -> None:
    """Have the link go down and up."""
    for action in ("link-down", "link-up"):
        report.ask(action)
        report.attempt(f"after {action}", kernel.read, f"/sys/class/net/{name}/operstate")


def configure(virtio: str, report: Report) -> None:
    """Change what can be changed, by the control queue mostly; then see that traffic still passes."""
    name = interface(virtio)
    dice = random.Random(name)  # noqa: S311 - test data
    with report.step("up"):
        up(name)
    change_filters(name, report)
    change_address(name, report)
    change_lengths(name, report)
    change_queues(name, report)
    ethtool.toggle_offloads(name, report)
    change_link(name, report)
    report.attempt("ping", ping, 56, dice)
    with report.step("down"):
        down(name)


def forward(virtio: str, report: Report) -> None:
    """Forward what the peer sends to others, cut in software what was merged, and look at every frame."""
    name = interface(virtio)
    dice = random.Random(name)  # noqa: S311 - test data
    with report.step("up"):
        up(name)
        routing.turn_on(name)
        routing.add_route("10.98.0.0", "255.255.255.0", PEER, name)
    report.attempt("segment in software", ethtool.segment_in_software, name)
    with report.step("look at every frame"), socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0x0300) as tap:
        tap.bind((name, 0x0003))
        tap.setblocking(False)
        before = routing.forwarded()
        for size in (64, 1400, 500):
            report.attempt(f"datagram of {size} bytes from elsewhere", routing.send_spoofed, "10.98.0.5", PEER, ECHO,
                           dice.randbytes(size))
        exchange(report, dice)
        report.note(f"{routing.forwarded() - before} datagrams forwarded")
        with contextlib.suppress(BlockingIOError):
            while tap.recv(65536):
                pass
        if routing.forwarded() == before:
            raise Silence("nothing came to be forwarded")
    with report.step("down"):
        down(name)


def with_xdp(virtio: str, report: Report) -> None:
    """Run a program on every frame, then take it away."""
    name = interface(virtio)
    dice = random.Random(name)  # noqa: S311 - test data
    with report.step("up"):
        up(name)
    with report.step("attach"):
        fd = xdp.load(xdp.PASS)
        try:
            xdp.attach(name, fd)
        finally:
            os.close(fd)
    exchange(report, dice)
    report.attempt("detach", xdp.detach, name)
    report.attempt("ping without it", ping, 56, dice)
    with report.step("down"):
        down(name)


STIMULI: Final[dict[str, Callable[[str, Report], None]]] = {
    "use": use, "inspect": inspect, "configure": configure, "forward": forward, "xdp": with_xdp,
}
