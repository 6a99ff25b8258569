"""Edits of a tree: applied, taken back, and never more written than differs."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from chamber.lab.kernel.edits import PatchFile, edit_tree
from chamber.lab.observation import TargetError

if TYPE_CHECKING:
    from pathlib import Path

CONTENT = {"drivers/a.c": b"int a(void)\n{\n\treturn 1;\n}\n", "drivers/b.c": b"int b(void)\n{\n\treturn 2;\n}\n"}
PATCHES = {
    "one": "--- a/drivers/a.c\n+++ b/drivers/a.c\n@@ -1,4 +1,4 @@\n int a(void)\n {\n-\treturn 1;\n+\treturn 11;\n }\n",
    "two": "--- a/drivers/b.c\n+++ b/drivers/b.c\n@@ -1,4 +1,4 @@\n int b(void)\n {\n-\treturn 2;\n+\treturn 22;\n }\n",
    "new": "--- /dev/null\n+++ b/drivers/c.c\n@@ -0,0 +1 @@\n+int c;\n",
}


def nothing(_read: object) -> dict[str, bytes]:
    return {}


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    for name, content in CONTENT.items():
        path = tmp_path / "tree" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return tmp_path / "tree"


def edit(tree: Path, name: str, *, revert: bool = False, text: str = "") -> PatchFile:
    path = tree.parent / f"{name}.patch"
    path.write_text(text or PATCHES[name], encoding="utf-8")
    return PatchFile(path, revert)


def contents(tree: Path) -> dict[str, bytes]:
    return {str(p.relative_to(tree)): p.read_bytes() for p in tree.rglob("*") if p.is_file()}


def test_a_patch_is_applied_and_the_next_edit_takes_it_back(tree: Path) -> None:
    edit_tree(tree, [edit(tree, "one"), edit(tree, "new")], nothing)
    assert contents(tree) == {"drivers/a.c": CONTENT["drivers/a.c"].replace(b"1", b"11"),
                              "drivers/b.c": CONTENT["drivers/b.c"], "drivers/c.c": b"int c;\n"}
    edit_tree(tree, [], nothing)
    assert contents(tree) == CONTENT


def test_what_stays_the_same_is_not_written_again(tree: Path) -> None:
    edit_tree(tree, [edit(tree, "one")], nothing)
    before = {path: path.stat().st_mtime_ns for path in tree.rglob("*.c")}
    edit_tree(tree, [edit(tree, "one"), edit(tree, "two")], nothing)
    changed = [path.name for path, when in before.items() if path.stat().st_mtime_ns != when]
    assert changed == ["b.c"]


def test_a_fix_is_reverted(tree: Path) -> None:
    (tree / "drivers/a.c").write_bytes(CONTENT["drivers/a.c"].replace(b"1", b"11"))
    edit_tree(tree, [edit(tree, "one", revert=True)], nothing)
    assert contents(tree) == CONTENT


def test_two_patches_of_one_file_build_on_each_other(tree: Path) -> None:
    second = tree.parent / "second.patch"
    second.write_text(PATCHES["one"].replace("return 11", "return 111").replace("return 1;", "return 11;"),
                      encoding="utf-8")
    edit_tree(tree, [edit(tree, "one"), PatchFile(second)], nothing)
    assert b"return 111;" in (tree / "drivers/a.c").read_bytes()


def test_own_changes_are_made_to_files_as_they_were_at_first(tree: Path) -> None:
    for _ in range(2):
        edit_tree(tree, [], lambda read: {"drivers/a.c": (read("drivers/a.c") or b"") + b"// own\n"})
    assert (tree / "drivers/a.c").read_bytes() == CONTENT["drivers/a.c"] + b"// own\n"


@pytest.mark.parametrize(("text", "why"), [
    ("nothing to see", "names no file"),
    ("--- a/../../etc/x\n+++ b/../../etc/x\n@@ -0,0 +1 @@\n+x\n", "outside the tree"),
    (PATCHES["one"].replace("return 1;", "return 9;"), "does not apply"),
])
def test_what_does_not_apply_is_told_and_leaves_the_tree_alone(tree: Path, text: str, why: str) -> None:
    with pytest.raises(TargetError, match=why):
        edit_tree(tree, [edit(tree, "two"), edit(tree, "bad", text=text)], nothing)
    assert contents(tree) == CONTENT


@pytest.mark.kernel
@pytest.mark.skipif(shutil.which("spatch") is None, reason="no coccinelle")
def test_a_semantic_patch_changes_the_files_that_it_names(tree: Path) -> None:
    path = tree.parent / "more.cocci"
    path.write_text("// files: drivers/a.c\n@@\n@@\n- return 1;\n+ return 7;\n", encoding="utf-8")
    edit_tree(tree, [PatchFile(path)], nothing)
    assert b"return 7;" in (tree / "drivers/a.c").read_bytes()
    path.write_text("// files: drivers/a.c\n@@\n@@\n- return 5;\n+ return 7;\n", encoding="utf-8")
    with pytest.raises(TargetError, match="changes nothing"):
        edit_tree(tree, [PatchFile(path)], nothing)
    with pytest.raises(TargetError, match="can't be reverted"):
        edit_tree(tree, [PatchFile(path, revert=True)], nothing)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=25, deadline=None)
@given(history=st.lists(st.sets(st.sampled_from(sorted(PATCHES))), max_size=4))
def test_only_the_last_edits_count_whatever_was_before(tmp_path_factory: pytest.TempPathFactory,
                                                       history: list[set[str]]) -> None:
    folder = tmp_path_factory.mktemp("trees")
    used, fresh = folder / "used/tree", folder / "fresh/tree"
    for top in (used, fresh):
        for name, content in CONTENT.items():
            (top / name).parent.mkdir(parents=True, exist_ok=True)
            (top / name).write_bytes(content)
    for names in history:
        edit_tree(used, [edit(used, name) for name in sorted(names)], nothing)
    if history:
        edit_tree(fresh, [edit(fresh, name) for name in sorted(history[-1])], nothing)
    assert contents(used) == contents(fresh)
