"""What a guest does with persistent memory: stores, makes it durable, and reads it back, where it can see it.

User-Mode Linux shows no memory of a device's, and can't make any durable (ARCH_HAS_PMEM_API). What is left there is
what the driver makes of what the device says that it is.
"""

from __future__ import annotations

import os
import random
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

from chamber.lab.agent import kernel
from chamber.lab.agent.disk import Direct, compare
from chamber.lab.agent.patience import patient

if TYPE_CHECKING:
    from collections.abc import Callable

    from chamber.lab.agent.report import Report

__all__ = ("STIMULI",)

_REGIONS: Final = Path("/sys/bus/nd/devices")
_DRIVER: Final = Path("/sys/bus/nd/drivers/nd_pmem")
_PIECES: Final = ((0, 2), (2, 2), (16, 8), (2048, 256))
"""Sectors of 512 bytes that are written: start and count."""
_SECONDS: Final = 0.3
_POWER_CUT_SECONDS: Final = 0.03


def _region(virtio: str) -> Path:
    """The region that the device became, which goes on behind the probe."""
    folder = (Path("/sys/bus/virtio/devices") / virtio).resolve()

    def found() -> Path | None:
        return next((path for path in _REGIONS.glob("region*") if path.resolve().is_relative_to(folder)), None)
    return kernel.wait_until("there is no region", found, _SECONDS)


def _disk(region: Path) -> str:
    """The disk that the region became."""
    name = kernel.wait_until("there is no disk", lambda: next((p.name for p in region.glob("*/block/*")), ""), _SECONDS)
    kernel.wait_for("the disk's file", Path("/dev") / name)
    return name


def use(virtio: str, report: Report) -> None:
    """Store, flush, survive a power cut, read back."""
    with report.step("region"):
        (_region(virtio) / "size").read_bytes()
    if not _DRIVER.exists():
        return
    dice = random.Random(5)  # noqa: S311 - test data
    pieces = {sector: dice.randbytes(count * 512) for sector, count in _PIECES}
    with report.step("disk"), Direct(_disk(_region(virtio)), os.O_RDWR) as memory:
        with report.step("store and read back"):
            for sector, data in pieces.items():
                memory.write(sector, data)
                compare(memory.read(sector, len(data) // 512), data, f"sector {sector}")
        # Only what was made durable without an error has to be there afterwards.
        with report.step("flush, cut the power, read back"):
            memory.flush()
            report.ask("power-cut")
            time.sleep(patient(_POWER_CUT_SECONDS))
            for sector, data in pieces.items():
                compare(memory.read(sector, len(data) // 512), data, f"sector {sector} after a power cut")


def inspect(virtio: str, report: Report) -> None:
    """Ask what the kernel tells."""
    with report.step("attributes of the region"):
        kernel.read_tree(_region(virtio).resolve(), depth=2)
    report.attempt("device attributes", kernel.read_tree, Path("/sys/bus/virtio/devices") / virtio, depth=1)


STIMULI: Final[dict[str, Callable[[str, Report], None]]] = {"use": use, "inspect": inspect}
