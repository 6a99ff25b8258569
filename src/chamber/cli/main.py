"""The command ``chamber``."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import click

from chamber import __version__
from chamber.assess.output import OutputError
from chamber.assess.printable import printable
from chamber.assess.report_json import ReportError
from chamber.attacks.catalogue import UnknownAttackError
from chamber.cli.assess import assess
from chamber.cli.attacks import attacks
from chamber.cli.bench import bench
from chamber.cli.drive import drive
from chamber.cli.filter import filter_group
from chamber.cli.fuzz import fuzz
from chamber.cli.lab import lab
from chamber.cli.replay import replay
from chamber.cli.serve import serve
from chamber.cli.tdisp import tdisp_group
from chamber.fuzz.settings import CampaignError
from chamber.guest.policy_file import PolicyError
from chamber.lab.observation import TargetError

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ("chamber", "main", "run")

WRONG_USAGE = 2
INTERRUPTED = 130


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="chamber", message="%(prog)s %(version)s")
def chamber() -> None:
    """Put a malicious host in front of a guest's virtio drivers and see what happens."""


for _command in (assess, attacks, fuzz, replay, serve, drive, filter_group, tdisp_group, lab, bench):
    chamber.add_command(_command)


def run(arguments: Sequence[str]) -> int:
    """Run a command; return its exit status.

    0: it completed. 1: it found what it was told to fail on. 2: wrong usage or a missing component, told in one line.
    130: interrupted.
    """
    try:
        status = chamber.main(list(arguments) or ["--help"], prog_name="chamber", standalone_mode=False)
    except click.ClickException as error:
        return _complain(error.format_message())
    except (CampaignError, PolicyError, TargetError, OutputError, ReportError, UnknownAttackError) as error:
        return _complain(str(error))
    except click.Abort:
        return INTERRUPTED
    return status if isinstance(status, int) else 0


def _complain(message: str) -> int:
    click.echo(f"chamber: {' '.join(printable(message).split())}", err=True)
    return WRONG_USAGE


def main() -> None:
    """Entry point."""
    sys.exit(run(sys.argv[1:]))
