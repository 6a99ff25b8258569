"""``chamber lab``: what can be attacked on this machine."""

from __future__ import annotations

from contextlib import closing

import click

from chamber.cli import targets
from chamber.lab.observation import TargetError

__all__ = ("lab",)


@click.group()
def lab() -> None:
    """See what can be attacked on this machine."""


@lab.command("list")
def list_targets() -> None:
    """List the targets."""
    for kind in targets.KINDS:
        try:
            with closing(targets.make_target(kind)) as target:
                about = {key: value for key, value in target.describe().items() if key != "kind"}
                profiles = [p for p in targets.profiles_of(target) if p is not None]
        except TargetError as error:
            click.echo(f"{kind:6} missing    {error}")
            continue
        if profiles:
            about["profiles"] = profiles
        words = (f"{key}: {' '.join(map(str, value)) if isinstance(value, list) else value}"
                 for key, value in about.items())
        click.echo(f"{kind:6} available  {', '.join(words)}")
