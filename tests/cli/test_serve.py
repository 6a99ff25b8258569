"""``chamber serve``."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from chamber.cli.main import run
from chamber.cli.served import make_served
from chamber.device.disk import FileDisk
from chamber.wire.virtio import DeviceType

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize(("arguments", "words"), [
    (["disk"], "'disk' is not one of"),
    (["blk", "--attack", "blk-used-id-sise"], "did you mean blk-used-id-size"),
    (["blk", "--attack", "rng-zeroes"], "there is no attack in blk named 'rng-zeroes'"),
    (["rng", "--mac", "52:54:00:00:00:01"], "--mac is no option of rng"),
    (["net", "--mac", "52:54"], "six bytes"),
    (["blk", "--size", "1000"], "whole sectors"),
    (["blk", "--size", "lots"], "a number of bytes"),
    (["blk", "--size", "1M", "--file", "x"], "a file has its own"),
    (["blk", "--file", "/no/such/file"], "/no/such/file: No such file"),
    (["scsi", "--file", "/no/such/file"], "/no/such/file: No such file"),
    (["pmem", "--file", "/etc/hostname"], "whole pages"),
    (["fs", "--directory", "/no/such/folder"], "'/no/such/folder' does not exist"),
    (["fs", "--tag", "x" * 40], "a tag has 1 to 36 bytes"),
    (["9p", "--tap", "tap0"], "--tap is no option of 9p"),
    (["input", "--events", "/no/such/file"], "/no/such/file: No such file"),
    (["input", "--events", "/etc/hostname"], "a line is seconds, type, code and value"),
    (["snd", "--record", "/no/such/file"], "/no/such/file: "),
    (["snd", "--record", "/etc/hostname"], "/etc/hostname: "),
    (["vsock", "--cid", "2"], "2 is not in the range"),
    (["vsock", "--unix", "/no/such/folder/s"], "No such file"),
    (["blk", "--ring", "round"], "'round' is not one of"),
    (["blk", "--protocol", "vfio-user", "--in-band"], "--in-band goes with --protocol vhost-user"),
    (["blk", "--attack", "blk-pci-next-loop"], "acts on a PCI bus: --protocol vfio-user"),
    (["blk", "--attack", "blk-host-fake-all"], "is what a hypervisor does, not a device"),
    (["blk", "--queues", "0"], "0 is not in the range"),
    (["blk", "--capture", "/no/such/folder/x.pcapng"], "/no/such/folder/x.pcapng: No such file"),
])
def test_wrong_usage_is_one_line(arguments: list[str], words: str, tmp_path: Path,
                                 capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["serve", *arguments, "--socket", str(tmp_path / "s")]) == 2
    captured = capsys.readouterr()
    assert words in captured.err
    assert captured.err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_paths_that_are_no_place_for_a_socket(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("keep")
    for path, words in ((tmp_path / "file", "is no socket"), (tmp_path / ("x" * 120), "longer than"),
                        (tmp_path / "none" / "s", "No such file")):
        assert run(["serve", "rng", "--socket", str(path)]) == 2
        assert words in capsys.readouterr().err.splitlines()[-1]
    assert (tmp_path / "file").read_text() == "keep"


def test_a_socket_in_use(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "s"
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(path))
        other.listen()
        assert run(["serve", "rng", "--socket", str(path)]) == 2
        assert "is in use" in capsys.readouterr().err
        assert path.is_socket()


def test_options_reach_the_device(tmp_path: Path) -> None:
    image = tmp_path / "image"
    image.write_bytes(bytes(8192))
    blk = make_served(DeviceType.BLOCK, None, {"file": image, "read_only": True, "queues": 3})
    assert isinstance(blk.disk, FileDisk)  # type: ignore[attr-defined]
    assert blk.disk.read_only  # type: ignore[attr-defined]
    assert blk.queue_count == 3
    blk.close()
    small = make_served(DeviceType.BLOCK, None, {"size": 1 << 20})
    assert small.disk.size == 1 << 20  # type: ignore[attr-defined]
    net = make_served(DeviceType.NET, None, {"mac": bytes(range(6)), "queues": 4})
    assert net.read_config(0, 6) == bytes(range(6))
    assert net.read_config(8, 2) == b"\x04\0"
    net.close()


def test_what_to_type_and_to_play(tmp_path: Path) -> None:
    script = tmp_path / "script"
    script.write_text("0 key 30 1\n0 syn 0 0\n")
    typed = make_served(DeviceType.INPUT, None, {"events": script})
    assert len(typed._recording) == 2  # type: ignore[attr-defined]
    sound = make_served(DeviceType.SND, None, {"play": tmp_path / "out.wav"})
    assert len(sound.streams) == 2  # type: ignore[attr-defined]
    sound.close()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_it_serves_until_interrupted_and_leaves_nothing(tmp_path: Path, number: signal.Signals) -> None:
    path = tmp_path / "s"
    command = [sys.executable, "-c", "from chamber.cli.main import main; main()", "serve", "blk", "--socket", str(path),
               "--attack", "blk-used-id-size"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        assert process.stderr.readline() == f"serving blk on {path}\n"
        while True:
            try:
                with socket.socket(socket.AF_UNIX) as client:
                    client.connect(str(path))
                    client.sendall(b"\x01\0\0\0\x01\0\0\0\0\0\0\0")  # GET_FEATURES
                    reply = client.recv(20)
                break
            except (FileNotFoundError, ConnectionRefusedError):
                assert process.poll() is None
        assert reply[:4] == b"\x01\0\0\0"
        process.send_signal(number)
        assert process.stderr.read() == "interrupted\n"
        assert process.wait() == 0
    assert list(tmp_path.iterdir()) == []
