"""What a lying sound device says: counts, streams, maps, control elements, statuses, events; and what it plays."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from chamber.attacks.answer import Answer, Claim, Unasked
from chamber.attacks.attack import Aim, Attack, AttackSpec, Surface
from chamber.wire.snd import (
    CHMAP_INFO,
    CTL_INFO,
    EVENT,
    HDR,
    JACK_INFO,
    PCM_INFO,
    STATUS,
    Access,
    ControlType,
    SndCode,
    SndStatus,
)
from chamber.wire.virtio import DeviceType

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ("snd_attacks",)

_C: Final = SndCode
_MAX32: Final = 0xFFFFFFFF


def _reply(codes: tuple[SndCode, ...], change: Callable[[bytes], bytes], *, after: int = 0) -> Callable[[], Attack]:
    """Change the whole reply to some requests; no codes are all of them."""
    def answer(request: bytes, honest: bytes) -> bytes | None:
        code = int.from_bytes(request[:4], "little")
        return change(honest) if not codes or code in codes else None

    return lambda: Answer("control", answer, after=after)


def _put(at: int, value: int, width: int, entry: int = 0) -> Callable[[bytes], bytes]:
    """Overwrite a number of each entry of a reply; entries are `entry` bytes."""
    raw = (value & (1 << 8 * width) - 1).to_bytes(width, "little")

    def change(reply: bytes) -> bytes:
        out = bytearray(reply)
        for start in range(HDR.size, len(out), entry or len(out)):
            if start + at + width <= len(out):
                out[start + at:start + at + width] = raw
        return bytes(out)

    return change


def _pcm(at: int, value: int, width: int) -> Callable[[], Attack]:
    return _reply((_C.PCM_INFO,), _put(at, value, width, PCM_INFO.size))


def _chmap(at: int, value: int, width: int) -> Callable[[], Attack]:
    return _reply((_C.CHMAP_INFO,), _put(at, value, width, CHMAP_INFO.size))


def _ctl(at: int, value: int, width: int) -> Callable[[], Attack]:
    return _reply((_C.CTL_INFO,), _put(at, value, width, CTL_INFO.size))


def _type_count(kind: int, count: int) -> Callable[[bytes], bytes]:
    """Give every control element another type, and so many parts."""
    other, parts = _put(8, kind, 4, CTL_INFO.size), _put(16, count, 4, CTL_INFO.size)
    return lambda reply: parts(other(reply))


def _name(reply: bytes) -> bytes:
    """Give the first control element a name that commands a terminal."""
    at = HDR.size + 24
    return reply[:at] + b"\x1b[2J\n<0>panic\r\x07".ljust(44, b"x") + reply[at + 44:]


def _status(status: int) -> Callable[[bytes], bytes]:
    return lambda reply: HDR.pack(status) + reply[HDR.size:]


def _message(role: str, change: Callable[[bytes], bytes]) -> Callable[[], Attack]:
    return lambda: Answer(role, lambda _request, honest: change(honest))


def _end(status: int, latency: int) -> Callable[[bytes], bytes]:
    """Change the status at the end of a message's answer."""
    return lambda answer: answer[:-STATUS.size] + STATUS.pack(status, latency)


def _unasked(code: int, data: int, *, count: int = 1) -> Callable[[], Attack]:
    return lambda: Unasked("events", tuple(EVENT.pack(code, data) for _ in range(count)), when="control", after=6)


_STREAM: Final = (_C.PCM_SET_PARAMS, _C.PCM_PREPARE, _C.PCM_START, _C.PCM_STOP, _C.PCM_RELEASE)
_INFOS: Final = (_C.JACK_INFO, _C.PCM_INFO, _C.CHMAP_INFO, _C.CTL_INFO)

Row = tuple[str, Surface, Aim, str, str, "Callable[[], Attack]"]
_L, _P, _T = Surface.LENGTH, Surface.PAYLOAD, Surface.CONTENT
_M, _D, _N, _K = Aim.MEMORY, Aim.DECEPTION, Aim.DENIAL, Aim.LEAK

