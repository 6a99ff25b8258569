"""What the model guest does with a device that owns others: all that its administration queue is for."""

from __future__ import annotations

from typing import TYPE_CHECKING

from chamber.guest.admin import AdminClient
from chamber.guest.sriov import VirtualFunctions
from chamber.lab.model_use.right_data import compare
from chamber.wire.admin import Group, NotifyFlags, Opcode
from chamber.wire.virtio import Feature
from chamber.wire.virtio_pci import LEGACY

if TYPE_CHECKING:
    from chamber.guest.driver import VirtioDriver
    from chamber.guest.virtio_pci import PciTransport

__all__ = ("administer",)


def administer(driver: VirtioDriver, transport: PciTransport) -> None:
    """Enable a member, move its state out and in again, and look at its legacy registers, where it has some."""
    functions = VirtualFunctions(transport.bus, transport.slot, driver.checks)
    functions.enable(1)
    client = AdminClient(driver)
    used = [client.use(group) for group in Group]
    client.allow_parts()
    client.stop(1)
    parts = client.read_parts(1)
    client.write_parts(1, parts)
    compare(b"".join(part.build() for part in client.read_parts(1)), b"".join(part.build() for part in parts),
            "state of a device that was set")
    client.resume(1)
    if Opcode.LEGACY_NOTIFY_INFO in used[Group.SRIOV]:
        features = int.from_bytes(client.read_legacy(1, 0, LEGACY["device_features"].size), "little")
        compare(bytes((features >> Feature.RING_INDIRECT_DESC & 1,)), b"\1", "features of a legacy device")
        for flags, bar, offset in client.legacy_doorbells(1):
            if flags is NotifyFlags.OWNER:
                transport.ring(bar, offset, 0)
    functions.disable()
