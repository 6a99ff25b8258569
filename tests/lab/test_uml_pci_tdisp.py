"""A real Linux guest takes a device by `chamber tdisp bind`: its own driver gets it after a good report alone."""

from __future__ import annotations

import contextlib
import sys
from typing import TYPE_CHECKING, Any

import pytest
from cryptography.hazmat.primitives import hashes

from chamber.device.blk import BlkDevice
from chamber.device.disk import MemoryDisk
from chamber.device.pci_over_virtio import PciOverVirtio
from chamber.device.spdm_identity import make_slot
from chamber.device.trusted_function import BehindRootPort, TrustedFunction
from chamber.device.virtio_pci import VirtioPci
from chamber.lab.kernel.build import build_kernel
from chamber.lab.kernel.config import KernelOptions
from chamber.lab.kernel.source import find_source
from chamber.lab.uml_guest import UmlGuest
from chamber.lab.uml_kernel import find_kernel
from chamber.lab.uml_program import run_program
from chamber.link.eventloop import EventLoop
from chamber.wire.pci import HEADER
from chamber.wire.spdm_messages import Measurement, MeasurementType
from chamber.wire.tdisp import State
from chamber.wire.virtio import DeviceType

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from chamber.platform.dma import Dma

pytestmark = [pytest.mark.kernel, pytest.mark.timeout(1500)]

SERIES = "7.3"
MEASURED = (Measurement(1, MeasurementType.FIRMWARE, b"firmware"),)
IDENTITY = make_slot("P-256")


