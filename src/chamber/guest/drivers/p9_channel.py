"""Requests of a 9P client and their replies, over the one queue of the device."""

from __future__ import annotations

import os
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from chamber.guest.driver import REQUEST_SECONDS, TRANSPORT_FEATURES, DeviceTimeout, Refused, VirtioDriver
from chamber.guest.drivers.p9_reply import SPEC, Reply
from chamber.guest.untrusted import DeviceViolation
from chamber.wire.p9 import CONFIG, NO_TAG, REQUEST_QUEUE, TAG_SIZE, P9Feature
from chamber.wire.p9_messages import HEADER, MessageType, encode, fixed_size
from chamber.wire.virtio import DeviceType, bit

if TYPE_CHECKING:
    from collections.abc import Iterator

    from chamber.guest.machine import GuestMachine
    from chamber.guest.virtqueue import Request, VirtQueue
    from chamber.platform.heap import Object
    from chamber.platform.transport import Transport
    from chamber.wire.p9_messages import Value

__all__ = ("P9Channel", "P9Error", "Pending")

_M = MessageType
_TAGS: Final = 63
_MAX_ERRNO: Final = 4095
_LEAST_REPLY: Final = 256
"""Bytes of a reply's buffer: most replies are shorter, and their buffers need not differ."""


class P9Error(Refused):
    """The server refuses a request.

    Attributes:
        errno: why, as on Linux.

    """

    def __init__(self, code: int, what: str) -> None:
        self.errno = code
        super().__init__(f"{what}: {os.strerror(code)}")


@dataclass(slots=True, eq=False)
class Pending:
    """A request under way."""

    kind: MessageType
    tag: int
    message: Object
    reply: Object
    handle: int
    request: Request | None = None
    done: bool = False
    error: DeviceViolation | None = None


