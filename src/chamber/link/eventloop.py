"""A single-threaded loop over file descriptors and timers.

Small on purpose: one wake-up of a device costs a guest its latency, and this takes a third of what asyncio takes.
"""

from __future__ import annotations

import heapq
import itertools
import os
import select
import time
from collections import deque
from typing import TYPE_CHECKING, Final, Self

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

__all__ = ("EventLoop",)

_MILLISECOND: Final = 0.001
"""What epoll rounds its time-outs up to."""
_MOST_SELECTED: Final = 1024
"""select(2) takes no descriptors from there on (FD_SETSIZE)."""


class EventLoop:
    """Calls back when a descriptor is readable or a delay is over; not thread-safe.

    Attributes:
        spin: seconds to stay awake before sleeping; 0 on a single processor, which the peer needs itself.

    """

    def __init__(self, *, spin: float = 0.0) -> None:
        self.spin = spin if len(os.sched_getaffinity(0)) > 1 else 0.0
        self._epoll = select.epoll()
        self._poll = self._epoll.poll
        self._readers: dict[int, Callable[[], None]] = {}
        self._timers: list[tuple[float, int, Callable[[], None]]] = []
        self._soon: deque[Callable[[], None]] = deque()
        self._order = itertools.count()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        self.close()

    def add_reader(self, fd: int, call: Callable[[], None], *, edge: bool = False) -> None:
        """Call back while `fd` is readable or its peer is gone; with `edge`, once for each time that it becomes so."""
        if fd not in self._readers:
            self._epoll.register(fd, select.EPOLLIN | select.EPOLLRDHUP | (select.EPOLLET if edge else 0))
        self._readers[fd] = call

    def remove_reader(self, fd: int) -> None:
        """Stop watching `fd`; to be called before it is closed."""
        if self._readers.pop(fd, None) is not None:
            self._epoll.unregister(fd)

    def call_soon(self, call: Callable[[], None]) -> None:
        """Call back in the next turn."""
        self._soon.append(call)

    def call_later(self, delay: float, call: Callable[[], None]) -> None:
        """Call back after `delay` seconds."""
        heapq.heappush(self._timers, (time.monotonic() + delay, next(self._order), call))

    def expects(self, seconds: float) -> bool:
        """Whether something is to be called within so many seconds, whatever descriptors have."""
        return bool(self._soon) or bool(self._timers and self._timers[0][0] - time.monotonic() <= seconds)

    def hasten(self) -> None:
        """Call back now what would be next after its delay."""
        if self._timers:
            self._soon.append(heapq.heappop(self._timers)[2])

    def turn(self, timeout: float) -> bool:
        """Wait up to `timeout` seconds for something to happen, and handle it; return whether a descriptor had it."""
        if self._soon:
            timeout = 0.0
        elif self._timers:
            timeout = max(0.0, min(timeout, self._timers[0][0] - time.monotonic()))
        ready = self._poll(0) if self.spin else self._sleep(timeout)
        if not ready and self.spin and timeout > 0:
            ready = self._wait(timeout)
        for fd, _ in ready:
            reader = self._readers.get(fd)
            if reader is not None:  # an earlier callback of this turn may have removed it
                reader()
        if self._soon:
            for _ in range(len(self._soon)):
                self._soon.popleft()()
        if self._timers:
            now = time.monotonic()
            while self._timers and self._timers[0][0] <= now:
                heapq.heappop(self._timers)[2]()
        return bool(ready)

    def _sleep(self, timeout: float) -> list[tuple[int, int]]:
        """Wait for descriptors, and not for a millisecond where a part of one is enough."""
        if 0 < timeout < _MILLISECOND and self._epoll.fileno() < _MOST_SELECTED and not select.select(
                (self._epoll,), (), (), timeout)[0]:
            return []
        return self._poll(timeout)

    def _wait(self, timeout: float) -> list[tuple[int, int]]:
        """Wait for descriptors: awake for a moment first, as a peer mostly answers sooner than a sleeper wakes."""
        poll = self._poll
        clock = time.monotonic
        sleep_at = clock() + min(timeout, self.spin)
        while clock() < sleep_at:
            ready = poll(0)
            if ready:
                return ready
        return poll(timeout)

    def run_until(self, done: Callable[[], bool], deadline: float) -> bool:
        """Turn until `done()` or until `time.monotonic()` passes `deadline`; return whether it was done."""
        while not done():
            left = deadline - time.monotonic()
            if left <= 0:
                return False
            self.turn(left)
        return True

    def close(self) -> None:
        """Forget everything."""
        self._readers.clear()
        self._timers.clear()
        self._soon.clear()
        if not self._epoll.closed:
            self._epoll.close()
