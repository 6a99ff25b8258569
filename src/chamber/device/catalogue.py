"""Honest devices by type, rich enough that every part of a guest's driver has something to do."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from chamber.device.balloon import BalloonDevice
from chamber.device.blk import BlkDevice, pattern_disk
from chamber.device.console import ConsoleDevice
from chamber.device.disk import MemoryDisk
from chamber.device.fs import FsDevice
from chamber.device.input import InputDevice
from chamber.device.net import NetDevice
from chamber.device.p9 import P9Device
from chamber.device.pmem import PmemDevice
from chamber.device.port import Port
from chamber.device.rng import RngDevice
from chamber.device.scsi import ScsiDevice, unit_pattern
from chamber.device.scsi_lun import LogicalUnit
from chamber.device.snd import SndDevice
from chamber.device.vsock import VsockDevice
from chamber.wire.console import ConsoleFeature
from chamber.wire.scsi import Address
from chamber.wire.virtio import DeviceType, Feature, bit

if TYPE_CHECKING:
    from collections.abc import Callable

    from chamber.device.base import Device
    from chamber.device.hooks import Hooks

__all__ = ("DISK_SIZE", "ECHO_PORT", "RINGS", "TYPES", "make_device")

DISK_SIZE: Final = 4 << 20
"""Bytes of the disk that `make_device` makes; its content is `chamber.device.blk.pattern_disk`."""

ECHO_PORT: Final = "chamber.echo"
"""Name of the port that sends back what the guest writes; port 0, the console, does so as well."""


def _blk(**options: Any) -> BlkDevice:  # noqa: ANN401 - the class checks them
    options.setdefault("disk", MemoryDisk(pattern_disk(DISK_SIZE)))
    return BlkDevice(**options)


def _console(**options: Any) -> ConsoleDevice:  # noqa: ANN401 - as above
    options.setdefault("ports", (Port(console=True), Port(ECHO_PORT)))
    # Without SIZE: Linux (6.1) uses the console after it is freed when a resize is followed by removal, and an honest
    # device is not to bring that about.
    options.setdefault("features", bit(ConsoleFeature.MULTIPORT, ConsoleFeature.EMERG_WRITE))
    return ConsoleDevice(**options)


def _crypto(**options: Any) -> Device:  # noqa: ANN401 - as above
    from chamber.device.crypto import CryptoDevice  # noqa: PLC0415 - the library behind it takes a while to load

    return CryptoDevice(**options)


def _scsi(**options: Any) -> ScsiDevice:  # noqa: ANN401 - as above
    options.setdefault("units", {
        address: LogicalUnit(MemoryDisk(unit_pattern(address, size)), serial=serial, block_size=block_size)
        for address, size, serial, block_size in (
            (Address(0, 0), 1 << 20, b"chamber", 512), (Address(0, 1), 256 << 10, b"chamber-4k", 4096))})
    return ScsiDevice(**options)


_MAKERS: Final[dict[DeviceType, Callable[..., Device]]] = {
    DeviceType.NET: NetDevice,
    DeviceType.BLOCK: _blk,
    DeviceType.CONSOLE: _console,
    DeviceType.RNG: RngDevice,
    DeviceType.SCSI: _scsi,
    DeviceType.BALLOON: BalloonDevice,
    DeviceType.CRYPTO: _crypto,
    DeviceType.PMEM: PmemDevice,
    DeviceType.FS: FsDevice,
    DeviceType.TRANSPORT_9P: P9Device,
    DeviceType.INPUT: InputDevice,
    DeviceType.SND: SndDevice,
    DeviceType.VSOCK: VsockDevice,
}

TYPES: Final = tuple(_MAKERS)
"""The device types that there are."""


RINGS: Final = {
    "split": 0,
    "packed": bit(Feature.RING_PACKED),
    "split-in-order": bit(Feature.IN_ORDER),
    "packed-in-order": bit(Feature.RING_PACKED, Feature.IN_ORDER),
}
"""Kinds of queue that a device can offer, and the features that it offers for them."""


def make_device(type: DeviceType, *, hooks: Hooks | None = None, ring: str = "split",  # noqa: A002
                **options: Any) -> Device:  # noqa: ANN401 - the class checks them
    """Make a device as assessments use it.

    Args:
        type: which kind.
        hooks: interference, if any.
        ring: the kind of queue that it offers, one of `RINGS`.
        options: what the device class takes besides; they replace the defaults one by one.

    """
    device = _MAKERS[type](hooks=hooks, **options)
    device.offer(RINGS[ring])
    return device
