"""Targets by name; each is imported when it is asked for."""

from __future__ import annotations

import difflib
from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

import click

from chamber.device.capture import CaptureFile
from chamber.lab.observation import TargetError

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from chamber.guest.policy import Policy
    from chamber.lab.observation import Target

__all__ = ("BOOTING", "KINDS", "USUAL", "make_target", "profiles_of", "unknown")

_CLASSES: Final = {"model": ("chamber.lab.model", "ModelTarget"), "uml": ("chamber.lab.uml", "UmlTarget"),
                   "uml-pci": ("chamber.lab.uml", "UmlPciTarget"),
                   "qemu": ("chamber.lab.qemu.target", "QemuTarget")}
KINDS: Final = tuple(_CLASSES)
"""Kinds of target, in the order in which they are assessed."""

USUAL: Final = ("model", "uml")
"""Those that are assessed where nobody says what: they need no kernel that has to be built first."""
BOOTING: Final = frozenset({"uml", "uml-pci", "qemu"})
"""Those that boot a kernel, which can be chosen."""

_LISTED: Final = 12


def make_target(kind: str, kernel: Path | None = None, capture: CaptureFile | None = None,
                policy: Policy | None = None) -> Target:
    """Make a target.

    Args:
        kind: one of `KINDS`.
        kernel: what to boot, for targets that boot something; None for the default.
        capture: where to write down what crosses the boundary.
        policy: which devices the guest probes; of the model only.

    Raises:
        TargetError: it cannot be had on this machine.

    """
    module, name = _CLASSES[kind]
    try:
        found: Any = getattr(import_module(module), name)
    except ModuleNotFoundError as error:
        if error.name != module:
            raise
        raise TargetError(f"target {kind} is not part of this installation ({module} is missing)") from None
    target: Target = found(kernel, capture=capture) if kind in BOOTING else found(capture=capture, policy=policy)
    return target


def open_capture(path: Path | None) -> CaptureFile | None:
    """Open what ``--capture`` names; None if it names nothing.

    Raises:
        click.UsageError: it can't be written.

    """
    if path is None:
        return None
    try:
        return CaptureFile(path)
    except OSError as error:
        raise click.UsageError(f"{path}: {error.strerror}") from None


def profiles_of(target: Target) -> tuple[str | None, ...]:
    """The sets of protections that a target can have; just None where it has no choice."""
    return tuple(getattr(target, "profiles", (None,)))


def unknown(what: str, name: str, known: Iterable[str]) -> click.UsageError:
    """An error for a name that does not exist, with those that look like it."""
    known = list(known)
    close = difflib.get_close_matches(name, known, 3)
    if close:
        hint = f"; did you mean {', '.join(close)}?"
    else:
        hint = f"; there are {', '.join(known)}" if 0 < len(known) <= _LISTED else ""
    return click.UsageError(f"there is no {what} {name!r}{hint}")
