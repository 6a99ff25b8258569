"""Lies of a hypervisor in configuration space, which it traps and emulates also in front of a device that is locked.

A driver finds its registers by capabilities there (virtio 1.4, 4.1.4). A host can lead it to other registers of the
device, or to none of the device's at all: to a base address that the host plays itself.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from chamber.attacks.attack import Aim, Surface
from chamber.attacks.host import HostAttack, host_attack
from chamber.attacks.pci import Patch, field_patch, find_capability, patched
from chamber.device.blk import BlkDevice, pattern_disk
from chamber.device.disk import MemoryDisk
from chamber.device.virtio_pci import MSIX_BAR, REGISTER_BAR, VirtioPci
from chamber.host.ways import Window
from chamber.wire.blk import BlkFeature
from chamber.wire.pci import CONVENTIONAL_SIZE, HEADER, MSIX, CapabilityId
from chamber.wire.virtio import DeviceType, bit
from chamber.wire.virtio_pci import (
    CAPABILITY,
    COMMON,
    DEVICE_ID_BASE,
    NOTIFY_CAPABILITY,
    RELOCATED_ID_BASE,
    CapabilityType,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from chamber.attacks.attack import AttackSpec
    from chamber.host.hypervisor import Hypervisor

__all__ = ("host_space_attacks",)

_SPEC: Final = "virtio 1.4, 4.1.4"
_HEADER_SPEC: Final = "PCIe 6.1, 7.5.1"
_PAGE: Final = 4096
_FREE: Final = 0xC0
"""Where configuration space has room for a capability that the device does not have."""
_FAKE_BAR: Final = 4
_FAKE_SIZE: Final = 4 * _PAGE
_FAKE_DISK: Final = 1 << 20
"""Bytes of the disk behind it."""


class SpaceLie(HostAttack):
    """Says other bytes than the true ones.

    Args:
        patch: makes them, given the host.

    """

    def __init__(self, patch: Callable[[Hypervisor], Patch]) -> None:
        super().__init__()
        self._make = patch
        self._patch: Patch = {}

    def looked(self) -> None:
        """Decide what to say."""
        self._patch = self._make(self.host)
        said = "; ".join(f"{data.hex()} at {at:#x}" for at, data in sorted(self._patch.items()))
        self.strike(f"configuration space says otherwise: {said}")

    def space_read(self, offset: int, data: bytes) -> bytes:
        """Say it."""
        return patched(data, offset, self._patch)


def _header(**lies: int) -> Callable[[Hypervisor], Patch]:
    def patch(_host: Hypervisor) -> Patch:
        made: Patch = {}
        for name, value in lies.items():
            made |= field_patch(HEADER, 0, name, value)
        return made
    return patch


def _capability(host: Hypervisor, kind: CapabilityType, bar: int, offset: int, length: int) -> Patch:
    """Have a capability lead elsewhere; where the device has none, show one behind all others."""
    at = host.virtio.capabilities.get(kind)
    if at is not None:
        made: Patch = {}
        for name, value in (("bar", bar), ("offset", offset), ("length", length)):
            made |= field_patch(CAPABILITY, at, name, value)
        return made
    size = NOTIFY_CAPABILITY.size if kind is CapabilityType.NOTIFY_CFG else CAPABILITY.size
    body = CAPABILITY.pack(cap_vndr=CapabilityId.VENDOR, cap_len=size, cfg_type=kind, bar=bar, offset=offset,
                           length=length)
    return {find_capability(host.virtio, CapabilityId.MSIX) + 1: bytes((_FREE,)), _FREE: bytes(body).ljust(size, b"\4")}


def _leads(kind: CapabilityType, bar: int, offset: int, length: int) -> Callable[[Hypervisor], Patch]:
    return lambda host: _capability(host, kind, bar, offset, length)


def _msix(**lies: int) -> Callable[[Hypervisor], Patch]:
    def patch(host: Hypervisor) -> Patch:
        made: Patch = {}
        for name, value in lies.items():
            made |= field_patch(MSIX, find_capability(host.virtio, CapabilityId.MSIX), name, value)
        return made
    return patch


def _mailbox_gone(host: Hypervisor) -> Patch:
    return {} if host.device is None else {host.device.mailbox_at: bytes(2)}


def _mailbox_loops(_host: Hypervisor) -> Patch:
    return {CONVENTIONAL_SIZE: (0x0001 | 1 << 16 | CONVENTIONAL_SIZE << 20).to_bytes(4, "little")}


def _no_capabilities(_host: Hypervisor) -> Patch:
    return field_patch(HEADER, 0, "capabilities", 0)


def _other_generation(host: Hypervisor) -> Patch:
    """Show the device ids of the other kind: with capabilities in configuration space, or without."""
    base = RELOCATED_ID_BASE if host.virtio.capabilities else DEVICE_ID_BASE
    return field_patch(HEADER, 0, "device", base + DeviceType.BLOCK)


class FakeBar(HostAttack):
    """Plays a base address that the device does not have, and leads some of its capabilities there.

    Behind it is a device of the host's own, with a disk of another size.

    Args:
        moved: which structures are led there.
        through: whether common configuration is handed on to the true device, by its window, with other features.

    """

    def __init__(self, moved: tuple[CapabilityType, ...], *, through: bool = False) -> None:
        super().__init__()
        self._moved = moved
        self._through = through
        self._bar = 0
        self._patch: Patch = {}
        self._own = VirtioPci(BlkDevice(disk=MemoryDisk(pattern_disk(_FAKE_DISK))))
        self._own.dma = _Sink()
        self._select = 0

    def looked(self) -> None:
        """Lead it there."""
        self._own.function.write_config(HEADER["command"].offset, b"\x06\0")
        pages = {CapabilityType.COMMON_CFG: 0, CapabilityType.ISR_CFG: 1, CapabilityType.DEVICE_CFG: 2,
                 CapabilityType.NOTIFY_CFG: 3}
        for kind in self._moved:
            self._patch |= _capability(self.host, kind, _FAKE_BAR, pages[kind] * _PAGE,
                                       COMMON.size if kind is CapabilityType.COMMON_CFG else _PAGE)
        self.strike(f"base address {_FAKE_BAR}, which the device does not have, is the host's, and has "
                    f"{', '.join(kind.name for kind in self._moved)}")

    def space_read(self, offset: int, data: bytes) -> bytes:
        """Show the base address, and what leads there."""
        if offset == HEADER[f"bar{_FAKE_BAR}"].offset:
            return self._bar.to_bytes(4, "little")
        return patched(data, offset, self._patch)

    def space_written(self, offset: int, data: bytes) -> bool:
        """Let the guest size and place it."""
        if offset != HEADER[f"bar{_FAKE_BAR}"].offset:
            return True
        self._bar = int.from_bytes(data, "little") & -_FAKE_SIZE & 0xFFFFFFFF
        return False

    def _at(self, address: int) -> int | None:
        return address - self._bar if self._bar and 0 <= address - self._bar < _FAKE_SIZE else None

    def memory_read(self, address: int, data: bytes) -> bytes:
        """Answer as the device of the host's own, or as the true one with other features."""
        at = self._at(address)
        if at is None:
            return data
        if not self._through:
            return self._own.read_bar(REGISTER_BAR, at, len(data))
        found = Window(self.host).load(at, len(data))
        if at == COMMON["device_feature"].offset and self._select == 0:
            features = int.from_bytes(found, "little") & ~bit(BlkFeature.FLUSH) | bit(BlkFeature.RO)
            return features.to_bytes(4, "little")
        return found

    def memory_written(self, address: int, data: bytes) -> bytes | None:
        """Take it, as it is answered."""
        at = self._at(address)
        if at is None:
            return data
        if not self._through:
            self._own.write_bar(REGISTER_BAR, at, data)
            return None
        if at == COMMON["device_feature_select"].offset:
            self._select = data[0]
        elif at == COMMON["driver_feature"].offset:
            data = (int.from_bytes(data, "little") & ~bit(BlkFeature.RO)).to_bytes(4, "little")
        for begin in range(0, len(data), 4):
            Window(self.host).store(at + begin, data[begin:begin + 4])
        return None


