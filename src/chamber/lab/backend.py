"""Joins the model guest to a device behind a vhost-user socket: in another process, at any speed, in real time.

Of the guest's memory the back end gets the pages that the guest shares when it connects, as files that hold nothing
else (`GuestMemory.move_to_file`). For the profile `bare` that is all of it, as for any guest that is not confidential.
"""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Final

from chamber.guest.machine import GuestMachine
from chamber.link.frontend import SharedFile
from chamber.platform.scheduler import Scheduler
from chamber.platform.transport import Identity
from chamber.wire.vhost_user import ProtocolFeature
from chamber.wire.virtio import DeviceType, Status

if TYPE_CHECKING:
    from collections.abc import Callable

    from chamber.guest.profile import Profile
    from chamber.link.frontend import Frontend

__all__ = ("BackendTransport", "RealTime", "RealTimeMachine")

_STEPS: Final = 5_000_000
_QUEUE_SIZE: Final = 256


class RealTime(Scheduler):
    """The world's clock, which nobody can make jump; nothing is scheduled on it.

    Attributes:
        pause: sleeps for as many seconds at most, and says whether something happened meanwhile.

    """

    def __init__(self, budget: int) -> None:
        self._start = time.monotonic()
        super().__init__(budget)
        self.pause: Callable[[float], bool] = _sleep

    @property
    def now(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self._start

    @now.setter
    def now(self, value: float) -> None:
        """Leave it to itself."""

    def advance(self, until: float) -> bool:
        """Let something happen, or time pass to `until` and return False; also where things happen without end."""
        self.step()
        left = until - self.now
        return self.pause(max(left, 0.0)) and left > 0


def _sleep(seconds: float) -> bool:
    time.sleep(seconds)
    return False


class RealTimeMachine(GuestMachine):
    """A guest whose device is another process.

    Args:
        profile: which protections it has.
        seed: decides its secrets.
        steps: after so many, a guest that still runs is taken for one that goes round in circles.

    """

    def __init__(self, profile: Profile, seed: int, *, steps: int = _STEPS) -> None:
        super().__init__(profile, seed)
        self.clock = RealTime(steps)
        self.scheduler = self.clock


class BackendTransport:
    """A virtio transport over a vhost-user connection (implements `chamber.platform.transport.Transport`).

    Queues are handed over when the driver sets DRIVER_OK, as front ends do: most back ends know no status, and take a
    queue that they have for one that is ready.

    Args:
        machine: the guest; its shared pages go to the back end.
        frontend: the connection; stays the caller's to close.
        kind: what the back end serves, which the protocol does not tell.
        config: configuration space, for a back end that leaves it to its front end.

    Raises:
        BackendError: the back end broke a rule; also by every other method.

    """

    def __init__(self, machine: RealTimeMachine, frontend: Frontend, kind: DeviceType, *, config: bytes = b"") -> None:
        self._machine = machine
        self._frontend = frontend
        self._kind = kind
        self._config = config
        self._status = 0
        self._prepared: dict[int, tuple[int, int, int, int]] = {}
        self._running: set[int] = set()
        machine.clock.pause = self._pause
        files: list[SharedFile] = []
        try:
            for address, size in machine.memory.shared_ranges():
                files.append(SharedFile(address, size, machine.memory.move_to_file(address, size)))
            frontend.share(files)
        finally:
            for file in files:
                os.close(file.fd)

    def _pause(self, seconds: float) -> bool:
        queues, config = self._frontend.wait(seconds)
        for index in queues:
            self._machine.interrupts.assert_vector(1 + index)
        if config:
            self._machine.interrupts.assert_vector(0)
        return bool(queues) or config

    def _settle(self) -> None:
        """Take what is pending between two instructions."""
        self._machine.scheduler.step()
        self._pause(0.0)
        self._machine.interrupts.deliver()

    def identity(self) -> Identity:
        """Who the device is."""
        return Identity("mmio", None, self.device_type(), "0")

    def device_type(self) -> int:
        """Virtio device id."""
        return int(self._kind)

    def read_features(self) -> int:
        """Feature bits that the device offers."""
        return self._frontend.read_features()

    def write_features(self, features: int) -> None:
        """Feature bits that the driver accepts."""
        self._frontend.write_features(features)

    def read_status(self) -> int:
        """Device status field: the back end's, if it has one."""
        return self._frontend.read_status() if self._frontend.has(ProtocolFeature.STATUS) else self._status

    def write_status(self, status: int) -> None:
        """Device status field; 0 resets."""
        if not status:
            self._reset()
            return
        before, self._status = self._status, status
        if status & ~before & Status.DRIVER_OK:
            for index in list(self._prepared):
                self._start(index)
        if self._frontend.has(ProtocolFeature.STATUS):
            self._frontend.write_status(status)
        self._settle()

    def _reset(self) -> None:
        self._status = 0
        self._prepared.clear()
        running, self._running = self._running, set()
        if self._frontend.closed:
            return  # it has let go of everything
        for index in sorted(running):
            self._frontend.stop_queue(index)
        if self._frontend.has(ProtocolFeature.STATUS):
            self._frontend.write_status(0)
        elif self._frontend.has(ProtocolFeature.RESET_DEVICE):
            self._frontend.reset_device()

    def read_generation(self) -> int:
        """Configuration generation: how often the back end said that something changed."""
        self._pause(0.0)
        return self._frontend.config_changes

    def read_config(self, offset: int, size: int) -> bytes:
        """Bytes of configuration space."""
        if self._frontend.has(ProtocolFeature.CONFIG):
            data = self._frontend.read_config(offset, size)
        else:
            data = self._config[offset:offset + size].ljust(size, b"\0")
        self._settle()
        return data

    def write_config(self, offset: int, data: bytes) -> None:
        """Change configuration space, if it is the back end's."""
        if self._frontend.has(ProtocolFeature.CONFIG):
            self._frontend.write_config(offset, data)
        self._settle()

    def admin_queue(self) -> int | None:
        """Return None: a vhost-user back end has none."""
        return None

    def queue_size_max(self, index: int) -> int:
        """Largest size of a queue, 0 if it does not exist; back ends say nothing of sizes."""
        # Of a network device, some back ends count pairs.
        count = self._frontend.queue_count * (2 if self._kind is DeviceType.NET else 1)
        return _QUEUE_SIZE if index < count else 0

    def setup_queue(self, index: int, size: int, desc: int, driver: int, device: int) -> None:
        """Hand a queue over: now, or once the driver is ready."""
        self._prepared[index] = size, desc, driver, device
        if self._status & Status.DRIVER_OK:
            self._start(index)

    def _start(self, index: int) -> None:
        size, desc, driver, device = self._prepared.pop(index)
        self._frontend.start_queue(index, size=size, desc=desc, driver=driver, device=device)
        self._running.add(index)

    def shared_memory(self, number: int) -> tuple[int, int] | None:  # noqa: ARG002 - there is none
        """Return no region: a device's own memory needs SHMEM_MAP, which this front end does not take."""
        return None

    def reset_queue(self, index: int) -> None:
        """Take a queue back."""
        self._frontend.stop_queue(index)
        self._running.discard(index)
        self._settle()

    def notify(self, index: int, data: int | None = None) -> None:  # noqa: ARG002 - never negotiated
        """Tell the device that a queue has something."""
        if index in self._running:
            self._frontend.kick(index)
        self._settle()
