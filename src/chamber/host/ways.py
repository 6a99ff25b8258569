"""Ways of a hypervisor to the registers of a device that it has given away: which lead anywhere is for the device.

Each takes names of common configuration's fields (virtio 1.4, 4.1.4.3), or of the legacy interface's (4.1.4.10).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Protocol, cast

from chamber.device.admin_commands import AdminCommands
from chamber.wire.admin import (
    CAPABILITY_HEADER,
    CREATE,
    HEADER,
    LEGACY_ACCESS,
    LEGACY_OPCODES,
    MODE_STOPPED,
    OBJECT_HEADER,
    PARTS_OBJECT,
    PARTS_REQUEST,
    STATUS,
    CapabilityKind,
    Group,
    ObjectType,
    Opcode,
    PartsRequest,
    PartsUse,
    build_bits,
)
from chamber.wire.split import SplitLayout
from chamber.wire.virtio import Feature, Status, bit
from chamber.wire.virtio_pci import (
    CAPABILITY,
    COMMON,
    LEGACY,
    LEGACY_PAGE,
    PCI_CFG_CAPABILITY,
    CapabilityType,
)

if TYPE_CHECKING:
    from chamber.device.virtio_pci import VirtioPci
    from chamber.host.hypervisor import Hypervisor

__all__ = ("Memory", "Owner", "Way", "Window")

_NOTIFY_AT: Final = 0x3000
_WINDOW_USUAL: Final = 0xE0
"""Where one could be in a function that has none."""
_MOST_PARTS: Final = 1 << 16
_USED: Final = {
    Group.SELF: frozenset({Opcode.LIST_USE, Opcode.DRIVER_CAP_SET}),
    Group.SRIOV: frozenset({Opcode.LIST_USE, Opcode.RESOURCE_OBJ_CREATE, Opcode.RESOURCE_OBJ_DESTROY,
                            Opcode.DEV_PARTS_GET, Opcode.DEV_PARTS_SET, Opcode.DEV_MODE_SET})}
"""Commands of an owner's, those of the legacy interface aside."""
_SAVED: Final = ("config_msix_vector", "queue_size", "queue_msix_vector", "queue_desc", "queue_driver", "queue_device",
                 "queue_enable", "device_status")
"""What a driver makes of a device with one queue, in an order in which it may be written."""
_DRIVER: Final = Status.ACKNOWLEDGE | Status.DRIVER


class Way(Protocol):
    """One way."""

    def read(self, name: str) -> int:
        """Read a field."""
        ...

    def write(self, name: str, value: int) -> None:
        """Write one."""
        ...

    def start(self, size: int, at: int) -> None:
        """Reset the device, and have it work on queue 0, all of whose areas lie from a page on."""
        ...

    def notify(self) -> None:
        """Notify queue 0."""
        ...

    def save(self) -> object:
        """Return what the driver has made of the device, as far as the way shows it."""
        ...

    def restore(self, saved: object) -> None:
        """Make that of it again."""
        ...


class _Modern:
    """By the registers of a modern device."""

    def read(self, name: str) -> int:
        field = COMMON[name]
        # No more than four bytes go through a window at once, and less is as good.
        return sum(int.from_bytes(self.load(field.offset + at, min(4, field.size)), "little") << 8 * at
                   for at in range(0, field.size, 4))

    def write(self, name: str, value: int) -> None:
        field = COMMON[name]
        for at in range(0, field.size, 4):
            part = value >> 8 * at & (1 << 8 * min(4, field.size)) - 1
            self.store(field.offset + at, part.to_bytes(min(4, field.size), "little"))

    def start(self, size: int, at: int) -> None:
        self.write("device_status", 0)
        self.write("device_status", _DRIVER)
        features = bit(Feature.VERSION_1, Feature.ACCESS_PLATFORM)
        for select in (0, 1):
            self.write("driver_feature_select", select)
            self.write("driver_feature", features >> 32 * select & 0xFFFFFFFF)
        self.write("device_status", _DRIVER | Status.FEATURES_OK)
        self.write("queue_select", 0)
        self.write("queue_size", size)
        areas = SplitLayout(size).legacy_areas(at)
        for name, address in zip(("queue_desc", "queue_driver", "queue_device"), areas, strict=True):
            self.write(name, address)
        self.write("queue_enable", 1)
        self.write("device_status", _DRIVER | Status.FEATURES_OK | Status.DRIVER_OK)

    def notify(self) -> None:
        self.store(_NOTIFY_AT, bytes(2))

    def save(self) -> object:
        self.write("queue_select", 0)
        features = []
        for select in (0, 1):
            self.write("driver_feature_select", select)
            features.append(self.read("driver_feature"))
        return {name: self.read(name) for name in _SAVED}, features

    def restore(self, saved: object) -> None:
        image, features = cast("tuple[dict[str, int], list[int]]", saved)
        self.write("device_status", 0)
        self.write("device_status", _DRIVER)
        for select, half in enumerate(features):
            self.write("driver_feature_select", select)
            self.write("driver_feature", half)
        self.write("device_status", _DRIVER | Status.FEATURES_OK)
        self.write("queue_select", 0)
        for name in _SAVED:
            self.write(name, image[name])

    def load(self, offset: int, size: int) -> bytes:
        raise NotImplementedError

    def store(self, offset: int, data: bytes) -> None:
        raise NotImplementedError


