"""How long a kernel that notices takes from its start to the first probe, and to the end of its process."""

from __future__ import annotations

import contextlib
import statistics
import time

from chamber.device.catalogue import make_device
from chamber.device.pci_over_virtio import PciOverVirtio
from chamber.device.virtio_pci import VirtioPci
from chamber.lab.kernel.build import build_kernel
from chamber.lab.kernel.config import KernelOptions
from chamber.lab.kernel.source import find_source
from chamber.lab.observation import TargetError
from chamber.lab.uml_guest import GuestDied, UmlGuest
from chamber.lab.uml_kernel import UmlKernel, find_kernel
from chamber.link.eventloop import EventLoop
from chamber.wire.virtio import DeviceType

__all__ = ("start_rows",)

SERIES = ("6.12", "7.3")
DEVICES = (DeviceType.BLOCK, DeviceType.NET, DeviceType.CONSOLE, DeviceType.VSOCK, DeviceType.RNG)
BOOTS = 9


def start_rows() -> list[str]:
    """Medians for each kernel, bus and device, with KASAN, UBSAN and coverage."""
    kernels = [find_kernel(build_kernel(find_source(series), KernelOptions()).binary) for series in SERIES]
    return [_row(kernel, device, pci=pci) for kernel in kernels for pci in (False, True) for device in DEVICES]


def _row(kernel: UmlKernel, device: DeviceType, *, pci: bool) -> str:
    boots = [_boot(kernel.for_device(device), device, pci=pci) for _ in range(BOOTS)]
    probed, off = ([boot[at] for boot in boots] for at in (0, 1))
    return (f"| {kernel.release} | {'PCI, bounced' if pci else 'vhost-user'} | {device.short} | "
            f"{statistics.median(probed):.2f} s | {min(probed):.2f} to {max(probed):.2f} s | "
            f"{statistics.median(off):.2f} s |")


def _boot(kernel: UmlKernel, device: DeviceType, *, pci: bool) -> tuple[float, float]:
    """Boot a guest, have it probe a device, power it off; return seconds until it has probed, and until it is off."""
    made = make_device(device)
    served = PciOverVirtio(VirtioPci(made)) if pci else made
    options = (*kernel.options, "swiotlb=force") if pci else kernel.options
    booted: list[bool] = []
    with contextlib.closing(served), contextlib.closing(EventLoop(spin=0.0005)) as loop:
        begin = time.perf_counter()
        # While it boots nobody answers: it would look at the device only to let go of it.
        with contextlib.closing(UmlGuest(kernel, loop, {device: lambda: served if booted or not pci else None},
                                         options=options, pci=pci)) as guest:
            booted.append(True)
            answer = guest.request(10, do="connect", platform=guest.platform[device])
            if answer is None or "failed" in answer:
                raise TargetError(f"{kernel.release}: {device.short} is not probed: {answer}")
            probed = time.perf_counter()
            with contextlib.suppress(GuestDied):
                guest.request(10, do="off")
            return probed - begin, time.perf_counter() - begin
