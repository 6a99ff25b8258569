"""Which lines of source an address of a running kernel stands for, and which lines take a value from the host.

Modules of user-mode-linux are compiled for the large code model: the hook is called through a register, so that no
relocation names the calls. They are found in the disassembly.
"""

from __future__ import annotations

import bisect
import json
import re
import shutil
import subprocess
import tempfile
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from chamber.lab.kernel.drivers import SOURCES
from chamber.lab.kernel.module_file import module_name
from chamber.lab.observation import TargetError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from chamber.lab.kernel.store import BuiltKernel
    from chamber.wire.virtio import DeviceType

__all__ = ("DriverLines", "Place", "Places", "locate", "read_places")

_HOOK_NAME: Final = "__sanitizer_cov_trace_pc"
_HOOK: Final = 0x0800_0000
_FIRST: Final = 0x1000_0000
_SPACING: Final = 0x0100_0000
_SECTION: Final = re.compile(r"^\s*\d+ (\.(?:init\.|exit\.)?text[\w.]*)\s", re.MULTILINE)
_FUNCTION: Final = re.compile(r"^([0-9a-f]+) <([^.>]+)(\.cold)?")
_INSTRUCTION: Final = re.compile(r"^\s*([0-9a-f]+):\t(?:[0-9a-f]{2} )+ *\t(\S+)\s*(.*)")
_ROW: Final = re.compile(r"^(\S+\.[ch])\s+(\d+)\s+0x([0-9a-f]+)")
_LOAD: Final = re.compile(r"\$0x([0-9a-f]+),%(\w+)$")
_WRITTEN: Final = re.compile(r",%(\w+)$|^%(\w+)$")
_READS_ONLY: Final = frozenset({"cmp", "cmpl", "cmpq", "cmpb", "cmpw", "test", "testl", "testq", "testb", "push"})
_LEAVES: Final = re.compile(r"^(?:jmp|ret)")

SITE: Final = re.compile(
    r"\b(?:virtio_cread\w*|virtio_has_feature|virtqueue_get_buf\w*|virtio_get_shm_region|virtio(?:16|32|64)_to_cpu"
    r"|le(?:16|32|64)_to_cpup?|p9pdu_v?readf|pdu_read|p9_parse_header)\s*\(|\bout(?:arg|h)p?(?:->|\.)|->out\.h\.")
"""Where a driver takes a value from the device: configuration, features, lengths and ids of used buffers, and fields of
what was received: little-endian ones, what 9p unpacks, what FUSE hands back in its host's own order."""

Place = tuple[str, str, int]
"""Module, section, offset in it: what stays the same from boot to boot."""


@dataclass(frozen=True, slots=True)
class DriverLines:
    """How much of a driver was reached.

    Attributes:
        device: which driver.
        lines: lines with code, by file.
        covered: those that were reached.
        sites: lines that take a value from the host.
        reached: those that were reached.

    """

    device: DeviceType
    lines: dict[str, frozenset[int]]
    covered: dict[str, frozenset[int]]
    sites: dict[str, frozenset[int]]
    reached: dict[str, frozenset[int]]

    def counts(self) -> tuple[int, int, int, int]:
        """Return how many lines were covered, of how many, and how many sites were reached, of how many."""
        covered, lines, reached, sites = (sum(map(len, part.values()))
                                          for part in (self.covered, self.lines, self.reached, self.sites))
        return covered, lines, reached, sites


class Places:
    """All places of a kernel's modules, and the lines behind each.

    Args:
        lines: for each place, its (file, line) pairs.
        sites: for each file, the lines that take a value from the host.

    """

    def __init__(self, lines: Mapping[Place, Iterable[tuple[str, int]]], sites: Mapping[str, Iterable[int]]) -> None:
        self.lines = {place: tuple(pairs) for place, pairs in lines.items()}
        self._sites = {file: frozenset(numbers) for file, numbers in sites.items()}

    def report(self, reached: Iterable[Place]) -> list[DriverLines]:
        """Return, for each driver of the kernel, which lines were reached."""
        all_lines: dict[str, set[int]] = defaultdict(set)
        covered: dict[str, set[int]] = defaultdict(set)
        for pairs in self.lines.values():
            for file, line in pairs:
                all_lines[file].add(line)
        for place in reached:
            for file, line in self.lines.get(place, ()):
                covered[file].add(line)
        drivers = []
        for device, patterns in SOURCES.items():
            files = sorted(f for f in all_lines if any(Path(f).match(p) for p in patterns))
            if files:
                sites = {f: frozenset(self._sites.get(f, frozenset()) & all_lines[f]) for f in files}
                drivers.append(DriverLines(
                    device, {f: frozenset(all_lines[f]) for f in files}, {f: frozenset(covered[f]) for f in files},
                    sites, {f: frozenset(sites[f] & covered[f]) for f in files}))
        return drivers


def read_places(kernel: BuiltKernel) -> Places:
    """Return the places of a kernel, found once and kept with it.

    Raises:
        TargetError: the kernel does not count, or the binutils are missing.

    """
    if "coverage" not in kernel.options:
        raise TargetError(f"{kernel.name} was built without coverage")
    kept = kernel.folder / "places.json"
    if not kept.exists():
        for tool in ("ld", "objdump"):
            if shutil.which(tool) is None:
                raise TargetError(f"{tool} is missing: as root, apt-get install binutils")
        lines: dict[Place, list[tuple[str, int]]] = {}
        source = kernel.folder / "source"
        files = {path.name: str(path.relative_to(source)) for path in source.rglob("*.c")}
        for module in kernel.modules:
            lines.update(_read_module(kernel.folder / "debug" / module, files))
        sites = {file: _sites(source / file) for file in files.values()}
        part = kept.with_suffix(".part")
        part.write_text(json.dumps({"lines": [[*place, pairs] for place, pairs in lines.items()], "sites": sites}),
                        encoding="utf-8")
        part.rename(kept)
    known = json.loads(kept.read_text(encoding="utf-8"))
    return Places({(module, section, offset): [(file, line) for file, line in pairs]
                   for module, section, offset, pairs in known["lines"]}, known["sites"])


