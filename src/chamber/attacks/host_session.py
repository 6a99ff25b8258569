"""What a hypervisor does to the words between a guest and its device: SPDM, TDISP and key management in the mailbox.

All of them pass through configuration space, which is the host's. What is in the clear it can change, what is sealed it
can keep, repeat or spoil; and it can speak to the device itself.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final

from chamber.attacks.attack import Aim, Surface
from chamber.attacks.host import HostAttack, flipped, host_attack
from chamber.device.spdm_identity import make_slot
from chamber.device.spdm_responder import SpdmResponder
from chamber.wire import tdisp
from chamber.wire.ide_km import INITIAL_IFV, KEY_SIZE, KeyProgram, KeySet, KeySwitch, Object, SubStream
from chamber.wire.spdm import SpdmCode
from chamber.wire.spdm_messages import PCI_SIG, Measurement, MeasurementType, Protocol
from chamber.wire.tdisp import FunctionId, LockInterface, MessageType, SetMmioAttribute, StartInterface, State

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from chamber.attacks.attack import AttackSpec
    from chamber.device.chain import Chain
    from chamber.device.queue import DeviceQueue

__all__ = ("host_session_attacks",)

_SPDM: Final = "DSP0274 1.3, 10"
_TDISP: Final = "PCIe 6.1, 11.3"
_DATA: Final = 512
_CAPACITY: Final = 0x2000
"""Where among the registers the size of the disk is."""
_OTHER_FIRMWARE: Final = (
    Measurement(1, MeasurementType.ROM, b"boot"), Measurement(2, MeasurementType.FIRMWARE, b"other firmware"),
    Measurement(3, MeasurementType.SECURE_VERSION, (7).to_bytes(8, "little")))
_OLD_FIRMWARE: Final = (
    Measurement(1, MeasurementType.ROM, b"boot"), Measurement(2, MeasurementType.FIRMWARE, b"firmware"),
    Measurement(3, MeasurementType.SECURE_VERSION, (6).to_bytes(8, "little")))


class Between(HostAttack):
    """Between two that speak with each other; or, where they do not, in what they share."""

    def dma_written(self, address: int, data: bytes) -> bytes:  # noqa: ARG002 - the hook's
        """Change data that nothing seals."""
        if not self.is_open or len(data) < _DATA:
            return data
        self.strike("nothing is proven or sealed: data was changed on its way")
        return flipped(data)


class Clear(Between):
    """Changes a message in the clear.

    Args:
        code: of the request.
        change: makes other bytes; None keeps the message.
        answer: whether it is the answer that is changed.

    """

    def __init__(self, code: SpdmCode, change: Callable[[bytes], bytes | None], *, answer: bool = True) -> None:
        super().__init__()
        self._code = code
        self._change = change
        self._answer = answer
        self._now = False

    def asked(self, payload: bytes, *, secured: bool) -> bytes | None:
        """Change a request."""
        self._now = not secured and payload[1:2] == bytes((self._code,))
        return payload if self._answer or not self._now else self._changed(payload)

    def answered(self, payload: bytes | None, *, secured: bool) -> bytes | None:
        """Change an answer."""
        if secured or not self._answer or not self._now or payload is None:
            return payload
        return self._changed(payload)

    def _changed(self, payload: bytes) -> bytes | None:
        made = self._change(payload)
        self.strike(f"{self._code.name}: {payload[:16].hex(' ')}... becomes "
                    f"{'nothing' if made is None else made[:16].hex(' ')}")
        return made


class Sealed(Between):
    """Does something to sealed messages.

    Args:
        state: of the interface, in which it is done; to the first message that there is then.
        act: ``keeps``, ``repeats`` or ``spoils``.
        answer: whether to an answer.

    """

    def __init__(self, state: State, act: str, *, answer: bool) -> None:
        super().__init__()
        self._when = state
        self._act = act
        self._answer = answer
        self._done = False
        self._last: bytes | None = None

    def _due(self) -> bool:
        device = self.host.device
        if self._done or device is None or device.state is not self._when:
            return False
        self._done = True
        self.strike(f"{self._act} a sealed {'answer' if self._answer else 'request'} in {self._when.name}")
        return True

    def asked(self, payload: bytes, *, secured: bool) -> bytes | None:
        """Do it to a request."""
        if not secured or self._answer or not self._due():
            return payload
        if self._act == "repeats":
            self.host.ask(payload, secured=True)
            return payload
        return None if self._act == "keeps" else flipped(payload, len(payload) - 1)

    def answered(self, payload: bytes | None, *, secured: bool) -> bytes | None:
        """Do it to an answer."""
        if not secured or payload is None:
            return payload
        last, self._last = self._last, payload
        if not self._answer or not self._due():
            return payload
        if self._act == "repeats":
            return last
        return None if self._act == "keeps" else flipped(payload, len(payload) - 1)


class Impostor(Between):
    """Answers in the place of the device, with certificates of the host's own.

    Args:
        since: the request from which on; what comes before is the device's to answer.

    """

    def __init__(self, since: SpdmCode) -> None:
        super().__init__()
        self._since = since
        self._begun = False
        self._own = SpdmResponder({0: make_slot(name="disk")}, random=os.urandom,
                                  measurements=lambda: self.host.firmware,
                                  vendor={PCI_SIG: lambda _session, payload: payload})
        self._answer: bytes | None = None

    def asked(self, payload: bytes, *, secured: bool) -> bytes | None:
        """Ask both."""
        made = self._own.handle(payload, secured=secured)
        self._answer = None if made is None else made[0]
        if not self._begun and not secured and payload[1] == self._since:
            self._begun = True
            self.strike(f"answers {self._since.name}, and what follows, itself")
        return payload

    def answered(self, payload: bytes | None, *, secured: bool) -> bytes | None:  # noqa: ARG002 - the hook's
        """Give the answer of one."""
        return self._answer if self._begun else payload


class Firmware(HostAttack):
    """Has other firmware on the device, which serves other data.

    Args:
        when: the request after whose answer; None for before the guest comes, ``RUN`` for when the driver works.
        firmware: which.

    """

    def __init__(self, when: SpdmCode | State | None, firmware: tuple[Measurement, ...] = _OTHER_FIRMWARE) -> None:
        super().__init__()
        self._when = when
        self._firmware = firmware
        self._last: int | None = None
        self._flashed = False

    def _flash(self) -> None:
        if not self._flashed and self.host.flash(self._firmware):
            self._flashed = True
            self.strike("other firmware is on the device")

    def looked(self) -> None:
        """Do it before the guest comes."""
        if self._when is None or (self.is_open and isinstance(self._when, SpdmCode)):
            self._flash()

    def asked(self, payload: bytes, *, secured: bool) -> bytes | None:
        """Remember what is asked."""
        self._last = None if secured else payload[1]
        return payload

    def answered(self, payload: bytes | None, *, secured: bool) -> bytes | None:  # noqa: ARG002 - the hook's
        """Do it after an answer."""
        if self._last is not None and self._last == self._when:
            self._flash()
        return payload

    def started(self) -> None:
        """Do it while the driver works."""
        if isinstance(self._when, State):
            self.strike("tries to put other firmware on the device")
            self._flash()

    def response(self, queue: DeviceQueue, chain: Chain, data: bytes) -> bytes:  # noqa: ARG002 - the hook's
        """Serve other data."""
        return flipped(data) if self._flashed and len(data) >= _DATA else data


class OldMeasurements(Firmware):
    """Has measurements made while the right firmware is there, and gives them when the other one is."""

    def __init__(self) -> None:
        super().__init__(None)
        self._old: bytes | None = None

    def looked(self) -> None:
        """Wait."""
        if self.is_open:
            self._flash()

    def asked(self, payload: bytes, *, secured: bool) -> bytes | None:
        """Have them made, with another nonce than the guest's, then flash."""
        if not secured and payload[1] == SpdmCode.GET_MEASUREMENTS and self._old is None:
            self._old = self.host.ask(flipped(payload, 8), secured=False)
            self._flash()
        return super().asked(payload, secured=secured)

    def answered(self, payload: bytes | None, *, secured: bool) -> bytes | None:
        """Give them."""
        if not secured and self._last == SpdmCode.GET_MEASUREMENTS:
            self.strike("measurements of before are given")
            return self._old
        return payload


