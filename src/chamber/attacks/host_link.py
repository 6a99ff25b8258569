"""What a hypervisor does to packets between a guest and its device: on an encrypted link, or where it plays the device.

It can drop, repeat, alter, redirect and reorder them. Where nothing is encrypted it does the same to what it traps, and
to the memory that guest and device share.
"""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING, Final

from chamber.attacks.attack import Aim, Surface
from chamber.attacks.host import HostAttack, flipped, host_attack
from chamber.host.hypervisor import PREFIX_SIZE
from chamber.platform.ide import PREFIX, TAG_SIZE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from chamber.attacks.attack import AttackSpec

__all__ = ("host_link_attacks",)

_SPEC: Final = "PCIe 6.1, 6.33"
_WRITES: Final = frozenset({b"\x40", b"\x60"})
_READS: Final = frozenset({b"\x00", b"\x20"})
_ADDRESS_AT: Final = PREFIX_SIZE + 8
"""Where a packet has the address of its request, of four bytes here."""
_OTHER_PLACE: Final = 0x40
_DATA: Final = 1200
"""Bytes that a packet has at least to be one with sectors, and not with a ring."""


class Lane(enum.Enum):
    """Which packets."""

    WRITES = "what the driver writes to registers"
    ANSWERS = "what registers answer"
    DATA_IN = "what the device stores in the guest's memory"
    DATA_OUT = "what the device reads of the guest's memory"




class Packets(HostAttack):
    """Does something to packets of one kind.

    Args:
        lane: which.
        act: what becomes of one: drop, repeat, alter, redirect or hold.
        nth: from which one on; the act is done once.

    """

    def __init__(self, lane: Lane, act: str, nth: int) -> None:
        super().__init__()
        self._lane = lane
        self._act = act
        self._left = nth
        self._held: bytes | None = None

    def _due(self) -> bool:
        self._left -= 1
        return self._left == 0

    # On the encrypted link.

    def carried(self, packet: bytes, *, down: bool) -> list[bytes]:
        """Do it to a packet, if it is one of those."""
        if self._held is not None:
            held, self._held = self._held, None
            return [packet, held]
        if self._lane_of(packet, down=down) is not self._lane or not self._due():
            return [packet]
        self.strike(f"{self._act} a packet of {len(packet)} bytes: {self._lane.value}")
        if self._act == "drops":
            return []
        if self._act == "repeats":
            return [packet, packet]
        if self._act == "alters":
            return [flipped(packet, len(packet) - TAG_SIZE - 1)]
        if self._act == "redirects":
            return [flipped(packet, _ADDRESS_AT + 2)]
        self._held = packet
        return []

    @staticmethod
    def _lane_of(packet: bytes, *, down: bool) -> Lane | None:
        form, large = packet[PREFIX_SIZE:PREFIX_SIZE + 1], len(packet) > _DATA
        if form in _READS:
            return None
        if form in _WRITES:
            return Lane.WRITES if down else Lane.DATA_IN if large else None
        return Lane.DATA_OUT if down and large else None if down else Lane.ANSWERS

    # Where nothing is encrypted.

    def _changed(self, data: bytes) -> bytes | None:
        self.strike(f"{self._act} {len(data)} bytes: {self._lane.value}")
        if self._act in {"drops", "holds"}:
            return None
        return data if self._act == "repeats" else flipped(data, len(data) - 1)

    def memory_written(self, address: int, data: bytes) -> bytes | None:
        """Do it to a write of the driver's."""
        if self._lane is not Lane.WRITES or not self._due():
            return data
        if self._act == "redirects":
            self.strike("redirects a write of the driver's")
            self.host.front.write_bar(self.host.virtio.register_bar, _OTHER_PLACE, data)
            return None
        if self._act == "repeats":
            self.host.write(address, data)
        return self._changed(data)

    def memory_read(self, address: int, data: bytes) -> bytes:  # noqa: ARG002 - the hook's
        """Do it to an answer of a register's."""
        if self._lane is not Lane.ANSWERS or not self._due():
            return data
        return self._changed(data) or b"\xff" * len(data)

    def dma_written(self, address: int, data: bytes) -> bytes:  # noqa: ARG002 - the hook's
        """Do it to data for the guest."""
        if self._lane is not Lane.DATA_IN or len(data) < _DATA or not self._due():
            return data
        return self._changed(data) or bytes(len(data))

    def dma_read(self, address: int, data: bytes) -> bytes:  # noqa: ARG002 - the hook's
        """Do it to data of the guest's."""
        if self._lane is not Lane.DATA_OUT or len(data) < _DATA or not self._due():
            return data
        return self._changed(data) or bytes(len(data))


