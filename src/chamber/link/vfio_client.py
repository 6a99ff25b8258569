"""A vfio-user client: reaches a PCI function that somebody else serves, as a virtual machine monitor does.

A server is no more to be trusted than a client: every answer is checked to be one to the question, and a server that
asks for memory gets that alone which was mapped for it.
"""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
import socket
import struct
from typing import TYPE_CHECKING, Final, TypeVar

from chamber.link.vfio_user import VfioStream
from chamber.wire.errors import WireError
from chamber.wire.function_state import MOST_BYTES
from chamber.wire.vfio_user import (
    ERROR,
    MAX_FDS,
    MAX_TRANSFER,
    REPLY,
    Bitmap,
    Command,
    DeviceFeature,
    DeviceInfo,
    DmaMap,
    DmaTransfer,
    DmaUnmap,
    Empty,
    FeatureIndex,
    Header,
    IrqInfo,
    IrqSet,
    LogRange,
    LogReport,
    LogStart,
    MigrationData,
    MigrationState,
    RegionAccess,
    RegionFlag,
    RegionInfo,
    RegionIoFds,
    SubRegion,
    Version,
    encode,
)

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path
    from typing import Self

    from chamber.link.channel import Frame
    from chamber.wire.vfio_user import Payload

__all__ = ("ServerError", "VfioClient")

_SECONDS: Final = 5.0
_ROOM: Final = 1 << 16
"""Bytes for a list of pieces of a region."""
_STATE: Final = struct.Struct("=II")
P = TypeVar("P", bound="Payload")


class ServerError(Exception):
    """The server answered with an error.

    Attributes:
        number: its errno.

    """

    def __init__(self, command: Command, number: int) -> None:
        self.number = number
        super().__init__(f"{command.name}: {errno.errorcode.get(number, number)}")


