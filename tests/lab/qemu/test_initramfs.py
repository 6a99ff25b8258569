"""The archive that a guest in QEMU has for a root."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
from typing import TYPE_CHECKING

import pytest

from chamber.lab.qemu.initramfs import INIT, cpio, python_path, write_initramfs

if TYPE_CHECKING:
    from pathlib import Path


def _read(data: bytes) -> dict[str, tuple[int, bytes, tuple[int, int]]]:
    """Read an archive as the kernel does: permissions, content and device number by name."""
    found: dict[str, tuple[int, bytes, tuple[int, int]]] = {}
    at = 0
    while True:
        assert data[at:at + 6] == b"070701"
        fields = [int(data[at + 6 + 8 * n:at + 14 + 8 * n], 16) for n in range(13)]
        name = data[at + 110:at + 110 + fields[11] - 1].decode()
        at = -(-(at + 110 + fields[11]) // 4) * 4
        if name == "TRAILER!!!":
            return found
        found[name] = fields[1], data[at:at + fields[6]], (fields[9], fields[10])
        at = -(-(at + fields[6]) // 4) * 4


def test_files_folders_and_devices() -> None:
    data = b"".join(cpio({"/a/b/c": (b"text", 0o640, 7), "/d": (b"", 0o755, 0)}, ("/proc",), (("/dev/null", 1, 3),)))
    found = _read(data)
    assert found["a"][0] == found["a/b"][0] == found["proc"][0] == stat.S_IFDIR | 0o755
    assert found["a/b/c"] == (stat.S_IFREG | 0o640, b"text", (0, 0))
    assert found["d"] == (stat.S_IFREG | 0o755, b"", (0, 0))
    assert found["dev/null"] == (stat.S_IFCHR | 0o600, b"", (1, 3))
    # A folder comes before what is in it.
    assert list(found).index("a") < list(found).index("a/b") < list(found).index("a/b/c")


@pytest.mark.skipif(shutil.which("cpio") is None, reason="cpio is not installed")
def test_the_ordinary_tool_reads_it() -> None:
    data = b"".join(cpio({"/a/b": (b"text", 0o640, 7)}, ("/proc",), ()))
    said = subprocess.run(["cpio", "-t", "--quiet"], input=data, capture_output=True, check=True).stdout
    assert said.decode().split() == ["a", "proc", "a/b"]


@pytest.mark.parametrize("imports", [(), ("chamber.cli.main", "chamber.cli.tdisp")], ids=["agent", "command"])
def test_the_agent_starts_from_what_is_in_it_alone(tmp_path: Path, imports: tuple[str, ...]) -> None:
    """Everything is unpacked somewhere and run there: what it would need besides would be missing."""
    module, shell = tmp_path / "first.ko", tmp_path / "busybox"
    module.write_bytes(b"module")
    shell.write_bytes(b"shell")
    write_initramfs(tmp_path / "archive", [module], shell, ("--terminal", "/dev/ttyS1"), imports=imports)
    found = _read((tmp_path / "archive").read_bytes())
    assert found["modules/first.ko"][1] == b"module"
    assert found["modules.list"][1] == b"/modules/first.ko"
    assert found["bin/sh"] == (stat.S_IFREG | 0o755, b"shell", (0, 0))
    assert b"--terminal" in found[INIT.lstrip("/")][1]
    root = tmp_path / "root"
    for name, (mode, data, _) in found.items():
        path = root / name
        if stat.S_ISDIR(mode):
            path.mkdir(parents=True, exist_ok=True)
        elif stat.S_ISREG(mode):
            path.write_bytes(data)
            path.chmod(mode & 0o777)
    if os.geteuid():
        pytest.skip("chroot takes root")
    interpreter = found[INIT.lstrip("/")][1].split(b"\n")[0][2:].decode().split()[0]
    wanted = ", ".join(("chamber.lab.agent.__main__", *imports))
    done = subprocess.run(
        ["chroot", root, interpreter, "-SsB", "-c",
         f"import sys; sys.path[:0] = {python_path()}; import {wanted}; print('there')"],
        capture_output=True, text=True, check=False, timeout=60)
    assert done.stdout == "there\n", done.stderr
