"""What a guest does with a type of device, loaded when somebody asks."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import ModuleType

    from chamber.lab.agent.report import Report
    from chamber.lab.agent.sessions import Session

__all__ = ("MOUNTED", "stimuli_of", "uses_of")

MOUNTED: Final = frozenset({"9p", "fs"})
"""Types whose uses mount something: whatever comes between, it is unmounted, or the driver can't be removed."""
_MODULES: Final = {"9p": "p9"}
"""Where a module can't have the type's name."""
_ASSESSED_ONLY: Final = frozenset({"pmem"})
"""Types that have no sessions of their own."""


def stimuli_of(kind: str) -> dict[str, Callable[[str, Report], None]]:
    """Return what assessments do with a type of device, by name."""
    stimuli: dict[str, Callable[[str, Report], None]] = _load("chamber.lab.agent", kind).STIMULI
    return stimuli


def uses_of(kind: str) -> dict[str, Session]:
    """Return what a search does with a type of device: sessions, for want of those stimuli; and nothing."""
    sessions: dict[str, Session] = (
        stimuli_of(kind) if kind in _ASSESSED_ONLY else _load("chamber.lab.agent.sessions", kind).SESSIONS)
    return {**sessions, "nothing": _nothing}


def _load(package: str, kind: str) -> ModuleType:
    return import_module(f"{package}.{_MODULES.get(kind, kind)}")


def _nothing(virtio: str, report: Report) -> None:
    """Leave the device alone: for what a probe and a removal show."""
