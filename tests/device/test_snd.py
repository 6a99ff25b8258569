"""The sound device: requests in and out of order, messages at the pace of the sound, files, control elements."""

from __future__ import annotations

import struct
import wave
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chamber.device.sample_content import RECORDED
from chamber.device.snd import CONTROLS, ITEMS, SndDevice
from chamber.device.snd_stream import MemorySound, SoundError, State, Stream, WavSink, WavSource
from chamber.wire import snd
from chamber.wire.snd import (
    CONTROL_QUEUE,
    EVENT_QUEUE,
    RX_QUEUE,
    TX_QUEUE,
    Params,
    PcmFormat,
    SndCode,
    SndStatus,
)
from tests.device.driver import Driver

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

PARAMS = Params(1600, 400, 2, PcmFormat.S16, snd.RATES.index(48000))
OK, BAD, UNSUPPORTED = SndStatus.OK, SndStatus.BAD_MSG, SndStatus.NOT_SUPP


class Lab:
    """A device, its driver, and a clock that is turned by hand."""

    def __init__(self, device: SndDevice | None = None) -> None:
        self.device = SndDevice() if device is None else device
        self.clock: list[tuple[float, Callable[[], None]]] = []
        self.device.schedule = lambda delay, call: self.clock.append((delay, call))
        self.driver = Driver(self.device)

    def ask(self, request: bytes, room: int = 0) -> tuple[int, bytes]:
        reply = self.driver.request(CONTROL_QUEUE, [request], [4 + room])
        return int.from_bytes(reply[:4], "little"), reply[4:]

    def item(self, code: int, number: int, room: int = 0) -> tuple[int, bytes]:
        return self.ask(snd.ITEM_HDR.pack(code, number), room)

    def run(self, stream: int, *codes: SndCode) -> list[int]:
        return [self.item(code, stream)[0] for code in codes]

    def send(self, queue: int, readable: list[bytes], writable: list[int]) -> None:
        self.driver.add(queue, readable, writable)
        self.driver.notify(queue)

    def turn(self) -> float:
        """Let the next thing happen; return the seconds that it took."""
        delay, call = self.clock.pop(0)
        call()
        return delay


def test_questions() -> None:
    lab = Lab()
    status, data = lab.ask(snd.QUERY.pack(SndCode.PCM_INFO, 0, 2, 32), 64)
    assert status == OK
    assert [data[24], data[56]] == [0, 1]
    assert lab.ask(snd.QUERY.pack(SndCode.JACK_INFO, 1, 1, 24), 24)[1][16] == 0
    for start, count, size, room in ((2, 1, 32, 64), (0, 3, 32, 96), (0, 0, 32, 0), (0, 1, 31, 31), (0, 2, 32, 32),
                                     (0xFFFFFFFF, 2, 32, 64), (0, 0xFFFFFFFF, 32, 64)):
        assert lab.ask(snd.QUERY.pack(SndCode.PCM_INFO, start, count, size), room)[0] == BAD
    assert lab.ask(b"\1\0\0\0")[0] == BAD
    assert lab.ask(struct.pack("<I", 0x999))[0] == UNSUPPORTED
    assert lab.driver.request(CONTROL_QUEUE, [b"\1\0"], [64]) == b""
    assert lab.driver.request(CONTROL_QUEUE, [snd.QUERY.pack(1, 0, 1, 24)], [3]) == b""


def test_a_stream_s_life() -> None:
    lab = Lab()
    stream = lab.device.streams[0]
    assert lab.run(0, SndCode.PCM_PREPARE, SndCode.PCM_START, SndCode.PCM_STOP, SndCode.PCM_RELEASE) == [BAD] * 4
    assert lab.ask(PARAMS.build(0))[0] == OK
    assert lab.run(0, SndCode.PCM_START, SndCode.PCM_RELEASE) == [BAD, BAD]
    assert lab.run(0, SndCode.PCM_PREPARE, SndCode.PCM_PREPARE, SndCode.PCM_STOP) == [OK, OK, BAD]
    assert lab.run(0, SndCode.PCM_START, SndCode.PCM_START, SndCode.PCM_RELEASE) == [OK, BAD, BAD]
    assert lab.ask(PARAMS.build(0))[0] == BAD
    assert lab.run(0, SndCode.PCM_STOP, SndCode.PCM_START, SndCode.PCM_STOP, SndCode.PCM_RELEASE) == [OK] * 4
    assert stream.state.value == "parameters set"
    assert lab.run(9, SndCode.PCM_PREPARE) == [BAD]
    lab.device.reset()
    assert stream.state is State.INITIAL


