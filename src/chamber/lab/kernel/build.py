"""Building a user-mode-linux kernel that notices, and keeping it."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import time
from collections import deque
from pathlib import Path
from typing import TYPE_CHECKING, Final

from chamber.lab.kernel.changes import TSM_CORE, change, changed_files, unchanged_parts
from chamber.lab.kernel.config import fragment, missing
from chamber.lab.kernel.drivers import CORE, SOURCES
from chamber.lab.kernel.edits import edit_tree
from chamber.lab.kernel.module_file import module_name, module_needs
from chamber.lab.kernel.selftest import check_sanitizers
from chamber.lab.kernel.source import cache_folder, locked
from chamber.lab.kernel.store import BuiltKernel, store_folder
from chamber.lab.observation import TargetError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from chamber.lab.kernel.config import KernelOptions
    from chamber.lab.kernel.edits import Edit
    from chamber.lab.kernel.source import KernelSource

__all__ = ("build_kernel",)

_OWN: Final = Path(__file__).parent / "tree"
_TSM: Final = Path(__file__).parent / "tsm"
_PLACE: Final = "arch/um/kernel/chamber"
_TOOLS: Final = {"gcc": "gcc", "make": "make", "flex": "flex", "bison": "bison", "bc": "bc", "ld": "binutils",
                 "nm": "binutils", "perl": "perl"}
_FLAG: Final = "$(if $(CONFIG_CHAMBER_COVERAGE),-fsanitize-coverage=trace-pc)"
_KEPT_LINES: Final = 100
_WRONG: Final = re.compile(r"\berror:|\*\*\*")
"""What a compiler says, or make if no compiler did."""


def build_kernel(source: KernelSource, options: KernelOptions, edits: Sequence[Edit] = (), *, jobs: int = 0,
                 name: str | None = None, tell: Callable[[str], None] = lambda _line: None) -> BuiltKernel:
    """Build a kernel, or find it built already from the same.

    Args:
        source: where from; its tree is edited and stays so until the next build.
        options: what is in it.
        edits: patches to apply or to revert, in order.
        jobs: compilers at once; 0 for one a processor.
        name: what to call it; by default it is called by its version, options and edits.
        tell: is told what goes on, a line at a time.

    Raises:
        TargetError: a tool is missing, an edit does not apply, or the build fails.

    """
    absent = [package for tool, package in _TOOLS.items() if shutil.which(tool) is None]
    if not Path("/usr/include/stdlib.h").exists():
        absent.append("libc6-dev")
    if absent:
        raise TargetError(f"to build a kernel, as root: apt-get install {' '.join(dict.fromkeys(absent))}")
    key = _key(source, options, edits)
    called = name or _name(source, options, edits, key)
    known = store_folder() / called
    with locked(source.tree):
        if (known / "chamber.json").exists():
            built = BuiltKernel.read(known)
            if built.key == key:
                tell(f"{called} is built already")
                return built
            shutil.rmtree(known)
        begin = time.monotonic()
        edit_tree(source.tree, edits, lambda read: _additions(source.tree, read))
        out = cache_folder() / "build" / f"{source.tree.name}-{'-'.join(options.words()) or 'plain'}"
        out.mkdir(parents=True, exist_ok=True)
        make = _Make(source.tree, out, jobs or os.cpu_count() or 1, tell)
        _configure(make, source, options)
        make.run("linux", "modules")
        return _keep(source, options, edits, out, known, key, time.monotonic() - begin)


def _key(source: KernelSource, options: KernelOptions, edits: Sequence[Edit]) -> str:
    """Return a digest of all that makes the result what it is."""
    digest = hashlib.sha256()
    compiler = subprocess.run(["gcc", "-dumpfullversion"], capture_output=True, text=True, check=False).stdout
    parts = [source.identity, source.version, compiler, fragment(options)]
    parts += [f"{path} {text!r}" for path, text in _additions(source.tree, unchanged_parts).items()]
    parts += [edit.identity for edit in edits]
    if Path(source.identity).is_absolute():
        parts.append(_fingerprint(Path(source.identity)))
    for part in parts:
        digest.update(f"{len(part)}:".encode() + part.encode(errors="surrogateescape"))
    return digest.hexdigest()


def _fingerprint(tree: Path) -> str:
    """Return sizes and times of all files of a tree that its owner may change at any time, as a digest."""
    digest = hashlib.sha256()
    for folder, folders, files in os.walk(tree):
        folders[:] = sorted(f for f in folders if not f.startswith("."))
        for name in sorted(files):
            about = Path(folder, name).lstat()
            digest.update(f"{folder}/{name} {about.st_size} {about.st_mtime_ns}\n".encode(errors="surrogateescape"))
    return digest.hexdigest()


def _name(source: KernelSource, options: KernelOptions, edits: Sequence[Edit], key: str) -> str:
    words = [source.version, *options.words(), *(e.name for e in edits)]
    return "-".join(words)[:100] + f"-{key[:8]}"


def _additions(tree: Path, read: Callable[[str], bytes | None]) -> dict[str, bytes]:
    """Return Chamber's own files, and the lines that bring them into the build and count what the drivers execute."""
    changed = {f"{_PLACE}/{path.name}": path.read_bytes() for path in sorted(_OWN.iterdir())}
    if (tree / TSM_CORE).exists():
        changed |= {f"{_PLACE}/tsm/{path.name}": path.read_bytes() for path in sorted(_TSM.iterdir())}
        changed[f"{_PLACE}/Kconfig"] += f'\nsource "{_PLACE}/tsm/Kconfig"\n'.encode()

    def append(path: str, line: str) -> None:
        before = changed.get(path) or read(path)
        if before is None:
            raise TargetError(f"{tree}: no {path}: not a kernel with user-mode-linux")
        changed[path] = before.rstrip(b"\n") + b"\n" + line.encode() + b"\n"

    append("arch/um/Kconfig", f'source "{_PLACE}/Kconfig"')
    append("arch/um/kernel/Makefile", f"obj-y += {Path(_PLACE).name}/")
    # It moves to the interrupt's stack and reads the one that it left, red zones and all.
    append("arch/um/kernel/Makefile", "KASAN_SANITIZE_irq.o := n")
    for pattern in (*CORE, *(pattern for patterns in SOURCES.values() for pattern in patterns)):
        for path in sorted(tree.glob(pattern)):
            folder = path.parent.relative_to(tree)
            append(f"{folder}/Makefile", f"CFLAGS_{path.stem}.o += {_FLAG}")
    try:
        for name in changed_files(tree):
            changed[name] = change(name, changed.get(name) or read(name) or b"")
    except ValueError as error:
        raise TargetError(f"{tree}: {error}: no user-mode-linux of 6.1 to 7.3") from None
    return changed