class OwnSession(Between):
    """Opens a session with the device itself, and says something in it while the guest's interface runs.

    Args:
        say: makes the payloads, given the function and the stream, which packets show to anybody.

    """

    def __init__(self, say: Callable[[FunctionId, int], list[bytes]]) -> None:
        super().__init__()
        self._say = say

    def started(self) -> None:
        """Say it."""
        if self.host.device is None:
            return
        session = self.host.open_session()
        self.strike("no session was to be had" if session is None else "a session of the host's own is open")
        if session is None:
            return
        stream = self.host.device.stream
        for payload in self._say(FunctionId(self.host.device.routing_id), 0 if stream is None else stream.stream_id):
            answer = session.say(payload)
            self.strike(f"{payload[:4].hex(' ')} is answered with {answer[:24].hex(' ') or 'nothing'}")
            self.capture(answer)


class Unasked(Between):
    """Says something to the device while the guest's interface runs.

    Args:
        payload: what, in the clear; None to repeat what the guest has said last, sealed as it was.

    """

    def __init__(self, payload: bytes | None) -> None:
        super().__init__()
        self._payload = payload
        self._last = b""

    def asked(self, payload: bytes, *, secured: bool) -> bytes | None:
        """Remember what is sealed."""
        if secured:
            self._last = payload
        return payload

    def started(self) -> None:
        """Say it."""
        if self.host.device is not None:
            said = self._last if self._payload is None else self._payload
            answer = self.host.ask(said, secured=self._payload is None)
            self.strike(f"{said[:8].hex(' ')} is answered with {(answer or b'')[:16].hex(' ') or 'nothing'}")


