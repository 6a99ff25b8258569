"""Writes down what crosses between a driver and its device: packets for Wireshark, lines for people."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self

from pcapng import FileWriter
from pcapng.blocks import EnhancedPacket, InterfaceDescription, SectionHeader

from chamber.device.hooks import Hooks
from chamber.wire.net import HDR, HDR_SIZE
from chamber.wire.virtio import DeviceType, feature_names

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from chamber.device.base import Device
    from chamber.device.chain import Chain
    from chamber.device.queue import DeviceQueue

__all__ = ("CaptureFile", "Recorder")

_LINKTYPE_ETHERNET: Final = 1
_LINKTYPE_USER0: Final = 147
"""Linktypes of the pcapng registry: private use for what has none of its own."""
_INBOUND, _OUTBOUND = 1, 2
"""epb_flags, bits 0 and 1, as the guest sees it."""
_SNAP: Final = 1 << 16
_SHOWN: Final = 32


class CaptureFile:
    """A pcapng file, and beside it, with ``.txt`` appended, the transcript.

    Ethernet frames are packets of the first interface; requests and answers of all other queues are packets of the
    second, their comment being the transcript's line.

    Args:
        path: the pcapng file; written anew.
        clock: seconds; by default those since the epoch.

    Raises:
        OSError: a file can't be written.

    """

    def __init__(self, path: Path, clock: Callable[[], float] = time.time) -> None:
        self.clock = clock
        self._stream = path.open("wb")
        try:
            self._text = Path(f"{path}.txt").open("w", encoding="utf-8")  # noqa: SIM115 - closed by `close`
        except OSError:
            self._stream.close()
            raise
        header = SectionHeader(options={"shb_userappl": "chamber"})
        self._frames = header.new_member(InterfaceDescription, link_type=_LINKTYPE_ETHERNET, snaplen=0,
                                         options={"if_name": "virtio-net"})
        self._buffers = header.new_member(InterfaceDescription, link_type=_LINKTYPE_USER0, snaplen=0,
                                          options={"if_name": "virtqueues"})
        self._header = header
        self._writer = FileWriter(self._stream, header)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Finish both files."""
        self._stream.close()
        self._text.close()

    def line(self, text: str) -> None:
        """Add a line to the transcript."""
        self._text.write(f"{self.clock():.6f} {text}\n")

    def frame(self, data: bytes, *, to_guest: bool) -> None:
        """Add an Ethernet frame."""
        self._packet(self._frames, data, to_guest=to_guest)

    def buffer(self, data: bytes, comment: str, *, to_guest: bool) -> None:
        """Add what was in a buffer; the comment goes into the transcript as well."""
        self.line(f"{comment}: {data[:_SHOWN].hex(' ')}{' ...' if len(data) > _SHOWN else ''}")
        self._packet(self._buffers, data, to_guest=to_guest, comment=comment)

    def _packet(self, interface: InterfaceDescription, data: bytes, *, to_guest: bool, comment: str = "") -> None:
        options: dict[str, Any] = {"epb_flags": _INBOUND if to_guest else _OUTBOUND}
        if comment:
            options["opt_comment"] = comment
        microseconds = int(self.clock() * 1e6)
        self._writer.write_block(self._header.new_member(
            EnhancedPacket, interface_id=interface.interface_id, timestamp_high=microseconds >> 32,
            timestamp_low=microseconds & 0xFFFFFFFF, packet_payload_info=(len(data[:_SNAP]), len(data)),
            packet_data=data[:_SNAP], options=options))


