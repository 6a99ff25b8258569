"""Network driver (virtio 1.3, 5.1)."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Final

from chamber.guest.driver import TRANSPORT_FEATURES, Refused, VirtioDriver
from chamber.wire.ethernet import internet_checksum
from chamber.wire.net import ACK_ERR, ACK_OK, CONFIG, CTRL, HDR, CtrlClass, GsoType, HdrFlag, NetFeature
from chamber.wire.virtio import DeviceType, bit

if TYPE_CHECKING:
    from chamber.guest.machine import GuestMachine
    from chamber.guest.untrusted import DeviceViolation
    from chamber.guest.virtqueue import Request, VirtQueue
    from chamber.platform.heap import Object
    from chamber.platform.transport import Transport

__all__ = ("NetDriver",)

_F = NetFeature
_RX: Final = 0
_TX: Final = 1
_BUFFERS: Final = 8
_FRAME: Final = 1526
_ETHERNET: Final = 14
_KEY: Final = 40
_TABLE: Final = 128
_BACKLOG: Final = 64
_SPEC: Final = "5.1.6.4"


class NetDriver(VirtioDriver):
    """Sends and receives frames.

    Attributes:
        mac: the hardware address.
        mtu: largest payload of a frame.

    """

    type = DeviceType.NET
    known = TRANSPORT_FEATURES | bit(_F.CSUM, _F.GUEST_CSUM, _F.MAC, _F.GUEST_TSO4, _F.GUEST_TSO6, _F.MRG_RXBUF,
                                     _F.STATUS, _F.MTU, _F.CTRL_VQ, _F.CTRL_RX, _F.CTRL_MAC_ADDR, _F.MQ, _F.RSS,
                                     _F.SPEED_DUPLEX)
    # A confidential guest does without offloads on receive: each is a promise about bytes that only the host has seen.
    allowed = TRANSPORT_FEATURES | bit(_F.MAC, _F.MRG_RXBUF, _F.STATUS, _F.MTU, _F.CTRL_VQ, _F.CTRL_RX,
                                       _F.CTRL_MAC_ADDR, _F.MQ)
    config_layout = CONFIG

    def __init__(self, machine: GuestMachine, transport: Transport) -> None:
        super().__init__(machine, transport)
        self.mac = bytes(6)
        self.mtu = 1500
        self._control = 2
        self._lent: dict[Request, Object] = {}
        self._frames: deque[tuple[bytes, bool]] = deque()
        self._rss: list[Object] = []

    def queue_indexes(self) -> list[int]:
        """One pair of queues, and the control queue behind all pairs that the device has."""
        pairs = 1
        if self.has(_F.MQ) or self.has(_F.RSS):
            pairs = self.read_config("max_virtqueue_pairs").between(1, 0x8000, "there is a pair of queues", "5.1.4.1")
        self._control = 2 * pairs
        return [_RX, _TX, *([self._control] if self.has(_F.CTRL_VQ) else [])]

    def initialise(self) -> None:
        """Read addresses and limits."""
        heap = self.machine.heap
        self._frames.clear()
        self.mac = bytes.fromhex("020000000002")
        if self.has(_F.MAC):
            self.mac = self.read_config_bytes("mac").opaque("an address is a name, and the host forges frames anyway")
            self.checks.require(not self.mac[0] & 1 and any(self.mac), "an address is not a group's and not zero",
                                "5.1.4", self.mac.hex())
        self.mtu = 1500
        if self.has(_F.MTU):
            self.mtu = self.read_config("mtu").between(68, 65535, "an MTU is 68 at least", "5.1.4.1")
        self.link_up()
        if self.has(_F.RSS):
            key = self.read_config("rss_max_key_size").between(_KEY, 255, "an RSS key has 40 bytes at least", "5.1.4.1")
            entries = self.read_config("rss_max_indirection_table_length").between(
                _TABLE, _TABLE, "the indirection table has as many entries as the driver has room for", "5.1.4.1")
            self._rss = [heap.alloc(_KEY, "RSS key"), heap.alloc(2 * _TABLE, "RSS indirection table")]
            self._rss[0].write(bytes(key))
            self._rss[1].write(bytes(2 * entries))

    def link_up(self) -> bool:
        """Whether the link is up."""
        return not self.has(_F.STATUS) or bool(self.read_config("status").masked(1))

    def config_changed(self) -> None:
        """Take a change of the link."""
        self.link_up()

    def started(self) -> None:
        """Lend receive buffers."""
        queue = self.queues[_RX]
        for _ in range(_BUFFERS):
            buffer = self.machine.heap.alloc(HDR.size + _FRAME, "receive buffer")
            self._lent[self.lend(queue, [], [buffer])] = buffer
        self.kick(queue)
        if not self.has(_F.MAC):
            self.set_mac(self.mac)

    def free_buffers(self) -> None:
        """Free what was lent."""
        for request, buffer in self._lent.items():
            self.machine.heap.free(request.record)
            self.machine.heap.free(buffer)
        self._lent.clear()
        for memory in self._rss:
            self.machine.heap.free(memory)
        self._rss = []

    @property
    def dead(self) -> bool:
        """Whether a queue for frames was latched."""
        return self._broken() is not None

    def raise_if_dead(self) -> None:
        """Raise what the device did to a queue."""
        broken = self._broken()
        if broken is not None:
            raise broken

    def _broken(self) -> DeviceViolation | None:
        return self.queues[_RX].broken or self.queues[_TX].broken or (self.violations[0] if self.violations else None)

    # Receiving.

    def used(self, queue: VirtQueue) -> None:
        """Take frames in, buffer by buffer."""
        if queue.index == _TX:
            while (request := queue.get()) is not None:
                self._sent(request)
            return
        if queue.index != _RX:
            super().used(queue)  # whoever waits for the command looks after it
            return
        while (request := queue.get()) is not None:
            buffer = self._lent.pop(request)
            self.machine.heap.free(request.record)
            self._receive(queue, buffer, request.written)
        self.kick(queue)

    def _relend(self, queue: VirtQueue, buffer: Object) -> None:
        self._lent[self.lend(queue, [], [buffer])] = buffer

    def _receive(self, queue: VirtQueue, buffer: Object, written: int) -> None:
        length = self.checks.number(written).minus(HDR.size, buffer.size, "a header comes before a frame", _SPEC)
        header = buffer.read(0, HDR.size)
        field = self.checks.number
        parts = [buffer.read(HDR.size, length)]
        merged = 1
        if self.has(_F.MRG_RXBUF):
            merged = field(HDR.get(header, "num_buffers")).between(
                1, _BUFFERS, "a frame takes a buffer at least and no more than there are", _SPEC)
        self._relend(queue, buffer)
        for _ in range(merged - 1):
            request = queue.get()
            if request is None:
                self.checks.require(False, "all buffers of a frame come together", _SPEC)
                self.machine.heap.report("null pointer", "further buffer of a frame", f"{merged} buffers")
                return
            further = self._lent.pop(request)
            self.machine.heap.free(request.record)
            parts.append(further.read(0, request.written))
            self._relend(queue, further)
        self._deliver(b"".join(parts), header)

    def _deliver(self, data: bytes, header: bytes) -> None:
        field = self.checks.number
        guest_csum = self.has(_F.GUEST_CSUM)
        flags = field(HDR.get(header, "flags")).flags(
            HdrFlag.NEEDS_CSUM | HdrFlag.DATA_VALID if guest_csum else 0, "flags need GUEST_CSUM", _SPEC)
        gso = (GsoType.TCPV4, GsoType.TCPV6) if self.has(_F.GUEST_TSO4) else ()
        gso_type = field(HDR.get(header, "gso_type")).one_of((GsoType.NONE, *gso), "a GSO type was negotiated", _SPEC)
        self.checks.require(_ETHERNET <= len(data) <= self.mtu + 18 or bool(gso),
                            "a frame has a header and no more than the MTU", _SPEC, f"{len(data)} bytes")
        if flags & HdrFlag.NEEDS_CSUM:
            data = self._complete_checksum(data, header)
        if gso_type:
            # Cutting a frame up divides by the size that the header gives.
            size = field(HDR.get(header, "gso_size")).between(1, 65535, "a GSO frame has a size of segments", _SPEC)
            _ = -(-len(data) // size)
        if len(self._frames) < _BACKLOG:
            self._frames.append((data, bool(flags & (HdrFlag.DATA_VALID | HdrFlag.NEEDS_CSUM))))

    def _complete_checksum(self, data: bytes, header: bytes) -> bytes:
        start = self.checks.number(HDR.get(header, "csum_start")).at_most(
            len(data) - 2, "a checksum starts within the frame", _SPEC)
        offset = self.checks.number(HDR.get(header, "csum_offset")).at_most(
            len(data) - 2 - start, "a checksum lies within the frame", _SPEC)
        frame = self.machine.heap.alloc(len(data), "frame")
        frame.write(data)
        total = internet_checksum(frame.read(start, len(data) - start))
        frame.write(total.to_bytes(2, "big"), start + offset)
        data = frame.read()
        self.machine.heap.free(frame)
        return data

    def receive(self) -> tuple[bytes, bool] | None:
        """Return the next frame, and whether the device vouched for its checksums; None if there is none."""
        return self._frames.popleft() if self._frames else None

    # Sending.

    def send(self, frame: bytes) -> None:
        """Send a frame; whether it arrives nobody knows."""
        queue = self.queue(_TX)
        while (request := queue.get()) is not None:
            self._sent(request)
        if queue.outstanding >= _BUFFERS:
            raise Refused("the device takes no more frames")
        buffer = self.machine.heap.alloc(HDR.size + len(frame), "frame to send")
        buffer.write(bytes(HDR.size) + frame)
        self._lent[self.lend(queue, [buffer], [])] = buffer
        self.kick(queue)

    def _sent(self, request: Request) -> None:
        buffer = self._lent.pop(request)
        self.machine.heap.free(request.record)
        self.machine.heap.free(buffer)

    # Control.

    def _command(self, kind: CtrlClass, command: int, data: bytes) -> None:
        if not self.has(_F.CTRL_VQ):
            raise Refused("there is no control queue")
        heap = self.machine.heap
        out = heap.alloc(CTRL.size + len(data), "control command")
        out.write(bytes(CTRL.pack(**{"class": kind, "command": command})) + data)
        ack = heap.alloc(1, "control ack")
        ack.put(0, 1, ACK_ERR)
        try:
            self.transact(self.queue(self._control), [out], [], ack)
            answer = self.checks.number(ack.get(0, 1)).one_of((ACK_OK, ACK_ERR), "an ack is OK or ERR", "5.1.6.5")
            if answer != ACK_OK:
                raise Refused("the device refuses the command")
        finally:
            self.release(out, ack)

    def set_promiscuous(self, *, on: bool) -> None:
        """Receive everything, or not."""
        if self.has(_F.CTRL_RX):
            self._command(CtrlClass.RX, 0, bytes([on]))

    def set_mac(self, mac: bytes) -> None:
        """Set the hardware address."""
        if self.has(_F.CTRL_MAC_ADDR):
            self._command(CtrlClass.MAC, 1, mac)

    def set_pairs(self, count: int) -> None:
        """Use so many queue pairs."""
        if self.has(_F.MQ):
            self._command(CtrlClass.MQ, 0, count.to_bytes(2, "little"))
