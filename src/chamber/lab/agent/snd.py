"""What a guest does with a sound card: ALSA's own system calls, as no library is here."""

from __future__ import annotations

import ctypes
import fcntl
import os
import random
import select
import struct
from pathlib import Path
from typing import TYPE_CHECKING, Final

from chamber.device.sample_content import RECORDED
from chamber.lab.agent import kernel
from chamber.lab.agent.patience import patient
from chamber.lab.agent.report import Silence, WrongData

if TYPE_CHECKING:
    from collections.abc import Callable

    from chamber.lab.agent.report import Report

__all__ = ("STIMULI", "play", "record", "volume")

_CONTROL: Final = Path("/dev/snd/controlC0")
_SECONDS: Final = 0.5
_FRAME: Final = 4
"""Bytes: two channels of 16 bits."""
_PERIOD: Final = 480
_RATE: Final = 48000
# Ioctls of sound/asound.h: direction, size, letter, number.
_HW_PARAMS, _PREPARE, _START, _DROP = 0xC2604111, 0x4140, 0x4142, 0x4143
_WRITE_FRAMES, _READ_FRAMES = 0x40184150, 0x80184151
_PCM_INFO, _STATUS = 0x81204101, 0x80984120
_CARD_INFO, _ELEM_LIST, _ELEM_INFO, _ELEM_READ, _ELEM_WRITE = 0x81785501, 0xC0505510, 0xC1105511, 0xC4C85512, 0xC4C85513
_SUBSCRIBE, _TLV_READ = 0xC0045516, 0xC008551A
_VALUE_AT: Final = 72
_MIXER: Final = 2
_VOLUME: Final = b"Master Playback Volume"
_INTERVALS: Final = 12
"""sample_bits, frame_bits, channels, rate, period_time, period_size, period_bytes, periods, buffer_*, tick_time."""
_EXACT: Final = 4
"""An interval of integers."""


def _hw_params() -> bytearray:
    """As in struct snd_pcm_hw_params: interleaved, 16 bits, two channels, 48 kHz, four periods of 480 frames."""
    masks = b"".join((1 << bit).to_bytes(32, "little") for bit in (3, 2, 0))
    intervals = [(0, 0xFFFFFFFF, 0)] * _INTERVALS
    for at, value in ((2, 2), (3, _RATE), (5, _PERIOD), (7, 4)):
        intervals[at] = value, value, _EXACT
    packed = b"".join(struct.pack("=3I", *interval) for interval in intervals)
    return bytearray((struct.pack("=I", 0) + masks + bytes(160) + packed + bytes(108)
                      + struct.pack("=2I", 0xFFFFFFFF, 0)).ljust(608, b"\0"))


