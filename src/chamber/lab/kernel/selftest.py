"""Whether the sanitizers of a kernel are really in it, and awake."""

from __future__ import annotations

import os
import signal
import subprocess
import tempfile
from typing import TYPE_CHECKING, Final

from chamber.lab.observation import TargetError

if TYPE_CHECKING:
    from pathlib import Path

    from chamber.lab.kernel.config import KernelOptions

__all__ = ("check_sanitizers",)

_BOOT_SECONDS: Final = 60
_DONE: Final = "chamber: selftest done"
_SIGNS: Final = {
    "kasan": "BUG: KASAN: slab-out-of-bounds in chamber_selftest",
    "ubsan": "UBSAN: array-index-out-of-bounds in",
}


def check_sanitizers(binary: Path, options: KernelOptions) -> None:
    """Boot a kernel that breaks a rule of each sanitizer on purpose, up to where it finds no root.

    Raises:
        TargetError: it does not get there, or a sanitizer that was asked for says nothing.

    """
    with tempfile.TemporaryDirectory(prefix="chamber-") as folder, subprocess.Popen(
            [binary, "mem=192M", f"uml_dir={folder}/", "con=null", "con0=null,fd:1", "chamber.selftest"],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
            cwd=folder, env={**os.environ, "TMPDIR": "/dev/shm"}) as process:  # noqa: S108
        try:
            text = process.communicate(timeout=_BOOT_SECONDS)[0].decode(errors="replace")
        except subprocess.TimeoutExpired:
            raise TargetError("the kernel was built, but does not boot") from None
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
    if _DONE not in text:
        lines = [line for line in text.splitlines() if "panic" in line] or text.splitlines()[-1:] or ["no word"]
        raise TargetError(f"the kernel was built, but does not boot: {lines[0]}")
    for option in options.words():
        if option in _SIGNS and _SIGNS[option] not in text:
            raise TargetError(f"{option} was asked for, is in the configuration, and sees nothing")
