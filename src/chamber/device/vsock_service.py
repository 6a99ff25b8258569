"""Who answers the guest's connections on the host: Python objects here, programs in `chamber.device.vsock_socket`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from chamber.device.vsock_connection import HostEnd

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from chamber.device.vsock_connection import Connection
    from chamber.wire.vsock import VsockType

    Dial = Callable[[int, VsockType, HostEnd], Connection | None]

__all__ = ("CALL_PORT", "ECHO_PORT", "GREETING", "Caller", "EchoEnd", "Host", "Services")

ECHO_PORT: Final = 7
"""Port of the host's that sends back what it is sent, stream or message."""
CALL_PORT: Final = 5000
"""Port of the guest's that the host action ``call`` connects to."""
GREETING: Final = bytes((i * 7 + (i >> 8)) & 0xFF for i in range(3000))
"""What the caller says first; after that it echoes."""


class Host:
    """Those on the host whom the guest can reach; this one is nobody."""

    def attach(self, dial: Dial) -> None:
        """Called once, with what connects the host to a port of the guest; it returns None if there is no room."""

    def connect(self, port: int, kind: VsockType) -> HostEnd | None:  # noqa: ARG002 - for overriding
        """Answer a connection that the guest asks for; None to refuse it."""
        return None

    def pollable(self) -> dict[int, Callable[[], None]]:
        """File descriptors to wait for, and what to call when one is readable."""
        return {}

    def close(self) -> None:
        """Give back what the host holds."""


class Services(Host):
    """Python objects on ports.

    Args:
        ports: makes the host's end of each connection to a port.

    """

    def __init__(self, ports: Mapping[int, Callable[[], HostEnd]]) -> None:
        self._ports = dict(ports)

    def connect(self, port: int, kind: VsockType) -> HostEnd | None:  # noqa: ARG002 - of either kind
        """Make an end, if the port has one."""
        make = self._ports.get(port)
        return None if make is None else make()


class EchoEnd(HostEnd):
    """Sends back what comes, and gives credit for it once it was sent, so that no more waits than that."""

    _greeted = 0

    def received(self, data: bytes) -> None:
        """Echo."""
        self.connection.send(data)

    def sent(self, size: int) -> None:
        """Have the guest send more."""
        own = min(size, self._greeted)
        self._greeted -= own
        self.connection.consume(size - own)

    def finished(self) -> None:
        """Finish as well."""
        self.connection.finish()


class Caller(EchoEnd):
    """Sends `GREETING` first, in one piece, and echoes from then on."""

    def opened(self) -> None:
        """Greet."""
        self._greeted = len(GREETING)
        self.connection.send(GREETING)
