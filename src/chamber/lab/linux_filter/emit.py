"""Writes what has a stock Linux kernel keep a policy, and says what it can't be made to keep."""

from __future__ import annotations

import gzip
import re
import shutil
from dataclasses import dataclass
from importlib import resources
from typing import TYPE_CHECKING, Final

from chamber.lab.observation import TargetError
from chamber.wire.virtio import DeviceType

if TYPE_CHECKING:
    from pathlib import Path

    from chamber.guest.policy import DeviceRule, Policy

__all__ = ("Clause", "KernelFacts", "clauses", "policy_table", "read_kernel_config", "write_filter")

_SETTING: Final = re.compile(r"^CONFIG_(\w+)=([ym])$", re.MULTILINE)
_MOST_CONFIG: Final = 4 << 20
_MODULES: Final = {
    DeviceType.NET: ("virtio_net", "VIRTIO_NET"), DeviceType.BLOCK: ("virtio_blk", "VIRTIO_BLK"),
    DeviceType.CONSOLE: ("virtio_console", "VIRTIO_CONSOLE"), DeviceType.RNG: ("virtio_rng", "HW_RANDOM_VIRTIO"),
    DeviceType.BALLOON: ("virtio_balloon", "VIRTIO_BALLOON"), DeviceType.SCSI: ("virtio_scsi", "SCSI_VIRTIO"),
    DeviceType.TRANSPORT_9P: ("9pnet_virtio", "NET_9P_VIRTIO"), DeviceType.INPUT: ("virtio_input", "VIRTIO_INPUT"),
    DeviceType.VSOCK: ("vmw_vsock_virtio_transport", "VIRTIO_VSOCKETS"),
    DeviceType.CRYPTO: ("virtio_crypto", "CRYPTO_DEV_VIRTIO"), DeviceType.SND: ("virtio_snd", "SND_VIRTIO"),
    DeviceType.FS: ("virtiofs", "VIRTIO_FS"), DeviceType.PMEM: ("virtio_pmem", "VIRTIO_PMEM")}
"""Module and configuration symbol of each type's driver in Linux."""
_INITCALLS: Final = {
    DeviceType.NET: "virtio_net_driver_init", DeviceType.BLOCK: "virtio_blk_init",
    DeviceType.CONSOLE: "virtio_console_init", DeviceType.RNG: "virtio_rng_driver_init",
    DeviceType.BALLOON: "virtio_balloon_driver_init", DeviceType.SCSI: "virtio_scsi_init",
    DeviceType.TRANSPORT_9P: "p9_virtio_init", DeviceType.INPUT: "virtio_input_driver_init",
    DeviceType.VSOCK: "virtio_vsock_init", DeviceType.CRYPTO: "virtio_crypto_driver_init",
    DeviceType.SND: "virtsnd_driver_init", DeviceType.FS: "virtio_fs_init", DeviceType.PMEM: "virtio_pmem_driver_init"}
"""What a driver that is built in begins with, and the kernel can be told not to call (initcall_blacklist)."""


@dataclass(frozen=True, slots=True)
class KernelFacts:
    """What a kernel can do about a policy.

    Attributes:
        settings: its configuration, ``y`` or ``m`` by symbol; None where it is not known.

    """

    settings: dict[str, str] | None = None

    def has(self, symbol: str) -> bool:
        """Whether something is in; what is not known is taken to be."""
        return self.settings is None or symbol in self.settings

    def is_built_in(self, symbol: str) -> bool:
        """Whether something is part of the kernel itself; what is not known is taken not to be."""
        return self.settings is not None and self.settings.get(symbol) == "y"


def read_kernel_config(path: Path) -> KernelFacts:
    """Read a kernel's configuration: ``/boot/config-VERSION``, ``/proc/config.gz``, or ``config`` of one built here.

    Raises:
        TargetError: it is none.

    """
    try:
        with path.open("rb") as file:
            data = file.read(_MOST_CONFIG)
        if data[:2] == b"\x1f\x8b":
            with gzip.open(path) as packed:
                data = packed.read(_MOST_CONFIG)
    except (OSError, EOFError) as error:
        raise TargetError(f"{path}: {getattr(error, 'strerror', None) or error}") from error
    settings = dict(_SETTING.findall(data.decode("utf-8", "replace")))
    if not settings:
        raise TargetError(f"{path}: not the configuration of a kernel")
    return KernelFacts(settings)


@dataclass(frozen=True, slots=True)
class Clause:
    """One thing that a policy says, and what becomes of it.

    Attributes:
        where: the rule.
        what: the clause.
        how: what enforces it, or why nothing does.
        enforced: whether something does.

    """

    where: str
    what: str
    how: str
    enforced: bool


def clauses(policy: Policy, kernel: KernelFacts) -> list[Clause]:
    """Say of each clause of a policy what this kernel can do about it."""
    found = [_probing(policy, kernel)]
    if kernel.is_built_in("VIRTIO_PCI"):
        found.append(Clause(f"policy {policy.name}", "nothing is read of a PCI function but its identity",
                            "virtio_pci is built in, and maps its registers before any program runs", False))
    else:
        found.append(Clause(f"policy {policy.name}", "nothing is read of a PCI function but its identity",
                            "virtio_pci is not let at it, or taken away where the PCI core bound it as it appeared; "
                            "the core reads its header, base addresses and list of capabilities anyway", False))
    for rule in policy.rules:
        found += _of_rule(rule, kernel)
    return found