class Forged(HostAttack):
    """Puts a packet of its own on the link, made of one that it has seen.

    Args:
        change: makes it.

    """

    def __init__(self, change: Callable[[bytes], bytes]) -> None:
        super().__init__()
        self._change = change
        self._done = False

    def carried(self, packet: bytes, *, down: bool) -> list[bytes]:
        """Put it behind the first write of the driver's that there is to see."""
        if self._done or not down or packet[PREFIX_SIZE:PREFIX_SIZE + 1] not in _WRITES:
            return [packet]
        self._done = True
        forged = self._change(packet)
        self.strike(f"a packet of the host's own: {forged[:24].hex(' ')}")
        return [packet, forged]

    def started(self) -> None:
        """Write by itself, where there is no link to forge packets on."""
        if self.is_open and not self._done:
            self._done = True
            self.strike("a write of the host's own to the device's registers")
            self.host.front.write_bar(self.host.virtio.register_bar, 20, bytes(1))


class Storm(HostAttack):
    """Raises interrupts that no device has sent."""

    def worked(self) -> None:
        """Raise them all."""
        self.strike("interrupts 0 to 15 raised")
        for vector in range(16):
            self.host.interrupt(vector)


class PlainRead(HostAttack):
    """Reads the device's memory for itself while the driver works."""

    def worked(self) -> None:
        """Read registers, and what else there is."""
        for bar, size in ((self.host.virtio.register_bar, 64), (1, 64), (2, 4096)):
            data = self.host.front.read_bar(bar, 0, size)
            self.strike(f"base address {bar} reads as {data[:16].hex(' ')}")
            self.capture(data)


def _with_flags(change: Callable[[int], int]) -> Callable[[bytes], bytes]:
    at = PREFIX["flags"].offset
    return lambda packet: packet[:at] + bytes((change(packet[at]),)) + packet[at + 1:]


_FORGERIES: Final[tuple[tuple[str, str, Callable[[bytes], bytes]], ...]] = (
    ("untrusted", "without its T bit", _with_flags(lambda flags: flags & ~2)),
    ("other-lane", "in another sub-stream", _with_flags(lambda flags: flags ^ 0x10)),
    ("other-key", "of the other key set", _with_flags(lambda flags: flags ^ 1)),
    ("other-stream", "of another stream", lambda packet: packet[:3] + bytes((packet[3] ^ 1,)) + packet[4:]),
    ("short", "cut short", lambda packet: packet[:PREFIX_SIZE + 12]),
    ("nothing", "of zeros", lambda packet: bytes(len(packet))),
)
_ACTS: Final = {
    Lane.WRITES: ("drops", "repeats", "alters", "redirects", "holds"),
    Lane.ANSWERS: ("drops", "repeats", "alters"),
    Lane.DATA_IN: ("drops", "repeats", "alters", "redirects", "holds"),
    Lane.DATA_OUT: ("drops", "repeats", "alters"),
}
_NTH: Final = {Lane.WRITES: 8, Lane.ANSWERS: 4, Lane.DATA_IN: 1, Lane.DATA_OUT: 1}
_NAMES: Final = {Lane.WRITES: "write", Lane.ANSWERS: "answer", Lane.DATA_IN: "data-in", Lane.DATA_OUT: "data-out"}


def host_link_attacks() -> Iterator[AttackSpec]:
    """All of these attacks."""
    for lane, acts in _ACTS.items():
        aim = Aim.DENIAL if lane is Lane.WRITES else Aim.DECEPTION
        for act in acts:
            yield host_attack(f"link-{_NAMES[lane]}-{act}", Surface.LINK, aim, _SPEC,
                              f"The hypervisor {act} {lane.value}.",
                              lambda lane=lane, act=act: Packets(lane, act, _NTH[lane]))  # type: ignore[misc]
    for name, what, change in _FORGERIES:
        yield host_attack(f"link-forged-{name}", Surface.LINK, Aim.DENIAL, _SPEC,
                          f"The hypervisor sends a packet {what} that it has seen before.",
                          lambda change=change: Forged(change))  # type: ignore[misc]
    yield host_attack("link-interrupts", Surface.LINK, Aim.DENIAL, "PCIe 6.1, 6.1.4",
                      "The hypervisor raises interrupts that no device has sent.", Storm)
    yield host_attack("link-reads", Surface.LINK, Aim.LEAK, "PCIe 6.1, 11.2.1",
                      "The hypervisor reads the device's memory while the driver works.", PlainRead)
