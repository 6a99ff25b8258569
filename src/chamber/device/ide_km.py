"""IDE key management, the device's end (PCI Express Base Specification 6.1, 6.33.3): takes keys for the port's streams.

A stream belongs to the session that brought its first key, until all of them are stopped, or the session ends and the
stream with it. What another session asks of it is refused: a host has sessions of its own with the device, and could
else set the next keys of a stream over which a guest's interface runs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from chamber.platform.ide import IdeStream, StreamState
from chamber.wire import ide_km
from chamber.wire.errors import WireError
from chamber.wire.ide_km import (
    Acknowledge,
    KeyProgram,
    KeySet,
    KeySwitch,
    Object,
    ProgramStatus,
    Query,
    QueryResponse,
    SubStream,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from chamber.wire.tdisp import FunctionId

__all__ = ("IdePort",)


class IdePort:
    """A device's port with its streams; implements `chamber.device.tdisp.Streams`.

    Args:
        streams: the streams of its IDE capability.
        default: the stream that configuration names for a function, None where there is none, or more than one.
        routing_id: bus, device and function, as QUERY_RESP tells them.
        registers: reads those of the IDE extended capability, as QUERY_RESP tells them.
        log: gets a line for each message, without keys.

    """

    def __init__(self, streams: Iterable[IdeStream], default: Callable[[FunctionId], int | None], *,
                 routing_id: int = 0, registers: Callable[[], tuple[int, ...]] = tuple,
                 log: Callable[[str], None] = lambda _line: None) -> None:
        self._streams = tuple(streams)
        self._default = default
        self._routing_id = routing_id
        self._registers = registers
        self._log = log
        self._owners: dict[IdeStream, int] = {}

    def default_stream(self, function: FunctionId) -> int | None:
        """Return the stream that a function is to use."""
        return self._default(function)

    def keyed_over(self, stream_id: int) -> int | None:
        """Return the session over which all keys of a secure stream came."""
        stream = self._find(stream_id)
        return self._owners.get(stream) if stream is not None and stream.state is StreamState.SECURE else None

    def _find(self, stream_id: int) -> IdeStream | None:
        found = next((stream for stream in self._streams if stream.stream_id == stream_id), None)
        if found is not None and not found.has_keys:
            self._owners.pop(found, None)  # its host had it switched off
        return found

    def session_ended(self, session: int) -> None:
        """Take notice that a session is over."""
        for stream in [stream for stream, owner in self._owners.items() if owner == session]:
            del self._owners[stream]
            stream.fail("the session that set its keys has ended")
            stream.close()

    def respond(self, session: int | None, data: bytes) -> bytes | None:
        """Answer a message; None where there is none: outside of a session, and to what can't be read."""
        if session is None:
            self._log("a key message outside of a secured session: dropped")
            return None
        try:
            message = ide_km.decode(data)
        except WireError as error:
            self._log(f"dropped: {error.rule}")
            # There is an answer for a key of a wrong length, and for nothing else that is not as it should be.
            if data[:1] == bytes((Object.KEY_PROG,)) and len(data) >= 7:
                return Acknowledge(KeySet.of(data[3], data[5], data[6]), ProgramStatus.INCORRECT_LENGTH).encode()
            return None
        if isinstance(message, Query):
            return None if message.port_index else QueryResponse(
                0, self._routing_id >> 8, self._routing_id & 0xFF, 0, 0, self._registers()).encode()
        if isinstance(message, KeyProgram):
            status = self._program(session, message)
            self._log(f"a key for stream {message.which.stream_id}: {status.name}")
            return Acknowledge(message.which, status).encode()
        if isinstance(message, KeySwitch) and message.object is not Object.K_GOSTOP_ACK:
            return self._switch(session, message)
        self._log("dropped: a response where a request was due")
        return None

    def _program(self, session: int, message: KeyProgram) -> ProgramStatus:
        which = message.which
        stream = self._find(which.stream_id)
        if which.port_index:
            return ProgramStatus.UNSUPPORTED_PORT_INDEX
        if stream is None or which.sub_stream not in tuple(SubStream):
            return ProgramStatus.UNSUPPORTED_VALUE
        if self._owners.setdefault(stream, session) != session:
            return ProgramStatus.UNSPECIFIED_FAILURE
        try:
            stream.program(SubStream(which.sub_stream), transmit=which.transmit, key_set=which.key_set,
                           key=message.key, ifv=message.ifv)
        except ValueError:
            return ProgramStatus.UNSPECIFIED_FAILURE
        return ProgramStatus.SUCCESS

    def _switch(self, session: int, message: KeySwitch) -> bytes | None:
        which = message.which
        stream = self._find(which.stream_id)
        if (stream is None or which.port_index or which.sub_stream not in tuple(SubStream)
                or self._owners.get(stream) != session):
            self._log("dropped: no such stream of this session")
            return None
        number = SubStream(which.sub_stream)
        if message.object is Object.K_SET_STOP:
            stream.stop(number, transmit=which.transmit, key_set=which.key_set)
            if stream.is_new:
                del self._owners[stream]
        else:
            try:
                stream.go(number, transmit=which.transmit, key_set=which.key_set)
            except ValueError as error:
                self._log(f"dropped: {error}")
                return None
        return KeySwitch(Object.K_GOSTOP_ACK, which).encode()
