"""Linux's own TSM core drives a trusted disk's life: files of sysfs on one side, SPDM, IDE and TDISP on the other."""

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
from chamber.link.eventloop import EventLoop
from chamber.platform.ide import StreamState
from chamber.wire.ide_capability import NO_STREAM_ID
from chamber.wire.tdi_report import InterfaceReport
from chamber.wire.tdisp import State
from chamber.wire.virtio import DeviceType
from tests.lab.linux_guest import PROBE, USE_DISK, LinuxGuest
from tests.lab.trusted_disk import IDENTITY, MEASURED, SPOILT, policy

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from chamber.platform.dma import Dma
    from chamber.platform.ide import IdeStream

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

    def is_in(self, state: State) -> bool:
        return self.device.tdi.state is state

    @property
    def stream(self) -> IdeStream:
        assert self.device.stream is not None
        return self.device.stream


class Guest(LinuxGuest):
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

    def plug(self) -> None:
        """Have the kernel find both anew."""
        self.site = Site()
        self.sh("echo 0 >/sys/bus/pci/drivers_autoprobe")
        for kind in (_PORT_SLOT, DeviceType.BLOCK):
            self.sh(f"echo {self._guest.platform[kind]} >/sys/bus/platform/drivers/virtio-uml/bind; {PROBE}")

    def unplug(self) -> None:
        self.sh(f"echo 1 >/sys/bus/pci/devices/{PORT}/remove")
        for kind in (DeviceType.BLOCK, _PORT_SLOT):
            self.sh(f"echo {self._guest.platform[kind]} >/sys/bus/platform/drivers/virtio-uml/unbind")

    def start_tsm(self) -> None:
        self.sh(f"PYTHONDONTWRITEBYTECODE=1 {sys.executable} -m chamber tdisp tsm --policy {self.policy} "
                ">/mnt/tsm.log 2>&1 & echo $! >/mnt/tsm.pid")
        for _ in range(300):
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

    def connect(self) -> str:
        return self.tell(f"{FILES}/tsm/connect", "tsm0")

    def run(self) -> list[str]:
        """Take the disk up to RUN; return what the kernel said at each step."""
        return [self.connect(), self.tell(f"{TSM}/bind"), self.tell(f"{GUEST}/lock"), self.tell(f"{GUEST}/accept")]

    def use(self) -> str:
        """Have the disk's driver take it; read from it and write to it, and return what was read."""
        assert self.tell("/sys/bus/pci/drivers_probe") == ""
        return self.sh(USE_DISK)[1]

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
    booted.tell(f"{FILES}/driver/unbind")  # without the TSM it would wait for registers that nobody answers
    booted.stop_tsm()
    booted.unplug()


def test_the_whole_life_of_a_disk(guest: Guest) -> None:
    site, port = guest.site, guest.site.behind.port

    # The host connects: who it is, what runs on it, a session, keys at both ends; the core switches the stream on.
    assert guest.connect() == "", guest.said() + "\n".join(site.lines)
    assert guest.read(f"{FILES}/authenticated") == guest.read(f"{FILES}/tsm/connect") == "tsm0"
    assert guest.read(f"{FILES}/tsm/dsm") == DISK
    assert site.stream.state is port.stream.state is StreamState.SECURE
    assert site.stream.stream_id == port.stream.stream_id == 0
    assert "stream0.0.0" in guest.sh("ls /sys/devices/pci0000:00")[1]
    assert guest.connect() == "Device or resource busy"

    # The VMM binds its interface, and the guest locks it.
    assert guest.tell(f"{GUEST}/lock") == "No such device or address"
    assert guest.tell(f"{TSM}/bind") == ""
    assert guest.read(f"{FILES}/tsm/bound") == "tsm0"
    assert guest.tell(f"{GUEST}/accept") == "No such device or address"
    assert guest.tell(f"{GUEST}/lock") == ""
    assert guest.tell(f"{GUEST}/lock") == "Device or resource busy"
    assert site.is_in(State.CONFIG_LOCKED)
    report = bytes.fromhex("".join(guest.sh(f"od -An -v -tx1 {GUEST}/report")[1].split()))
    assert InterfaceReport.decode(report).ranges[0].first_page == site.device.tdi.function.bar_base(0) >> 12

    # It accepts it; Linux's own driver works with the disk, and all that passes is sealed.
    assert guest.tell(f"{GUEST}/accept") == ""
    assert site.is_in(State.RUN)
    before = site.behind.packets
    assert guest.use() == "y" * 8, guest.said()
    assert bytes(site.content.read(0, 4096)) == bytes(4096)
    assert site.behind.packets > before + 100
    assert site.device.tdi.read_bar(0, 0, 4) == b"\xff" * 4

    # And back.
    assert guest.tell(f"{FILES}/driver/unbind") == ""
    assert guest.tell(f"{GUEST}/unlock") == ""
    assert guest.tell(f"{GUEST}/unlock") == "No such device or address"
    assert site.is_in(State.CONFIG_UNLOCKED)
    assert guest.tell(f"{TSM}/unbind") == ""
    assert guest.tell(f"{FILES}/tsm/disconnect", "tsm0") == ""
    assert guest.read(f"{FILES}/authenticated") == ""
    assert site.stream.is_new
    assert port.stream.is_new
    assert not port.lost


