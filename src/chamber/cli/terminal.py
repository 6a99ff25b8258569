"""How the commands write to the terminal."""

from __future__ import annotations

import sys
from typing import Final

from rich.console import Console

from chamber.assess.verdict import Verdict

__all__ = ("STYLES", "make_console")

_PIPE_WIDTH: Final = 120

STYLES: Final = {
    Verdict.BROKEN: "bold red",
    Verdict.LEAKED: "bold magenta",
    Verdict.DECEIVED: "bold dark_orange",
    Verdict.DENIED: "yellow",
    Verdict.INCONCLUSIVE: "dim",
    Verdict.HELD: "green",
}


def make_console(*, stderr: bool = False) -> Console:
    """A console that takes text as it is: no markup, no colouring by guess, no emoji names.

    Signatures and evidence are a hostile host's words.
    """
    stream = sys.stderr if stderr else sys.stdout
    return Console(file=stream, markup=False, highlight=False, emoji=False,
                   width=None if stream.isatty() else _PIPE_WIDTH)
