"""A tap device as the other end of a network device's wire; needs the right to make one (CAP_NET_ADMIN)."""

from __future__ import annotations

import contextlib
import fcntl
import os
import struct
from typing import TYPE_CHECKING, Final

from chamber.device.net_backend import NetBackend, PacketHeader
from chamber.wire.net import HDR_SIZE, NetFeature

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ("TapBackend",)

# linux/if_tun.h
_TUNSETIFF: Final = 0x400454CA
_TUNSETOFFLOAD: Final = 0x400454D0
_TUNSETVNETHDRSZ: Final = 0x400454D8
_TUNSETVNETLE: Final = 0x400454DC
_IFF_TAP: Final = 0x0002
_IFF_NO_PI: Final = 0x1000
_IFF_VNET_HDR: Final = 0x4000
_TUN_F: Final = {
    NetFeature.GUEST_CSUM: 1,
    NetFeature.GUEST_TSO4: 2,
    NetFeature.GUEST_TSO6: 4,
}

_FRAME_LIMIT: Final = 1 << 17
_FRAMES_PER_TURN: Final = 64


class TapBackend(NetBackend):
    """Sends and receives through a tap device, which is made if it is not there, and goes with it then.

    Args:
        name: of the interface, 15 characters at most.

    Attributes:
        name: of the interface.

    Raises:
        OSError: /dev/net/tun is missing or refuses.

    """

    def __init__(self, name: str = "chamber%d") -> None:
        super().__init__()
        self._fd = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            request = struct.pack("16sH22x", name.encode(), _IFF_TAP | _IFF_NO_PI | _IFF_VNET_HDR)
            answer = fcntl.ioctl(self._fd, _TUNSETIFF, request)
            fcntl.ioctl(self._fd, _TUNSETVNETHDRSZ, struct.pack("i", HDR_SIZE))
            fcntl.ioctl(self._fd, _TUNSETVNETLE, struct.pack("i", 1))
        except OSError:
            os.close(self._fd)
            raise
        self.name = answer[:16].rstrip(b"\0").decode()

    def transmit(self, frame: bytes, header: PacketHeader) -> None:
        """Hand a frame to the kernel, which checks the header; a frame that it does not take is lost."""
        try:
            os.write(self._fd, header.build() + frame)
        except OSError:
            return

    def set_offloads(self, features: int) -> None:
        """Let the kernel leave to the guest what the guest takes over."""
        flags = sum(flag for feature, flag in _TUN_F.items() if features >> feature & 1)
        if not flags & 1:
            flags = 0  # segmentation offload presupposes checksum offload
        # A kernel that cannot leave it to the guest goes on doing it itself.
        with contextlib.suppress(OSError):
            fcntl.ioctl(self._fd, _TUNSETOFFLOAD, flags)

    def pollable(self) -> dict[int, Callable[[], None]]:
        """The tap device."""
        return {self._fd: self._read}

    def _read(self) -> None:
        for _ in range(_FRAMES_PER_TURN):
            try:
                data = os.read(self._fd, _FRAME_LIMIT)
            except OSError:
                return
            self.receive(data[HDR_SIZE:], PacketHeader.parse(data))

    def close(self) -> None:
        """Close the tap device."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