class Elsewhere(HostAttack):
    """Has base addresses mapped elsewhere than where the guest has placed them.

    Args:
        places: makes where, given a base address's number and the place.

    """

    def __init__(self, places: Callable[[int, int], int]) -> None:
        super().__init__()
        self._places = places

    def mapped(self, bar: int, address: int) -> int:
        """Map it there."""
        place = self._places(bar, address)
        if place != address:
            self.strike(f"base address {bar} is mapped at {place:#x}, not at {address:#x}")
        return place

    def memory_read(self, address: int, data: bytes) -> bytes:
        """Answer for the wrong place, where nothing tells the guest of it."""
        register = address - self.host.virtio.function.bar_base(self.host.virtio.register_bar)
        if not self.is_open or register != _CAPACITY:
            return data
        self.strike("device configuration is read from another place")
        return flipped(data, 1)


def _tdi(kind: MessageType, body: tdisp.Body | None = None) -> Callable[[FunctionId, int], list[bytes]]:
    return lambda function, _stream: [bytes((Protocol.TDISP,)) + tdisp.encode(kind, function, body)]


def _keys(_function: FunctionId, stream: int) -> list[bytes]:
    """Have the stream use keys of the host's."""
    said = []
    for transmit in (False, True):
        for number in SubStream:
            which = KeySet(stream, number, 1, transmit)
            said += [bytes((Protocol.IDE_KM,)) + KeyProgram(which, bytes(KEY_SIZE), INITIAL_IFV).encode(),
                     bytes((Protocol.IDE_KM,)) + KeySwitch(Object.K_SET_GO, which).encode()]
    return said


def _stop_keys(_function: FunctionId, stream: int) -> list[bytes]:
    return [bytes((Protocol.IDE_KM,)) + KeySwitch(Object.K_SET_STOP, KeySet(stream, number, 0, transmit)).encode()
            for transmit in (False, True) for number in SubStream]


def _without_newest(answer: bytes) -> bytes:
    """Return a VERSION with the oldest of its versions alone."""
    return answer[:5] + b"\1" + answer[6:8]


def _none(_message: bytes) -> None:
    return None


