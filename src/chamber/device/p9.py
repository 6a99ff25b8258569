"""9P device: a directory of the host for the guest to mount (device 9 of virtio 1.3, 5; the protocol is 9P2000.L)."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Final

from chamber.device.base import Device
from chamber.device.errors import DriverError
from chamber.device.p9_server import LEAST_MSIZE, MOST_MSIZE, P9Server
from chamber.device.sample_tree import SampleTree
from chamber.wire.errors import WireError
from chamber.wire.p9 import CONFIG, TAG_SIZE, P9Feature
from chamber.wire.p9_messages import HEADER
from chamber.wire.virtio import DeviceType, bit

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from chamber.device.chain import Chain
    from chamber.device.hooks import Hooks
    from chamber.device.queue import DeviceQueue

__all__ = ("P9Device",)

_SPEC: Final = "5, device 9: 9P2000.L"


class P9Device(Device):
    """Serves a directory. Requests are answered in the order in which they come.

    Args:
        root: the directory; without one, a small tree (`chamber.device.sample_tree`) that goes with the device.
        tag: by which the guest mounts it, 1 to 32 bytes.
        read_only: refuse whatever would change the directory.
        max_fids: files that the guest may hold at once.
        features: feature bits to offer instead of MOUNT_TAG.
        config: fields of configuration space to set otherwise, by name.
        queue_size: descriptors per queue.
        hooks: interference, if any; it is shown each reply as one response.

    Raises:
        ValueError: the tag is too long, or there is none.
        OSError: the directory can't be opened.

    """

    type: ClassVar[DeviceType] = DeviceType.TRANSPORT_9P

    def __init__(self, root: Path | None = None, *, tag: bytes = b"chamber", read_only: bool = False,
                 max_fids: int = 256, features: int | None = None, config: Mapping[str, int | bytes] | None = None,
                 queue_size: int = 256, hooks: Hooks | None = None) -> None:
        if not 0 < len(tag) <= TAG_SIZE:
            raise ValueError(f"a tag is 1 to {TAG_SIZE} bytes")
        values: dict[str, int | bytes] = {"tag_len": len(tag), "tag": tag, **(config or {})}
        self._sample = SampleTree() if root is None else None
        try:
            self.server = P9Server(root or self._tree(), read_only=read_only, max_fids=max_fids)
        except OSError:
            self._remove_sample()
            raise
        self._closed = False
        super().__init__(features=bit(P9Feature.MOUNT_TAG) if features is None else features,
                         config=CONFIG.pack(**values), queues=1, queue_size=queue_size, hooks=hooks)

    def _tree(self) -> Path:
        assert self._sample is not None
        return self._sample.path

    def _remove_sample(self) -> None:
        if self._sample is not None:
            self._sample.close()

    def close(self) -> None:
        """Let go of the directory, and remove it if it was made for this device."""
        if not self._closed:
            self._closed = True
            self.server.close()
            self._remove_sample()

    def reset(self) -> None:
        """Forget what the guest held; the reset of the queue alone leaves it, as it leaves the session."""
        super().reset()
        self.server.reset()

    def handle(self, queue: DeviceQueue, chain: Chain) -> None:
        """Answer one request."""
        reply = b""
        header = chain.read(0, HEADER.size)
        try:
            reply = self.answer(self._message(chain, header), chain.writable_size)
        except WireError as error:
            self.report(DriverError(error.rule, spec=_SPEC, detail=error.detail))
        if self.trace is not None and reply:
            self.log(f"9p request type {header[4]}, tag {int.from_bytes(header[5:], 'little')}: "
                     f"reply type {reply[4]}, {len(reply)} bytes")
        self.complete(queue, chain, self.respond(queue, chain, reply) if reply else 0)

    def _message(self, chain: Chain, header: bytes) -> bytes:
        """Copy a request, as long as it says that it is."""
        if len(header) < HEADER.size:
            raise WireError("a message has a header of 7 bytes", detail=f"{len(header)} bytes")
        size = HEADER.unpack(header)[0]
        # Before it is copied: the client could claim gigabytes.
        if not HEADER.size <= size <= (self.server.msize or LEAST_MSIZE):
            raise WireError("a message is no longer than msize, and no shorter than its header", detail=str(size))
        data = header + chain.read(HEADER.size, size - HEADER.size)
        if len(data) < size:
            raise WireError("a buffer holds all of its message", detail=f"{len(data)} of {size} bytes")
        return data

    def answer(self, message: bytes, room: int) -> bytes:
        """Serve a message, and return the reply to it, which has `room` bytes at most.

        Raises:
            WireError: there is none.

        """
        return self.server.handle(message, min(room, MOST_MSIZE))
