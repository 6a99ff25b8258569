"""Where a device lets itself be interfered with.

A device calls these at each point at which a malicious host or device could do something else than the specification
says. The defaults are honest. Attacks override what they need (`chamber.attacks`); a device without hooks pays one test
for None.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from chamber.device.base import Device
    from chamber.device.chain import Chain
    from chamber.device.queue import DeviceQueue
    from chamber.device.virtio_pci import VirtioPci

__all__ = ("Hooks",)


class Hooks:
    """Honest behaviour at every point of interference."""

    device: Device
    """The device that these hooks sit in; set by `attach`."""

    def attach(self, device: Device) -> None:
        """Called once, when the device is made."""
        self.device = device

    def features(self, offered: int) -> int:
        """Return the feature bits to offer, asked for each time the driver reads them."""
        return offered

    def config(self, config: bytearray, offset: int, size: int) -> bytearray:  # noqa: ARG002 - for overriding
        """Return the whole configuration space to serve a read of `size` bytes at `offset` from.

        `config` is a copy, to change at will.
        """
        return config

    def generation(self, generation: int) -> int:
        """Return the configuration generation to show (virtio 1.3, 2.5.1)."""
        return generation

    def features_accepted(self, features: int) -> None:
        """The driver chose its features; no queue exists yet."""

    def config_written(self, offset: int, data: bytes) -> None:
        """The driver wrote configuration space."""

    def queue_refused(self, index: int) -> bool:  # noqa: ARG002 - for overriding
        """Return whether to fail the set-up of a queue. Of the transports vhost-user alone has an answer to it."""
        return False

    def queue_started(self, queue: DeviceQueue) -> None:
        """The driver set a queue up. It is not ready: DRIVER_OK comes later, and over vhost-user not at all."""

    def driver_ok(self) -> None:
        """The driver set DRIVER_OK. Over vhost-user: its first available buffer or notification was seen."""

    def notified(self, queue: DeviceQueue) -> None:
        """The driver notified a queue; nothing is taken from it yet."""

    def popped(self, queue: DeviceQueue, chain: Chain) -> bool:  # noqa: ARG002 - for overriding
        """A chain was taken. Return False to keep it and never answer by yourself."""
        return True

    def response(self, queue: DeviceQueue, chain: Chain, data: bytes) -> bytes:  # noqa: ARG002 - for overriding
        """Return the bytes to write into the chain instead of `data`; called before they are written."""
        return data

    def used(self, queue: DeviceQueue, chain: Chain, length: int) -> Iterable[tuple[int, int]]:  # noqa: ARG002
        """Return the used elements (id, len) to put into the ring for a chain that is done."""
        return ((chain.head, length),)

    def published(self, queue: DeviceQueue) -> None:
        """Used elements became visible; the interrupt, if any, comes next."""

    def interrupt(self, queue: DeviceQueue, wanted: bool) -> bool:  # noqa: ARG002 - for overriding
        """Return whether to interrupt after publishing."""
        return wanted

    def queue_stopping(self, queue: DeviceQueue) -> None:
        """The driver takes a queue back; it may still be touched during this call, and never after it."""

    # Over PCI alone.

    def config_space(self, function: VirtioPci, offset: int, data: bytes) -> bytes:  # noqa: ARG002 - for overriding
        """Return what a read of PCI configuration space gets instead of `data`, which is as long as was asked for."""
        return data

    def config_space_written(self, function: VirtioPci, offset: int, data: bytes) -> bool:  # noqa: ARG002
        """The guest writes PCI configuration space. Return False to have it be lost."""
        return True

    def register(self, function: VirtioPci, bar: int, offset: int, data: bytes) -> bytes:  # noqa: ARG002
        """Return what a read of a BAR gets instead of `data`, which is as long as was asked for."""
        return data

    def register_written(self, function: VirtioPci, bar: int, offset: int, data: bytes) -> bool:  # noqa: ARG002
        """The guest writes a BAR. Return False to have it be lost."""
        return True

    def vectors(self, function: VirtioPci, vector: int) -> Iterable[int]:  # noqa: ARG002
        """Return the MSI-X vectors to raise instead of `vector`."""
        return (vector,)

    # Whoever it is over.

    def logged(self, line: str) -> None:
        """The device added a line to its transcript."""

    def guest_read(self, address: int, length: int) -> None:
        """The guest has just read shared memory. Only the model target can tell; real guests are raced instead."""