class Memory(_Modern):
    """Requests to the device's memory without the T bit."""

    def __init__(self, host: Hypervisor) -> None:
        self._host, self._front, self._bar = host, host.front, host.virtio.register_bar

    def load(self, offset: int, size: int) -> bytes:
        """Read registers."""
        return self._front.read_bar(self._bar, offset, size)

    def store(self, offset: int, data: bytes) -> None:
        """Write them."""
        with self._host.working():
            self._front.write_bar(self._bar, offset, data)


class Window(_Modern):
    """The window in configuration space (virtio 1.4, 4.1.4.9), or where it would be."""

    def __init__(self, host: Hypervisor) -> None:
        self._host, self._front, self._bar = host, host.front, host.virtio.register_bar
        self._at = host.virtio.capabilities.get(CapabilityType.PCI_CFG, _WINDOW_USUAL)

    def _aim(self, offset: int, size: int) -> int:
        for name, value in (("bar", self._bar), ("offset", offset), ("length", size)):
            field = CAPABILITY[name]
            self._front.write_config(self._at + field.offset, value.to_bytes(field.size, "little"))
        return self._at + PCI_CFG_CAPABILITY["pci_cfg_data"].offset

    def load(self, offset: int, size: int) -> bytes:
        """Read registers."""
        return self._front.read_config(self._aim(offset, size), size)

    def store(self, offset: int, data: bytes) -> None:
        """Write them."""
        with self._host.working():
            self._front.write_config(self._aim(offset, len(data)), data)


class _Group:
    """A group with the function as its only member."""

    exist = True

    def __init__(self, virtio: VirtioPci) -> None:
        self._virtio = virtio

    def member(self, number: int) -> VirtioPci | None:
        return self._virtio if number == 1 else None


class Owner:
    """Administration commands of the device's owner: its legacy interface (virtio 1.4, 2.12.1.2)."""

    def __init__(self, host: Hypervisor) -> None:
        # Whoever has its capabilities elsewhere is no device that a legacy driver knows.
        legacy = CapabilityType.COMMON_CFG in host.virtio.capabilities
        self._host = host
        self._commands = AdminCommands(_Group(host.virtio), legacy=legacy)
        for group, used in _USED.items():
            self._command(Opcode.LIST_USE, build_bits(used | LEGACY_OPCODES if group and legacy else used), group=group)
        limits = bytes(CAPABILITY_HEADER.pack(id=CapabilityKind.DEV_PARTS)) + b"\1\1"
        self._command(Opcode.DRIVER_CAP_SET, limits, group=Group.SELF)

    def _command(self, opcode: Opcode, data: bytes, room: int = 64, *, group: Group = Group.SRIOV) -> bytes:
        head = HEADER.pack(opcode=opcode, group_type=group, group_member_id=1)
        with self._host.working():
            return self._commands.execute(bytes(head) + data, room)[STATUS.size:]

    def load(self, offset: int, size: int) -> bytes:
        """Read legacy registers."""
        data = self._command(Opcode.LEGACY_COMMON_CFG_READ, bytes(LEGACY_ACCESS.pack(offset=offset)), size)
        return data[:size].ljust(size, b"\xff")

    def store(self, offset: int, data: bytes) -> None:
        """Write them."""
        self._command(Opcode.LEGACY_COMMON_CFG_WRITE, bytes(LEGACY_ACCESS.pack(offset=offset)) + data)

    def read(self, name: str) -> int:
        """Read a field."""
        field = LEGACY[name]
        return int.from_bytes(self.load(field.offset, field.size), "little")

    def write(self, name: str, value: int) -> None:
        """Write one."""
        field = LEGACY[name]
        self.store(field.offset, value.to_bytes(field.size, "little"))

    def start(self, size: int, at: int) -> None:  # noqa: ARG002 - a legacy device has one size
        """Reset the device, and have it work on queue 0, all of whose areas lie from a page on."""
        for name, value in (("device_status", 0), ("device_status", _DRIVER), ("driver_features", 0),
                            ("queue_select", 0), ("queue_address", at // LEGACY_PAGE),
                            ("device_status", _DRIVER | Status.DRIVER_OK)):
            self.write(name, value)

    def notify(self) -> None:
        """Notify queue 0."""
        self.write("queue_notify", 0)

    def stop(self) -> None:
        """Have the device touch nothing of its guest's."""
        self._command(Opcode.DEV_MODE_SET, bytes((MODE_STOPPED,)))

    def _object(self, use: PartsUse) -> bytes:
        head = {"type": ObjectType.DEV_PARTS, "id": 0}
        self._command(Opcode.RESOURCE_OBJ_DESTROY, bytes(OBJECT_HEADER.pack(**head)))
        self._command(Opcode.RESOURCE_OBJ_CREATE, bytes(CREATE.pack(**head)) + bytes(PARTS_OBJECT.pack(type=use)))
        return bytes(OBJECT_HEADER.pack(**head))

    def save(self) -> bytes:
        """Return the parts of the device."""
        request = PARTS_REQUEST.pack(kind=PartsRequest.ALL)
        request[:OBJECT_HEADER.size] = self._object(PartsUse.GET)
        return self._command(Opcode.DEV_PARTS_GET, bytes(request), _MOST_PARTS)

    def restore(self, saved: object) -> None:
        """Set its parts."""
        self.stop()
        self._command(Opcode.DEV_PARTS_SET, self._object(PartsUse.SET) + cast("bytes", saved))
        self._command(Opcode.DEV_MODE_SET, bytes(1))
