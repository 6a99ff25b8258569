"""A root file system for guests in QEMU: the interpreter that runs here, Chamber's agent, and nothing else.

It is an archive as the kernel unpacks it into memory (cpio, "newc"; Documentation/driver-api/early-userspace). Which
files of the interpreter the agent needs, it is asked itself.
"""

from __future__ import annotations

import json
import os
import re
import stat
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import TYPE_CHECKING, Final

import chamber
from chamber.lab.observation import TargetError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

__all__ = ("INIT", "cpio", "python_path", "write_initramfs")

INIT: Final = "/init"
_LIBRARY: Final = re.compile(r"(/\S+)(?: \(0x|$)")
_ASK: Final = """
import json, sys
sys.path[:0] = sys.argv[1].split(":")
import importlib, pkgutil
for name in sys.argv[2:]:
    importlib.import_module(name)
import chamber.lab.agent, select, traceback
for module in pkgutil.walk_packages(chamber.lab.agent.__path__, "chamber.lab.agent."):
    importlib.import_module(module.name)
import encodings.ascii, encodings.utf_8, encodings.latin_1, encodings.idna
print(json.dumps([[m.__file__, getattr(m, "__cached__", None)] for m in list(sys.modules.values())
                  if getattr(m, "__file__", None)]))
"""
_FOLDERS: Final = ("/dev", "/proc", "/sys", "/tmp", "/run", "/mnt")  # noqa: S108 - in the guest
_NODES: Final = (("/dev/console", 5, 1), ("/dev/null", 1, 3), ("/dev/ttyS1", 4, 65))


def python_path() -> list[str]:
    """Where the interpreter finds Chamber, and what it needs; the same in a guest as here."""
    found = [str(Path(chamber.__file__).resolve().parent.parent), *map(sysconfig.get_path, ("purelib", "platlib"))]
    return list(dict.fromkeys(found))


def _needed(imports: Sequence[str]) -> Iterator[Path]:
    """Files of the interpreter, of its libraries, of the agent, and of further modules."""
    python = Path(os.path.realpath(sys.executable))
    try:
        said = subprocess.run([python, "-S", "-s", "-c", _ASK, ":".join(python_path()), *imports], capture_output=True,
                              text=True, check=True, timeout=60, env={"PATH": "/usr/bin:/bin"}).stdout
    except (OSError, subprocess.SubprocessError) as error:
        raise TargetError(f"the agent can't be asked what it needs: {error}") from error
    binaries = [python]
    for file, cached in json.loads(said):
        yield Path(file)
        if cached is not None and Path(cached).exists():
            yield Path(cached)
        if file.endswith(".so"):
            binaries.append(Path(file))
    yield python
    yield from _libraries(binaries)
    if imports:  # what belongs to Chamber's modules, and is none
        yield from (path for path in Path(chamber.__file__).resolve().parent.rglob("*")
                    if path.is_file() and path.suffix not in {".py", ".pyc"})


def _libraries(binaries: Iterable[Path]) -> Iterator[Path]:
    for binary in binaries:
        said = subprocess.run(["ldd", binary], capture_output=True, text=True, check=False, timeout=60).stdout
        yield from (Path(found[1]) for line in said.splitlines() if (found := _LIBRARY.search(line)))


def write_initramfs(path: Path, modules: Iterable[Path], shell: Path, arguments: Iterable[str],
                    programs: Iterable[Path] = (), imports: Sequence[str] = ()) -> None:
    """Write the archive.

    Args:
        path: where.
        modules: kernel modules, in the order in which they are to be loaded.
        shell: BusyBox, which becomes the guest's shell, and all the programs that it has.
        arguments: words for the agent besides the list of modules.
        programs: further programs of this machine, which come with their libraries.
        imports: further Python modules, which come with all that they import.

    Raises:
        TargetError: the interpreter can't be looked at.

    """
    source = Path(chamber.__file__).resolve().parent.parent
    python = os.path.realpath(sys.executable)
    programs = tuple(programs)
    files = {str(file): (file.read_bytes(), file.stat().st_mode & 0o777, int(file.stat().st_mtime))
             for file in dict.fromkeys((*_needed(imports), *programs, *_libraries(programs)))}
    names = []
    for module in modules:
        names.append(f"/modules/{module.name}")
        files[names[-1]] = module.read_bytes(), 0o644, 0
    files["/bin/sh"] = shell.read_bytes(), 0o755, 0
    files["/modules.list"] = "\n".join(names).encode(), 0o644, 0
    words = " ".join(arguments)
    files[INIT] = (f"#!{python} -SsB\nimport sys\nsys.path.insert(0, {str(source)!r})\n"
                   f"sys.argv[1:] = {['--modules', '/modules.list', *words.split()]!r}\n"
                   "from chamber.lab.agent.__main__ import main\nmain()\n").encode(), 0o755, 0
    with path.open("wb") as file:
        for piece in cpio(files, _FOLDERS, _NODES):
            file.write(piece)


def cpio(files: dict[str, tuple[bytes, int, int]], folders: Iterable[str],
         nodes: Iterable[tuple[str, int, int]]) -> Iterator[bytes]:
    """Yield the pieces of an archive.

    Args:
        files: content, permissions and time by absolute path; folders on the way are made.
        folders: further folders.
        nodes: character devices, by path, major and minor number.

    """
    number = 0
    made = {str(parent) for name in (*files, *folders) for parent in Path(name).parents} | set(folders)
    for name in sorted(made - {"/"}):
        number += 1
        yield _entry(number, name, stat.S_IFDIR | 0o755)
    for name, major, minor in nodes:
        number += 1
        yield _entry(number, name, stat.S_IFCHR | 0o600, device=(major, minor))
    for name, (data, mode, time) in sorted(files.items()):
        number += 1
        yield _entry(number, name, stat.S_IFREG | mode, data, time=time)
    yield _entry(0, "/TRAILER!!!", 0)


def _entry(number: int, name: str, mode: int, data: bytes = b"", *, time: int = 0,
           device: tuple[int, int] = (0, 0)) -> bytes:
    path = name.lstrip("/").encode() + b"\0"
    fields = (number, mode, 0, 0, 1, time, len(data), 0, 0, *device, len(path), 0)
    head = b"070701" + b"".join(b"%08X" % field for field in fields) + path
    return head.ljust(-(-len(head) // 4) * 4, b"\0") + data.ljust(-(-len(data) // 4) * 4, b"\0")
