"""What a guest does with a keyboard, a pointer and a touch screen in one."""

from __future__ import annotations

import fcntl
import os
import select
import struct
from pathlib import Path
from typing import TYPE_CHECKING, Final

from chamber.device.input_actions import ACTIONS
from chamber.lab.agent import kernel
from chamber.lab.agent.patience import patient
from chamber.lab.agent.report import Silence, WrongData
from chamber.wire.input import CODES, EventType

if TYPE_CHECKING:
    from collections.abc import Callable

    from chamber.lab.agent.report import Report

__all__ = ("STIMULI", "act", "node")

_RECORD: Final = struct.Struct("=qqHHi")
"""struct input_event of 64-bit systems."""
_SECONDS: Final = 0.3
_LED: Final = 0x11
_READ: Final = 2 << 30
_BITS: Final = 96


def _eviocg(number: int, size: int) -> int:
    """An ioctl of evdev that reads so many bytes."""
    return _READ | size << 16 | ord("E") << 8 | number


def node(virtio: str) -> Path:
    """Where the device's events can be read."""
    folder = Path("/sys/bus/virtio/devices") / virtio / "input"
    kernel.wait_for("the input device", folder)
    events = next((path.name for entry in sorted(folder.iterdir()) for path in sorted(entry.glob("event*"))), "")
    if not events:
        raise Silence("there is no event device")
    where = Path("/dev/input") / events
    kernel.wait_for("the event device", where)
    return where


def _events(fd: int, count: int) -> list[tuple[int, int, int]]:
    """Read so many events, or as many as come in time."""
    found: list[tuple[int, int, int]] = []
    while len(found) < count and select.select([fd], [], [], patient(_SECONDS))[0]:
        data = os.read(fd, _RECORD.size * 64)
        found += [event[2:] for event in _RECORD.iter_unpack(data[:len(data) // _RECORD.size * _RECORD.size])]
    return found


def act(fd: int, action: str, report: Report) -> None:
    """Have the host use the device, and compare what comes with what was done."""
    right = [(event.type, event.code, event.value) for sequence in ACTIONS[action] for event in sequence]
    report.ask(action)
    # The kernel passes on what changes something; keys do, each time, and so do ends of sequences.
    wanted = [event for event in right if event[0] in {EventType.KEY, EventType.REL}]
    came: list[tuple[int, int, int]] = []
    while len([e for e in came if e in wanted]) < len(wanted):
        more = _events(fd, 1)
        if not more:
            break
        came += more
    keys = [event for event in came if event[0] in {EventType.KEY, EventType.REL}]
    if keys == wanted:
        return
    rest = iter(wanted)
    if all(event in rest for event in keys):
        raise Silence(f"{len(keys)} of {len(wanted)} events of {action} came")
    raise WrongData(f"events of {action} are others")


def use(virtio: str, report: Report) -> None:
    """Read what the host types, moves and touches; switch lamps."""
    with report.step("open"):
        fd = os.open(node(virtio), os.O_RDWR | os.O_NONBLOCK)
        try:
            for action in ("type", "move", "touch"):
                if not report.attempt(action, act, fd, action, report):
                    break
            with report.step("lamps"):
                for code in (0, 1):
                    for value in (1, 0):
                        os.write(fd, _RECORD.pack(0, 0, _LED, code, value))
        finally:
            os.close(fd)


def inspect(virtio: str, report: Report) -> None:
    """Ask what the device is."""
    report.attempt("device attributes", kernel.read_tree, Path("/sys/bus/virtio/devices") / virtio, depth=4)
    with report.step("open"):
        fd = os.open(node(virtio), os.O_RDWR | os.O_NONBLOCK)
        try:
            report.attempt("identity", fcntl.ioctl, fd, _eviocg(0x02, 8), bytes(8))
            for name, number in (("name", 0x06), ("place", 0x07), ("serial number", 0x08),
                                 ("properties", 0x09), ("keys down", 0x18), ("lamps lit", 0x19), ("switches", 0x1B)):
                report.attempt(name, fcntl.ioctl, fd, _eviocg(number, _BITS), bytes(_BITS))
            for kind in CODES.keys() - {EventType.REP}:  # which is no list of codes
                report.attempt(f"codes of {kind.name}", fcntl.ioctl, fd, _eviocg(0x20 + kind, _BITS), bytes(_BITS))
            for axis in (0, 1, 0x2F, 0x35, 0x36, 0x39):
                report.attempt(f"axis {axis:#x}", fcntl.ioctl, fd, _eviocg(0x40 + axis, 24), bytes(24))
            report.attempt("slots", fcntl.ioctl, fd, _eviocg(0x0A, 64), struct.pack("=I", 0x39).ljust(64, b"\0"))
        finally:
            os.close(fd)


STIMULI: Final[dict[str, Callable[[str, Report], None]]] = {"use": use, "inspect": inspect}
