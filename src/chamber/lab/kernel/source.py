"""Kernel source: from a Debian package, fetched by its version without touching the system, or any tree."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from chamber.lab.debian import Apt, run_tool
from chamber.lab.observation import TargetError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ("KernelSource", "cache_folder", "find_source", "locked", "originals_of")

_SUITES: Final = ("bookworm", "bookworm-security", "bookworm-backports", "trixie", "trixie-security",
                  "trixie-backports", "sid")
"""Where Debian keeps kernel source, the nearest first."""
_SERIES: Final = re.compile(r"[0-9]+\.[0-9]+")
_SKIPPED: Final = frozenset({".git", ".svn", ".hg"})
_COPIED: Final = re.compile(r"\.(?:o|ko|a|cmd|mod|d)$|^\.(?!gitignore|gitattributes)|^(?:vmlinux|linux)$")
"""Names of files that a build leaves in a tree, which a copy of it does not need."""


def cache_folder() -> Path:
    """Where kernels and their sources are kept: a folder of the user's own."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "chamber" / "kernels"


@dataclass(frozen=True, slots=True)
class KernelSource:
    """A tree that can be built and edited: a copy of Chamber's own.

    Attributes:
        name: what was asked for.
        version: the kernel's version, as its Makefile says it.
        identity: what tells it from other sources: the package and its version, or the path.
        tree: the copy.

    """

    name: str
    version: str
    identity: str
    tree: Path


def find_source(name: str, tell: Callable[[str], None] = lambda _line: None) -> KernelSource:
    """Get source by a series that Debian has, such as ``6.12``, or by the path of a tree.

    The tree given is copied, and brought up to date when it is asked for again: a build never writes into it.

    Raises:
        TargetError: there is no such source, or it can't be fetched.

    """
    given = Path(name)
    if (given / "Makefile").is_file() and (given / "arch/um").is_dir():
        tree = cache_folder() / "trees" / given.resolve().as_posix().strip("/").replace("/", "-")
        tell(f"copying {given}")
        _copy(given.resolve(), tree)
        return KernelSource(name, _version(tree), str(given.resolve()), tree)
    if not _SERIES.fullmatch(name):
        raise TargetError(f"{name}: neither a kernel tree nor a series such as 6.12")
    package = f"linux-source-{name}"
    tree = cache_folder() / "trees" / package
    marker = tree.with_name(f"{package}.version")
    with locked(tree):
        if not marker.exists():
            shutil.rmtree(tree, ignore_errors=True)
            version = _fetch(package, tree, tell)
            marker.write_text(version, encoding="ascii")
    return KernelSource(name, _version(tree), f"{package} {marker.read_text(encoding='ascii')}", tree)


@contextlib.contextmanager
def locked(tree: Path) -> Iterator[None]:
    """Keep others from fetching, editing or building a tree meanwhile."""
    tree.parent.mkdir(parents=True, exist_ok=True)
    with tree.with_name(f"{tree.name}.lock").open("w", encoding="ascii") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _version(tree: Path) -> str:
    text = (tree / "Makefile").read_text(encoding="utf-8")[:400]
    parts = [re.search(rf"^{key} *= *(\S*)$", text, re.MULTILINE) for key in ("VERSION", "PATCHLEVEL", "SUBLEVEL")]
    if not all(parts):
        raise TargetError(f"{tree}: its Makefile has no version")
    return ".".join(part[1] for part in parts if part)


# Debian's packages.


def _fetch(package: str, tree: Path, tell: Callable[[str], None]) -> str:
    """Unpack a source package from the first suite that has it; return its version."""
    for tool in ("apt-get", "dpkg-deb", "tar", "xz"):
        if shutil.which(tool) is None:
            raise TargetError(f"{package} is fetched by apt, and unpacked by tar and xz: {tool} is missing")
    for suite in _SUITES:
        tell(f"looking for {package} in {suite}")
        with contextlib.ExitStack() as stack:
            try:
                deb = stack.enter_context(Apt.opened(suite)).fetch_alone(package)
            except TargetError:
                continue  # it is not there, or the suite can't be reached
            version = run_tool("dpkg-deb", "-f", str(deb), "Version").strip()
            tell(f"unpacking {package} {version}")
            _unpack(deb, tree)
            return version
    raise TargetError(f"Debian's {', '.join(_SUITES)} have no {package}, or can't be reached")


def _unpack(deb: Path, tree: Path) -> None:
    """Unpack the archive within a package."""
    unpacked = deb.parent / "deb"
    run_tool("dpkg-deb", "-x", str(deb), str(unpacked))
    archive = next((unpacked / "usr/src").glob("linux-source-*.tar.*"), None)
    if archive is None:
        raise TargetError(f"{deb.name} holds no source")
    tree.mkdir(parents=True)
    try:
        run_tool("tar", "-x", "-C", str(tree), "--strip-components=1", "-f", str(archive))
    except BaseException:
        shutil.rmtree(tree, ignore_errors=True)
        raise


# Trees.


def _copy(source: Path, tree: Path) -> None:
    """Make `tree` a copy of `source`: only what differs is written, so that only that is built again.

    Files that Chamber has edited in the copy are compared, and brought up to date, by `chamber.lab.kernel.edits`.
    """
    originals = originals_of(tree)
    for folder, folders, files in os.walk(source):
        folders[:] = [f for f in folders if f not in _SKIPPED]
        here = Path(folder).relative_to(source)
        (tree / here).mkdir(parents=True, exist_ok=True)
        for name in files:
            if _COPIED.search(name):
                continue
            kept = originals / here / name
            _copy_file(Path(folder, name), kept if kept.exists() else tree / here / name)


def originals_of(tree: Path) -> Path:
    """Return where files of a tree are kept as they were before Chamber edited them."""
    return tree.with_name(f"{tree.name}.originals")


def _copy_file(source: Path, target: Path) -> None:
    about = source.lstat()
    try:
        there = target.lstat()
    except FileNotFoundError:
        pass
    else:
        if (about.st_size, about.st_mtime_ns) == (there.st_size, there.st_mtime_ns):
            return
        target.unlink()
    shutil.copy2(source, target, follow_symlinks=False)
