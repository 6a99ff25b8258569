"""Buffers have names."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chamber.device.catalogue import TYPES, make_device
from chamber.fuzz.words import message_name
from chamber.wire.virtio import DeviceType


@pytest.mark.parametrize(("device", "role", "request_", "answer", "name"), [
    (DeviceType.CONSOLE, "control", b"", b"\1\0\0\0\7\0\1\0name", "a PORT_NAME message of port 1"),
    (DeviceType.BLOCK, "requests", bytes(8) + b"\5" + bytes(7), b"", "request IN of sector 5"),
    (DeviceType.VSOCK, "rx", b"", bytes(30) + b"\2\0" + bytes(12), "a RESPONSE packet"),
    (DeviceType.TRANSPORT_9P, "requests", b"", b"\7\0\0\0\x65\0\0", "RVERSION"),
    (DeviceType.FS, "requests", b"\x28\0\0\0\x1a\0\0\0" + bytes(32), b"", "the reply to INIT"),
    (DeviceType.SND, "control", b"\0\1\0\0", b"", "the reply to PCM_INFO"),
    (DeviceType.SCSI, "requests", bytes(19) + b"\x12", b"", "the answer to INQUIRY"),
    (DeviceType.NET, "rx", b"", bytes(60), "a frame of 60 bytes with its header"),
    (DeviceType.RNG, "requests", b"", b"123", ""),
])
def test_names(device: DeviceType, role: str, request_: bytes, answer: bytes, name: str) -> None:
    assert message_name(device, role, request_, answer) == name


@pytest.mark.parametrize("device", TYPES, ids=lambda device: device.short)
@given(st.binary(max_size=64), st.binary(max_size=64))
def test_any_bytes_have_a_name_or_none(device: DeviceType, request_: bytes, answer: bytes) -> None:
    made = make_device(device)
    try:
        for role in {made.queue_role(queue.index) for queue in made.queues}:
            assert isinstance(message_name(device, role, request_, answer), str)
    finally:
        made.close()