def _probing(policy: Policy, kernel: KernelFacts) -> Clause:
    where, what = f"policy {policy.name}", "only devices with a rule are probed"
    early = [name for kind, (name, symbol) in _MODULES.items() if kernel.is_built_in(symbol)]
    kept = [name for kind, (name, symbol) in _MODULES.items()
            if kernel.is_built_in(symbol) and any(rule.type is kind for rule in policy.rules)]
    if not early:
        return Clause(where, what, "drivers_autoprobe is 0 before a driver's module is loaded", True)
    if not kept:
        return Clause(where, what, "drivers without a rule that are built in are not started (initcall_blacklist)",
                      True)
    return Clause(where, what, f"{', '.join(kept)}: built in, so that every device of the type is probed before any "
                  "program runs; types without a rule are not started (initcall_blacklist)", False)


_LATE: Final = ("looked at once the driver is bound, which is taken away if they are not as they should be: "
                "it has met the device by then")


def _of_rule(rule: DeviceRule, kernel: KernelFacts) -> list[Clause]:
    found = []
    built_in = kernel.is_built_in(_MODULES[rule.type][1])
    for what, given in (("transport", rule.transports), ("vendor", rule.vendors), ("position", rule.positions),
                        ("most", rule.most is not None)):
        if given:
            found.append(Clause(rule.where, what, "the driver is built in" if built_in
                                else "chamber-filter decides before the driver is bound", not built_in))
    filters = kernel.has("VIRTIO_DEBUG") and kernel.has("DEBUG_FS") and not built_in
    if rule.may is not None or rule.must_not:
        found.append(Clause(rule.where, "features that may be, and must not be",
                            "filter_feature_add in debugfs, before the driver is bound" if filters else _LATE, filters))
    if rule.must:
        found.append(Clause(rule.where, "features that must be",
                            "device_features in debugfs, before the driver is bound" if filters else _LATE, filters))
    found += [Clause(rule.where, f"config.{name} is {field}", "nothing stands between a driver and configuration space",
                     False) for name, field in rule.config.items()]
    return found


def policy_table(policy: Policy) -> str:
    """Return the table that the script reads: a rule to a line, its fields separated by blanks."""
    lines = []
    for rule in policy.rules:
        vendors = ",".join(map(str, sorted(rule.vendors)))
        lines.append(" ".join((
            str(int(rule.type)), ",".join(sorted(rule.transports)) or "*", vendors or "*",
            "*" if rule.most is None else str(rule.most), "*" if rule.may is None else _bits(rule.may),
            _bits(rule.must), _bits(rule.must_not), ",".join(rule.positions) or "*")))
    return "".join(f"{line}\n" for line in lines)


def _bits(mask: int) -> str:
    return ",".join(str(number) for number in range(64) if mask >> number & 1) or "-"


def write_filter(policy: Policy, kernel: KernelFacts, folder: Path) -> list[Path]:
    """Write all files into a folder, which is made if it is not there; return them.

    Raises:
        TargetError: it can't be written to.

    """
    kept = {rule.type for rule in policy.rules}
    without = [kind for kind in _MODULES if kind not in kept]
    blacklist = "".join(f"blacklist {_MODULES[kind][0]}\ninstall {_MODULES[kind][0]} /bin/false\n" for kind in without)
    arguments = [f"module_blacklist={','.join(_MODULES[kind][0] for kind in without)}"] if without else []
    early = [_INITCALLS[kind] for kind in without if kernel.is_built_in(_MODULES[kind][1])]
    if early:
        arguments.append(f"initcall_blacklist={','.join(early)}")
    texts = {
        "policy.table": policy_table(policy),
        "modprobe.d/chamber-filter.conf": f"# Drivers that policy {policy.name} has no rule for.\n{blacklist}",
        "kernel-arguments": " ".join(arguments) + "\n",
        "README": _readme(policy, kernel),
    }
    try:
        written = []
        for name, text in texts.items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
            written.append(path)
        for name in ("chamber-filter", "udev/70-chamber-filter.rules", "initramfs-tools/hooks/chamber-filter",
                     "initramfs-tools/scripts/init-top/chamber-filter"):
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            with resources.as_file(resources.files("chamber.lab.linux_filter") / name) as source:
                shutil.copy(source, path)
            if not name.endswith(".rules"):
                path.chmod(0o755)
            written.append(path)
    except OSError as error:
        raise TargetError(f"{folder}: {error.strerror}") from error
    return written


def _readme(policy: Policy, kernel: KernelFacts) -> str:
    rows = "".join(f"{'yes' if clause.enforced else 'NO '}  {clause.where}: {clause.what}\n     {clause.how}\n"
                   for clause in clauses(policy, kernel))
    return f"""Policy {policy.name} for a Linux guest

chamber-filter, policy.table    to /usr/lib/chamber-filter, or anywhere in an initramfs: `chamber-filter start` as root
                                before anything else looks for devices
initramfs-tools/                to /etc/initramfs-tools, then update-initramfs: does that
udev/70-chamber-filter.rules    to /etc/udev/rules.d: devices that are plugged later
modprobe.d/chamber-filter.conf  to /etc/modprobe.d: no driver without a rule is loaded
kernel-arguments                for the kernel's command line

What is enforced{"" if kernel.settings is not None else " (of a kernel that nothing is known of)"}:

{rows}"""
