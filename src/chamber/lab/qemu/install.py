"""QEMU and stock kernels, in a folder of Chamber's own; a QEMU of the system that is new enough is used instead."""

from __future__ import annotations

import lzma
import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from chamber.lab.debian import Apt, unpack
from chamber.lab.kernel.module_file import module_name, module_needs
from chamber.lab.kernel.source import cache_folder, locked
from chamber.lab.observation import TargetError
from chamber.wire.virtio import DeviceType

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

__all__ = ("QemuKernel", "QemuProgram", "find_accelerator", "find_qemu", "find_qemu_kernel", "install_kernel",
           "install_qemu", "list_qemu_kernels")

LEAST: Final = (10, 1)
"""The first QEMU with ``vfio-user-pci``."""
_SUITES: Final = ("trixie", "trixie-backports")
_LATEST: Final = "trixie-backports"
_KERNEL: Final = "linux-image-amd64"
_MEMORY_MB: Final = 768
"""A third of it lies beyond 4 GiB: only then does Linux on x86 say where its pool is. What is free costs time with a
balloon, of which all is hinted, through the pool."""
_PROBE_SECONDS: Final = 6
_VERSION: Final = re.compile(r"QEMU emulator version (\d+)\.(\d+)")
_DRIVERS: Final = {
    DeviceType.NET: "virtio_net", DeviceType.BLOCK: "virtio_blk", DeviceType.CONSOLE: "virtio_console",
    DeviceType.RNG: "virtio_rng", DeviceType.BALLOON: "virtio_balloon", DeviceType.SCSI: "virtio_scsi",
    DeviceType.TRANSPORT_9P: "9pnet_virtio", DeviceType.INPUT: "virtio_input",
    DeviceType.VSOCK: "vmw_vsock_virtio_transport", DeviceType.CRYPTO: "virtio_crypto", DeviceType.SND: "virtio_snd",
    DeviceType.FS: "virtiofs", DeviceType.PMEM: "virtio_pmem"}
_BESIDE: Final = {
    DeviceType.INPUT: ("evdev",), DeviceType.VSOCK: ("vsock_loopback",), DeviceType.SCSI: ("sd_mod",),
    DeviceType.TRANSPORT_9P: ("9p",), DeviceType.CRYPTO: ("algif_skcipher",), DeviceType.SND: ("snd_pcm",)}
"""What a type's stimuli need beside its driver."""
_STORAGE: Final = ("ext4", "crc32c_generic", "nd_pmem")
"""For whoever puts files on a disk; the second one the first asks for when it mounts. The last makes a disk of
persistent memory."""
_OPTIONS: Final = ("swiotlb=force", "slub_debug=FZPU,kmalloc-*;FZP", "cryptomgr.notests=1", "mitigations=off")
"""All DMA bounced, and checks of slab objects, as a stock kernel has no KASAN; whose they are is written down of those
that drivers lay out themselves, which takes an emulated processor long. What is off against speculation does nothing on
such a processor but to cost a quarter of its time. The crypto driver's results are wrong with bounce buffers, however
honest its device is; a kernel that tests them would use it for nothing."""


def _folder(*parts: str) -> Path:
    return cache_folder().parent.joinpath("qemu", *parts)


@dataclass(frozen=True, slots=True)
class QemuProgram:
    """A QEMU that can be started.

    Attributes:
        command: how, before its own arguments.
        environment: what it needs besides.
        version: its version.
        own: whether it lies in Chamber's folder.

    """

    command: tuple[str, ...]
    environment: tuple[tuple[str, str], ...]
    version: str
    own: bool


def find_qemu() -> QemuProgram:
    """Find a QEMU that speaks vfio-user: the system's, or the one that was installed here.

    Raises:
        TargetError: there is none.

    """
    system = shutil.which("qemu-system-x86_64")
    if system is not None and (found := _look(QemuProgram((system,), (), "", own=False))) is not None:
        return found
    own = _own(_folder("program"))
    if own is not None and (found := _look(own)) is not None:
        return found
    raise TargetError("no QEMU 10.1 or newer here: chamber lab install qemu fetches one")


