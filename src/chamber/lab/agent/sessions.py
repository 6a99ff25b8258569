"""What a guest does with its devices in a moment: pieces of the stimuli, small enough for hundreds a second."""

from __future__ import annotations

import contextlib
import fcntl
import functools
import os
import random
import select
import socket
import termios
import time
import tty
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Final

from chamber.lab.agent import (
    blk,
    console,
    crypto,
    ethtool,
    input,  # noqa: A004 - the device's name
    kernel,
    net,
    p9,
    rng,
    routing,
    scsi,
    snd,
    tree,
    vsock,
    xdp,
)
from chamber.lab.agent.disk import BLKRRPART, Direct
from chamber.lab.agent.limited_socket import LimitedSocket

if TYPE_CHECKING:
    from chamber.lab.agent.report import Report

__all__ = ("MOUNTED", "SESSIONS", "uses_of")

_Session = Callable[[str, "Report"], None]
_RAW: Final = Path("/sys/class/virtio-ports")
_MOMENT: Final = 0.0002
_DICE: Final = random.Random(1)  # noqa: S311 - test data
_INTERFACES: Final[dict[str, str]] = {}
"""By virtio device."""


def _echo_port(virtio: str, report: Report) -> None:
    """Write to the echo port, and read back."""
    with report.step("echo"):
        fd = os.open(f"/dev/{console.wait_for_port(virtio, 'chamber.echo')}", os.O_RDWR | os.O_NONBLOCK)
        try:
            os.write(fd, bytes(64))
            console.read_exactly(fd, 64)
        finally:
            os.close(fd)


def _terminal(_virtio: str, report: Report) -> None:
    """Write to the console, and read back."""
    with report.step("console"):
        fd = os.open("/dev/hvc0", os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK)
        try:
            tty.setraw(fd, termios.TCSANOW)
            os.write(fd, bytes(16))
            console.read_exactly(fd, 16)
            fcntl.ioctl(fd, termios.TIOCGWINSZ, bytes(8))
        finally:
            os.close(fd)


def _every_port(virtio: str, report: Report) -> None:
    """Open, poll and write to whatever ports there are, and read their names."""
    for name in console.ports(virtio):
        report.attempt("name", kernel.read, f"{_RAW}/{name}/name")
        with report.step("port"):
            fd = os.open(f"/dev/{name}", os.O_RDWR | os.O_NONBLOCK)
            try:
                os.write(fd, b"word")
                select.select([fd], [], [], _MOMENT)
                os.read(fd, 100)
            finally:
                os.close(fd)
    if (kernel.DEBUGFS / "virtio-ports").is_dir():
        report.attempt("debugfs", kernel.read_tree, kernel.DEBUGFS / "virtio-ports", depth=1)


def _come_and_go(virtio: str, report: Report) -> None:
    """Hold a port while the host unplugs it, and another comes."""
    with report.step("come and go"):
        report.ask("plug")
        fd = os.open(f"/dev/{console.wait_for_port(virtio, 'chamber.extra')}", os.O_RDWR | os.O_NONBLOCK)
        try:
            os.write(fd, bytes(8))
            report.ask("unplug")
            select.select([fd], [], [], _MOMENT)
            os.read(fd, 100)
        finally:
            os.close(fd)


def _new_size(virtio: str, report: Report) -> None:  # noqa: ARG001 - as the others
    """Have the host change the console's size."""
    report.ask("resize")
    time.sleep(_MOMENT)


def _closed_and_opened(virtio: str, report: Report) -> None:
    """Hold a port while the host closes its side and opens it."""
    with report.step("hang up"):
        fd = os.open(f"/dev/{console.wait_for_port(virtio, 'chamber.echo')}", os.O_RDWR | os.O_NONBLOCK)
        try:
            report.ask("hangup")
            os.write(fd, bytes(8))
            console.read_exactly(fd, 8)
        finally:
            os.close(fd)


def _interface(virtio: str) -> str:
    """Name of the interface, brought up if it is down. It is mostly what it was called before."""
    try:
        name = _INTERFACES[virtio]
        up = net.is_up(name)
    except (KeyError, OSError):
        name = _INTERFACES[virtio] = net.interface(virtio)
        up = net.is_up(name)
    if not up:
        net.up(name)
    return name


def _ping(virtio: str, report: Report) -> None:
    """Ping, with the interface brought up before if it is down."""
    with report.step("ping"):
        _interface(virtio)
        net.ping(56, _DICE)


def _datagrams(virtio: str, report: Report) -> None:
    """Exchange a small and a large datagram."""
    with report.step("datagrams"):
        _interface(virtio)
        for size in (1, 4000):
            net.udp_echo(size, _DICE)


def _stream(virtio: str, report: Report) -> None:
    """Exchange a stream."""
    with report.step("stream"):
        _interface(virtio)
        net.tcp_echo(5000, _DICE)


