"""What a guest does with a source of random numbers."""

from __future__ import annotations

import os
import select
from pathlib import Path
from typing import TYPE_CHECKING, Final

from chamber.lab.agent import kernel
from chamber.lab.agent.patience import patient
from chamber.lab.agent.report import Silence, WrongData

if TYPE_CHECKING:
    from collections.abc import Callable

    from chamber.lab.agent.report import Report

__all__ = ("STIMULI", "read")

_DEVICE: Final = Path("/dev/hwrng")
_ABOUT: Final = Path("/sys/class/misc/hw_random")
_SECONDS: Final = 0.3
_CHANCE: Final = 16
"""Bytes from which on nothing repeats by chance."""


def read(fd: int, size: int) -> bytes:
    """Read without waiting for ever: what is not there yet is asked for, and comes in between."""
    data = b""
    for _ in range(50):
        try:
            data += os.read(fd, size - len(data))
        except BlockingIOError:
            select.select([], [], [], patient(_SECONDS) / 50)
        if len(data) == size:
            return data
    raise Silence(f"{len(data)} of {size} random bytes came")


def use(virtio: str, report: Report) -> None:  # noqa: ARG001 - one signature for all stimuli
    """Read random bytes: they repeat nothing, and least of all what the guest's memory held before."""
    seen: set[bytes] = set()
    with report.step("open"):
        kernel.wait_for("the source", _DEVICE)
        fd = os.open(_DEVICE, os.O_RDONLY | os.O_NONBLOCK)
        try:
            for size in (64, 64, 16, 256):
                with report.step(f"read {size} bytes"):
                    data = read(fd, size)
                    if data in seen or not any(data) or kernel.SECRET.marker[:_CHANCE] in data:
                        raise WrongData("random bytes that are none")
                    seen.add(data)
                if not report.fine:
                    break
        finally:
            os.close(fd)


def inspect(virtio: str, report: Report) -> None:
    """Ask which sources there are, and choose this one."""
    report.attempt("sysfs", kernel.read_tree, _ABOUT, depth=0)
    report.attempt("choose", kernel.write, _ABOUT / "rng_current", "virtio_rng.0")
    report.attempt("device attributes", kernel.read_tree, Path("/sys/bus/virtio/devices") / virtio, depth=0)
    use(virtio, report)


STIMULI: Final[dict[str, Callable[[str, Report], None]]] = {"use": use, "inspect": inspect}
