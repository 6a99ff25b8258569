"""Captures: Wireshark opens them, and they hold what crossed, lies included."""

from __future__ import annotations

import shutil
import subprocess
from typing import TYPE_CHECKING

import pytest

from chamber.attacks.catalogue import find
from chamber.device.capture import CaptureFile
from chamber.guest.profile import UNTRUSTED
from chamber.lab.model import ModelTarget
from chamber.lab.observation import Scenario
from chamber.wire.virtio import DeviceType

if TYPE_CHECKING:
    from pathlib import Path


def tshark(path: Path, *fields: str, only: str = "frame") -> list[list[str]]:
    if shutil.which("tshark") is None:
        pytest.skip("no tshark here: apt-get install tshark")
    command = ["tshark", "-r", str(path), "-Y", only, "-T", "fields", *(word for f in fields for word in ("-e", f))]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    return [line.split("\t") for line in done.stdout.splitlines()]


def capture(path: Path, scenario: Scenario) -> None:
    with CaptureFile(path) as file:
        assert ModelTarget(capture=file).run(scenario).completed


def test_wireshark_reads_frames_both_ways(tmp_path: Path) -> None:
    path = tmp_path / "net.pcapng"
    capture(path, Scenario(DeviceType.NET, profile="hardened"))
    pings = tshark(path, "icmp.type", "frame.len", "frame.packet_flags_direction", only="icmp")
    assert [row[0] for row in pings] == ["8", "0", "8", "0"]
    assert pings[0][1] == pings[1][1]
    assert [int(row[2], 0) for row in pings] == [2, 1, 2, 1]
    assert tshark(path, "arp.opcode", only="arp")[0] == ["1"]


def test_requests_of_other_devices_are_packets_with_a_comment(tmp_path: Path) -> None:
    path = tmp_path / "blk.pcapng"
    capture(path, Scenario(DeviceType.BLOCK, profile="hardened"))
    packets = tshark(path, "frame.len", "frame.comment")
    assert ["16", "blk queue 0 (requests) request 0, 16 bytes, 4097 to be written"] in packets
    assert any(row == ["4097", "blk queue 0 (requests) answer to 0, 4097 bytes"] for row in packets)


@pytest.mark.parametrize("device", [DeviceType.NET, DeviceType.BLOCK, DeviceType.CONSOLE, DeviceType.RNG],
                         ids=lambda device: device.short)
def test_the_transcript_tells_the_story(tmp_path: Path, device: DeviceType) -> None:
    path = tmp_path / "out.pcapng"
    capture(path, Scenario(device, profile="hardened"))
    lines = (tmp_path / "out.pcapng.txt").read_text().splitlines()
    words = [line.split(" ", 1)[1] for line in lines]
    assert [float(line.split(" ", 1)[0]) for line in lines] == sorted(float(line.split(" ", 1)[0]) for line in lines)
    assert words[0].startswith(f"{device.short} offers ")
    assert any(word.startswith(f"{device.short} driver accepts ") for word in words)
    assert f"{device.short} driver ready" in words
    assert any("used: id" in word for word in words)
    assert any("stopped" in word for word in words)


def test_lies_are_written_down_as_the_driver_sees_them(tmp_path: Path) -> None:
    spec = find("blk-used-len-max")
    path = tmp_path / "lie.pcapng"
    with CaptureFile(path) as file:
        observation = ModelTarget(capture=file).run(Scenario(spec.device, spec.stimuli, spec, "hardened"))
    assert observation.strikes
    transcript = (tmp_path / "lie.pcapng.txt").read_text()
    assert f"{0xFFFFFFFF} bytes" in transcript
    assert f"blk: ATTACK {observation.strikes[0]}" in transcript


def test_a_recorder_changes_nothing(tmp_path: Path) -> None:
    for name in ("net-rx-used-id-repeated", "blk-used-elem-race", "console-early-used"):
        spec = find(name)
        for profile in UNTRUSTED:
            scenario = Scenario(spec.device, spec.stimuli, spec, profile)
            plain = ModelTarget().run(scenario)
            with CaptureFile(tmp_path / "same.pcapng") as file:
                recorded = ModelTarget(capture=file).run(scenario)
            plain.seconds = recorded.seconds = 0.0
            assert plain == recorded