class _Sink:
    """Memory that takes everything, and is nobody's (implements `chamber.platform.dma.Dma`)."""

    def read(self, address: int, length: int) -> bytes:  # noqa: ARG002 - Dma's
        return bytes(length)

    def write(self, address: int, data: bytes | bytearray | memoryview) -> None:
        pass

    def view(self, address: int, length: int) -> memoryview:  # noqa: ARG002 - Dma's
        return memoryview(bytearray(length))


_T: Final = CapabilityType
_LIES: Final[tuple[tuple[str, Surface, Aim, str, str, Callable[[Hypervisor], Patch]], ...]] = (
    ("common-elsewhere", Surface.CONFIG, Aim.MEMORY, _SPEC, "leads common configuration to the device's own",
     _leads(_T.COMMON_CFG, REGISTER_BAR, 2 * _PAGE, COMMON.size)),
    ("device-elsewhere", Surface.CONFIG, Aim.DECEPTION, _SPEC, "leads device configuration to common configuration",
     _leads(_T.DEVICE_CFG, REGISTER_BAR, 0, _PAGE)),
    ("device-at-nothing", Surface.CONFIG, Aim.DECEPTION, _SPEC, "leads device configuration to where nothing is",
     _leads(_T.DEVICE_CFG, REGISTER_BAR, _PAGE + 256, 64)),
    ("notify-elsewhere", Surface.CONFIG, Aim.DENIAL, _SPEC, "leads notifications to where nothing is",
     _leads(_T.NOTIFY_CFG, REGISTER_BAR, 2 * _PAGE + 2048, 64)),
    ("notify-on-status", Surface.CONFIG, Aim.DENIAL, _SPEC, "leads notifications to the device's status",
     _leads(_T.NOTIFY_CFG, REGISTER_BAR, COMMON["device_status"].offset, 2)),
    ("isr-in-msix", Surface.CONFIG, Aim.MEMORY, _SPEC, "leads the interrupt status into the interrupts' table",
     _leads(_T.ISR_CFG, MSIX_BAR, 0, 1)),
    ("msix-on-registers", Surface.CONFIG, Aim.MEMORY, "PCIe 6.1, 7.7.2",
     "leads the interrupts' table to the device's registers", _msix(table=REGISTER_BAR)),
    ("msix-on-notify", Surface.CONFIG, Aim.MEMORY, "PCIe 6.1, 7.7.2",
     "leads the interrupts' table to the notification registers", _msix(table=3 * _PAGE | REGISTER_BAR)),
    ("msix-many", Surface.CONFIG, Aim.MEMORY, "PCIe 6.1, 7.7.2", "says that there are 2,048 interrupts",
     _msix(control=0x7FF)),
    ("no-capabilities", Surface.CONFIG, Aim.DENIAL, _SPEC, "hides all capabilities", _no_capabilities),
    ("type-net", Surface.DISCOVERY, Aim.DECEPTION, "virtio 1.4, 4.1.2", "says that the disk is a network device",
     _header(device=DEVICE_ID_BASE + DeviceType.NET)),
    ("other-generation", Surface.DISCOVERY, Aim.DECEPTION, "virtio 1.4, 4.1.2",
     "shows the device ids of a device whose capabilities lie elsewhere", _other_generation),
    ("vendor", Surface.DISCOVERY, Aim.DECEPTION, "virtio 1.4, 4.1.2", "says that the device is another vendor's",
     _header(vendor=0x8086)),
    ("bridge", Surface.DISCOVERY, Aim.DENIAL, _HEADER_SPEC, "says that the function is a bridge",
     _header(header_type=1)),
    ("mailbox-gone", Surface.DISCOVERY, Aim.DENIAL, "PCIe 6.1, 7.9.24", "hides the mailbox", _mailbox_gone),
    ("mailbox-loops", Surface.DISCOVERY, Aim.DENIAL, "PCIe 6.1, 7.6.3",
     "has the list of extended capabilities go round in circles", _mailbox_loops),
)