_C: Final = SpdmCode
_CLEAR: Final[tuple[tuple[str, Aim, str, SpdmCode, Callable[[bytes], bytes | None], bool], ...]] = (
    ("version-older", Aim.DECEPTION, "leaves the oldest version of SPDM alone", _C.GET_VERSION, _without_newest, True),
    ("version-none", Aim.DENIAL, "has no version agreed on", _C.GET_VERSION, lambda data: data[:5] + b"\0", True),
    ("capabilities-fewer", Aim.DECEPTION, "takes capabilities away", _C.GET_CAPABILITIES,
     lambda data: data[:8] + bytes((data[8] & ~0xC0,)) + data[9:], True),
    ("algorithms-offered", Aim.DECEPTION, "has weaker algorithms offered", _C.NEGOTIATE_ALGORITHMS,
     lambda data: flipped(data, 12), False),
    ("algorithms-chosen", Aim.DECEPTION, "has other algorithms chosen", _C.NEGOTIATE_ALGORITHMS,
     lambda data: flipped(data, 12), True),
    ("digests", Aim.DECEPTION, "changes the digest of the certificates", _C.GET_DIGESTS,
     lambda data: flipped(data, 8), True),
    ("certificates", Aim.DECEPTION, "changes a certificate", _C.GET_CERTIFICATE, lambda data: flipped(data, 600), True),
    ("challenge", Aim.DECEPTION, "changes the nonce of the challenge", _C.CHALLENGE,
     lambda data: flipped(data, 8), False),
    ("proof", Aim.DECEPTION, "changes the signature that proves who the device is", _C.CHALLENGE,
     lambda data: flipped(data, len(data) - 1), True),
    ("measurements", Aim.DECEPTION, "changes a measurement", _C.GET_MEASUREMENTS, lambda data: flipped(data, 20), True),
    ("key-share", Aim.DECEPTION, "changes the device's share of the session's key", _C.KEY_EXCHANGE,
     lambda data: flipped(data, 48), True),
    ("key-exchange-kept", Aim.DENIAL, "keeps the answer to the key exchange", _C.KEY_EXCHANGE, _none, True),
)
_SEALED: Final[tuple[tuple[str, State, str, bool, Surface], ...]] = (
    ("lock-kept", State.CONFIG_UNLOCKED, "keeps", False, Surface.TDISP),
    ("lock-repeated", State.CONFIG_UNLOCKED, "repeats", False, Surface.TDISP),
    ("lock-spoilt", State.CONFIG_UNLOCKED, "spoils", False, Surface.TDISP),
    ("lock-answer-kept", State.CONFIG_LOCKED, "keeps", True, Surface.TDISP),
    ("report-asked-kept", State.CONFIG_LOCKED, "keeps", False, Surface.REPORT),
    ("report-asked-repeated", State.CONFIG_LOCKED, "repeats", False, Surface.REPORT),
    ("report-spoilt", State.CONFIG_LOCKED, "spoils", True, Surface.REPORT),
    ("report-of-before", State.CONFIG_LOCKED, "repeats", True, Surface.REPORT),
    ("start-answer-kept", State.RUN, "keeps", True, Surface.TDISP),
    ("start-answer-spoilt", State.RUN, "spoils", True, Surface.TDISP),
)
_OWN: Final[tuple[tuple[str, Aim, str, Callable[[FunctionId, int], list[bytes]]], ...]] = (
    ("stops", Aim.DENIAL, "stops the interface", _tdi(MessageType.STOP_INTERFACE_REQUEST)),
    ("locks", Aim.DECEPTION, "locks the interface for itself",
     _tdi(MessageType.LOCK_INTERFACE_REQUEST, LockInterface(tdisp.LockFlag(0), 3))),
    ("starts", Aim.DECEPTION, "starts the interface with a nonce that it has guessed",
     _tdi(MessageType.START_INTERFACE_REQUEST, StartInterface(bytes(32)))),
    ("reads-report", Aim.LEAK, "asks for the interface's report", _tdi(MessageType.GET_DEVICE_INTERFACE_REPORT,
                                                                       tdisp.GetReport(0, 0xFFFF))),
    ("opens-memory", Aim.LEAK, "has the interface's memory be its own",
     _tdi(MessageType.SET_MMIO_ATTRIBUTE_REQUEST, SetMmioAttribute(0x80000, 8, range_id=0, non_tee=True))),
    ("sets-keys", Aim.DECEPTION, "sets keys of its own for the guest's stream", _keys),
    ("stops-keys", Aim.DENIAL, "stops the keys of the guest's stream", _stop_keys),
)
_PLACES: Final[tuple[tuple[str, str, Callable[[int, int], int]], ...]] = (
    ("registers", "the registers elsewhere", lambda bar, at: at + 0x100000 * (bar == 0)),
    ("vectors", "the interrupts' table elsewhere", lambda bar, at: at + 0x100000 * (bar == 1)),
    ("swapped", "base addresses in each other's place", lambda bar, at: at + {0: 0x4000, 1: -0x4000}.get(bar, 0)),
    ("by-a-page", "all one page further on", lambda _bar, at: at + 0x1000),
)


