"""An XDP program on an interface, by bpf(2) and rtnetlink."""

from __future__ import annotations

import ctypes
import os
import socket
import struct
from typing import Final

__all__ = ("PASS", "attach", "detach", "load")

_BPF: Final = 321
_PROG_LOAD: Final = 5
_TYPE_XDP: Final = 6
_RTM_SETLINK: Final = 19
_NLM_F_REQUEST_ACK: Final = 5
_IFLA_XDP: Final = 43 | 1 << 15
_IFLA_XDP_FD, _IFLA_XDP_FLAGS = 1, 3
_DRIVER_MODE: Final = 1 << 2
_ATTR: Final = struct.Struct("=IIQQIIQII72x")
PASS: Final = 2

_LIBC = ctypes.CDLL(None, use_errno=True)


def load(action: int) -> int:
    """Load the program that returns `action` for each frame; return its descriptor."""
    code = struct.pack("=BBhi", 0xB7, 0, 0, action) + struct.pack("=BBhi", 0x95, 0, 0, 0)
    instructions = ctypes.create_string_buffer(code, len(code))
    license_text = ctypes.create_string_buffer(b"Apache-2.0")
    attributes = _ATTR.pack(_TYPE_XDP, 2, ctypes.addressof(instructions), ctypes.addressof(license_text), 0, 0, 0, 0, 0)
    fd = int(_LIBC.syscall(_BPF, _PROG_LOAD, attributes, len(attributes)))
    if fd < 0:
        code_number = ctypes.get_errno()
        raise OSError(code_number, f"load an XDP program: {os.strerror(code_number)}")
    return fd


def attach(name: str, fd: int) -> None:
    """Have the driver run a program on every frame that it receives."""
    def attribute(kind: int, value: bytes) -> bytes:
        return struct.pack("=HH", 4 + len(value), kind) + value

    nested = (attribute(_IFLA_XDP_FD, struct.pack("=i", fd))
              + attribute(_IFLA_XDP_FLAGS, struct.pack("=I", _DRIVER_MODE)))
    body = struct.pack("=BxHiII", socket.AF_UNSPEC, 0, socket.if_nametoindex(name), 0, 0) + attribute(_IFLA_XDP, nested)
    message = struct.pack("=IHHII", 16 + len(body), _RTM_SETLINK, _NLM_F_REQUEST_ACK, 1, 0) + body
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE) as link:
        link.sendto(message, (0, 0))
        answer = link.recv(65536)
    error = struct.unpack_from("=i", answer, 16)[0]
    if error:
        raise OSError(-error, f"XDP: {os.strerror(-error)}")


def detach(name: str) -> None:
    """Take the program away."""
    attach(name, -1)