def host_space_attacks() -> Iterator[AttackSpec]:
    """All of these attacks."""
    for name, surface, aim, spec, what, patch in _LIES:
        yield host_attack(f"space-{name}", surface, aim, spec, f"The hypervisor {what}.",
                          lambda patch=patch: SpaceLie(patch))  # type: ignore[misc]
    everything = (_T.COMMON_CFG, _T.ISR_CFG, _T.DEVICE_CFG, _T.NOTIFY_CFG)
    for name, aim, moved, through, what in (
            ("all", Aim.DECEPTION, everything, False, "plays all registers itself, in a base address of its own"),
            ("device", Aim.DECEPTION, (_T.DEVICE_CFG,), False, "plays device configuration itself"),
            ("notify", Aim.DENIAL, (_T.NOTIFY_CFG,), False,
             "plays the notification registers itself, and drops what comes"),
            ("isr", Aim.DENIAL, (_T.ISR_CFG,), False, "plays the interrupt status itself"),
            ("proxy", Aim.DECEPTION, (_T.COMMON_CFG,), True,
             "plays common configuration itself, with other features, and hands the rest on by the window")):
        yield host_attack(f"fake-{name}", Surface.CONFIG, aim, "PCIe 6.1, 11.2.6", f"The hypervisor {what}.",
                          lambda moved=moved, through=through: FakeBar(moved, through=through))  # type: ignore[misc]
