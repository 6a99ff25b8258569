"""A stock Linux kernel in QEMU takes a device by `chamber tdisp bind`: its driver gets it after a good report alone."""

from __future__ import annotations

import contextlib
import os
import sys
from typing import TYPE_CHECKING, Any

import pytest

from chamber.lab.qemu.initramfs import python_path
from chamber.link.eventloop import EventLoop
from chamber.wire.tdisp import State
from chamber.wire.virtio import DeviceType
from tests.lab.linux_guest import USE_DISK, LinuxGuest
from tests.lab.qemu.stock_guest import stock_guest
from tests.lab.trusted_disk import SPOILT, TrustedDisk, policy

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from chamber.lab.qemu.guest import QemuGuest

pytestmark = [pytest.mark.qemu, pytest.mark.timeout(600)]

_BIND = "import sys; sys.path[:0] = {path}; sys.argv[0] = 'chamber'; from chamber.cli.main import main; main()"


class Guest(LinuxGuest):
    """A guest with one slot, in which a trusted disk is, that no driver has."""

    _guest: QemuGuest
    patience = 240.0

    def __init__(self) -> None:
        self.disk = TrustedDisk()
        self._loop = EventLoop()
        try:
            self._guest = stock_guest(self._loop, [DeviceType.BLOCK], self._never,
                                      imports=("chamber.cli.main", "chamber.cli.tdisp",
                                               "cryptography.hazmat.backends.openssl.backend"))
        except BaseException:
            self._loop.close()
            raise
        self.address = str(self._guest.platform[DeviceType.BLOCK])

    @staticmethod
    def _never(_kind: DeviceType) -> Any:
        raise AssertionError("nobody asks the agent to use a device")

    def plug(self) -> None:
        """Have the guest find the function, its own driver kept away."""
        slot = int(self.address[8:10], 16)
        self.disk = TrustedDisk(slot << 3)
        self._guest.slot(DeviceType.BLOCK).put(self.disk.behind)
        self.sh("echo 0 >/sys/bus/pci/drivers_autoprobe; echo 1 >/sys/bus/pci/rescan")

    def unplug(self) -> None:
        self.sh(f"echo 1 >/sys/bus/pci/devices/{self.address}/remove")
        self._guest.slot(DeviceType.BLOCK).unplug()

    def bind(self, more: str = "") -> tuple[int | None, str]:
        said = self.sh(f"cat >/tmp/trust.toml <<'END OF FILE'\n{policy(more)}\nEND OF FILE")
        assert said == (0, "")
        python = os.path.realpath(sys.executable)
        return self.sh(f'{python} -SsB -c "{_BIND.format(path=python_path())}" tdisp bind {self.address} '
                       "--policy /tmp/trust.toml")


@pytest.fixture(scope="module")
def guest() -> Iterator[Guest]:
    with contextlib.closing(Guest()) as made:
        yield made


@pytest.fixture
def plugged(guest: Guest) -> Iterator[Guest]:
    guest.plug()
    yield guest
    guest.unplug()


def test_linuxs_own_driver_gets_the_disk_after_a_good_report(plugged: Guest) -> None:
    status, said = plugged.bind()
    assert status == 0, said + "\n".join(plugged.disk.lines[-20:])
    assert "is trusted by policy test, and virtio-pci has it" in said
    assert plugged.disk.device.state is State.RUN
    status, said = plugged.sh(USE_DISK)
    assert said == "y" * 8
    assert bytes(plugged.disk.content.read(0, 4096)) == bytes(4096)
    assert plugged.disk.device.state is State.RUN
    # The host reaches none of it any more: what it reads of the registers has all bits set.
    assert plugged.disk.device.tdi.read_bar(0, 0, 4) == b"\xff" * 4


def test_the_kernels_own_code_has_asked_the_mailbox_what_it_takes(plugged: Guest) -> None:
    asked = [line for line in plugged.disk.lines if line.startswith("object")]
    assert asked == ["object of vendor 0x1, type 0, 4 bytes: 4 bytes"] * 3


@pytest.mark.parametrize(("spoil", "why"), SPOILT,
                         ids=lambda value: value if isinstance(value, str) else value.__name__.strip("_"))
def test_a_device_that_is_not_as_the_policy_has_it_stays_without_a_driver(
        plugged: Guest, spoil: Callable[[Any, Any], None], why: str) -> None:
    spoil(plugged.disk.device, plugged.soon)
    status, said = plugged.bind()
    assert status == 1, said
    assert f"is not trusted by policy test: {why}" in said
    assert plugged.disk.device.tdi.state is not State.RUN
    assert plugged.sh(f"[ -e /sys/bus/pci/devices/{plugged.address}/driver ]")[0] == 1


def test_a_guarantee_that_is_wanted_and_not_given(plugged: Guest) -> None:
    status, said = plugged.bind('guarantees = ["CONFIG_HELD"]\n')
    assert (status, "report" in said) == (1, True)
