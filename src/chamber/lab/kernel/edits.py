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
from typing import TYPE_CHECKING, Final, Protocol

from chamber.lab.kernel.source import originals_of
from chamber.lab.observation import TargetError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

__all__ = ("Edit", "PatchFile", "Substitution", "edit_tree")

_NAMED: Final = re.compile(r"^(?:---|\+\+\+) (?!/dev/null)(?:[ab]/)?(\S+)", re.MULTILINE)
_COCCI_FILE: Final = re.compile(r"^// *files?: *(.+)$", re.MULTILINE)
_SPATCH_SECONDS: Final = 300


class Edit(Protocol):
    """A change to source."""

    @property
    def name(self) -> str:
        """What it is called, in the name of the kernel that is built with it."""
        ...

    @property
    def identity(self) -> str:
        """All that it is, as text: the same text, the same change."""
        ...

    def files(self) -> list[str]:
        """Return which files of a tree it is about."""
        ...

    def apply(self, folder: Path) -> None:
        """Change those files, which are in a folder of their own."""
        ...


@dataclass(frozen=True, slots=True)
class Substitution:
    """A change in a few words: each (file, pattern, replacement), where the pattern must be found once in its file.

    Attributes:
        name: what it is called.
        changes: in order; patterns and replacements are those of `re.sub`, over lines.

    """

    name: str
    changes: tuple[tuple[str, str, str], ...]

    @property
    def identity(self) -> str:
        """The changes."""
        return repr(self.changes)

    def files(self) -> list[str]:
        """Return the files that it names.

        Raises:
            TargetError: one lies outside the tree.

        """
        return _inside(self.name, [file for file, _, _ in self.changes])

    def apply(self, folder: Path) -> None:
        """Change them.

        Raises:
            TargetError: a file is missing, or a pattern is not found once.

        """
        for file, pattern, put in self.changes:
            path = folder / file
            if not path.exists():
                raise TargetError(f"{self.name} does not apply: there is no {file}")
            text = path.read_text(encoding="utf-8", errors="surrogateescape")
            try:
                text, count = re.subn(pattern, put, text, flags=re.MULTILINE)
            except re.error as error:
                raise TargetError(f"{self.name}: {pattern}: {error}") from None
            if count != 1:
                raise TargetError(f"{self.name} does not apply: {file} has {count} of {pattern}")
            path.write_text(text, encoding="utf-8", errors="surrogateescape")


def _inside(name: str, files: Iterable[str]) -> list[str]:
    found = list(dict.fromkeys(files))
    for file in found:
        if os.path.isabs(file) or ".." in Path(file).parts:
            raise TargetError(f"{name}: {file} lies outside the tree")
    return found


@dataclass(frozen=True, slots=True)
class PatchFile:
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

    @property
    def name(self) -> str:
        """The file's, without its ending, and whether it is taken back."""
        return f"revert-{self.path.stem}" if self.revert else self.path.stem

    @property
    def identity(self) -> str:
        """The text, and which way."""
        return f"{self.revert} {self.read()}"

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

    def files(self) -> list[str]:
        """Return which files of a tree it is about.

        Raises:
            TargetError: it names none, or one outside the tree.

        """
        text = self.read()
        if self.semantic:
            named = [name for line in _COCCI_FILE.findall(text) for name in line.split()]
        else:
            named = _NAMED.findall(text)
        if not named:
            raise TargetError(f"{self.path}: names no file to change")
        return _inside(str(self.path), named)

    def apply(self, folder: Path) -> None:
        """Change them by ``patch`` or ``spatch``.

        Raises:
            TargetError: the tool is missing, or the patch does not apply.

        """
        before = {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}
        if self.semantic:
            self._run("spatch", "coccinelle", folder, "--very-quiet", "--in-place", "--sp-file",
                      str(self.path.resolve()), *self.files())
        else:
            self._run("patch", "patch", folder, "-p1", "--batch", "--silent", "--no-backup-if-mismatch",
                      "--reject-file=-", "-R" if self.revert else "--forward", "-i", str(self.path.resolve()))
        if before == {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}:
            raise TargetError(f"{self.path} does not apply: it changes nothing")

    def _run(self, tool: str, package: str, folder: Path, *arguments: str) -> None:
        if shutil.which(tool) is None:
            raise TargetError(f"{self.path} needs {tool}: as root, apt-get install {package}")
        try:
            done = subprocess.run([tool, *arguments], cwd=folder, capture_output=True, text=True, check=False,
                                  timeout=_SPATCH_SECONDS, stdin=subprocess.DEVNULL)
        except subprocess.TimeoutExpired:
            raise TargetError(f"{self.path}: {tool} did not end within {_SPATCH_SECONDS} s") from None
        if done.returncode:
            said = (done.stdout + done.stderr).strip().splitlines() or [f"status {done.returncode}"]
            raise TargetError(f"{self.path} does not apply: {said[0]}")


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
            files = edit.files()
            for path in files:
                _save(tree, originals, path)
                before = wanted[path] if path in wanted else _original(tree, originals, path)
                target = work / path
                target.parent.mkdir(parents=True, exist_ok=True)
                if before is not None:
                    target.write_bytes(before)
                else:
                    target.unlink(missing_ok=True)
            edit.apply(work)
            for path in files:
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
