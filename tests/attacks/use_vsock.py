"""Uses a socket device as a guest would that looks at no answer."""

from __future__ import annotations

from typing import TYPE_CHECKING

from chamber.device.vsock_service import CALL_PORT, ECHO_PORT
from chamber.wire.vsock import EVENT_QUEUE, HDR_SIZE, HOST_CID, RX_QUEUE, TX_QUEUE, Header, VsockOp, VsockType
from tests.device.vsock_guest import ALLOC

if TYPE_CHECKING:
    from tests.attacks.victim import Victim

__all__ = ("use",)

BUFFERS = 48


def use(victim: Victim) -> None:
    """Connect, send, shut down, listen, and be reset."""
    driver = victim.driver
    for _ in range(4):
        driver.add(EVENT_QUEUE, [], [4])

    def say(op: VsockOp, local: int, kind: VsockType, data: bytes = b"", remote: int = ECHO_PORT, *, flags: int = 0,
            fwd: int = 0) -> None:
        while len(driver.queues[RX_QUEUE].buffers) < BUFFERS:
            driver.add(RX_QUEUE, [], [HDR_SIZE + 4096])
        driver.notify(RX_QUEUE)
        header = Header(3, HOST_CID, local, remote, len(data), kind, op, flags, ALLOC, fwd)
        victim.request(TX_QUEUE, [header.build(), *([data] if data else [])], [])
        for queue in (RX_QUEUE, EVENT_QUEUE):
            victim.collect(queue)

    for kind in VsockType:
        for local in (1000 + kind, 2000 + kind):
            say(VsockOp.REQUEST, local, kind)
        sizes = (1, 100, 1000)
        for i, size in enumerate(sizes):
            for local in (1000 + kind, 2000 + kind):
                data = bytes([i + (local & 0xF0)]) * size
                say(VsockOp.RW, local, kind, data, flags=int(kind is VsockType.SEQPACKET), fwd=sum(sizes[:i]))
        for local in (1000 + kind, 2000 + kind):
            say(VsockOp.CREDIT_UPDATE, local, kind, fwd=sum(sizes))
            say(VsockOp.SHUTDOWN, local, kind, flags=3, fwd=sum(sizes))
        # What the host calls by, the honest device counts from the start; calls of a hostile one are answered alike.
        ports = [port for _, port in victim.device.connections]  # type: ignore[attr-defined]
        victim.device.host_action("call" if kind is VsockType.STREAM else "call-seqpacket")
        victim.collect(RX_QUEUE)
        for local, port in list(victim.device.connections):  # type: ignore[attr-defined]
            if local == CALL_PORT and port not in ports:
                say(VsockOp.RESPONSE, CALL_PORT, kind, remote=port)
                say(VsockOp.RW, CALL_PORT, kind, b"to the caller" * 20, remote=port,
                    flags=int(kind is VsockType.SEQPACKET), fwd=3000)
                say(VsockOp.SHUTDOWN, CALL_PORT, kind, remote=port, flags=3, fwd=3000)
    victim.device.host_action("reset")
    victim.collect(EVENT_QUEUE)
