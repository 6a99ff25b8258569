"""A running guest in QEMU: its process, console, agent, and the slots of its PCI bus."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import json
import os
import shutil
import signal
import subprocess
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from qemu.qmp import QMPClient, QMPError

from chamber.device.catalogue import make_device
from chamber.device.pmem import SharedMedium
from chamber.device.virtio_pci import VirtioPci
from chamber.lab.agent_guest import BOOT_SECONDS, AgentGuest, GuestDied
from chamber.lab.observation import TargetError
from chamber.lab.qemu.initramfs import INIT, write_initramfs
from chamber.lab.qemu.saved import SavedGuest, copy_memory, guest_memory
from chamber.lab.qemu.slot import PciSlot
from chamber.lab.uml_channel import UmlChannel
from chamber.link.listener import VfioServer
from chamber.wire.virtio import DeviceType

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from chamber.device.base import Device
    from chamber.lab.qemu.install import QemuKernel, QemuProgram
    from chamber.link.eventloop import EventLoop
    from chamber.platform.dma import Dma

__all__ = ("QemuGuest",)

_PR_SET_PDEATHSIG: Final = 1
_FIRST_SLOT: Final = 4
_PATIENCE: Final = 3
"""A processor that is emulated takes so many times as long as one of the host's."""
_SAVE_SECONDS: Final = 60.0
_PMEM_BYTES: Final = 2 << 20
"""As little of persistent memory as Linux takes: it has no smaller pieces of memory that is not its own."""
_LOOK_AGAIN: Final = 0.01


async def _execute(path: str, name: str, arguments: dict[str, object]) -> object:
    client = QMPClient("chamber")
    await client.connect(path)
    try:
        return await client.execute(name, arguments)
    finally:
        await client.disconnect()


def _occupant(kind: DeviceType) -> Device:
    """Make the device that a slot is made for; its memory, if it has any, is what QEMU maps for those that follow."""
    if kind is DeviceType.PMEM:
        return make_device(kind, medium=SharedMedium(_PMEM_BYTES))
    return make_device(kind)


