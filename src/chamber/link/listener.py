"""Where front ends connect: a Unix socket, served one front end at a time."""

from __future__ import annotations

import contextlib
import socket
import time
from typing import TYPE_CHECKING, Final

from chamber.link.eventloop import EventLoop
from chamber.link.vfio_user import VfioSession
from chamber.link.vhost_user import INBAND, PROTOCOL_FEATURES, Session

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from chamber.link.vfio_user import ServableFunction
    from chamber.link.vhost_user import Servable

__all__ = ("Backend", "VfioServer", "serve", "serve_function")

_SPIN_SECONDS: Final = 0.0002
_MOST_RETIRED: Final = 8
"""Sessions that were replaced and whose front ends stay connected: one that never goes is not to add up."""


class VfioServer:
    """Listens on a Unix socket and plays a function for one vfio-user client at a time.

    Args:
        path: where to listen. A socket that nobody listens on any more is replaced.
        function: what is served.
        loop: where it waits.
        trace: gets one line per message, if given.
        observer: sees all that the function reads from guest memory, if given.

    Attributes:
        session: the client's, if there is one.

    Raises:
        OSError: the path is in use or can't be made.

    """

    def __init__(self, path: Path, function: ServableFunction, loop: EventLoop, *,
                 trace: Callable[[str], None] | None = None,
                 observer: Callable[[bytes], None] | None = None) -> None:
        self.path = path
        self.session: VfioSession | None = None
        self._function = function
        self._loop = loop
        self._trace = trace
        self._observer = observer
        self._listener = _listen(path)
        loop.add_reader(self._listener.fileno(), self._accept)

    def _accept(self) -> None:
        try:
            sock, _ = self._listener.accept()
        except OSError:  # the client went away again
            return
        if self.session is not None:
            self.session.pump()  # it may have ended already, its end unread
        if self.session is not None:
            sock.close()
            return
        self.session = VfioSession(self._function, sock, self._loop, self._ended, self._trace, self._observer)

    def _ended(self, _session: VfioSession) -> None:
        self.session = None

    def close(self) -> None:
        """Stop listening, end the session, remove the socket."""
        if self.session is not None:
            self.session.close()
        self._loop.remove_reader(self._listener.fileno())
        self._listener.close()
        self.path.unlink(missing_ok=True)


class Backend:
    """Listens on a Unix socket and serves one front end at a time.

    Args:
        path: where to listen. A socket that nobody listens on any more is replaced.
        provide: gives the device for a new connection, or None to turn it away.
        loop: where it waits.
        trace: gets one line per message, if given.
        observer: sees all that the device reads from buffers, if given.
        replace: whether a new front end is served instead of the one before it; otherwise it is turned away.
        inband: offer notifications as messages.

    Raises:
        OSError: the path is in use or can't be made.

    """

    def __init__(self, path: Path, provide: Callable[[], Servable | None], loop: EventLoop, *,
                 trace: Callable[[str], None] | None = None, observer: Callable[[bytes], None] | None = None,
                 replace: bool = False, inband: bool = False) -> None:
        self.path = path
        self.session: Session | None = None
        self.sessions = 0
        self._retired: list[Session] = []
        self._provide = provide
        self._loop = loop
        self._trace = trace
        self._observer = observer
        self._replace = replace
        self._protocol_features = PROTOCOL_FEATURES | (INBAND if inband else 0)
        self._listener = _listen(path)
        loop.add_reader(self._listener.fileno(), self._accept)

    def _accept(self) -> None:
        try:
            sock, _ = self._listener.accept()
        except OSError:  # the front end went away again
            return
        if self.session is not None:
            self.session.pump()  # it may have ended already, its end unread
        if self.session is not None:
            if not self._replace:
                sock.close()
                return
            self._retired.append(self.session)
            self.session.retire()
            if len(self._retired) > _MOST_RETIRED:
                self._retired[0].close()
        device = self._provide()
        if device is None:
            sock.close()
            return
        self.sessions += 1
        self.session = Session(device, sock, self._loop, self._ended, self._trace, self._observer,
                               self._protocol_features)

    def _ended(self, session: Session) -> None:
        if self.session is session:
            self.session = None
        if session in self._retired:
            self._retired.remove(session)

    def close(self) -> None:
        """Stop listening, end the session, remove the socket."""
        for session in [*self._retired, self.session]:
            if session is not None:
                session.close()
        self._loop.remove_reader(self._listener.fileno())
        self._listener.close()
        self.path.unlink(missing_ok=True)


def _listen(path: Path) -> socket.socket:
    if path.is_socket():
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            try:
                probe.connect(str(path))
            except ConnectionRefusedError:
                path.unlink()  # left over: its owner is gone
            else:
                raise FileExistsError(f"{path} is in use")
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        listener.bind(str(path))
        listener.listen(8)
        listener.setblocking(False)
    except OSError:
        listener.close()
        raise
    return listener


def serve(device: Servable, path: Path, *, stop: Callable[[], bool] = lambda: False,
          trace: Callable[[str], None] | None = None, ready: Callable[[], None] = lambda: None,
          inband: bool = False) -> None:
    """Serve a device on a socket until `stop()` says so, asked twice a second, or KeyboardInterrupt comes.

    `ready` is called once the socket is there; `inband` offers notifications as messages.

    The device is closed at the end, and the socket removed.
    """
    with (EventLoop(spin=_SPIN_SECONDS) as loop, contextlib.closing(device),
          contextlib.closing(Backend(path, lambda: device, loop, trace=trace, inband=inband))):
        _turn(loop, stop, ready)


def serve_function(function: ServableFunction, path: Path, *, stop: Callable[[], bool] = lambda: False,
                   trace: Callable[[str], None] | None = None, ready: Callable[[], None] = lambda: None) -> None:
    """Serve a PCI function over vfio-user in the same way."""
    with (EventLoop(spin=_SPIN_SECONDS) as loop, contextlib.closing(function),
          contextlib.closing(VfioServer(path, function, loop, trace=trace))):
        _turn(loop, stop, ready)


def _turn(loop: EventLoop, stop: Callable[[], bool], ready: Callable[[], None]) -> None:
    ready()
    while not stop():
        loop.run_until(lambda: False, time.monotonic() + 0.5)
