"""The stock guest's network driver against the host's own network stack, through a tap device in a namespace."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest

from chamber.lab.observation import TargetError
from chamber.lab.uml_guest import UmlGuest
from chamber.lab.uml_kernel import find_kernel
from chamber.lab.uml_program import connect, disconnect, run_program
from chamber.link.eventloop import EventLoop
from chamber.wire.virtio import DeviceType
from tests.lab import tap_peer
from tests.lab.tap_server import TAP, serving_net

if TYPE_CHECKING:
    from collections.abc import Iterator

try:
    KERNEL = find_kernel()
except TargetError as error:
    pytest.skip(str(error), allow_module_level=True)


def _can_make_namespaces() -> bool:
    if os.geteuid() != 0 or not Path("/dev/net/tun").exists() or None in map(shutil.which, ("ip", "ping")):
        return False
    return not subprocess.run(["unshare", "--net", "true"], capture_output=True, check=False).returncode


pytestmark = [pytest.mark.uml, pytest.mark.skipif(not _can_make_namespaces(),
                                                  reason="it takes root, tun, iproute2 and iputils-ping")]

GUEST: Final = "10.98.0.2"
HOST: Final = "10.98.0.1"
SIZE: Final = 6 << 20
PEER: Final = str(Path(tap_peer.__file__))
_END_SECONDS: Final = 20


class Wire:
    """A guest, its network device in a process of its own, and the namespace where that process has its tap device.

    The namespace has no name: it is the device process's own, and goes with it.
    """

    def __init__(self, guest: UmlGuest, server: int) -> None:
        self.guest = guest
        self.server = server
        self.namespace = os.readlink(f"/proc/{server}/ns/net")

    def inside(self, *command: str) -> list[str]:
        """Have a command of the host run in the namespace."""
        return ["nsenter", f"--net=/proc/{self.server}/ns/net", *command]

    def on_host(self, *command: str) -> str:
        result = subprocess.run(self.inside(*command), capture_output=True, text=True, timeout=60, check=False)
        assert result.returncode == 0, f"{' '.join(command)}: {result.stdout}{result.stderr}"
        return result.stdout

    def on_guest(self, *command: str) -> str:
        result = run_program(self.guest, *command, seconds=90)
        assert result.status == 0, f"{' '.join(command)}: {result.output}"
        return result.output

    def open(self) -> None:
        """Connect the device, and give both ends their addresses. The stock kernel has no IPv6."""
        virtio = connect(self.guest, DeviceType.NET)
        name = self.on_guest("ls", f"/sys/bus/virtio/devices/{virtio}/net").strip()
        for run, device, address in ((self.on_guest, name, GUEST), (self.on_host, TAP, HOST)):
            run("ip", "address", "add", f"{address}/24", "dev", device)
            run("ip", "link", "set", device, "up")


def _members(namespace: str) -> list[str]:
    """Ids of the processes in a network namespace."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/ns/net"):
        with contextlib.suppress(OSError):
            if os.readlink(entry) == namespace:
                found.append(entry.parts[2])
    return found


@pytest.fixture(params=["split", "packed"])
def wire(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Wire]:
    path = tmp_path / "net"
    loop = EventLoop()
    with contextlib.closing(loop), serving_net(path, "--ring", request.param) as server, contextlib.closing(
            UmlGuest(KERNEL, loop, {}, sockets={DeviceType.NET: path})) as guest:
        wire = Wire(guest, server)
        assert wire.namespace != os.readlink("/proc/self/ns/net")
        wire.open()
        yield wire
        disconnect(guest, DeviceType.NET)
    assert _members(wire.namespace) == []
    assert not Path(f"/sys/class/net/{TAP}").exists()


def test_echoes_and_checksummed_transfers(wire: Wire) -> None:
    for run, peer in ((wire.on_guest, HOST), (wire.on_host, GUEST)):
        for size in ("0", "56", "1400", "4000"):  # the last one in fragments
            output = run("ping", "-c", "3", "-i", "0.05", "-W", "5", "-s", size, peer)
            assert " 3 received, 0% packet loss" in output, output
    _transfer(wire, guest="connect", host="listen", address=HOST)
    _transfer(wire, guest="listen", host="connect", address=GUEST)
    for run in (wire.on_guest, wire.on_host):
        # A checksum that was wrong, or left to somebody who did not make it, would be counted here.
        names, values = (line.split()[1:] for line in run("cat", "/proc/net/snmp").splitlines() if line[:4] == "Tcp:")
        assert dict(zip(names, values, strict=True))["InCsumErrors"] == "0"


def _transfer(wire: Wire, *, guest: str, host: str, address: str) -> None:
    """Send some megabytes both ways at once, and compare what arrived with what was sent."""
    arguments = {end: (sys.executable, PEER, role, address, seed, str(SIZE))
                 for end, role, seed in (("guest", guest, "1"), ("host", host, "2"))}
    with subprocess.Popen(wire.inside(*arguments["host"]), stdout=subprocess.PIPE, text=True) as process:
        try:
            said = {"guest": wire.on_guest(*arguments["guest"])}
            said["host"], _ = process.communicate(timeout=_END_SECONDS)
        finally:
            process.kill()
    for end, seed in (("guest", 2), ("host", 1)):
        right = hashlib.sha256(tap_peer.content(seed, SIZE)).hexdigest()
        assert json.loads(said[end]) == {"bytes": SIZE, "sha256": right}, end