class Recorder(Hooks):
    """Writes down what a device and its driver exchange, after whatever interferes with it.

    Args:
        file: where to.
        inner: an attack, or other hooks, to be asked as if they stood here.

    """

    def __init__(self, file: CaptureFile, inner: Hooks | None = None) -> None:
        self._file = file
        self._inner = Hooks() if inner is None else inner
        self._frame = bytearray()
        self._missing = 0

    def attach(self, device: Device) -> None:
        """Stand in a device."""
        self.device = device
        self._inner.attach(device)

    def _name(self, queue: DeviceQueue) -> str:
        return f"{self.device.type.short} queue {queue.index} ({self.device.queue_role(queue.index)})"

    def _carries_frames(self, queue: DeviceQueue) -> bool:
        return self.device.type is DeviceType.NET and self.device.queue_role(queue.index) in {"rx", "tx"}

    def features(self, offered: int) -> int:
        """Write down what is offered."""
        offered = self._inner.features(offered)
        self._file.line(f"{self.device.type.short} offers {' '.join(feature_names(offered))}")
        return offered

    def features_accepted(self, features: int) -> None:
        """Write down what the driver takes."""
        self._file.line(f"{self.device.type.short} driver accepts {' '.join(feature_names(features))}")
        self._inner.features_accepted(features)

    def config(self, config: bytearray, offset: int, size: int) -> bytearray:
        """Write down a read of configuration space."""
        config = self._inner.config(config, offset, size)
        self._file.line(f"{self.device.type.short} config read at {offset}: {config[offset:offset + size].hex(' ')}")
        return config

    def generation(self, generation: int) -> int:
        """Ask."""
        return self._inner.generation(generation)

    def config_written(self, offset: int, data: bytes) -> None:
        """Write down a write to configuration space."""
        self._file.line(f"{self.device.type.short} config written at {offset}: {data.hex(' ')}")
        self._inner.config_written(offset, data)

    def queue_started(self, queue: DeviceQueue) -> None:
        """Write down that a queue is there."""
        self._file.line(f"{self._name(queue)} started")
        self._inner.queue_started(queue)

    def driver_ok(self) -> None:
        """Write down that the driver is ready."""
        self._file.line(f"{self.device.type.short} driver ready")
        self._inner.driver_ok()

    def notified(self, queue: DeviceQueue) -> None:
        """Write down a notification."""
        self._file.line(f"{self._name(queue)} notified")
        self._inner.notified(queue)

    def popped(self, queue: DeviceQueue, chain: Chain) -> bool:
        """Write down what the driver sent, as far as the device would read it."""
        size = min(chain.readable_size, _SNAP)
        if size and self._carries_frames(queue):
            data = chain.read(0, size)
            self._file.frame(data[HDR_SIZE:], to_guest=False)
            self._file.line(f"{self._name(queue)} frame of {len(data) - HDR_SIZE} bytes from the guest")
        elif size:
            self._file.buffer(chain.read(0, size), f"{self._name(queue)} request {chain.head}, {chain.readable_size} "
                              f"bytes, {chain.writable_size} to be written", to_guest=False)
        return self._inner.popped(queue, chain)

    def response(self, queue: DeviceQueue, chain: Chain, data: bytes) -> bytes:
        """Write down what the device answers."""
        data = self._inner.response(queue, chain, data)
        if self._carries_frames(queue):
            self._receive(data)
        else:
            self._file.buffer(bytes(data[:_SNAP]), f"{self._name(queue)} answer to {chain.head}, {len(data)} bytes",
                              to_guest=True)
        return data

    def _receive(self, data: bytes) -> None:
        """Put a frame together that comes in several buffers; the first says how many, true or not."""
        if self._missing:
            self._frame += data
            self._missing -= 1
        else:
            self._frame = bytearray(data[HDR_SIZE:])
            self._missing = max(HDR.get(data, "num_buffers"), 1) - 1 if len(data) >= HDR_SIZE else 0
        if not self._missing or len(self._frame) > _SNAP:
            self._missing = 0
            self._file.frame(bytes(self._frame), to_guest=True)
            self._file.line(f"{self.device.type.short} frame of {len(self._frame)} bytes to the guest")

    def used(self, queue: DeviceQueue, chain: Chain, length: int) -> Iterable[tuple[int, int]]:
        """Write down what the driver is told of it."""
        elements = tuple(self._inner.used(queue, chain, length))
        for head, claimed in elements:
            self._file.line(f"{self._name(queue)} used: id {head}, {claimed} bytes")
        return elements

    def published(self, queue: DeviceQueue) -> None:
        """Ask."""
        self._inner.published(queue)

    def interrupt(self, queue: DeviceQueue, wanted: bool) -> bool:
        """Write down an interrupt."""
        wanted = self._inner.interrupt(queue, wanted)
        if wanted:
            self._file.line(f"{self._name(queue)} interrupts")
        return wanted

    def queue_stopping(self, queue: DeviceQueue) -> None:
        """Write down that a queue goes."""
        self._file.line(f"{self._name(queue)} stopped")
        self._missing = 0
        self._inner.queue_stopping(queue)

    def logged(self, line: str) -> None:
        """Write down what the device has to say, and what an attack says that it did."""
        self._file.line(f"{self.device.type.short}: {line}")
        self._inner.logged(line)

    def guest_read(self, address: int, length: int) -> None:
        """Ask."""
        self._inner.guest_read(address, length)
