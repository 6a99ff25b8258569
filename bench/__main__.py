"""Print what Chamber costs on this machine, and write it to docs/benchmarks.md: ``make bench``."""

from __future__ import annotations

import contextlib
import datetime
import os
import statistics
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from bench.attest import attest_rows, link_rows
from bench.fuzz import fuzz_rows
from bench.placement import on_one_processor
from bench.profiles import profile_rows
from bench.ring import reads_a_second
from bench.scale import chain_rows, device_rows, draw, queue_rows
from bench.start import start_rows
from bench.storage import disk_rows, file_rows
from bench.vfio import vfio_rows
from chamber.device.catalogue import make_device
from chamber.fuzz.settings import CampaignError
from chamber.lab.observation import TargetError
from chamber.lab.uml_kernel import LOUD, find_kernel
from chamber.lab.uml_runner import UmlRunner
from chamber.wire.virtio import DeviceType

if TYPE_CHECKING:
    from collections.abc import Callable

    from bench.scale import Points

RUNS = 3
CYCLES = 300
DOCS = Path(__file__).resolve().parent.parent / "docs"
OUT = DOCS / "benchmarks.md"
TOGETHER = ", one processor"
STORAGE = ["| random reads | Chamber, requests/s | {0}, requests/s | Chamber, MB/s | {0}, MB/s | ratio |",
           "|---|---|---|---|---|---|"]

DISKS = (
    "One stock user-mode-linux guest each, fio with O_DIRECT, the same image in the page cache, turn about; "
    "medians of 3. First wherever the scheduler puts guest and back end, then with both on one processor. At depth 1 "
    "the two take turns, and what decides is how they wake each other: a processor that has gone to sleep takes far "
    "longer to come back than this one takes to switch. Chamber stays awake for its guest where there is a processor "
    "for that, the other back end sleeps. On one processor neither waits, and what is left is the work: 12 µs of a "
    "request are the interpreter's. At 1 MiB a request has up to 256 descriptors, each parsed by the interpreter.")
FILES = (
    "The same with a file of a shared directory, mounted by the stock virtiofs driver. A FUSE request takes the "
    "interpreter 30 µs, decoding included, where virtiofsd takes 3; what the guest and the interrupt cost is the "
    "same for both.")
VFIO = (
    "A stock kernel in QEMU, all DMA bounced; a disk of the same image and an interface of each side in one guest, "
    "turn about; medians of 3. QEMU's own devices run in the process that emulates the processor. One over "
    "vfio-user is told of each doorbell by a message, reaches memory by its own mapping, and interrupts by an "
    "eventfd: two wake-ups of another process for a request, beside what the interpreter takes.")
PROTECTIONS = (
    "One use of each honest device on the model, device included, without probe and removal; the other profiles as "
    "multiples of `bare`, paired, medians.")
SCALE = (
    "![The three tables below, drawn](scale.svg)\n\nQueue sizes: 4 KiB reads by the device half, and the most that "
    "it allocates meanwhile. It keeps no copy of the ring.")
DEVICE_COUNT = (
    "Disks of one stock guest, all read at once by fio at depth 4 each, served by one process; and what the process"
    " grew by.")

HOW = "`make bench`, or `make bench ONLY=WORD` for tables with a word in their titles. Compare within a table alone."
FUZZING = (
    "`chamber fuzz` on Linux 7.3 from an empty corpus, one search for each processor, over the first minute: what "
    "AFL++, the device, the guest and its starts take is all in it, and so is confirming what is found. An execution "
    "is a session of requests, a probe with one, or a device plugged in and out. The last column says how fast the "
    "machine was then: a byte to another process and back, both on one processor, right before and after.")
STARTS = (
    "A kernel that notices (KASAN, UBSAN, coverage) from its start until it has probed a device, and until its process "
    "is over; medians of 9 boots, with the modules of one device type, guest and device on one processor.")
