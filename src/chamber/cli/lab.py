"""``chamber lab``: what can be attacked on this machine, and what can be built for it."""

from __future__ import annotations

from contextlib import closing

import click

from chamber.cli import lab_build, lab_qemu, targets
from chamber.lab.kernel.store import list_built
from chamber.lab.observation import TargetError

__all__ = ("lab",)


@click.group()
def lab() -> None:
    """See what can be attacked on this machine, and build kernels for it."""


lab.add_command(lab_build.build)
lab.add_command(lab_build.info)
lab.add_command(lab_build.remove)
lab.add_command(lab_qemu.install)
lab.add_command(lab_qemu.boot)


@lab.command("list")
def list_targets() -> None:
    """List the targets, and the kernels that were built."""
    for kind in targets.KINDS:
        try:
            with closing(targets.make_target(kind)) as target:
                about = {key: value for key, value in target.describe().items() if key != "kind"}
                profiles = [p for p in targets.profiles_of(target) if p is not None]
        except TargetError as error:
            click.echo(f"{kind:7} missing    {error}")
            continue
        if profiles:
            about["profiles"] = profiles
        words = (f"{key}: {' '.join(map(str, value)) if isinstance(value, list) else value}"
                 for key, value in about.items())
        click.echo(f"{kind:7} available  {', '.join(words)}")
    for kernel in list_built():
        click.echo(f"kernel {lab_build.describe(kernel)}")