def locate(addresses: Iterable[int], sections: Mapping[str, Mapping[str, int]]) -> set[Place]:
    """Return the places behind addresses of a running kernel, by where its modules' code is; others are left out."""
    known = sorted((start, module, section) for module, parts in sections.items() for section, start in parts.items())
    starts = [start for start, _, _ in known]
    found: set[Place] = set()
    for address in addresses:
        at = bisect.bisect_right(starts, address) - 1
        if at >= 0 and address - starts[at] < _SPACING:
            found.add((known[at][1], known[at][2], address - starts[at]))
    return found


def _sites(path: Path) -> list[int]:
    text = path.read_text(encoding="utf-8", errors="replace")
    return [number for number, line in enumerate(text.splitlines(), 1)
            if SITE.search(line) and not line.lstrip().startswith(("*", "/*", "//"))]


def _read_module(path: Path, files: Mapping[str, str]) -> dict[Place, list[tuple[str, int]]]:
    """Link a module so that each section has addresses of its own, then read instructions and line numbers."""
    headers = _run("objdump", "-h", str(path))
    sections = _SECTION.findall(headers)
    if _HOOK_NAME not in _run("nm", "-u", str(path)):
        return {}
    with tempfile.TemporaryDirectory(prefix="chamber-places-") as name:
        script, linked = Path(name, "script"), Path(name, "linked")
        placed = "\n".join(f"{section} {_FIRST + i * _SPACING:#x} : {{ *({section}) }}"
                           for i, section in enumerate(sections))
        script.write_text(f"SECTIONS {{ {placed} }}\n{_HOOK_NAME} = {_HOOK:#x};\n", encoding="ascii")
        _run("ld", "-T", str(script), "--unresolved-symbols=ignore-all", "--no-check-sections",
             "--no-warn-rwx-segments", "-o", str(linked), str(path))
        extents = _extents(_run("objdump", "-d", str(linked)).splitlines())
        rows = _run("objdump", "--dwarf=decodedline", "--wide", str(linked)).splitlines()
    starts = [start for start, _, _ in extents]
    found: dict[int, set[tuple[str, int]]] = {place: set() for _, _, place in extents}
    for file, line, address in _rows(rows):
        at = bisect.bisect_right(starts, address) - 1
        if at >= 0 and address < extents[at][1] and file in files:
            found[extents[at][2]].add((files[file], line))
    module = module_name(path)
    return {(module, sections[(place - _FIRST) // _SPACING], (place - _FIRST) % _SPACING): sorted(pairs)
            for place, pairs in found.items()}


def _extents(listing: Iterable[str]) -> list[tuple[int, int, int]]:
    """Return (start, end, place) of the code that is run if the hook was called and came back to `place`.

    A block ends where control never flows on. What the compiler puts there for KASAN's reports has no hook, and the
    lines of the accesses that it reports: they must not count as reached.
    """
    extents: list[tuple[int, int, int]] = []
    hooks: set[str] = set()  # registers that hold the hook's address
    ever: dict[str, set[str]] = defaultdict(set)  # those that did anywhere in a function
    function = ""
    entry: int | None = None
    begin = place = last = 0
    expects_place = False

    def close(end: int) -> None:
        nonlocal place
        if place:
            extents.append((begin, end, place))
        place = 0

    for line in listing:
        head = _FUNCTION.match(line)
        if head is not None:
            entry, function = int(head[1], 16), head[2]
            # What is seldom run lies apart from its function, and has its registers.
            hooks = set(ever[function]) if head[3] else set()
            close(entry)
            continue
        parsed = _INSTRUCTION.match(line)
        if parsed is None:
            continue
        address, name, operands = int(parsed[1], 16), parsed[2], parsed[3].partition("#")[0].strip()
        last = address
        if expects_place:
            start = entry if entry is not None else address
            close(start)
            begin, place, entry = start, address, None
            expects_place = False
        if name.startswith("call"):
            expects_place = operands.lstrip("*%") in hooks or f"<{_HOOK_NAME}>" in operands
            continue
        load = _LOAD.search(operands)
        if name == "movabs" and load is not None and int(load[1], 16) == _HOOK:
            hooks.add(load[2])
            ever[function].add(load[2])
        elif name not in _READS_ONLY and (written := _WRITTEN.search(operands)) is not None:
            hooks.discard(written[1] or written[2])
        if _LEAVES.match(name):
            close(address + 1)
            # What follows is reached from elsewhere in the function, most likely with the hook where it mostly is.
            hooks = set(ever[function])
    close(last + 1)
    return sorted(extents)


def _rows(lines: Iterable[str]) -> Iterator[tuple[str, int, int]]:
    for line in lines:
        row = _ROW.match(line)
        if row is not None and int(row[2]):
            yield row[1], int(row[2]), int(row[3], 16)


def _run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False,
                          stdin=subprocess.DEVNULL)
    if done.returncode:
        raise TargetError(f"{command[0]}: {(done.stderr.strip().splitlines() or ['failed'])[0]}")
    return done.stdout
