"""A device that a host plugs into a running machine: the guest takes it unasked, or a policy keeps it out."""

from __future__ import annotations

import time
from contextlib import closing
from typing import TYPE_CHECKING, Final

import pytest

from chamber.device.catalogue import make_device
from chamber.lab.observation import TargetError
from chamber.link.eventloop import EventLoop
from chamber.wire.virtio import DeviceType
from tests.lab.qemu.stock_guest import sh, start_filter, stock_guest

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from chamber.lab.qemu.guest import QemuGuest

pytestmark = [pytest.mark.qemu, pytest.mark.timeout(300)]

_PORTS: Final = ("port1", "port2")
_POLICY: Final = 'schema = "chamber-policy/1"\nname = "test"\n[[device]]\ntype = "blk"\n'
_SECONDS: Final = 30.0
_DRIVERS: Final = "for d in /sys/bus/virtio/devices/*; do [ -e $d/driver ] && cat $d/device; done; true"
_FUNCTIONS: Final = "cat /sys/bus/pci/devices/*/device"


@pytest.fixture
def guest() -> Iterator[QemuGuest]:
    more = [word for number, port in enumerate(_PORTS, 1)
            for word in ("-device", f"pcie-root-port,id={port},chassis={number},slot={number}")]
    with closing(EventLoop()) as loop, closing(
            stock_guest(loop, (DeviceType.BALLOON,), make_device, more=more)) as made:
        yield made


def _until(guest: QemuGuest, command: str, wanted: str) -> str:
    deadline = time.monotonic() + _SECONDS
    while wanted not in (said := sh(guest, command)) and time.monotonic() < deadline:
        guest.settle(0.1)
    return said


def test_linux_takes_what_is_plugged_in_unasked(guest: QemuGuest) -> None:
    assert sh(guest, _DRIVERS) == ""
    guest.plug(make_device(DeviceType.BLOCK), _PORTS[0])
    assert _until(guest, _DRIVERS, "0x0002") == "0x0002\n"
    assert sh(guest, "dd if=/dev/vda bs=4096 count=4 2>/dev/null | wc -c").strip() == "16384"
    guest.plug(make_device(DeviceType.RNG), _PORTS[1])
    assert "0x0004" in _until(guest, _DRIVERS, "0x0004")
    with pytest.raises(TargetError, match="does not take a device in port9"):
        guest.plug(make_device(DeviceType.RNG), "port9")


def test_a_policy_keeps_out_what_is_plugged_in_later(guest: QemuGuest, tmp_path: Path) -> None:
    start_filter(guest, _POLICY, tmp_path)
    guest.plug(make_device(DeviceType.RNG), _PORTS[0])
    assert "0x1044" in _until(guest, _FUNCTIONS, "0x1044")
    guest.plug(make_device(DeviceType.BLOCK), _PORTS[1])
    assert "0x1042" in _until(guest, _FUNCTIONS, "0x1042")
    assert sh(guest, _DRIVERS) == "", "nothing is probed of its own accord"
    said = sh(guest, "for f in /sys/bus/pci/devices/*; do /filter/chamber-filter admit pci ${f##*/}; done 2>&1; true")
    assert "is not admitted" in said
    assert sh(guest, _DRIVERS) == "0x0002\n"
