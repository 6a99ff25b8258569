"""The vhost-user codec: every message there and back, and any bytes at all."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chamber.wire.errors import WireError
from chamber.wire.vhost_user import (
    BACKEND_MESSAGES,
    FRONTEND_MESSAGES,
    HEADER_SIZE,
    MAX_PAYLOAD,
    U64,
    BackendRequest,
    Bytes,
    ConfigSpace,
    DeviceState,
    Empty,
    FrameReader,
    FrontendRequest,
    Header,
    Inflight,
    Iotlb,
    Log,
    MemoryRegion,
    MemoryTable,
    Mmap,
    Payload,
    ShmemConfig,
    SingleRegion,
    Uuid,
    VringAddress,
    VringArea,
    VringState,
    encode,
)

REGION = MemoryRegion(0x1000, 0x2000, 0x7F00_0000_0000, 0)

SAMPLES: list[tuple[Payload, int]] = [
    (Empty(), 0),
    (Bytes(b"session"), 7),
    (U64(1 << 63), 8),
    (VringState(3, 256), 8),
    (VringAddress(1, 1, 0x1000, 0x3000, 0x2000, 0x4000), 40),
    (MemoryTable((REGION, REGION)), 72),
    (SingleRegion(REGION), 40),
    (Log(4096, 12), 16),
    (Iotlb(1, 2, 3, 3, 2), 32),
    (ConfigSpace(4, 1, b"abc"), 15),
    (VringArea(1, 4096, 0), 24),
    (Inflight(4096, 0, 2, 256), 24),
    (Uuid(bytes(range(16))), 16),
    (DeviceState(1, 0), 8),
    (Mmap(1, 2, 3, 4, 1), 40),
    (ShmemConfig((0, 4096)), 2056),
]
PAYLOADS = sorted({type(sample) for sample, _ in SAMPLES}, key=lambda kind: kind.__name__)


@pytest.mark.parametrize(("payload", "size"), SAMPLES, ids=lambda value: type(value).__name__)
def test_a_payload_survives_packing_and_has_the_size_of_the_specification(payload: Payload, size: int) -> None:
    data = payload.pack()
    assert len(data) == size
    assert type(payload).unpack(data) == payload


def test_vring_addresses_come_as_descriptors_used_available_log() -> None:
    data = VringAddress(0, 0, desc=1, used=2, avail=3, log=4).pack()
    assert [int.from_bytes(data[i:i + 8], "little") for i in range(8, 40, 8)] == [1, 2, 3, 4]


def test_every_message_number_has_a_type() -> None:
    assert set(FRONTEND_MESSAGES) == set(FrontendRequest)
    assert set(BACKEND_MESSAGES) == set(BackendRequest)
    assert sorted(FrontendRequest) == list(range(1, 45))
    assert sorted(BackendRequest) == list(range(1, 11))


def test_user_mode_linux_sends_room_for_two_regions_and_names_one() -> None:
    table = MemoryTable((REGION,)).pack() + bytes(32)
    assert len(table) == 72
    assert MemoryTable.unpack(table) == MemoryTable((REGION,))


@pytest.mark.parametrize("size", [20, 24])
def test_inflight_comes_with_and_without_padding(size: int) -> None:
    assert Inflight.unpack(Inflight(1, 2, 3, 4).pack()[:size]) == Inflight(1, 2, 3, 4)


@pytest.mark.parametrize("region", [(0, 0, 0, 0), (1 << 63, 1 << 63 | 1, 0, 0), (0, 2, (1 << 64) - 1, 0)])
def test_a_region_is_neither_empty_nor_wraps_around(region: tuple[int, int, int, int]) -> None:
    with pytest.raises(WireError, match="memory region"):
        MemoryRegion(*region)


@given(st.sampled_from(PAYLOADS), st.binary(max_size=2100))
def test_any_bytes_give_a_payload_or_a_typed_error(kind: type[Payload], data: bytes) -> None:
    with contextlib.suppress(WireError):
        payload = kind.unpack(data)
        assert kind.unpack(payload.pack()) == payload


@given(st.binary(max_size=200), st.lists(st.integers(1, 40), max_size=40))
def test_any_stream_gives_frames_or_a_typed_error(data: bytes, cuts: list[int]) -> None:
    reader = FrameReader()
    position = 0
    with contextlib.suppress(WireError):
        for cut in cuts:
            take = min(cut, reader.wanted)
            assert 0 < take <= MAX_PAYLOAD
            frame = reader.feed(data[position:position + take])
            position += take
            if frame is not None:
                assert frame[0].size == len(frame[1])
            if position >= len(data):
                break


@given(st.lists(st.sampled_from(SAMPLES), min_size=1, max_size=5), st.randoms(use_true_random=False))
def test_messages_come_out_however_the_stream_is_cut(samples: list[tuple[Payload, int]], dice: object) -> None:
    stream = b"".join(encode(1, payload) for payload, _ in samples)
    reader = FrameReader()
    bodies = []
    while stream:
        take = min(reader.wanted, 1 + dice.randrange(50))  # type: ignore[attr-defined]
        frame = reader.feed(stream[:take])
        stream = stream[take:]
        if frame:
            bodies.append(frame[1])
    assert bodies == [payload.pack() for payload, _ in samples]


def test_a_header_of_another_version_or_an_endless_payload_is_refused() -> None:
    with pytest.raises(WireError, match="version"):
        Header.unpack(b"\1\0\0\0" + b"\2\0\0\0" + b"\0\0\0\0")
    with pytest.raises(WireError, match="at most"):
        Header.unpack(b"\1\0\0\0" + b"\1\0\0\0" + b"\xff\xff\xff\xff")
    assert len(encode(1)) == HEADER_SIZE