@pytest.mark.parametrize("params", [
    Params(1600, 400, 2, 4, 14), Params(1600, 400, 2, 24, 7), Params(1600, 400, 2, 2, 7), Params(1600, 400, 0, 5, 7),
    Params(1600, 400, 9, 5, 7), Params(1600, 0, 2, 5, 7), Params(400, 1600, 2, 5, 7), Params(1500, 400, 2, 5, 7),
    Params(1602, 801, 2, 5, 7), Params(1 << 31, 400, 2, 5, 7),
    Params(1600, 400, 2, 5, 7, features=1), Params(0, 0, 2, 5, 7),
])
def test_what_no_stream_does(params: Params) -> None:
    lab = Lab()
    assert lab.ask(params.build(0))[0] == UNSUPPORTED
    assert lab.ask(params.build(0)[:20])[0] == BAD
    assert lab.device.streams[0].state is State.INITIAL


def test_messages_take_the_time_of_their_sound() -> None:
    lab = Lab()
    sound = lab.device.streams[0].sound
    assert isinstance(sound, MemorySound)
    lab.ask(PARAMS.build(0))
    lab.run(0, SndCode.PCM_PREPARE)
    for number in range(3):
        lab.send(TX_QUEUE, [snd.XFER.pack(0), bytes([number]) * 400], [8])
    assert lab.driver.used(TX_QUEUE) == []
    assert lab.clock == []
    lab.run(0, SndCode.PCM_START)
    for number in range(3):
        assert lab.turn() == pytest.approx(100 / 48000)
        ((_, answer),) = lab.driver.used(TX_QUEUE)
        assert snd.STATUS.unpack(answer) == (OK, (2 - number) * 400)
    assert bytes(sound.data) == b"".join(bytes([number]) * 400 for number in range(3))
    lab.send(TX_QUEUE, [snd.XFER.pack(0) + b"x" * 400], [8])
    lab.run(0, SndCode.PCM_STOP)
    lab.turn()
    assert lab.driver.used(TX_QUEUE) == []
    lab.run(0, SndCode.PCM_RELEASE)
    ((_, answer),) = lab.driver.used(TX_QUEUE)
    assert snd.STATUS.unpack(answer)[0] == SndStatus.IO_ERR


def test_what_is_recorded() -> None:
    lab = Lab()
    lab.ask(PARAMS.build(1))
    lab.run(1, SndCode.PCM_PREPARE, SndCode.PCM_START)
    lab.send(RX_QUEUE, [snd.XFER.pack(1)], [100, 300, 8])
    lab.turn()
    ((_, answer),) = lab.driver.used(RX_QUEUE)
    assert answer[:400] == RECORDED[:400]
    assert snd.STATUS.unpack(answer[400:])[0] == OK


@pytest.mark.parametrize(("queue", "readable", "writable"), [
    (TX_QUEUE, [snd.XFER.pack(1) + bytes(400)], [8]), (TX_QUEUE, [snd.XFER.pack(7) + bytes(400)], [8]),
    (TX_QUEUE, [snd.XFER.pack(0)], [8]), (TX_QUEUE, [snd.XFER.pack(0) + bytes(399)], [8]),
    (TX_QUEUE, [b"\0\0"], [8]), (RX_QUEUE, [snd.XFER.pack(0)], [408]), (RX_QUEUE, [snd.XFER.pack(1)], [8]),
    (RX_QUEUE, [snd.XFER.pack(1)], [407]),
])
def test_messages_that_are_none(queue: int, readable: list[bytes], writable: list[int]) -> None:
    lab = Lab()
    for stream in (0, 1):
        lab.ask(PARAMS.build(stream))
        lab.run(stream, SndCode.PCM_PREPARE, SndCode.PCM_START)
    answer = lab.driver.request(queue, readable, writable)
    assert snd.STATUS.unpack(answer[-8:])[0] == BAD
    assert lab.driver.request(queue, readable, [7]) == b""


