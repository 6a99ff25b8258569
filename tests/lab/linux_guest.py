"""A Linux guest that tests talk to by its shell."""

from __future__ import annotations

from typing import TYPE_CHECKING

from chamber.lab.uml_program import run_program

if TYPE_CHECKING:
    from collections.abc import Callable

    from chamber.lab.agent_guest import AgentGuest
    from chamber.link.eventloop import EventLoop

__all__ = ("PROBE", "USE_DISK", "LinuxGuest")

PROBE = ("for d in /sys/bus/virtio/devices/*; do [ -e $d/driver ] || echo ${d##*/} >/sys/bus/virtio/drivers_probe; "
         "done")
"""Has drivers take what devices there are, where nobody probes by itself."""

USE_DISK = (PROBE + "; head -c 512 /dev/vda | tr Z y | head -c 8; "
            "head -c 4096 /dev/zero | dd of=/dev/vda bs=4096 count=1 conv=fsync 2>/dev/null")
"""Besides, shows eight bytes of a disk that is full of Z as y, and writes zeros to its first page."""


class LinuxGuest:
    """What boots it is the subclass's."""

    _guest: AgentGuest
    _loop: EventLoop
    patience = 120.0
    """Seconds that a command may take, where nothing else is said."""

    def soon(self, call: Callable[[], None]) -> None:
        self._loop.call_later(0.0, call)

    def close(self) -> None:
        self._guest.close()
        self._loop.close()

    def sh(self, command: str, seconds: float | None = None) -> tuple[int | None, str]:
        result = run_program(self._guest, "sh", "-c", command, seconds=seconds or self.patience)
        return result.status, result.output
