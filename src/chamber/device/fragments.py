"""IPv4 fragments, put together and cut (RFC 791, 3.2)."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import replace
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from chamber.wire.ethernet import Ipv4

__all__ = ("Reassembly", "fragment")

_PACKETS: Final = 16
_HEADER: Final = 20
_PAYLOAD_LIMIT: Final = 0xFFFF - _HEADER


class Reassembly:
    """Puts packets together whose fragments come in order, as they do over one wire."""

    def __init__(self) -> None:
        self._parts: OrderedDict[tuple[bytes, bytes, int, int], bytearray] = OrderedDict()

    def take(self, packet: Ipv4) -> Ipv4 | None:
        """Return the whole packet once all of it is there; at once if it is no fragment."""
        if not packet.offset and not packet.more:
            return packet
        key = (packet.source, packet.destination, packet.protocol, packet.identification)
        if not packet.offset:
            self._parts[key] = bytearray()
            if len(self._parts) > _PACKETS:
                self._parts.popitem(last=False)
        parts = self._parts.get(key)
        if parts is None or len(parts) != packet.offset or len(parts) + len(packet.payload) > _PAYLOAD_LIMIT:
            self._parts.pop(key, None)
            return None
        parts += packet.payload
        if packet.more:
            return None
        del self._parts[key]
        return replace(packet, payload=bytes(parts), offset=0)


def fragment(packet: Ipv4, mtu: int) -> list[Ipv4]:
    """Cut a packet so that no part of it is longer than `mtu`, which is 28 bytes at least."""
    if _HEADER + len(packet.payload) <= mtu:
        return [packet]
    step = (mtu - _HEADER) & ~7
    payload = packet.payload
    return [replace(packet, payload=payload[at:at + step], offset=at, more=at + step < len(payload))
            for at in range(0, len(payload), step)]
