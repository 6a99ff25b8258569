"""A TSM: does what Linux's TSM core asks for (drivers/pci/tsm.c of 7.3), from the first question to RUN and back.

A host asks it to connect to a device and to bind an interface; a guest, through its host, to lock, to show the report,
to start and to stop. Whoever asks is not trusted with more than that: keys and sessions stay here, a guest's request
does no more than its scope says, and a device that fails one check has to begin again.
"""

from __future__ import annotations

import errno
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol

from chamber.guest.spdm_requester import SpdmRequester
from chamber.guest.tdisp import StreamEnd
from chamber.guest.verifier import FLAGS, NotTrusted, Verifier
from chamber.wire.doe import DoeType
from chamber.wire.tdisp import FunctionId, LockFlag
from chamber.wire.tsm import NO_STREAM, GuestRequest, Scope, TsmAnswer, TsmOperation, TsmRequest

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from datetime import datetime

    from chamber.guest.trust_policy import TrustPolicy

__all__ = ("Port", "PortRefused", "Tsm")

_SCOPES: Final = {GuestRequest.REPORT: Scope.INFO}
_NOT_TRUSTED: Final = -errno.EACCES
_NOT_NOW: Final = -errno.ENXIO
_INVALID: Final = -errno.EINVAL
_NO_PORT: Final = -errno.EIO
_TOO_LONG: Final = -errno.EMSGSIZE


class PortRefused(Exception):
    """The root port does not do as it is told."""


class Port(StreamEnd, Protocol):
    """A root port, as its TSM sees it."""

    def accept(self, address: int, length: int) -> None:
        """Have memory requests to a range carry the T bit."""
        ...

    def release(self) -> None:
        """Have none carry it."""
        ...


@dataclass(slots=True)
class _Connected:
    """A device with a session.

    Attributes:
        verifier: takes it.
        port: above it, None without an encrypted stream.
        bound: whether its interface is somebody's.
        locked: whether that one has it locked.

    """

    verifier: Verifier
    port: Port | None
    bound: bool = False
    locked: bool = False


class Tsm:
    """The devices of one platform.

    Args:
        policy: which are trusted.
        transfer: sends a data object to the device that a request is about, given the request's number, and returns
            what came back, empty for nothing.
        port: returns the root port of an id, its stream numbered as given.
        mapped: returns where a function's base addresses are, by their numbers.
        now: for certificates' validity.
        random: makes keys.
        log: gets a line for each operation, without anything that is secret.

    """

    def __init__(self, policy: TrustPolicy, *, transfer: Callable[[int, DoeType, bytes], bytes],
                 port: Callable[[int, int], Port], mapped: Callable[[int], Mapping[int, int]],
                 now: Callable[[], datetime], random: Callable[[int], bytes],
                 log: Callable[[str], None] = lambda _line: None) -> None:
        self._policy = policy
        self._transfer = transfer
        self._port = port
        self._mapped = mapped
        self._now = now
        self._random = random
        self._log = log
        self._number = 0
        self._devices: dict[int, _Connected] = {}

    def handle(self, request: TsmRequest) -> TsmAnswer:
        """Do an operation. What the device does wrong is in the answer, and in the log."""
        self._number = request.number
        what = request.operation.name.lower().replace("_", " ")
        if request.operation is TsmOperation.GUEST_REQUEST and request.data:
            what = f"guest's request {request.data[0]}"
        try:
            connects = request.operation is TsmOperation.CONNECT
            answer = self._connect(request) if connects else self._known(request)
        except NotTrusted as refused:
            answer = TsmAnswer(request.number, _NOT_TRUSTED)
            self._log(f"{what}: not trusted by policy {self._policy.name}: {refused}")
        except PortRefused as refused:
            answer = TsmAnswer(request.number, _NO_PORT)
            self._log(f"{what}: {refused}")
        else:
            self._log(f"{what}: {f'refused ({errno.errorcode[-answer.status]})' if answer.status else 'done'}")
        return answer

    def close(self) -> None:
        """Forget all sessions. Nobody carries a message to a device any more."""
        for device in self._devices.values():
            if device.port is not None:
                device.port.release()
        self._devices.clear()

    def _connect(self, request: TsmRequest) -> TsmAnswer:
        known = self._devices.pop(request.function, None)
        if known is not None:  # whoever asked before was killed while it waited for the answer
            self._release(known)
            known.verifier.give_up()
        port = None if request.stream == NO_STREAM else self._port(request.port, request.stream)

        def exchange(payload: bytes, secured: bool) -> bytes:
            return self._transfer(self._number, DoeType.SECURED_SPDM if secured else DoeType.SPDM, payload)

        # Linux's drivers switch MSI-X on after the lock: their table can't be locked.
        verifier = Verifier(SpdmRequester(exchange, self._random), FunctionId(request.function & 0xFFFF), self._policy,
                            now=self._now(), random=self._random, stream=port, mapped=self._mapped(request.function),
                            flags=FLAGS & ~LockFlag.LOCK_MSIX)
        try:
            verifier.connect()
        except PortRefused:
            verifier.give_up()
            raise
        self._devices[request.function] = _Connected(verifier, port)
        return TsmAnswer(request.number)

    def _known(self, request: TsmRequest) -> TsmAnswer:
        device = self._devices.get(request.function)
        if device is None:
            return TsmAnswer(request.number, _NOT_NOW)
        match request.operation:
            case TsmOperation.BIND:
                self._stop(device)  # as above
                # A device with more than one interface would have them under one session.
                device.bound = request.interface == request.function & 0xFFFF
                return TsmAnswer(request.number, 0 if device.bound else _INVALID)
            case TsmOperation.UNBIND:
                self._stop(device)
                device.bound = False
            case TsmOperation.GUEST_REQUEST:
                return self._ask(device, request)
            case _:
                self._release(device)
                device.verifier.give_up()
                del self._devices[request.function]
        return TsmAnswer(request.number)

    def _ask(self, device: _Connected, request: TsmRequest) -> TsmAnswer:
        try:
            (byte,) = request.data
            asked = GuestRequest(byte)
        except ValueError:
            return TsmAnswer(request.number, _INVALID)
        if request.scope != _SCOPES.get(asked, Scope.STATE_CHANGE):
            return TsmAnswer(request.number, _INVALID)
        verifier = device.verifier
        if not device.bound or device.locked == (asked is GuestRequest.LOCK):
            return TsmAnswer(request.number, _NOT_NOW)
        match asked:
            case GuestRequest.LOCK:
                verifier.lock()
                device.locked = True
            case GuestRequest.REPORT:
                report = b"" if verifier.seen.report is None else verifier.seen.report[0]
                return TsmAnswer(request.number, data=report) if len(report) <= request.room else TsmAnswer(
                    request.number, _TOO_LONG)
            case GuestRequest.START:
                self._start(device)
            case GuestRequest.STOP:
                self._stop(device)
        return TsmAnswer(request.number)

    def _start(self, device: _Connected) -> None:
        try:
            device.verifier.start()
        except NotTrusted:
            device.locked = False
            raise
        if device.port is not None:
            for address, length, _ in device.verifier.seen.ranges.values():
                device.port.accept(address, length)

    def _stop(self, device: _Connected) -> None:
        self._release(device)
        if device.locked:
            device.locked = False
            device.verifier.stop()

    @staticmethod
    def _release(device: _Connected) -> None:
        if device.port is not None:
            device.port.release()