def _own(root: Path) -> QemuProgram | None:
    libraries = root / "usr/lib/x86_64-linux-gnu"
    program = root / "usr/bin/qemu-system-x86_64"
    if not program.exists():
        return None
    # Its own loader and libraries: those of the system may be older.
    return QemuProgram((str(libraries / "ld-linux-x86-64.so.2"), "--library-path", str(libraries), str(program),
                        "-L", str(root / "usr/share/qemu"), "-L", str(root / "usr/share/seabios")),
                       (("QEMU_MODULE_DIR", str(libraries / "qemu")),), "", own=True)


def _look(program: QemuProgram) -> QemuProgram | None:
    """Ask a QEMU for its version; None if it is too old, or does not run."""
    try:
        said = subprocess.run((*program.command, "--version"), capture_output=True, text=True, timeout=20, check=False,
                              env={**os.environ, **dict(program.environment)}).stdout
    except (OSError, subprocess.TimeoutExpired):
        return None
    version = _VERSION.search(said)
    if version is None or (int(version[1]), int(version[2])) < LEAST:
        return None
    return QemuProgram(program.command, program.environment, said.split()[3], program.own)


def find_accelerator(program: QemuProgram, kernel: QemuKernel) -> str:
    """Return ``kvm`` where it carries a kernel as far as its first line that needs a root, ``tcg`` elsewhere.

    That there is a device for it says little: a machine that is virtual itself may have one that emulates wrongly.
    """
    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        return "tcg"
    command = (*program.command, "-accel", "kvm", "-M", "q35", "-cpu", "max", "-m", "256", "-nodefaults", "-display",
               "none", "-no-reboot", "-serial", "stdio", "-kernel", str(kernel.path), "-append",
               "console=ttyS0 panic=-1")
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", stdin=subprocess.DEVNULL,
                              timeout=_PROBE_SECONDS, check=False, env={**os.environ, **dict(program.environment)})
    except (OSError, subprocess.TimeoutExpired):
        return "tcg"
    return "kvm" if "Kernel panic" in done.stdout else "tcg"


def install_qemu(tell: Callable[[str], None] = lambda _line: None) -> QemuProgram:
    """Fetch QEMU from Debian, unless there is one that will do.

    Raises:
        TargetError: it can't be fetched.

    """
    try:
        return find_qemu()
    except TargetError:
        pass
    target = _folder("program")
    with locked(target):
        part = target.with_name("program.part")
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
        tell(f"fetching QEMU from {_LATEST}")
        with Apt.opened(*_SUITES) as apt:
            for deb in apt.fetch("qemu-system-x86", suite=_LATEST):
                unpack(deb, part)
        shutil.rmtree(target, ignore_errors=True)
        part.rename(target)
    return find_qemu()


@dataclass(frozen=True, slots=True)
class QemuKernel:
    """A distribution's kernel.

    Attributes:
        path: the image.
        release: what it says that it is.
        modules: modules to load, each after those that it needs.
        options: words for its command line.
        memory_mb: megabytes that a guest needs with it.
        built_in: modules that are part of the kernel itself.
        shell: a program for the guest: BusyBox.

    """

    path: Path
    release: str
    modules: tuple[Path, ...]
    built_in: frozenset[str]
    shell: Path
    options: tuple[str, ...] = _OPTIONS
    memory_mb: int = _MEMORY_MB

    @property
    def devices(self) -> tuple[DeviceType, ...]:
        """What it has drivers for."""
        there = {module_name(module) for module in self.modules} | self.built_in
        return tuple(kind for kind, module in _DRIVERS.items() if module in there)


