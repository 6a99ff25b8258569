"""A real Linux guest takes a device by `chamber tdisp bind`: its own driver gets it after a good report alone."""

from __future__ import annotations

import contextlib
import sys
from typing import TYPE_CHECKING, Any

import pytest

from chamber.device.pci_over_virtio import PciOverVirtio
from chamber.lab.kernel.build import build_kernel
from chamber.lab.kernel.config import KernelOptions
from chamber.lab.kernel.source import find_source
from chamber.lab.uml_guest import UmlGuest
from chamber.lab.uml_kernel import find_kernel
from chamber.link.eventloop import EventLoop
from chamber.wire.tdisp import State
from chamber.wire.virtio import DeviceType
from tests.lab.linux_guest import PROBE, USE_DISK, LinuxGuest
from tests.lab.trusted_disk import SPOILT, TrustedDisk, policy

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from chamber.device.trusted_function import TrustedFunction

pytestmark = [pytest.mark.kernel, pytest.mark.timeout(1500)]

SERIES = "7.3"


class Guest(LinuxGuest):
    """A guest with one trusted disk on its bus, which no driver has."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.disk = TrustedDisk()
        kernel = find_kernel(build_kernel(find_source(SERIES), KernelOptions(kasan=False, ubsan=False)).binary)
        self._loop = EventLoop()
        self._booted = False
        self._guest = UmlGuest(kernel, self._loop, {DeviceType.BLOCK: self._provide}, options=kernel.options, pci=True,
                               memory_mb=256)
        self._booted = True

    def _provide(self) -> PciOverVirtio | None:
        if not self._booted:
            return None
        self.disk = TrustedDisk()
        return PciOverVirtio(self.disk.behind)

    @property
    def device(self) -> TrustedFunction:
        return self.disk.device

    def plug(self) -> str:
        """Have the guest find the function, its own driver kept away; return its address."""
        name = self._guest.platform[DeviceType.BLOCK]
        self.sh("echo 0 >/sys/bus/pci/drivers_autoprobe")
        _, before = self.sh("ls /sys/bus/pci/devices")
        self.sh(f"echo {name} >/sys/bus/platform/drivers/virtio-uml/bind; {PROBE}")
        _, after = self.sh("ls /sys/bus/pci/devices")
        (address,) = set(after.split()) - set(before.split())
        return address

    def unplug(self) -> None:
        self.sh(f"echo {self._guest.platform[DeviceType.BLOCK]} >/sys/bus/platform/drivers/virtio-uml/unbind")

    def bind(self, address: str, more: str = "") -> tuple[int | None, str]:
        written = self.folder / "trust.toml"
        written.write_text(policy(more))
        # A kernel's lockdown aside, /dev/urandom of a guest that has just booted is what it is.
        return self.sh(f"PYTHONDONTWRITEBYTECODE=1 {sys.executable} -m chamber tdisp bind {address} --policy {written}")


@pytest.fixture(scope="module")
def guest(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guest]:
    with contextlib.closing(Guest(tmp_path_factory.mktemp("tdisp"))) as made:
        yield made


@pytest.fixture
def address(guest: Guest) -> Iterator[str]:
    found = guest.plug()
    yield found
    guest.unplug()


def test_linuxs_own_driver_gets_the_disk_after_a_good_report(guest: Guest, address: str) -> None:
    status, said = guest.bind(address)
    assert status == 0, said + "\n".join(guest.disk.lines[-20:])
    assert "is trusted by policy test, and virtio-pci has it" in said
    assert guest.device.state is State.RUN
    status, said = guest.sh(USE_DISK)
    assert said == "y" * 8
    assert bytes(guest.disk.content.read(0, 4096)) == bytes(4096)
    assert guest.device.state is State.RUN
    # The host reaches none of it any more: what it reads of the registers has all bits set.
    assert guest.device.tdi.read_bar(0, 0, 4) == b"\xff" * 4


@pytest.mark.parametrize(("spoil", "why"), SPOILT,
                         ids=lambda value: value if isinstance(value, str) else value.__name__.strip("_"))
def test_a_device_that_is_not_as_the_policy_has_it_stays_without_a_driver(
        guest: Guest, address: str, spoil: Callable[[Any, Any], None], why: str) -> None:
    spoil(guest.device, guest.soon)
    status, said = guest.bind(address)
    assert status == 1, said
    assert f"is not trusted by policy test: {why}" in said
    assert guest.device.tdi.state is not State.RUN
    assert guest.sh(f"[ -e /sys/bus/pci/devices/{address}/driver ]")[0] == 1


def test_a_guarantee_that_is_wanted_and_not_given(guest: Guest, address: str) -> None:
    status, said = guest.bind(address, 'guarantees = ["CONFIG_HELD"]\n')
    assert (status, "report" in said) == (1, True)


def test_the_kernels_own_code_finds_the_mailbox_and_what_it_takes(guest: Guest, address: str) -> None:
    status, said = guest.sh(f"ls /sys/bus/pci/devices/{address}/doe_features")
    assert (status, said.split()) == (0, ["0001:01", "0001:02", "doe_discovery"])
