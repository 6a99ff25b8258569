"""The virtio devices of a Linux guest, as its sysfs or a list of them has them; and what a policy says to it.

A list of devices is JSON:

    {"schema": "chamber-devices/1", "devices": [
        {"name": "virtio0", "transport": "pci", "vendor": 6900, "type": 2, "position": "0000:00:04.0",
         "driver": "virtio_blk", "features": [32, 33]}]}

``vendor`` may be null, and so may ``driver``, of a device that none has taken.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from chamber.guest.policy import Admissions
from chamber.lab.observation import TargetError
from chamber.platform.transport import Identity
from chamber.wire.device_types import FEATURES
from chamber.wire.virtio import DeviceType, bit, feature_names

if TYPE_CHECKING:
    from pathlib import Path

    from chamber.guest.policy import Policy

__all__ = ("LinuxDevice", "as_json", "compare", "read_list", "read_sysfs")

SCHEMA: Final = "chamber-devices/1"
_MOST_BYTES: Final = 4 << 20


@dataclass(frozen=True, slots=True)
class LinuxDevice:
    """A virtio device of a guest.

    Attributes:
        name: as the kernel names it.
        identity: who it is.
        driver: the driver that has it, None without.
        features: what was negotiated.

    """

    name: str
    identity: Identity
    driver: str | None
    features: int


def read_sysfs(root: Path) -> list[LinuxDevice]:
    """Read a guest's devices from its sysfs, or a copy of it.

    Raises:
        TargetError: there is no virtio bus.

    """
    folder = root / "bus/virtio/devices"
    try:
        return [_device(path) for path in sorted(folder.iterdir())]
    except (OSError, ValueError) as error:
        raise TargetError(f"{folder}: {getattr(error, 'strerror', None) or error}") from error


def _device(path: Path) -> LinuxDevice:
    parent = path.resolve().parent
    bus = (parent / "subsystem").resolve().name
    # Of a PCI function, the kernel shows its subsystem's vendor as the virtio device's.
    owner = parent if bus == "pci" else path
    digits = (path / "features").read_text(encoding="ascii").strip()
    driver = path / "driver"
    return LinuxDevice(
        path.name,
        Identity("pci" if bus == "pci" else "mmio", int((owner / "vendor").read_text(encoding="ascii"), 16),
                 int((path / "device").read_text(encoding="ascii"), 16), parent.name),
        driver.resolve().name if driver.exists() else None,
        bit(*(number for number, digit in enumerate(digits[:64]) if digit == "1")))


def as_json(devices: list[LinuxDevice]) -> dict[str, Any]:
    """Return a list of devices as this module's description has it."""
    return {"schema": SCHEMA, "devices": [
        {"name": d.name, "transport": d.identity.transport, "vendor": d.identity.vendor, "type": d.identity.device_type,
         "position": d.identity.position, "driver": d.driver,
         "features": [number for number in range(64) if d.features >> number & 1]} for d in devices]}


def read_list(path: Path) -> list[LinuxDevice]:
    """Read a list of devices.

    Raises:
        TargetError: it is none.

    """
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise TargetError(f"{path}: a list of devices has at most {_MOST_BYTES} bytes")
        data = json.loads(path.read_text(encoding="utf-8"))
        if data["schema"] != SCHEMA:
            raise TargetError(f'{path}: schema is "{SCHEMA}"')
        return [_row(row) for row in data["devices"]]
    except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
        why = getattr(error, "strerror", None) or f"not a list of devices ({error})"
        raise TargetError(f"{path}: {why}") from error


def _row(row: dict[str, Any]) -> LinuxDevice:
    for key, kind in (("name", str), ("transport", str), ("type", int), ("position", str), ("features", list)):
        if not isinstance(row[key], kind):
            raise TypeError(key)
    if not all(isinstance(number, int) and 0 <= number < 64 for number in row["features"]):
        raise ValueError("features are numbers from 0 to 63")
    if not isinstance(row["vendor"], int | None) or not isinstance(row["driver"], str | None):
        raise TypeError("vendor and driver")
    return LinuxDevice(row["name"], Identity(row["transport"], row["vendor"], row["type"], row["position"]),
                       row["driver"], bit(*row["features"]))


def compare(policy: Policy, devices: list[LinuxDevice]) -> list[str]:
    """Say what of a guest is not as a policy has it; a line for each."""
    admissions = Admissions(policy)
    wrong = []
    for device in devices:
        rule = admissions.admit(device.identity)
        if device.driver is None:
            continue
        if rule is None:
            wrong.append(f"{device.name}: {device.driver} has it, and no rule admits it ({device.identity})")
            continue
        names = FEATURES.get(DeviceType(device.identity.device_type))
        for what, bits in (("was negotiated, and must not be", device.features & ~rule.visible(device.features)),
                           ("must be, and is not", rule.must & ~device.features)):
            wrong += [f"{device.name}: {name} {what} ({rule.where})"
                      for name in feature_names(bits, *(() if names is None else (names,)))]
    return wrong
