"""What a campaign searches, and where it keeps what it knows."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from chamber.fuzz.model_executor import ModelExecutor
from chamber.fuzz.uml_executor import UmlExecutor
from chamber.lab.uml_kernel import find_kernel
from chamber.wire.virtio import DeviceType

if TYPE_CHECKING:
    from collections.abc import Callable

    from chamber.fuzz.execution import Executor
    from chamber.lab.observation import Evidence

__all__ = ("CampaignError", "Folder", "Settings")

_SCHEMA: Final = "chamber-campaign/1"


class CampaignError(Exception):
    """A campaign can't go on; the message is one line that says why."""


@dataclass(frozen=True, slots=True)
class Settings:
    """What is searched.

    Attributes:
        device: short name of the device type.
        target: ``uml``, ``uml-pci`` or ``model``.
        kernel: of ``uml`` and ``uml-pci``: the release, or where it is; '' for Debian's ``linux.uml``.
        profile: of ``model``: its set of protections.

    """

    device: str
    target: str = "uml"
    kernel: str = ""
    profile: str = "hardened"

    @property
    def type(self) -> DeviceType:
        """The device type."""
        return next(kind for kind in DeviceType if kind.short == self.device)

    @property
    def pci(self) -> bool:
        """Whether the guest finds the device on a PCI bus."""
        return self.target == "uml-pci"

    def executor(self, *, known: Callable[[Evidence], bool] = lambda _e: False, folder: Path | None = None,
                 trace: bool = False) -> Executor:
        """Make what executes inputs.

        Raises:
            TargetError: the target can't be had.

        """
        if self.target == "model":
            return ModelExecutor(self.type, self.profile, trace=trace)
        kernel = find_kernel(Path(self.kernel) if self.kernel else None)
        return UmlExecutor(kernel, self.type, known=known, folder=folder, trace=trace, pci=self.pci)

    def to_json(self) -> dict[str, str]:
        """As `from_json` reads it."""
        return {"schema": _SCHEMA, **asdict(self)}

    @classmethod
    def from_json(cls, data: object) -> Settings:
        """Read what `to_json` gave.

        Raises:
            CampaignError: it is something else.

        """
        if not isinstance(data, dict) or data.get("schema") != _SCHEMA:
            raise CampaignError(f"this is no {_SCHEMA}")
        try:
            return cls(*(str(data[name]) for name in ("device", "target", "kernel", "profile")))
        except KeyError as error:
            raise CampaignError(f"a campaign says its {error.args[0]}") from None


@dataclass(frozen=True, slots=True)
class Folder:
    """Where a campaign keeps everything.

    Attributes:
        top: the folder.

    """

    top: Path

    @property
    def settings(self) -> Path:
        """What is searched."""
        return self.top / "campaign.json"

    @property
    def seeds(self) -> Path:
        """Inputs to begin with."""
        return self.top / "seeds"

    @property
    def search(self) -> Path:
        """What AFL++ keeps: a folder for each of its processes, with the corpus in ``queue``."""
        return self.top / "search"

    @property
    def reports(self) -> Path:
        """The first report of each kind, as it was."""
        return self.top / "reports"

    @property
    def findings(self) -> Path:
        """What was confirmed, or was not."""
        return self.top / "findings"

    @property
    def progress(self) -> Path:
        """What each process has done."""
        return self.top / "progress"

    def costs(self, job: str) -> Path:
        """What sessions cost one process."""
        return self.progress / f"{job}.costs"

    def occasions(self, job: str) -> Path:
        """What came up in one process's executions to lie about."""
        return self.progress / f"{job}.occasions"

    @property
    def temporary(self) -> Path:
        """Guests' files."""
        return self.top / "tmp"

    def read_settings(self) -> Settings:
        """Read what the campaign searches.

        Raises:
            CampaignError: there is none, or it can't be read.

        """
        try:
            return Settings.from_json(json.loads(self.settings.read_text(encoding="utf-8")))
        except (OSError, ValueError) as error:
            raise CampaignError(f"{self.settings}: {error}") from None
