"""Ordinary programs in the stock guest."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from chamber.device.catalogue import make_device
from chamber.lab.observation import TargetError
from chamber.lab.uml_guest import UmlGuest
from chamber.lab.uml_kernel import find_kernel
from chamber.lab.uml_program import connect, disconnect, run_program
from chamber.link.eventloop import EventLoop
from chamber.wire.virtio import DeviceType

if TYPE_CHECKING:
    from collections.abc import Iterator

    from chamber.device.base import Device

try:
    KERNEL = find_kernel()
except TargetError as error:
    pytest.skip(str(error), allow_module_level=True)

pytestmark = pytest.mark.uml




@pytest.fixture(scope="module")
def guest() -> Iterator[UmlGuest]:
    def provide() -> Device:
        return make_device(DeviceType.BLOCK)

    loop = EventLoop()
    guest = UmlGuest(KERNEL, loop, {DeviceType.BLOCK: provide})
    yield guest
    guest.close()
    loop.close()


def test_status_and_output_come_back(guest: UmlGuest) -> None:
    result = run_program(guest, "sh", "-c", "echo out; echo err >&2; exit 3")
    assert (result.status, result.output) == (3, "out\nerr\n")
    result = run_program(guest, "sh", "-c", "kill -9 $$")
    assert result.status == -9
    assert "Linux" in run_program(guest, "uname", "-s").output
    assert "AVX" in run_program(guest, "sh", "-c", "echo $GLIBC_TUNABLES").output


def test_long_output_keeps_its_end(guest: UmlGuest) -> None:
    result = run_program(guest, "seq", "100000")
    assert len(result.output) == 6 << 10
    assert result.output.endswith("\n99999\n100000\n")


def test_a_program_whose_time_is_up_is_ended_with_all_of_its_children(guest: UmlGuest) -> None:
    assert run_program(guest, "sh", "-c", "sleep 4321 & sleep 4321", seconds=0.5).status is None
    assert "4321" not in run_program(guest, "ps", "ax").output


def test_a_program_that_is_not_there_is_a_clear_error(guest: UmlGuest) -> None:
    with pytest.raises(TargetError, match="nonesuch"):
        run_program(guest, "nonesuch")


def test_programs_use_a_connected_device(guest: UmlGuest) -> None:
    for _ in range(2):
        assert connect(guest, DeviceType.BLOCK).startswith("virtio")
        assert run_program(guest, "blockdev", "--getsize64", "/dev/vda").output == f"{4 << 20}\n"
        disconnect(guest, DeviceType.BLOCK)
        assert run_program(guest, "test", "-e", "/dev/vda").status == 1