ATTEST = (
    "A guest's verifier takes a net device up to RUN: certificates, challenge, measurements, a session, six keys of an "
    "IDE stream, lock, report, start; both ends in one process, median of 15. Beside it what three signatures, five "
    "verifications and four operations of the key exchange, all of P-384, take `openssl speed` in the same run.")
LINK = (
    "Memory writes with the T bit, sealed at one end of an IDE stream and opened at the other, interpreted; beside it "
    "AES-256-GCM alone by `openssl speed`, over each byte twice. What a packet takes is the interpreter's.")
PROBES = (
    f"Median of {RUNS} runs of {CYCLES} cycles on one boot, guest and devices on one processor, as in an assessment.")


def cycles(options: tuple[str, ...]) -> list[str]:
    """Probe and remove cycles a second, for each device as assessments have it, on one guest."""
    kernel = find_kernel()
    return [_cycle_row(device, device.short, UmlRunner(kernel, options=options), options) for device in kernel.devices]


def plain_cycles() -> list[str]:
    """The same for the device that costs the kernel least: a console of one port, without features."""
    runner = UmlRunner(find_kernel(), options=(), make_device=partial(make_device, features=0))
    return [_cycle_row(DeviceType.CONSOLE, "console, one port", runner, ())]


def _cycle_row(device: DeviceType, name: str, runner: UmlRunner, options: tuple[str, ...]) -> str:
    rates = []
    with contextlib.closing(runner):
        guest = runner.guest()
        for _ in range(RUNS):
            answer = guest.request(120, do="cycle", platform=guest.platform[device], count=CYCLES)
            if answer is None or "seconds" not in answer:
                raise TargetError(f"{name}: no cycles: {answer}")
            rates.append(CYCLES / float(answer["seconds"]))
    return (f"| {name} | {' '.join(options) or 'none'} | {statistics.median(rates):.0f} | "
            f"{min(rates):.0f} to {max(rates):.0f} |")


def memory() -> list[str]:
    """Memory of one guest and of the process that serves it, pages shared between them counted once."""
    runner = UmlRunner(find_kernel())
    with contextlib.closing(runner):
        guest = runner.guest()
        members = [os.getpid(), *(int(p.name) for p in Path("/proc").iterdir()
                                  if p.name.isdigit() and _group(p) == guest.pid)]
        sizes = [_proportional(pid) for pid in members]
    return [f"| guest and its devices, {len(members)} processes | {sum(sizes) / 1024:.0f} MB |"]


def _group(process: Path) -> int:
    try:
        return os.getpgid(int(process.name))
    except ProcessLookupError:
        return 0


def _proportional(pid: int) -> int:
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii").splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1])
    return 0


def assess(target: str) -> str:
    """Wall time of a whole assessment."""
    with tempfile.TemporaryDirectory() as out:
        command = [sys.executable, "-c", "from chamber.cli.main import main; main()", "assess", "--target", target,
                   "--out", out]
        begin = time.monotonic()
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        seconds = time.monotonic() - begin
    first = next((line for line in done.stderr.splitlines() if "attacks" in line), "")
    return f"| {target} | {seconds:.0f} s | {first.partition(': ')[2]} |"


def ring_rows() -> list[str]:
    """What the device half of a queue does."""
    rate = statistics.median(reads_a_second() for _ in range(RUNS))
    return [f"| blk from memory, driver and device | {rate:,.0f} |"]


Step = tuple[str, str, list[str], list["Callable[[], list[str]]"]]


