"""``chamber drive``."""

from __future__ import annotations

import contextlib
import os
import random
import re
import socket
import threading
from typing import TYPE_CHECKING

import pytest

from chamber.attacks.catalogue import find
from chamber.cli.main import run
from chamber.device.blk import BlkDevice
from chamber.device.catalogue import make_device
from chamber.device.disk import FileDisk
from chamber.device.fs import FsDevice
from chamber.lab import drive_use
from chamber.lab.model_stimuli import DRIVERS
from chamber.wire.virtio import DeviceType
from tests.link.frontend import Served

if TYPE_CHECKING:
    from pathlib import Path

    from chamber.device.base import Device
    from chamber.guest.drivers.blk import BlkDriver


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "socket"


def drive(capsys: pytest.CaptureFixture[str], device: Device, path: Path, *options: str) -> tuple[int, dict[str, str]]:
    """Run the command against a device; return its status, and what it says of each step."""
    with Served(device, path):
        status = run(["drive", device.type.short, "--socket", str(path), *options])
    device.close()
    captured = capsys.readouterr()
    assert captured.err == ""
    lines = [re.fullmatch(r"(ok|FAILED) +(\S+(?: \S+)*)(?:  +(.*))?", line) for line in captured.out.splitlines()]
    return status, {m[2]: f"{m[1]} {m[3] or ''}".strip() for m in lines if m is not None}


@pytest.mark.parametrize("profile", ["bare", "bounced", "hardened"])
def test_a_disk_is_used_and_left_as_it_was(tmp_path: Path, path: Path, profile: str,
                                           capsys: pytest.CaptureFixture[str]) -> None:
    image = tmp_path / "image"
    image.write_bytes(before := random.Random(1).randbytes(1 << 20))
    status, said = drive(capsys, BlkDevice(FileDisk(image)), path, "--write", "100:70", "--profile", profile)
    assert list(said) == ["negotiate", "share memory", "probe", "identify", "read in order", "read at random", "flush",
                          "keep what is there", "write and compare", "write zeroes", "discard", "put back", "give back"]
    assert all(words.startswith("ok") for words in said.values())
    assert status == 0
    assert "1,048,576 bytes in blocks of 512" in said["identify"]
    assert re.match(r"ok 64 requests, 1,048,576 bytes: [\d,]+ requests/s, [\d,.]+ MB/s", said["read in order"])
    assert "WRITE_ZEROES" in said["probe"]
    assert "REPLY_ACK" in said["negotiate"]
    assert image.read_bytes() == before


def test_what_was_interrupted_is_put_back(tmp_path: Path, path: Path, capsys: pytest.CaptureFixture[str],
                                          monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(driver: BlkDriver, first: int, _count: int) -> str:
        assert driver.read(first, 1) != before[100 * 512:101 * 512]
        raise KeyboardInterrupt

    monkeypatch.setattr(drive_use, "_zero", interrupt)
    image = tmp_path / "image"
    image.write_bytes(before := random.Random(1).randbytes(1 << 20))
    with Served(device := BlkDevice(FileDisk(image)), path):
        assert run(["drive", "blk", "--socket", str(path), "--write", "100:70"]) == 130
    device.close()
    assert capsys.readouterr().err == "interrupted\n"
    assert image.read_bytes() == before


def test_without_being_told_to_write_it_does_not(tmp_path: Path, path: Path,
                                                 capsys: pytest.CaptureFixture[str]) -> None:
    image = tmp_path / "image"
    image.write_bytes(bytes(1 << 20))
    device = BlkDevice(FileDisk(image, read_only=True))
    status, said = drive(capsys, device, path)
    assert status == 0
    assert "write and compare" not in said
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "one").write_bytes(bytes(5000))
    status, said = drive(capsys, FsDevice(path=folder, read_only=True), path)
    assert status == 0
    assert said["list"] == "ok 1 names"
    assert said["read files"].startswith("ok 1 files, 5,000 bytes")


