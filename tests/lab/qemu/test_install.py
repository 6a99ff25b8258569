"""Finding QEMU and kernels, and what is kept of a kernel's package."""

from __future__ import annotations

import lzma
import os
import shutil
from typing import TYPE_CHECKING

import pytest

from chamber.cli.main import run
from chamber.lab.debian import run_tool
from chamber.lab.observation import TargetError
from chamber.lab.qemu import install
from chamber.lab.qemu.install import QemuProgram, find_accelerator, find_qemu, find_qemu_kernel
from chamber.wire.virtio import DeviceType

if TYPE_CHECKING:
    from pathlib import Path

RELEASE = "6.12.99-amd64"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:/usr/bin:/bin")
    monkeypatch.setattr(shutil, "which", lambda name: str(path) if (path := tmp_path / "bin" / name).exists() else None)
    return tmp_path


def _program(path: Path, words: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{words}\n")
    path.chmod(0o755)


@pytest.mark.parametrize(("said", "version"), [
    ("QEMU emulator version 11.1.3 (Debian 1:11.1.3+ds-1)", "11.1.3"), ("QEMU emulator version 10.1.0", "10.1.0"),
    ("QEMU emulator version 10.0.2 (Debian)", None), ("QEMU emulator version 7.2.22", None), ("hello", None)])
def test_a_qemu_of_the_system_that_is_new_enough_is_used(cache: Path, said: str, version: str | None) -> None:
    _program(cache / "bin/qemu-system-x86_64", f"echo '{said}'")
    if version is None:
        with pytest.raises(TargetError, match="chamber lab install qemu"):
            find_qemu()
    else:
        found = find_qemu()
        assert (found.version, found.own) == (version, False)


def test_one_that_was_fetched_is_started_by_its_own_loader(cache: Path) -> None:
    root = cache / "cache/chamber/qemu/program"
    (root / "usr/bin").mkdir(parents=True)
    (root / "usr/bin/qemu-system-x86_64").write_text("no script: its loader starts it")
    _program(root / "usr/lib/x86_64-linux-gnu/ld-linux-x86-64.so.2", "echo QEMU emulator version 11.1.3")
    found = find_qemu()
    assert found.own
    assert found.command[0].endswith("ld-linux-x86-64.so.2")
    assert dict(found.environment)["QEMU_MODULE_DIR"].startswith(str(root))


def _package(folder: Path) -> None:
    """Make what a kernel's package has, with modules that need each other."""
    tree = folder / "all"
    kernel = tree / f"usr/lib/modules/{RELEASE}/kernel"
    (tree / "boot").mkdir(parents=True)
    (tree / "usr/bin").mkdir(parents=True)
    (tree / f"boot/vmlinuz-{RELEASE}").write_bytes(b"image")
    (tree / f"boot/config-{RELEASE}").write_text("CONFIG_VIRTIO=y\n")
    (tree / "usr/bin/busybox").write_bytes(b"shell")
    kernel.mkdir(parents=True)
    for name, needs in (("virtio_net", "net_failover"), ("net_failover", "failover"), ("failover", ""),
                        ("virtio-rng", ""), ("other", "")):
        data = b"\x7fELF\0depends=" + needs.encode() + b"\0name=x\0"
        (kernel / f"{name}.ko.xz").write_bytes(lzma.compress(data))
    (kernel.parent / "modules.builtin").write_text(
        "kernel/drivers/char/virtio_console.ko\nkernel/fs/fuse/virtiofs.ko\n")


def test_what_is_kept_of_a_kernel(cache: Path) -> None:
    folder = cache / "cache/chamber/qemu/kernels" / RELEASE
    _package(folder)
    install._pick(folder, RELEASE)
    kernel = find_qemu_kernel("6.12")
    assert kernel.release == RELEASE
    assert [path.name for path in kernel.modules] == [
        "failover.ko", "net_failover.ko", "virtio_net.ko", "virtio_rng.ko"]
    assert kernel.modules[0].read_bytes().startswith(b"\x7fELF")
    assert set(kernel.devices) == {DeviceType.NET, DeviceType.RNG, DeviceType.CONSOLE, DeviceType.FS}
    assert not (folder / "all").exists()
    assert kernel.path.read_bytes() == b"image"
    with pytest.raises(TargetError, match="chamber lab install kernel"):
        find_qemu_kernel("7.")


@pytest.mark.parametrize(("words", "found"), [
    ("echo 'KVM internal error'; sleep 60", "tcg"), ("echo 'Kernel panic - not syncing'", "kvm"), ("exit 1", "tcg")])
def test_kvm_is_used_where_it_carries_a_kernel(cache: Path, monkeypatch: pytest.MonkeyPatch, words: str,
                                               found: str) -> None:
    _program(cache / "bin/q", words)
    folder = cache / "cache/chamber/qemu/kernels" / RELEASE
    _package(folder)
    install._pick(folder, RELEASE)
    program = QemuProgram((str(cache / "bin/q"),), (), "11.1.3", own=False)
    monkeypatch.setattr(install, "_PROBE_SECONDS", 1)
    monkeypatch.setattr(os, "access", lambda _path, _mode: False)
    assert find_accelerator(program, find_qemu_kernel()) == "tcg"
    monkeypatch.setattr(os, "access", lambda _path, _mode: True)
    assert find_accelerator(program, find_qemu_kernel()) == found


def test_what_is_missing_is_said_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["assess", "--target", "qemu"]) == 2
    assert "chamber lab install qemu" in capsys.readouterr().err
    assert run(["lab", "install", "qemu", "linux-image-amd64"]) == 2
    assert run(["lab", "boot", "--target", "qemu"]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 2


def test_a_tool_that_fails_is_a_clear_error() -> None:
    assert run_tool("echo", "hello") == "hello\n"
    with pytest.raises(TargetError, match="nonesuch is missing"):
        run_tool("nonesuch")
    with pytest.raises(TargetError, match="sh: no way"):
        run_tool("sh", "-c", "echo no way >&2; exit 3")
