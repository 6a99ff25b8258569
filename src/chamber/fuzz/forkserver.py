"""Speaks the fork-server protocol of AFL++, so that its search drives executions that no fork is needed for.

The protocol is that of ``src/afl-forkserver.c`` of AFL++ 4.04: over descriptor 199 four bytes say that the server is
there, and that it takes inputs from memory, which is answered over 198; for each four bytes that come over 198 then, it
executes an input, and answers with a process id and a wait status. Coverage goes into a System V shared memory segment
named in ``__AFL_SHM_ID``; inputs come in one named in ``__AFL_SHM_FUZZ_ID``, behind their length in four bytes.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import struct
from typing import TYPE_CHECKING, Final

from chamber.fuzz.lies import HEADER, LIMIT, RECORD, Program
from chamber.lab.kernel.coverage import EDGES

if TYPE_CHECKING:
    from collections.abc import Callable

    from chamber.fuzz.execution import Execution, Executor

__all__ = ("serve",)

_CONTROL: Final = 198
_STATUS: Final = 199
_WORD: Final = struct.Struct("=I")
_ENABLED, _INPUT_IN_MEMORY = 0x8000_0001, 0x0100_0000
"""FS_OPT_ENABLED and FS_OPT_SHDMEM_FUZZ: with a file, each input would be four system calls more, of a disk's."""
_MAX_INPUT: Final = HEADER.size + LIMIT * RECORD.size
_CRASHED: Final = signal.SIGABRT
"""A wait status: ended by this signal."""


class _Shared:
    """Memory that is shared with AFL++.

    Args:
        variable: what in the environment names it.
        size: its bytes.

    """

    def __init__(self, variable: str, size: int) -> None:
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._libc.shmat.restype = ctypes.c_void_p
        self._libc.shmat.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_int]
        self._libc.shmdt.argtypes = [ctypes.c_void_p]
        self._address = self._libc.shmat(int(os.environ[variable]), None, 0)
        if self._address in {None, ctypes.c_void_p(-1).value}:
            raise OSError(ctypes.get_errno(), f"afl-fuzz's {variable} can't be attached")
        self.view = memoryview((ctypes.c_ubyte * size).from_address(self._address)).cast("B")

    def close(self) -> None:
        self.view.release()
        self._libc.shmdt(self._address)


def serve(executor: Executor, seen: Callable[[bytes, Execution], bool]) -> None:
    """Execute what afl-fuzz wants executed, until it ends.

    Args:
        executor: executes.
        seen: gets each input and what it came to; returns whether AFL++ is to take it for a crash.

    Raises:
        TargetError: the target can't be had any more.

    """
    shared = _Shared("__AFL_SHM_ID", EDGES)
    given = _Shared("__AFL_SHM_FUZZ_ID", _WORD.size + _MAX_INPUT)
    try:
        os.write(_STATUS, _WORD.pack(_ENABLED | _INPUT_IN_MEMORY))
        os.read(_CONTROL, _WORD.size)
        while len(os.read(_CONTROL, _WORD.size)) == _WORD.size:
            length, = _WORD.unpack_from(given.view)
            data = bytes(given.view[_WORD.size:_WORD.size + length])
            os.write(_STATUS, _WORD.pack(executor.pid))
            execution = executor.run(Program.parse(data))
            crashed = seen(data, execution)
            shared.view[:] = executor.edges
            # The map of an execution without any edge would be taken for an instrumentation that does not work.
            shared.view[0] = 1
            os.write(_STATUS, _WORD.pack(_CRASHED if crashed else 0))
    except (BrokenPipeError, ConnectionResetError):
        pass  # afl-fuzz has ended
    finally:
        with contextlib.suppress(BufferError):
            shared.close()
            given.close()
