"""The guest kernel's own interfaces: mounts, modules, buses, power."""

from __future__ import annotations

import contextlib
import ctypes
import os
import socket
import time
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from chamber.lab.agent.patience import patient
from chamber.lab.agent.report import Silence

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = (
    "DEBUGFS",
    "FUNCTIONS",
    "SECRET",
    "bind_platform",
    "bounce_slots",
    "check_slabs",
    "let_wake",
    "load_module",
    "log",
    "module_sections",
    "mount",
    "pci_functions",
    "plant",
    "platform_devices",
    "power_off",
    "read",
    "read_tree",
    "rebind_driver",
    "unbind_platform",
    "virtio_name",
    "wait_for",
    "wait_until",
    "write",
)

_T = TypeVar("_T")
_LIBC = ctypes.CDLL(None, use_errno=True)
_FINIT_MODULE = 313
_POWER_OFF = 0x4321FEDC
_PLATFORM = Path("/sys/bus/platform/drivers/virtio-uml")
_PCI_CARRIER = "virtio-pci"
"""The driver of what carries a PCI function."""
_PCI = Path("/sys/bus/pci/devices")
_PCI_RESCAN = Path("/sys/bus/pci/rescan")
_VIRTIO = Path("/sys/bus/virtio/devices")
_SLABS = Path("/sys/kernel/slab")
_BEFORE_CHECKS = "kmem_cache_node"
"""Its first objects are older than its checks: Linux 7.3 finds a wrong free pointer in a guest that did nothing."""
_PLANTED_PIPES = 8
_PLANTED_SIZES = (32, 64, 96, 128, 192, 256, 512, 1024, 2048, 4096)
"""What caches for objects of drivers hold."""
_PLANTED_OBJECTS = 16
_PLANTED_SOCKETS = 16
_MOST_READ = 1 << 16
DEBUGFS = Path("/sys/kernel/debug")
FUNCTIONS: list[str] = []
"""Where devices under test are on a bus that has others as well; empty where it has no others."""


def _check(result: int, what: str) -> None:
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{what}: {os.strerror(code)}")


def mount(source: str, target: str, kind: str, options: str = "") -> None:
    """Mount a file system, if it is not mounted yet."""
    if not os.path.ismount(target):
        _check(_LIBC.mount(source.encode(), target.encode(), kind.encode(), 0, options.encode()), f"mount {target}")


def let_wake(terminal: str) -> None:
    """Have input on a serial port wake the machine; other terminals have no such switch."""
    switch = Path("/sys/class/tty") / terminal / "power/wakeup"
    if switch.exists():
        write(switch, "enabled")


def log() -> list[str]:
    """Return the records of the kernel's log, those that the console does not show as well."""
    fd = os.open("/dev/kmsg", os.O_RDONLY | os.O_NONBLOCK)
    records = []
    try:
        while True:
            try:
                records.append(os.read(fd, 8192).decode(errors="replace"))
            except BlockingIOError:
                return records
            except BrokenPipeError:
                continue  # some were overwritten meanwhile
    finally:
        os.close(fd)


def load_module(path: Path) -> None:
    """Insert a kernel module from a file."""
    fd = os.open(path, os.O_RDONLY)
    try:
        _check(_LIBC.syscall(_FINIT_MODULE, fd, b"", 0), f"load {path.name}")
    finally:
        os.close(fd)


def module_sections() -> dict[str, dict[str, int]]:
    """Return where the code of each module is, by section."""
    return {module.parent.name: {path.name: int(path.read_text(encoding="ascii"), 16)
                                 for path in sorted(module.glob(".*text*"))}
            for module in Path("/sys/module").glob("*/sections")}


def power_off() -> None:
    """Shut all devices down and end the guest, as reboot(2) does."""
    os.sync()
    _LIBC.reboot(_POWER_OFF)


def write(path: str | Path, text: str) -> None:
    """Write to a kernel file in one call."""
    fd = os.open(path, os.O_WRONLY)
    try:
        os.write(fd, text.encode())
    finally:
        os.close(fd)


def read(path: str | Path) -> bytes:
    """Read a kernel file in one call; what belongs to a buffered file takes a guest six more."""
    fd = os.open(path, os.O_RDONLY)
    try:
        return os.read(fd, _MOST_READ)
    finally:
        os.close(fd)


def wait_for(what: str, path: Path, seconds: float = 0.5) -> None:
    """Wait for a file to appear, as it does when a driver's work goes on behind the probe.

    Raises:
        Silence: it does not.

    """
    wait_until(f"{what} did not appear", path.exists, seconds, pause=0.0005)


def wait_until(otherwise: str, done: Callable[[], _T | None], seconds: float, *, least: float = 0.0,
               pause: float = 0.002) -> _T:
    """Ask until the answer is true, and return it; that a file has just gone is none.

    Args:
        otherwise: what is said if it never is.
        done: what is asked.
        seconds: how long, where the guest has time for that.
        least: how long at least.
        pause: seconds between two questions.

    Raises:
        Silence: it was not in time.

    """
    deadline = 0.0
    while True:
        with contextlib.suppress(FileNotFoundError):
            if answer := done():
                return answer
        now = time.monotonic()  # which is a system call in User-Mode Linux
        deadline = deadline or now + max(patient(seconds), least)
        if now > deadline:
            raise Silence(otherwise)
        time.sleep(pause)


def platform_devices() -> list[str]:
    """Names of all virtio_uml devices, in the order of the command line; nothing on other machines."""
    if not _PLATFORM.is_dir():
        return []
    names = [p.name for p in Path("/sys/bus/platform/devices").iterdir() if p.name.startswith("virtio-uml.")]
    return sorted(names, key=lambda name: int(name.rpartition(".")[2]))


