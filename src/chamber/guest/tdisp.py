"""The guest's end of TDISP and of IDE key management: what a TSM asks of a device, and what it makes of the answers.

The device is not trusted before the guest has seen what it is, and its host never: an answer is taken only if it is the
one to the question, about the interface that was asked for, and says what the specification lets it. Everything else
raises `TdispViolation`, and the caller gives the device up. What is returned is the device's word still: it is for the
verifier to say whether this device may say so.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Protocol, TypeVar

from chamber.wire import ide_km, tdisp
from chamber.wire.errors import WireError
from chamber.wire.ide_km import (
    INITIAL_IFV,
    KEY_SIZE,
    Acknowledge,
    KeyProgram,
    KeySet,
    KeySwitch,
    Object,
    ProgramStatus,
    SubStream,
)
from chamber.wire.tdi_report import MAX_REPORT, InterfaceReport
from chamber.wire.tdisp import (
    VERSION,
    Body,
    Capabilities,
    Empty,
    FunctionId,
    GetCapabilities,
    GetReport,
    InterfaceState,
    LockFlag,
    LockInterface,
    LockNonce,
    MessageType,
    ReportPortion,
    StartInterface,
    State,
    TdispError,
    Versions,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ("REQUIRED", "StreamEnd", "TdispRequester", "TdispViolation", "key_stream")

REQUIRED: Final = frozenset(range(0x81, 0x88))
"""Requests that every device answers (PCIe 6.1, 11.3.3)."""
_LEAST_PORTION: Final = 16
"""A device that gives a report in smaller pieces than this only keeps its guest busy."""

_B = TypeVar("_B", bound=Body)
_K = TypeVar("_K", Acknowledge, KeySwitch)


class StreamEnd(Protocol):
    """The root port's end of an encrypted stream, as far as keys go: `chamber.platform.ide.IdeStream`, or its port."""

    stream_id: int

    def program(self, sub_stream: SubStream, *, transmit: bool, key_set: int, key: bytes, ifv: int) -> None:
        """Take a key, which is not used before `go`."""
        ...

    def go(self, sub_stream: SubStream, *, transmit: bool, key_set: int) -> None:
        """Use it."""
        ...


class TdispViolation(Exception):
    """The device's answer is none that it may give.

    Attributes:
        rule: the broken rule.
        code: of TDISP_ERROR, where the device refused; None otherwise.

    """

    def __init__(self, rule: str, detail: str = "", code: int | None = None) -> None:
        self.rule = rule
        self.code = code
        super().__init__(f"{rule}{f' ({detail})' if detail else ''} [PCIe 6.1, 11.3]")


