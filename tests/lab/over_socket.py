"""The model guest with a real socket, real shared memory and a thread between itself and its device."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from chamber.lab.backend import BackendTransport, RealTimeMachine
from chamber.lab.model import ModelTarget
from chamber.link.frontend import Frontend
from tests.link.frontend import Served

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from chamber.device.base import Device
    from chamber.guest.machine import GuestMachine
    from chamber.guest.profile import Profile
    from chamber.platform.transport import Transport


class Hasty(RealTimeMachine):
    """A guest that gives its devices a moment where another would wait and see."""

    def settle(self, seconds: float) -> None:
        super().settle(min(seconds, 0.05))


class SocketTarget(ModelTarget):
    """Runs scenarios as the target ``model`` does, over vhost-user."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._path = path

    def make_machine(self, profile: Profile, seed: int) -> GuestMachine:
        return Hasty(profile, seed)

    @contextmanager
    def joined(self, machine: GuestMachine, device: Device, **_how: object) -> Iterator[Transport]:
        assert isinstance(machine, RealTimeMachine)
        if device.device_memory is not None:
            machine.memory.show_device_memory(*device.device_memory)  # as the platform does, past the socket
        with Served(device, self._path, machine.memory.host.observer), Frontend.connect(self._path) as frontend:
            yield BackendTransport(machine, frontend, device.type)
