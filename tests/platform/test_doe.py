"""A mailbox as it is used, misused, and used by two at once."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chamber.guest.doe import DoeRequester, Silence
from chamber.guest.untrusted import ENFORCING, DeviceViolation
from chamber.platform.doe import DoeMailbox
from chamber.platform.pci import PciFunction
from chamber.wire.doe import MAILBOX, PCI_SIG, DataObject, DoeControl, DoeStatus, DoeType

_SPDM = PCI_SIG, DoeType.SPDM


def _echo(payload: bytes) -> bytes | None:
    return payload[::-1] if payload else None


@dataclass
class _Box:
    """A function with a mailbox, and what is done to its registers."""

    limit: int = 64
    vector: int | None = None
    log: list[str] = field(default_factory=list)
    raised: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.function = PciFunction(vendor=0x1AF4, device=0x1042, class_code=0x018000)
        self.mailbox = DoeMailbox({_SPDM: _echo}, vector=self.vector, limit=self.limit, log=self.log.append)
        self.function.signal = self.raised.append  # type: ignore[assignment,method-assign]
        self.at = self.mailbox.add_to(self.function)

    def read(self, name: str) -> int:
        return int.from_bytes(self.function.read_config(self.at + MAILBOX[name].offset, 4), "little")

    def write(self, name: str, value: int) -> None:
        self.function.write_config(self.at + MAILBOX[name].offset, value.to_bytes(4, "little"))

    def send(self, data: bytes) -> None:
        for at in range(0, len(data), 4):
            self.write("write", int.from_bytes(data[at:at + 4], "little"))
        self.write("control", DoeControl.GO)

    def receive(self) -> bytes:
        got = b""
        while self.read("status") & DoeStatus.READY:
            got += self.read("read").to_bytes(4, "little")
            self.write("read", 0)
        return got

    def requester(self, polls: int = 1000) -> DoeRequester:
        return DoeRequester(
            lambda offset: int.from_bytes(self.function.read_config(offset, 4), "little"),
            lambda offset, value: self.function.write_config(offset, value.to_bytes(4, "little")),
            self.at, ENFORCING, polls=polls)


def test_the_capability_is_where_a_guest_looks_for_it() -> None:
    box = _Box()
    assert box.at == 0x100
    assert box.function.read_config(0x100, 4) == bytes.fromhex("2e000200")


def test_an_object_is_answered() -> None:
    box = _Box()
    box.send(DataObject(*_SPDM, b"abcdefgh").encode())
    assert box.read("status") == DoeStatus.READY
    assert box.receive() == DataObject(*_SPDM, b"hgfedcba").encode()
    assert box.read("status") == 0
    assert box.log == ["object of vendor 0x1, type 1, 8 bytes: 8 bytes"]


def test_a_guest_lists_the_protocols_and_talks() -> None:
    box = _Box()
    requester = box.requester()
    assert requester.protocols() == [(PCI_SIG, DoeType.DISCOVERY), _SPDM]
    assert requester.exchange(DataObject(*_SPDM, b"12345"), 64) == b"\0\0\0" + b"54321"


@pytest.mark.parametrize("data", [
    DataObject(*_SPDM, b"abcd").encode()[:-4], DataObject(*_SPDM, b"abcd").encode() + bytes(4), b"", bytes(4),
    bytes(65 * 4)], ids=["short", "long", "nothing", "half a header", "more than fits"])
def test_what_is_not_as_long_as_it_says_is_an_error_that_an_abort_clears(data: bytes) -> None:
    box = _Box()
    box.send(data)
    assert box.read("status") == DoeStatus.ERROR
    box.send(DataObject(*_SPDM, b"abcd").encode())
    assert box.read("status") == DoeStatus.ERROR, "until it is cleared"
    box.write("control", DoeControl.ABORT)
    assert box.read("status") == 0
    assert box.requester().exchange(DataObject(*_SPDM, b"abcd"), 4) == b"dcba"


def test_an_object_that_nobody_answers_is_discarded() -> None:
    box = _Box()
    for unknown in (DataObject(PCI_SIG, DoeType.SECURED_SPDM, b"abcd"), DataObject(0x1AF4, 1, b"abcd"),
                    DataObject(*_SPDM, b""), DataObject(PCI_SIG, DoeType.DISCOVERY, bytes(8))):
        box.send(unknown.encode())
        assert box.read("status") == 0
    with pytest.raises(Silence, match="no answer"):
        box.requester(polls=3).exchange(DataObject(0x1AF4, 1, b"abcd"), 4)
    assert box.requester().exchange(DataObject(*_SPDM, b"abcd"), 4) == b"dcba"


def test_an_object_while_an_answer_waits_is_an_error() -> None:
    box = _Box()
    for _ in range(2):
        box.send(DataObject(*_SPDM, b"abcd").encode())
    assert box.read("status") == DoeStatus.ERROR
    assert box.read("read") == 0, "and the answer is gone"


def test_more_is_read_than_there_is() -> None:
    box = _Box()
    box.write("read", 0)
    assert box.read("status") == DoeStatus.ERROR


def test_a_part_of_a_register_is_nothing() -> None:
    box = _Box()
    box.send(DataObject(*_SPDM, b"abcd").encode()[:8])  # an error
    box.function.write_config(box.at + MAILBOX["control"].offset, b"\1")
    assert box.read("status") == DoeStatus.ERROR


def test_an_interrupt_says_that_an_answer_is_there() -> None:
    box = _Box(vector=5)
    assert box.read("capabilities") == 1 | 5 << 1
    box.write("control", DoeControl.INTERRUPT_ENABLE)
    data = DataObject(*_SPDM, b"abcd").encode()
    for at in range(0, len(data), 4):
        box.write("write", int.from_bytes(data[at:at + 4], "little"))
    box.write("control", DoeControl.GO | DoeControl.INTERRUPT_ENABLE)
    assert box.raised == [5]
    assert box.read("status") == DoeStatus.READY | DoeStatus.INTERRUPT
    box.write("status", DoeStatus.INTERRUPT)
    assert box.read("status") == DoeStatus.READY


def test_a_reset_of_the_function_leaves_nothing() -> None:
    box = _Box(vector=1)
    box.write("control", DoeControl.INTERRUPT_ENABLE)
    box.send(DataObject(*_SPDM, b"abcd").encode())
    box.function.reset()
    assert (box.read("status"), box.read("control"), box.read("read")) == (0, 0, 0)


def test_a_guest_clears_what_somebody_else_left() -> None:
    box = _Box()
    box.send(DataObject(*_SPDM, b"left").encode())
    assert box.requester(polls=3).exchange(DataObject(*_SPDM, b"abcd"), 4) == b"dcba"


_WRITES = st.tuples(st.sampled_from(["control", "status", "write", "read"]),
                    st.one_of(st.integers(0, 8), st.sampled_from([1 << 31, 1 << 31 | 2]), st.integers(0, 2**32 - 1)))


@given(st.lists(_WRITES, max_size=60))
def test_whatever_is_written_an_abort_brings_a_mailbox_that_works(writes: list[tuple[str, int]]) -> None:
    box = _Box(limit=16, vector=0)
    for name, value in writes:
        box.write(name, value)
        status = box.read("status")
        assert not status & ~(DoeStatus.READY | DoeStatus.ERROR | DoeStatus.INTERRUPT)
        assert not (status & DoeStatus.READY and status & DoeStatus.ERROR)
    box.write("control", DoeControl.ABORT)
    assert box.read("status") == 0
    assert box.requester().exchange(DataObject(*_SPDM, b"abcd"), 4) == b"dcba"


@given(st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=30), st.sampled_from([0, 1 << 31, 4, 1]))
def test_whatever_a_hypervisor_answers_a_guest_ends(words: list[int], status: int) -> None:
    reads = [0]

    def read(offset: int) -> int:
        reads[0] += 1
        if offset == MAILBOX["status"].offset:
            return status if reads[0] > 1 else 0
        return words[reads[0] % len(words)]

    requester = DoeRequester(read, lambda _offset, _value: None, 0, ENFORCING, polls=10)
    for ask in (lambda: len(requester.exchange(DataObject(*_SPDM, b"abcd"), 64)) <= 64, requester.protocols):
        try:
            assert ask()
        except (Silence, DeviceViolation):
            assert reads[0] < 400
        reads[0] = 0