def test_nobody_plays_memory_that_is_not_shared() -> None:
    lab = Lab()
    lab.ask(PARAMS.build(0))
    lab.run(0, SndCode.PCM_PREPARE, SndCode.PCM_START)
    lab.driver.queues[TX_QUEUE].add([(0x10, 404, 0), (0x10, 8, 2)])
    lab.driver.notify(TX_QUEUE)
    while lab.clock:
        lab.turn()
    assert lab.device.violations


def test_plugs_and_knobs() -> None:
    lab = Lab()
    for _ in range(4):
        lab.driver.add(EVENT_QUEUE, [], [8])
    lab.driver.notify(EVENT_QUEUE)
    for action in ("unplug", "plug", "volume", "nothing"):
        lab.device.host_action(action)
    assert [snd.EVENT.unpack(data) for _, data in lab.driver.used(EVENT_QUEUE)] == [
        (SndCode.EVT_JACK_DISCONNECTED, 0), (SndCode.EVT_JACK_CONNECTED, 0), (SndCode.EVT_CTL_NOTIFY, 1 << 16)]


def test_control_elements() -> None:
    lab = Lab()
    value = struct.pack("<2I", 10, 20).ljust(512, b"\0")
    assert lab.ask(snd.ITEM_HDR.pack(SndCode.CTL_WRITE, 0) + value)[0] == OK
    assert lab.item(SndCode.CTL_READ, 0, 512) == (OK, value)
    assert lab.ask(snd.ITEM_HDR.pack(SndCode.CTL_WRITE, 0) + struct.pack("<I", 101).ljust(512, b"\0"))[0] == BAD
    assert lab.ask(snd.ITEM_HDR.pack(SndCode.CTL_WRITE, 2) + struct.pack("<I", 3).ljust(512, b"\0"))[0] == BAD
    assert lab.ask(snd.ITEM_HDR.pack(SndCode.CTL_WRITE, 0) + value[:100])[0] == BAD
    assert lab.item(SndCode.CTL_READ, 3, 512)[0] == BAD
    assert lab.item(SndCode.CTL_READ, 0, 511)[0] == BAD
    items = lab.item(SndCode.CTL_ENUM_ITEMS, 2, 3 * 64)[1]
    assert tuple(items[at:at + 64].rstrip(b"\0") for at in range(0, 192, 64)) == ITEMS
    assert lab.item(SndCode.CTL_ENUM_ITEMS, 0, 192)[0] == BAD
    without = Lab(SndDevice(features=0))
    assert without.item(SndCode.CTL_READ, 0, 512)[0] == UNSUPPORTED
    assert len(CONTROLS) == 3


def test_metadata() -> None:
    lab = Lab()
    status, data = lab.item(SndCode.CTL_TLV_READ, 0, 64)
    assert (status, data) == (OK, struct.pack("<2I2i", 1, 8, -5000, 50))
    assert lab.item(SndCode.CTL_TLV_READ, 0, 12) == (OK, data[:12])
    assert lab.item(SndCode.CTL_TLV_READ, 0, 7)[0] == BAD
    assert lab.item(SndCode.CTL_TLV_READ, 1, 16)[0] == UNSUPPORTED
    for number, written, expected in ((0, snd.TLV.pack(7, 4) + b"abcd", OK), (0, snd.TLV.pack(7, 4) + b"abc", BAD),
                                      (0, snd.TLV.pack(7, 0xFFFFFFFF) + b"abcd", BAD), (0, b"abcd", BAD),
                                      (0, snd.TLV.pack(7, 3) + b"abc", BAD), (1, snd.TLV.pack(7, 0), UNSUPPORTED),
                                      (0, snd.TLV.pack(7, 1 << 16) + bytes(1 << 16), BAD), (9, b"", BAD)):
        assert lab.ask(snd.ITEM_HDR.pack(SndCode.CTL_TLV_WRITE, number) + written)[0] == expected
    assert lab.item(SndCode.CTL_TLV_READ, 0, 64) == (OK, snd.TLV.pack(7, 4) + b"abcd")
    assert lab.item(SndCode.CTL_TLV_COMMAND, 0)[0] == UNSUPPORTED


