"""``chamber lab install`` and ``chamber lab boot``."""

from __future__ import annotations

import sys
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

import click

from chamber.cli import targets
from chamber.cli.interrupt import InterruptOnce
from chamber.device.catalogue import TYPES
from chamber.lab.agent_guest import GuestDied
from chamber.lab.observation import TargetError
from chamber.lab.qemu.install import install_kernel, install_qemu
from chamber.lab.uml_program import connect, run_program

if TYPE_CHECKING:
    from chamber.lab.agent_guest import AgentGuest
    from chamber.lab.uml import UmlTarget

__all__ = ("boot", "install")


def _tell(line: str) -> None:
    click.echo(line, err=True)


@click.command()
@click.argument("what", type=click.Choice(["qemu", "kernel"]))
@click.argument("package", required=False)
def install(what: str, package: str | None) -> None:
    """Fetch QEMU, or a stock Debian kernel for it, into a folder of Chamber's own.

    The system stays as it is. A QEMU of the system that is new enough is used instead. PACKAGE is a kernel's package;
    by default the one that linux-image-amd64 of Debian 13 stands for.
    """
    if what == "qemu":
        if package is not None:
            raise click.UsageError("PACKAGE goes with kernel")
        program = install_qemu(_tell)
        click.echo(f"QEMU {program.version}: {'fetched by Chamber' if program.own else program.command[0]}")
    else:
        kernel = install_kernel(_tell) if package is None else install_kernel(_tell, package)
        click.echo(f"{kernel.release}: {kernel.path}")


@click.command(context_settings={"allow_interspersed_args": False})
@click.option("--target", "kind", type=click.Choice(sorted(targets.BOOTING)), default="uml", show_default=True,
              help="What to boot.")
@click.option("--kernel", type=click.Path(path_type=Path), help="A kernel other than the target's own.")
@click.option("--device", "devices", multiple=True, type=click.Choice([d.short for d in TYPES]),
              help="Connect this device; may be repeated.")
@click.argument("command", nargs=-1)
def boot(kind: str, kernel: Path | None, devices: tuple[str, ...], command: tuple[str, ...]) -> int:
    """Boot a guest by hand, with honest devices, and run COMMAND in it.

    Without one, lines of standard input are run by the guest's shell, one after another, until it ends.
    """
    types = {d.short: d for d in TYPES}
    with InterruptOnce(), closing(targets.make_target(kind, kernel)) as opened:
        target: UmlTarget = opened  # type: ignore[assignment]  # those that boot are all of this kind
        guest = target.guest()
        try:
            for name in devices:
                click.echo(f"{name}: {connect(guest, types[name])}", err=True)
            if command:
                return _run(guest, command)
            _shell(guest)
        except GuestDied:
            raise TargetError(f"the guest ended: {guest.last_words()}") from None
        finally:
            click.echo(guest.take_console(), nl=False, err=True)
    return 0


def _shell(guest: AgentGuest) -> None:
    prompt = "guest# " if sys.stdin.isatty() else ""
    while True:
        click.echo(prompt, nl=False, err=True)
        line = sys.stdin.readline()
        if not line:
            return
        if line.strip():
            _run(guest, ("sh", "-c", line))
            click.echo(guest.take_console(), nl=False, err=True)


def _run(guest: AgentGuest, command: tuple[str, ...]) -> int:
    result = run_program(guest, *command)
    click.echo(result.output, nl=False)
    if result.status is None:
        raise TargetError(f"{command[0]} did not end within a minute")
    return result.status if result.status >= 0 else 128 - result.status
