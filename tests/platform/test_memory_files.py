"""Shared pages in files of their own: all that a host in another process is given."""

from __future__ import annotations

import contextlib
import mmap
import os
from typing import TYPE_CHECKING

import pytest

from chamber.platform.memory import PAGE, GuestMemory

if TYPE_CHECKING:
    from collections.abc import Iterator

PAGES = 8


@pytest.fixture
def memory() -> Iterator[GuestMemory]:
    memory = GuestMemory(PAGES * PAGE, private=True)
    memory.share(2 * PAGE, 3 * PAGE)
    yield memory
    memory.close()


@contextlib.contextmanager
def mapped(fd: int) -> Iterator[mmap.mmap]:
    """A file as the host maps it; the descriptor is closed."""
    try:
        with mmap.mmap(fd, 0) as view:
            yield view
    finally:
        os.close(fd)


def test_guest_and_host_see_each_other_s_writes(memory: GuestMemory) -> None:
    memory.write(2 * PAGE, b"from before")
    view = memory.raw_view(4 * PAGE, 4)
    with mapped(memory.move_to_file(2 * PAGE, 3 * PAGE)) as host:
        assert host[:11] == b"from before"
        memory.write(3 * PAGE, b"guest")
        assert host[PAGE:PAGE + 5] == b"guest"
        host[2 * PAGE:2 * PAGE + 4] = b"host"
        assert memory.read(4 * PAGE, 4) == b"host"
        assert bytes(view) == b"host"  # a view from before looks at the same
    view.release()


def test_the_file_holds_shared_pages_alone(memory: GuestMemory) -> None:
    for page in (0, 1, 5, 6, 7):
        memory.write(page * PAGE, b"secret" * 600)
    with mapped(memory.move_to_file(2 * PAGE, 3 * PAGE)) as host:
        assert len(host) == 3 * PAGE
        assert b"secret" not in host[:]
        host[:] = b"\xff" * len(host)
        for page in (0, 1, 5, 6, 7):
            assert memory.read(page * PAGE, 3600) == b"secret" * 600


@pytest.mark.parametrize("size", [0, PAGE, 100 * PAGE])
def test_the_host_can_t_change_the_file_s_size(memory: GuestMemory, size: int) -> None:
    """Cut short, it would end the guest by SIGBUS."""
    fd = memory.move_to_file(2 * PAGE, 3 * PAGE)
    with pytest.raises(PermissionError):
        os.ftruncate(fd, size)
    os.close(fd)
    assert memory.read(2 * PAGE, 3 * PAGE) == bytes(3 * PAGE)


def test_pages_that_move_again_are_lost_to_who_had_them(memory: GuestMemory) -> None:
    with mapped(memory.move_to_file(2 * PAGE, PAGE)) as first, mapped(memory.move_to_file(2 * PAGE, PAGE)) as second:
        memory.write(2 * PAGE, b"new")
        assert second[:3] == b"new"
        assert first[:3] == bytes(3)
        first[:3] = b"old"
        assert memory.read(2 * PAGE, 3) == b"new"


@pytest.mark.parametrize(("address", "length"), [
    (PAGE, PAGE), (2 * PAGE, 4 * PAGE), (2 * PAGE + 1, PAGE), (2 * PAGE, 100), (2 * PAGE, 0), (PAGES * PAGE, PAGE)])
def test_private_pages_are_never_moved(memory: GuestMemory, address: int, length: int) -> None:
    with pytest.raises(ValueError, match="shared pages"):
        memory.move_to_file(address, length)


def test_pages_in_a_file_don_t_become_private_in_name_alone(memory: GuestMemory) -> None:
    os.close(memory.move_to_file(3 * PAGE, PAGE))
    with pytest.raises(ValueError, match="stay shared"):
        memory.unshare(2 * PAGE, 2 * PAGE)
    memory.unshare(2 * PAGE, PAGE)
    assert memory.shared_ranges() == [(3 * PAGE, 2 * PAGE)]
