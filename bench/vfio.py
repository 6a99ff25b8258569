"""Devices over vfio-user beside QEMU's own, in one guest: the same kernel, driver, bounce pool and processor."""

from __future__ import annotations

import contextlib
import re
import statistics
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from chamber.device.blk import BlkDevice
from chamber.device.catalogue import make_device
from chamber.device.disk import FileDisk
from chamber.lab.observation import TargetError
from chamber.lab.qemu.guest import QemuGuest
from chamber.lab.qemu.install import find_accelerator, find_qemu, find_qemu_kernel
from chamber.lab.uml_program import connect, run_program
from chamber.link.eventloop import EventLoop
from chamber.wire.virtio import DeviceType

if TYPE_CHECKING:
    from chamber.device.base import Device

__all__ = ("vfio_rows",)

SIZE = 64 << 20
RUNS = 3
_MAC = "52:54:00:71:65:6d"


def vfio_rows() -> list[str]:
    """Reads and echo requests a second of each, turn about."""
    program, kernel = find_qemu(), find_qemu_kernel()
    with tempfile.TemporaryDirectory() as folder, contextlib.closing(EventLoop(spin=0.0005)) as loop:
        image = Path(folder) / "image"
        image.write_bytes(bytes(range(256)) * (SIZE // 256))

        def provide(kind: DeviceType) -> Device:
            return BlkDevice(FileDisk(image)) if kind is DeviceType.BLOCK else make_device(kind)

        own = ("-blockdev", f"driver=file,filename={image},node-name=disk,read-only=on",
               "-device", "virtio-blk-pci,drive=disk,addr=18,iommu_platform=on,disable-legacy=on",
               "-netdev", "user,id=net,restrict=on",
               "-device", f"virtio-net-pci,netdev=net,mac={_MAC},addr=19,iommu_platform=on,disable-legacy=on,romfile=")
        guest = QemuGuest(program, kernel, loop, (DeviceType.BLOCK, DeviceType.NET), provide, more=own,
                          options=("swiotlb=force",), accelerator=find_accelerator(program, kernel))
        with contextlib.closing(guest):
            connect(guest, DeviceType.BLOCK)
            connect(guest, DeviceType.NET)
            _sh(guest, f'for i in /sys/class/net/eth*; do if [ "$(cat $i/address)" = {_MAC} ]; then '
                       'a=10.0.2.15; else a=10.99.0.2; fi; ifconfig ${i##*/} $a netmask 255.255.255.0 up; done; '
                       'sleep 2')
            return [*(_disk_row(guest, label, size, count) for label, size, count in (
                        ("4 KiB", "4k", 2000), ("1 MiB", "1M", 64))),
                    *(_echo_row(guest, size) for size in (56, 1400))]


def _sh(guest: QemuGuest, command: str) -> str:
    result = run_program(guest, "sh", "-c", command, seconds=120)
    if result.status != 0:
        raise TargetError(f"{command}: {result.output}")
    return result.output


def _disk_row(guest: QemuGuest, label: str, size: str, count: int) -> str:
    # QEMU's was there from the start, and is the first.
    rates: dict[str, list[float]] = {"vdb": [], "vda": []}
    for _ in range(RUNS):
        for disk, seen in rates.items():
            said = _sh(guest, f"echo 3 >/proc/sys/vm/drop_caches; t=$(cut -d' ' -f1 /proc/uptime); "
                              f"dd if=/dev/{disk} of=/dev/null bs={size} count={count} iflag=direct 2>/dev/null; "
                              "echo $t $(cut -d' ' -f1 /proc/uptime)")
            begin, end = map(float, said.split())
            seen.append(count / max(end - begin, 0.01))
    return _row(f"read {label}, O_DIRECT, depth 1", rates["vdb"], rates["vda"])


def _echo_row(guest: QemuGuest, size: int) -> str:
    rates: dict[str, list[float]] = {"10.99.0.1": [], "10.0.2.2": []}
    for _ in range(RUNS):
        for peer, seen in rates.items():
            said = _sh(guest, f"ping -A -c 500 -s {size} -q {peer}")
            times = re.search(r"= [\d.]+/([\d.]+)/", said)
            if times is None:
                raise TargetError(f"no answer of {peer}: {said}")
            seen.append(1000 / float(times[1]))
    return _row(f"echo of {size} bytes", rates["10.99.0.1"], rates["10.0.2.2"])


def _row(what: str, chamber: list[float], own: list[float]) -> str:
    ours, theirs = statistics.median(chamber), statistics.median(own)
    return f"| {what} | {ours:,.0f} | {theirs:,.0f} | {ours / theirs:.2f} |"