def _transfer(fd: int, request: int, data: bytearray) -> int:
    """Write or read frames; return how many."""
    buffer = (ctypes.c_char * len(data)).from_buffer(data)
    argument = bytearray(struct.pack("=qQQ", 0, ctypes.addressof(buffer), len(data) // _FRAME))
    fcntl.ioctl(fd, request, argument)
    return int(struct.unpack_from("=q", argument)[0])


def _open(name: str) -> int:
    path = Path("/dev/snd") / name
    kernel.wait_for(name, path)
    return os.open(path, os.O_RDWR | os.O_NONBLOCK)


def play(data: bytes) -> None:
    """Play frames, and see that they are taken."""
    fd = _open("pcmC0D0p")
    try:
        fcntl.ioctl(fd, _HW_PARAMS, _hw_params())
        fcntl.ioctl(fd, _PREPARE)
        rest = bytearray(data)
        while rest:
            if not select.select([], [fd], [], patient(_SECONDS))[1]:
                raise Silence(f"{len(data) - len(rest)} of {len(data)} bytes were taken")
            done = _transfer(fd, _WRITE_FRAMES, rest)
            rest = rest[done * _FRAME:]
        fcntl.ioctl(fd, _STATUS, bytearray(152))
        fcntl.ioctl(fd, _DROP)
    finally:
        os.close(fd)


def record(frames: int) -> bytes:
    """Record frames."""
    fd = _open("pcmC0D0c")
    try:
        fcntl.ioctl(fd, _HW_PARAMS, _hw_params())
        fcntl.ioctl(fd, _PREPARE)
        fcntl.ioctl(fd, _START)
        data = b""
        while len(data) < frames * _FRAME:
            if not select.select([fd], [], [], patient(_SECONDS))[0]:
                raise Silence(f"{len(data)} of {frames * _FRAME} bytes were recorded")
            part = bytearray(min(_PERIOD * _FRAME, frames * _FRAME - len(data)))
            data += part[:_transfer(fd, _READ_FRAMES, part) * _FRAME]
        return data
    finally:
        os.close(fd)


def _element(number: int) -> bytearray:
    return bytearray(struct.pack("=I", number).ljust(1224, b"\0"))


def _volume() -> bytearray:
    """An element by its name: that of a mixer, and the first of it."""
    return bytearray(struct.pack("=Ii2I44sI", 0, _MIXER, 0, 0, _VOLUME, 0).ljust(1224, b"\0"))


def volume(left: int, right: int) -> None:
    """Set the volume, and read it back."""
    fd = _open(_CONTROL.name)
    try:
        value = _volume()
        struct.pack_into("=qq", value, _VALUE_AT, left, right)
        fcntl.ioctl(fd, _ELEM_WRITE, value)
        value = _volume()
        fcntl.ioctl(fd, _ELEM_READ, value)
        if struct.unpack_from("=qq", value, _VALUE_AT) != (left, right):
            raise WrongData("a volume that was set")
    finally:
        os.close(fd)


def _jack(report: Report, action: str) -> None:
    """Have the host move a plug, and hear of it."""
    fd = _open(_CONTROL.name)
    try:
        fcntl.ioctl(fd, _SUBSCRIBE, bytearray(struct.pack("=i", 1)))
        report.ask(action)
        if not select.select([fd], [], [], patient(_SECONDS))[0]:
            raise Silence(f"nobody says {action}")
        os.read(fd, 4096)
    finally:
        os.close(fd)


def use(virtio: str, report: Report) -> None:  # noqa: ARG001 - one signature for all stimuli
    """Play, record what is known, turn a knob, move a plug."""
    if not report.attempt("play", play, random.Random(6).randbytes(2 * _PERIOD * _FRAME)):  # noqa: S311 - test data
        return
    with report.step("record"):
        data = record(2 * _PERIOD)
        if data != RECORDED[:len(data)]:
            raise WrongData("what is recorded is something else")
    report.attempt("volume", volume, 70, 71)
    for action in ("unplug", "plug"):
        if not report.attempt(action, _jack, report, action):
            break


def inspect(virtio: str, report: Report) -> None:
    """Ask what there is."""
    with report.step("controls"):
        fd = _open(_CONTROL.name)
        try:
            fcntl.ioctl(fd, _CARD_INFO, bytearray(376))
            listed = bytearray(80)
            fcntl.ioctl(fd, _ELEM_LIST, listed)
            for number in range(1, min(struct.unpack_from("=3I", listed)[2], 8) + 1):
                about = bytearray(struct.pack("=I", number).ljust(272, b"\0"))
                report.attempt(f"about element {number}", fcntl.ioctl, fd, _ELEM_INFO, about)
                report.attempt(f"element {number}", fcntl.ioctl, fd, _ELEM_READ, _element(number))
            volume_element = _volume()
            report.attempt("volume", fcntl.ioctl, fd, _ELEM_READ, volume_element)
            metadata = bytearray(struct.pack("=2I", *struct.unpack_from("=I", volume_element), 64).ljust(72, b"\0"))
            report.attempt("metadata", fcntl.ioctl, fd, _TLV_READ, metadata)
        finally:
            os.close(fd)
    with report.step("streams"):
        for name in ("pcmC0D0p", "pcmC0D0c"):
            fd = _open(name)
            try:
                fcntl.ioctl(fd, _PCM_INFO, bytearray(288))
            finally:
                os.close(fd)
    report.attempt("proc", kernel.read_tree, Path("/proc/asound"), depth=3)
    report.attempt("device attributes", kernel.read_tree, Path("/sys/bus/virtio/devices") / virtio, depth=0)


STIMULI: Final[dict[str, Callable[[str, Report], None]]] = {"use": use, "inspect": inspect}
