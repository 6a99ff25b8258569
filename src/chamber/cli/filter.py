"""``chamber filter``: which devices a guest lets in, and what that leaves to attack."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import click

from chamber.attacks.attack import LINUX
from chamber.attacks.catalogue import catalogue
from chamber.guest.policy_file import SHIPPED, load_policy
from chamber.lab.kernel.places import read_places
from chamber.lab.kernel.store import find_built, list_built
from chamber.lab.linux_filter.devices import as_json, compare, read_list, read_sysfs
from chamber.lab.linux_filter.emit import KernelFacts, clauses, read_kernel_config, write_filter
from chamber.lab.observation import TargetError
from chamber.wire.virtio import DeviceType

if TYPE_CHECKING:
    from chamber.guest.policy import Policy

__all__ = ("filter_group",)


@click.group("filter")
def filter_group() -> None:
    """Keep devices and features away from a guest's drivers.

    POLICY is the path of a file (docs/filters.md) or the name of one that comes with Chamber.
    """


@filter_group.command("list")
def list_policies() -> None:
    """List the policies that come with Chamber."""
    for name in SHIPPED:
        policy = load_policy(name)
        click.echo(f"{name:13} {', '.join(rule.type.short for rule in policy.rules)}\n{'':13} {policy.description}")


@filter_group.command()
@click.argument("policy")
@click.option("--config", "config", type=click.Path(path_type=Path),
              help="The guest kernel's configuration, such as /boot/config-6.12.0-1-amd64 or /proc/config.gz.")
@click.option("--kernel", help="A kernel that chamber lab build made, instead of --config.")
@click.option("--out", type=click.Path(path_type=Path), default=Path("chamber-filter"), show_default=True,
              help="Folder for the files.")
def emit(policy: str, config: Path | None, kernel: str | None, out: Path) -> None:
    """Write what has a stock Linux kernel keep a policy, and say what it can't keep."""
    if config is not None and kernel is not None:
        raise click.UsageError("--config and --kernel say the same thing")
    read = load_policy(policy)
    if kernel is not None:
        config = find_built(kernel).folder / "config"
    facts = KernelFacts() if config is None else read_kernel_config(config)
    for path in write_filter(read, facts, out):
        click.echo(f"wrote {path}")
    for clause in clauses(read, facts):
        word = "enforced    " if clause.enforced else "NOT enforced"
        click.echo(f"{word}  {clause.where}: {clause.what}: {clause.how}")
    if config is None:
        click.echo("nothing is known of the kernel: --config or --kernel says more")


@filter_group.command()
@click.argument("policy")
@click.option("--devices", type=click.Path(path_type=Path),
              help="A list of devices, as chamber filter devices prints it.")
@click.option("--sysfs", type=click.Path(path_type=Path), default=Path("/sys"), show_default=True,
              help="The guest's sysfs, where the command runs in the guest.")
@click.option("--json", "as_text", is_flag=True, help="Print JSON.")
def check(policy: str, devices: Path | None, sysfs: Path, as_text: bool) -> int:
    """Compare a running guest, or a list of devices, with a policy; exit status 1 if something is not as it has it."""
    read = load_policy(policy)
    found = read_sysfs(sysfs) if devices is None else read_list(devices)
    wrong = compare(read, found)
    if as_text:
        click.echo(json.dumps({"schema": "chamber-filter-check/1", "policy": read.name, "devices": len(found),
                               "violations": wrong}, indent=1))
    else:
        for line in wrong:
            click.echo(line)
        click.echo(f"{len(found)} devices, {len(wrong)} violations of policy {read.name}")
    return int(bool(wrong))


@filter_group.command("devices")
@click.option("--sysfs", type=click.Path(path_type=Path), default=Path("/sys"), show_default=True,
              help="The guest's sysfs.")
def list_devices(sysfs: Path) -> None:
    """Print this guest's virtio devices as a list that check takes elsewhere."""
    click.echo(json.dumps(as_json(read_sysfs(sysfs)), indent=1))


@filter_group.command()
@click.argument("policies", nargs=-1)
@click.option("--kernel", help="A kernel that chamber lab build made with coverage; by default one that is there.")
def surface(policies: tuple[str, ...], kernel: str | None) -> None:
    """Print how much is left to attack under policies: attacks of the catalogue, and places that take a host's word."""
    read = [load_policy(name) for name in policies or SHIPPED]
    sites = _sites(kernel)
    attacks = Counter(spec.device for spec in catalogue() if spec.targets & LINUX)
    rows = [("no policy", frozenset(DeviceType)), *((p.name, _types(p)) for p in read)]
    click.echo(f"{'policy':14}{'types':>6}{'attacks on Linux':>18}{'host-input sites':>18}")
    for name, types in rows:
        count = sum(attacks[kind] for kind in types)
        places = str(sum(sites.get(kind, 0) for kind in types)) if sites else "-"
        click.echo(f"{name:14}{len(types):6}{count:18}{places:>18}")
    if not sites:
        click.echo("host-input sites are counted in a kernel of chamber lab build with coverage, and there is none")


def _types(policy: Policy) -> frozenset[DeviceType]:
    return frozenset(rule.type for rule in policy.rules)


def _sites(kernel: str | None) -> dict[DeviceType, int]:
    """Return how many lines of each driver take a value from the host; nothing if there is no kernel to tell it."""
    try:
        if kernel is None:
            built = next((k for k in reversed(list_built()) if "coverage" in k.options), None)
            if built is None:
                return {}
        else:
            built = find_built(kernel)
        return {driver.device: driver.counts()[3] for driver in read_places(built).report(())}
    except TargetError:
        if kernel is None:
            return {}
        raise
