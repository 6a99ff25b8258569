"""What a guest does with SCSI disks in a moment."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final

from chamber.lab.agent import scsi
from chamber.lab.agent.disk import Direct

if TYPE_CHECKING:
    from chamber.lab.agent.report import Report
    from chamber.lab.agent.sessions import Session

__all__ = ("SESSIONS",)


def _scsi_disk(write: bool) -> Session:
    """Read or write a disk."""
    def session(virtio: str, report: Report) -> None:
        with report.step("disk"), Direct(scsi.disk_of(virtio), os.O_RDWR) as direct:
            if write:
                direct.write(1024, bytes(4096))
                direct.flush()
            else:
                direct.read(8, 8)
    return session


def _scsi_events(virtio: str, report: Report) -> None:
    """Have a disk plugged in and pulled out, and see both."""
    with report.step("events"):
        report.ask("plug")
        scsi.disk_of(virtio, scsi.EXTRA)
        report.ask("unplug")
        scsi.lose_extra(virtio)


SESSIONS: Final[dict[str, Session]] = {
    "read": _scsi_disk(write=False), "write": _scsi_disk(write=True), "events": _scsi_events}
