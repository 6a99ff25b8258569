"""A policy in real guests: the script that `chamber filter emit` writes runs in them, and a device stays unprobed."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import pytest

from chamber.device.catalogue import make_device
from chamber.device.pci_over_virtio import PciOverVirtio
from chamber.device.virtio_pci import REGISTER_BAR, VirtioPci
from chamber.guest.policy_file import parse_policy
from chamber.lab.kernel.build import build_kernel
from chamber.lab.kernel.config import KernelOptions
from chamber.lab.kernel.source import find_source
from chamber.lab.linux_filter.emit import KernelFacts, write_filter
from chamber.lab.observation import TargetError
from chamber.lab.uml_guest import UmlGuest
from chamber.lab.uml_kernel import UmlKernel, find_kernel
from chamber.lab.uml_program import run_program
from chamber.link.eventloop import EventLoop
from chamber.wire.blk import BlkFeature
from chamber.wire.virtio import DeviceType
from chamber.wire.virtio_pci import COMMON

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from chamber.device.base import Device

_HEAD = 'schema = "chamber-policy/1"\nname = "test"\n[[device]]\ntype = "blk"\nmost = 1\n'
_PLAIN = _HEAD + '[device.features]\nmust = ["VERSION_1"]\n'
_NO_FLUSH = _HEAD + '[device.features]\nmust = ["VERSION_1"]\nmust-not = ["FLUSH"]\n'


class Filtered:
    """A guest in which a policy is started before any device is connected."""

    def __init__(self, kernel: UmlKernel, folder: Path, kinds: tuple[DeviceType, ...], *, pci: bool) -> None:
        self.folder = folder
        self.pci = pci
        self.devices: dict[DeviceType, Device] = {}
        self.functions: dict[DeviceType, Recorder] = {}
        self.loop = EventLoop()
        self.booted = False
        self.guest = UmlGuest(kernel, self.loop, {kind: self._provider(kind, pci=pci) for kind in kinds},
                              options=kernel.options, pci=pci)
        self.booted = True

    def _provider(self, kind: DeviceType, *, pci: bool) -> Callable[[], Device | None]:
        def provide() -> Device | None:
            if not self.booted:
                return None
            device = self.devices[kind] = make_device(kind)
            if not pci:
                return device
            self.functions[kind] = Recorder(device)
            return PciOverVirtio(self.functions[kind])
        return provide

    def close(self) -> None:
        self.guest.close()
        self.loop.close()
        for device in self.devices.values():
            device.close()

    def sh(self, command: str) -> str:
        """Run a command; its scratch space is a file system in memory."""
        result = run_program(self.guest, "sh", "-c", command)
        return f"{result.output}[{result.status}]"

    def start(self, policy: str) -> None:
        write_filter(parse_policy(policy, "test"), KernelFacts(), self.folder)
        said = self.sh(f"mount -t tmpfs none /run; {self.folder}/chamber-filter start")
        assert said.endswith("[0]"), said

    def plug(self, kind: DeviceType) -> str:
        """Connect a device as a bus does, and call the filter as udev does; return what it said."""
        name = self.guest.platform[kind]
        said = self.sh(f"echo {name} > /sys/bus/platform/drivers/virtio-uml/bind; "
                       f"ls -d /sys/bus/platform/devices/{name}/virtio*")
        virtio = said.split("/")[-1].split("\n")[0]
        if not self.pci:
            return self.sh(f"{self.folder}/chamber-filter admit virtio {virtio}")
        # What carries the bus is no device of a policy: it is this platform's host bridge.
        before = set(self.sh("ls /sys/bus/pci/devices").split("\n")[:-1])
        self.sh(f"echo {virtio} > /sys/bus/virtio/drivers_probe")
        after = set(self.sh("ls /sys/bus/pci/devices").split("\n")[:-1])
        (address,) = after - before
        return self.sh(f"{self.folder}/chamber-filter admit pci {address}")

    def drivers(self) -> str:
        """Name all devices that have a driver."""
        return self.sh("for d in /sys/bus/virtio/devices/*; do [ -e $d/driver ] && cat $d/device; done; true")


class Recorder(VirtioPci):
    """Writes down which registers are read."""

    def __init__(self, device: Device) -> None:
        super().__init__(device)
        self.accesses: list[tuple[int, int]] = []

    def read_bar(self, bar: int, offset: int, size: int) -> bytes:
        self.accesses.append((bar, offset))
        return super().read_bar(bar, offset, size)


@pytest.fixture
def stock(tmp_path: Path) -> Iterator[Filtered]:
    try:
        kernel = find_kernel()
    except TargetError as error:
        pytest.skip(str(error))
    with contextlib.closing(Filtered(kernel, tmp_path, (DeviceType.BLOCK, DeviceType.NET), pci=False)) as filtered:
        yield filtered


@pytest.mark.uml
def test_a_stock_kernel_probes_what_is_admitted_and_nothing_else(stock: Filtered) -> None:
    stock.start(_PLAIN)
    assert "is not admitted" in stock.plug(DeviceType.NET)
    assert stock.plug(DeviceType.BLOCK) == "[0]"
    assert stock.drivers() == "0x0002\n[0]"
    assert stock.sh("ls /sys/class/net") == "lo\n[0]"
    assert stock.sh("blockdev --getsize64 /dev/vda") == f"{4 << 20}\n[0]"
    assert stock.sh(f"{stock.folder}/chamber-filter check") == "[0]"
    # What is forced past the filter is found.
    said = stock.sh("for d in /sys/bus/virtio/devices/*; do echo ${d##*/} > /sys/bus/virtio/drivers_probe; done; "
                    f"{stock.folder}/chamber-filter check")
    assert said.endswith("has a driver, and is not admitted\n[1]")


@pytest.mark.uml
def test_a_stock_kernel_that_cannot_filter_features_loses_the_driver(stock: Filtered) -> None:
    stock.start(_NO_FLUSH)
    said = stock.plug(DeviceType.BLOCK)
    assert "feature 9 was negotiated, and must not be" in said
    assert "its driver is taken away" in said
    assert stock.drivers() == "[0]"


@pytest.mark.kernel
@pytest.mark.timeout(1500)
def test_a_function_on_the_bus_that_is_not_admitted_is_left_alone(tmp_path: Path) -> None:
    built = build_kernel(find_source("6.12"), KernelOptions())
    kernel = find_kernel(built.binary)
    with contextlib.closing(Filtered(kernel, tmp_path, (DeviceType.BLOCK, DeviceType.RNG), pci=True)) as filtered:
        filtered.start(_NO_FLUSH)
        assert "is not admitted" in filtered.plug(DeviceType.RNG)
        # The PCI core binds virtio_pci to a function that appears, which resets it; then the filter takes it away.
        touched = set(filtered.functions[DeviceType.RNG].accesses)
        assert touched <= {(REGISTER_BAR, COMMON["device_status"].offset)}
        before = len(filtered.functions[DeviceType.RNG].accesses)
        assert filtered.sh("for f in /sys/bus/pci/devices/*; do [ -e $f/driver ] && echo ${f##*/}; done; true") == "[0]"
        assert filtered.plug(DeviceType.BLOCK) == "[0]"
        block = filtered.devices[DeviceType.BLOCK]
        assert len(filtered.functions[DeviceType.BLOCK].accesses) > len(touched)
        # This kernel can filter: the driver is there, and the feature is not.
        assert block.offered_features() >> BlkFeature.FLUSH & 1
        assert not block.has(BlkFeature.FLUSH)
        assert filtered.sh("blockdev --getsize64 /dev/vda") == f"{4 << 20}\n[0]"
        assert len(filtered.functions[DeviceType.RNG].accesses) == before
        # This platform's host bridges are virtio devices themselves, which no policy has a word for.
        said = filtered.sh(f"{filtered.folder}/chamber-filter check").splitlines()
        assert [line for line in said[:-1] if "(virtio id 1234 " not in line] == []
