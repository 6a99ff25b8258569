"""The FUSE client: an honest server serves it, and no reply whatever makes it misuse memory or hang."""

from __future__ import annotations

import errno
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chamber.device.fs import FsDevice
from chamber.device.hooks import Hooks
from chamber.device.sample_content import BIG, MANY
from chamber.guest.driver import DeviceTimeout, Refused
from chamber.guest.drivers.fs import FsDriver, FsError
from chamber.guest.machine import GuestMachine
from chamber.guest.profile import PROFILES, UNTRUSTED
from chamber.guest.untrusted import DeviceViolation
from chamber.lab.model_transport import ModelTransport
from chamber.lab.model_use.fs import STIMULI
from chamber.wire import fuse
from chamber.wire.fuse import OUT_HEADER, Opcode

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from chamber.device.chain import Chain
    from chamber.device.queue import DeviceQueue


class Liar(Hooks):
    """Answers requests of one operation otherwise, once the driver has mounted."""

    def __init__(self) -> None:
        self.lie: Callable[[bytes], bytes] | None = None
        self.operation = 0

    def response(self, queue: DeviceQueue, chain: Chain, data: bytes) -> bytes:
        asked = int.from_bytes(chain.read(4, 4), "little")
        return data if self.lie is None or asked != self.operation else self.lie(data)


@contextmanager
def mounted(liar: Liar | None = None, profile: str = "hardened") -> Iterator[FsDriver]:
    machine = GuestMachine(PROFILES[profile], 1)
    device = FsDevice(hooks=liar)
    driver = FsDriver(machine, ModelTransport(machine, device))
    try:
        driver.probe()
        driver.mount()
        yield driver
        driver.remove()
        machine.settle(1)
        machine.heap.check_all()
        assert not machine.heap.reports
        assert not device.violations
    finally:
        device.close()
        machine.close()


@pytest.mark.parametrize("profile", UNTRUSTED)
@pytest.mark.parametrize("stimulus", STIMULI)
def test_stimuli_leave_nothing(profile: str, stimulus: str) -> None:
    machine = GuestMachine(PROFILES[profile], 1)
    device = FsDevice()
    driver = FsDriver(machine, ModelTransport(machine, device))
    driver.probe()
    STIMULI[stimulus](driver, machine, device.host_action)
    assert not driver.nodes
    driver.remove()
    machine.settle(1)
    machine.heap.check_all()
    assert not machine.heap.reports
    assert not device.server._nodes
    device.close()
    machine.close()


def test_tag_of_the_device() -> None:
    with mounted() as driver:
        assert driver.tag == "chamber"


def test_whole_files_and_lists() -> None:
    with mounted() as driver:
        assert driver.read_file("big") == BIG
        assert sorted(driver.listdir("many")) == sorted(MANY)
        with pytest.raises(FsError) as missing:
            driver.read_file("nothing")
        assert missing.value.number == errno.ENOENT
        driver.write_file("dir/new", BIG * 3)
        assert driver.read_file("dir/new") == BIG * 3
        with pytest.raises(FsError) as full:
            driver.rmdir("dir")
        assert full.value.number == errno.ENOTEMPTY


HEAD = OUT_HEADER.size


def _put(at: int, value: int, width: int) -> Callable[[bytes], bytes]:
    return lambda data: data[:HEAD + at] + value.to_bytes(width, "little") + data[HEAD + at + width:]


def _sized(data: bytes) -> bytes:
    return OUT_HEADER.pack(len(data), 0, OUT_HEADER.unpack_from(data)[2]) + data[HEAD:]


@pytest.mark.parametrize(("operation", "lie", "rule"), [
    (Opcode.LOOKUP, lambda d: OUT_HEADER.pack(len(d) - 1, 0, 2) + d[HEAD:], "a reply is"),
    (Opcode.LOOKUP, lambda d: _sized(d[:-1]), "a reply has its operation's length"),
    (Opcode.LOOKUP, lambda d: d[:8] + bytes(8) + d[HEAD:], "a reply is to the request that was sent"),
    (Opcode.LOOKUP, lambda d: OUT_HEADER.pack(len(d), 5, OUT_HEADER.unpack_from(d)[2]) + d[HEAD:], "negative errno"),
    (Opcode.LOOKUP, lambda d: OUT_HEADER.pack(len(d), -2, OUT_HEADER.unpack_from(d)[2]) + d[HEAD:], "no body"),
    (Opcode.LOOKUP, _put(0, 1, 8), "a file has a number of its own"),
    (Opcode.LOOKUP, _put(fuse.ENTRY.size + 60, 0o644, 4), "a mode has a type of file"),
    (Opcode.GETATTR, _put(fuse.ATTR_OUT.size + 60, 0o040755, 4), "a file stays of its kind"),
    (Opcode.GETATTR, _put(fuse.ATTR_OUT.size + 8, 1 << 63, 8), "a size is no negative number"),
    (Opcode.READ, lambda d: _sized(d[:-1]), "a read is short at the end of a file alone"),
    (Opcode.RELEASE, lambda d: _sized(d + b"x"), "a reply"),
])
def test_lies_are_refused(operation: Opcode, lie: Callable[[bytes], bytes], rule: str) -> None:
    liar = Liar()
    with mounted(liar) as driver:
        liar.operation, liar.lie = operation, lie
        with pytest.raises(DeviceViolation, match=rule):
            driver.read_file("hello")


def test_a_generation_that_changes_is_another_file() -> None:
    liar = Liar()
    with mounted(liar) as driver:
        driver.lookup("hello")
        liar.operation, liar.lie = Opcode.LOOKUP, _put(8, 3, 8)
        with pytest.raises(DeviceViolation, match="one file while it is held"):
            driver.lookup("hello")


@settings(max_examples=120, deadline=None)
@given(st.sampled_from([o for o in Opcode if o not in fuse.NO_REPLY]), st.binary(max_size=300), st.booleans(),
       st.booleans())
def test_no_reply_breaks_the_hardened_client(operation: Opcode, body: bytes, framed: bool, mount: bool) -> None:
    liar = Liar()

    def lie(data: bytes) -> bytes:
        return _sized(data[:HEAD] + body) if framed else body

    with mounted(liar) as driver:
        liar.operation, liar.lie = operation, lie
        for call in (driver.mount if mount else driver.statfs, lambda: driver.read_file("hello"),
                     lambda: driver.listdir("many"), lambda: driver.readlink("link"),
                     lambda: driver.write_file("new", b"content"), lambda: driver.getxattr("hello", "user.chamber"),
                     lambda: driver.setattr("hello", size=3), lambda: driver.unlink("notes"), driver.unmount):
            with suppress(DeviceViolation, Refused, DeviceTimeout):
                call()
