"""A running user-mode-linux guest: its process, console, agent and devices' sockets."""

from __future__ import annotations

import compileall
import contextlib
import ctypes
import functools
import os
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import chamber
from chamber.lab.agent_guest import BOOT_SECONDS, AgentGuest, GuestDied
from chamber.lab.child_process import share_niceness
from chamber.lab.kernel.coverage import CoverageMap
from chamber.lab.observation import TargetError
from chamber.lab.uml_channel import UmlChannel
from chamber.lab.uml_kernel import GUEST_ENVIRONMENT, install_fp_filter, needs_fp_filter
from chamber.link.listener import Backend
from chamber.wire.pcidev import DEVICE_ID

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from chamber.lab.uml_kernel import UmlKernel
    from chamber.link.eventloop import EventLoop
    from chamber.link.vhost_user import Servable
    from chamber.wire.virtio import DeviceType

__all__ = ("GuestDied", "UmlGuest")

_PR_SET_PDEATHSIG: Final = 1
_PR_SET_CHILD_SUBREAPER: Final = 36
_AT_WORK: Final = frozenset({b"running", b"61", b"202"})
"""What it is at in the eyes of the host: computing, or in wait4 or futex until a process of its own is back."""
_CALL_BYTES: Final = 16
"""Its number comes first."""
_MCONSOLE = struct.Struct("=III512s")
_MCONSOLE_MAGIC, _MCONSOLE_VERSION = 0xCAFEBABE, 2


@functools.cache
def _source() -> Path:
    """Where the agent's code is, compiled: each guest would compile it again."""
    package = Path(chamber.__file__).resolve().parent
    compileall.compile_dir(package / "lab" / "agent", quiet=2)
    return package.parent