def bind_platform(name: str) -> None:
    """Connect a device to its socket, or look for a PCI function; its driver probes it before this returns."""
    if ":" in name:
        write(_PCI_RESCAN, "1")
        return
    if not (_PLATFORM / name).exists():
        write(_PLATFORM / "bind", name)


def unbind_platform(name: str) -> None:
    """Remove a device and close its connection, or a PCI function."""
    if ":" in name:
        if (_PCI / name).exists():
            write(_PCI / name / "remove", "1")
        return
    if (_PLATFORM / name).exists():
        write(_PLATFORM / "unbind", name)


def virtio_name(platform: str) -> str:
    """Name of the virtio device that a platform device became, such as ``virtio3``.

    Where it is the carrier of a PCI function, that of the device in the function; one is connected at a time.
    """
    if ":" in platform:
        if not (_PCI / platform).exists():
            raise FileNotFoundError(2, f"no function at {platform}")
        return _virtio_of([_PCI / platform], platform)
    carrier = next((entry for entry in (_PLATFORM / platform).iterdir() if entry.name.startswith("virtio")), None)
    if carrier is None:
        raise FileNotFoundError(2, f"{platform} has no virtio device")
    if (carrier / "driver").resolve().name != _PCI_CARRIER:
        return carrier.name
    return _virtio_of(pci_functions(), platform)


def _virtio_of(functions: list[Path], platform: str) -> str:
    for function in functions:
        for entry in function.iterdir():
            if entry.name.startswith("virtio"):
                return entry.name
    raise FileNotFoundError(2, f"{platform} has no PCI function with a virtio device")


def pci_functions() -> list[Path]:
    """All functions on PCI buses that are the devices under test, by their folders in sysfs."""
    there = sorted(_PCI.iterdir()) if _PCI.is_dir() else []
    return [path for path in there if not FUNCTIONS or path.name in FUNCTIONS]


def driver_of(virtio: str) -> Path:
    """Directory of the driver that has the device.

    Raises:
        FileNotFoundError: no driver took it.

    """
    link = _VIRTIO / virtio / "driver"
    if not link.exists():
        raise FileNotFoundError(2, f"no driver took {virtio}")
    return link.resolve()


def rebind_driver(virtio: str, times: int) -> None:
    """Remove the driver from its device and let it probe anew."""
    driver = driver_of(virtio)
    name = virtio.encode()
    unbind = os.open(driver / "unbind", os.O_WRONLY)
    try:
        bind = os.open(driver / "bind", os.O_WRONLY)
        try:
            for _ in range(times):
                os.write(unbind, name)
                os.write(bind, name)
        finally:
            os.close(bind)
    finally:
        os.close(unbind)


def read_tree(top: Path, *, depth: int = 3, limit: int = 400) -> int:
    """Read every readable file below a sysfs or debugfs folder; return how many there were."""
    count = 0
    todo = [(top, depth)]
    while todo and count < limit:
        folder, left = todo.pop()
        for entry in sorted(os.scandir(folder), key=lambda e: e.name):
            if entry.is_dir(follow_symlinks=False):
                if left:
                    todo.append((Path(entry.path), left - 1))
            elif entry.is_file(follow_symlinks=False) and entry.stat().st_mode & 0o444:
                count += 1
                try:
                    fd = os.open(entry.path, os.O_RDONLY | os.O_NONBLOCK)
                except OSError:
                    continue
                try:
                    os.read(fd, 65536)
                except OSError:
                    pass  # many attributes have no value for a given device
                finally:
                    os.close(fd)
    return count


class _Secret:
    """What `plant` leaves behind; the host says what it is, to know it again.

    Attributes:
        marker: the bytes.
        wanted: whether `plant` is to plant it; that takes a while.

    """

    marker = b"\0"
    wanted = True


SECRET = _Secret()


def plant() -> None:
    """Leave a secret in pages that the kernel has freed and will use again; any guest's memory is full of such."""
    marker = SECRET.marker
    if not SECRET.wanted:
        return
    page = (marker * (4096 // len(marker) + 1))[:4096]
    # The value of an attribute lies in an object of its size, which is freed when the file turns out to take none.
    for size in _PLANTED_SIZES:
        for _ in range(_PLANTED_OBJECTS):
            with contextlib.suppress(OSError):
                os.setxattr("/proc", "user.secret", page[:size])
    # Datagrams lie in blocks of eight pages, from which drivers take receive buffers too.
    for _ in range(_PLANTED_SOCKETS):
        left, right = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        with left, right:
            left.setblocking(False)
            try:
                while left.send(page * 15):
                    pass
            except OSError:
                pass  # full, or larger than a datagram may be
    for _ in range(_PLANTED_PIPES):
        out, into = os.pipe()
        os.set_blocking(into, False)
        try:
            while os.write(into, page):
                pass
        except BlockingIOError:
            pass
        finally:
            os.close(out)
            os.close(into)


def bounce_slots() -> list[int]:
    """Return how many slots of the bounce pool are mapped, and how many there are; nothing where nobody says so."""
    try:
        return [int((DEBUGFS / "swiotlb" / name).read_text(encoding="ascii"))
                for name in ("io_tlb_used", "io_tlb_nslabs")]
    except OSError:
        return []


def check_slabs() -> int:
    """Have the kernel check every object of every slab cache; it prints what it finds. Return the number of caches."""
    count = 0
    if _SLABS.is_dir():
        for cache in _SLABS.iterdir():
            if cache.name == _BEFORE_CHECKS:
                continue
            try:
                write(cache / "validate", "1")
                count += 1
            except OSError:
                pass  # caches without debug flags can't be checked
    return count
