"""A policy in a stock kernel in QEMU: a forbidden function stays unprobed, an admitted one works."""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING

import pytest

from chamber.device.catalogue import TYPES, make_device
from chamber.device.virtio_pci import REGISTER_BAR
from chamber.guest.policy_file import SHIPPED, load_policy
from chamber.lab.uml_program import run_program
from chamber.link.eventloop import EventLoop
from chamber.wire.virtio import DeviceType
from chamber.wire.virtio_pci import COMMON
from tests.lab.qemu.stock_guest import start_filter, stock_guest

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from chamber.lab.qemu.guest import QemuGuest

pytestmark = [pytest.mark.qemu, pytest.mark.timeout(300)]

_POLICY = 'schema = "chamber-policy/1"\nname = "test"\n[[device]]\ntype = "blk"\nmost = 1\n'
_TOUCHED = {(REGISTER_BAR, COMMON["device_status"].offset)}
"""The PCI core binds virtio_pci to a function that appears, which resets it; then the filter takes it away."""


class Filtered:
    """A guest in which a policy is started before there is any function."""

    def __init__(self, guest: QemuGuest, folder: Path) -> None:
        self._guest = guest
        self._slots = {kind: (address, slot) for address, (kind, slot) in self._guest._slots.items()}
        self.accesses: dict[DeviceType, set[tuple[int, int]]] = {kind: set() for kind in TYPES}
        self._folder = folder

    def sh(self, command: str) -> str:
        result = run_program(self._guest, "sh", "-c", command)
        return f"{result.output}[{result.status}]"

    def start(self, policy: str) -> None:
        start_filter(self._guest, policy, self._folder)

    def plug(self, kind: DeviceType) -> str:
        """Put a function into its slot, have the guest look, and call the filter as udev does."""
        address, slot = self._slots[kind]
        function = slot.plug(make_device(kind))
        read = function.read_bar

        def noted(bar: int, offset: int, size: int) -> bytes:
            self.accesses[kind].add((bar, offset))
            return read(bar, offset, size)

        function.read_bar = noted  # type: ignore[method-assign]
        self.sh("echo 1 >/sys/bus/pci/rescan")
        return self.sh(f"/filter/chamber-filter admit pci {address}")

    def drivers(self) -> str:
        return self.sh("for d in /sys/bus/virtio/devices/*; do [ -e $d/driver ] && cat $d/device; done; true")


@pytest.fixture
def filtered(tmp_path: Path) -> Iterator[Filtered]:
    with closing(EventLoop()) as loop, closing(stock_guest(loop, TYPES, make_device)) as guest:
        yield Filtered(guest, tmp_path)


def test_a_forbidden_function_stays_unprobed_and_a_disk_works(filtered: Filtered) -> None:
    filtered.start(_POLICY)
    assert "is not admitted" in filtered.plug(DeviceType.RNG)
    assert filtered.accesses[DeviceType.RNG] <= _TOUCHED
    assert filtered.drivers() == "[0]"
    # BusyBox finds no modules where the filter would load the driver's; this guest has loaded all of them itself.
    said = filtered.plug(DeviceType.BLOCK)
    assert said.endswith("[0]")
    assert "chamber-filter:" not in said
    assert filtered.drivers() == "0x0002\n[0]"
    assert filtered.sh("mknod /tmp/disk b $(tr : ' ' </sys/block/vda/dev); head -c 512 /tmp/disk | wc -c") == "512\n[0]"
    assert filtered.sh("/filter/chamber-filter check") == "[0]"
    assert filtered.accesses[DeviceType.RNG] <= _TOUCHED
    # What is forced past the filter is found.
    said = filtered.sh("for f in /sys/bus/pci/devices/*; do echo >$f/driver_override; "
                       "echo ${f##*/} >/sys/bus/pci/drivers_probe; done 2>/dev/null; "
                       "for d in /sys/bus/virtio/devices/*; do echo ${d##*/} >/sys/bus/virtio/drivers_probe; done; "
                       "/filter/chamber-filter check")
    assert said.endswith("has a driver, and is not admitted\n[1]"), said


def test_a_feature_that_must_not_be_costs_the_driver_or_is_not_there(filtered: Filtered) -> None:
    filtered.start(_POLICY + '[device.features]\nmust = ["VERSION_1", "ACCESS_PLATFORM"]\nmust-not = ["FLUSH"]\n')
    said = filtered.plug(DeviceType.BLOCK)
    # Debian's 6.12 has no filter for features (CONFIG_VIRTIO_DEBUG): it can only be told to let the device go.
    assert "feature 9 was negotiated, and must not be" in said
    assert "its driver is taken away" in said
    assert filtered.drivers() == "[0]"


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_policy_leaves_what_it_has_rules_for(filtered: Filtered, name: str) -> None:
    filtered.start(SHIPPED[name])
    ruled = {rule.type for rule in load_policy(name).rules}
    for kind in TYPES:
        said = filtered.plug(kind)
        assert ("is not admitted" in said) == (kind not in ruled), said
        if kind not in ruled:
            assert filtered.accesses[kind] <= _TOUCHED
        elif "its driver is taken away" in said:
            # A feature of this device must not be, and this kernel can't be told so beforehand.
            assert "was negotiated" in said
        else:
            assert f"0x{kind:04x}\n" in filtered.drivers()
    assert filtered.sh("/filter/chamber-filter check") == "[0]"