class UmlGuest(AgentGuest):
    """One guest from boot to end.

    The guest's root is the host's own, read-only; its PID 1 is `chamber.lab.agent`. Each device has a socket in a
    folder of the guest's own, which goes with it.

    Args:
        kernel: what to boot.
        loop: where the devices are served; `request` turns it.
        devices: for each device, what provides it when the guest connects.
        options: further words for the kernel's command line.
        observer: sees all that devices read from buffers, if given.
        pci: whether what is provided carries PCI functions, in which the guest finds the devices.
        sockets: back ends that others serve, such as qemu-storage-daemon, by their sockets.
        more: further devices, of any types, by their sockets.
        memory_mb: megabytes of the guest's memory; by default what the kernel needs.
        terminal: gets what is said on a second terminal, `second`, if given.
        folder: where its own folder is made; by default where temporary files go.

    Attributes:
        more: what the guest calls further devices.

    """

    def __init__(self, kernel: UmlKernel, loop: EventLoop,
                 devices: Mapping[DeviceType, Callable[[], Servable | None]], *,
                 options: tuple[str, ...] = (), observer: Callable[[bytes], None] | None = None, pci: bool = False,
                 sockets: Mapping[DeviceType, Path] | None = None,
                 more: Sequence[tuple[DeviceType, Path]] = (), memory_mb: int | None = None,
                 terminal: Callable[[dict[str, Any]], None] | None = None, folder: Path | None = None) -> None:
        super().__init__(loop)
        self.kernel = kernel
        self.backends: dict[DeviceType, Backend] = {}
        self.more: list[str] = []
        self._sockets = dict(sockets or {})
        self._more = tuple(more)
        self._ids = dict.fromkeys(devices, DEVICE_ID) if pci else {}
        self.second: UmlChannel | None = None
        self._memory_mb = memory_mb or kernel.memory_mb
        self._call = -1
        self._terminal = terminal
        with contextlib.ExitStack() as stack:
            self.folder = Path(tempfile.mkdtemp(prefix="chamber-", dir=folder))
            stack.callback(shutil.rmtree, self.folder, ignore_errors=True)
            for device, provide in devices.items():
                # Messages take less than eventfds to set up, which matters more where devices come and go.
                backend = Backend(self.folder / device.short, provide, loop, replace=True, inband=True,
                                  observer=observer)
                stack.callback(backend.close)
                self.backends[device] = backend
                self._sockets[device] = self.folder / device.short
            if kernel.counts:
                self.coverage = stack.enter_context(CoverageMap(self.folder / "coverage"))
                options = (*options, self.coverage.argument)
            self._spawn(stack, options)
            self._closing = stack.pop_all()
        try:
            self._boot()
        except BaseException:
            self.close()
            raise

    def _spawn(self, stack: contextlib.ExitStack, options: tuple[str, ...]) -> None:
        channels = [UmlChannel(self._loop, self._heard)]
        stack.callback(channels[0].close)
        self._agent = channels[0]
        if self._terminal is not None:
            self.second = UmlChannel(self._loop, self._terminal)
            stack.callback(self.second.close)
            channels.append(self.second)
        console_out, console_in = os.pipe()
        stack.callback(os.close, console_out)
        try:
            os.set_blocking(console_out, False)
            source = self.folder / "src"
            source.symlink_to(_source())
            # In a file, as the command line holds 4096 bytes and no more.
            modules = self.folder / "modules"
            modules.write_text("\n".join(map(str, self.kernel.modules)), encoding="utf-8")
            command = [
                str(self.kernel.path), f"mem={self._memory_mb}M",
                "root=/dev/root", "rootfstype=hostfs", "rootflags=/", "ro",
                f"uml_dir={self.folder}/", "umid=guest", "con=null", "con0=null,fd:1", "ssl=null",
                *(f"con{number}=fd:{channel.inner}" for number, channel in enumerate(channels, 1)),
                "loglevel=5", GUEST_ENVIRONMENT, f"PYTHONPATH={source}", "PYTHONDONTWRITEBYTECODE=1",
                *options,
                *(f"virtio_uml.device={path}:{self._ids.get(device, int(device))}"
                  for device, path in (*self._sockets.items(), *self._more)),
                f"init={os.path.realpath(sys.executable)}", "--", "-S", "-s", "-m", "chamber.lab.agent",
                "--modules", str(modules),
            ]
            fp_filter = needs_fp_filter(self.kernel.release)
            libc = ctypes.CDLL(None)
            libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
            # The kernel and its processes take turns, at each call and each fault: to wake one that is on another
            # processor would be most of what these cost.
            processors = None if self.kernel.parallel else {libc.sched_getcpu()}

            def prepare() -> None:
                if processors is not None:
                    os.sched_setaffinity(0, processors)
                # The guest must not outlive whoever started it, however that one ends.
                libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
                share_niceness()
                if fp_filter:
                    install_fp_filter()

            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=console_in, stderr=console_in,
                pass_fds=[channel.inner for channel in channels], preexec_fn=prepare, start_new_session=True,  # noqa: PLW1509
                env={**os.environ, "TMPDIR": "/dev/shm"})  # noqa: S108
            stack.callback(self._kill)
            with contextlib.suppress(OSError):  # there is none on every host
                self._call = os.open(f"/proc/{self._process.pid}/syscall", os.O_RDONLY | os.O_CLOEXEC)
                stack.callback(os.close, self._call)
        finally:
            os.close(console_in)
        for channel in channels:
            channel.handed_over()
        self._attend(stack, console_out)

    def _boot(self) -> None:
        try:
            hello = self._wait(lambda m: "hello" in m or "failed" in m, BOOT_SECONDS)
        except GuestDied:
            raise TargetError(f"{self.kernel.path} did not boot: {self.last_words()}") from None
        if hello is None or "failed" in hello:
            reason = "no word from its agent" if hello is None else hello["failed"]
            raise TargetError(f"{self.kernel.path} did not boot: {reason}")
        names = hello["devices"]
        self.platform = dict(zip(self._sockets, names[:len(self._sockets)], strict=True))
        self.more = names[len(self._sockets):]
        if self.coverage is not None:
            if not self.coverage.attached:
                raise TargetError(f"{self.kernel.path}: it was built to count what drivers execute, and does not")
            answer = self.request(BOOT_SECONDS, do="sections")
            self.sections = answer["sections"] if answer is not None else {}
            self.coverage.count(on=True)
        self.take_console()

    # What it takes to have it listen.

    def _nudge(self) -> None:
        os.kill(self.pid, signal.SIGIO)

    def wake(self) -> None:
        """Wake a suspended guest, as a press on the power button does."""
        if self.alive:
            os.kill(self.pid, signal.SIGUSR1)

    @property
    def idle(self) -> bool:
        """Whether its kernel sleeps until an interrupt comes: not at work, and not waiting for a process of its own."""
        with contextlib.suppress(OSError):
            return os.pread(self._call, _CALL_BYTES, 0).split()[0] not in _AT_WORK
        return False

    def where(self) -> str:
        """Have the kernel print where it is (SysRq p, through its management console); '' if it takes no interrupt.

        What it prints is not kept with the rest: asked at such a moment User-Mode Linux reads registers that it has not
        saved, which is no fault of a driver's.
        """
        before = len(self._console)
        address = self.folder / "guest" / "mconsole"
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as control:
            try:
                control.bind(str(self.folder / "asker"))
                command = b"sysrq p"
                control.sendto(_MCONSOLE.pack(_MCONSOLE_MAGIC, _MCONSOLE_VERSION, len(command), command), str(address))
            except OSError:
                return ""
        self.settle(0.3)
        (self.folder / "asker").unlink(missing_ok=True)
        text = self._console[before:].decode(errors="replace")
        del self._console[before:]
        return text

    # The end.

    def _kill(self) -> None:
        """End the guest and all of its processes: they are host processes that outlive their kernel."""
        process = self._process
        if process is None:
            return
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        # Orphans came to this process (PR_SET_CHILD_SUBREAPER): those of the guest's group, killed above, and those
        # that left it, as the one that watches for changes of a terminal's size.
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-process.pid, 0):
                pass
        for pid in _processes(f"uml_dir={self.folder}/"):
            with contextlib.suppress(ProcessLookupError, ChildProcessError):
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)

def _processes(argument: str) -> list[int]:
    """Return the ids of all processes that have an argument."""
    wanted = argument.encode()
    found = []
    for entry in os.scandir("/proc"):
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                if wanted in Path(entry.path, "cmdline").read_bytes().split(b"\0"):
                    found.append(int(entry.name))
    return found
