"""``chamber lab build``, ``info`` and ``remove``: kernels to attack, made here."""

from __future__ import annotations

import datetime
import json
import sys
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich.console import Console

from chamber.lab.kernel.build import build_kernel
from chamber.lab.kernel.config import KernelOptions
from chamber.lab.kernel.edits import PatchFile
from chamber.lab.kernel.source import find_source
from chamber.lab.kernel.store import find_built, list_built, remove_built

if TYPE_CHECKING:
    from chamber.lab.kernel.store import BuiltKernel

__all__ = ("build", "describe", "info", "remove")

_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)


@click.command()
@click.argument("source")
@click.option("--kasan/--no-kasan", default=True, show_default=True, help="Check every memory access.")
@click.option("--ubsan/--no-ubsan", default=True, show_default=True, help="Check bounds, shifts, enumerations.")
@click.option("--coverage/--no-coverage", default=True, show_default=True, help="Count what drivers execute.")
@click.option("--lockdep", is_flag=True, help="Prove lock order; check objects and sleeping.")
@click.option("--smp", is_flag=True, help="Two processors, where user-mode-linux has them (7.3).")
@click.option("--time-travel", is_flag=True, help="Virtual time.")
@click.option("--apply", "applied", multiple=True, type=_FILE, help="Apply a patch, or a semantic patch (.cocci).")
@click.option("--revert", "reverted", multiple=True, type=_FILE, help="Take a patch back.")
@click.option("--name", help="What to call the kernel.")
@click.option("--jobs", type=click.IntRange(1, 256), default=None, help="Compilers at once. Default: (processors).")
def build(source: str, applied: tuple[Path, ...], reverted: tuple[Path, ...], name: str | None, jobs: int | None,
          **options: bool) -> None:
    """Build a user-mode-linux kernel that notices.

    SOURCE is a series that Debian has the source of, such as 6.1, 6.12 or 7.3, or the path of a kernel tree. A kernel
    that was built from the same before is found again.
    """
    if name is not None and (not name or name.startswith((".", "-")) or "/" in name):
        raise click.BadParameter("a name is one of a folder", param_hint="--name")
    edits = [PatchFile(path) for path in applied] + [PatchFile(path, revert=True) for path in reverted]
    chosen = KernelOptions(**{field.name: options[field.name] for field in fields(KernelOptions)})
    console = Console(stderr=True)
    with console.status(f"Kernel {source}") as status:
        def tell(line: str) -> None:
            if console.is_terminal:
                status.update(f"Kernel {source}: {' '.join(line.split())[:console.width - 20]}")
            elif not line.startswith(" "):
                click.echo(line, err=True)

        kernel = build_kernel(find_source(source, tell), chosen, edits, jobs=jobs or 0, name=name, tell=tell)
    click.echo(describe(kernel))


@click.command()
@click.argument("kernel")
@click.option("--json", "as_json", is_flag=True, help="Print it as JSON.")
def info(kernel: str, *, as_json: bool) -> None:
    """Say what a built KERNEL is, by its name or the newest whose name begins so."""
    found = find_built(kernel)
    if as_json:
        json.dump({"name": found.name, "path": str(found.binary), **found.as_json()}, sys.stdout, indent=1)
        click.echo()
        return
    when = datetime.datetime.fromtimestamp(found.built, tz=datetime.UTC)
    for key, value in (("name", found.name), ("kernel", found.binary), ("release", found.release),
                       ("source", found.source), ("options", " ".join(found.options) or "none"),
                       ("edits", "; ".join(found.edits) or "none"), ("modules", " ".join(found.modules)),
                       ("built", f"{when:%Y-%m-%d %H:%M} UTC in {found.seconds:.0f} s")):
        click.echo(f"{key:8} {value}")


@click.command()
@click.argument("kernels", nargs=-1)
@click.option("--all", "everything", is_flag=True, help="All of them.")
def remove(kernels: tuple[str, ...], *, everything: bool) -> None:
    """Delete built KERNELS, by name."""
    if bool(kernels) == everything:
        raise click.UsageError("name the kernels, or say --all")
    for kernel in list_built() if everything else [find_built(name, alone=True) for name in kernels]:
        remove_built(kernel)
        click.echo(f"removed {kernel.name}")


def describe(kernel: BuiltKernel) -> str:
    """Return one line."""
    return (f"{kernel.name}: {kernel.release}, {' '.join(kernel.options) or 'plain'}"
            f"{', ' + '; '.join(kernel.edits) if kernel.edits else ''}, {len(kernel.modules)} modules, "
            f"built in {kernel.seconds:.0f} s")
