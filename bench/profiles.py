"""What the protections of the guest cost: the same use of the same honest device, by each profile in turn."""

from __future__ import annotations

import contextlib
import statistics
import time
from typing import TYPE_CHECKING, Any, Final

from chamber.device.catalogue import TYPES, make_device
from chamber.guest.machine import GuestMachine
from chamber.guest.profile import PROFILES
from chamber.lab.model_stimuli import DRIVERS, STIMULI
from chamber.lab.model_transport import ModelTransport
from chamber.wire.virtio import DeviceType

if TYPE_CHECKING:
    from collections.abc import Iterator

    from chamber.device.base import Device

__all__ = ("profile_rows",)

_ROUNDS: Final = 15
_OPTIONS: Final[dict[DeviceType, dict[str, Any]]] = {DeviceType.BALLOON: {"target": 12}}


@contextlib.contextmanager
def _device(device: DeviceType) -> Iterator[Device]:
    made = make_device(device, **_OPTIONS.get(device, {}))
    try:
        yield made
    finally:
        made.reset()
        made.close()


def _seconds(device: DeviceType, profile: str) -> float:
    """Time one use, with the device half that serves it, without probe and removal."""
    with contextlib.closing(GuestMachine(PROFILES[profile], 1)) as machine, _device(device) as made:
        driver = DRIVERS[device](machine, ModelTransport(machine, made))
        driver.probe()
        begin = time.perf_counter()
        STIMULI[device]["use"](driver, machine, made.host_action)
        seconds = time.perf_counter() - begin
        driver.remove()
    return seconds


def profile_rows() -> list[str]:
    """Milliseconds of one use under `bare`, and the others' as multiples of it."""
    rows = []
    for device in TYPES:
        times: dict[str, list[float]] = {name: [] for name in PROFILES}
        for _ in range(_ROUNDS):
            for name in PROFILES:
                times[name].append(_seconds(device, name))
        base = times["bare"]
        ratios = {name: statistics.median(a / b for a, b in zip(times[name], base, strict=True)) for name in PROFILES}
        rows.append(f"| {device.short} | {1000 * statistics.median(base):.2f} | {ratios['bounced']:.2f} | "
                    f"{ratios['hardened']:.2f} |")
    return rows
