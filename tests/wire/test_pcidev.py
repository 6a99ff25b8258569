"""Messages of the PCI bus over virtio: any bytes are a command or an error."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chamber.wire.errors import WireError
from chamber.wire.pcidev import MAX_ACCESS, Message, Operation


@pytest.mark.parametrize("message", [
    Message(Operation.CFG_READ, 0, 4, 0x10), Message(Operation.MMIO_READ, 2, 8, 0x1000),
    Message(Operation.CFG_WRITE, 0, 2, 4, b"\6\0"), Message(Operation.MMIO_WRITE, 1, 4, 8, b"abcd"),
    Message(Operation.MMIO_MEMSET, 1, 64, 8, b"\xff")])
def test_a_command_is_read_back(message: Message) -> None:
    assert Message.parse_command(message.pack()) == message
    assert message.reads == (not message.data)


def test_the_header_is_in_the_order_of_the_kernels_own() -> None:
    # struct virtio_pcidev_msg: u8 op, u8 bar, u16 reserved, u32 size, u64 addr (include/uapi/linux/virtio_pcidev.h).
    assert Message(Operation.MSI, 0, 4, 0xA0000, b"\1\0\0\0").pack() == struct.pack("=BBHIQI", 7, 0, 0, 4, 0xA0000, 1)


@pytest.mark.parametrize(("data", "why"), [
    (b"", "header"), (Message(Operation.MSI).pack(), "says nothing else"), (bytes(16), "says nothing else"),
    (Message(Operation.CFG_READ, size=MAX_ACCESS + 1).pack(), "at most"),
    (Message(Operation.MMIO_WRITE, size=8, data=b"\0" * 7).pack(), "brings its bytes"),
    (Message(Operation.MMIO_MEMSET, size=8).pack(), "brings its bytes")])
def test_what_a_guest_cannot_say_is_refused(data: bytes, why: str) -> None:
    with pytest.raises(WireError, match=why):
        Message.parse_command(data)


@given(st.binary(max_size=64))
def test_any_bytes_are_a_command_or_an_error(data: bytes) -> None:
    try:
        message = Message.parse_command(data)
    except WireError:
        return
    assert message.size <= MAX_ACCESS
    assert len(message.data) <= message.size or message.operation is Operation.MMIO_MEMSET