def _configure(make: _Make, source: KernelSource, options: KernelOptions) -> None:
    """Write the configuration anew if it differs from the one there, which saves a rebuild."""
    start = make.out / "chamber.config"
    text = fragment(options)
    if start.exists() and start.read_text(encoding="utf-8") == text and (make.out / ".config").exists():
        make.run("olddefconfig")
    else:
        part = make.out / "chamber.config.part"
        part.write_text(text, encoding="utf-8")
        make.run("alldefconfig", f"KCONFIG_ALLCONFIG={part}")
        part.rename(start)
    try:
        lost = missing(source.tree, options, (make.out / ".config").read_text(encoding="utf-8"))
    except TargetError:
        start.unlink()
        raise
    if lost:
        start.unlink()
        raise TargetError(f"{source.name}: the configuration leaves out {' '.join(lost)}")


class _Make:
    """Calls make for one build folder."""

    def __init__(self, tree: Path, out: Path, jobs: int, tell: Callable[[str], None]) -> None:
        self.out = out
        self._command = ("make", "-C", str(tree), f"O={out}", "ARCH=um", f"-j{jobs}", "--no-print-directory",
                         "KBUILD_BUILD_TIMESTAMP=1970-01-01", "KBUILD_BUILD_USER=chamber", "KBUILD_BUILD_HOST=chamber")
        self._tell = tell

    def run(self, *arguments: str) -> None:
        """Make something; its whole output is kept in the build folder.

        Raises:
            TargetError: it fails.

        """
        last: deque[str] = deque(maxlen=_KEPT_LINES)
        with (self.out / "chamber.log").open("a", encoding="utf-8") as log, subprocess.Popen(
                [*self._command, *arguments], stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL, text=True, errors="replace", start_new_session=True) as process:
            try:
                assert process.stdout is not None
                for line in process.stdout:
                    log.write(line)
                    last.append(line.strip())
                    if line.startswith("  "):  # what make does, ``  CC  kernel/fork.o``; warnings stay in the log
                        self._tell(line.rstrip())
                status = process.wait()
            finally:
                if process.poll() is None:
                    with contextlib.suppress(ProcessLookupError):
                        os.killpg(process.pid, signal.SIGKILL)
        if status:
            reason = next((line for line in last if _WRONG.search(line)), last[-1] if last else f"status {status}")
            raise TargetError(f"the build failed: {reason} (all of it: {self.out / 'chamber.log'})")


def _keep(source: KernelSource, options: KernelOptions, edits: Sequence[Edit], out: Path, folder: Path, key: str,
          seconds: float) -> BuiltKernel:
    """Copy what a run needs into the store; all of it appears at once."""
    part = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    (part / "modules").mkdir(parents=True)
    # What the last build made: a module that was built before and is part of the kernel now still lies there.
    listed = (out / Path(line).with_suffix(".ko") for line in (out / "modules.order").read_text("utf-8").splitlines())
    modules = {module_name(path): path for path in listed}
    (part / "debug").mkdir()
    for path in modules.values():
        shutil.copy2(path, part / "debug")
        # A guest reads the whole of a module that it loads; what tells places by file and line is most of it.
        subprocess.run(["strip", "--strip-debug", "-o", part / "modules" / path.name, path], check=True)
    for pattern in (pattern for patterns in SOURCES.values() for pattern in patterns):
        for path in source.tree.glob(pattern):
            target = part / "source" / path.relative_to(source.tree)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(path, target)
    shutil.copy2(out / "linux", part / "linux")
    shutil.copy2(out / ".config", part / "config")
    try:
        check_sanitizers(part / "linux", options)
    except BaseException:
        shutil.rmtree(part)
        raise
    built = BuiltKernel(
        folder=folder, key=key, release=(out / "include/config/kernel.release").read_text(encoding="ascii").strip(),
        source=source.identity, tree=str(source.tree), options=tuple(options.words()),
        edits=tuple(e.name for e in edits),
        modules=tuple(path.name for path in _ordered(modules)), seconds=round(seconds, 1), built=int(time.time()))
    (part / "chamber.json").write_text(json.dumps(built.as_json(), indent=1) + "\n", encoding="utf-8")
    shutil.rmtree(folder, ignore_errors=True)
    part.rename(folder)
    return built


def _ordered(modules: dict[str, Path]) -> list[Path]:
    """Return modules so that each comes after those that it needs."""
    done: dict[str, Path] = {}

    def add(name: str) -> None:
        if name in done or name not in modules:
            return
        for need in sorted(module_needs(modules[name].read_bytes())):
            add(need)
        done[name] = modules[name]

    for name in sorted(modules):
        add(name)
    return list(done.values())
