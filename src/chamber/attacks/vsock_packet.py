"""How a hostile socket device changes packets, makes up packets, and sends events."""

from __future__ import annotations

from collections import deque
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from chamber.attacks.attack import Attack
from chamber.device.errors import DriverError
from chamber.device.vsock import VsockDevice
from chamber.wire.errors import DmaFault
from chamber.wire.vsock import CONFIG, EVENT, EVENT_QUEUE, HDR_SIZE, RX_QUEUE, Header, VsockOp, VsockType

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from chamber.device.base import Device
    from chamber.device.chain import Chain
    from chamber.device.queue import DeviceQueue

__all__ = ("FILL", "Events", "Inject", "Packet", "Pieces", "Rewrite", "Silence", "answer")

FILL: Final = -1
"""Stands for a claim of the whole buffer."""
_ALLOC: Final = 256 << 10
"""Space that made-up packets claim, as the honest device's do."""
_RETRIES: Final = 100
_RETRY: Final = 0.01


@dataclass(frozen=True, slots=True)
class Packet:
    """A packet for the guest, and how it is handed over.

    Attributes:
        header: its header.
        data: what is written behind it.
        claim: used.len instead of the true one; `FILL` for the whole buffer.

    """

    header: Header
    data: bytes = b""
    claim: int | None = None


def answer(heard: Header, op: int, data: bytes = b"", **fields: int) -> Packet:
    """A packet on the connection that the guest's packet belongs to, with other header fields as named."""
    header = Header(heard.dst_cid, heard.src_cid, heard.dst_port, heard.src_port, len(data), heard.type, op, 0, _ALLOC)
    return Packet(header._replace(**fields), data)


class Rewrite(Attack):
    """Changes packets to the guest before they are written.

    Args:
        change: makes the packet from the honest one.
        ops: which operations to change; all by default.
        kind: change packets of this socket type alone.
        skip: packets of these to let pass first.
        times: packets to change at most.

    """

    def __init__(self, change: Callable[[Header, bytes], Packet], *, ops: tuple[int, ...] = tuple(VsockOp),
                 kind: VsockType | None = None, skip: int = 0, times: int = 100) -> None:
        super().__init__()
        self._change = change
        self._ops = ops
        self._kind = kind
        self._skip = skip
        self._left = times
        self._claims: dict[int, int] = {}

    def response(self, queue: DeviceQueue, chain: Chain, data: bytes) -> bytes:
        """Change."""
        if self.device.queue_role(queue.index) != "rx":
            return data
        header = Header.parse(data)
        if header.op not in self._ops or self._kind not in {None, header.type} or not self._left:
            return data
        if self._skip:
            self._skip -= 1
            return data
        packet = self._change(header, data[HDR_SIZE:])
        changed = packet.header.build() + packet.data
        if changed == data and packet.claim is None:
            return data
        self._left -= 1
        if packet.claim is not None:
            self._claims[chain.head] = chain.writable_size if packet.claim == FILL else packet.claim
        self.strike(f"{packet.header.brief}; in place of {header.brief}")
        return changed

    def used(self, queue: DeviceQueue, chain: Chain, length: int) -> Iterable[tuple[int, int]]:
        """Claim."""
        if self.device.queue_role(queue.index) == "rx":
            length = self._claims.pop(chain.head, length)
        return ((chain.head, length),)


class Inject(Attack):
    """Sends packets of its own when the guest sent one of a kind.

    Args:
        op: the guest's operation that sets it off.
        make: makes the packets from the guest's header.
        kind: act on packets of this socket type alone.
        delay: seconds to wait; 0 to be first, before the honest device answers.
        skip: packets of the guest to let pass first.
        times: how often to do it in a run.
        retries: how often to wait for buffers, if there are fewer than packets.

    """

    def __init__(self, op: int, make: Callable[[Header], list[Packet]], *, kind: VsockType | None = None,
                 delay: float = 0.0, skip: int = 0, times: int = 2, retries: int = _RETRIES) -> None:
        super().__init__()
        self._op = op
        self._make = make
        self._kind = kind
        self._delay = delay
        self._skip = skip
        self._times = times
        self._retries = retries
        # What the guest has sent, by its port: made-up packets forward it all, so that only the lie itself is odd.
        self._sent: dict[int, int] = {}

    def popped(self, queue: DeviceQueue, chain: Chain) -> bool:
        """Listen."""
        if self.device.queue_role(queue.index) == "tx":
            raw = chain.read(0, HDR_SIZE)
            if len(raw) == HDR_SIZE:
                self._heard(Header.parse(raw))
        return True

    def _heard(self, header: Header) -> None:
        if header.op == VsockOp.REQUEST:
            self._sent[header.src_port] = 0
        if header.op == VsockOp.RW:
            self._sent[header.src_port] = self._sent.get(header.src_port, 0) + header.len
        if header.op != self._op or self._kind not in {None, header.type} or not self._times:
            return
        if self._skip:
            self._skip -= 1
            return
        self._times -= 1
        self._start(deque(self._plausible(packet) for packet in self._make(header)))

    def _plausible(self, packet: Packet) -> Packet:
        header = packet.header
        if header.fwd_cnt:
            return packet
        return Packet(header._replace(fwd_cnt=self._sent.get(header.dst_port, 0)), packet.data, packet.claim)

    def _start(self, pending: deque[Packet]) -> None:
        retries = self._retries

        def send() -> None:
            nonlocal retries
            queue = self.device.queues[RX_QUEUE]
            while pending and queue.started and (chain := _take(queue)) is not None:
                self._hand_over(queue, chain, pending.popleft())
            self.device.flush(queue)
            retries -= 1
            if pending and retries and queue.started:
                self.device.schedule(_RETRY, send)

        if self._delay:
            self.device.schedule(self._delay, send)
        else:
            send()

    def _hand_over(self, queue: DeviceQueue, chain: Chain, packet: Packet) -> None:
        data = packet.header.build() + packet.data
        with suppress(DmaFault):
            chain.write(data)
        length = min(len(data), chain.writable_size)
        claim = length if packet.claim is None else chain.writable_size if packet.claim == FILL else packet.claim
        queue.push(chain.head, claim)
        self.strike(f"{packet.header.brief}; {len(packet.data)} bytes behind it, used.len {claim}")