class TdispRequester:
    """A guest's way to one interface.

    Args:
        exchange: sends a message in the secured session with the device, and returns the answer.
        function: the interface.

    """

    def __init__(self, exchange: Callable[[bytes], bytes], function: FunctionId) -> None:
        self._exchange = exchange
        self._function = function
        self._nonce = bytearray()

    def negotiate(self, wanted: LockFlag) -> Capabilities:
        """Ask for version and capabilities, and check that they are enough.

        Args:
            wanted: flags that the interface will be locked with.

        Raises:
            TdispViolation: the device speaks another version, lacks a request that all have, or a flag that is wanted.

        """
        versions = self._ask(MessageType.GET_TDISP_VERSION, None, Versions).entries
        if not any(version >> 4 == VERSION >> 4 for version in versions):
            raise TdispViolation("the device speaks no TDISP 1", detail=repr(versions[:8]))
        capabilities = self._ask(MessageType.GET_TDISP_CAPABILITIES, GetCapabilities(), Capabilities)
        if not capabilities.requests >= REQUIRED:
            raise TdispViolation("the device lacks requests that every one answers")
        if wanted & ~capabilities.lock_flags:
            # It would ignore the flag, and the guest take for locked what is not.
            raise TdispViolation("the device does not know a flag that the lock is to have")
        return capabilities

    def lock(self, flags: LockFlag, stream_id: int, *, reporting_offset: int = 0) -> None:
        """Lock the interface, and keep the nonce."""
        nonce = self._ask(MessageType.LOCK_INTERFACE_REQUEST,
                          LockInterface(flags, stream_id, reporting_offset), LockNonce).nonce
        if not any(nonce):
            raise TdispViolation("the nonce is none")
        self._nonce = bytearray(nonce)

    def report(self) -> tuple[bytes, InterfaceReport]:
        """Fetch the report, in as many portions as it comes in; return it as it came, and as it reads.

        Raises:
            TdispViolation: portions do not add up, or are no report.

        """
        data = b""
        expected: int | None = None
        while expected is None or len(data) < expected:
            answer = self._ask(MessageType.GET_DEVICE_INTERFACE_REPORT, GetReport(len(data), 0xFFFF - len(data)),
                               ReportPortion)
            size = len(answer.portion)
            if not size or (answer.remainder and size < _LEAST_PORTION):
                raise TdispViolation("a portion of the report has hardly anything", f"{size} bytes")
            data += answer.portion
            total = len(data) + answer.remainder
            if total > MAX_REPORT or expected not in {None, total}:
                # The remainder only says how much is still to come; it must not say something else each time.
                raise TdispViolation("the report's size changes from one portion to the next", f"{expected}, {total}")
            expected = total
        try:
            return data, InterfaceReport.decode(data)
        except WireError as error:
            raise TdispViolation("the report can't be read", error.rule) from error

    def start(self) -> None:
        """Start the interface; the nonce is used up, whatever comes of it."""
        try:
            self._ask(MessageType.START_INTERFACE_REQUEST, StartInterface(bytes(self._nonce)), Empty)
        finally:
            self._nonce[:] = bytes(len(self._nonce))

    def state(self) -> State:
        """Ask for the state."""
        return self._ask(MessageType.GET_DEVICE_INTERFACE_STATE, None, InterfaceState).state

    def stop(self) -> None:
        """Stop the interface: nothing of the guest's is left in it."""
        self._ask(MessageType.STOP_INTERFACE_REQUEST, None, Empty)
        self._nonce[:] = bytes(len(self._nonce))

    def _ask(self, kind: MessageType, body: Body | None, answer: type[_B]) -> _B:
        data = self._exchange(tdisp.encode(kind, self._function, body))
        try:
            message = tdisp.decode(data)
        except WireError as error:
            raise TdispViolation("the answer can't be read", error.rule) from error
        if message.function != self._function:
            # One device, many interfaces: the report of another one would be a good report.
            raise TdispViolation("the answer is about another interface", f"{int(message.function):#x}")
        if isinstance(message.body, TdispError):
            raise TdispViolation(f"{kind.name} was refused", f"code {message.body.code:#x}", message.body.code)
        if message.type != kind & 0x7F or not isinstance(message.body, answer):
            raise TdispViolation("the answer is to another request", message.type.name)
        return message.body


def key_stream(exchange: Callable[[bytes], bytes], stream_id: int, own: StreamEnd, random: Callable[[int], bytes], *,
               key_set: int = 0) -> None:
    """Set all keys of a stream at both ends, and begin to use them (PCIe 6.1, 6.33.3).

    Args:
        exchange: sends a key message in the secured session with the device, and returns the answer.
        stream_id: the stream.
        own: the root port's end of it.
        random: makes keys.
        key_set: which of the two sets.

    Raises:
        TdispViolation: the device did not take a key, or acknowledged another one.

    """
    for which in _lanes(stream_id, key_set):
        key = random(KEY_SIZE)
        done = _key_answer(exchange(KeyProgram(which, key).encode()), Acknowledge)
        if done.which != which or done.status != ProgramStatus.SUCCESS:
            raise TdispViolation("the device did not take a key", f"status {done.status}")
        own.program(SubStream(which.sub_stream), transmit=not which.transmit, key_set=key_set, key=key,
                    ifv=INITIAL_IFV)
    # Whoever is to receive with a key is ready before the other end sends with it.
    for which in _lanes(stream_id, key_set):
        number = SubStream(which.sub_stream)
        if which.transmit:
            own.go(number, transmit=False, key_set=key_set)
        if _key_answer(exchange(KeySwitch(Object.K_SET_GO, which).encode()), KeySwitch) != KeySwitch(
                Object.K_GOSTOP_ACK, which):
            raise TdispViolation("the device acknowledged another key")
        if not which.transmit:
            own.go(number, transmit=True, key_set=key_set)


def _lanes(stream_id: int, key_set: int) -> Iterator[KeySet]:
    return (KeySet(stream_id, number, key_set, transmit) for transmit in (False, True) for number in SubStream)


def _key_answer(data: bytes, kind: type[_K]) -> _K:
    try:
        answer = ide_km.decode(data)
    except WireError as error:
        raise TdispViolation("the answer about a key can't be read", error.rule) from error
    if not isinstance(answer, kind):
        raise TdispViolation("the answer is to another key message")
    return answer
