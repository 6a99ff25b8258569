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
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import chamber
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

_BOOT_SECONDS: Final = 60.0
_CONSOLE_LIMIT: Final = 1 << 20
_NUDGE_SECONDS: Final = 1.0
_PR_SET_PDEATHSIG: Final = 1
_PR_SET_CHILD_SUBREAPER: Final = 36
_MCONSOLE = struct.Struct("=III512s")
_MCONSOLE_MAGIC, _MCONSOLE_VERSION = 0xCAFEBABE, 2


class GuestDied(Exception):
    """The guest's process ended while something was asked of it."""


@functools.cache
def _source() -> Path:
    """Where the agent's code is, compiled: each guest would compile it again."""
    package = Path(chamber.__file__).resolve().parent
    compileall.compile_dir(package / "lab" / "agent", quiet=2)
    return package.parent


class UmlGuest:
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
        platform: what the guest calls each device.
        more: the same for further devices.
        coverage: what its drivers execute, if its kernel counts that.
        sections: where its modules' code is: for each module, the addresses of its sections.

    """

    def __init__(self, kernel: UmlKernel, loop: EventLoop,
                 devices: Mapping[DeviceType, Callable[[], Servable | None]], *,
                 options: tuple[str, ...] = (), observer: Callable[[bytes], None] | None = None, pci: bool = False,
                 sockets: Mapping[DeviceType, Path] | None = None,
                 more: Sequence[tuple[DeviceType, Path]] = (), memory_mb: int | None = None,
                 terminal: Callable[[dict[str, Any]], None] | None = None, folder: Path | None = None) -> None:
        self.kernel = kernel
        self.platform: dict[DeviceType, str] = {}
        self.backends: dict[DeviceType, Backend] = {}
        self.asked: Callable[[str], None] = lambda _action: None
        self.steps: list[dict[str, Any]] = []
        self.more: list[str] = []
        self.coverage: CoverageMap | None = None
        self.sections: dict[str, dict[str, int]] = {}
        self._sockets = dict(sockets or {})
        self._more = tuple(more)
        self._ids = dict.fromkeys(devices, DEVICE_ID) if pci else {}
        self.second: UmlChannel | None = None
        self._memory_mb = memory_mb or kernel.memory_mb
        self._loop = loop
        self._console = bytearray()
        self._messages: list[dict[str, Any]] = []
        self._terminal = terminal
        self._process: subprocess.Popen[bytes] | None = None
        self._closing = contextlib.ExitStack()
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
        self._console_fd = console_out
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

            def prepare() -> None:
                # The guest must not outlive whoever started it, however that one ends.
                libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
                if fp_filter:
                    install_fp_filter()

            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=console_in, stderr=console_in,
                pass_fds=[channel.inner for channel in channels], preexec_fn=prepare, start_new_session=True,  # noqa: PLW1509
                env={**os.environ, "TMPDIR": "/dev/shm"})  # noqa: S108
            stack.callback(self._kill)
        finally:
            os.close(console_in)
        for channel in channels:
            channel.handed_over()
        self._watch = os.pidfd_open(self._process.pid)
        stack.callback(os.close, self._watch)
        for fd, call in ((console_out, self._read_console), (self._watch, self._reap)):
            self._loop.add_reader(fd, call)
            stack.callback(self._loop.remove_reader, fd)

    def _boot(self) -> None:
        try:
            hello = self._wait(lambda m: "hello" in m or "failed" in m, _BOOT_SECONDS)
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
            answer = self.request(_BOOT_SECONDS, do="sections")
            self.sections = answer["sections"] if answer is not None else {}
            self.coverage.count(on=True)
        self.take_console()

    # What the guest says.

    def _heard(self, message: dict[str, Any]) -> None:
        if "ask" in message:
            self.asked(str(message["ask"]))
        elif "outcome" in message:
            self.steps.append(message)
        else:
            self._messages.append(message)

    def _read_console(self) -> None:
        try:
            data = os.read(self._console_fd, 65536)
        except BlockingIOError:
            return
        if not data:
            self._loop.remove_reader(self._console_fd)
        if len(self._console) < _CONSOLE_LIMIT:
            self._console += data

    def _reap(self) -> None:
        assert self._process is not None
        self._process.poll()
        self._loop.remove_reader(self._watch)

    @property
    def alive(self) -> bool:
        """Whether the guest's process runs."""
        return self._process is not None and self._process.returncode is None

    @property
    def exit_status(self) -> int | None:
        """How the process ended: its status, or the negated signal."""
        return None if self._process is None else self._process.returncode

    @property
    def pid(self) -> int:
        """Process id of the guest's kernel."""
        assert self._process is not None
        return self._process.pid

    def take_console(self) -> str:
        """Return what the kernel printed since the last call."""
        self._read_console()
        text = self._console.decode(errors="replace").replace("\r", "")
        self._console.clear()
        return text

    def last_words(self) -> str:
        """Return the last line that the kernel printed."""
        lines = [line for line in self.take_console().splitlines() if line.strip() and "[<" not in line]
        return next((line for line in lines if "panic" in line), lines[-1] if lines else "it printed nothing")

    # What the guest is asked.

    def request(self, seconds: float, /, **message: object) -> dict[str, Any] | None:
        """Ask the agent something and serve the devices until it answers; None if it does not within `seconds`.

        Raises:
            GuestDied: the guest ended meanwhile.

        """
        self._messages.clear()
        self.steps = []
        self._agent.send(message)
        return self._wait(lambda m: "done" in m, seconds, nudge=True)

    def _wait(self, wanted: Callable[[dict[str, Any]], bool], seconds: float, *,
              nudge: bool = False) -> dict[str, Any] | None:
        """Wait for a message; `nudge` has a guest look for input now and then, as any signal of input does.

        Once in a thousand requests User-Mode Linux (6.1) misses the signal that tells of one, and nothing else would
        ever wake it. Before it handles the signal, it would die of it.
        """
        answer: list[dict[str, Any]] = []

        def arrived() -> bool:
            answer.extend(m for m in self._messages if wanted(m))
            return bool(answer) or not self.alive

        deadline = time.monotonic() + seconds
        while not self._loop.run_until(arrived, min(deadline, time.monotonic() + _NUDGE_SECONDS)):
            if time.monotonic() >= deadline:
                break
            if nudge:
                os.kill(self.pid, signal.SIGIO)
        if answer:
            return answer[0]
        if not self.alive:
            self.drain()
            raise GuestDied(str(self.exit_status))
        return None

    def log(self, word: str) -> list[str]:
        """Return the lines of the kernel's log that have a word; its console shows fewer.

        Raises:
            GuestDied: the guest ended meanwhile.

        """
        answer = self.request(_BOOT_SECONDS, do="log", word=word)
        return [] if answer is None else list(answer.get("lines", []))

    def drain(self) -> None:
        """Read all that the kernel has printed."""
        for _ in range(64):
            before = len(self._console)
            self._read_console()
            if len(self._console) == before:
                break

    def settle(self, seconds: float) -> None:
        """Serve the devices for a while."""
        self._loop.run_until(lambda: not self.alive, time.monotonic() + seconds)

    def processor_seconds(self) -> float:
        """Processor time that the guest's kernel has used; it stands still while the guest sleeps."""
        fields = Path(f"/proc/{self.pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def wake(self) -> None:
        """Wake a suspended guest, as a press on the power button does."""
        if self.alive:
            os.kill(self.pid, signal.SIGUSR1)

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

    def close(self) -> None:
        """End the guest and remove what it left."""
        self._closing.close()


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