class QemuGuest(AgentGuest):
    """One guest from boot to end.

    Args:
        program: QEMU.
        kernel: what to boot.
        loop: where the devices are served; `request` turns it.
        kinds: device types; each has a slot of its own.
        options: further words for the kernel's command line.
        provide: gives the device for a slot when the guest is to find one there.
        accelerator: ``kvm`` or ``tcg``, as `chamber.lab.qemu.install.find_accelerator` found it.
        more: further arguments of QEMU's.
        programs: programs of this machine that the guest is to have besides BusyBox.
        imports: Python modules that it is to have besides the agent's.
        wrap: puts something between each device and guest memory, if given.
        left: called with guest memory when the guest has let go of a device, if given.
        observer: sees all that devices read from buffers, if given.
        saved: what it begins from, in place of a boot: of the same kernel, with the same arguments.

    """

    def __init__(self, program: QemuProgram, kernel: QemuKernel, loop: EventLoop, kinds: Iterable[DeviceType],
                 provide: Callable[[DeviceType], Device], *, options: tuple[str, ...] = (),
                 accelerator: str = "tcg", more: Sequence[str] = (), programs: Sequence[Path] = (),
                 imports: Sequence[str] = (),
                 wrap: Callable[[VirtioPci, Dma], Dma] | None = None,
                 left: Callable[[Dma], None] = lambda _dma: None,
                 observer: Callable[[bytes], None] | None = None, saved: SavedGuest | None = None) -> None:
        super().__init__(loop)
        self._accelerator = accelerator
        self._more = tuple(more)
        self._programs = tuple(programs)
        self._imports = tuple(imports)
        self.kernel = kernel
        self._program = program
        self._provide = provide
        self._observer = observer
        with contextlib.ExitStack() as stack:
            self.folder = Path(tempfile.mkdtemp(prefix="chamber-"))
            stack.callback(shutil.rmtree, self.folder, ignore_errors=True)
            self._slots: dict[str, tuple[DeviceType, PciSlot]] = {}
            for number, kind in enumerate(kinds, _FIRST_SLOT):
                slot = PciSlot(_occupant(kind), wrap, left)
                stack.callback(slot.close)
                server = VfioServer(self.folder / kind.short, slot, loop, observer=observer)
                stack.callback(server.close)
                address = f"0000:00:{number:02x}.0"
                self._slots[address] = kind, slot
                self.platform[kind] = address
            self._spawn(stack, options, saved)
            self._closing = stack.pop_all()
        try:
            self._boot()
        except BaseException:
            self.close()
            raise

    def _spawn(self, stack: contextlib.ExitStack, options: tuple[str, ...], saved: SavedGuest | None) -> None:
        self._agent = UmlChannel(self._loop, self._heard, terminal=True)
        stack.callback(self._agent.close)
        console_out, console_in = os.pipe()
        stack.callback(os.close, console_out)
        os.set_blocking(console_out, False)
        memory = self.kernel.memory_mb
        self._memory = guest_memory(memory << 20)
        stack.callback(os.close, self._memory)
        command = [
            *self._program.command, "-accel", self._accelerator,
            "-M", f"q35,memory-backend=m,vmport=off,max-ram-below-4g={memory * 2 // 3}M", "-cpu", "max",
            "-m", str(memory), "-object",
            f"memory-backend-file,id=m,size={memory}M,share=on,mem-path=/proc/self/fd/{self._memory}",
            "-global", "migration.x-ignore-shared=on",
            "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
            "-chardev", "stdio,id=console,signal=off", "-serial", "chardev:console",
            "-chardev", f"serial,id=agent,path={os.ttyname(self._agent.inner)}", "-serial", "chardev:agent",
            "-qmp", f"unix:{self.folder}/qmp,server=on,wait=off",
            "-kernel", str(self.kernel.path),
            "-append", " ".join(("console=ttyS0", "loglevel=5", "panic=-1", "random.trust_cpu=on", f"rdinit={INIT}",
                                 *options)),
        ]
        for address, (kind, _) in self._slots.items():
            command += ["-device", json.dumps({
                "driver": "vfio-user-pci", "addr": address[8:10],
                "socket": {"type": "unix", "path": f"{self.folder}/{kind.short}"}})]
        command += self._more
        if saved is None:
            archive = self.folder / "initramfs"
            write_initramfs(archive, self.kernel.modules, self.kernel.shell, (
                "--terminal", "/dev/ttyS1", "--patience", str(_PATIENCE), "--functions", ",".join(self._slots)),
                self._programs, self._imports)
            command += ["-initrd", str(archive)]
        else:  # it has unpacked its root already
            copy_memory(saved.memory, self._memory)
            state = self.folder / "state"
            state.write_bytes(saved.state)
            command += ["-incoming", f"file:{state}"]
        libc = ctypes.CDLL(None)

        def prepare() -> None:
            # The guest must not outlive whoever started it, however that one ends.
            libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)

        try:
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=console_in, stderr=console_in, preexec_fn=prepare,  # noqa: PLW1509
                pass_fds=(self._memory,), start_new_session=True, env={**os.environ, **dict(self._program.environment)})
        finally:
            os.close(console_in)
        stack.callback(self._kill)
        self._attend(stack, console_out)

    def _boot(self) -> None:
        self._agent.listen()
        try:
            hello = self._wait(lambda m: "hello" in m or "failed" in m, BOOT_SECONDS)
        except GuestDied:
            raise TargetError(f"{self.kernel.release} in QEMU did not boot: {self.last_words()}") from None
        if hello is None or "failed" in hello:
            reason = "no word from its agent" if hello is None else hello["failed"]
            raise TargetError(f"{self.kernel.release} in QEMU did not boot: {reason}")
        self.take_console()

    def request(self, seconds: float, /, **message: object) -> dict[str, Any] | None:
        """Ask the agent something; a device that it is to use is put into its slot before."""
        slot = self._slots.get(str(message.get("platform")))
        if slot is not None and message["do"] in {"run", "cycle", "connect"}:
            slot[1].plug(self._provide(slot[0]))
        try:
            return super().request(seconds, **message)
        finally:
            if slot is not None and message["do"] != "connect" and not message.get("stay"):
                slot[1].unplug()

    def slot(self, kind: DeviceType) -> PciSlot:
        """The slot of a device type."""
        return self._slots[str(self.platform[kind])][1]

    def plug(self, device: Device, port: str) -> VirtioPci:
        """Plug a device into a port of the machine's (`more` made it) while the guest runs, which is not asked.

        It stays: QEMU 11.1.3 ends with an assertion when a function is unplugged.

        Raises:
            TargetError: QEMU does not take it.

        """
        function = VirtioPci(device)
        path = self.folder / port
        self._closing.callback(VfioServer(path, function, self._loop, observer=self._observer).close)
        try:
            self._command("device_add", driver="vfio-user-pci", id=f"in-{port}", bus=port,
                          socket={"type": "unix", "path": str(path)})
        except (OSError, QMPError) as error:
            raise TargetError(f"QEMU does not take a device in {port}: {error}") from error
        return function

    def wake(self) -> None:
        """Wake a suspended guest by a key on its terminal; QEMU's own word for it is for deeper sleep than this."""
        self._agent.wake()

    def save(self) -> SavedGuest:
        """Return the guest as it is now, with nobody in its slots; it goes on.

        Raises:
            TargetError: QEMU does not say what it is made of.

        """
        # Until it is asked something else it says hello; so does whoever goes on from here, once it runs. What it said
        # when it had booted is no sign that it has heard this: what is still on its way is not saved.
        self._messages.clear()
        self._agent.send({"do": "announce"})
        try:
            if self._wait(lambda m: "hello" in m, BOOT_SECONDS) is None:
                raise TargetError("QEMU does not save its guest: no word from its agent")
            path = self.folder / "saved"
            self._command("migrate", uri=f"file:{path}")  # which stops it, and is to let it run where it goes on
            deadline = time.monotonic() + _SAVE_SECONDS
            while (how := self._command("query-migrate"))["status"] != "completed":
                if how["status"] == "failed" or time.monotonic() > deadline:
                    raise TargetError(f"QEMU does not save its guest: {how.get('error-desc', how['status'])}")
                time.sleep(_LOOK_AGAIN)
            memory = guest_memory(self.kernel.memory_mb << 20)
            try:
                copy_memory(self._memory, memory)
                saved = SavedGuest(memory, path.read_bytes())
                path.unlink()
                self._command("cont")
            except BaseException:
                os.close(memory)
                raise
        except (GuestDied, OSError, QMPError) as error:
            raise TargetError(f"QEMU does not save its guest: {error}") from error
        return saved

    def _command(self, name: str, **arguments: object) -> Any:  # noqa: ANN401 - as QEMU has it
        """Have QEMU do something; the devices are served meanwhile, which it may wait for."""
        with ThreadPoolExecutor(1) as pool:
            answer = pool.submit(asyncio.run, _execute(str(self.folder / "qmp"), name, arguments))
            while not answer.done():
                self._loop.turn(_LOOK_AGAIN)
        return answer.result()

    def _kill(self) -> None:
        process = self._process
        assert process is not None
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
