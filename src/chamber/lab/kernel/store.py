"""Kernels that were built: a folder each, and what is known of them."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Final

from chamber.lab.kernel.source import cache_folder
from chamber.lab.observation import TargetError

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ("BuiltKernel", "find_built", "find_noticing", "list_built", "remove_built", "store_folder")


_UNUSUAL: Final = frozenset({"lockdep", "smp", "time_travel"})


@dataclass(frozen=True, slots=True)
class BuiltKernel:
    """A kernel with its modules.

    Attributes:
        folder: where it is: ``linux``, ``modules/``, ``config``, ``chamber.json``, and the modules again in ``debug/``,
            with what tells places by file and line, beside the drivers' source as it was built in ``source/``.
        key: a digest of what it was built from.
        release: what it says that it is.
        source: package and version, or path.
        tree: the source as it was built, until it is edited for another kernel.
        options: what is in it.
        edits: patches applied and reverted.
        modules: their files, each after those that it needs.
        seconds: how long the build took.
        built: when, in seconds since 1970.

    """

    folder: Path
    key: str
    release: str
    source: str
    tree: str
    options: tuple[str, ...]
    edits: tuple[str, ...]
    modules: tuple[str, ...]
    seconds: float
    built: int

    @property
    def name(self) -> str:
        """What it is called."""
        return self.folder.name

    @property
    def binary(self) -> Path:
        """The kernel itself."""
        return self.folder / "linux"

    def as_json(self) -> dict[str, Any]:
        """Return what is written down."""
        values = asdict(self)
        del values["folder"]
        return values

    @classmethod
    def read(cls, folder: Path) -> BuiltKernel:
        """Read what was written down.

        Raises:
            TargetError: there is nothing, or it is damaged.

        """
        try:
            values: dict[str, Any] = json.loads((folder / "chamber.json").read_text(encoding="utf-8"))
            values = {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}
            return cls(**{**values, "folder": folder})
        except (OSError, ValueError, TypeError):
            raise TargetError(f"{folder}: no kernel that Chamber built") from None


def store_folder() -> Path:
    """Where kernels are kept."""
    return cache_folder() / "built"


def list_built() -> list[BuiltKernel]:
    """Return all kernels, the oldest first."""
    folders = [path.parent for path in store_folder().glob("[!.]*/chamber.json")]
    return sorted((BuiltKernel.read(folder) for folder in folders), key=lambda kernel: kernel.built)


def find_built(name: str, *, alone: bool = False) -> BuiltKernel:
    """Return a kernel by its name, or one whose name begins so.

    Of several, one that was not edited is meant, then one with KASAN, then one without what few ask for, then the
    newest.

    Raises:
        TargetError: there is none; or more than one, and it has to be `alone`.

    """
    found = [kernel for kernel in list_built() if kernel.name.startswith(name)]
    exact = [kernel for kernel in found if kernel.name == name]
    if not found or (alone and len(exact or found) > 1):
        what = f"{len(found)} kernels are called so" if found else "no kernel of that name was built"
        raise TargetError(f"{name}: {what}: see chamber lab list")
    return max(exact or found, key=lambda kernel: (not kernel.edits, "kasan" in kernel.options, _is_usual(kernel),
                                                   kernel.built))


def _is_usual(kernel: BuiltKernel) -> bool:
    return not _UNUSUAL & set(kernel.options)


def find_noticing() -> BuiltKernel:
    """Return the newest kernel that was built as its authors wrote it, and counts what drivers execute.

    Raises:
        TargetError: there is none.

    """
    counting = [kernel for kernel in list_built() if "coverage" in kernel.options and not kernel.edits]
    if not counting:
        raise TargetError("no kernel here that counts what drivers execute: chamber lab build 7.3")
    return max(counting, key=lambda kernel: ([int(n) for n in re.findall(r"\d+", kernel.release)], _is_usual(kernel),
                                             kernel.built))


def remove_built(kernel: BuiltKernel) -> None:
    """Delete a kernel; its source and build folder stay, for the next."""
    shutil.rmtree(kernel.folder)
