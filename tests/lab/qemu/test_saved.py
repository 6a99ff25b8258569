"""A guest that was saved after its boot: those that begin from it are like it, and keep to themselves."""

from __future__ import annotations

import os
from contextlib import ExitStack, closing
from typing import TYPE_CHECKING

import pytest

from chamber.device.catalogue import make_device
from chamber.lab.observation import TargetError
from chamber.lab.qemu.saved import SavedGuest, copy_memory, guest_memory
from chamber.lab.uml_program import connect, disconnect, run_program
from chamber.link.eventloop import EventLoop
from chamber.wire.virtio import DeviceType
from tests.lab.qemu.stock_guest import stock_guest

if TYPE_CHECKING:
    from chamber.lab.qemu.guest import QemuGuest

MIB = 1 << 20


def test_what_was_touched_of_memory_is_copied_and_nothing_else() -> None:
    size = 64 * MIB
    pieces = {0: b"first", 5 * MIB + 123: b"x" * 70_000, size - 4: b"last"}
    with ExitStack() as stack:
        source, target = guest_memory(size), guest_memory(size)
        for memory in (source, target):
            stack.callback(os.close, memory)
        for at, data in pieces.items():
            os.pwrite(source, data, at)
        copy_memory(source, target)
        for at, data in pieces.items():
            assert os.pread(target, len(data), at) == data
        assert os.pread(target, size, 0) == os.pread(source, size, 0)
        assert os.fstat(target).st_blocks * 512 < MIB


def test_memory_that_nobody_touched_is_no_more_than_that() -> None:
    with ExitStack() as stack:
        source, target = guest_memory(MIB), guest_memory(MIB)
        for memory in (source, target):
            stack.callback(os.close, memory)
        copy_memory(source, target)
        assert os.fstat(target).st_blocks == 0
        assert os.fstat(target).st_size == MIB


def _start(loop: EventLoop, saved: SavedGuest | None = None) -> QemuGuest:
    return stock_guest(loop, (DeviceType.BLOCK, DeviceType.RNG), make_device, saved=saved)


def _says(guest: QemuGuest, command: str) -> str:
    return run_program(guest, "sh", "-c", command).output.strip()


@pytest.mark.qemu
@pytest.mark.timeout(300)
def test_a_guest_goes_on_where_another_was_saved() -> None:
    """Each has what was there then, and a device; none has what came later, in it or in another."""
    with ExitStack() as stack:
        loop = stack.enter_context(closing(EventLoop()))
        first = stack.enter_context(closing(_start(loop)))
        at_once = stack.enter_context(closing(first.save()))
        booted = _says(first, "echo before >/tmp/word; cat /proc/sys/kernel/random/boot_id")
        saved = stack.enter_context(closing(first.save()))
        assert _says(first, "cat /tmp/word; echo after >/tmp/word; cat /proc/sys/kernel/random/boot_id") == (
            f"before\n{booted}"), "the one that was saved goes on"
        pool = first.bounce_pool()
        for turn in range(2):
            with closing(_start(loop, saved)) as guest:
                assert guest.pid != first.pid
                assert _says(guest, "cat /tmp/word; cat /proc/sys/kernel/random/boot_id") == f"before\n{booted}"
                assert guest.bounce_pool() == pool
                connect(guest, DeviceType.BLOCK)
                assert _says(guest, f"echo {turn} >/tmp/word; dd if=/dev/vda bs=512 count=8 2>/dev/null | wc -c") == (
                    "4096")
                disconnect(guest, DeviceType.BLOCK)
        assert _says(first, "cat /tmp/word") == "after"
        with closing(_start(loop, at_once)) as guest:
            assert _says(guest, "cat /tmp/word 2>/dev/null; echo read") == "read"


@pytest.mark.qemu
@pytest.mark.timeout(300)
def test_what_qemu_did_not_write_is_said_in_one_line() -> None:
    with closing(EventLoop()) as loop, closing(SavedGuest(guest_memory(MIB), b"no state of a machine")) as saved, \
            pytest.raises(TargetError, match="did not boot"):
        _start(loop, saved)
