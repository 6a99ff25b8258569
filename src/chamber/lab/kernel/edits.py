"""Edits of a kernel tree that can be taken back: what Chamber adds itself, patches, semantic patches.

A file is written only if its content changes, so that a build after an edit compiles what the edit touched and no more.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from chamber.lab.kernel.source import originals_of
from chamber.lab.observation import TargetError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

__all__ = ("Edit", "edit_tree")

_NAMED: Final = re.compile(r"^(?:---|\+\+\+) (?!/dev/null)(?:[ab]/)?(\S+)", re.MULTILINE)
_COCCI_FILE: Final = re.compile(r"^// *files?: *(.+)$", re.MULTILINE)
_SPATCH_SECONDS: Final = 300


@dataclass(frozen=True, slots=True)
class Edit:
    """A change to source, from a file.

    A patch is one for ``patch -p1``. A semantic patch is one for Coccinelle's spatch; a comment ``// files: PATH ...``
    names the files that it is for.

    Attributes:
        path: the file.
        revert: whether it is taken back instead; not for semantic patches.

    """

    path: Path
    revert: bool = False

    @property
    def semantic(self) -> bool:
        """Whether it is a semantic patch."""
        return self.path.suffix == ".cocci"

    def read(self) -> str:
        """Return the text.

        Raises:
            TargetError: it can't be read, or asks for what can't be done.

        """
        if self.semantic and self.revert:
            raise TargetError(f"{self.path}: a semantic patch can't be reverted")
        try:
            return self.path.read_text(encoding="utf-8", errors="surrogateescape")
        except OSError as error:
            raise TargetError(f"{self.path}: {error.strerror}") from None

    def files(self, text: str) -> list[str]:
        """Return which files of a tree it is about.

        Raises:
            TargetError: it names none, or one outside the tree.

        """
        if self.semantic:
            named = [name for line in _COCCI_FILE.findall(text) for name in line.split()]
        else:
            named = _NAMED.findall(text)
        names = list(dict.fromkeys(named))
        if not names:
            raise TargetError(f"{self.path}: names no file to change")
        for name in names:
            if os.path.isabs(name) or ".." in Path(name).parts:
                raise TargetError(f"{self.path}: {name} lies outside the tree")
        return names


def edit_tree(tree: Path, edits: Iterable[Edit], own: Callable[[Callable[[str], bytes | None]], dict[str, bytes]],
              ) -> None:
    """Make a tree what it was at first, with `own` changes and these edits in order; whatever else was edited goes.

    `own` gets a function that reads a file as it was at first, and returns new contents by path.

    Raises:
        TargetError: an edit does not apply.

    """
    originals = originals_of(tree)
    with tempfile.TemporaryDirectory(prefix="chamber-edit-", dir=tree.parent) as name:
        work = Path(name)
        wanted: dict[str, bytes | None] = {path: _original(tree, originals, path) for path in _touched(originals)}
        for path, changed in own(lambda path: _original(tree, originals, path)).items():
            _save(tree, originals, path)
            wanted[path] = changed
        for edit in edits:
            text = edit.read()
            for path in edit.files(text):
                _save(tree, originals, path)
                before = wanted[path] if path in wanted else _original(tree, originals, path)
                target = work / path
                target.parent.mkdir(parents=True, exist_ok=True)
                if before is not None:
                    target.write_bytes(before)
                else:
                    target.unlink(missing_ok=True)
            _apply(edit, text, work)
            for path in edit.files(text):
                wanted[path] = (work / path).read_bytes() if (work / path).exists() else None
    for path, content in wanted.items():
        _write(tree / path, content)


_ABSENT: Final = ".chamber-absent"
"""Marks, among the originals, a file that was not there."""


def _touched(originals: Path) -> list[str]:
    return [str(p.relative_to(originals)).removesuffix(_ABSENT) for p in originals.rglob("*") if p.is_file()]


def _original(tree: Path, originals: Path, path: str) -> bytes | None:
    if (originals / (path + _ABSENT)).exists():
        return None
    kept = originals / path
    if kept.exists():
        return kept.read_bytes()
    return (tree / path).read_bytes() if (tree / path).exists() else None


def _save(tree: Path, originals: Path, path: str) -> None:
    """Keep a file as it is now, unless it is kept already; before anything is written."""
    kept = originals / path
    absent = originals / (path + _ABSENT)
    if kept.exists() or absent.exists():
        return
    kept.parent.mkdir(parents=True, exist_ok=True)
    if (tree / path).exists():
        part = kept.with_name(f"{kept.name}.part")
        shutil.copy2(tree / path, part)
        part.rename(kept)
    else:
        absent.touch()


def _write(path: Path, content: bytes | None) -> None:
    if content is None:
        path.unlink(missing_ok=True)
    elif not path.exists() or path.read_bytes() != content:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def _apply(edit: Edit, text: str, work: Path) -> None:
    if edit.semantic:
        _run_tool("spatch", "coccinelle", work, "--very-quiet", "--in-place", "--sp-file", str(edit.path.resolve()),
                  *edit.files(text), edit=edit)
        return
    _run_tool("patch", "patch", work, "-p1", "--batch", "--silent", "--no-backup-if-mismatch", "--reject-file=-",
              *(["-R"] if edit.revert else ["--forward"]), "-i", str(edit.path.resolve()), edit=edit)


def _run_tool(tool: str, package: str, work: Path, *arguments: str, edit: Edit) -> None:
    if shutil.which(tool) is None:
        raise TargetError(f"{edit.path} needs {tool}: as root, apt-get install {package}")
    before = {p: p.read_bytes() for p in work.rglob("*") if p.is_file()}
    try:
        done = subprocess.run([tool, *arguments], cwd=work, capture_output=True, text=True, check=False,
                              timeout=_SPATCH_SECONDS, stdin=subprocess.DEVNULL)
    except subprocess.TimeoutExpired:
        raise TargetError(f"{edit.path}: {tool} did not end within {_SPATCH_SECONDS} s") from None
    if done.returncode:
        said = (done.stdout + done.stderr).strip().splitlines() or [f"status {done.returncode}"]
        raise TargetError(f"{edit.path} does not apply: {said[0]}")
    if before == {p: p.read_bytes() for p in work.rglob("*") if p.is_file()}:
        raise TargetError(f"{edit.path} does not apply: it changes nothing")