def test_jacks_are_moved() -> None:
    lab = Lab()
    for jack, association, sequence, expected in ((1, 3, 2, OK), (2, 0, 0, BAD), (0, 16, 0, BAD), (0, 0, 16, BAD)):
        assert lab.ask(snd.JACK_REMAP.pack(SndCode.JACK_REMAP, jack, association, sequence))[0] == expected
    assert lab.item(SndCode.JACK_REMAP, 1)[0] == BAD
    data = lab.ask(snd.QUERY.pack(SndCode.JACK_INFO, 0, 2, 24), 48)[1]
    assert [entry[2] & 0xFF for entry in snd.JACK_INFO.iter_unpack(data)] == [0x10, 0x32]


def test_a_recording_has_one_kind(tmp_path: Path) -> None:
    with wave.open(str(tmp_path / "in"), "wb") as file:
        file.setparams((2, 2, 48000, 0, "NONE", ""))
        file.writeframes(bytes(400))
    lab = Lab(SndDevice([Stream.input(WavSource(tmp_path / "in"))]))
    info = lab.device.streams[0].info
    assert (info.formats, info.rates, info.channels_min, info.channels_max) == (1 << 5, 1 << 7, 2, 2)
    assert lab.ask(Params(1600, 400, 1, 5, 7).build(0))[0] == UNSUPPORTED
    assert lab.ask(PARAMS.build(0))[0] == OK


def test_files(tmp_path: Path) -> None:
    with pytest.raises(SoundError, match="nothing"):
        WavSource(tmp_path / "nothing")
    (tmp_path / "text").write_text("no sound")
    with pytest.raises(SoundError):
        WavSource(tmp_path / "text")
    with wave.open(str(tmp_path / "odd"), "wb") as file:
        file.setparams((1, 2, 12345, 0, "NONE", ""))
    with pytest.raises(SoundError, match="12345"):
        WavSource(tmp_path / "odd")
    lab = Lab(SndDevice([Stream.output(WavSink(tmp_path / "none" / "x.wav"))]))
    lab.ask(PARAMS.build(0))
    assert lab.run(0, SndCode.PCM_PREPARE) == [SndStatus.IO_ERR]
    small = WavSink(tmp_path / "small", limit=10)
    small.begin(PARAMS)
    small.take(bytes(100))
    small.end()
    with wave.open(str(tmp_path / "small")) as file:
        assert file.getnframes() == 2


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.sampled_from([*SndCode]), st.integers(0, 3), st.binary(max_size=24), st.integers(0, 600)),
                max_size=20))
def test_no_request_breaks_it(requests: list[tuple[SndCode, int, bytes, int]]) -> None:
    lab = Lab()
    lab.ask(PARAMS.build(0))
    for code, number, data, room in requests:
        status, _ = lab.ask(snd.ITEM_HDR.pack(code, number) + data, room)
        assert status in set(SndStatus)
        for queue in (TX_QUEUE, RX_QUEUE):
            lab.send(queue, [snd.XFER.pack(number) + data], [room])
            lab.driver.used(queue)
        for _ in range(min(len(lab.clock), 4)):
            lab.turn()
    lab.device.reset()


def test_linux_takes_what_is_told_of_a_control_element_to_have_96_bytes() -> None:
    lab = Lab()
    status, short = lab.ask(snd.QUERY.pack(SndCode.CTL_INFO, 0, 3, snd.CTL_INFO.size), 3 * snd.CTL_INFO.size)
    assert status == OK
    status, long = lab.ask(snd.QUERY.pack(SndCode.CTL_INFO, 0, 3, 96), 3 * 96)
    assert status == OK
    for number in range(3):
        theirs, ours = long[number * 96:][:96], short[number * 92:][:92]
        assert theirs == ours[:68] + bytes(4) + ours[68:]
