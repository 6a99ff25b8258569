"""How fast `chamber fuzz` is, on all processors, with what it costs to see memory errors and without."""

from __future__ import annotations

import os
import tempfile
import time
from pathlib import Path

from chamber.fuzz.campaign import Campaign
from chamber.fuzz.settings import Settings
from chamber.lab.kernel.build import build_kernel
from chamber.lab.kernel.config import KernelOptions
from chamber.lab.kernel.source import find_source

__all__ = ("fuzz_rows",)

SERIES = "7.3"
DEVICES = ("blk", "net", "console", "vsock")
SECONDS = 60.0
VIA = 570
"""Executions a second that VIA reported (Hetzelt and others, ACSAC 2021)."""


def fuzz_rows() -> list[str]:
    """Executions and lies a second of a search from an empty corpus, for each device, with KASAN and without."""
    source = find_source(SERIES)
    kernels = (("on", build_kernel(source, KernelOptions())),
               ("off", build_kernel(source, KernelOptions(kasan=False, ubsan=False))))
    return [_row(device, kasan, kernel.name) for device in DEVICES for kasan, kernel in kernels]


def _row(device: str, kasan: str, kernel: str) -> str:
    with tempfile.TemporaryDirectory() as folder, Campaign(Path(folder) / "campaign", Settings(device, "uml", kernel),
                                                           jobs=os.cpu_count() or 1) as campaign:
        while not campaign.counts().executions:
            time.sleep(0.1)
            campaign.mend()
        before, begin = campaign.counts(), time.monotonic()
        time.sleep(SECONDS)
        after, seconds = campaign.counts(), time.monotonic() - begin
    executions, lies = (after.executions - before.executions) / seconds, (after.lies - before.lies) / seconds
    return f"| {device} | {kasan} | {executions:,.0f} | {lies:,.0f} | {executions / VIA:.2f} |"
