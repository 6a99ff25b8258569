"""Kernels that were built, by name."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from chamber.cli.main import run
from chamber.lab.kernel.store import (
    BuiltKernel,
    find_built,
    find_noticing,
    list_built,
    remove_built,
    store_folder,
)
from chamber.lab.observation import TargetError
from chamber.lab.uml_kernel import LOUD, find_kernel

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


def store(name: str, built: int = 1, options: tuple[str, ...] = ("kasan",), *,
          edits: tuple[str, ...] = ("apply fix.patch",), release: str = "6.12.117") -> BuiltKernel:
    kernel = BuiltKernel(store_folder() / name, "key", release, "linux-source-6.12 6.12.117-1", "/tree", options,
                         edits, ("a.ko", "b.ko"), 12.5, built)
    kernel.folder.mkdir(parents=True)
    (kernel.folder / "chamber.json").write_text(json.dumps(kernel.as_json()))
    return kernel


def test_what_is_written_down_is_read_back() -> None:
    kernel = store("6.12-kasan")
    assert list_built() == [kernel]


def test_a_kernel_is_found_by_its_name_or_as_the_newest_that_begins_so() -> None:
    older, newer = store("6.12-kasan", 5), store("6.12", 3)
    assert find_built("6.12") == newer  # the whole name counts more
    assert find_built("6.1") == older
    with pytest.raises(TargetError, match="2 kernels are called so"):
        find_built("6.1", alone=True)
    with pytest.raises(TargetError, match="no kernel of that name"):
        find_built("5")


def test_a_kernel_as_its_authors_wrote_it_is_meant_before_a_newer_one_that_was_edited() -> None:
    plain = store("6.12-kasan-1", 5, edits=())
    store("6.12-kasan-undo-2", 9)
    assert find_built("6.12") == plain
    assert find_built("6.12-kasan-undo").edits


def test_a_kernel_that_notices_is_meant_before_a_newer_one_that_does_not() -> None:
    loud = store("7.3-kasan", 2, ("kasan", "coverage"))
    store("7.3-coverage", 7, ("coverage",))
    assert find_built("7.3") == loud
    assert find_built("7.3-cov").built == 7


def test_the_newest_kernel_that_notices_is_one_that_counts_and_was_not_edited() -> None:
    with pytest.raises(TargetError, match="no kernel here that counts"):
        find_noticing()
    store("7.3-plain", options=("kasan",), edits=(), release="7.3.4")
    store("7.3-edited", options=("kasan", "coverage"), release="7.3.4")
    older = store("6.12-a", 9, ("kasan", "coverage"), edits=())
    assert find_noticing() == older
    newer = store("7.3-b", 1, ("kasan", "coverage"), edits=(), release="7.3.4")
    assert find_noticing() == newer


def test_a_kernel_with_kasan_gets_memory_and_no_slab_checks() -> None:
    kasan, plain = store("kasan"), store("plain", options=())
    first, second = find_kernel(kasan.binary), find_kernel(plain.binary)
    assert first.options == ("kasan_multi_shot",)
    assert first.memory_mb > second.memory_mb
    assert second.options == LOUD
    assert [m.name for m in first.modules] == ["a.ko", "b.ko"]


def test_a_removed_kernel_is_gone() -> None:
    remove_built(store("x"))
    assert list_built() == []


def test_a_damaged_folder_is_told() -> None:
    kernel = store("x")
    (kernel.folder / "chamber.json").write_text("{}")
    with pytest.raises(TargetError, match="no kernel that Chamber built"):
        list_built()


def test_the_commands_show_and_remove_kernels(capsys: pytest.CaptureFixture[str]) -> None:
    store("one")
    assert run(("lab", "info", "one")) == 0
    assert "apply fix.patch" in capsys.readouterr().out
    assert run(("lab", "list")) == 0
    assert "kernel one: 6.12.117, kasan, apply fix.patch, 2 modules" in capsys.readouterr().out
    assert run(("lab", "remove", "one")) == 0
    assert list_built() == []


@pytest.mark.parametrize("arguments", [
    ("info", "none"), ("remove", "none"), ("remove",), ("remove", "x", "--all"), ("build", "nonsense"),
    ("build", "6.12", "--name", "../x"), ("build", "6.12", "--apply", "/nonexistent"),
])
def test_bad_input_gets_one_line(arguments: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(("lab", *arguments)) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1, error


def test_missing_tools_are_named_by_their_packages(monkeypatch: pytest.MonkeyPatch, tmp_path: Path,
                                                   capsys: pytest.CaptureFixture[str]) -> None:
    tree = tmp_path / "linux"
    (tree / "arch/um").mkdir(parents=True)
    (tree / "Makefile").write_text("VERSION = 6\nPATCHLEVEL = 12\nSUBLEVEL = 1\n")
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))
    assert run(("lab", "build", str(tree))) == 2
    assert "apt-get install gcc make flex bison bc binutils perl" in capsys.readouterr().err