def _up_and_down(virtio: str, report: Report) -> None:
    """Take the interface down and bring it up."""
    with report.step("down and up"):
        name = net.interface(virtio)
        net.down(name)
        net.up(name)


def _settings(virtio: str, report: Report) -> None:
    """Read what ethtool tells."""
    with report.step("settings"):
        ethtool.read_all(net.interface(virtio), report)


def _change(what: Callable[[str, Report], None]) -> _Session:
    """Change something of an interface that is up."""
    def session(virtio: str, report: Report) -> None:
        with report.step("change"):
            what(_interface(virtio), report)
    return session


@functools.cache
def _program() -> int:
    """Load a program for frames, once: that takes longer than to run it."""
    return xdp.load(xdp.PASS)


def _xdp(name: str, report: Report) -> None:
    """Run a program on the frames of a ping."""
    xdp.attach(name, _program())
    report.attempt("ping", net.ping, 56, _DICE)
    xdp.detach(name)


def _forward(name: str, report: Report) -> None:
    """Forward what the peer sends to others."""
    with contextlib.suppress(FileExistsError):  # an interface that is new has no route
        routing.add_route("10.98.0.0", "255.255.255.0", net.PEER, name)
        routing.turn_on(name)
    report.attempt("datagram from elsewhere", routing.send_spoofed, "10.98.0.5", net.PEER, net.ECHO, bytes(1400))
    report.attempt("ping", net.ping, 8, _DICE)


def _read_disk(virtio: str, report: Report) -> None:
    """Read from a disk, small and large."""
    with report.step("read"), Direct(blk.disk_of(virtio), os.O_RDONLY) as direct:
        direct.read(8, 8)
        direct.read(256, 64)


def _write_disk(virtio: str, report: Report) -> None:
    """Write to a disk, and flush."""
    with report.step("write"), Direct(blk.disk_of(virtio), os.O_RDWR) as direct:
        direct.write(1024, bytes(4096))
        direct.flush()


def _disk_attributes(virtio: str, report: Report) -> None:
    """Read what is told of a disk."""
    block = Path("/sys/block") / blk.disk_of(virtio)
    report.attempt("serial number", kernel.read, block / "serial")
    report.attempt("cache type", kernel.read, block / "cache_type")


def _disk_cache(virtio: str, report: Report) -> None:
    """Have a disk write back what it caches."""
    path = Path("/sys/block") / blk.disk_of(virtio) / "cache_type"
    report.attempt("set cache type", kernel.write, path, "write back")


def _disk_partitions(virtio: str, report: Report) -> None:
    """Look for partitions."""
    with report.step("partitions"), Direct(blk.disk_of(virtio), os.O_RDONLY) as direct:
        direct.ioctl(BLKRRPART)


def _connection(virtio: str, report: Report, kind: int, size: int) -> None:  # noqa: ARG001 - as the others
    with report.step("connection"), vsock.connect(kind) as sock:
        vsock.echo(sock, bytes(size))


def _stream_socket(virtio: str, report: Report) -> None:
    """Connect a stream, and echo."""
    _connection(virtio, report, socket.SOCK_STREAM, 200)


def _message_socket(virtio: str, report: Report) -> None:
    """Connect a socket of messages, and echo."""
    _connection(virtio, report, socket.SOCK_SEQPACKET, 200)


def _large_socket(virtio: str, report: Report) -> None:
    """Echo more than a packet holds."""
    _connection(virtio, report, socket.SOCK_STREAM, 20000)


def _called_socket(virtio: str, report: Report) -> None:  # noqa: ARG001 - as the others
    """Be called by the host."""
    with report.step("listen"), LimitedSocket(socket.AF_VSOCK, socket.SOCK_STREAM) as listener:
        vsock.listen_for_calls(listener)
        report.ask("call")
        vsock.answer(listener)


def _open_sockets(virtio: str, report: Report) -> None:  # noqa: ARG001 - as the others
    """Have connections open while others come and go, and leave data unread."""
    with report.step("first"), vsock.connect(socket.SOCK_STREAM) as one:
        one.send(bytes(3000))
        with report.step("second"), vsock.connect(socket.SOCK_SEQPACKET) as two:
            two.send(bytes(100))
            one.shutdown(socket.SHUT_WR)
            two.recv(50)


def _shared(kind: str, options: str) -> dict[str, _Session]:
    """What is done with a shared directory: each time it is mounted and unmounted."""
    def read(top: Path, report: Report) -> None:
        for name in ("hello", "dir/inner"):
            report.attempt(f"read {name}", (top / name).read_bytes)
        report.attempt("list", os.listdir, top)

    def look(top: Path, report: Report) -> None:
        report.attempt("statfs", os.statvfs, top)
        report.attempt("attributes", os.lstat, top / "big")
        report.attempt("link", os.readlink, top / "link")
        report.attempt("extended attributes", os.listxattr, top / "hello")

    def change(top: Path, report: Report) -> None:
        with report.step("make and remove"):
            (top / "new").write_bytes(bytes(5000))
            try:
                os.rename(top / "new", top / "newer")
            finally:
                for name in ("new", "newer"):
                    (top / name).unlink(missing_ok=True)

    def large(top: Path, report: Report) -> None:
        report.attempt("read much", (top / "big").read_bytes)
        report.attempt("list much", os.listdir, top / "many")

    def do(call: Callable[[Path, Report], None]) -> _Session:
        return lambda _virtio, report: tree.mounted(kind, options, report, call)

    return {"read": do(read), "look": do(look), "change": do(change), "large": do(large)}