class VfioClient:
    """One connection, from VERSION on.

    Args:
        path: where the server listens.
        capabilities: what to say of oneself, besides what this client can do.

    Attributes:
        version: what was agreed upon.
        memory: ranges without a descriptor, by their addresses: what a server reaches by messages.
        asked: messages sent, without answers.

    Raises:
        OSError: nobody listens there.
        WireError: the server does not speak the protocol.

    """

    def __init__(self, path: Path, capabilities: dict[str, object] | None = None) -> None:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            sock.connect(str(path))
        except OSError:
            sock.close()
            raise
        self.memory: dict[int, bytearray] = {}
        self._stream = VfioStream(sock)
        self.asked = 0
        self._doorbells: dict[tuple[int, int, int], int] = {}
        try:
            self.version = self.ask(Command.VERSION, Version(0, 0, {
                "max_msg_fds": MAX_FDS, "max_data_xfer_size": MAX_TRANSFER, **(capabilities or {})}), Version)
            if self.version.major or self.version.minor:
                raise WireError("a server answers with the version that it was offered",
                                spec="vfio-user, VFIO_USER_VERSION",
                                detail=f"{self.version.major}.{self.version.minor}")
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.close()

    def close(self) -> None:
        """End the connection."""
        self._stream.close()
        for fd in self._doorbells.values():
            os.close(fd)
        self._doorbells.clear()

    # Asking.

    def send(self, command: Command, body: bytes, fds: tuple[int, ...] = (), flags: int = 0) -> int:
        """Send a command; return its id."""
        self.asked += 1
        message_id = self.asked & 0xFFFF
        self._stream.send_frame(encode(message_id, command, body, flags), fds)
        return message_id

    def ask(self, command: Command, payload: Payload, answer: type[P], fds: tuple[int, ...] = ()) -> P:
        """Send a command and return its answer; serve what the server asks for meanwhile.

        Raises:
            ServerError: the answer is an error.
            WireError: it is no answer to that.
            Gone: the server is gone, or does not answer.

        """
        body = payload.request() if isinstance(payload, RegionInfo) else payload.pack()
        with contextlib.closing(self._answer(command, self.send(command, body, fds))) as frame:
            return answer.unpack(frame.data)

    def _answer(self, command: Command, message_id: int) -> Frame[Header]:
        """Wait for the answer to a command, and for one that is no error."""
        frame = self.reply(message_id)
        header = frame.header
        if header.command == command and not header.failed:
            return frame
        frame.close()
        if header.command != command:
            raise WireError("a reply is one to the command", spec="vfio-user, Header", detail=str(header))
        raise ServerError(command, header.error)

    def reply(self, message_id: int) -> Frame[Header]:
        """Wait for a reply; serve what the server asks for meanwhile."""
        while True:
            frame = self._stream.wait(_SECONDS)
            if not frame.header.is_reply:
                with contextlib.closing(frame):
                    self._serve(frame)
            elif frame.header.message_id == message_id:
                return frame
            else:
                frame.close()
                raise WireError("a reply answers what was asked last", spec="vfio-user, Header",
                                detail=f"{frame.header.message_id}, not {message_id}")

    def _serve(self, frame: Frame[Header]) -> None:
        """Let the server reach memory that was mapped without a descriptor."""
        header = frame.header
        try:
            wanted = DmaTransfer.unpack(frame.data)
            start, memory = next((start, memory) for start, memory in self.memory.items()
                                 if start <= wanted.address and wanted.address + wanted.count <= start + len(memory))
        except (StopIteration, WireError):
            self._stream.send_frame(encode(header.message_id, header.command, b"", REPLY | ERROR, errno.EFAULT))
            return
        at = wanted.address - start
        answer = DmaTransfer(wanted.address, wanted.count)
        if header.command == Command.DMA_READ:
            answer = DmaTransfer(wanted.address, wanted.count, bytes(memory[at:at + wanted.count]))
        else:
            memory[at:at + wanted.count] = wanted.data
        self._stream.send_frame(encode(header.message_id, header.command, answer.pack(), REPLY))

    # What a monitor does.

    def info(self) -> DeviceInfo:
        """Ask how many regions and kinds of interrupt there are."""
        return self.ask(Command.DEVICE_GET_INFO, DeviceInfo(0, 0, 0), DeviceInfo)

    def region(self, index: int) -> RegionInfo:
        """Ask for a region."""
        return self.ask(Command.DEVICE_GET_REGION_INFO, RegionInfo(index), RegionInfo)

    def map_region(self, index: int) -> mmap.mmap:
        """Map what can be mapped of a region: the first of its areas, or all of it.

        Raises:
            WireError: nothing can be, or the server says what its file does not have.

        """
        asked = self.send(Command.DEVICE_GET_REGION_INFO, RegionInfo(index).request())
        with contextlib.closing(self._answer(Command.DEVICE_GET_REGION_INFO, asked)) as frame:
            info = RegionInfo.unpack(frame.data)
            fd = frame.take_fd()
        if fd is None or not info.flags & RegionFlag.MMAP:
            raise WireError("a region that can be mapped comes with its file", spec="vfio-user, DEVICE_GET_REGION_INFO")
        offset, size = info.areas[0] if info.areas else (0, info.size)
        try:
            return mmap.mmap(fd, size, offset=info.offset + offset)
        except (OSError, ValueError, OverflowError) as error:
            raise WireError("a file holds the region that it stands for", spec="vfio-user, DEVICE_GET_REGION_INFO",
                            detail=str(error)) from None
        finally:
            os.close(fd)

    def ring(self, index: int) -> set[tuple[int, int]]:
        """Write where a region has doorbells by eventfds from now on; return their offsets and bytes.

        What is only meant if certain bytes are written, or brings messages of its own, goes on as messages.

        Raises:
            WireError: a piece is not in the region, or its descriptor did not come.

        """
        size = self.region(index).size
        asked = self.send(Command.DEVICE_GET_REGION_IO_FDS, RegionIoFds(index, argsz=_ROOM).pack())
        with contextlib.closing(self._answer(Command.DEVICE_GET_REGION_IO_FDS, asked)) as frame:
            for piece in RegionIoFds.unpack(frame.data).pieces:
                if piece.fd_index >= len(frame.fds) or piece.offset + piece.size > size:
                    raise WireError("a piece of a region is in it, and comes with its descriptor",
                                    spec="vfio-user, DEVICE_GET_REGION_IO_FDS", detail=str(piece))
                key = index, piece.offset, piece.size
                if piece.kind == SubRegion.IOEVENTFD and piece.size and not piece.flags and key not in self._doorbells:
                    fd = self._doorbells[key] = os.dup(frame.fds[piece.fd_index])
                    os.set_blocking(fd, False)
        return {(offset, count) for region, offset, count in self._doorbells if region == index}

    def irqs(self, index: int) -> IrqInfo:
        """Ask for a kind of interrupt."""
        return self.ask(Command.DEVICE_GET_IRQ_INFO, IrqInfo(index), IrqInfo)

    def set_irqs(self, wanted: IrqSet, fds: tuple[int, ...] = ()) -> None:
        """Say what shall become of interrupts."""
        self.ask(Command.DEVICE_SET_IRQS, wanted, Empty, fds)

    def map(self, wanted: DmaMap, fd: int | None = None) -> None:
        """Let the function reach memory."""
        self.ask(Command.DMA_MAP, wanted, Empty, () if fd is None else (fd,))

    def unmap(self, wanted: DmaUnmap) -> None:
        """Take memory away."""
        self.ask(Command.DMA_UNMAP, wanted, DmaUnmap)

    def read(self, region: int, offset: int, count: int) -> bytes:
        """Read a region."""
        data = self.ask(Command.REGION_READ, RegionAccess(offset, region, count), RegionAccess).data
        if len(data) != count:
            raise WireError("a read gives the bytes that were asked for", spec="vfio-user, VFIO_USER_REGION_READ",
                            detail=f"{len(data)} of {count}")
        return data

    def write(self, region: int, offset: int, data: bytes) -> None:
        """Write a region, by its doorbells where it has some and they are asked for (`ring`)."""
        fd = self._doorbells.get((region, offset, len(data)))
        if fd is not None:
            with contextlib.suppress(BlockingIOError):  # it counts already as much as it can
                os.eventfd_write(fd, 1)
            return
        self.ask(Command.REGION_WRITE, RegionAccess(offset, region, len(data), data), RegionAccess)

    def feature(self, index: FeatureIndex, flags: int, data: bytes = b"", room: int = 64) -> bytes:
        """Ask for a feature, change it, or ask whether it is there; return what the answer says of it."""
        asked = DeviceFeature(index, flags, data, max(room, 8 + len(data)))
        return self.ask(Command.DEVICE_FEATURE, asked, DeviceFeature).data

    def set_state(self, state: MigrationState) -> None:
        """Have the function go to another state of migration."""
        self.feature(FeatureIndex.MIG_DEVICE_STATE, DeviceFeature.SET, _STATE.pack(state, 0))

    def read_state(self, most: int = MAX_TRANSFER) -> bytes:
        """Return the state of a function that is stopped, in pieces of so many bytes; leave it stopped."""
        self.set_state(MigrationState.STOP_COPY)
        state = b""
        while len(state) <= MOST_BYTES:
            piece = self.ask(Command.MIG_DATA_READ, MigrationData(most), MigrationData).data
            state += piece
            if len(piece) < most:
                self.set_state(MigrationState.STOP)
                return state
        raise WireError(f"a state has {MOST_BYTES} bytes at most", spec="vfio-user, VFIO_USER_MIG_DATA_READ")

    def write_state(self, state: bytes, most: int = MAX_TRANSFER) -> None:
        """Have a function become what another one was; leave it stopped."""
        self.set_state(MigrationState.RESUMING)
        for at in range(0, len(state), most):
            piece = state[at:at + most]
            self.ask(Command.MIG_DATA_WRITE, MigrationData(len(piece), piece), MigrationData)
        self.set_state(MigrationState.STOP)

    def watch(self, page_size: int, ranges: Sequence[LogRange]) -> None:
        """Have pages be watched that the function may write."""
        self.feature(FeatureIndex.DMA_LOGGING_START, DeviceFeature.SET, LogStart(page_size, tuple(ranges)).pack())

    def written(self, address: int, size: int, page_size: int) -> set[int]:
        """Return the addresses of pages of a range that were written since the last time."""
        asked = LogReport(address, size, page_size)
        answer = Bitmap.unpack(self.feature(FeatureIndex.DMA_LOGGING_REPORT, DeviceFeature.GET, asked.pack(),
                                            32 + asked.bitmap_bytes))
        bits = int.from_bytes(answer.bits, "little")
        return {address + page * page_size for page in range(bits.bit_length()) if bits >> page & 1}

    def unwatch(self) -> None:
        """Have none be watched."""
        self.feature(FeatureIndex.DMA_LOGGING_STOP, DeviceFeature.SET)

    def reset(self) -> None:
        """Reset the function."""
        self.ask(Command.DEVICE_RESET, Empty(), Empty)