def make_steps(curves: list[Points]) -> list[Step]:
    """Return each table: its title, what is said of it, its head, and what measures its rows."""
    def curve(measure: Callable[[], tuple[list[str], Points]]) -> Callable[[], list[str]]:
        def run() -> list[str]:
            rows, points = measure()
            curves.append(points)
            return rows
        return run

    return [
        ("## The device half of a queue", "", ["| 4 KiB reads a second, interpreted, one process | |", "|---|---|"],
         [ring_rows]),
        ("## Memory", "Proportional set size; before this process loads what the rest needs.",
         ["| what | size |", "|---|---|"], [memory]),
        ("## Disks: Chamber and qemu-storage-daemon", DISKS,
         [STORAGE[0].format("qemu-storage-daemon"), STORAGE[1]],
         [disk_rows, on_one_processor(partial(disk_rows, TOGETHER))]),
        ("## Files: Chamber and virtiofsd", FILES,
         [STORAGE[0].format("virtiofsd"), STORAGE[1]],
         [file_rows, on_one_processor(partial(file_rows, TOGETHER))]),
        ("## Devices over vfio-user and QEMU's own", VFIO,
         ["| work | Chamber, a second | QEMU, a second | ratio |", "|---|---|---|---|"], [vfio_rows]),
        ("## The guest's protections", PROTECTIONS,
         ["| device | bare, ms | bounced | hardened |", "|---|---|---|---|"], [profile_rows]),
        ("## Cost against scale", SCALE,
         ["| queue size | reads a second | µs a read | bytes |", "|---|---|---|---|"], [curve(queue_rows)]),
        ("### Chains", "One read scattered over so many descriptors of 64 bytes.",
         ["| descriptors | µs | µs a descriptor |", "|---|---|---|"], [curve(chain_rows)]),
        ("### Devices", DEVICE_COUNT,
         ["| disks | requests a second | MB |", "|---|---|---|"], [curve(device_rows)]),
        ("## Probe and remove on one guest", PROBES,
         ["| device | kernel options | cycles a second | range |", "|---|---|---|---|"],
         [on_one_processor(call) for call in (plain_cycles, partial(cycles, ()), partial(cycles, LOUD))]),
        ("## Starts", STARTS,
         ["| kernel | bus | device | probed after | range | off after |", "|---|---|---|---|---|---|"],
         [on_one_processor(start_rows)]),
        ("## Fuzzing", FUZZING,
         ["| device | KASAN and UBSAN | executions a second | lies a second | of VIA's 570 | hand-over, µs |",
          "|---|---|---|---|---|---|"], [fuzz_rows]),
        ("## From connect to RUN", ATTEST,
         ["| messages | bytes | ms | ms by openssl speed | share |", "|---|---|---|---|---|"], [attest_rows]),
        ("## Through an encrypted link", LINK,
         ["| bytes of a write | Chamber, MB/s | openssl speed, MB/s | ratio |", "|---|---|---|---|"], [link_rows]),
        ("## A whole assessment", "After set-up.", ["| target | wall time | plan |", "|---|---|---|"],
         [lambda: [assess("model")], lambda: [assess("uml")]]),
    ]


def _written() -> dict[str, list[str]]:
    """Return what was written down before, by title."""
    sections: dict[str, list[str]] = {}
    lines: list[str] = []
    for line in OUT.read_text(encoding="utf-8").splitlines() if OUT.exists() else []:
        if line.startswith("##"):
            lines = sections[line] = []
        lines.append(line)
    return sections


def main() -> None:
    """Measure everything, or those tables alone whose titles have one of the words given; print it, write it down."""
    console = Console()
    words = [word.lower() for word in sys.argv[1:]]
    where = f"{os.cpu_count()} processors, Python {sys.version.split()[0]}"
    today = datetime.datetime.now(tz=datetime.UTC).date()
    lines = ["# Benchmarks", "", HOW, ""]
    before = _written()
    curves: list[Points] = []
    for title, note, head, calls in make_steps(curves):
        if words and not any(word in title.lower() for word in words):
            lines += before.get(title, [])
            continue
        console.print(title, markup=False)
        lines += [title, "", f"{today}, {where}. {note}".rstrip(), "", *head]
        for call in calls:
            try:
                rows = call()
            except (CampaignError, TargetError) as missing:
                rows = [f"| left out: {missing} |"]
            console.print("\n".join(rows), markup=False)
            lines += rows
        lines.append("")
    if len(curves) == 3:
        draw(DOCS / "scale.svg", *curves)
    OUT.write_text("\n".join(lines), encoding="utf-8")
    console.print(f"written to {OUT}", markup=False)


if __name__ == "__main__":
    main()
