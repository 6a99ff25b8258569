"""What a guest does with a network interface in a moment."""

from __future__ import annotations

import contextlib
import functools
import random
from typing import TYPE_CHECKING, Final

from chamber.lab.agent import ethtool, net, routing, xdp

if TYPE_CHECKING:
    from collections.abc import Callable

    from chamber.lab.agent.report import Report
    from chamber.lab.agent.sessions import Session

__all__ = ("SESSIONS",)

_DICE: Final = random.Random(1)  # noqa: S311 - test data
_INTERFACES: Final[dict[str, str]] = {}
"""By virtio device."""


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


def _change(what: Callable[[str, Report], None]) -> Session:
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


SESSIONS: Final[dict[str, Session]] = {
    "ping": _ping, "datagrams": _datagrams, "stream": _stream, "up-and-down": _up_and_down, "settings": _settings,
    "filters": _change(net.change_filters), "address": _change(net.change_address),
    "lengths": _change(net.change_lengths), "queues": _change(net.change_queues),
    "offloads": _change(ethtool.toggle_offloads), "link": _change(net.change_link), "xdp": _change(_xdp),
    "forward": _change(_forward)}
