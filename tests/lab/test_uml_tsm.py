"""Linux's own TSM core drives a trusted disk's whole life: sysfs files on one side, SPDM, IDE and TDISP on the other."""

from __future__ import annotations

import contextlib
import sys
import time
from typing import TYPE_CHECKING, Any

import pytest

from chamber.device.behind_ide_port import BehindIdePort, PortFunction
from chamber.device.blk import BlkDevice
from chamber.device.disk import MemoryDisk
from chamber.device.pci_over_virtio import PciOverVirtio
from chamber.device.trusted_function import TrustedFunction
from chamber.device.virtio_pci import VirtioPci
from chamber.lab.kernel.build import build_kernel
from chamber.lab.kernel.config import KernelOptions
from chamber.lab.kernel.source import find_source
from chamber.lab.uml_guest import UmlGuest
from chamber.lab.uml_kernel import find_kernel
from chamber.lab.uml_program import run_program
from chamber.link.eventloop import EventLoop
from chamber.platform.ide import StreamState
from chamber.wire.ide_capability import NO_STREAM_ID
from chamber.wire.tdi_report import InterfaceReport
from chamber.wire.tdisp import State
from chamber.wire.virtio import DeviceType
from tests.lab.trusted_disk import IDENTITY, MEASURED, SPOILT, policy

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from chamber.platform.dma import Dma

pytestmark = [pytest.mark.kernel, pytest.mark.timeout(1500)]

SERIES = "7.3"
PORT, DISK = "0000:00:00.0", "0000:01:00.0"
TSM, GUEST = "/sys/class/tsm/tsm0", "/sys/class/tsm/tsm1"
FILES = f"/sys/bus/pci/devices/{DISK}"
_PORT_SLOT = DeviceType.RNG
"""What stands for the root port where a guest's devices are told apart by their types."""


class Site:
    """A root port, and a disk behind it."""

    def __init__(self) -> None:
        self.content = MemoryDisk(bytearray(b"\x5a" * (1 << 20)))
        self.lines: list[str] = []
        self.behind = BehindIdePort(VirtioPci(BlkDevice(self.content)), self._make)
        self.above = PortFunction(self.behind.port)

    def _make(self, virtio: VirtioPci, shared: Dma, private: Dma) -> TrustedFunction:
        return TrustedFunction(virtio, IDENTITY, shared=shared, private=private, routing_id=0x0100, configured=True,
                               stream_id=NO_STREAM_ID, measurements=lambda: MEASURED, log=self.lines.append)

    @property
    def device(self) -> TrustedFunction:
        return self.behind.trusted


class Guest:
    """A kernel that has found both, with the module and nobody at its channel yet; no driver has the disk."""

    def __init__(self, folder: Path) -> None:
        self.policy = folder / "trust.toml"
        self.policy.write_text(policy())
        self.site = Site()
        kernel = find_kernel(build_kernel(find_source(SERIES), KernelOptions(kasan=False, ubsan=False)).binary)
        self._loop = EventLoop()
        self._booted = False
        provide = {_PORT_SLOT: lambda: self.site.above, DeviceType.BLOCK: lambda: self.site.behind}
        self._guest = UmlGuest(
            kernel, self._loop, {kind: self._provider(carried) for kind, carried in provide.items()},
            options=(*kernel.options, "chamber.root_port=0"), pci=True, memory_mb=256)
        self._booted = True
        self.sh("mount -t tmpfs scratch /mnt")

    def _provider(self, carried: Callable[[], Any]) -> Callable[[], PciOverVirtio | None]:
        return lambda: PciOverVirtio(carried()) if self._booted else None

    def soon(self, call: Callable[[], None]) -> None:
        self._loop.call_later(0.0, call)

    def close(self) -> None:
        self._guest.close()
        self._loop.close()

    def sh(self, command: str, seconds: float = 120.0) -> tuple[int | None, str]:
        result = run_program(self._guest, "sh", "-c", command, seconds=seconds)
        return result.status, result.output

    def plug(self) -> None:
        """Have the kernel find both anew."""
        self.site = Site()
        self.sh("echo 0 >/sys/bus/pci/drivers_autoprobe")
        for kind in (_PORT_SLOT, DeviceType.BLOCK):
            self.sh(f"echo {self._guest.platform[kind]} >/sys/bus/platform/drivers/virtio-uml/bind; "
                    "for d in /sys/bus/virtio/devices/*; do [ -e $d/driver ] || echo ${d##*/} "
                    ">/sys/bus/virtio/drivers_probe; done")

    def unplug(self) -> None:
        self.sh(f"echo 1 >/sys/bus/pci/devices/{PORT}/remove")
        for kind in (DeviceType.BLOCK, _PORT_SLOT):
            self.sh(f"echo {self._guest.platform[kind]} >/sys/bus/platform/drivers/virtio-uml/unbind")

    def start_tsm(self) -> None:
        self.sh(f"PYTHONDONTWRITEBYTECODE=1 {sys.executable} -m chamber tdisp tsm --policy {self.policy} "
                ">/mnt/tsm.log 2>&1 & echo $! >/mnt/tsm.pid")
        for _ in range(100):
            if "ready" in self.said():
                return
            time.sleep(0.2)
        raise AssertionError(self.said())

    def stop_tsm(self) -> None:
        self.sh("kill $(cat /mnt/tsm.pid) && until grep -q interrupted /mnt/tsm.log; do sleep 0.1; done")

    def said(self) -> str:
        return self.sh("cat /mnt/tsm.log")[1]

    def tell(self, file: str, what: str = DISK) -> str:
        """Write to a file of sysfs; return what the kernel says, nothing if it did."""
        return self.sh(f"/bin/echo {what} >{file}")[1].rpartition("error: ")[2].strip()

    def probe(self) -> str:
        """Have the disk's driver take it; return what the kernel says, nothing if it did."""
        said = self.tell("/sys/bus/pci/drivers_probe")
        self.sh("for d in /sys/bus/virtio/devices/*; do [ -e $d/driver ] || echo ${d##*/} "
                ">/sys/bus/virtio/drivers_probe; done")
        return said

    def read(self, file: str) -> str:
        return self.sh(f"cat {file}")[1].strip()


