"""A device that a host plugs into a running machine: the guest takes it unasked, or a policy keeps it out."""

from __future__ import annotations

import time
from contextlib import ExitStack, closing
from typing import TYPE_CHECKING, Final

import pytest

from chamber.device.catalogue import make_device
from chamber.guest.policy_file import parse_policy
from chamber.lab.linux_filter.emit import KernelFacts, write_filter
from chamber.lab.observation import TargetError
from chamber.lab.qemu.guest import QemuGuest
from chamber.lab.qemu.install import find_accelerator, find_qemu, find_qemu_kernel
from chamber.lab.uml_program import run_program
from chamber.link.eventloop import EventLoop
from chamber.wire.virtio import DeviceType

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = [pytest.mark.qemu, pytest.mark.timeout(300)]

_PORTS: Final = ("port1", "port2")
_POLICY: Final = 'schema = "chamber-policy/1"\nname = "test"\n[[device]]\ntype = "blk"\n'
_SECONDS: Final = 30.0
_DRIVERS: Final = "for d in /sys/bus/virtio/devices/*; do [ -e $d/driver ] && cat $d/device; done; true"
_FUNCTIONS: Final = "cat /sys/bus/pci/devices/*/device"


@pytest.fixture
def guest() -> Iterator[QemuGuest]:
    try:
        program, kernel = find_qemu(), find_qemu_kernel(None)
    except TargetError as error:
        pytest.skip(str(error))
    with ExitStack() as stack:
        loop = stack.enter_context(closing(EventLoop()))
        more = [word for number, port in enumerate(_PORTS, 1)
                for word in ("-device", f"pcie-root-port,id={port},chassis={number},slot={number}")]
        yield stack.enter_context(closing(QemuGuest(
            program, kernel, loop, (DeviceType.BALLOON,), make_device, options=kernel.options, more=more,
            accelerator=find_accelerator(program, kernel))))


def _sh(guest: QemuGuest, command: str) -> str:
    result = run_program(guest, "sh", "-c", command)
    assert result.status == 0, result.output
    return result.output


def _until(guest: QemuGuest, command: str, wanted: str) -> str:
    deadline = time.monotonic() + _SECONDS
    while wanted not in (said := _sh(guest, command)) and time.monotonic() < deadline:
        guest.settle(0.1)
    return said


def test_linux_takes_what_is_plugged_in_unasked(guest: QemuGuest) -> None:
    assert _sh(guest, _DRIVERS) == ""
    guest.plug(make_device(DeviceType.BLOCK), _PORTS[0])
    assert _until(guest, _DRIVERS, "0x0002") == "0x0002\n"
    assert _sh(guest, "dd if=/dev/vda bs=4096 count=4 2>/dev/null | wc -c").strip() == "16384"
    guest.plug(make_device(DeviceType.RNG), _PORTS[1])
    assert "0x0004" in _until(guest, _DRIVERS, "0x0004")
    with pytest.raises(TargetError, match="does not take a device in port9"):
        guest.plug(make_device(DeviceType.RNG), "port9")


def test_a_policy_keeps_out_what_is_plugged_in_later(guest: QemuGuest, tmp_path: Path) -> None:
    write_filter(parse_policy(_POLICY, "test"), KernelFacts(), tmp_path)
    for name in ("chamber-filter", "policy.table"):
        text = (tmp_path / name).read_text()
        _sh(guest, f"mkdir -p /filter; cat >/filter/{name} <<'END OF FILE'\n{text}END OF FILE\n")
        _sh(guest, f"chmod 755 /filter/{name}")
    _sh(guest, "/filter/chamber-filter start")
    guest.plug(make_device(DeviceType.RNG), _PORTS[0])
    assert "0x1044" in _until(guest, _FUNCTIONS, "0x1044")
    guest.plug(make_device(DeviceType.BLOCK), _PORTS[1])
    assert "0x1042" in _until(guest, _FUNCTIONS, "0x1042")
    assert _sh(guest, _DRIVERS) == "", "nothing is probed of its own accord"
    said = _sh(guest, "for f in /sys/bus/pci/devices/*; do /filter/chamber-filter admit pci ${f##*/}; done 2>&1; true")
    assert "is not admitted" in said
    assert _sh(guest, _DRIVERS) == "0x0002\n"