class P9Channel(VirtioDriver):
    """Sends requests, several at once if need be, and takes each reply to the request that it answers.

    Attributes:
        tag: what the device is called.

    """

    type = DeviceType.TRANSPORT_9P
    known = allowed = TRANSPORT_FEATURES | bit(P9Feature.MOUNT_TAG)
    config_layout = CONFIG

    def __init__(self, machine: GuestMachine, transport: Transport) -> None:
        super().__init__(machine, transport)
        self.tag = b""
        self._memory: list[Object] = []
        self._lent: dict[Request, Pending] = {}
        self._by_handle: dict[int, Pending] = {}
        self._tags_used: set[int] = set()
        self._last_handle = 0

    def queue_indexes(self) -> list[int]:
        """Return the one queue."""
        return [REQUEST_QUEUE]

    def initialise(self) -> None:
        """Read the tag, and make the table of requests.

        Raises:
            Refused: the device has no tag.

        """
        if not self.has(P9Feature.MOUNT_TAG):
            raise Refused("the device has no tag by which to mount it")
        self._lent.clear()
        self._by_handle.clear()
        self._tags_used.clear()
        tag = self.table(TAG_SIZE, "mount tag")
        tag.write(self.read_config_bytes("tag").opaque("it is the administrator who compares it"))
        length = self.read_config("tag_len").between(1, TAG_SIZE, "a tag is 1 to 32 bytes", SPEC)
        self.tag = tag.read(0, length)
        self._handles = self.table(8 * (_TAGS + 1), "requests by tag")

    def table(self, size: int, name: str) -> Object:
        """Allocate memory that goes with the driver."""
        memory = self.machine.heap.alloc(size, name, zero=True)
        self._memory.append(memory)
        return memory

    def free_buffers(self) -> None:
        """Free the tables."""
        for memory in self._memory:
            if memory.live:
                self.machine.heap.free(memory)
        self._memory.clear()

    def used(self, queue: VirtQueue) -> None:
        """Take replies back, each to the request whose tag it has."""
        while (request := queue.get()) is not None:
            pending = self._lent.pop(request, None)
            if pending is None:
                continue
            try:
                self.checks.number(request.written).between(
                    HEADER.size, pending.reply.size, "a reply has a header", SPEC)
                tag = self.checks.number(pending.reply.get(5, 2)).equals(
                    pending.tag, "a reply has the tag of its request", SPEC)
            except DeviceViolation as violation:
                pending.error = violation
                pending.done = True
                continue
            handle = self._handles.get(8 * self._slot(tag), 8)
            if not handle:
                self.machine.heap.report("null pointer", "request of a tag", f"tag {tag}")
            self._by_handle[handle].done = True

    @staticmethod
    def _slot(tag: int) -> int:
        return _TAGS if tag == NO_TAG else tag

    def begin(self, kind: MessageType, room: int, values: dict[str, Value]) -> Pending:
        """Send a request; `room` is for what has no fixed size in its reply."""
        tag = NO_TAG
        if kind is not _M.TVERSION:
            tag = next((t for t in range(_TAGS) if t not in self._tags_used), NO_TAG)
            if tag == NO_TAG:
                raise Refused("no tag is free: the device answers too little")
        heap = self.machine.heap
        data = encode(kind, tag, **values)
        size = max(fixed_size(MessageType(kind + 1)) + room, _LEAST_REPLY)
        self._last_handle += 1
        pending = Pending(kind, tag, heap.alloc(len(data), f"{kind.name} message"),
                           heap.alloc(size, f"{kind.name} reply"), self._last_handle)
        pending.message.write(data)
        queue = self.queue(REQUEST_QUEUE)
        try:
            pending.request = self.lend(queue, [pending.message], [pending.reply])
        except Exception:
            self.release(pending.message, pending.reply)
            raise
        self._lent[pending.request] = pending
        self._tags_used.add(tag)
        self._by_handle[pending.handle] = pending
        self._handles.put(8 * self._slot(tag), 8, pending.handle)
        return pending

    def finish(self, pending: Pending) -> Reply:
        """Wait for the reply to a request.

        Raises:
            DeviceViolation: the reply is none to this request.
            DeviceTimeout: none comes.
            P9Error: the server says no.

        """
        queue = self.queues[REQUEST_QUEUE]
        self.machine.wait(lambda: pending.done or queue.broken is not None, REQUEST_SECONDS)
        if not pending.done:
            self._give_up(pending, queue)
        if pending.error is not None:
            raise pending.error
        assert pending.request is not None
        memory = pending.reply
        end = self.checks.number(memory.get(0, 4)).equals(
            pending.request.written, "a reply is as long as it says, and as was written", SPEC)
        expected = MessageType(pending.kind + 1)
        kind = self.checks.number(memory.get(4, 1)).one_of(
            (expected, _M.RLERROR), "a reply is of the type of its request, or an error", SPEC)
        if kind == _M.RLERROR:
            code = Reply(memory, _M.RLERROR, end, self.checks).number("ecode").between(
                1, _MAX_ERRNO, "an error has a number from 1 to 4095", SPEC)
            if code:  # zero reads as success to who does not check
                raise P9Error(code, pending.kind.name[1:].lower())
        return Reply(memory, expected, end, self.checks)

    def _give_up(self, pending: Pending, queue: VirtQueue) -> None:
        """Ask the server to forget a request; its answer counts if it comes before the server has.

        Its buffers stay the device's until that one is reset, whatever it says about the request.
        """
        try:
            if queue.broken is None and pending.kind not in {_M.TFLUSH, _M.TVERSION}:
                with suppress(DeviceTimeout, P9Error), self.call(_M.TFLUSH, oldtag=pending.tag):
                    pass
        finally:
            if not pending.done and pending.request is not None and self.machine.profile.ordered:
                self._unanswered.append(pending.request)
        if pending.done:
            return
        if queue.broken is not None:
            raise queue.broken
        raise DeviceTimeout(f"no answer to {pending.kind.name}")

    def end(self, pending: Pending) -> None:
        """Free what a request took; what the device still has, and its tag, only after a reset."""
        if pending.done or not self.machine.profile.ordered:
            self._handles.put(8 * self._slot(pending.tag), 8, 0)
            self._tags_used.discard(pending.tag)
            self._by_handle.pop(pending.handle, None)
        if pending.done and pending.request is not None:
            self.machine.heap.free(pending.request.record)
        self.release(pending.message, pending.reply)

    @contextmanager
    def call(self, kind: MessageType, room: int = 0, /, **values: Value) -> Iterator[Reply]:
        """Send a request and wait for its reply, which is there until the context ends; raises as `finish` does."""
        pending = self.begin(kind, room, values)
        self.kick(self.queues[REQUEST_QUEUE])
        try:
            yield self.finish(pending)
        finally:
            self.end(pending)

    def ask(self, kind: MessageType, /, **values: Value) -> None:
        """Send a request whose reply says no more than that it was done."""
        with self.call(kind, **values):
            pass
