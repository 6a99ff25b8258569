"""File system device (virtio 1.3, 5.11): FUSE requests for the files of one directory."""

from __future__ import annotations

import contextlib
import errno
import os
import resource
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Final

from chamber.device.base import Device
from chamber.device.errors import DriverError
from chamber.device.fuse_server import MAX_WRITE, FuseServer, ReadInPlace
from chamber.device.sample_tree import SampleTree
from chamber.wire.errors import WireError
from chamber.wire.fs import CONFIG, HIPRIO_QUEUE, TAG_SIZE
from chamber.wire.fuse import IN_HEADER, NAMES, OUT_HEADER, WRITE, InHeader
from chamber.wire.virtio import DeviceType

if TYPE_CHECKING:
    from collections.abc import Mapping

    from chamber.device.chain import Chain
    from chamber.device.hooks import Hooks
    from chamber.device.queue import DeviceQueue

__all__ = ("FsDevice",)

_REQUEST_LIMIT: Final = IN_HEADER.size + WRITE.size + MAX_WRITE
_IOV_MAX: Final = 1024
_FILES: Final = 1 << 16


class FsDevice(Device):
    """Shares a directory.

    Every file that the guest knows is held open; the limit of this process on open files is raised as far as it may be.

    Args:
        path: the directory; by default a small tree of the device's own, removed with it.
        tag: by which the guest mounts it.
        read_only: refuse whatever changes something.
        num_request_queues: request queues.
        config: fields of configuration space to set otherwise, by name.
        features: feature bits to offer; none of the device type's own are served.
        queue_size: descriptors per queue.
        hooks: interference, if any. A reply, head and body, is one response.

    """

    type: ClassVar[DeviceType] = DeviceType.FS

    def __init__(self, path: Path | None = None, *, tag: str = "chamber", read_only: bool = False,
                 num_request_queues: int = 1, config: Mapping[str, int | bytes] | None = None,
                 features: int | None = None, queue_size: int = 256, hooks: Hooks | None = None) -> None:
        name = tag.encode()
        if not 0 < len(name) <= TAG_SIZE:
            raise ValueError(f"a tag has 1 to {TAG_SIZE} bytes")
        self._tree = SampleTree() if path is None else None
        self.path = self._tree.path if self._tree is not None else Path(path or "")
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        wanted = _FILES if hard == resource.RLIM_INFINITY else min(_FILES, hard)
        if soft != resource.RLIM_INFINITY and soft < wanted:
            with contextlib.suppress(OSError, ValueError):
                resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        self.server = FuseServer(self.path, read_only=read_only)
        values: dict[str, int | bytes] = {"tag": name, "num_request_queues": num_request_queues, **(config or {})}
        super().__init__(features=features or 0, config=CONFIG.pack(**values), queues=1 + num_request_queues,
                         queue_size=queue_size, hooks=hooks)

    def queue_role(self, index: int) -> str:
        """``hiprio`` or ``requests`` (5.11.2)."""
        return "hiprio" if index == HIPRIO_QUEUE else "requests"

    def close(self) -> None:
        """Give all files back; remove the tree if it is the device's own."""
        self.server.close()
        if self._tree is not None:
            self._tree.close()

    def reset(self) -> None:
        """Forget the driver, and what it holds."""
        self.server.close()
        super().reset()

    def host_action(self, action: str) -> None:
        """Change the file ``notes`` behind the guest's back, ``edit``."""
        if action == "edit":
            with contextlib.suppress(OSError):
                (self.path / "notes").write_bytes(b"second version of the notes\n")

    def handle(self, queue: DeviceQueue, chain: Chain) -> None:
        """Serve one request."""
        size = chain.readable_size
        request = chain.read(0, min(size, _REQUEST_LIMIT))
        try:
            header = InHeader.parse(request)
        except WireError as error:
            self.report(DriverError(error.rule, spec="5.11.6", detail=error.detail))
            self.complete(queue, chain, 0)
            return
        if header.length != len(request) or size > _REQUEST_LIMIT:
            self.report(DriverError("a request is as long as it says, 1 MiB at most", spec="5.11.6",
                                    detail=f"{header.length} of {size} bytes"))
            reply: bytes | ReadInPlace | int | None = errno.EINVAL
        else:
            reply = self.server.handle(header, request[IN_HEADER.size:])
        if self.trace is not None or self.hooks is not None:
            self._tell(header, reply)
        if reply is None:
            self.complete(queue, chain, 0)
        elif isinstance(reply, ReadInPlace):
            self._read(queue, chain, header, reply)
        else:
            self._answer(queue, chain, header, reply)

    def _tell(self, header: InHeader, reply: bytes | ReadInPlace | int | None) -> None:
        name = NAMES.get(header.opcode, str(header.opcode))
        outcome = errno.errorcode.get(reply, str(reply)) if isinstance(reply, int) else "ok"
        self.log(f"{name} of node {header.nodeid}: {outcome}")

    def _answer(self, queue: DeviceQueue, chain: Chain, header: InHeader, reply: bytes | int) -> None:
        room = chain.writable_size
        if isinstance(reply, bytes) and OUT_HEADER.size + len(reply) > room:
            reply = errno.ERANGE
        if isinstance(reply, int):
            data = OUT_HEADER.pack(OUT_HEADER.size, -reply, header.unique)
        else:
            data = OUT_HEADER.pack(OUT_HEADER.size + len(reply), 0, header.unique) + reply
        if room < len(data):
            self.report(DriverError("a request has room for its reply's head", spec="5.11.6", detail=repr(chain)))
            self.complete(queue, chain, 0)
            return
        self.complete(queue, chain, self.respond(queue, chain, data))

    def _read(self, queue: DeviceQueue, chain: Chain, header: InHeader, read: ReadInPlace) -> None:
        """Read into the driver's buffers themselves; the head comes last, when the length is known."""
        size = min(read.size, chain.writable_size - OUT_HEADER.size)
        if size < 0 or self.hooks is not None:
            self._answer(queue, chain, header, _read_bytes(read, size))
            return
        views = chain.room(OUT_HEADER.size, size)
        done = 0
        try:
            for start in range(0, len(views), _IOV_MAX):
                part = views[start:start + _IOV_MAX]
                got = os.preadv(read.fd, part, read.offset + done)
                done += got
                if got < sum(map(len, part)):
                    break
        except OSError as error:
            self._answer(queue, chain, header, error.errno or errno.EIO)
            return
        except OverflowError:
            self._answer(queue, chain, header, errno.EINVAL)
            return
        chain.write(OUT_HEADER.pack(OUT_HEADER.size + done, 0, header.unique))
        self.complete(queue, chain, OUT_HEADER.size + done)


def _read_bytes(read: ReadInPlace, size: int) -> bytes | int:
    try:
        return os.pread(read.fd, max(size, 0), read.offset)
    except OSError as error:
        return error.errno or errno.EIO
    except OverflowError:
        return errno.EINVAL