_ROWS: Final[tuple[Row, ...]] = (
    ("info-empty", _L, _K, "5.14.6.1", "answers questions with a header alone", _reply(_INFOS, lambda r: r[:4])),
    ("info-short", _L, _M, "5.14.6.1", "answers questions with half of the entries",
     _reply(_INFOS, lambda r: r[:len(r) // 2])),
    ("info-unwritten", _L, _K, "5.14.6.1", "claims entries that it did not write",
     lambda: Claim("control", lambda true, _room: true, keep=lambda _n: HDR.size)),
    ("info-changing", _P, _M, "5.14.6.1", "answers the second question with ones",
     _reply(_INFOS, lambda r: r[:4] + b"\xff" * (len(r) - 4), after=1)),
    ("info-all-ones", _P, _M, "5.14.6.1", "answers questions with ones",
     _reply(_INFOS, lambda r: r[:4] + b"\xff" * (len(r) - 4))),
    ("info-all-zero", _P, _M, "5.14.6.1", "answers questions with zeroes",
     _reply(_INFOS, lambda r: r[:4] + bytes(len(r) - 4))),
    ("status-unknown", _P, _D, "5.14.6", "answers with status 0", _reply((), _status(0))),
    ("status-request", _P, _D, "5.14.6", "answers with the code of a request", _reply((), _status(_C.PCM_START))),
    ("status-refused", _P, _N, "5.14.6", "refuses every request", _reply((), lambda _r: HDR.pack(SndStatus.IO_ERR))),
    *((f"refused-{code.name.lower().replace('_', '-')}", _P, _M, "5.14.6", f"refuses {code.name} alone",
       _reply((code,), lambda _r: HDR.pack(SndStatus.IO_ERR))) for code in (*_INFOS, _C.CTL_ENUM_ITEMS)),
    ("status-not-supported", _P, _N, "5.14.6.6", "supports no request of a stream",
     _reply(_STREAM, lambda _r: HDR.pack(SndStatus.NOT_SUPP))),
    ("status-bad-message", _P, _N, "5.14.6.6", "takes requests of a stream for bad ones",
     _reply(_STREAM, lambda _r: HDR.pack(SndStatus.BAD_MSG))),
    ("stream-direction", _P, _M, "5.14.6.6.2", "has streams of direction 255", _pcm(24, 255, 1)),
    ("stream-direction-swapped", _P, _D, "5.14.6.6.2", "says that every stream records", _pcm(24, 1, 1)),
    ("stream-channels-zero", _P, _M, "5.14.6.6.2", "has streams of at most no channel", _pcm(26, 0, 1)),
    ("stream-channels-none", _P, _M, "5.14.6.6.2", "has streams of no channel", _pcm(25, 0, 2)),
    ("stream-channels-reversed", _P, _M, "5.14.6.6.2", "has streams of at least 255 channels", _pcm(25, 255, 1)),
    ("stream-channels-max", _P, _M, "5.14.6.6.2", "has streams of up to 255 channels", _pcm(26, 255, 1)),
    ("stream-formats-zero", _P, _M, "5.14.6.6.2", "has streams of no format", _pcm(8, 0, 8)),
    ("stream-formats-max", _P, _M, "5.14.6.6.2", "has streams of 64 formats", _pcm(8, (1 << 64) - 1, 8)),
    ("stream-rates-zero", _P, _M, "5.14.6.6.2", "has streams of no rate", _pcm(16, 0, 8)),
    ("stream-rates-unknown", _P, _M, "5.14.6.6.2", "has streams of unknown rates alone", _pcm(16, 0xFF << 20, 8)),
    ("stream-features-max", _P, _M, "5.14.6.6.2", "has streams with every feature", _pcm(4, _MAX32, 4)),
    ("chmap-channels-max", _P, _M, "5.14.6.9.1", "has channel maps of 255 channels", _chmap(5, 255, 1)),
    ("chmap-channels-19", _P, _M, "5.14.6.9.1", "has channel maps of 19 channels", _chmap(5, 19, 1)),
    ("chmap-channels-zero", _P, _M, "5.14.6.9.1", "has channel maps of no channel", _chmap(5, 0, 1)),
    ("chmap-positions", _P, _M, "5.14.6.9.1", "puts channels at position 255", _chmap(6, 0xFFFF, 2)),
    ("chmap-direction", _P, _M, "5.14.6.9.1", "has channel maps of direction 255", _chmap(4, 255, 1)),
    ("ctl-type", _P, _M, "5.14.6.10.1", "has control elements of type 255", _ctl(8, 255, 4)),
    ("ctl-type-bytes", _P, _M, "5.14.6.10.1", "says that every control element is bytes", _ctl(8, 4, 4)),
    ("ctl-count-max", _P, _M, "5.14.6.10.1", "has values of 2**32 - 1 parts", _ctl(16, _MAX32, 4)),
    ("ctl-count-beyond", _P, _M, "5.14.6.10.1", "has values of 129 parts", _ctl(16, 129, 4)),
    ("ctl-count-zero", _P, _M, "5.14.6.10.1", "has values of no part", _ctl(16, 0, 4)),
    ("ctl-name", _P, _D, "5.14.6.10.1", "names a control element by control characters", _reply((_C.CTL_INFO,), _name)),
    ("ctl-range-reversed", _P, _M, "5.14.6.10.1", "has values from 2**32 - 1 on", _ctl(68, _MAX32, 4)),
    ("ctl-items-max", _P, _M, "5.14.6.10.1", "has elements of 2**32 - 1 items or of values up to 0",
     _ctl(68, _MAX32, 8)),
    ("ctl-items-other", _T, _D, "5.14.6.10.1", "calls the items of an element otherwise",
     _reply((_C.CTL_ENUM_ITEMS,), lambda r: r[:4] + b"Nothing".ljust(64, b"\0") + r[68:])),
    ("ctl-value-beyond", _P, _M, "5.14.6.10.2", "has values beyond their range",
     _reply((_C.CTL_READ,), _put(0, _MAX32, 4))),
    ("ctl-value-other", _T, _D, "5.14.6.10.2", "has other values than were set", _reply((_C.CTL_READ,), _put(0, 0, 4))),
    ("ctl-bytes-max", _P, _M, "5.14.6.10.1", "says that every control element is 512 bytes",
     _reply((_C.CTL_INFO,), _type_count(ControlType.BYTES, 512))),
    ("ctl-iec958-two", _P, _M, "5.14.6.10.1", "has values that describe two digital interfaces",
     _reply((_C.CTL_INFO,), _type_count(ControlType.IEC958, 2))),
    ("ctl-write-only", _P, _D, "5.14.6.10.2", "lets values be set that nobody may read",
     _ctl(12, 1 << Access.WRITE, 4)),
    ("tlv-length-max", _L, _M, "5.14.6.10.3", "has metadata of 2**32 - 1 bytes",
     _reply((_C.CTL_TLV_READ,), _put(4, _MAX32, 4))),
    ("tlv-length-beyond", _L, _M, "5.14.6.10.3", "has metadata of a page more than there is room for",
     _reply((_C.CTL_TLV_READ,), _put(4, 4096 + 504, 4))),
    ("tlv-length-odd", _L, _M, "5.14.6.10.3", "has metadata of seven bytes", _reply((_C.CTL_TLV_READ,), _put(4, 7, 4))),
    ("tlv-short", _L, _K, "5.14.6.10.3", "ends its metadata in the middle",
     _reply((_C.CTL_TLV_READ,), lambda r: r[:len(r) // 2])),
    ("tlv-claimed-max", _L, _M, "5.14.6.10.3", "claims to have written 2**32 - 1 bytes of each reply",
     lambda: Claim("control", lambda _true, _room: _MAX32, after=6)),
    ("jack-connected", _P, _M, "5.14.6.4.1", "has jacks that are connected 255 times",
     _reply((_C.JACK_INFO,), _put(16, 255, 1, JACK_INFO.size))),
    ("jack-features", _P, _M, "5.14.6.4.1", "has jacks with every feature",
     _reply((_C.JACK_INFO,), _put(4, _MAX32, 4, JACK_INFO.size))),
    ("tx-status-unknown", _P, _D, "5.14.6.8.1", "answers what is played with status 7", _message("tx", _end(7, 0))),
    ("tx-status-refused", _P, _N, "5.14.6.8.1", "plays nothing and says so", _message("tx", _end(SndStatus.IO_ERR, 0))),
    ("tx-latency-max", _P, _M, "5.14.6.8.1", "says that 2**32 - 1 bytes are delayed",
     _message("tx", _end(SndStatus.OK, _MAX32))),
    ("tx-short", _L, _M, "5.14.6.8.1", "answers what is played with four bytes", _message("tx", lambda a: a[:4])),
    ("tx-empty", _L, _K, "5.14.6.8.1", "answers what is played with nothing", _message("tx", lambda _a: b"")),
    ("rx-status-unknown", _P, _D, "5.14.6.8.2", "answers what is recorded with status 7", _message("rx", _end(7, 0))),
    ("rx-status-refused", _P, _N, "5.14.6.8.2", "records nothing and says so",
     _message("rx", _end(SndStatus.IO_ERR, 0))),
    ("rx-latency-max", _P, _M, "5.14.6.8.2", "says that 2**32 - 1 recorded bytes are delayed",
     _message("rx", _end(SndStatus.OK, _MAX32))),
    ("rx-short", _L, _K, "5.14.6.8.2", "records half of a period", _message("rx", lambda a: a[:len(a) // 2])),
    ("rx-claimed-max", _L, _M, "5.14.6.8.2", "claims to have recorded 2**32 - 1 bytes",
     lambda: Claim("rx", lambda _true, _room: _MAX32)),
    ("rx-claimed-beyond", _L, _M, "5.14.6.8.2", "claims to have recorded a page more than there is room for",
     lambda: Claim("rx", lambda _true, room: room + 4096)),
    ("rx-claimed-four", _L, _M, "5.14.6.8.2", "claims to have recorded four bytes",
     lambda: Claim("rx", lambda _t, _r: 4)),
    ("rx-unwritten", _L, _K, "5.14.6.8.2", "claims to have recorded what it did not write",
     lambda: Claim("rx", lambda true, _room: true, keep=lambda _n: 0)),
    ("rx-silence", _T, _D, "5.14.6.8.2", "records silence", _message("rx", lambda a: bytes(len(a) - 8) + a[-8:])),
    ("rx-other", _T, _D, "5.14.6.8.2", "records something else", _message("rx", lambda a: a[:-8][::-1] + a[-8:])),
    ("event-jack-beyond", _P, _M, "5.14.6.5", "tells of jack 2**32 - 1", _unasked(_C.EVT_JACK_CONNECTED, _MAX32)),
    ("event-jack-next", _P, _M, "5.14.6.5", "tells of jack 2, where there are two", _unasked(_C.EVT_JACK_CONNECTED, 2)),
    ("event-stream-beyond", _P, _M, "5.14.6.7", "tells of stream 2**31", _unasked(_C.EVT_PCM_XRUN, 1 << 31)),
    ("event-stream-next", _P, _M, "5.14.6.7", "tells of stream 2, where there are two", _unasked(_C.EVT_PCM_XRUN, 2)),
    ("event-control-next", _P, _M, "5.14.6.10.4", "tells of control element 3, where there are three",
     _unasked(_C.EVT_CTL_NOTIFY, 0x10003)),
    ("event-period", _P, _M, "5.14.6.7", "tells of a period of a stream that has no shared memory",
     _unasked(_C.EVT_PCM_PERIOD_ELAPSED, 0)),
    ("event-control-beyond", _P, _M, "5.14.6.10.4", "tells of control element 65535",
     _unasked(_C.EVT_CTL_NOTIFY, 0x1FFFF)),
    ("event-unknown", _P, _M, "5.14.6", "tells of something unknown", _unasked(0x7777, 0)),
    ("event-request", _P, _M, "5.14.6", "sends a request as an event", _unasked(_C.PCM_START, 0)),
    ("event-xruns", _P, _N, "5.14.6.7", "tells of xruns while nothing runs", _unasked(_C.EVT_PCM_XRUN, 0, count=8)),
    ("event-short", _L, _M, "5.14.6", "sends half of an event",
     lambda: Answer("events", lambda _request, honest: honest[:4])),
)


def snd_attacks() -> Iterator[AttackSpec]:
    """Attacks on the sound device's protocol."""
    for what, surface, aim, spec, summary, make in _ROWS:
        yield AttackSpec(f"snd-{what}", DeviceType.SND, surface, aim, f"virtio 1.3, {spec}",
                         f"The device {summary}.", make, stimuli=("use", "inspect"))