class Hoard(Inject):
    """Says what space it has for data, and keeps every buffer with data that the guest sends: what is on its way stays.

    Args:
        buf_alloc: the space that it says.

    """

    def __init__(self, buf_alloc: int) -> None:
        # One byte is forwarded, and never more: the rest stays on its way.
        super().__init__(VsockOp.RW, lambda heard: [
            answer(heard, VsockOp.CREDIT_UPDATE, buf_alloc=buf_alloc, fwd_cnt=1)])

    def popped(self, queue: DeviceQueue, chain: Chain) -> bool:
        """Keep data."""
        super().popped(queue, chain)
        if self.device.queue_role(queue.index) != "tx":
            return True
        raw = chain.read(0, HDR_SIZE)
        return len(raw) != HDR_SIZE or Header.parse(raw).op != VsockOp.RW


class Pieces(Attack):
    """Cuts all data in small packets: legal, and seldom seen by drivers.

    Args:
        size: bytes of data in a packet.

    """

    def __init__(self, size: int) -> None:
        super().__init__()
        self._size = size

    def attach(self, device: Device) -> None:
        """Have the device cut."""
        super().attach(device)
        assert isinstance(device, VsockDevice)
        device.packet_limit = self._size

    def response(self, queue: DeviceQueue, chain: Chain, data: bytes) -> bytes:  # noqa: ARG002 - the hook's signature
        """Say so."""
        if len(data) == HDR_SIZE + self._size:
            self.strike(f"a packet of {self._size} bytes")
        return data


class Silence(Attack):
    """Takes packets of some operations from the guest and does nothing about them.

    Args:
        op: the guest's operation.
        times: packets to take at most.

    """

    def __init__(self, op: int, *, times: int = 20) -> None:
        super().__init__()
        self._op = op
        self._left = times

    def popped(self, queue: DeviceQueue, chain: Chain) -> bool:
        """Complete, and do nothing."""
        if self.device.queue_role(queue.index) != "tx" or not self._left:
            return True
        raw = chain.read(0, HDR_SIZE)
        if len(raw) < HDR_SIZE or Header.parse(raw).op != self._op:
            return True
        self._left -= 1
        queue.push(chain.head, 0)
        self.strike(f"ignored: {Header.parse(raw).brief}")
        return False


class Events(Attack):
    """Sends events when the guest starts to send, and may say that it is called otherwise.

    Args:
        events: id and used.len of each event, the true one for None.
        cids: context ids to go by, one for each event, the last one for good; none for the honest one.
        op: the guest's operation that sets it off.
        pause: seconds between two events.

    """

    def __init__(self, events: tuple[tuple[int, int | None], ...], *, cids: tuple[int, ...] = (),
                 op: int = VsockOp.RW, pause: float = 0.0) -> None:
        super().__init__()
        self._events = list(events)
        self._cids = list(cids)
        self._cid: int | None = None
        self._op = op
        self._pause = pause
        self._begun = False
        self._retries = 2 * _RETRIES

    def popped(self, queue: DeviceQueue, chain: Chain) -> bool:
        """Wait for the guest to be at work."""
        if not self._begun and self.device.queue_role(queue.index) == "tx":
            raw = chain.read(0, HDR_SIZE)
            if len(raw) == HDR_SIZE and Header.parse(raw).op == self._op:
                self._begun = True
                self._tell()
        return True

    def config(self, config: bytearray, offset: int, size: int) -> bytearray:  # noqa: ARG002 - the hook's signature
        """Lie about who the guest is."""
        if self._cid is not None:
            CONFIG.put(config, "guest_cid", self._cid)
        return config

    def _tell(self) -> None:
        queue = self.device.queues[EVENT_QUEUE]
        while self._events and queue.started and (chain := _take(queue)) is not None:
            ident, claim = self._events.pop(0)
            if self._cids:
                self._cid = self._cids.pop(0)
            with suppress(DmaFault):
                chain.write(bytes(EVENT.pack(id=ident)))
            queue.push(chain.head, EVENT.size if claim is None else claim)
            self.strike(f"event {ident}, used.len {EVENT.size if claim is None else claim}, "
                        f"guest_cid {'as it was' if self._cid is None else self._cid}")
            if self._pause:
                break
        self.device.flush(queue)
        self._retries -= 1
        if self._events and self._retries and queue.started:
            self.device.schedule(self._pause or _RETRY, self._tell)


def _take(queue: DeviceQueue) -> Chain | None:
    with suppress(DriverError, DmaFault):
        return queue.pop()
    return None
