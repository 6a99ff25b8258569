"""What a guest does with any device."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

from chamber.lab.agent import kernel
from chamber.lab.agent.patience import patient

if TYPE_CHECKING:
    from collections.abc import Callable

    from chamber.lab.agent.report import Report

__all__ = ("STIMULI",)

_SETTLE_SECONDS: Final = 0.1


def probe(virtio: str, report: Report) -> None:
    """See that a driver took the device."""
    report.attempt("driver bound", kernel.driver_of, virtio)


def rebind(virtio: str, report: Report) -> None:
    """Remove the driver and probe again, a few times."""
    for turn in range(3):
        report.attempt(f"remove and probe, turn {turn + 1}", kernel.rebind_driver, virtio, 1)


def suspend(virtio: str, report: Report) -> None:  # noqa: ARG001 - one signature for all stimuli
    """Suspend the guest to idle and wake it; the host presses the button.

    A driver's work after the probe is let come to its end first: suspending in the middle of it hangs the console
    driver of Linux 6.1 with an honest host as well.
    """
    for turn in range(2):
        time.sleep(patient(_SETTLE_SECONDS))
        report.ask("wake")
        report.attempt(f"suspend and resume, turn {turn + 1}", kernel.write, Path("/sys/power/state"), "freeze")
        report.ask("awake")


def rescan(virtio: str, report: Report) -> None:  # noqa: ARG001 - as above
    """Take the functions off the PCI bus and look for them again: everything about them is read anew."""
    for function in kernel.pci_functions():
        with report.step(f"read configuration space of {function.name}"):
            (function / "config").read_bytes()
        report.attempt(f"remove {function.name}", kernel.write, function / "remove", "1")
    report.attempt("rescan", kernel.write, Path("/sys/bus/pci/rescan"), "1")


STIMULI: Final[dict[str, Callable[[str, Report], None]]] = {
    "probe": probe, "rebind": rebind, "rescan": rescan, "suspend": suspend}
