"""What the device half of a virtqueue offers to devices, whatever its format in memory."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from chamber.device.chain import Chain
    from chamber.platform.dma import Dma

__all__ = ("Ring",)


class Ring(ABC):
    """A queue that the driver handed over: chains come out of it, and go back into it.

    Attributes:
        dma: guest memory.
        size: number of descriptors.
        indirect: whether RING_INDIRECT_DESC was negotiated.
        event_idx: whether RING_EVENT_IDX was negotiated.
        unpublished: whether chains were given back that the driver can't see yet.

    """

    __slots__ = ("dma", "event_idx", "indirect", "size", "unpublished")

    def __init__(self, dma: Dma, size: int, *, indirect: bool, event_idx: bool) -> None:
        self.dma = dma
        self.size = size
        self.indirect = indirect
        self.event_idx = event_idx
        self.unpublished = False

    @property
    @abstractmethod
    def position(self) -> int:
        """Where to go on after a stop, as a vring base (vhost-user, Vring state description)."""

    @abstractmethod
    def release(self) -> None:
        """Let go of guest memory, so that it can be unmapped."""

    @abstractmethod
    def pending(self) -> bool:
        """Whether a chain seems to be available; nothing of it is looked at."""

    @abstractmethod
    def could_be_next(self, where: int) -> bool:
        """Whether the next descriptor to be made available can be at `where`, as notification data says it (2.9)."""

    @abstractmethod
    def pop(self) -> Chain | None:
        """Take the next available chain, or None.

        Raises:
            DriverError: the driver broke a rule of the format.

        """

    @abstractmethod
    def push(self, head: int, length: int, skipped: tuple[int, ...] = ()) -> None:
        """Give a chain back, `length` bytes of it written; the driver sees it after `publish`.

        With IN_ORDER the one element stands for the chains `skipped` as well, which were taken before it (2.7.9).
        """

    @abstractmethod
    def publish(self) -> bool:
        """Show the driver all that was given back; return whether it wants an interrupt for it."""

    @abstractmethod
    def suppress_kicks(self) -> None:
        """Ask the driver not to notify while the device is at work anyway."""

    @abstractmethod
    def arm_kick(self) -> bool:
        """Ask for notifications again; return True if nothing became available meanwhile."""

    # What follows writes lies, in whatever way the format has for them. An honest device never calls it.

    @abstractmethod
    def raw_used(self, ahead: int, head: int, length: int) -> None:
        """Write a used element or descriptor `ahead` places from where the next one belongs.

        It is visible at once where the format makes it so; nothing that is kept here changes.
        """

    @abstractmethod
    def raw_claim(self, count: int) -> None:
        """Make it seem that `count` more chains were used, whatever stands in their places."""
