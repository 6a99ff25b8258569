"""A vfio-user server: plays a PCI function for a virtual machine monitor (QEMU's ``vfio-user-pci``, or any other).

What QEMU (11.1.3) does and no document says stands here: it proposes version 0.0 and takes no other, warns of
capabilities that it did not name itself, posts writes to BARs, and emulates the MSI-X table by itself, so that a vector
is an eventfd.

The client is not trusted either. A message that breaks the protocol is answered with an error where it is whole, and
ends the connection where it is not; nothing of one client is left for the next.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
from collections import deque
from typing import TYPE_CHECKING, Any, Final, Protocol, runtime_checkable

from chamber.link.channel import FdStream, Frame, Gone
from chamber.link.vfio_memory import DmaTable
from chamber.link.vfio_migration import Migratable, Migration, NotPossible
from chamber.wire.errors import DmaFault, WireError
from chamber.wire.vfio_user import (
    ERROR,
    MAX_FDS,
    MAX_TRANSFER,
    MESSAGES,
    REPLY,
    Command,
    DeviceFeature,
    DeviceInfo,
    DmaMap,
    DmaTransfer,
    DmaUnmap,
    Empty,
    FrameReader,
    Header,
    IrqFlag,
    IrqIndex,
    IrqInfo,
    IrqSet,
    IrqSetFlag,
    LogReport,
    MigrationData,
    RegionAccess,
    RegionFlag,
    RegionInfo,
    RegionIoFds,
    SubRegion,
    Version,
    WriteMulti,
    encode,
)

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Sequence

    from chamber.link.eventloop import EventLoop
    from chamber.wire.vfio_user import Payload

__all__ = ("REGIONS", "ServableFunction", "VfioSession", "VfioStream")

REGIONS: Final = 9
_CONFIG_REGION: Final = 7
_IRQS: Final = 5
_CONFIG_SIZE: Final = 4096
_ONE: Final = (1).to_bytes(8, "little")
_DOORBELL: Final = 2
"""Bytes of a doorbell. What is written with four says something (NOTIFICATION_DATA), and comes as a message."""
_SEND_SECONDS: Final = 5.0
_REMOTE_SECONDS: Final = 5.0
_MOST_QUEUED: Final = 1024
_MESSAGES_PER_TURN: Final = 64
_OWN: Final = {"max_msg_fds": MAX_FDS, "max_data_xfer_size": MAX_TRANSFER, "max_dma_maps": 65535, "pgsizes": 4096,
               "write_multiple": True, "migration": {"pgsize": 4096, "max_bitmap_size": LogReport.MOST_PAGES // 8}}
"""What this server can do, by the names of capabilities; said of those alone that the client names."""


class ServableFunction(Protocol):
    """What is served."""

    @property
    def bar_sizes(self) -> Sequence[int]:
        """Bytes of each of the six BARs, 0 where there is none."""
        ...

    @property
    def vectors(self) -> int:
        """MSI-X vectors."""
        ...

    def read_config(self, offset: int, size: int) -> bytes: ...  # noqa: D102 - as `VirtioPci` has them, like all below
    def write_config(self, offset: int, data: bytes) -> None: ...  # noqa: D102
    def read_bar(self, bar: int, offset: int, size: int) -> bytes: ...  # noqa: D102
    def write_bar(self, bar: int, offset: int, data: bytes) -> None: ...  # noqa: D102
    def attach(self, dma: DmaTable, raise_vector: Callable[[int], None], raise_pin: Callable[[bool], None],  # noqa: D102
               later: Callable[[float, Callable[[], None]], None]) -> None: ...
    def reset(self) -> None: ...  # noqa: D102
    def close(self) -> None: ...  # noqa: D102
    def pollable(self) -> dict[int, Callable[[], None]]: ...  # noqa: D102
    def log(self, line: str) -> None: ...  # noqa: D102


@runtime_checkable
class Mappable(Protocol):
    """A function that has memory of its own in a file."""

    def mappable(self, bar: int) -> tuple[int, int] | None:
        """The file that a client may map in the place of a BAR's first bytes, and how many."""
        ...