def install_kernel(tell: Callable[[str], None] = lambda _line: None, package: str = _KERNEL) -> QemuKernel:
    """Fetch a kernel that Debian builds, with the modules that virtio devices need.

    Raises:
        TargetError: it can't be fetched.

    """
    with Apt.opened(*_SUITES) as apt:
        image = package if re.search(r"\d", package.removesuffix("-amd64")) else apt.dependency(package, "linux-image-")
        release = image.removeprefix("linux-image-")
        target = _folder("kernels", release)
        with locked(target):
            if not _is_whole(target):
                shutil.rmtree(target, ignore_errors=True)
                tell(f"fetching {image}")
                part = target.with_name(f".{release}.part")
                shutil.rmtree(part, ignore_errors=True)
                (part / "all").mkdir(parents=True)
                unpack(apt.fetch_alone(image), part / "all")
                unpack(apt.fetch_alone("busybox-static"), part / "all")
                _pick(part, release)
                part.rename(target)
    return _read(target)


def _is_whole(target: Path) -> bool:
    """Whether a kernel is there with all that is kept of one now."""
    if not (target / "order").exists():
        return False
    kernel = _read(target)
    return kernel.built_in | {module_name(module) for module in kernel.modules} >= set(_STORAGE)


def _pick(part: Path, release: str) -> None:
    """Keep the image, its configuration, and the modules that drivers of virtio devices need, unpacked."""
    everything = part / "all"
    (everything / f"boot/vmlinuz-{release}").rename(part / "vmlinuz")
    (everything / f"boot/config-{release}").rename(part / "config")
    (everything / "usr/bin/busybox").rename(part / "busybox")
    listed = (everything / f"usr/lib/modules/{release}/modules.builtin").read_text(encoding="ascii").split()
    (part / "built-in").write_text("".join(f"{line.rpartition('/')[2]}\n" for line in listed), encoding="ascii")
    files = {module_name(path): path for path in everything.rglob("*.ko*")}
    (part / "modules").mkdir()
    order: dict[str, None] = {}
    for kind, driver in _DRIVERS.items():
        for name in (driver, *_BESIDE.get(kind, ())):
            _need(name, files, part / "modules", order)
    for name in _STORAGE:
        _need(name, files, part / "modules", order)
    (part / "order").write_text("".join(f"{name}\n" for name in order), encoding="ascii")
    shutil.rmtree(everything)


def _need(name: str, files: dict[str, Path], folder: Path, order: dict[str, None]) -> None:
    """Unpack a module after those that it needs; what is not there is part of the kernel, or not to be had."""
    source = files.get(name)
    if source is None or name in order:
        return
    data = source.read_bytes()
    if source.suffix == ".xz":
        data = lzma.decompress(data)
    for other in module_needs(data):
        _need(other, files, folder, order)
    (folder / f"{name}.ko").write_bytes(data)
    order[name] = None


def _read(folder: Path) -> QemuKernel:
    order = (folder / "order").read_text(encoding="ascii").split()
    built_in = (folder / "built-in").read_text(encoding="ascii").split()
    return QemuKernel(folder / "vmlinuz", folder.name, tuple(folder / "modules" / f"{name}.ko" for name in order),
                      frozenset(name.partition(".ko")[0].replace("-", "_") for name in built_in), folder / "busybox")


def list_qemu_kernels() -> list[QemuKernel]:
    """Return the kernels that were installed."""
    return [_read(path.parent) for path in sorted(_folder("kernels").glob("[!.]*/order"))]


def find_qemu_kernel(name: str | None = None) -> QemuKernel:
    """Find an installed kernel by the beginning of its release; the latest without.

    Raises:
        TargetError: there is none.

    """
    found = [kernel for kernel in list_qemu_kernels() if name is None or kernel.release.startswith(name)]
    if not found:
        which = "no stock kernel" if name is None else f"no stock kernel {name}"
        raise TargetError(f"{which} for QEMU here: chamber lab install kernel fetches one")
    return found[-1]
