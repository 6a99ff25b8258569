"""How a guest's driver reaches its device: only numbers and bytes cross (virtio 1.3, 4.2 and 4.1 alike)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

__all__ = ("Identity", "Transport")


@dataclass(frozen=True, slots=True)
class Identity:
    """Who a device says that it is, and where it is found; all of it is the host's word.

    Attributes:
        transport: ``pci`` or ``mmio``.
        vendor: vendor id; None where the transport has none.
        device_type: virtio id.
        position: where on its bus.

    """

    transport: str
    vendor: int | None
    device_type: int
    position: str

    def __str__(self) -> str:
        vendor = "" if self.vendor is None else f", vendor {self.vendor:#06x}"
        return f"virtio id {self.device_type}{vendor}, {self.transport} {self.position}"


class Transport(Protocol):
    """A virtio transport as the driver sees it. Nothing that it returns can be trusted."""

    def identity(self) -> Identity:
        """Who the device is; nothing else of it is read."""
        ...

    def device_type(self) -> int:
        """Virtio device id."""
        ...

    def read_features(self) -> int:
        """Feature bits that the device offers."""
        ...

    def write_features(self, features: int) -> None:
        """Feature bits that the driver accepts."""
        ...

    def read_status(self) -> int:
        """Device status field."""
        ...

    def write_status(self, status: int) -> None:
        """Device status field; 0 resets the device."""
        ...

    def read_generation(self) -> int:
        """Configuration generation."""
        ...

    def read_config(self, offset: int, size: int) -> bytes:
        """Bytes of configuration space."""
        ...

    def write_config(self, offset: int, data: bytes) -> None:
        """Change configuration space."""
        ...

    def admin_queue(self) -> int | None:
        """Number of the administration queue, once ADMIN_VQ was accepted; None where there is none."""
        ...

    def queue_size_max(self, index: int) -> int:
        """Largest size of a queue, 0 if it does not exist."""
        ...

    def setup_queue(self, index: int, size: int, desc: int, driver: int, device: int) -> None:
        """Hand a queue over: its size, and the addresses of its three areas."""
        ...

    def shared_memory(self, number: int) -> tuple[int, int] | None:
        """Address and length of a shared memory region (virtio 1.3, 2.10); None if there is none of that number."""
        ...

    def reset_queue(self, index: int) -> None:
        """Take a single queue back, with RING_RESET (virtio 1.3, 2.6.1); `setup_queue` hands it over anew."""
        ...

    def notify(self, index: int, data: int | None = None) -> None:
        """Tell the device that a queue has something.

        `data` says with NOTIFICATION_DATA what: the queue, and where its next descriptor goes (2.9).
        """
        ...