@runtime_checkable
class Rung(Protocol):
    """A function that is told by a write alone, whatever is written."""

    def doorbells(self, bar: int) -> Sequence[int]:
        """Offsets in a BAR of such registers, of two bytes each."""
        ...


class VfioStream(FdStream[Header]):
    """A connection that speaks vfio-user. What the peer's buffer has no room for is waited for: answers are long."""

    def __init__(self, sock: socket.socket) -> None:
        super().__init__(sock, FrameReader(), MAX_FDS, "vfio-user, Header")

    def wait(self, seconds: float) -> Frame[Header]:
        """Return the next message, waited for.

        Raises:
            Gone: end of the connection, or nothing came.
            WireError: the peer does not speak the protocol.

        """
        poller = select.poll()
        poller.register(self._socket, select.POLLIN)
        while (frame := self.receive()) is None:
            if not poller.poll(seconds * 1000):
                raise Gone("the peer does not answer")
        return frame

    def _send_rest(self, data: memoryview) -> None:
        poller = select.poll()
        poller.register(self._socket, select.POLLOUT)
        while data:
            if not poller.poll(_SEND_SECONDS * 1000):
                raise Gone("the peer does not read")
            data = data[self._socket.send(data):]


class VfioSession:
    """One client's connection, from VERSION to its end.

    Args:
        function: what is served; reset at the end.
        sock: the connection.
        loop: where it waits.
        ended: called once, after everything is given back.
        trace: gets one line per message, if given.
        observer: sees all that the function reads from guest memory, if given.

    """

    def __init__(self, function: ServableFunction, sock: socket.socket, loop: EventLoop,
                 ended: Callable[[VfioSession], None], trace: Callable[[str], None] | None = None,
                 observer: Callable[[bytes], None] | None = None) -> None:
        self.function = function
        self.error: Exception | None = None
        self.messages = 0
        self.closed = False
        self.memory = DmaTable(self, observer)
        self._migration = Migration(function, self.memory) if isinstance(function, Migratable) else None
        self._loop = loop
        self._ended = ended
        self._trace = trace
        self._stream = VfioStream(sock)
        self._queued: deque[Frame[Header]] = deque()
        self._answers: dict[int, Frame[Header]] = {}
        self._next_id = 0
        self._version: Version | None = None
        self._eventfds: dict[tuple[int, int], int] = {}
        self._masked: set[tuple[int, int]] = set()
        self._doorbells: dict[tuple[int, int], int] = {}
        self._pin = False
        self._transfer = MAX_TRANSFER
        self._most_fds = 1
        function.attach(self.memory, self._raise_vector, self._raise_pin, self._later)
        loop.add_reader(self._stream.fileno(), self.pump)
        for fd, call in function.pollable().items():
            loop.add_reader(fd, call)
        self._handlers: dict[Command, Callable[[Any, Frame[Header]], tuple[Payload, tuple[int, ...]]]] = {
            Command.DMA_MAP: self._dma_map, Command.DMA_UNMAP: self._dma_unmap,
            Command.DEVICE_GET_INFO: self._get_info, Command.DEVICE_GET_REGION_INFO: self._get_region_info,
            Command.DEVICE_GET_REGION_IO_FDS: self._get_region_io_fds, Command.DEVICE_GET_IRQ_INFO: self._get_irq_info,
            Command.DEVICE_SET_IRQS: self._set_irqs, Command.REGION_READ: self._region_read,
            Command.REGION_WRITE: self._region_write, Command.REGION_WRITE_MULTI: self._region_write_multi,
            Command.DEVICE_RESET: self._reset}
        if self._migration is not None:
            self._handlers |= {Command.DEVICE_FEATURE: self._feature, Command.MIG_DATA_READ: self._read_state,
                               Command.MIG_DATA_WRITE: self._write_state}

    def _later(self, delay: float, call: Callable[[], None]) -> None:
        self._loop.call_later(delay, lambda: None if self.closed else call())

    # Receiving.

    def pump(self) -> None:
        """Handle the messages that are there; a client that is gone, or speaks no vfio-user, ends the session."""
        try:
            for _ in range(_MESSAGES_PER_TURN):
                frame = self._queued.popleft() if self._queued else self._stream.receive()
                if frame is None:
                    return
                try:
                    self._handle(frame)
                finally:
                    frame.close()
                if self.closed:
                    return
            self._pump_soon()  # more may be there than the socket tells of
        except Gone:
            self.close()
        except WireError as error:
            self.error = error
            self.function.log(f"client: {error}; connection closed")
            self.close()

    def _pump_soon(self) -> None:
        self._loop.call_soon(lambda: None if self.closed else self.pump())

    def _handle(self, frame: Frame[Header]) -> None:
        header = frame.header
        self.messages += 1
        if header.is_reply:
            raise WireError("a reply answers a message", spec="vfio-user, Header", detail=f"id {header.message_id}")
        try:
            command = Command(header.command)
        except ValueError:
            self._refuse(header, errno.EINVAL, f"no command {header.command}")
            return
        try:
            kind = MESSAGES[command]
            payload = kind.request.unpack(frame.data)
            if self._trace is not None:
                self._trace(f"{command.name} {payload}"[:200])
            if not kind.fds[0] <= len(frame.fds) <= kind.fds[1]:
                raise NotPossible(errno.EINVAL, f"{command.name} with {len(frame.fds)} descriptors")
            if command is Command.VERSION:
                answer: tuple[Payload, tuple[int, ...]] = self._agree(payload), ()
            elif self._version is None:
                raise WireError("a client begins with its version", spec="vfio-user, VFIO_USER_VERSION",
                                detail=command.name)
            else:
                handler = self._handlers.get(command)
                if handler is None:
                    raise NotPossible(errno.EOPNOTSUPP, f"{command.name} is not served")
                answer = handler(payload, frame)
        except NotPossible as refusal:
            self._refuse(header, refusal.number, str(refusal))
        except DmaFault as fault:
            self._refuse(header, errno.EFAULT, str(fault))
        except WireError as error:
            if self._version is None:
                raise
            self._refuse(header, errno.EINVAL, str(error))
        else:
            if header.wants_reply and not self.closed:
                self._stream.send_frame(encode(header.message_id, header.command, answer[0].pack(), REPLY), answer[1])

    def _refuse(self, header: Header, number: int, why: str) -> None:
        self.function.log(f"client: {why}")
        if header.wants_reply:
            self._stream.send_frame(encode(header.message_id, header.command, b"", REPLY | ERROR, number))

    # Messages.

    def _agree(self, said: Any) -> Version:  # noqa: ANN401 - what VERSION carries
        assert isinstance(said, Version)
        if self._version is not None:
            raise NotPossible(errno.EINVAL, "the version was agreed upon already")
        if said.major:
            raise WireError("the major version is 0", spec="vfio-user, VFIO_USER_VERSION", detail=str(said.major))
        self._transfer = min(MAX_TRANSFER, max(4096, said.number("max_data_xfer_size", MAX_TRANSFER)))
        self._most_fds = min(MAX_FDS, max(1, said.number("max_msg_fds", 1)))
        # A client that is told of what it did not name takes it for an error of the server's.
        own = {name: value for name, value in _OWN.items() if name in said.capabilities}
        self._version = Version(said.major, said.minor, own)
        return self._version

    def _dma_map(self, wanted: DmaMap, frame: Frame[Header]) -> tuple[Payload, tuple[int, ...]]:
        try:
            self.memory.map(wanted, frame.take_fd())
        except WireError as error:
            raise NotPossible(errno.EEXIST, str(error)) from None
        return Empty(), ()

    def _dma_unmap(self, wanted: DmaUnmap, _frame: Frame[Header]) -> tuple[Payload, tuple[int, ...]]:
        if not self.memory.unmap(wanted):
            raise NotPossible(errno.ENOENT, f"no range at {wanted.address:#x} of {wanted.size:#x} bytes")
        return wanted, ()

    def _get_info(self, _asked: DeviceInfo, _frame: Frame[Header]) -> tuple[Payload, tuple[int, ...]]:
        return DeviceInfo(DeviceInfo.RESET | DeviceInfo.PCI, REGIONS, _IRQS), ()

    def _size_of(self, region: int) -> int:
        sizes = self.function.bar_sizes
        if region < len(sizes):
            return sizes[region]
        return _CONFIG_SIZE if region == _CONFIG_REGION else 0

    def _get_region_info(self, asked: RegionInfo, _frame: Frame[Header]) -> tuple[Payload, tuple[int, ...]]:
        if asked.index >= REGIONS:
            raise NotPossible(errno.EINVAL, f"no region {asked.index}")
        size = self._size_of(asked.index)
        flags = RegionFlag.READ | RegionFlag.WRITE if size else RegionFlag(0)
        found = self.function.mappable(asked.index) if isinstance(self.function, Mappable) else None
        if found is None:
            return RegionInfo(asked.index, flags, size, argsz=asked.argsz), ()
        # What lies behind the memory in its BAR is no part of the file, and stays with messages.
        file, length = found
        areas = ((0, length),) if length < size else ()
        return RegionInfo(asked.index, flags | RegionFlag.MMAP, size, 0, areas, asked.argsz), (file,)

    def _get_region_io_fds(self, asked: RegionIoFds, _frame: Frame[Header]) -> tuple[Payload, tuple[int, ...]]:
        if asked.index >= REGIONS:
            raise NotPossible(errno.EINVAL, f"no region {asked.index}")
        offsets = self.function.doorbells(asked.index)[:self._most_fds] if isinstance(self.function, Rung) else ()
        pieces = tuple(SubRegion(offset, _DOORBELL, number) for number, offset in enumerate(offsets))
        answer = RegionIoFds(asked.index, pieces)
        if (size := len(answer.pack())) > asked.argsz:
            return RegionIoFds(asked.index, (), size), ()
        return answer, tuple(self._doorbell(asked.index, offset) for offset in offsets)

    def _doorbell(self, region: int, offset: int) -> int:
        """Return what a client writes to in place of a register.

        It is never read: what wakes up is the write, and a read could be made to wait by a client that has it too.
        """
        key = region, offset
        if key not in self._doorbells:
            fd = self._doorbells[key] = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
            self._loop.add_reader(fd, lambda: self._rung(region, offset), edge=True)
        return self._doorbells[key]

    def _rung(self, region: int, offset: int) -> None:
        if self._trace is not None:
            self._trace(f"doorbell at {offset:#x} of region {region}")
        try:
            self.function.write_bar(region, offset, bytes(_DOORBELL))
        except DmaFault as fault:
            self.function.log(f"client: {fault}")

    def _irq_count(self, index: int) -> int:
        return {IrqIndex.INTX: 1, IrqIndex.MSIX: self.function.vectors, IrqIndex.ERR: 1, IrqIndex.REQ: 1}.get(
            IrqIndex(index), 0)

    def _get_irq_info(self, asked: IrqInfo, _frame: Frame[Header]) -> tuple[Payload, tuple[int, ...]]:
        if asked.index >= _IRQS:
            raise NotPossible(errno.EINVAL, f"no interrupts of kind {asked.index}")
        flags = IrqFlag.EVENTFD | (IrqFlag.MASKABLE | IrqFlag.AUTOMASKED if asked.index == IrqIndex.INTX
                                   else IrqFlag.NORESIZE)
        return IrqInfo(asked.index, flags, self._irq_count(asked.index)), ()

    def _region(self, region: int, offset: int, count: int) -> None:
        if region >= REGIONS or not count or offset + count > self._size_of(region) or count > self._transfer:
            raise NotPossible(errno.EINVAL, f"no {count} bytes at {offset:#x} of region {region}")

    def _region_read(self, asked: RegionAccess, _frame: Frame[Header]) -> tuple[Payload, tuple[int, ...]]:
        self._region(asked.region, asked.offset, asked.count)
        if asked.region == _CONFIG_REGION:
            data = self.function.read_config(asked.offset, asked.count)
        else:
            data = self.function.read_bar(asked.region, asked.offset, asked.count)
        return RegionAccess(asked.offset, asked.region, asked.count, data), ()

    def _region_write(self, asked: RegionAccess, _frame: Frame[Header]) -> tuple[Payload, tuple[int, ...]]:
        if len(asked.data) != asked.count:
            raise NotPossible(errno.EINVAL, "a write without its bytes")
        self._write(asked.region, asked.offset, asked.data)
        return RegionAccess(asked.offset, asked.region, asked.count), ()

    def _write(self, region: int, offset: int, data: bytes) -> None:
        self._region(region, offset, len(data))
        if region == _CONFIG_REGION:
            self.function.write_config(offset, data)
        else:
            self.function.write_bar(region, offset, data)

    def _region_write_multi(self, asked: WriteMulti, _frame: Frame[Header]) -> tuple[Payload, tuple[int, ...]]:
        for write in asked.writes:
            self._write(write.region, write.offset, write.data)
        return WriteMulti(asked.writes), ()

    def _reset(self, _asked: Empty, _frame: Frame[Header]) -> tuple[Payload, tuple[int, ...]]:
        self.function.reset()
        if self._migration is not None:
            self._migration.close()
        return Empty(), ()

    # Migration.

    def _feature(self, asked: DeviceFeature, _frame: Frame[Header]) -> tuple[Payload, tuple[int, ...]]:
        assert self._migration is not None
        return self._migration.feature(asked), ()

    def _read_state(self, asked: MigrationData, _frame: Frame[Header]) -> tuple[Payload, tuple[int, ...]]:
        assert self._migration is not None
        data = self._migration.read(min(asked.size, self._transfer))
        return MigrationData(len(data), data), ()

    def _write_state(self, asked: MigrationData, _frame: Frame[Header]) -> tuple[Payload, tuple[int, ...]]:
        assert self._migration is not None
        if len(asked.data) != asked.size:
            raise NotPossible(errno.EINVAL, "a piece of state without its bytes")
        self._migration.write(asked.data)
        return MigrationData(0), ()

    # Interrupts.

    def _set_irqs(self, asked: IrqSet, frame: Frame[Header]) -> tuple[Payload, tuple[int, ...]]:
        if asked.index >= _IRQS or asked.start + asked.count > self._irq_count(asked.index):
            raise NotPossible(errno.EINVAL, f"no {asked.count} interrupts of kind {asked.index} from {asked.start} on")
        numbers = [(asked.index, number) for number in range(asked.start, asked.start + asked.count)]
        if asked.flags & IrqSetFlag.DATA_BOOL:
            numbers = [key for key, chosen in zip(numbers, asked.bools, strict=True) if chosen]
        if asked.flags & IrqSetFlag.TRIGGER:
            self._set_triggers(asked, numbers, frame)
        elif asked.flags & IrqSetFlag.DATA_EVENTFD:
            raise NotPossible(errno.EOPNOTSUPP, "interrupts are not masked by eventfds")
        else:
            self._mask(numbers, masked=bool(asked.flags & IrqSetFlag.MASK))
        return Empty(), ()

    def _set_triggers(self, asked: IrqSet, numbers: list[tuple[int, int]], frame: Frame[Header]) -> None:
        if asked.flags & IrqSetFlag.DATA_EVENTFD:
            if frame.fds and len(frame.fds) != len(numbers):
                raise NotPossible(errno.EINVAL, f"{len(frame.fds)} eventfds for {len(numbers)} interrupts")
            for key in numbers:
                self._forget_eventfd(key)
                if (fd := frame.take_fd()) is not None:
                    os.set_blocking(fd, False)
                    self._eventfds[key] = fd
        elif not asked.count:
            for key in [key for key in self._eventfds if key[0] == asked.index]:
                self._forget_eventfd(key)
        else:
            for key in numbers:
                self._fire(key)

    def _mask(self, numbers: list[tuple[int, int]], *, masked: bool) -> None:
        for key in numbers:
            if masked:
                self._masked.add(key)
            else:
                self._masked.discard(key)
                if key[0] == IrqIndex.INTX and self._pin:
                    self._raise_pin(True)

    def _forget_eventfd(self, key: tuple[int, int]) -> None:
        fd = self._eventfds.pop(key, None)
        if fd is not None:
            os.close(fd)

    def _fire(self, key: tuple[int, int]) -> None:
        fd = self._eventfds.get(key)
        if fd is not None and key not in self._masked:
            with contextlib.suppress(BlockingIOError):  # it counts already as much as it can
                os.write(fd, _ONE)

    def _raise_vector(self, vector: int) -> None:
        self._fire((IrqIndex.MSIX, vector))

    def _raise_pin(self, asserted: bool) -> None:
        self._pin = asserted
        if asserted:
            self._fire((IrqIndex.INTX, 0))
            # It stays masked until the client has looked (AUTOMASKED).
            self._masked.add((IrqIndex.INTX, 0))

    # Memory that is reached by messages.

    def dma_read(self, address: int, length: int) -> bytes:
        """Read guest memory by asking the client.

        Raises:
            DmaFault: it does not answer, or not with that.

        """
        data = b""
        while len(data) < length:
            step = min(length - len(data), self._transfer)
            answer = self._ask(Command.DMA_READ, DmaTransfer(address + len(data), step))
            if len(answer.data) != step:
                raise DmaFault(address, length, "read", f"the client gave {len(answer.data)} of {step} bytes")
            data += answer.data
        return data

    def dma_write(self, address: int, data: bytes) -> None:
        """Write guest memory by asking the client.

        Raises:
            DmaFault: it does not answer.

        """
        for at in range(0, len(data), self._transfer):
            piece = data[at:at + self._transfer]
            self._ask(Command.DMA_WRITE, DmaTransfer(address + at, len(piece), piece))

    def _ask(self, command: Command, payload: DmaTransfer) -> DmaTransfer:
        self._next_id = (self._next_id + 1) & 0xFFFF
        message_id = self._next_id
        try:
            self._stream.send_frame(encode(message_id, command, payload.pack()))
            with contextlib.closing(self._await(message_id)) as frame:
                if frame.header.failed or frame.header.command != command:
                    raise DmaFault(payload.address, payload.count, command.name,
                                   f"the client answers with error {frame.header.error}")
                return DmaTransfer.unpack(frame.data)
        except (Gone, WireError) as error:
            # Whoever asks is a device at work, which knows of memory and of no protocol.
            raise DmaFault(payload.address, payload.count, command.name, str(error)) from None

    def _await(self, message_id: int) -> Frame[Header]:
        """Wait for one reply; commands that come before it are handled after whatever needs it."""
        while True:
            frame = self._stream.wait(_REMOTE_SECONDS)
            if frame.header.is_reply and frame.header.message_id == message_id:
                return frame
            if frame.header.is_reply or len(self._queued) >= _MOST_QUEUED:
                frame.close()
                raise Gone("the client answers something else")
            self._queued.append(frame)
            self._pump_soon()

    # The end.

    def close(self) -> None:
        """End the session: the function is reset, and all that the client gave is given back."""
        if self.closed:
            return
        self.closed = True
        self._loop.remove_reader(self._stream.fileno())
        for fd in self.function.pollable():
            self._loop.remove_reader(fd)
        self.function.reset()
        if self._migration is not None:
            self._migration.close()
        for key in list(self._eventfds):
            self._forget_eventfd(key)
        for fd in self._doorbells.values():
            self._loop.remove_reader(fd)
            os.close(fd)
        self._doorbells.clear()
        for frame in self._queued:
            frame.close()
        self.memory.clear()
        self._stream.close()
        self._ended(self)