def test_a_disk_that_takes_no_writes(tmp_path: Path, path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    image = tmp_path / "image"
    image.write_bytes(bytes(1 << 20))
    status, said = drive(capsys, BlkDevice(FileDisk(image, read_only=True)), path, "--write", "0:1")
    assert status == 1
    assert said["write and compare"] == "FAILED the device answers with status 1"
    assert said["give back"] == "ok"


def test_a_directory_is_used_and_left_as_it_was(tmp_path: Path, path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "mine").write_bytes(b"mine")
    status, said = drive(capsys, FsDevice(path=folder), path, "--write", "scratch")
    assert list(said) == ["negotiate", "share memory", "probe", "mount", "list", "read files", "make a directory",
                          "write", "read back", "rename", "remove", "unmount", "give back"]
    assert status == 0
    status, said = drive(capsys, FsDevice(path=folder), path, "--write", "mine")
    assert said["make a directory"] == "FAILED MKDIR: EEXIST"
    assert "write" not in said
    assert status == 1
    assert os.listdir(folder) == ["mine"]
    assert (folder / "mine").read_bytes() == b"mine"


@pytest.mark.parametrize("kind", DRIVERS, ids=lambda kind: kind.short)
def test_any_device_is_probed_and_given_back(path: Path, kind: DeviceType, capsys: pytest.CaptureFixture[str]) -> None:
    status, said = drive(capsys, make_device(kind, ring="packed"), path, "--in-band")
    assert status == 0
    assert said["probe"].startswith("ok features")
    assert "RING_PACKED" in said["probe"]
    assert "INBAND_NOTIFICATIONS" in said["negotiate"]
    assert said["give back"] == "ok"


def test_a_hostile_device_is_refused_or_told_of(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    attack = find("blk-used-id-size")
    for profile, words in (("hardened", "[virtio 1.3, 2.7.8]"), ("bare", "descriptor state")):
        status, said = drive(capsys, make_device(attack.device, hooks=attack.make()), path, "--profile", profile)
        assert status == 1
        failed = [what for what in said.values() if what.startswith("FAILED")]
        assert words in failed[0]
        assert ("give back" in said) == (profile == "hardened")


def test_messages_are_shown_on_demand(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with Served(make_device(DeviceType.RNG), path):
        assert run(["drive", "rng", "--socket", str(path), "--trace"]) == 0
    assert "SET_VRING_NUM VringState(index=0, num=64)" in capsys.readouterr().out


@pytest.mark.parametrize(("arguments", "words"), [
    (["disk"], "'disk' is not one of"),
    (["blk"], "No such file"),
    (["blk", "--profile", "soft"], "'soft' is not one of"),
    (["blk", "--timeout", "0"], "0.0 is not in the range"),
])
def test_wrong_usage_is_one_line(arguments: list[str], words: str, path: Path,
                                 capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["drive", *arguments, "--socket", str(path)]) == 2
    captured = capsys.readouterr()
    assert words in captured.err
    assert captured.err.count("\n") == 1


@pytest.mark.parametrize(("kind", "where", "words"), [
    (DeviceType.BLOCK, "100", "as FIRST:COUNT"), (DeviceType.BLOCK, "1:0", "as FIRST:COUNT"),
    (DeviceType.BLOCK, "-1:5", "as FIRST:COUNT"), (DeviceType.BLOCK, "0:99999999", "32768 at most"),
    (DeviceType.FS, "../up", "the name of a directory"), (DeviceType.FS, "", "the name of a directory"),
    (DeviceType.RNG, "x", "nothing is written to rng")])
def test_no_place_to_write(kind: DeviceType, where: str, words: str, path: Path,
                           capsys: pytest.CaptureFixture[str]) -> None:
    with Served(make_device(kind), path):
        assert run(["drive", kind.short, "--socket", str(path), "--write", where]) == 2
    assert words in capsys.readouterr().err


def test_sockets_where_nobody_speaks_vhost_user(tmp_path: Path, path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["drive", "blk", "--socket", str(tmp_path / ("x" * 120))]) == 2
    assert "too long" in capsys.readouterr().err
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()

        def serve() -> None:
            for answer in (b"", b"HTTP/1.0 400 Bad\r\n\r\n"):
                sock, _ = listener.accept()
                with sock, contextlib.suppress(ConnectionResetError):
                    sock.recv(100)
                    sock.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        for words in ("a back end stays", "the protocol version is 1"):
            assert run(["drive", "blk", "--socket", str(path), "--timeout", "2"]) == 2
            captured = capsys.readouterr()
            assert words in captured.err
            assert captured.err.count("\n") == 1
        thread.join()
