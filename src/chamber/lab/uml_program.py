"""Ordinary programs in a guest, which uses its devices as any Linux does.

The guest's root is the host's own file system, read-only, so every program that is installed here is there too. What
they write goes to a tmpfs (`run_program(guest, "mount", "-t", "tmpfs", "scratch", "/tmp")`) or to a device under test.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from chamber.lab.observation import TargetError

if TYPE_CHECKING:
    from chamber.lab.agent_guest import AgentGuest
    from chamber.wire.virtio import DeviceType

__all__ = ("ProgramResult", "connect", "disconnect", "run_program")

_GRACE_SECONDS: Final = 10.0
_PROBE_SECONDS: Final = 30.0


@dataclass(frozen=True, slots=True)
class ProgramResult:
    """How a program ended.

    Attributes:
        status: its exit status, the negated signal that ended it, or None when its time was up.
        output: the last 6 KiB that it wrote, standard error included; what is not ASCII comes as question marks.
        seconds: how long it ran.

    """

    status: int | None
    output: str
    seconds: float


def run_program(guest: AgentGuest, *arguments: str, seconds: float = 60.0) -> ProgramResult:
    """Run a program in the guest, and serve its devices meanwhile.

    Raises:
        GuestDied: the guest ended meanwhile.
        TargetError: the program can't be started, or the guest stopped answering.

    """
    answer = guest.request(seconds + _GRACE_SECONDS, do="exec", arguments=arguments, seconds=seconds)
    if answer is None or "failed" in answer:
        reason = "the guest does not answer" if answer is None else answer["failed"]
        raise TargetError(f"{' '.join(arguments)}: {reason}")
    return ProgramResult(answer["status"], answer["output"], answer["seconds"])


def connect(guest: AgentGuest, device: DeviceType | str) -> str:
    """Connect a device, or one of the guest's further ones by its name there, and let its driver probe it.

    Returns its name as a virtio device, such as ``virtio3``.

    Raises:
        GuestDied: the guest ended meanwhile.
        TargetError: no driver took the device.

    """
    return _plug(guest, device, "connect")


def disconnect(guest: AgentGuest, device: DeviceType | str) -> None:
    """Remove a device that `connect` connected.

    Raises:
        GuestDied: the guest ended meanwhile.
        TargetError: the guest refuses.

    """
    _plug(guest, device, "disconnect")


def _plug(guest: AgentGuest, device: DeviceType | str, what: str) -> str:
    name = device if isinstance(device, str) else guest.platform[device]
    answer = guest.request(_PROBE_SECONDS, do=what, platform=name)
    if answer is None or "failed" in answer:
        reason = "the guest does not answer" if answer is None else answer["failed"]
        raise TargetError(f"{name}: {what}: {reason}")
    return str(answer.get("virtio", ""))
