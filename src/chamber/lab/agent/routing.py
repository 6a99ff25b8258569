"""The guest as a router: what comes in by an interface goes out again by it."""

from __future__ import annotations

import ctypes
import fcntl
import socket
import struct
from pathlib import Path
from typing import Final

from chamber.lab.agent import kernel
from chamber.lab.agent.control_socket import control_socket

__all__ = ("add_route", "forwarded", "send_spoofed", "turn_on")

_SIOCADDRT: Final = 0x890B
_RTF_UP_GATEWAY: Final = 3
_SETTINGS: Final = {
    "/proc/sys/net/ipv4/ip_forward": "1",
    "/proc/sys/net/ipv4/conf/all/rp_filter": "0",
    "/proc/sys/net/ipv4/conf/all/accept_local": "1",
}


def turn_on(name: str) -> None:
    """Let the kernel forward what is not for itself."""
    for path, value in _SETTINGS.items():
        kernel.write(path, value)
    kernel.write(f"/proc/sys/net/ipv4/conf/{name}/rp_filter", "0")


def _address(ip: str) -> bytes:
    return struct.pack("<HH4s8x", socket.AF_INET, 0, socket.inet_aton(ip))


def add_route(network: str, mask: str, gateway: str, name: str) -> None:
    """Route a network by a gateway on an interface."""
    device = ctypes.create_string_buffer(name.encode())
    entry = (struct.pack("=Q", 0) + _address(network) + _address(gateway) + _address(mask)
             + struct.pack("=Hh4xQQh6xQQQH6x", _RTF_UP_GATEWAY, 0, 0, 0, 0, ctypes.addressof(device), 0, 0, 0))
    fcntl.ioctl(control_socket(), _SIOCADDRT, entry)


def send_spoofed(source: str, target: str, port: int, payload: bytes) -> None:
    """Send a datagram that claims another source, so that its answer has to be forwarded there."""
    udp = struct.pack(">HHHH", 40000, port, 8 + len(payload), 0) + payload
    header = struct.pack(">BBHHHBBH4s4s", 0x45, 0, 20 + len(udp), 0, 0, 64, socket.IPPROTO_UDP, 0,
                         socket.inet_aton(source), socket.inet_aton(target))
    with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW) as raw:
        raw.sendto(header + udp, (target, 0))


def forwarded() -> int:
    """Return how many datagrams the kernel has forwarded."""
    names, values = (line.split() for line in Path("/proc/net/snmp").read_text(encoding="ascii").splitlines()[:2])
    return int(values[names.index("ForwDatagrams")])
