"""An unmodified Debian kernel in QEMU, with a shell script as its first process, before one device of Chamber's."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from pathlib import Path
from typing import Final

import pytest

__all__ = ("NEEDED", "run_linux")

_CACHE: Final = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "chamber" / "guest"
_OWN: Final = _CACHE / "qemu" / "usr"
_QEMU: Final = (str(_OWN / "bin" / "qemu-system-x86_64") if _OWN.exists() else shutil.which("qemu-system-x86_64"))
_BUS: Final = ("virtio_ring", "virtio", "virtio_pci_legacy_dev", "virtio_pci_modern_dev", "virtio_pci")
_SECONDS: Final = 60
_BEGIN, _END = "--begin--", "--end--"

NEEDED: Final = pytest.mark.skipif(_QEMU is None or not (_CACHE / "vmlinuz").exists(),
                                   reason="needs qemu-system-x86_64 and what scripts/debian-guest fetches")
_INIT: Final = """#!/bin/busybox sh
/bin/busybox mkdir -p /proc /sys /dev /tmp
/bin/busybox --install /bin
mount -t proc none /proc; mount -t sysfs none /sys; mount -t devtmpfs none /dev
exec < /dev/null > /dev/ttyS0 2>&1
stty -opost < /dev/ttyS0
for module in {modules}; do insmod /modules/$module.ko; done
echo; echo {begin}
{script}
echo {end}
poweroff -f
"""


def _archive(files: dict[str, tuple[int, bytes]]) -> bytes:
    """A cpio archive of the newc form, which the kernel unpacks (Linux, initramfs buffer format)."""
    out = bytearray()
    for number, (name, (mode, data)) in enumerate([*files.items(), ("TRAILER!!!", (0, b""))], 1):
        raw = name.encode() + b"\0"
        fields = (number, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(raw), 0)
        for part in (b"070701" + b"".join(b"%08X" % field for field in fields) + raw, data):
            out += part
            out += bytes(-len(out) % 4)
    return bytes(out)


def run_linux(folder: Path, socket: Path, device: str, modules: tuple[str, ...], script: str) -> list[str]:
    """Boot, run a script with the device's drivers loaded; return the lines that it wrote.

    Args:
        folder: for the archive and the console.
        socket: where the device is served.
        device: QEMU's name of it.
        modules: of the drivers.
        script: for busybox's shell.

    """
    assert _QEMU is not None
    loaded = (*_BUS, *modules)
    files: dict[str, tuple[int, bytes]] = {"bin": (0o040755, b""), "modules": (0o040755, b"")}
    files["bin/busybox"] = (0o100755, (_CACHE / "busybox").read_bytes())
    for name in loaded:
        files[f"modules/{name}.ko"] = (0o100644, (_CACHE / "modules" / f"{name}.ko").read_bytes())
    init = _INIT.format(modules=" ".join(loaded), script=script, begin=_BEGIN, end=_END)
    files["init"] = (0o100755, init.encode())
    archive, console = folder / "initramfs", folder / "console"
    archive.write_bytes(_archive(files))
    command = [_QEMU, "-machine", "q35,accel=tcg,memory-backend=m", "-cpu", "max", "-m", "256", "-object",
               "memory-backend-memfd,id=m,size=256M,share=on", "-nodefaults", "-display", "none", "-no-reboot",
               "-serial", f"file:{console}", "-kernel", str(_CACHE / "vmlinuz"), "-initrd", str(archive),
               "-append", "console=ttyS0 quiet panic=-1", "-chardev", f"socket,id=c,path={socket}",
               "-device", f"{device},chardev=c"]
    environment = dict(os.environ)
    if _OWN.exists():
        command += ["-L", str(_OWN / "share" / "qemu"), "-L", str(_OWN / "share" / "seabios")]
        environment["QEMU_MODULE_DIR"] = str(_OWN / "lib" / "x86_64-linux-gnu" / "qemu")
    with subprocess.Popen(command, stderr=subprocess.PIPE, env=environment) as process:
        deadline = time.monotonic() + _SECONDS
        while process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.05)
        process.kill()
        _, errors = process.communicate()
    said = console.read_text(encoding="utf-8", errors="replace") if console.exists() else ""
    assert _END in said, f"{errors.decode()}\n{said[-2000:]}"
    return said.partition(_BEGIN)[2].partition(_END)[0].split("\n")
