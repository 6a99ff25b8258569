"""Where a hypervisor can do something else than what its guest believes. The defaults are honest."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from chamber.host.hypervisor import Hypervisor
    from chamber.wire.tdisp import State

__all__ = ("HostHooks",)


class HostHooks:
    """Honest behaviour at every point at which a hypervisor stands between a guest and its device.

    Attributes:
        host: the hypervisor, and with it all that it can do by itself; set when it is made.

    """

    host: Hypervisor

    def looked(self) -> None:
        """The guest looks at the function for the first time."""

    def state_changed(self, state: State) -> None:
        """The interface is in another state than before. TDISP's messages are sealed: what they do is not."""

    def started(self) -> None:
        """The driver has set its queues up, and has told the device to begin: it may do so again after a reset."""

    def working(self, notifications: int) -> None:
        """The driver is about to notify a queue, for so many times now, from 1 on."""

    def worked(self) -> None:
        """The driver has notified a queue, and the device has looked at it."""

    # Configuration space: trapped and emulated, in every profile.

    def space_read(self, offset: int, data: bytes) -> bytes:  # noqa: ARG002 - for overriding
        """Return what the guest reads instead of `data`."""
        return data

    def space_written(self, offset: int, data: bytes) -> bool:  # noqa: ARG002 - as above
        """Return False to have a write of the guest's be lost."""
        return True

    # The mailbox: what it brings is a hypervisor's to carry.

    def asked(self, payload: bytes, *, secured: bool) -> bytes | None:  # noqa: ARG002 - as above
        """Return what the device is asked instead; None to keep it from it."""
        return payload

    def answered(self, payload: bytes | None, *, secured: bool) -> bytes | None:  # noqa: ARG002 - as above
        """Return what the guest gets for an answer instead; None for none."""
        return payload

    # Memory of devices.

    def mapped(self, bar: int, address: int) -> int:  # noqa: ARG002 - as above
        """Return where a BAR is really mapped that the guest has placed at an address; the platform tells the guest."""
        return address

    def memory_read(self, address: int, data: bytes) -> bytes:  # noqa: ARG002 - as above
        """Return what a read without the T bit gets."""
        return data

    def memory_written(self, address: int, data: bytes) -> bytes | None:  # noqa: ARG002 - as above
        """Return what is written without the T bit instead; None to lose it."""
        return data

    # The link.

    def carried(self, packet: bytes, *, down: bool) -> list[bytes]:  # noqa: ARG002 - as above
        """Return the packets that are carried on instead of one of an encrypted stream's."""
        return [packet]

    # The guest's memory, as devices reach it that nobody trusts.

    def dma_read(self, address: int, data: bytes) -> bytes:  # noqa: ARG002 - as above
        """Return what the device reads of shared memory."""
        return data

    def dma_written(self, address: int, data: bytes) -> bytes:  # noqa: ARG002 - as above
        """Return what is stored in shared memory for the device."""
        return data
