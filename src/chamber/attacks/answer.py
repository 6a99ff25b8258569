"""Changed answers: what most lies in a device's own protocol are."""

from __future__ import annotations

from typing import TYPE_CHECKING

from chamber.attacks.roles import AtRole

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from chamber.device.chain import Chain
    from chamber.device.queue import DeviceQueue

__all__ = ("Answer", "Claim", "Unasked")

_REQUEST = 512


class Answer(AtRole):
    """Answers requests otherwise.

    Args:
        role: queues to act on, as `Device.queue_role` names them.
        change: makes the answer from the first 512 bytes of the request and the honest answer; None leaves it.
        after: answers that it would change to leave as they are.
        times: answers to change at most.

    """

    def __init__(self, role: str, change: Callable[[bytes, bytes], bytes | None], *, after: int = 0,
                 times: int = 50) -> None:
        super().__init__(role, after=after, times=times)
        self._change = change

    def response(self, queue: DeviceQueue, chain: Chain, data: bytes) -> bytes:
        """Answer."""
        if not self.mine(queue):
            return data
        changed = self._change(chain.read(0, _REQUEST), bytes(data))
        if changed is None or changed == data or not self.due(queue):
            return data
        self.strike(f"queue {queue.index}: answered {changed[:24].hex(' ')} ({len(changed)} bytes) where "
                    f"{bytes(data[:24]).hex(' ')} ({len(data)} bytes) is true")
        return changed


class Claim(AtRole):
    """Answers as it should, or with less, and claims another length.

    Args:
        role: queues to act on.
        claim: makes the claimed length from the true one and from what could be written.
        keep: how much of an answer it writes, of its length.
        after: answers to leave as they are.
        times: answers to change at most.

    """

    def __init__(self, role: str, claim: Callable[[int, int], int], *, keep: Callable[[int], int] = lambda n: n,
                 after: int = 0, times: int = 50) -> None:
        super().__init__(role, after=after, times=times)
        self._claim = claim
        self._keep = keep
        self._true: dict[int, int] = {}

    def response(self, queue: DeviceQueue, chain: Chain, data: bytes) -> bytes:
        """Write as much as is kept."""
        if not self.due(queue):
            return data
        self._true[chain.head] = len(data)
        return data[:self._keep(len(data))]

    def used(self, queue: DeviceQueue, chain: Chain, length: int) -> Iterable[tuple[int, int]]:
        """Claim."""
        true = self._true.pop(chain.head, None)
        if true is None:
            return ((chain.head, length),)
        claimed = self._claim(true, chain.writable_size)
        self.strike(f"queue {queue.index}: {length} bytes written, {claimed} claimed")
        return ((chain.head, claimed),)


class Unasked(AtRole):
    """Sends, through a queue of buffers that wait for the device, what nobody asked for or announced.

    Args:
        role: queues whose buffers are filled.
        data: what to put into them, one after the other.
        when: the role of the queue whose notification it acts on; by default the same.
        after: notifications to let pass.
        times: notifications to act on.
        delay: seconds to wait.

    """

    def __init__(self, role: str, data: tuple[bytes, ...], *, when: str = "", after: int = 0, times: int = 1,
                 delay: float = 0.0) -> None:
        super().__init__(when or role, after=after, times=times)
        self._target = role
        self._data = data
        self._delay = delay

    def notified(self, queue: DeviceQueue) -> None:
        """Wait for the moment."""
        if self.due(queue):
            self.device.schedule(self._delay, self._send)

    def _send(self) -> None:
        for queue in self.device.queues:
            if queue.started and self.device.queue_role(queue.index) == self._target:
                self._fill(queue)
                return

    def _fill(self, queue: DeviceQueue) -> None:
        for data in self._data:
            chain = queue.pop()
            if chain is None:
                break
            queue.push(chain.head, chain.write(data))
            self.strike(f"queue {queue.index}: {data[:24].hex(' ')} ({len(data)} bytes) that nobody asked for")
        self.device.flush(queue)
