"""Linux's own driver of an owner device, which asks for lists and capabilities when it probes one."""

from __future__ import annotations

from contextlib import closing

import pytest

from chamber.device.admin_commands import AdminCommands
from chamber.device.catalogue import make_device
from chamber.device.pci_over_virtio import PciOverVirtio
from chamber.device.virtio_pci import VirtioPci
from chamber.lab.kernel.build import build_kernel
from chamber.lab.kernel.config import KernelOptions
from chamber.lab.kernel.source import find_source
from chamber.lab.uml_kernel import find_kernel
from chamber.lab.uml_worker import UmlWorker
from chamber.link.eventloop import EventLoop
from chamber.wire.admin import HEADER, STATUS, Opcode, Status
from chamber.wire.virtio import DeviceType, Feature

SERIES = "7.3"
"""6.12 lists commands, and knows of no capabilities."""


class _Everybody:
    """A group that there is, though the kernel has enabled none: it asks for lists before it could."""

    exist = True

    def member(self, number: int) -> VirtioPci | None:
        return None


class _Noted(AdminCommands):
    """Keeps what it was asked, and how it answered."""

    def __init__(self) -> None:
        super().__init__(_Everybody(), for_linux=True)
        self.executed: list[tuple[Opcode, Status]] = []
        self.driver_limits = 0, 0

    def execute(self, command: bytes, room: int) -> bytes:
        answer = super().execute(command, room)
        self.executed.append((Opcode(HEADER.get(command, "opcode")), Status(STATUS.get(answer, "status"))))
        self.driver_limits = self._driver_limits
        return answer


@pytest.mark.kernel
@pytest.mark.timeout(1500)
def test_linux_lists_what_it_uses_and_says_how_many_objects() -> None:
    kernel = find_kernel(build_kernel(find_source(SERIES), KernelOptions(kasan=False, ubsan=False)).binary)
    made: list[tuple[VirtioPci, _Noted]] = []

    def provide() -> PciOverVirtio:
        commands = _Noted()
        function = VirtioPci(make_device(DeviceType.BLOCK), commands=commands)
        made.append((function, commands))
        return PciOverVirtio(function)

    with closing(EventLoop()) as loop, closing(UmlWorker(
            kernel.for_device(DeviceType.BLOCK), loop, DeviceType.BLOCK, provide, pci=True,
            options=(*kernel.options, "swiotlb=force"))) as worker:
        assert worker.do(["connect", "read"], 10.0) == ""
        assert not worker.failed
        function, commands = made[-1]
        assert function.device.has(Feature.ADMIN_VQ)
        assert commands.executed == [(opcode, Status.OK) for opcode in (
            Opcode.LIST_QUERY, Opcode.LIST_USE, Opcode.CAP_ID_LIST_QUERY, Opcode.DEVICE_CAP_GET, Opcode.DRIVER_CAP_SET)]
        assert commands.driver_limits == (8, 8)
        assert not function.device.violations
        assert worker.do(["disconnect"], 10.0) == ""
