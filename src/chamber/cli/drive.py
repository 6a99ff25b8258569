"""``chamber drive``: the model guest's driver before a back end that somebody else serves."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from chamber.assess.printable import printable
from chamber.cli.interrupt import InterruptOnce
from chamber.guest.profile import PROFILES, UNTRUSTED
from chamber.lab.drive import drive as drive_device
from chamber.lab.drive_use import ScratchError
from chamber.lab.model_stimuli import DRIVERS
from chamber.link.frontend import REPLY_SECONDS, BackendError, Frontend

if TYPE_CHECKING:
    from chamber.lab.drive import Step

__all__ = ("drive",)

_INTERRUPTED: Final = 130


@click.command()
@click.argument("device", type=click.Choice([kind.short for kind in DRIVERS]))
@click.option("--socket", "path", required=True, type=click.Path(path_type=Path), help="Where the back end listens.")
@click.option("--profile", type=click.Choice(UNTRUSTED), default="hardened", show_default=True,
              help="The driver's protections.")
@click.option("--write", "scratch", metavar="WHERE",
              help="Write as well. blk: sectors FIRST:COUNT, whose content is put back; fs: the name of a directory to "
                   "make and remove.")
@click.option("--in-band", "inband", is_flag=True, help="Take notifications as messages, where they are offered.")
@click.option("--timeout", "seconds", type=click.FloatRange(0.1, 600), default=REPLY_SECONDS, show_default=True,
              help="Seconds for each reply of the protocol.")
@click.option("--trace", is_flag=True, help="Print every message.")
def drive(device: str, path: Path, profile: str, scratch: str | None, inband: bool, seconds: float,
          trace: bool) -> int:
    """Use a device that some back end serves over vhost-user, and say what worked. Reads alone, without --write."""
    kind = next(d for d in DRIVERS if d.short == device)
    with InterruptOnce():
        try:
            with _connect(path, seconds, inband=inband, trace=trace) as frontend:
                fine = drive_device(frontend, kind, PROFILES[profile], _show, scratch=scratch)
        except ScratchError as error:
            raise click.UsageError(f"--write {error}") from None
        except BackendError as error:
            raise click.ClickException(f"{path}: {error}") from None
        except KeyboardInterrupt:
            click.echo("interrupted", err=True)
            return _INTERRUPTED
    return 0 if fine else 1


def _connect(path: Path, seconds: float, *, inband: bool, trace: bool) -> Frontend:
    try:
        return Frontend.connect(path, seconds=seconds, inband=inband,
                                trace=(lambda line: click.echo(printable(line))) if trace else None)
    except OSError as error:
        raise click.UsageError(f"{path}: {error.strerror or error}") from None


def _show(step: Step) -> None:
    click.echo(f"{'ok' if step.worked else 'FAILED':6}  {step.name:18}  {printable(step.detail)}".rstrip())
