"""Runs ordinary programs of the host's file system in the guest."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ("run",)

_PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_OUTPUT: Final = 6 << 10
"""Bytes of output to keep: the last ones, where programs say what went wrong. User-Mode Linux stops writing to its
terminal for good once its own buffer and the host's are full, which takes less than 20 KiB."""


def run(arguments: Sequence[str], seconds: float) -> dict[str, object]:
    """Run a program to its end, or until its time is up; return its status and output.

    The status is the negated signal where a signal ended it, and None where its time was up. Standard error is part of
    the output.

    Raises:
        OSError: it cannot be started.

    """
    begin = time.monotonic()
    process = subprocess.Popen(arguments, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                               env={"PATH": _PATH, "LC_ALL": "C.UTF-8", **os.environ}, start_new_session=True)
    status: int | None
    try:
        output, _ = process.communicate(timeout=seconds)
        status = process.returncode
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        output, _ = process.communicate()
        status = None
    return {"status": status, "output": output[-_OUTPUT:].decode("ascii", "replace").replace("\ufffd", "?"),
            "seconds": time.monotonic() - begin}