class Guest:
    """A guest with one trusted disk on its bus, which no driver has."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.options: dict[str, Any] = {}
        self.identity = IDENTITY
        self.lines: list[str] = []
        self.disk = MemoryDisk(bytearray(b"\x5a" * (1 << 20)))
        self.behind: BehindRootPort | None = None
        kernel = find_kernel(build_kernel(find_source(SERIES), KernelOptions(kasan=False, ubsan=False)).binary)
        self._loop = EventLoop()
        self._booted = False
        self._guest = UmlGuest(kernel, self._loop, {DeviceType.BLOCK: self._provide}, options=kernel.options, pci=True,
                               memory_mb=256)
        self._booted = True

    def _provide(self) -> PciOverVirtio | None:
        if not self._booted:
            return None
        self.behind = BehindRootPort(VirtioPci(BlkDevice(self.disk)), self._make)
        return PciOverVirtio(self.behind)

    def _make(self, virtio: VirtioPci, memory: Dma) -> TrustedFunction:
        return TrustedFunction(virtio, self.identity, shared=memory, private=memory, routing_id=self.options.pop(
            "routing_id", 0), stream_id=None, log=self.lines.append, **{"measurements": lambda: MEASURED,
                                                                        **self.options})

    @property
    def device(self) -> TrustedFunction:
        assert self.behind is not None
        return self.behind.trusted

    def close(self) -> None:
        self._guest.close()
        self._loop.close()

    def sh(self, command: str, seconds: float = 120.0) -> tuple[int | None, str]:
        result = run_program(self._guest, "sh", "-c", command, seconds=seconds)
        return result.status, result.output

    def plug(self) -> str:
        """Have the guest find the function, its own driver kept away; return its address."""
        name = self._guest.platform[DeviceType.BLOCK]
        self.sh("echo 0 >/sys/bus/pci/drivers_autoprobe")
        _, before = self.sh("ls /sys/bus/pci/devices")
        self.sh(f"echo {name} >/sys/bus/platform/drivers/virtio-uml/bind; "
                "for d in /sys/bus/virtio/devices/*; do [ -e $d/driver ] || echo ${d##*/} "
                ">/sys/bus/virtio/drivers_probe; done")
        _, after = self.sh("ls /sys/bus/pci/devices")
        (address,) = set(after.split()) - set(before.split())
        return address

    def unplug(self) -> None:
        self.sh(f"echo {self._guest.platform[DeviceType.BLOCK]} >/sys/bus/platform/drivers/virtio-uml/unbind")

    def bind(self, address: str, more: str = "") -> tuple[int | None, str]:
        root = IDENTITY.certificates[0].fingerprint(hashes.SHA256()).hex()
        context = hashes.Hash(hashes.SHA384())
        context.update(b"firmware")
        policy = self.folder / "trust.toml"
        policy.write_text(f'schema = "chamber-trust/1"\nname = "test"\nroots = ["{root}"]\ncomplete = true\n'
                          f'[[measurement]]\nindex = 1\nvalue = "{context.finalize().hex()}"\n'
                          f'[device]\ntype = "blk"\n{more}')
        # A kernel's lockdown aside, /dev/urandom of a guest that has just booted is what it is.
        return self.sh(f"PYTHONDONTWRITEBYTECODE=1 {sys.executable} -m chamber tdisp bind {address} --policy {policy}")


@pytest.fixture(scope="module")
def guest(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guest]:
    with contextlib.closing(Guest(tmp_path_factory.mktemp("tdisp"))) as made:
        yield made


@pytest.fixture
def address(guest: Guest) -> Iterator[str]:
    guest.options, guest.identity = {}, IDENTITY
    found = guest.plug()
    yield found
    guest.unplug()


def test_linuxs_own_driver_gets_the_disk_after_a_good_report(guest: Guest, address: str) -> None:
    status, said = guest.bind(address)
    assert status == 0, said + "\n".join(guest.lines[-20:])
    assert "is trusted by policy test, and virtio-pci has it" in said
    assert guest.device.state is State.RUN
    status, said = guest.sh("for d in /sys/bus/virtio/devices/*; do [ -e $d/driver ] || echo ${d##*/} "
                            ">/sys/bus/virtio/drivers_probe; done; head -c 512 /dev/vda | tr Z y | head -c 8; "
                            "head -c 4096 /dev/zero | dd of=/dev/vda bs=4096 count=1 conv=fsync 2>/dev/null")
    assert said == "y" * 8
    assert bytes(guest.disk.read(0, 4096)) == bytes(4096)
    assert guest.device.state is State.RUN
    # The host reaches none of it any more: what it reads of the registers has all bits set.
    assert guest.device.tdi.read_bar(0, 0, 4) == b"\xff" * 4


def _changed_firmware(guest: Guest) -> None:
    guest.device.responder._measurements = lambda: (Measurement(1, MeasurementType.FIRMWARE, b"changed"),)


def _more_firmware(guest: Guest) -> None:
    guest.device.responder._measurements = lambda: (*MEASURED, Measurement(2, MeasurementType.ROM, b"more"))


def _another_identity(guest: Guest) -> None:
    guest.device.responder._slots[0] = make_slot("P-256")


def _without_the_key(guest: Guest) -> None:
    slots = guest.device.responder._slots
    slots[0] = type(slots[0])(slots[0].certificates, make_slot("P-256").key)


def _old_version(guest: Guest) -> None:
    guest.device.responder._spoken = (0x11,)


def _silent(guest: Guest) -> None:
    guest.device.responder.handle = lambda payload, *, secured: None  # type: ignore[method-assign]


def _no_interface(guest: Guest) -> None:
    guest.device.dsm._tdis = {0x4242: next(iter(guest.device.dsm._tdis.values()))}


def _moved(guest: Guest) -> None:
    lock = guest.device.tdi.lock

    def lie(asked: Any) -> Any:
        report = lock(asked)
        first, *others = report.ranges
        return type(report)(report.info, (type(first)(first.first_page + 16, first.pages, first.attributes,
                                                      first.range_id), *others), report.device_specific)

    guest.device.tdi.lock = lie  # type: ignore[method-assign,assignment]


def _another_type(guest: Guest) -> None:
    describe = guest.device.tdi._device_info
    guest.device.tdi._device_info = lambda virtio: (
        describe(virtio)[:6] + DeviceType.NET.to_bytes(2, "little") + describe(virtio)[8:])


def _meddled(guest: Guest) -> None:
    lock = guest.device.tdi.lock

    def locked(asked: Any) -> Any:
        report = lock(asked)
        guest.device.tdi.state = State.CONFIG_LOCKED
        guest._loop.call_later(0.0, lambda: guest.device.tdi.write_config(HEADER["bar0"].offset, b"\0\0\0\x90"))
        return report

    guest.device.tdi.lock = locked  # type: ignore[method-assign,assignment]


@pytest.mark.parametrize(("spoil", "why"), [
    (_changed_firmware, "measurements"), (_more_firmware, "measurements"), (_another_identity, "certificates"),
    (_without_the_key, "freshness"), (_old_version, "connection"), (_silent, "connection"), (_no_interface, "lock"),
    (_moved, "report"), (_another_type, "device"), (_meddled, "lock")],
    ids=lambda value: value if isinstance(value, str) else value.__name__.strip("_"))
def test_a_device_that_is_not_as_the_policy_has_it_stays_without_a_driver(
        guest: Guest, address: str, spoil: Callable[[Guest], None], why: str) -> None:
    spoil(guest)
    status, said = guest.bind(address)
    assert status == 1, said
    assert f"is not trusted by policy test: {why}" in said
    assert guest.device.tdi.state is not State.RUN
    assert guest.sh(f"[ -e /sys/bus/pci/devices/{address}/driver ]")[0] == 1


def test_a_guarantee_that_is_wanted_and_not_given(guest: Guest, address: str) -> None:
    status, said = guest.bind(address, 'guarantees = ["CONFIG_HELD"]\n')
    assert (status, "report" in said) == (1, True)
