"""What a guest does with persistent memory that it can't see: user-mode-linux shows it no memory of a device's.

So nothing is stored, and nothing made durable, which it can't ask for without (ARCH_HAS_PMEM_API). What is left is what
the driver makes of what the device says that it is.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

from chamber.lab.agent import kernel
from chamber.lab.agent.patience import patient
from chamber.lab.agent.report import Silence

if TYPE_CHECKING:
    from collections.abc import Callable

    from chamber.lab.agent.report import Report

__all__ = ("STIMULI",)

_REGIONS: Final = Path("/sys/bus/nd/devices")
_SECONDS: Final = 0.3


def _region(virtio: str) -> Path:
    """The region that the device became, which goes on behind the probe."""
    folder = (Path("/sys/bus/virtio/devices") / virtio).resolve()
    deadline = time.monotonic() + patient(_SECONDS)
    while True:
        for path in _REGIONS.glob("region*"):
            if path.resolve().is_relative_to(folder):
                return path
        if time.monotonic() > deadline:
            raise Silence("there is no region")
        time.sleep(0.002)


def use(virtio: str, report: Report) -> None:
    """See that there is a region, and how large it is."""
    with report.step("region"):
        (_region(virtio) / "size").read_bytes()


def inspect(virtio: str, report: Report) -> None:
    """Ask what the kernel tells."""
    with report.step("attributes of the region"):
        kernel.read_tree(_region(virtio).resolve(), depth=2)
    report.attempt("device attributes", kernel.read_tree, Path("/sys/bus/virtio/devices") / virtio, depth=1)


STIMULI: Final[dict[str, Callable[[str, Report], None]]] = {"use": use, "inspect": inspect}
