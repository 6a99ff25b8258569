"""Joins the model guest to a device: what a real machine does by registers, interrupts and memory."""

from __future__ import annotations

from typing import TYPE_CHECKING

from chamber.platform.transport import Identity
from chamber.wire.virtio import Feature, Status, bit

if TYPE_CHECKING:
    from chamber.device.base import Device
    from chamber.guest.machine import GuestMachine

__all__ = ("ModelTransport",)


class ModelTransport:
    """A virtio transport between one driver and one device (implements `chamber.platform.transport.Transport`).

    The device reaches the guest's memory as the host does, and interrupts it by vector: 0 for configuration, 1 + n for
    queue n. Pending interrupts are delivered at each register access, as a processor takes them between instructions.

    Args:
        machine: the guest.
        device: what it is joined to.

    """

    def __init__(self, machine: GuestMachine, device: Device) -> None:
        self._machine = machine
        self._device = device
        self._status = 0
        if machine.profile.private:
            device.offer(bit(Feature.ACCESS_PLATFORM))
        device.config_interrupt = lambda: machine.interrupts.assert_vector(0)
        device.schedule = machine.scheduler.call_later
        if device.device_memory is not None:
            machine.memory.show_device_memory(*device.device_memory)

    def _settle(self) -> None:
        self._machine.scheduler.step()
        self._machine.interrupts.deliver()

    def identity(self) -> Identity:
        """Who the device is."""
        return Identity("mmio", None, self.device_type(), "0")

    def device_type(self) -> int:
        """Virtio device id."""
        return int(self._device.type)

    def read_features(self) -> int:
        """Feature bits that the device offers."""
        return self._device.offered_features() & (1 << 64) - 1

    def write_features(self, features: int) -> None:
        """Feature bits that the driver accepts; the device may refuse them at FEATURES_OK."""
        self._refused = not self._device.accept_features(features)

    def read_status(self) -> int:
        """Device status field."""
        return self._status

    def write_status(self, status: int) -> None:
        """Device status field; 0 resets."""
        if not status:
            self._device.reset()
        elif status & Status.FEATURES_OK and not self._status & Status.FEATURES_OK and self._refused:
            status &= ~Status.FEATURES_OK
        before, self._status = self._status, status
        if status & ~before & Status.DRIVER_OK:
            self._device.driver_ok()
        self._settle()

    def read_generation(self) -> int:
        """Configuration generation."""
        return self._device.read_generation()

    def read_config(self, offset: int, size: int) -> bytes:
        """Bytes of configuration space."""
        data = self._device.read_config(offset, size)
        self._settle()
        return data

    def write_config(self, offset: int, data: bytes) -> None:
        """Change configuration space."""
        self._device.write_config(offset, data)
        self._settle()

    def admin_queue(self) -> int | None:
        """Return None: the model's bus has none."""
        return None

    def queue_size_max(self, index: int) -> int:
        """Largest size of a queue, 0 if it does not exist."""
        return self._device.queue_size if index < self._device.queue_count else 0

    def setup_queue(self, index: int, size: int, desc: int, driver: int, device: int) -> None:
        """Hand a queue over."""
        self._device.start_queue(index, self._machine.memory.host, size=size, desc=desc, driver=driver, device=device,
                                 interrupt=lambda: self._machine.interrupts.assert_vector(1 + index))

    def shared_memory(self, number: int) -> tuple[int, int] | None:
        """Where the one region is that a device may have."""
        if number or self._device.device_memory is None:
            return None
        start, memory = self._device.device_memory
        return start, len(memory)

    def reset_queue(self, index: int) -> None:
        """Take a queue back."""
        self._device.stop_queue(index)
        self._settle()

    def notify(self, index: int, data: int | None = None) -> None:
        """Tell the device that a queue has something; a device that has more to do than fits goes on later."""
        if self._device.notify(index, data):
            self._machine.scheduler.call_later(0.0, lambda: self.notify(index))
        self._settle()

    _refused = False
