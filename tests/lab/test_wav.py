"""A WAV file played and recorded by the hardened driver, sample by sample."""

from __future__ import annotations

import random
import wave
from typing import TYPE_CHECKING

import pytest

from chamber.device.snd import SndDevice
from chamber.device.snd_stream import Stream, WavSink, WavSource
from chamber.guest.driver import Refused
from chamber.guest.drivers.snd import SndDriver
from chamber.guest.machine import GuestMachine
from chamber.guest.profile import PROFILES
from chamber.lab.model_transport import ModelTransport
from chamber.wire.snd import WIDTHS, PcmFormat

if TYPE_CHECKING:
    from pathlib import Path

SECONDS = 2
PERIOD = 6000
"""Bytes: whole frames of every kind below."""


def _write(path: Path, channels: int, width: int, rate: int) -> bytes:
    frames = random.Random(width).randbytes(SECONDS * rate * channels * width)
    with wave.open(str(path), "wb") as file:
        file.setparams((channels, width, rate, 0, "NONE", ""))
        file.writeframes(frames)
    return frames


@pytest.mark.parametrize(("channels", "kind", "rate"), [
    (1, PcmFormat.U8, 8000), (2, PcmFormat.S16, 48000), (2, PcmFormat.S24_3, 44100), (5, PcmFormat.S32, 22050),
])
def test_a_file_is_played_and_recorded_sample_by_sample(tmp_path: Path, channels: int, kind: PcmFormat,
                                                        rate: int) -> None:
    width = WIDTHS[kind]
    frames = _write(tmp_path / "in.wav", channels, width, rate)
    machine = GuestMachine(PROFILES["hardened"], 1, steps=1 << 22)
    device = SndDevice([Stream.output(WavSink(tmp_path / "out.wav")), Stream.input(WavSource(tmp_path / "in.wav"))])
    driver = SndDriver(machine, ModelTransport(machine, device))
    driver.probe()
    began = machine.scheduler.now
    recorded = driver.record(1, driver.choose(1, channels=channels, format=kind, rate=rate, period=PERIOD), len(frames))
    assert recorded == frames
    # At the pace of the sound, on the guest's clock.
    assert machine.scheduler.now - began == pytest.approx(
        -(-len(frames) // PERIOD) * PERIOD / (rate * channels * width), rel=0.01)
    driver.play(0, driver.choose(0, channels=channels, format=kind, rate=rate, period=PERIOD), recorded)
    with pytest.raises(Refused):
        driver.choose(0, channels=9, format=kind, rate=rate, period=PERIOD)
    driver.remove()
    machine.settle(1)
    machine.heap.check_all()
    assert not machine.heap.reports
    assert not device.violations
    device.close()
    machine.close()
    with wave.open(str(tmp_path / "out.wav")) as file:
        assert file.getparams()[:3] == (channels, width, rate)
        assert file.readframes(file.getnframes()) == frames
