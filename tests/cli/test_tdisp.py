"""``chamber tdisp``: a device in a process of its own, attested, looked at and compared."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import pytest

from chamber.cli.main import run
from chamber.device.tdi import PLACES
from chamber.device.virtio_pci import REGISTER_BAR
from chamber.guest.doe import DoeRequester, find_mailbox
from chamber.guest.spdm_requester import SpdmRequester
from chamber.guest.trust_policy import load_trust
from chamber.guest.untrusted import ENFORCING
from chamber.guest.verifier import Verifier
from chamber.link.vfio_client import VfioClient
from chamber.wire.doe import PCI_SIG, DataObject, DoeType
from chamber.wire.pci import HEADER, Command
from chamber.wire.tdisp import FunctionId

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.timeout(120)
_CONFIG_REGION = 7
"""Of a PCI function over vfio-user (linux/vfio.h, VFIO_PCI_CONFIG_REGION_INDEX)."""


@contextmanager
def serving(*arguments: str, over: tuple[str, str] = ("--listen", "127.0.0.1:0")) -> Iterator[str]:
    """Serve a device; give its address."""
    command = (sys.executable, "-m", "chamber", "tdisp", "serve", *over, *arguments)
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stderr is not None
            said = re.match(r"serving \w+ on (127\.0\.0\.1:\d+|/\S+), function 0x\w{4}", process.stderr.readline())
            assert said is not None
            yield said[1]
        finally:
            process.send_signal(signal.SIGINT)
            try:
                process.wait(20)
            finally:
                process.kill()
    assert process.returncode == 0


def test_a_device_over_vfio_user_is_taken_through_its_mailbox(tmp_path: Path) -> None:
    policy, socket = tmp_path / "trust.toml", tmp_path / "socket"
    with (serving("--device", "net", "--write-policy", str(policy), "--function", "0008",
                  over=("--socket", str(socket))), VfioClient(socket) as client):
        def read(at: int) -> int:
            return int.from_bytes(client.read(_CONFIG_REGION, at, 4), "little")

        def write(at: int, word: int) -> None:
            client.write(_CONFIG_REGION, at, word.to_bytes(4, "little"))

        for bar, base in PLACES.items():
            write(HEADER[f"bar{bar}"].offset, base)
        write(HEADER["command"].offset, Command.MEMORY | Command.BUS_MASTER)
        at = find_mailbox(read)
        assert at is not None
        mailbox = DoeRequester(read, write, at, ENFORCING)

        def exchange(payload: bytes, secured: bool) -> bytes:
            return mailbox.exchange(DataObject(PCI_SIG, DoeType.SECURED_SPDM if secured else DoeType.SPDM, payload),
                                    1 << 14)

        verifier = Verifier(SpdmRequester(exchange, os.urandom), FunctionId(8), load_trust(policy),
                            now=datetime.now(UTC), random=os.urandom, mapped=PLACES)
        assert verifier.attest().info is not None
        assert client.read(REGISTER_BAR, 0, 4) == bytes(4)
        # Configuration is held: a base address that is moved ends it.
        write(HEADER[f"bar{REGISTER_BAR}"].offset, 0x9000_0000)
        assert client.read(REGISTER_BAR, 0, 4) == b"\xff" * 4


@pytest.mark.parametrize("transport", ["doe", "mctp", "tcp"])
def test_a_device_is_attested_by_its_policy_and_its_report_is_read(transport: str, tmp_path: Path,
                                                                  capsys: pytest.CaptureFixture[str]) -> None:
    policy, report = tmp_path / "trust.toml", tmp_path / "report"
    with serving("--transport", transport, "--device", "net", "--write-policy", str(policy)) as address:
        about = ["tdisp", "attest", "--connect", address, "--transport", transport, "--policy", str(policy)]
        assert run([*about, "--report-out", str(report)]) == 0
        assert "the device is trusted by policy served net" in capsys.readouterr().out
        # Once more, on another connection, in each version.
        for version in ("1.2", "1.3"):
            assert run([*about, "--spdm", version, "--json"]) == 0
            said = json.loads(capsys.readouterr().out)
            assert said["trusted"]
            assert f"SPDM {version}" in said["checks"][0]["detail"]
            assert len(said["certificates"]) == 3
            assert said["report"]["bytes"] == report.read_bytes().hex()
        # A policy that wants newer firmware.
        policy.write_text(policy.read_text().replace("least = 1", "least = 2"))
        assert run(about) == 1
        assert "FAIL  measurements" in capsys.readouterr().out
        assert run([*about, "--spdm", "1.1"]) == 1
        assert "FAIL  connection" in capsys.readouterr().out
    assert run(["tdisp", "report", str(report)]) == 0
    assert "a driver can be bound by it" in capsys.readouterr().out
    assert run(["tdisp", "report", str(report), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["violation"] == ""


def test_two_devices_are_compared(capsys: pytest.CaptureFixture[str]) -> None:
    with serving("--device", "rng") as one, serving("--device", "rng") as same, serving(
            "--device", "rng", "--key", "P-256") as other:
        assert run(["tdisp", "compare", one, same]) == 0
        assert "40 questions, 0 answered differently" in capsys.readouterr().out
        assert run(["tdisp", "compare", one, other, "--json"]) == 1
        said = json.loads(capsys.readouterr().out)
        assert [row["asked"] for row in said["answers"] if row["one"] != row["other"]] == ["SPDM"]


def test_a_report_that_no_driver_is_bound_by(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stock = bytes.fromhex(
        "0300000000000000000000000400000000000000000000000100000004000100008000000000000004000000080002000000010000000000"
        "0800000008000300000002000000000004000000080004001000000074646973705f6465765f656d75000000")
    (tmp_path / "stock").write_bytes(stock)
    assert run(["tdisp", "report", str(tmp_path / "stock")]) == 1
    said = capsys.readouterr().out
    assert "BAR 2: 0x8000000, 4 pages" in said
    assert "refused:" in said


@pytest.mark.parametrize(("arguments", "why"), [
    (["attest", "--connect", "nowhere", "--policy", "x"], "no HOST:PORT"),
    (["attest", "--connect", "127.0.0.1:1", "--policy", "/nonexistent"], "/nonexistent"),
    (["serve", "--listen", "127.0.0.1:0", "--function", "zz"], "no requester id"),
    (["serve", "--listen", "127.0.0.1:0", "--write-policy", "/nonexistent/x"], "/nonexistent/x"),
    (["serve", "--listen", "192.0.2.1:80"], "192.0.2.1:80"), (["serve"], "either --listen or --socket"),
    (["serve", "--listen", "127.0.0.1:0", "--socket", "/tmp/x"], "either --listen or --socket"),
    (["serve", "--socket", "/nonexistent/x"], "/nonexistent/x"),
    (["serve", "--socket", "/tmp/x", "--once"], "go with --listen"),
    (["tsm", "--policy", "/nonexistent"], "/nonexistent"),
    (["report", "/nonexistent"], "/nonexistent"), (["report", "/dev/null"], "no interface report"),
    (["compare", "127.0.0.1:1", "127.0.0.1:1"], "127.0.0.1:1")])
def test_what_can_not_be_done_is_said_in_one_line(arguments: list[str], why: str,
                                                 capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["tdisp", *arguments]) == 2
    said = capsys.readouterr().err
    assert why in said
    assert said.count("\n") == 1
