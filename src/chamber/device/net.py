"""Network device (virtio 1.3, 5.1)."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, ClassVar, Final

from chamber.device.base import Device
from chamber.device.errors import DriverError
from chamber.device.net_backend import NetBackend, PacketHeader
from chamber.device.net_control import COMMAND_LIMIT, NetControl
from chamber.device.net_peer import NetPeer
from chamber.device.net_steering import RSS_HASH_TYPES, RSS_KEY_SIZE, RSS_TABLE_LIMIT
from chamber.wire.net import (
    ACK_ERR,
    ACK_OK,
    CONFIG,
    HDR_SIZE,
    LEGACY_HDR_SIZE,
    MAC_SIZE,
    NetFeature,
    NetStatus,
    rx_queue,
)
from chamber.wire.virtio import DeviceType, Feature, bit

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from chamber.device.chain import Chain
    from chamber.device.hooks import Hooks
    from chamber.device.queue import DeviceQueue

__all__ = ("GUEST_MAC", "NetDevice")

GUEST_MAC: Final = bytes.fromhex("52540063686d")

_DEFAULT: Final = bit(NetFeature.MAC, NetFeature.STATUS, NetFeature.MTU, NetFeature.MRG_RXBUF, NetFeature.CSUM,
                      NetFeature.GUEST_CSUM, NetFeature.HOST_TSO4, NetFeature.HOST_TSO6, NetFeature.GUEST_TSO4,
                      NetFeature.GUEST_TSO6, NetFeature.CTRL_VQ, NetFeature.CTRL_RX, NetFeature.CTRL_VLAN,
                      NetFeature.CTRL_MAC_ADDR, NetFeature.MQ, NetFeature.GUEST_ANNOUNCE,
                      NetFeature.CTRL_GUEST_OFFLOADS)
_MULTIQUEUE: Final = bit(NetFeature.MQ, NetFeature.RSS)
_GUEST_TSO: Final = bit(NetFeature.GUEST_TSO4, NetFeature.GUEST_TSO6)

_ETHERNET: Final = 14
_TAGGED: Final = 18
"""Bytes of an Ethernet header with a VLAN tag."""
_FRAME_LIMIT: Final = 0xFFFF + _TAGGED
"""Bytes of the longest frame: a driver can claim terabytes by naming the same page again and again."""
_WAITING_LIMIT: Final = 128
"""Frames that wait for buffers, for each pair; what comes beyond is lost, as on any wire."""


class NetDevice(Device):
    """A network interface.

    Args:
        backend: the other end of the wire, closed with the device; by default a `NetPeer`.
        mac: the address that the guest's interface gets.
        mtu: what it is advised to use.
        pairs: receive and transmit queues.
        features: feature bits to offer instead of the default, which is all that the device has but RSS and
            SPEED_DUPLEX.
        config: fields of configuration space to set otherwise, by name.
        queue_size: descriptors per queue.
        hooks: interference, if any. What goes into one receive buffer is a response: the header and the frame's start,
            and where buffers are merged, its further parts.

    Attributes:
        backend: the other end.
        control: what the driver set up.
        lost: frames for the guest that were dropped, the filtered ones not counted.

    """

    type: ClassVar[DeviceType] = DeviceType.NET

    def __init__(self, backend: NetBackend | None = None, *, mac: bytes = GUEST_MAC, mtu: int = 1500, pairs: int = 2,
                 features: int | None = None, config: Mapping[str, int | bytes] | None = None, queue_size: int = 256,
                 hooks: Hooks | None = None) -> None:
        values: dict[str, int | bytes] = {
            "mac": mac,
            "status": NetStatus.LINK_UP,
            "max_virtqueue_pairs": pairs,
            "mtu": mtu,
            "rss_max_key_size": RSS_KEY_SIZE,
            "rss_max_indirection_table_length": RSS_TABLE_LIMIT,
            "supported_hash_types": RSS_HASH_TYPES,
            **(config or {}),
        }
        self.backend: NetBackend = NetPeer(mtu=mtu) if backend is None else backend
        self.backend.receive = self.receive
        self.lost = 0
        self._mac = mac
        self._mtu = mtu
        self._pairs = pairs
        self._waiting: list[deque[tuple[bytes, PacketHeader]]] = [deque() for _ in range(pairs)]
        self._taken: list[list[Chain]] = [[] for _ in range(pairs)]
        self.control = NetControl(mac, pairs, 0)
        super().__init__(features=_DEFAULT if features is None else features, config=CONFIG.pack(**values),
                         queues=2 * pairs + 1, queue_size=queue_size, hooks=hooks)

    def close(self) -> None:
        """Close the other end."""
        self.backend.close()

    def pollable(self) -> dict[int, Callable[[], None]]:
        """What the other end waits for."""
        return self.backend.pollable()

    # What the host does.

    def set_link(self, *, is_up: bool) -> None:
        """Plug or unplug the cable."""
        self._set_status(NetStatus.LINK_UP, on=is_up)

    def announce(self) -> None:
        """Ask the guest to make its address known, as after a migration (5.1.6.5.4)."""
        if self.has(NetFeature.GUEST_ANNOUNCE):
            self._set_status(NetStatus.ANNOUNCE, on=True)

    def host_action(self, action: str) -> None:
        """Take the link down or up, or ask for announcements: ``link-down``, ``link-up``, ``announce``."""
        if action in {"link-down", "link-up"}:
            self.set_link(is_up=action == "link-up")
        elif action == "announce":
            self.announce()

    def _set_status(self, flag: NetStatus, *, on: bool) -> None:
        before = CONFIG.get(self.config, "status")
        after = before | flag if on else before & ~flag
        if after != before:
            CONFIG.put(self.config, "status", after)
            self.config_changed()

    @property
    def _link_is_up(self) -> bool:
        return not self.has(NetFeature.STATUS) or bool(CONFIG.get(self.config, "status") & NetStatus.LINK_UP)

    # What the driver causes.

    def features_accepted(self) -> None:
        """Go back to the state before a driver came."""
        self.control = NetControl(self._mac, self._pairs, self.features)
        self.control.announced = self._announced
        self.control.offloads_changed = self.backend.set_offloads
        self.backend.set_offloads(self.control.offloads)

    def _announced(self) -> None:
        # The driver knows, so it is not told by an interrupt.
        CONFIG.put(self.config, "status", CONFIG.get(self.config, "status") & ~NetStatus.ANNOUNCE)

    def config_written(self, offset: int, data: bytes) -> None:
        """Take a MAC address from a driver that has no command for it (5.1.4); nothing else can be written."""
        if not self.has(NetFeature.CTRL_MAC_ADDR) and offset < MAC_SIZE:
            written = data[:MAC_SIZE - offset]
            self.config[offset:offset + len(written)] = written
            self.control.filter.mac = bytes(self.config[:MAC_SIZE])

    def queue_stopped(self, queue: DeviceQueue) -> None:
        """Forget the buffers of a receive queue, and what was to go there."""
        pair = self._receiving(queue.index)
        if pair is not None:
            self._taken[pair].clear()
            self._waiting[pair].clear()

    def queue_role(self, index: int) -> str:
        """``rx``, ``tx`` or ``ctrl`` (5.1.2)."""
        if index == self._control_queue:
            return "ctrl"
        return "tx" if index % 2 else "rx"

    def _receiving(self, index: int) -> int | None:
        """The pair that a receive queue belongs to; None for another queue."""
        if index % 2 or index >= 2 * self._pairs or index == self._control_queue:
            return None
        return index // 2

    @property
    def _control_queue(self) -> int:
        return 2 * self._pairs if self.features & _MULTIQUEUE else 2

    def available(self, queue: DeviceQueue) -> bool:
        """Serve a queue: receive queues take as many buffers as there are frames for, others all."""
        pair = self._receiving(queue.index)
        if pair is None:
            return super().available(queue)
        waiting = self._waiting[pair]
        while waiting:
            frame, header = waiting[0]
            if not self._deliver(queue, self._taken[pair], frame, header):
                break
            waiting.popleft()
        return False

    def handle(self, queue: DeviceQueue, chain: Chain) -> None:
        """Carry out a control command, or send a frame."""
        if queue.index == self._control_queue:
            self._command(queue, chain)
            return
        if not queue.index % 2:
            raise DriverError("the control queue follows the queue pairs, and without MQ there is one pair",
                              spec="5.1.2", detail=f"queue {queue.index}")
        head = self._header_size()
        size = chain.readable_size - head
        data = chain.read(0, head + size) if _ETHERNET <= size <= _FRAME_LIMIT else b""
        # Given back first: the buffer is used up before an answer to it arrives.
        self.complete(queue, chain, 0)
        if not data:
            self.report(DriverError("a packet is a header and a frame", spec="5.1.6.2", detail=f"{size} bytes"))
        elif self._link_is_up:
            frame = data[head:]
            self.control.steering.sent(frame, queue.index // 2)
            self.backend.transmit(frame, PacketHeader.parse(data[:head].ljust(HDR_SIZE, b"\0")))

    def _header_size(self) -> int:
        """Bytes before a frame: a legacy driver knows of `num_buffers` with MRG_RXBUF alone (5.1.6.1)."""
        return HDR_SIZE if self.has(Feature.VERSION_1) or self.has(NetFeature.MRG_RXBUF) else LEGACY_HDR_SIZE

    def _command(self, queue: DeviceQueue, chain: Chain) -> None:
        data = chain.read(0, COMMAND_LIMIT + 1)
        if not chain.writable_size:
            self.report(DriverError("a control command has room for its acknowledgement", spec="5.1.6.5"))
            self.complete(queue, chain, 0)
            return
        done = self.has(NetFeature.CTRL_VQ) and self.control.command(data)
        self.log(f"control command {data[:16].hex()}: {'ok' if done else 'error'}")
        self.complete(queue, chain, self.respond(queue, chain, bytes((ACK_OK if done else ACK_ERR,))))

    # What comes over the wire.

    def receive(self, frame: bytes, header: PacketHeader) -> None:
        """Take a frame for the guest; it waits for a buffer, or is lost where too many wait already."""
        if not _ETHERNET <= len(frame) <= self._longest() or not self._link_is_up:
            self.lost += 1
            return
        if not self.control.filter.passes(frame):
            return
        pair = self.control.steering.pair(frame)
        if self._receiving(rx_queue(pair)) is None or not self.queues[rx_queue(pair)].started:
            pair = 0
        queue = self.queues[rx_queue(pair)]
        if not queue.started or len(self._waiting[pair]) >= _WAITING_LIMIT:
            self.lost += 1
            return
        self._waiting[pair].append((frame, header))
        self.pump(queue)

    def _longest(self) -> int:
        """Bytes of the longest frame that the driver's buffers have to have room for (5.1.6.3.1)."""
        if self.has(NetFeature.MRG_RXBUF) or self.control.offloads & _GUEST_TSO:
            return _FRAME_LIMIT
        return (max(self._mtu, 1500) if self.has(NetFeature.MTU) else 1500) + _TAGGED

    def _deliver(self, queue: DeviceQueue, chains: list[Chain], frame: bytes, header: PacketHeader) -> bool:
        """Put a frame into buffers; False if there are not enough yet, and those taken are kept for it."""
        ring = queue.ring
        head = self._header_size()
        size = head + len(frame)
        mergeable = self.has(NetFeature.MRG_RXBUF)
        while (missing := size - sum(chain.writable_size for chain in chains)) > 0:
            if ring is None or len(chains) >= ring.size:
                raise DriverError("a receive queue has room for a packet", spec="5.1.6.3.1", detail=f"{size} bytes")
            # Only the first buffer has to have room for the header, and all of them together for the frame.
            chain = self.take_buffer(queue, missing if not mergeable else 1 if chains else head)
            if chain is None:
                return False
            chains.append(chain)
        if header.num_buffers != len(chains):
            header = header._replace(num_buffers=len(chains))
        data = memoryview(header.build()[:head] + frame)
        for chain in chains:
            part = bytes(data[:chain.writable_size])
            data = data[len(part):]
            self.complete(queue, chain, self.respond(queue, chain, part))
        chains.clear()
        return True
