"""What a network device is connected to."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, Self

from chamber.wire.net import HDR_STRUCT

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ("NetBackend", "PacketHeader")


class PacketHeader(NamedTuple):
    """The fields of virtio_net_hdr (virtio 1.3, 5.1.6)."""

    flags: int = 0
    gso_type: int = 0
    hdr_len: int = 0
    gso_size: int = 0
    csum_start: int = 0
    csum_offset: int = 0
    num_buffers: int = 1

    @classmethod
    def parse(cls, data: bytes) -> Self:
        """Take the first 12 of at least as many bytes."""
        return cls(*HDR_STRUCT.unpack_from(data))

    def build(self) -> bytes:
        """The header's 12 bytes."""
        return HDR_STRUCT.pack(*self)


class NetBackend:
    """The other end of the wire; this one is cut off.

    Attributes:
        receive: set by the device: takes a frame for the guest, and the header that says what is left to do with it.

    """

    def __init__(self) -> None:
        self.receive: Callable[[bytes, PacketHeader], None] = lambda _frame, _header: None

    def transmit(self, frame: bytes, header: PacketHeader) -> None:
        """Take a frame that the guest sent; nothing about it or its header is checked yet."""

    def set_offloads(self, features: int) -> None:
        """The guest takes frames as these GUEST_ feature bits say: with partial checksums, unsegmented."""

    def pollable(self) -> dict[int, Callable[[], None]]:
        """File descriptors to wait for, and what to call when one is readable."""
        return {}

    def close(self) -> None:
        """Give back what the back end holds."""