def test_what_was_given_back_can_be_had_again(guest: Guest) -> None:
    for _ in range(2):
        assert guest.run() == ["", "", "", ""]
        assert guest.tell(f"{GUEST}/unlock") == ""
        assert guest.tell(f"{GUEST}/lock") == ""
        assert guest.tell(f"{GUEST}/accept") == ""
        # All at once: the core unbinds, and the interface is stopped.
        assert guest.tell(f"{FILES}/tsm/disconnect", "tsm0") == ""
        assert guest.site.is_in(State.CONFIG_UNLOCKED)
        assert guest.tell(f"{GUEST}/unlock") == ""


_AT_CONNECT = {"measurements", "certificates", "freshness", "connection"}


@pytest.mark.parametrize(("spoil", "why"), SPOILT,
                         ids=lambda value: value if isinstance(value, str) else value.__name__.strip("_"))
def test_a_device_that_is_not_as_the_policy_has_it(guest: Guest, spoil: Callable[[Any, Any], None], why: str) -> None:
    spoil(guest.site.device, guest.soon)
    refused = "Permission denied"
    assert guest.run() == ([refused, "Invalid argument", *["No such device or address"] * 2] if why in _AT_CONNECT else
                           ["", "", refused, "No such device or address"])
    assert f"not trusted by policy test: {why}" in guest.said()
    assert not guest.site.is_in(State.RUN)
    assert guest.read(f"{FILES}/authenticated") == ("" if why in _AT_CONNECT else "tsm0")


def test_a_host_that_puts_a_packet_of_its_own_on_the_link(guest: Guest) -> None:
    assert guest.run() == ["", "", "", ""]
    site = guest.site
    assert site.device.link is not None
    site.device.link.deliver(bytes(32))
    assert site.is_in(State.ERROR)
    assert site.stream.state is StreamState.INSECURE
    # Nothing comes of it but an end; then the host can begin again.
    assert guest.tell(f"{GUEST}/accept") != ""
    assert guest.tell(f"{FILES}/tsm/disconnect", "tsm0") == ""
    assert site.is_in(State.CONFIG_UNLOCKED)
    assert site.stream.is_new
    assert guest.tell(f"{GUEST}/unlock") == ""
    assert guest.run() == ["", "", "", ""]


def test_a_tsm_that_dies(guest: Guest) -> None:
    assert guest.run() == ["", "", "", ""]
    guest.sh("kill -9 $(cat /mnt/tsm.pid); while [ -e /sys/class/tsm/tsm0 ]; do sleep 0.05; done")
    assert guest.sh(f"ls {FILES}/tsm")[0] != 0
    assert not guest.site.is_in(State.RUN)
    assert guest.site.stream.is_new
    guest.start_tsm()
    assert guest.run() == ["", "", "", ""]
    assert guest.use() == "y" * 8


def test_a_function_that_is_pulled_out_while_it_runs(guest: Guest) -> None:
    assert guest.run() == ["", "", "", ""]
    assert guest.sh(f"echo 1 >{FILES}/remove")[0] == 0
    assert not guest.site.is_in(State.RUN)
    assert guest.site.stream.is_new


def test_one_tsm_at_a_time(guest: Guest) -> None:
    status, said = guest.sh(f"PYTHONDONTWRITEBYTECODE=1 {sys.executable} -m chamber tdisp tsm --policy {guest.policy}")
    assert (status, "/dev/chamber-tsm: Device or resource busy" in said) == (2, True)
