"""Kernel source: a tree of the user's is copied, and followed."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from chamber.lab.kernel.edits import edit_tree
from chamber.lab.kernel.source import find_source
from chamber.lab.observation import TargetError

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A tree, and a cache of its own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    tree = tmp_path / "linux"
    (tree / "arch/um").mkdir(parents=True)
    (tree / ".git").mkdir()
    (tree / ".git/config").write_text("private")
    (tree / "Makefile").write_text("# SPDX\nVERSION = 6\nPATCHLEVEL = 12\nSUBLEVEL = 117\nEXTRAVERSION =\n")
    (tree / "driver.c").write_text("int one;\n")
    (tree / "driver.o").write_text("built before")
    return tree


def test_a_tree_is_copied_without_what_was_built_in_it(given: Path) -> None:
    source = find_source(str(given))
    assert source.version == "6.12.117"
    assert source.identity == str(given)
    assert sorted(p.name for p in source.tree.iterdir()) == ["Makefile", "arch", "driver.c"]


def test_only_what_changed_is_copied_again(given: Path) -> None:
    source = find_source(str(given))
    makefile = (source.tree / "Makefile").stat().st_ino
    (given / "driver.c").write_text("int other;\n")
    find_source(str(given))
    assert (source.tree / "driver.c").read_text() == "int other;\n"
    assert (source.tree / "Makefile").stat().st_ino == makefile


def test_a_change_to_an_edited_file_arrives_beneath_the_edit(given: Path) -> None:
    source = find_source(str(given))
    edit_tree(source.tree, [], lambda read: {"driver.c": (read("driver.c") or b"") + b"int own;\n"})
    (given / "driver.c").write_text("int other;\n")
    find_source(str(given))
    edit_tree(source.tree, [], lambda read: {"driver.c": (read("driver.c") or b"") + b"int own;\n"})
    assert (source.tree / "driver.c").read_text() == "int other;\nint own;\n"
    assert (given / "driver.c").read_text() == "int other;\n"


@pytest.mark.parametrize("name", ["nowhere", "6", "6.12.117", "../x", ""])
def test_what_is_neither_a_tree_nor_a_series_is_refused(given: Path, name: str) -> None:
    with pytest.raises(TargetError, match="neither a kernel tree nor a series"):
        find_source(name)
