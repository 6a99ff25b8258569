"""SPDM over TCP in the framing of DMTF's emulators: a device that is served, and the way to one.

Whoever is at the other end is not known. A frame is bounded, and so is the time to wait for the rest of one.
"""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING, Final, Self

from chamber.wire.errors import WireError
from chamber.wire.spdm_emulator import (
    CLIENT_HELLO,
    HEAD_SIZE,
    SERVER_HELLO,
    Frame,
    FrameCommand,
    Transport,
)

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ("SpdmClient", "SpdmServer", "SpdmSilence")

_SECONDS: Final = 30.0


class SpdmSilence(Exception):
    """The other end is gone, says nothing, or does not speak the framing."""


class _Stream:
    """A connection that carries frames."""

    def __init__(self, sock: socket.socket, seconds: float | None) -> None:
        self._sock = sock
        self._seconds = seconds

    def _read(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            piece = self._sock.recv(size - len(data))
            if not piece:
                raise SpdmSilence("the other end is gone")
            data += piece
            self._sock.settimeout(_SECONDS)  # whoever begins a frame ends it
        return data

    def receive(self) -> Frame:
        """Wait for a frame."""
        self._sock.settimeout(self._seconds)
        try:
            command, transport, size = Frame.head(self._read(HEAD_SIZE))
            return Frame(command, transport, self._read(size))
        except TimeoutError:
            raise SpdmSilence("nothing came in time") from None
        except (OSError, WireError) as error:
            raise SpdmSilence(str(error)) from None

    def send(self, frame: Frame) -> None:
        """Send one."""
        try:
            self._sock.sendall(frame.encode())
        except OSError as error:
            raise SpdmSilence(str(error)) from None

    def close(self) -> None:
        """Close it."""
        self._sock.close()


class SpdmServer:
    """Serves one device, to one connection after another.

    Args:
        address: host and port; port 0 for any that is free.
        transport: what carries SPDM.
        answer: answers a message of the transport; None for no answer.
        connected: called when somebody has connected, before the first frame: the device is as after a reset.

    Attributes:
        port: where it listens.

    """

    def __init__(self, address: tuple[str, int], transport: Transport, answer: Callable[[bytes], bytes | None],
                 connected: Callable[[], None] = lambda: None) -> None:
        self._transport = transport
        self._answer = answer
        self._connected = connected
        self._listener = socket.create_server(address)
        self.port: int = self._listener.getsockname()[1]

    def serve_one(self) -> None:
        """Wait for a connection and serve it until its end."""
        sock, _ = self._listener.accept()
        stream = _Stream(sock, None)
        self._connected()
        try:
            while True:
                frame = stream.receive()
                stream.send(self._reply(frame))
                if frame.command == FrameCommand.SHUTDOWN:
                    return
        except SpdmSilence:
            return
        finally:
            stream.close()

    def _reply(self, frame: Frame) -> Frame:
        number = self._transport.number
        match frame.command:
            case FrameCommand.TEST:
                return Frame(FrameCommand.TEST, number, SERVER_HELLO)
            case FrameCommand.CONTINUE | FrameCommand.SHUTDOWN:
                return Frame(frame.command, number)
            case FrameCommand.NORMAL if frame.transport == number:
                # No answer at all has no frame of its own: an empty one says so.
                return Frame(FrameCommand.NORMAL, number, self._answer(frame.payload) or b"")
            case _:
                return Frame(FrameCommand.UNKNOWN, number)

    def close(self) -> None:
        """Listen no more."""
        self._listener.close()


class SpdmClient:
    """The way to a device that is served like this.

    Args:
        address: host and port.
        transport: what carries SPDM.

    Raises:
        SpdmSilence: nobody is there, or nobody who speaks the framing.

    """

    def __init__(self, address: tuple[str, int], transport: Transport, *, seconds: float = _SECONDS) -> None:
        self._transport = transport
        try:
            self._stream = _Stream(socket.create_connection(address, seconds), seconds)
        except OSError as error:
            raise SpdmSilence(error.strerror or str(error)) from None
        try:
            self._ask(FrameCommand.TEST, CLIENT_HELLO)
        except SpdmSilence:
            self._stream.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _ask(self, command: FrameCommand, payload: bytes) -> bytes:
        self._stream.send(Frame(command, self._transport.number, payload))
        frame = self._stream.receive()
        if frame.command != command:
            raise SpdmSilence(f"the other end answers with command {frame.command:#x}")
        return frame.payload

    def exchange(self, payload: bytes, secured: bool) -> bytes:
        """Send a payload, secured or not; return the answer's, empty for none.

        Raises:
            SpdmSilence: the connection is lost.

        """
        answer = self._ask(FrameCommand.NORMAL, self._transport.wrap(payload, secured=secured))
        try:
            inner, is_secured = self._transport.unwrap(answer)
        except WireError:
            return b""
        return inner if is_secured == secured else b""

    def close(self) -> None:
        """Say goodbye, and close the connection."""
        try:
            self._ask(FrameCommand.SHUTDOWN, b"")
        except SpdmSilence:
            pass
        finally:
            self._stream.close()