def host_session_attacks() -> Iterator[AttackSpec]:
    """All of these attacks."""
    for name, aim, what, code, change, answer in _CLEAR:
        yield host_attack(f"spdm-{name}", Surface.TDISP, aim, _SPDM, f"The hypervisor {what}.",
                          lambda code=code, change=change, answer=answer: Clear(code, change, answer=answer))  # type: ignore[misc]
    for name, since in (("all", _C.GET_VERSION), ("certificates", _C.GET_DIGESTS), ("session", _C.KEY_EXCHANGE)):
        yield host_attack(f"impostor-{name}", Surface.DISCOVERY, Aim.DECEPTION, _SPDM,
                          f"The hypervisor answers in the device's place, from {since.name} on.",
                          lambda since=since: Impostor(since))  # type: ignore[misc]
    for name, state, act, answer, surface in _SEALED:
        aim = Aim.DENIAL if act == "keeps" else Aim.DECEPTION
        yield host_attack(f"sealed-{name}", surface, aim, _TDISP,
                          f"The hypervisor {act} a sealed {'answer' if answer else 'request'} in {state.name}.",
                          lambda state=state, act=act, answer=answer: Sealed(state, act, answer=answer))  # type: ignore[misc]
    for name, what, make in (
            ("before", "before the guest comes", lambda: Firmware(None)),
            ("older", "before the guest comes, an older version", lambda: Firmware(None, _OLD_FIRMWARE)),
            ("after-measuring", "after the guest has measured it", lambda: Firmware(_C.GET_MEASUREMENTS)),
            ("after-session", "when the guest's session has begun", lambda: Firmware(_C.KEY_EXCHANGE)),
            ("running", "while the driver works", lambda: Firmware(State.RUN)),
            ("old-measurements", "and gives measurements of before", OldMeasurements)):
        yield host_attack(f"firmware-{name}", Surface.TDISP, Aim.DECEPTION, f"{_TDISP}.8",
                          f"The hypervisor has other firmware on the device, {what}.", make)
    for name, aim, what, say in _OWN:
        yield host_attack(f"own-session-{name}", Surface.TDISP, aim, _TDISP,
                          f"The hypervisor {what}, in a session of its own.", lambda say=say: OwnSession(say))  # type: ignore[misc]
    yield host_attack("session-reset", Surface.TDISP, Aim.DENIAL, _SPDM,
                      "The hypervisor asks the device for its version, which ends all sessions.",
                      lambda: Unasked(bytes((0x10, SpdmCode.GET_VERSION, 0, 0))))
    yield host_attack("session-repeated", Surface.TDISP, Aim.DENIAL, "PCIe 6.1, 11.2.2",
                      "The hypervisor repeats the last sealed message of the guest's.", lambda: Unasked(None))
    yield host_attack("session-noise", Surface.TDISP, Aim.DENIAL, _SPDM,
                      "The hypervisor sends the device a message in the clear that is none.",
                      lambda: Unasked(bytes((0x13, 0x00, 0, 0))))
    for name, what, places in _PLACES:
        yield host_attack(f"mapped-{name}", Surface.REPORT, Aim.DECEPTION, "PCIe 6.1, 11.5.2",
                          f"The hypervisor maps {what}.", lambda places=places: Elsewhere(places))  # type: ignore[misc]
