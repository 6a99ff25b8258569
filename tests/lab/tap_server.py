"""A network device that is served from a process, and a network namespace, of its own."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

TAP: Final = "chamber0"
_END_SECONDS: Final = 20


@contextlib.contextmanager
def serving_net(path: Path, *options: str) -> Iterator[int]:
    """Serve it; give the process's id. The namespace has no name, and goes with the process."""
    command = ("unshare", "--net", "--", sys.executable, "-m", "chamber", "serve", "net", "--socket", str(path),
               "--tap", TAP, *options)
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stderr is not None
            assert "serving net" in process.stderr.readline()
            yield process.pid
        finally:
            process.send_signal(signal.SIGINT)
            try:
                process.wait(_END_SECONDS)
            finally:
                process.kill()
    assert process.returncode == 0
