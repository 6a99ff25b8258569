"""A user-mode-linux kernel on this machine: where it is, what it is, how it has to be started here."""

from __future__ import annotations

import ctypes
import os
import re
import shutil
import subprocess
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

from chamber.lab.kernel.module_file import module_name, module_needs
from chamber.lab.kernel.store import BuiltKernel, find_built
from chamber.lab.observation import TargetError
from chamber.wire.virtio import DeviceType

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ("LOUD", "MODULES", "UmlKernel", "find_kernel", "install_fp_filter", "needs_fp_filter")

INSTALL_HINT: Final = "no user-mode-linux kernel here: as root, apt-get install user-mode-linux"
_MODULES_TOP: Final = Path("/usr/lib/uml/modules")
MODULES: Final = (
    "net/core/failover.ko",
    "drivers/net/net_failover.ko",
    "drivers/net/virtio_net.ko",
    "drivers/block/virtio_blk.ko",
    "drivers/char/virtio_console.ko",
    "drivers/virtio/virtio_balloon.ko",
    "fs/fuse/fuse.ko",
    "fs/fuse/virtiofs.ko",
    "lib/crc64.ko",
    "lib/crc64-rocksoft.ko",
    "block/t10-pi.ko",
    "drivers/scsi/scsi_common.ko",
    "drivers/scsi/scsi_mod.ko",
    "drivers/scsi/sd_mod.ko",
    "drivers/scsi/virtio_scsi.ko",
    "net/vmw_vsock/vsock.ko",
    "net/vmw_vsock/vmw_vsock_virtio_transport_common.ko",
    "net/vmw_vsock/vmw_vsock_virtio_transport.ko",
)
"""Modules to load, in the order in which they need each other; those that are missing are built in, or not there."""

_DRIVERS: Final = {
    DeviceType.NET: "virtio_net.ko",
    DeviceType.BLOCK: "virtio_blk.ko",
    DeviceType.CONSOLE: "virtio_console.ko",
    DeviceType.BALLOON: "virtio_balloon.ko",
    DeviceType.FS: "virtiofs.ko",
    DeviceType.SCSI: "virtio_scsi.ko",
    DeviceType.VSOCK: "vmw_vsock_virtio_transport.ko",
    DeviceType.RNG: "virtio-rng.ko",
    DeviceType.TRANSPORT_9P: "9pnet_virtio.ko",
    DeviceType.INPUT: "virtio_input.ko",
    DeviceType.SND: "virtio_snd.ko",
    DeviceType.CRYPTO: "virtio_crypto.ko",
    DeviceType.PMEM: "virtio_pmem.ko",
}
"""The module of each type's driver."""
_BESIDE: Final = {
    DeviceType.CRYPTO: ("algif_skcipher.ko",),
    DeviceType.SCSI: ("sd_mod.ko",),
    DeviceType.TRANSPORT_9P: ("9p.ko",),
    DeviceType.VSOCK: ("vsock_loopback.ko", "vsock_diag.ko"),
}
"""What a type's stimuli need beside its driver."""

LOUD: Final = ("slub_debug=FZPU",)
"""Kernel options for a kernel that was not built to notice: red zones, poison, owners and checks of slab objects."""
_KASAN_MEMORY_MB: Final = 160

_AT_MINSIGSTKSZ: Final = 51
_UML_FP_BYTES: Final = 2696
"""Room for floating-point registers in User-Mode Linux up to 6.12 (HOST_FP_SIZE)."""
_LAST_OF_FIXED_SIZE: Final = (6, 12)
"""Later ones ask the processor, and don't start where PTRACE_GETREGSET fails."""
_SIGNAL_FRAME_BYTES: Final = 1200
"""What a signal frame has besides them, at most."""
_PR_SET_SECCOMP, _PR_SET_NO_NEW_PRIVS, _SECCOMP_MODE_FILTER = 22, 38, 2
_PTRACE, _GETREGSET, _SETREGSET = 101, 0x4204, 0x4205
_ERRNO_EINVAL, _ALLOW = 0x00050016, 0x7FFF0000
_LOAD, _JUMP_EQUAL, _RETURN = 0x20, 0x15, 0x06
_TWO_PROCESSORS: Final = "ncpus=2"


@dataclass(frozen=True, slots=True)
class UmlKernel:
    """A kernel binary.

    Attributes:
        path: the executable.
        release: what it says that it is, such as ``6.1.176``.
        modules: the modules to load, present ones only.
        options: words for its command line that make silent corruption loud.
        memory_mb: megabytes that a guest needs with it.
        built: what is known of a kernel that Chamber built.

    """

    path: Path
    release: str
    modules: tuple[Path, ...]
    options: tuple[str, ...] = LOUD
    memory_mb: int = 96
    built: BuiltKernel | None = None

    @property
    def devices(self) -> tuple[DeviceType, ...]:
        """What it has drivers for: the types of `_DRIVERS` whose module is there."""
        there = {module.name for module in self.modules}
        return tuple(kind for kind, module in _DRIVERS.items() if module in there)

    def for_device(self, device: DeviceType) -> UmlKernel:
        """Return the same without what other devices alone need, which takes its time to load."""
        needs = {module_name(module): module_needs(module.read_bytes()) for module in self.modules}
        others = {name for kind in _DRIVERS if kind is not device for name in _closure(needs, kind)}
        others -= _closure(needs, device)
        kept: list[Path] = []
        for module in self.modules:
            name = module_name(module)
            if name in others or not others.isdisjoint(needs[name]):
                others.add(name)  # what needs one that is left out can't be loaded either
            else:
                kept.append(module)
        return replace(self, modules=tuple(kept))

    @property
    def parallel(self) -> bool:
        """Whether it runs on several processors at once."""
        return _TWO_PROCESSORS in self.options

    @property
    def counts(self) -> bool:
        """Whether it can count what its drivers execute."""
        return self.built is not None and "coverage" in self.built.options


