"""A stock kernel that is shown a virtual function as a transitional device, and comes by the legacy interface."""

from __future__ import annotations

import json
import tempfile
from contextlib import ExitStack, closing
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from chamber.device.transitional import TransitionalFunction
from chamber.lab.dma_watch import DmaWatch, pool_of
from chamber.lab.uml_program import run_program
from chamber.link.eventloop import EventLoop
from chamber.link.listener import VfioServer
from chamber.wire.virtio import Feature
from tests.guest.test_admin import Host
from tests.lab.qemu.stock_guest import stock_guest

if TYPE_CHECKING:
    from collections.abc import Callable

    from chamber.lab.observation import Evidence
    from chamber.platform.dma import Dma

pytestmark = [pytest.mark.qemu, pytest.mark.timeout(300)]


class _Watched(TransitionalFunction):
    """Looks at each address that the guest hands over; all are outside of the pool until it is known."""

    pool = range(0)

    def __init__(self, host: Host) -> None:
        super().__init__(host.group.members[0], 1, host.ready())
        self.found: list[Evidence] = []

    def attach(self, dma: Dma, raise_vector: Callable[[int], None], raise_pin: Callable[[bool], None],
               later: Callable[[float, Callable[[], None]], None]) -> None:
        watch = DmaWatch(dma, self.pool, self.member.ring_areas, self.found.append)
        super().attach(watch, raise_vector, raise_pin, later)
        self.watch = watch


def test_linux_uses_a_disk_by_its_owners_commands_and_outside_of_its_pool() -> None:
    with ExitStack() as stack:
        host = stack.enter_context(closing(Host(legacy=True)))
        member = host.group.members[0]
        host.disk.write(0, b"\x5a" * 512)
        shown = _Watched(host)
        loop = stack.enter_context(closing(EventLoop()))
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="chamber-")))
        stack.enter_context(closing(VfioServer(folder / "legacy", shown, loop)))
        guest = stack.enter_context(closing(stock_guest(
            loop, (), lambda _kind: pytest.fail("there are no slots"), options=("virtio_pci.force_legacy=1",),
            more=("-device", json.dumps({"driver": "vfio-user-pci", "addr": "1e",
                                         "socket": {"type": "unix", "path": f"{folder}/legacy"}})))))
        shown.found.clear()
        pool = pool_of(run_program(guest, "sh", "-c", "dmesg | grep TLB").output)
        assert pool is not None
        shown.watch._pool = pool
        shown.watch._count = 0
        said = run_program(
            guest, "sh", "-c", "mknod /tmp/disk b $(tr : ' ' </sys/block/vda/dev); "
            "head -c 512 /tmp/disk | tr Z y >/tmp/y; head -c 8 /tmp/y; echo; "
            "cat /sys/bus/virtio/devices/virtio0/features; "
            "dd if=/tmp/y of=/tmp/disk bs=512 count=1 conv=fsync 2>/dev/null")
        data, features = said.output.split()
        assert data == "y" * 8
        assert bytes(host.disk.read(0, 512)) == b"y" * 512
        assert not member.device.has(Feature.VERSION_1)
        assert features[Feature.ACCESS_PLATFORM] == "0"
        assert not member.device.violations
        assert shown.found
