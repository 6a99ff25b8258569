"""``chamber tdisp compare``: two implementations, asked the same, message by message.

What is asked goes beyond what a guest asks: requests out of order, for interfaces that there are not, wrong nonces.
Specifications leave some of it open, and implementations differ (docs/tdisp.md).
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final

from chamber.guest.spdm_requester import SpdmRequester, SpdmViolation
from chamber.guest.tdisp import TdispViolation, key_stream
from chamber.link.spdm_socket import SpdmClient
from chamber.platform.ide import IdeStream
from chamber.wire import tdisp
from chamber.wire.errors import WireError
from chamber.wire.spdm import ErrorCode, SpdmCode, head
from chamber.wire.spdm_messages import PCI_SIG, Protocol
from chamber.wire.tdisp import (
    Capabilities,
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
    TdispError,
    Versions,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from chamber.wire.spdm_emulator import Transport

__all__ = ("ask_everything",)

_UNKNOWN: Final = 0xF5
_STREAM: Final = 0
_ANOTHER: Final = 0x1234


def ask_everything(address: tuple[str, int], transport: Transport, function: FunctionId) -> Iterator[tuple[str, str]]:
    """Yield what was asked, and in words what came back.

    Raises:
        SpdmSilence: the connection is lost.

    """
    with SpdmClient(address, transport) as client:
        requester = SpdmRequester(client.exchange, os.urandom, sequence_size=transport.sequence_size)
        yield from _order(client)
        try:
            suite = requester.connect()
            yield "SPDM", f"1.{suite.version & 15} {suite.hash} {suite.asymmetric} {suite.exchange} {suite.aead}"
            yield "capabilities", f"{int(requester.capabilities.flags):#x}"
            yield from _outside(client, suite.version)
            yield "digests", " ".join(map(str, requester.digests())) or "none"
            yield "certificates", str(len(requester.certificates(0).certificates))
            yield "challenge", _spdm(lambda: f"answered{requester.challenge(0).hex()}")
            yield "measurements", _spdm(lambda: " ".join(
                f"{block.index}:{block.type}" for block in requester.measurements()))
            session, _ = requester.start_session(0)
        except SpdmViolation as violation:
            yield "as far as a session", str(violation)
            return
        yield from _Interface(requester, session, function).probes()
        requester.close()


def _spdm(call: Callable[[], str]) -> str:
    try:
        return call()
    except SpdmViolation as violation:
        return str(violation)


def _error(answer: bytes) -> str:
    if answer[1:2] == bytes((SpdmCode.ERROR,)) and len(answer) > 2:
        return ErrorCode(answer[2]).name if answer[2] in set(ErrorCode) else f"error {answer[2]:#x}"
    return SpdmCode(answer[1]).name if len(answer) > 1 and answer[1] in set(SpdmCode) else "no answer"


def _order(client: SpdmClient) -> Iterator[tuple[str, str]]:
    """Ask before anything is agreed on."""
    for name, request in (
            ("GET_VERSION in version 1.2", head(0x12, SpdmCode.GET_VERSION)),
            ("GET_VERSION", head(0x10, SpdmCode.GET_VERSION)),
            ("GET_DIGESTS before capabilities", head(0x12, SpdmCode.GET_DIGESTS)),
            ("a vendor's message before capabilities", head(0x12, SpdmCode.VENDOR_DEFINED_REQUEST) + bytes(8))):
        yield name, _error(client.exchange(request, False))


def _outside(client: SpdmClient, version: int) -> Iterator[tuple[str, str]]:
    """Ask outside of a session what is for one, and what there is not."""
    for name, request in (
            ("HEARTBEAT outside of a session", head(version, SpdmCode.HEARTBEAT)),
            ("END_SESSION outside of a session", head(version, SpdmCode.END_SESSION)),
            ("GET_CAPABILITIES again", head(version, SpdmCode.GET_CAPABILITIES) + bytes(16)),
            ("GET_CERTIFICATE of slot 7", head(version, SpdmCode.GET_CERTIFICATE, 7) + b"\0\0\x10\0"),
            ("another version", head(version ^ 1, SpdmCode.GET_DIGESTS)),
            ("a code that there is not", bytes((version, _UNKNOWN, 0, 0))),
            ("TDISP outside of a session", head(version, SpdmCode.VENDOR_DEFINED_REQUEST)
             + b"\x03\0\x02\x01\0\x11\0" + bytes((Protocol.TDISP,)) + bytes((0x10, 0x81)) + bytes(14))):
        yield name, _error(client.exchange(request, False))


class _Interface:
    """Asks an interface in a session."""

    def __init__(self, requester: SpdmRequester, session: int, function: FunctionId) -> None:
        self._requester = requester
        self._session = session
        self._function = function
        self._nonce = bytes(32)

    def _say(self, protocol: Protocol, data: bytes) -> bytes:
        return self._requester.say(self._session, PCI_SIG, bytes((protocol,)) + data)[1:]

    def _ask(self, kind: MessageType, body: tdisp.Body | None = None, function: FunctionId | None = None) -> str:
        try:
            data = self._say(Protocol.TDISP, tdisp.encode(kind, function or self._function, body))
            message = tdisp.decode(data)
        except (SpdmViolation, WireError) as error:
            return str(error)
        match message.body:
            case TdispError(code=code, data=more):
                return f"error {int(code):#x}" + (f", {more:#x}" if more else "")
            case Versions(entries=entries):
                return " ".join(f"{entry:#x}" for entry in entries)
            case Capabilities() as offered:
                requests = sum(1 << (number - 0x80) for number in offered.requests)
                return (f"requests {requests:#x}, flags {int(offered.lock_flags):#x}, addresses of "
                        f"{offered.dev_addr_width} bits")
            case InterfaceState(state=state):
                return state.name
            case LockNonce(nonce=nonce):
                self._nonce = nonce
                return "locked"
            case ReportPortion(portion=portion, remainder=remainder):
                return f"{len(portion)} bytes, {remainder} more"
            case _:
                return message.type.name

    def _keys(self) -> str:
        try:
            key_stream(lambda data: self._say(Protocol.IDE_KM, data), _STREAM, IdeStream(_STREAM), os.urandom)
        except (SpdmViolation, TdispViolation) as error:
            return str(error)
        return "set"

    def probes(self) -> Iterator[tuple[str, str]]:
        """Yield what was asked, and what came back."""
        lock = LockInterface(LockFlag.NO_FW_UPDATE | LockFlag.LOCK_MSIX, _STREAM, 0)
        kinds = MessageType
        yield "versions of TDISP", self._ask(kinds.GET_TDISP_VERSION)
        yield "its capabilities", self._ask(kinds.GET_TDISP_CAPABILITIES, GetCapabilities())
        yield "state of another interface", self._ask(kinds.GET_DEVICE_INTERFACE_STATE, None, FunctionId(_ANOTHER))
        yield "state", self._ask(kinds.GET_DEVICE_INTERFACE_STATE)
        yield "report while unlocked", self._ask(kinds.GET_DEVICE_INTERFACE_REPORT, GetReport())
        yield "start while unlocked", self._ask(kinds.START_INTERFACE_REQUEST, StartInterface(bytes(32)))
        yield "stop while unlocked", self._ask(kinds.STOP_INTERFACE_REQUEST)
        yield "lock without keys", self._ask(kinds.LOCK_INTERFACE_REQUEST, lock)
        self._ask(kinds.STOP_INTERFACE_REQUEST)
        yield "keys", self._keys()
        yield "lock with another stream", self._ask(
            kinds.LOCK_INTERFACE_REQUEST, LockInterface(lock.flags, _STREAM + 1, 0))
        self._ask(kinds.STOP_INTERFACE_REQUEST)
        yield "lock with an offset of no pages", self._ask(
            kinds.LOCK_INTERFACE_REQUEST, LockInterface(lock.flags, _STREAM, 1))
        self._ask(kinds.STOP_INTERFACE_REQUEST)
        yield "lock", self._ask(kinds.LOCK_INTERFACE_REQUEST, lock)
        yield "lock again", self._ask(kinds.LOCK_INTERFACE_REQUEST, lock)
        yield "report", self._ask(kinds.GET_DEVICE_INTERFACE_REPORT, GetReport())
        yield "report from beyond its end", self._ask(kinds.GET_DEVICE_INTERFACE_REPORT, GetReport(0xFFF0, 16))
        yield "report of no bytes", self._ask(kinds.GET_DEVICE_INTERFACE_REPORT, GetReport(0, 0))
        yield "start with a wrong nonce", self._ask(kinds.START_INTERFACE_REQUEST, StartInterface(b"\xff" * 32))
        nonce = self._nonce
        yield "start", self._ask(kinds.START_INTERFACE_REQUEST, StartInterface(nonce))
        yield "start again", self._ask(kinds.START_INTERFACE_REQUEST, StartInterface(nonce))
        yield "report while it runs", self._ask(kinds.GET_DEVICE_INTERFACE_REPORT, GetReport())
        yield "lock while it runs", self._ask(kinds.LOCK_INTERFACE_REQUEST, lock)
        yield "stop", self._ask(kinds.STOP_INTERFACE_REQUEST)
        yield "state at the end", self._ask(kinds.GET_DEVICE_INTERFACE_STATE)
