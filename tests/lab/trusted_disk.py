"""A disk that a Linux guest takes by `chamber tdisp bind`, the policy that it is to satisfy, and ways to spoil it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from cryptography.hazmat.primitives import hashes

from chamber.device.blk import BlkDevice
from chamber.device.disk import MemoryDisk
from chamber.device.spdm_identity import make_slot
from chamber.device.trusted_function import BehindRootPort, TrustedFunction
from chamber.device.virtio_pci import VirtioPci
from chamber.platform.spdm_crypto import hash_of
from chamber.wire.pci import HEADER
from chamber.wire.spdm_messages import Measurement, MeasurementType
from chamber.wire.tdisp import State
from chamber.wire.virtio import DeviceType

if TYPE_CHECKING:
    from collections.abc import Callable

    from chamber.platform.dma import Dma

__all__ = ("SPOILT", "TrustedDisk", "policy")

MEASURED = (Measurement(1, MeasurementType.FIRMWARE, b"firmware"),)
IDENTITY = make_slot("P-256")


def policy(more: str = "") -> str:
    """Return the text of one that the disk satisfies, with more lines about the device."""
    root = IDENTITY.certificates[0].fingerprint(hashes.SHA256()).hex()
    value = hash_of("SHA-384", b"firmware").hex()
    return (f'schema = "chamber-trust/1"\nname = "test"\nroots = ["{root}"]\ncomplete = true\n'
            f'[[measurement]]\nindex = 1\nvalue = "{value}"\n[device]\ntype = "blk"\n{more}')


class TrustedDisk:
    """The disk, anew for each guest that takes it.

    Args:
        routing_id: of the function on the guest's bus.

    Attributes:
        content: what is on it.
        lines: what was said.
        behind: the function.

    """

    def __init__(self, routing_id: int = 0) -> None:
        self.content = MemoryDisk(bytearray(b"\x5a" * (1 << 20)))
        self.lines: list[str] = []
        self._routing_id = routing_id
        self.behind = BehindRootPort(VirtioPci(BlkDevice(self.content)), self._make)

    def _make(self, virtio: VirtioPci, memory: Dma) -> TrustedFunction:
        return TrustedFunction(virtio, IDENTITY, shared=memory, private=memory, routing_id=self._routing_id,
                               stream_id=None, measurements=lambda: MEASURED, log=self.lines.append)

    @property
    def device(self) -> TrustedFunction:
        """The device."""
        return self.behind.trusted


def _changed_firmware(device: TrustedFunction, _soon: Any) -> None:
    device.responder._measurements = lambda: (Measurement(1, MeasurementType.FIRMWARE, b"changed"),)


def _more_firmware(device: TrustedFunction, _soon: Any) -> None:
    device.responder._measurements = lambda: (*MEASURED, Measurement(2, MeasurementType.ROM, b"more"))


def _another_identity(device: TrustedFunction, _soon: Any) -> None:
    device.responder._slots[0] = make_slot("P-256")


def _without_the_key(device: TrustedFunction, _soon: Any) -> None:
    slots = device.responder._slots
    slots[0] = type(slots[0])(slots[0].certificates, make_slot("P-256").key)


def _old_version(device: TrustedFunction, _soon: Any) -> None:
    device.responder._spoken = (0x11,)


def _silent(device: TrustedFunction, _soon: Any) -> None:
    device.responder.handle = lambda payload, *, secured: None  # type: ignore[method-assign]


def _no_interface(device: TrustedFunction, _soon: Any) -> None:
    device.dsm._tdis = {0x4242: next(iter(device.dsm._tdis.values()))}


def _moved(device: TrustedFunction, _soon: Any) -> None:
    lock = device.tdi.lock

    def lie(asked: Any) -> Any:
        report = lock(asked)
        first, *others = report.ranges
        return type(report)(report.info, (type(first)(first.first_page + 16, first.pages, first.attributes,
                                                      first.range_id), *others), report.device_specific)

    device.tdi.lock = lie  # type: ignore[method-assign,assignment]


def _another_type(device: TrustedFunction, _soon: Any) -> None:
    describe = device.tdi._device_info
    device.tdi._device_info = lambda virtio: (
        describe(virtio)[:6] + DeviceType.NET.to_bytes(2, "little") + describe(virtio)[8:])


def _meddled(device: TrustedFunction, soon: Callable[[Callable[[], None]], object]) -> None:
    lock = device.tdi.lock

    def locked(asked: Any) -> Any:
        report = lock(asked)
        device.tdi.state = State.CONFIG_LOCKED
        soon(lambda: device.tdi.write_config(HEADER["bar0"].offset, b"\0\0\0\x90"))
        return report

    device.tdi.lock = locked  # type: ignore[method-assign,assignment]


SPOILT = ((_changed_firmware, "measurements"), (_more_firmware, "measurements"), (_another_identity, "certificates"),
          (_without_the_key, "freshness"), (_old_version, "connection"), (_silent, "connection"),
          (_no_interface, "lock"), (_moved, "report"), (_another_type, "device"), (_meddled, "lock"))
"""What spoils a device, given it and what calls something soon; and the check that fails then."""
