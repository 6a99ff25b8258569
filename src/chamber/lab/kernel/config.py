"""The configuration of a kernel: fragments by name, and the check that what was asked for is really in."""

from __future__ import annotations

import re
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Final

from chamber.lab.observation import TargetError

__all__ = ("KernelOptions", "fragment", "missing")

_FOLDER: Final = Path(__file__).parent / "config"
_ALWAYS: Final = ("base", "drivers", "pci")
_SETTING: Final = re.compile(r"^CONFIG_(\w+)=(.*)$", re.MULTILINE)
_SYMBOL: Final = re.compile(r"^\s*(?:menu)?config\s+(\w+)[ \t]*\n((?:[ \t].*\n|\n)*)", re.MULTILINE)
_PROMPT: Final = re.compile(r"^\s+(?:bool|tristate|int|hex|string|prompt)\s+[\"']", re.MULTILINE)
"""What makes a symbol one that can be chosen; others follow from those."""


@dataclass(frozen=True, slots=True)
class KernelOptions:
    """What a kernel has beside the drivers; each name is that of a file in ``config/``.

    Attributes:
        kasan: checks of every memory access (KASAN).
        ubsan: checks of array bounds, shifts and enumerations (UBSAN).
        coverage: counting of what the drivers execute.
        lockdep: proof of lock order, and checks of objects.
        smp: two processors, where user-mode-linux has them.
        time_travel: virtual time.

    """

    kasan: bool = True
    ubsan: bool = True
    coverage: bool = True
    lockdep: bool = False
    smp: bool = False
    time_travel: bool = False

    def words(self) -> list[str]:
        """Return the names of what is on."""
        return [field.name for field in fields(self) if getattr(self, field.name)]


def fragment(options: KernelOptions) -> str:
    """Return the configuration to start from, as KCONFIG_ALLCONFIG takes it."""
    return "".join((_FOLDER / f"{name}.config").read_text(encoding="utf-8") for name in (*_ALWAYS, *options.words()))


def missing(tree: Path, options: KernelOptions, result: str) -> list[str]:
    """Return what was asked for, exists in the tree, and is not in the configuration that came out.

    Raises:
        TargetError: an option as a whole is not to be had from this tree.

    """
    there = dict(_SETTING.findall(result))
    known = _symbols(tree)
    for option in options.words():
        first = _SETTING.findall((_FOLDER / f"{option}.config").read_text(encoding="utf-8"))[0][0]
        if there.get(first) != "y":
            raise TargetError(f"this kernel has no {option} for user-mode-linux (CONFIG_{first})")
    wanted = dict(_SETTING.findall(fragment(options)))
    return sorted(f"CONFIG_{name}={value}" for name, value in wanted.items()
                  if name in known and value in {"y", "m"} and there.get(name) not in {"y", "m"})


def _symbols(tree: Path) -> set[str]:
    """Return all symbols that can be chosen by a tree's Kconfig files."""
    return {name for path in tree.rglob("Kconfig*") if path.is_file()
            for name, body in _SYMBOL.findall(path.read_text(encoding="utf-8", errors="replace") + "\n")
            if _PROMPT.search(body)}
