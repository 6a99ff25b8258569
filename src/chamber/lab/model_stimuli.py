"""What the model guest does with its devices; the same names as for real guests, so that reports compare."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from chamber.guest.drivers.balloon import BalloonDriver
from chamber.guest.drivers.blk import BlkDriver
from chamber.guest.drivers.console import ConsoleDriver
from chamber.guest.drivers.crypto import CryptoDriver
from chamber.guest.drivers.fs import FsDriver
from chamber.guest.drivers.input import InputDriver
from chamber.guest.drivers.net import NetDriver
from chamber.guest.drivers.p9 import P9Driver
from chamber.guest.drivers.pmem import PmemDriver
from chamber.guest.drivers.rng import RngDriver
from chamber.guest.drivers.scsi import ScsiDriver
from chamber.guest.drivers.snd import SndDriver
from chamber.guest.drivers.vsock import VsockDriver
from chamber.lab.model_use import balloon, blk, console, crypto, fs, net, p9, pmem, rng, scsi, snd, vsock
from chamber.lab.model_use import input as input_
from chamber.wire.virtio import DeviceType

if TYPE_CHECKING:
    from collections.abc import Callable

    from chamber.guest.driver import VirtioDriver

__all__ = ("DRIVERS", "STIMULI")

DRIVERS: Final[dict[DeviceType, type[VirtioDriver]]] = {
    DeviceType.NET: NetDriver,
    DeviceType.BLOCK: BlkDriver,
    DeviceType.CONSOLE: ConsoleDriver,
    DeviceType.RNG: RngDriver,
    DeviceType.SCSI: ScsiDriver,
    DeviceType.BALLOON: BalloonDriver,
    DeviceType.CRYPTO: CryptoDriver,
    DeviceType.PMEM: PmemDriver,
    DeviceType.FS: FsDriver,
    DeviceType.TRANSPORT_9P: P9Driver,
    DeviceType.INPUT: InputDriver,
    DeviceType.SND: SndDriver,
    DeviceType.VSOCK: VsockDriver,
}

STIMULI: Final[dict[DeviceType, dict[str, Callable[..., None]]]] = {
    DeviceType.NET: net.STIMULI,
    DeviceType.BLOCK: blk.STIMULI,
    DeviceType.CONSOLE: console.STIMULI,
    DeviceType.RNG: rng.STIMULI,
    DeviceType.SCSI: scsi.STIMULI,
    DeviceType.BALLOON: balloon.STIMULI,
    DeviceType.CRYPTO: crypto.STIMULI,
    DeviceType.PMEM: pmem.STIMULI,
    DeviceType.FS: fs.STIMULI,
    DeviceType.TRANSPORT_9P: p9.STIMULI,
    DeviceType.INPUT: input_.STIMULI,
    DeviceType.SND: snd.STIMULI,
    DeviceType.VSOCK: vsock.STIMULI,
}
"""By device type and name; each is called with the driver, the guest's machine, and what asks the honest host for an
action of its own."""
