"""The legacy interface of a virtio PCI device (virtio 1.4, 4.1.4.10), as its owner reaches it by commands (2.12.1.2).

It is another door to the same device: features without a handshake, queues by the number of a page. A driver that comes
in by it negotiates no VERSION_1 and no ACCESS_PLATFORM, so no bounce buffer is between it and whoever plays the device.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from chamber.wire.split import SplitLayout
from chamber.wire.virtio import DeviceType, Status
from chamber.wire.virtio_pci import LEGACY, LEGACY_PAGE

if TYPE_CHECKING:
    from collections.abc import Callable

    from chamber.device.virtio_pci import VirtioPci

__all__ = ("LEGACY_TYPES", "LegacyInterface")

LEGACY_TYPES: Final = frozenset({DeviceType.NET, DeviceType.BLOCK})
"""Types whose virtual functions Linux's hypervisor side (vfio-virtio) presents by a legacy interface."""
_LOW: Final = 0xFFFFFFFF


class LegacyInterface:
    """The registers of one function.

    Args:
        function: the function.

    """

    size: Final = LEGACY.size

    def __init__(self, function: VirtioPci) -> None:
        self._function = function
        self._common = function.common
        self._setters: dict[str, Callable[[int], None]] = {
            "driver_features": self._common.accept_legacy, "queue_address": self._set_queue_address,
            "queue_select": lambda value: self._common.put("queue_select", value), "queue_notify": self.notified,
            "device_status": lambda value: self._common.put("device_status", value & ~Status.FEATURES_OK),
            "config_msix_vector": lambda value: self._common.put("config_msix_vector", value),
            "queue_msix_vector": lambda value: self._common.put("queue_msix_vector", value)}

    def read(self, offset: int, size: int) -> bytes:
        """Serve a read; one that covers the interrupt status acknowledges it."""
        get, status = self._common.get, LEGACY["isr_status"].offset
        image = LEGACY.pack(
            device_features=self._function.device.offered_features() & _LOW,
            driver_features=self._common.state().features & _LOW, queue_address=get("queue_desc") // LEGACY_PAGE & _LOW,
            queue_size=get("queue_size"), queue_select=get("queue_select"), device_status=get("device_status"),
            isr_status=self._function.take_isr() if offset <= status < offset + size else 0,
            config_msix_vector=get("config_msix_vector"), queue_msix_vector=get("queue_msix_vector"))
        return bytes(image[offset:offset + size])

    def write(self, offset: int, data: bytes) -> None:
        """Take a write; each register that it covers is set, in their order; one that it covers in part is not."""
        for name, setter in self._setters.items():
            field = LEGACY[name]
            begin = field.offset - offset
            if begin >= 0 and begin + field.size <= len(data):
                setter(int.from_bytes(data[begin:begin + field.size], "little"))

    def notified(self, index: int) -> None:
        """The driver says that a queue has something."""
        self._function.notified(index)

    def _set_queue_address(self, page: int) -> None:
        if not page:
            self._common.take_back(self._common.get("queue_select"))
            return
        areas = SplitLayout(self._common.get("queue_size")).legacy_areas(page * LEGACY_PAGE)
        for name, address in zip(("queue_desc", "queue_driver", "queue_device"), areas, strict=True):
            self._common.put(name, address)
        self._common.put("queue_enable", 1)
