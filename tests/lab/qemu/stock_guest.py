"""The installed kernel in the installed QEMU, for tests; where there is none they are skipped."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from chamber.guest.policy_file import parse_policy
from chamber.lab.linux_filter.emit import KernelFacts, write_filter
from chamber.lab.observation import TargetError
from chamber.lab.qemu.guest import QemuGuest
from chamber.lab.qemu.install import find_accelerator, find_qemu, find_qemu_kernel
from chamber.lab.uml_program import run_program

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from chamber.device.base import Device
    from chamber.link.eventloop import EventLoop
    from chamber.wire.virtio import DeviceType

__all__ = ("sh", "start_filter", "stock_guest")


def stock_guest(loop: EventLoop, kinds: Sequence[DeviceType], provide: Callable[[DeviceType], Device], *,
                options: tuple[str, ...] = (), **more: Any) -> QemuGuest:
    """Boot a guest with slots for these devices, and further words for its kernel."""
    try:
        program, kernel = find_qemu(), find_qemu_kernel(None)
    except TargetError as error:
        pytest.skip(str(error))
    return QemuGuest(program, kernel, loop, kinds, provide, options=(*kernel.options, *options),
                     accelerator=find_accelerator(program, kernel), **more)


def sh(guest: QemuGuest, command: str, seconds: float = 180.0) -> str:
    """Return what a command printed, which has to end well."""
    result = run_program(guest, "sh", "-c", command, seconds=seconds)
    assert result.status == 0, f"{command}: {result.output}"
    return result.output


def start_filter(guest: QemuGuest, policy: str, folder: Path) -> None:
    """Put what `chamber filter emit` writes for a policy into /filter, and start it."""
    write_filter(parse_policy(policy, "test"), KernelFacts(), folder)
    sh(guest, "mkdir -p /filter")
    for name in ("chamber-filter", "policy.table"):
        text = (folder / name).read_text()
        sh(guest, f"cat >/filter/{name} <<'END OF FILE'\n{text}END OF FILE\nchmod 755 /filter/{name}")
    sh(guest, "/filter/chamber-filter start")
