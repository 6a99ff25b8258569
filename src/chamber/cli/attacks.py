"""``chamber attacks``: the catalogue."""

from __future__ import annotations

import json

import click

from chamber.attacks.attack import AttackSpec, Surface
from chamber.attacks.catalogue import catalogue
from chamber.device.catalogue import TYPES

__all__ = ("attacks",)


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Write JSON.")
@click.option("--device", "devices", multiple=True, type=click.Choice([d.short for d in TYPES]),
              help="Only attacks in this device; may be repeated.")
@click.option("--surface", "surfaces", multiple=True, type=click.Choice([s.value for s in Surface]),
              help="Only attacks on this surface; may be repeated.")
def attacks(as_json: bool, devices: tuple[str, ...], surfaces: tuple[str, ...]) -> None:
    """List the attacks."""
    specs = [spec for spec in catalogue() if (not devices or spec.device.short in devices)
             and (not surfaces or spec.surface.value in surfaces)]
    if as_json:
        click.echo(json.dumps([_entry(spec) for spec in specs], indent=1))
        return
    width = max((len(spec.name) for spec in specs), default=0)
    for spec in specs:
        click.echo(f"{spec.name:{width}}  {spec.surface.value:12}  {spec.summary}")
    click.echo(f"{len(specs)} attacks", err=True)


def _entry(spec: AttackSpec) -> dict[str, object]:
    return {"name": spec.name, "device": spec.device.short, "surface": spec.surface.value, "aim": spec.aim.value,
            "spec": spec.spec, "summary": spec.summary, "stimuli": list(spec.stimuli),
            "targets": sorted(spec.targets), "known": spec.known}
