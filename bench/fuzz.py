"""How fast `chamber fuzz` is, on all processors, with what it costs to see memory errors and without."""

from __future__ import annotations

import os
import subprocess
import tempfile
import time
from pathlib import Path

from bench.placement import on_one_processor
from chamber.fuzz.campaign import Campaign
from chamber.fuzz.settings import Settings
from chamber.lab.kernel.build import build_kernel
from chamber.lab.kernel.config import KernelOptions
from chamber.lab.kernel.source import find_source

__all__ = ("fuzz_rows",)

SERIES = "7.3"
DEVICES = ("blk", "net", "console", "vsock")
SECONDS = 60.0
HANDED = 20_000
VIA = 570
"""Executions a second that VIA reported (Hetzelt and others, ACSAC 2021)."""


def fuzz_rows() -> list[str]:
    """Executions and lies a second of a search from an empty corpus, for each device, with KASAN and without."""
    source = find_source(SERIES)
    kernels = (("on", build_kernel(source, KernelOptions())),
               ("off", build_kernel(source, KernelOptions(kasan=False, ubsan=False))))
    return [_row(device, kasan, kernel.name) for device in DEVICES for kasan, kernel in kernels]


def _handed_over() -> float:
    """Microseconds in which a byte goes to another process and back, both on one processor: much of a search is that.

    Two machines differ by twice in it, and so does one at different times of a day.
    """
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0) as other:
        assert other.stdin is not None
        assert other.stdout is not None
        begin = time.monotonic()
        for _ in range(HANDED):
            other.stdin.write(b".")
            other.stdout.read(1)
        seconds = time.monotonic() - begin
        other.stdin.close()
    return seconds / HANDED * 1e6


def _row(device: str, kasan: str, kernel: str) -> str:
    hand_over = on_one_processor(_handed_over)
    before_it = hand_over()
    with tempfile.TemporaryDirectory() as folder, Campaign(Path(folder) / "campaign", Settings(device, "uml", kernel),
                                                           jobs=os.cpu_count() or 1) as campaign:
        while not campaign.counts().executions:
            time.sleep(0.1)
            campaign.mend()
        before, begin = campaign.counts(), time.monotonic()
        time.sleep(SECONDS)
        after, seconds = campaign.counts(), time.monotonic() - begin
    executions, lies = (after.executions - before.executions) / seconds, (after.lies - before.lies) / seconds
    handed = (before_it + hand_over()) / 2
    return f"| {device} | {kasan} | {executions:,.0f} | {lies:,.0f} | {executions / VIA:.2f} | {handed:.1f} |"