def _closure(needs: Mapping[str, list[str]], device: DeviceType) -> set[str]:
    """The modules that a device is used with, of those that are there."""
    found: set[str] = set()
    wanted = [module_name(Path(module)) for module in (_DRIVERS[device], *_BESIDE.get(device, ()))]
    while wanted:
        name = wanted.pop()
        if name in needs and name not in found:
            found.add(name)
            wanted += needs[name]
    return found


def find_kernel(path: Path | None = None) -> UmlKernel:
    """Find Debian's ``linux.uml``, or look at the kernel given: one built here, by its name, or any, by its path.

    Raises:
        TargetError: there is none, or it is not a user-mode-linux kernel.

    """
    if path is None:
        found = shutil.which("linux.uml")
        if found is None:
            raise TargetError(INSTALL_HINT)
        path = Path(found)
    elif not path.exists() and path.parent == Path():
        return _built(find_built(str(path)))
    elif (path.parent / "chamber.json").exists():
        return _built(BuiltKernel.read(path.parent))
    elif not path.is_file() or not os.access(path, os.X_OK):
        raise TargetError(f"{path}: no kernel that can be executed")
    try:
        done = subprocess.run([path, "--version"], capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise TargetError(f"{path}: not a user-mode-linux kernel ({error})") from None
    release = done.stdout.strip().splitlines()[0] if done.stdout.strip() else ""
    if done.returncode or not release[:1].isdigit():
        raise TargetError(f"{path}: not a user-mode-linux kernel (it does not tell its version)")
    top = _MODULES_TOP / release / "kernel"
    return UmlKernel(path.resolve(), release, tuple(top / m for m in MODULES if (top / m).exists()))


def _built(kernel: BuiltKernel) -> UmlKernel:
    modules = tuple(kernel.folder / "modules" / m for m in kernel.modules)
    words = () if _is_fixed_size(kernel.release) else ("seccomp=auto",)  # faster than ptrace, where there is both
    if "smp" in kernel.options:
        words = (*words, _TWO_PROCESSORS)
    if "kasan" in kernel.options:
        # KASAN sees more than the checks of slabs do, which would cost half of the speed besides; and it takes memory.
        return UmlKernel(kernel.binary, kernel.release, modules, ("kasan_multi_shot", *words), _KASAN_MEMORY_MB, kernel)
    return UmlKernel(kernel.binary, kernel.release, modules, (*LOUD, *words), built=kernel)


def needs_fp_filter(release: str) -> bool:
    """Whether this processor has more registers than a release of User-Mode Linux has room for.

    With AMX, PTRACE_SETREGSET refuses the 2696 bytes that User-Mode Linux hands it (EFAULT), and the kernel panics at
    its first user process. The size of a signal frame tells how large the register state is.
    """
    if not _is_fixed_size(release):
        return False
    libc = ctypes.CDLL(None)
    libc.getauxval.restype = ctypes.c_ulong
    return int(libc.getauxval(_AT_MINSIGSTKSZ)) > _UML_FP_BYTES + _SIGNAL_FRAME_BYTES


def _is_fixed_size(release: str) -> bool:
    series = re.match(r"(\d+)\.(\d+)", release)
    return series is None or (int(series[1]), int(series[2])) <= _LAST_OF_FIXED_SIZE


class _Instruction(ctypes.Structure):
    _fields_ = (("code", ctypes.c_ushort), ("jt", ctypes.c_ubyte), ("jf", ctypes.c_ubyte), ("k", ctypes.c_uint32))


class _Program(ctypes.Structure):
    _fields_ = (("len", ctypes.c_ushort), ("filter", ctypes.POINTER(_Instruction)))


_FILTER: Final = (
    (_LOAD, 0, 0, 0),
    (_JUMP_EQUAL, 0, 4, _PTRACE),
    (_LOAD, 0, 0, 16),
    (_JUMP_EQUAL, 1, 0, _GETREGSET),
    (_JUMP_EQUAL, 0, 1, _SETREGSET),
    (_RETURN, 0, 0, _ERRNO_EINVAL),
    (_RETURN, 0, 0, _ALLOW),
)
GUEST_ENVIRONMENT: Final = (
    "GLIBC_TUNABLES=glibc.cpu.hwcaps=-AVX,-AVX2,-AVX512F,-AVX512VL,-AVX512BW,-AVX512DQ,"
    "-AVX_Fast_Unaligned_Load,-Prefer_No_VZEROUPPER,-XSAVEC,-XSAVE"
)
"""Keeps the guest's C library off registers that PTRACE_GETFPREGS does not save: a page fault would lose them."""


def install_fp_filter() -> None:
    """Make PTRACE_GETREGSET and _SETREGSET fail in this process and its children.

    User-Mode Linux then falls back to PTRACE_GETFPREGS, which has the size it expects. To be called in a child between
    fork and exec: nothing undoes it.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    code = (_Instruction * len(_FILTER))(*[_Instruction(*line) for line in _FILTER])
    program = _Program(len(_FILTER), code)
    if libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) or libc.prctl(
            _PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, ctypes.byref(program), 0, 0):
        raise OSError(ctypes.get_errno(), "seccomp filter refused")