def _random(virtio: str, report: Report) -> None:  # noqa: ARG001 - as the others
    """Read random bytes."""
    with report.step("read"):
        fd = os.open("/dev/hwrng", os.O_RDONLY | os.O_NONBLOCK)
        try:
            rng.read(fd, 64)
        finally:
            os.close(fd)


def _events_of(action: str) -> _Session:
    """Have the host use the device, and read the events."""
    def session(virtio: str, report: Report) -> None:
        with report.step(action):
            fd = os.open(input.node(virtio), os.O_RDWR | os.O_NONBLOCK)
            try:
                input.act(fd, action, report)
            finally:
                os.close(fd)
    return session


def _play(virtio: str, report: Report) -> None:  # noqa: ARG001 - as the others
    """Play two periods."""
    report.attempt("play", snd.play, bytes(3840))


def _record(virtio: str, report: Report) -> None:  # noqa: ARG001 - as the others
    """Record a period."""
    report.attempt("record", snd.record, 480)


def _volume(virtio: str, report: Report) -> None:  # noqa: ARG001 - as the others
    """Turn a knob, and have a plug moved."""
    report.attempt("volume", snd.volume, _DICE.randrange(100), 50)
    report.ask("unplug")
    report.ask("plug")
    # Linux takes no removal amid an event of a jack; a host that sees that the guest has taken it ends this.
    with contextlib.suppress(TimeoutError):
        time.sleep(0.004)


def _encrypt(virtio: str, report: Report) -> None:  # noqa: ARG001 - as the others
    """Encrypt two blocks."""
    report.attempt("encrypt", crypto.encrypt)


def _key_pair(virtio: str, report: Report) -> None:  # noqa: ARG001 - as the others
    """Decrypt with a key pair."""
    crypto.decrypt_with_key_pair(report)


def _memory(virtio: str, report: Report) -> None:  # noqa: ARG001 - as the others
    """Give the host memory, and take it back."""
    for action in ("inflate", "statistics", "deflate", "hint"):
        report.ask(action)
        time.sleep(0.002)


def _scsi_disk(write: bool) -> _Session:
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


def _nothing(virtio: str, report: Report) -> None:
    """Leave the device alone: for what a probe and a removal show."""


SESSIONS: Final[dict[str, dict[str, _Session]]] = {
    "blk": {"read": _read_disk, "write": _write_disk, "attributes": _disk_attributes, "cache": _disk_cache,
            "partitions": _disk_partitions},
    "console": {"echo": _echo_port, "terminal": _terminal, "ports": _every_port,
                "come-and-go": _come_and_go, "size": _new_size, "closed-and-opened": _closed_and_opened},
    "net": {"ping": _ping, "datagrams": _datagrams, "stream": _stream, "up-and-down": _up_and_down,
            "settings": _settings, "filters": _change(net.change_filters), "address": _change(net.change_address),
            "lengths": _change(net.change_lengths), "queues": _change(net.change_queues),
            "offloads": _change(ethtool.toggle_offloads), "link": _change(net.change_link),
            "xdp": _change(_xdp), "forward": _change(_forward)},
    "9p": _shared("9p", p9.OPTIONS),
    "balloon": {"memory": _memory},
    "crypto": {"encrypt": _encrypt, "key-pair": _key_pair},
    "fs": _shared("virtiofs", ""),
    "input": {action: _events_of(action) for action in ("type", "move", "touch")},
    "rng": {"read": _random},
    "scsi": {"read": _scsi_disk(write=False), "write": _scsi_disk(write=True), "events": _scsi_events},
    "snd": {"play": _play, "record": _record, "volume": _volume},
    "vsock": {"stream-socket": _stream_socket, "message-socket": _message_socket, "large-socket": _large_socket,
              "called": _called_socket, "open-sockets": _open_sockets},
}
"""By type of device, then by name."""
MOUNTED: Final = frozenset({"9p", "fs"})
"""Types whose uses mount something: whatever comes between, it is unmounted, or the driver can't be removed."""


def uses_of(kind: str, stimuli: dict[str, _Session]) -> dict[str, _Session]:
    """Return what a guest can do with a type of device: pieces, for want of those what assessments do; and nothing."""
    return {**(SESSIONS.get(kind) or stimuli), "nothing": _nothing}