@pytest.fixture(scope="module")
def booted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guest]:
    with contextlib.closing(Guest(tmp_path_factory.mktemp("tsm"))) as made:
        yield made


@pytest.fixture
def guest(booted: Guest) -> Iterator[Guest]:
    booted.plug()
    booted.start_tsm()
    yield booted
    booted.stop_tsm()
    booted.unplug()


def test_the_whole_life_of_a_disk(guest: Guest) -> None:
    device, port = guest.site.device, guest.site.behind.port
    assert device.stream is not None

    # The host connects: who it is, what runs on it, a session, keys at both ends; the core switches the stream on.
    assert guest.tell(f"{FILES}/tsm/connect", "tsm0") == "", guest.said() + "\n".join(guest.site.lines)
    assert guest.read(f"{FILES}/authenticated") == guest.read(f"{FILES}/tsm/connect") == "tsm0"
    assert guest.read(f"{FILES}/tsm/dsm") == DISK
    assert device.stream.state is port.stream.state is StreamState.SECURE
    assert device.stream.stream_id == port.stream.stream_id == 0
    assert "stream0.0.0" in guest.sh("ls /sys/devices/pci0000:00")[1]
    assert guest.tell(f"{FILES}/tsm/connect", "tsm0") == "Device or resource busy"

    # The VMM binds its interface, and the guest locks it.
    assert guest.tell(f"{GUEST}/lock") == "No such device or address"
    assert guest.tell(f"{TSM}/bind") == ""
    assert guest.read(f"{FILES}/tsm/bound") == "tsm0"
    assert guest.tell(f"{GUEST}/accept") == "No such device or address"
    assert guest.tell(f"{GUEST}/lock") == ""
    assert device.state is State.CONFIG_LOCKED
    report = bytes.fromhex("".join(guest.sh(f"od -An -v -tx1 {GUEST}/report")[1].split()))
    assert InterfaceReport.decode(report).ranges[0].first_page == device.tdi.function.bar_base(0) >> 12

    # It accepts it; Linux's own driver works with the disk, and all that passes is sealed.
    assert guest.tell(f"{GUEST}/accept") == ""
    assert device.state is State.RUN
    before = guest.site.behind.packets
    assert guest.probe() == "", guest.said()
    _, read = guest.sh("head -c 512 /dev/vda | tr Z y | head -c 8; "
                       "head -c 4096 /dev/zero | dd of=/dev/vda bs=4096 count=1 conv=fsync 2>/dev/null")
    assert read == "y" * 8
    assert bytes(guest.site.content.read(0, 4096)) == bytes(4096)
    assert guest.site.behind.packets > before + 100
    assert device.tdi.read_bar(0, 0, 4) == b"\xff" * 4

    # And back.
    assert guest.tell(f"{FILES}/driver/unbind") == ""
    assert guest.tell(f"{GUEST}/unlock") == ""
    assert device.state is State.CONFIG_UNLOCKED
    assert guest.tell(f"{TSM}/unbind") == ""
    assert guest.tell(f"{FILES}/tsm/disconnect", "tsm0") == ""
    assert guest.read(f"{FILES}/authenticated") == ""
    assert device.stream.is_new
    assert port.stream.is_new
    assert not port.lost
