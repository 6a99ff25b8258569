"""``chamber``, ``chamber attacks``, ``chamber lab list``."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from chamber import __version__
from chamber.attacks.catalogue import catalogue
from chamber.cli import targets
from chamber.lab.observation import TargetError

if TYPE_CHECKING:
    from pathlib import Path

    from tests.cli.conftest import Bench


def test_version_and_help(bench: Bench) -> None:
    assert bench.chamber("--version") == (0, f"chamber {__version__}\n", "")
    status, out, _ = bench.chamber()
    assert status == 0
    for command in ("assess", "attacks", "replay", "serve", "lab"):
        assert f"  {command} " in out


def test_unknown_command(bench: Bench) -> None:
    status, out, err = bench.chamber("asess")
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert "'asess'" in err


def test_attacks_as_json(bench: Bench) -> None:
    status, out, _ = bench.chamber("attacks", "--json")
    assert status == 0
    assert [entry["name"] for entry in json.loads(out)] == [spec.name for spec in catalogue()]


def test_attacks_of_a_device_and_surface(bench: Bench) -> None:
    expected = [s.name for s in catalogue() if s.device.short == "rng" and s.surface.value in {"ring", "length"}]
    status, out, err = bench.chamber("attacks", "--device", "rng", "--surface", "ring", "--surface", "length")
    assert status == 0
    assert [line.split()[0] for line in out.splitlines()] == expected
    assert err == f"{len(expected)} attacks\n"


def test_attacks_with_an_unknown_surface(bench: Bench) -> None:
    status, _, err = bench.chamber("attacks", "--surface", "rings")
    assert status == 2
    assert "'rings' is not one of" in err


def test_lab_list(bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))  # without the kernels that this user has built
    bench.missing["uml"] = "no user-mode-linux kernel here"
    bench.missing["uml-pci"] = "no kernel here that counts"
    bench.missing["qemu"] = "no QEMU here"
    status, out, _ = bench.chamber("lab", "list")
    assert status == 0
    assert out.splitlines() == [
        "model   available  kernel: 6.1.0, options: a b, profiles: bare hardened",
        "uml     missing    no user-mode-linux kernel here",
        "uml-pci missing    no kernel here that counts",
        "qemu    missing    no QEMU here"]


def test_a_target_whose_module_is_missing_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(targets._CLASSES, "model", ("chamber.lab.nowhere", "Nothing"))
    with pytest.raises(TargetError, match=r"chamber\.lab\.nowhere is missing"):
        targets.make_target("model")
