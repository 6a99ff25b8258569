"""The fork-server protocol, as afl-fuzz speaks it."""

from __future__ import annotations

import ctypes
import os
import struct
import subprocess
import sys
import textwrap
from typing import TYPE_CHECKING

import pytest

from chamber.lab.kernel.coverage import EDGES

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_SERVER = """
    from chamber.fuzz import forkserver
    from chamber.fuzz.execution import Execution

    class Executor:
        pid = 4321
        def run(self, program):
            self.edges = memoryview(bytes([9, program.use]) + bytes(%d - 2))
            return Execution(use=str(program.use))

    forkserver.serve(Executor(), lambda data, execution: execution.use == "6")
"""
_REMOVE = 0


@pytest.fixture
def segment() -> Iterator[tuple[int, memoryview]]:
    """A shared memory segment, as afl-fuzz makes it."""
    libc = ctypes.CDLL(None)
    libc.shmat.restype = ctypes.c_void_p
    ident = libc.shmget(0, EDGES, 0o1600)
    address = libc.shmat(ident, None, 0)
    libc.shmctl(ident, _REMOVE, None)
    yield ident, memoryview((ctypes.c_ubyte * EDGES).from_address(address)).cast("B")
    libc.shmdt(ctypes.c_void_p(address))


def test_inputs_go_in_and_status_and_coverage_come_out(tmp_path: Path, segment: tuple[int, memoryview]) -> None:
    ident, edges = segment
    data = tmp_path / "input"
    data.write_bytes(b"")
    control_out, control_in = os.pipe()
    status_out, status_in = os.pipe()

    def prepare() -> None:
        os.dup2(control_out, 198)
        os.dup2(status_in, 199)

    with data.open("rb") as stream, subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(_SERVER % EDGES)], stdin=stream, preexec_fn=prepare,  # noqa: PLW1509
            close_fds=False, env={**os.environ, "__AFL_SHM_ID": str(ident)}) as server:
        os.close(control_out)
        os.close(status_in)
        assert os.read(status_out, 4) == bytes(4)
        for use, status in ((5, 0), (6, 6), (7, 0)):
            data.write_bytes(bytes((0, use, 0, 0)))
            os.write(control_in, bytes(4))
            assert struct.unpack("=I", os.read(status_out, 4)) == (4321,)
            assert struct.unpack("=I", os.read(status_out, 4)) == (status,)
            assert bytes(edges[:3]) == bytes((1, use, 0))
        os.close(control_in)
        assert server.wait(20) == 0
    os.close(status_out)
