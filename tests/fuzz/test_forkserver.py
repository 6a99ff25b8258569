"""The fork-server protocol, as afl-fuzz speaks it."""

from __future__ import annotations

import contextlib
import ctypes
import os
import struct
import subprocess
import sys
import textwrap
from typing import TYPE_CHECKING

from chamber.lab.kernel.coverage import EDGES

if TYPE_CHECKING:
    from collections.abc import Iterator

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


@contextlib.contextmanager
def _segment() -> Iterator[tuple[int, memoryview]]:
    """A shared memory segment, as afl-fuzz makes it."""
    libc = ctypes.CDLL(None)
    libc.shmat.restype = ctypes.c_void_p
    ident = libc.shmget(0, EDGES, 0o1600)
    address = libc.shmat(ident, None, 0)
    libc.shmctl(ident, _REMOVE, None)
    yield ident, memoryview((ctypes.c_ubyte * EDGES).from_address(address)).cast("B")
    libc.shmdt(ctypes.c_void_p(address))


def test_inputs_go_in_and_status_and_coverage_come_out() -> None:
    with _segment() as (ident, edges), _segment() as (given_ident, given):
        _exchange({"__AFL_SHM_ID": str(ident), "__AFL_SHM_FUZZ_ID": str(given_ident)}, edges, given)


def _exchange(names: dict[str, str], edges: memoryview, given: memoryview) -> None:
    control_out, control_in = os.pipe()
    status_out, status_in = os.pipe()

    def prepare() -> None:
        os.dup2(control_out, 198)
        os.dup2(status_in, 199)

    with subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(_SERVER % EDGES)], preexec_fn=prepare,  # noqa: PLW1509
            close_fds=False, env={**os.environ, **names}) as server:
        os.close(control_out)
        os.close(status_in)
        # FS_OPT_ENABLED and FS_OPT_SHDMEM_FUZZ.
        assert struct.unpack("=I", os.read(status_out, 4)) == (0x8100_0001,)
        os.write(control_in, struct.pack("=I", 0x8100_0001))
        # A length beyond what is ever read, as whoever writes it may change its mind, is cut off.
        for use, length, status in ((5, 4, 0), (6, 4, 6), (7, 0xFFFFFFFF, 0)):
            given[:8] = struct.pack("=IBBBB", length, 0, use, 0, 0)
            os.write(control_in, bytes(4))
            assert struct.unpack("=I", os.read(status_out, 4)) == (4321,)
            assert struct.unpack("=I", os.read(status_out, 4)) == (status,)
            assert bytes(edges[:3]) == bytes((1, use, 0))
        os.close(control_in)
        assert server.wait(20) == 0
    os.close(status_out)
